"""
All benchmarks, or those named, one after the other, and one table of all their rows.

Each runs in a process of its own; the machine and the versions are printed once. Rows where another wins are left in.
The figures are kept in `benchmarks.json`, or where `--json` says. `weight` needs the network: it runs if it is named.
The status is 1 where a benchmark could not be run, or found a voice lost or doubled; a goal missed does not change it.

    python benchmarks [--size smoke|quick|full] [--json FILE] [NAME ...]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _common import machine, show
from _rows import rows_of, summary

HERE = Path(__file__).parent
LONGEST_S = 3600
BY_SIZE = {size: ("--size", size) for size in ("smoke", "quick", "full")}
SUITE: dict[str, dict[str, tuple[str, ...]]] = {
    "throughput": {
        "smoke": ("--quick", "--only", "300 x 0.2 s, 10 accounts", "--contender", "useapi_voice", "--repeats", "1"),
        "quick": ("--quick",),
        "full": (),
    },
    "trouble": {"smoke": ("--quick", "--clones", "6"), "quick": ("--quick",), "full": ()},
    "overhead": BY_SIZE,
    "uploads": BY_SIZE,
    "store": BY_SIZE,
    "instructions": BY_SIZE,
    "fleet": {"smoke": ("--quick", "--jobs", "24"), "quick": ("--quick",), "full": ()},
    "kill": {
        "smoke": ("--kills", "1", "--jobs", "6"),
        "quick": ("--kills", "10", "--kills-per-batch", "10", "--jobs", "40"),
        "full": (),
    },
    "soak": {
        "smoke": ("--clones", "20", "--waves", "2"),
        "quick": ("--clones", "400", "--waves", "4"),
        "full": (),
    },
    "weight": BY_SIZE,
}
"""What each is run with."""
ONLY_IF_NAMED = {"weight"}


def run(name: str, size: str) -> tuple[dict[str, Any] | None, int]:
    """Run one benchmark; return what it kept, and its status."""
    with tempfile.TemporaryDirectory() as scratch:
        kept = Path(scratch) / "kept.json"
        command = [sys.executable, str(HERE / f"{name}.py"), *SUITE[name][size], "--json", str(kept)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LONGEST_S)
        if done.returncode:
            print(f"{name} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}", file=sys.stderr)
        return (json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else None), done.returncode


def main() -> int:
    """Run them, and print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SUITE)}")
    options.add_argument("--size", choices=("smoke", "quick", "full"), default="quick")
    options.add_argument("--json", type=Path, default=Path("benchmarks.json"))
    asked = options.parse_args()
    if unknown := sorted(set(asked.names) - set(SUITE)):
        options.error(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(SUITE)}")
    names = asked.names or [name for name in SUITE if name not in ONLY_IF_NAMED]
    print(f"{machine()}; size {asked.size}\n", flush=True)
    everything: dict[str, Any] = {}
    rows, worst = [], 0
    for name in names:
        start = time.perf_counter()
        kept, status = run(name, asked.size)
        worst = max(worst, status)
        everything[name] = kept
        found = [] if kept is None else rows_of(name, kept)
        rows += found
        load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
        print(f"{name}: {len(found)} rows in {time.perf_counter() - start:.0f} s{load}", file=sys.stderr, flush=True)
        for why in (kept or {}).get("skipped", []):
            print(f"{name}: {why}")
    print(show(rows), summary(rows), sep="\n\n")
    whole = {"machine": machine(), "size": asked.size, "rows": rows, "benchmarks": everything}
    asked.json.write_text(json.dumps(whole, indent=1), encoding="utf-8")
    return int(worst != 0)


if __name__ == "__main__":
    sys.exit(main())
