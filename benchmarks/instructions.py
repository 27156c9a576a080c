"""
Instructions, not seconds, of the hot paths: counted by valgrind's callgrind, and held against those that were kept.

Each path is run so many times, and twice as many, in processes of their own; the difference is what it costs once it is
warm, without start and imports. Hashes are seeded and the garbage collector is off, so that a count repeats itself to
a thousandth. `instructions.json` keeps the counts with the versions that they are of: a later run prints the ratio, and
says so where a version differs, because then it says nothing of our code. `--keep` writes the file anew.

    python benchmarks/instructions.py [--size full] [--keep] [--json FILE]
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path

from _common import Row, machine, measured, parser, report, row, show
from _paths import PATHS

QUICK = [
    "one decision, 10 jobs waiting",
    "submit of one job",
    "a clone, from submit to voice, answered at once",
    "a clone's reply read",
]
KEPT = Path(__file__).with_suffix(".json")
# --- counting --------------------------------------------------------------------------------------------------------


def run(path: str, times: int, *under: str) -> str:
    """Do it so many times in a process of its own, under a tool if one is given; return what that says."""
    command = [*under, sys.executable, str(KEPT.with_name("_paths.py")), path, str(times)]
    environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": ""}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stderr


def instructions(valgrind: str, path: str, times: int) -> int:
    """Count those of a whole process that does it so many times."""
    told = run(path, times, valgrind, "--tool=callgrind", "--callgrind-out-file=/dev/null")
    found = re.search(r"Collected : (\d+)", told)
    assert found is not None, told
    return int(found[1])


def cost(valgrind: str, path: str) -> int:
    """Instructions of doing it once."""
    first, _ = PATHS[path]
    run(path, first)  # so that no count has to compile what the other finds compiled
    once, twice = (instructions(valgrind, path, times) for times in (first, 2 * first))
    return round((twice - once) / first)


def versions(valgrind: str) -> dict[str, str]:
    """What else a count depends on."""
    told = subprocess.run([valgrind, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    libraries = {name: version(name) for name in ("anyio", "httpcore", "httpx", "pydantic")}
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "compiler": platform.python_compiler(),
        "machine": platform.machine(),
        "valgrind": told,
        **libraries,
    }


def held_against(counts: dict[str, int], here: dict[str, str], kept: dict[str, dict[str, int]]) -> list[Row]:
    """Make the rows; a ratio has a goal only where all versions are those of the file."""
    same = kept.get("versions") == here
    rows = []
    for path, count in counts.items():
        earlier = kept.get("instructions", {}).get(path)
        beside = None if earlier is None else ("kept" if same else "kept, of other versions", measured([earlier], ""))
        goal = 1.1 if same and earlier is not None else None
        rows.append(row(f"instructions: {path}", measured([count], ""), beside, at_most=goal))
    return rows


def main() -> None:
    """Count, and print."""
    options = parser(__doc__)
    options.add_argument("--keep", action="store_true", help=f"write {KEPT.name} anew")
    asked = options.parse_args()
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        print("instructions are not counted: there is no valgrind")
        report("instructions", {"rows": [], "skipped": ["instructions are not counted: there is no valgrind"]})
        return
    # Valgrind takes its time: the quick ones are those that every clone goes through.
    paths = {"smoke": list(PATHS)[:1], "quick": QUICK, "full": list(PATHS)}[asked.size]
    print(f"{machine()}; {versions(valgrind)['valgrind']}\n")
    # Others may have the processor: a count is the same, only later.
    with ThreadPoolExecutor(max_workers=2) as pool:
        counts = dict(zip(paths, pool.map(partial(cost, valgrind), paths), strict=True))
    here = versions(valgrind)
    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    differing = sorted(name for name in here if kept.get("versions", {}).get(name) != here[name])
    if kept and differing:
        print(f"{KEPT.name} is of another {', '.join(differing)}: the ratios say nothing of this code\n")
    rows = held_against(counts, here, kept)
    print(show(rows))
    if asked.keep:
        KEPT.write_text(json.dumps({"versions": here, "instructions": counts}, indent=1) + "\n", encoding="utf-8")
    report("instructions", {"rows": rows, "versions": here})


if __name__ == "__main__":
    main()
