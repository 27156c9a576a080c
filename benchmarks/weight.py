"""
What an installation weighs: the wheel, packages, megabytes and the first import, beside the SDKs of similar services.

Each is installed into a new environment by uv, alone, in its newest version; what uv itself puts there is not counted,
and bytecode is not there yet. Imports are CPU time in that environment, compiled beforehand, less an empty interpreter.
Needs the network, so the run of all benchmarks leaves it out; a package that cannot be had is left out with its reason.

    python benchmarks/weight.py [--size quick] [--repeats N] [--json FILE]
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from _common import Measured, Row, machine, measured, parser, report, row, show

ROOT = Path(__file__).parents[1]
EXTRAS = ("cli", "sandbox", "postgres", "otel")
PEERS = {
    "elevenlabs": "from elevenlabs.client import AsyncElevenLabs",
    "cartesia": "from cartesia import AsyncCartesia",
    "fal-client": "import fal_client; fal_client.AsyncClient",
    "replicate": "from replicate.client import Client",
    "fish-audio-sdk": "from fish_audio_sdk import AsyncWebSocketSession",
    "hume": "from hume import AsyncHumeClient",
    "openai": "from openai import AsyncOpenAI",
    "assemblyai": "from assemblyai import Transcriber",
}
OURS = "from useapi_voice import VoiceClient, CloneRequest"


@dataclass(frozen=True, slots=True)
class Weight:
    """
    What one installation came to.

    Attributes:
        version: Of the package asked for.
        packages: Distributions installed, it and those it needs.
        installed_mb: All of their files.
        own_mb: Its own files.
        import_ms: CPU of its import, several times; empty where that failed.
    """

    version: str
    packages: int
    installed_mb: float
    own_mb: float
    import_ms: tuple[float, ...]


LOOK = """
import importlib.metadata, json, sys
rows = {}
for distribution in importlib.metadata.distributions():
    files = [distribution.locate_file(file) for file in distribution.files or ()]
    size = sum(path.stat().st_size for path in files if path.is_file() and path.suffix != '.pyc')
    rows[distribution.metadata['Name'].lower().replace('_', '-')] = [distribution.version, size]
print(json.dumps(rows))
"""


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def cpu_ms(python: Path, statement: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([python, "-c", statement], check=True, capture_output=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime) * 1e3


def weigh(uv: str, requirement: str, name: str, statement: str, repeats: int) -> Weight:
    """Install it into a new environment, and look."""
    with tempfile.TemporaryDirectory() as scratch:
        environment = Path(scratch) / "env"
        run(uv, "venv", "--quiet", "--python", sys.executable, str(environment))
        (python,) = [
            path for path in (environment / "bin" / "python", environment / "Scripts" / "python.exe") if path.exists()
        ]
        run(uv, "pip", "install", "--quiet", "--python", str(python), requirement)
        rows = json.loads(run(str(python), "-c", LOOK))
        try:
            took = [(cpu_ms(python, statement), cpu_ms(python, "pass")) for _ in range(repeats + 1)][1:]
        except subprocess.CalledProcessError:
            took = []
        version, own_bytes = rows[name]
        return Weight(
            version,
            len(rows),
            sum(size for _, size in rows.values()) / 1e6,
            own_bytes / 1e6,
            tuple(whole - empty for whole, empty in took),
        )


def beside(ours: Weight, name: str, peer: Weight) -> list[Row]:
    """Three rows: packages, megabytes, the first import."""
    shown = f"{name} {peer.version}"
    rows = [
        row("packages installed", measured([ours.packages], ""), (shown, measured([peer.packages], ""))),
        row("megabytes installed", measured([ours.installed_mb], "MB"), (shown, measured([peer.installed_mb], "MB"))),
    ]
    if peer.import_ms:
        rows.append(row("first import, CPU", Measured(ours.import_ms, "ms"), (shown, Measured(peer.import_ms, "ms"))))
    return rows


def main() -> None:
    """Print the table."""
    asked = parser(__doc__).parse_args()
    repeats = asked.repeats or {"smoke": 1, "quick": 5, "full": 9}[asked.size]
    uv = shutil.which("uv", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))))
    if uv is None:
        sys.exit("uv is needed: pip install uv")
    print(f"{machine()}; medians of {repeats}\n")
    skipped: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        try:
            run(uv, "build", "--quiet", "--wheel", "--out-dir", scratch, str(ROOT))
        except subprocess.CalledProcessError as error:
            sys.exit(f"the wheel cannot be built here: {error.stderr.strip().splitlines()[-1]}")
        (wheel,) = Path(scratch).glob("*.whl")
        ours = weigh(uv, str(wheel), "useapi-voice", OURS, repeats)
        rows = [
            row("the wheel", measured([wheel.stat().st_size], "kB", 1e-3)),
            row("megabytes of our own files", measured([ours.own_mb], "MB")),
        ]
        for extra in EXTRAS if asked.size != "smoke" else ():
            found = weigh(uv, f"useapi-voice[{extra}] @ {wheel.as_uri()}", "useapi-voice", OURS, 1)
            core = ("without it", measured([ours.packages], ""))
            rows.append(row(f"packages installed, with [{extra}]", measured([found.packages], ""), core))
            core = ("without it", measured([ours.installed_mb], "MB"))
            rows.append(row(f"megabytes installed, with [{extra}]", measured([found.installed_mb], "MB"), core))
    for name, statement in PEERS.items() if asked.size != "smoke" else ():
        try:
            rows += beside(ours, name, weigh(uv, name, name, statement, repeats))
        except subprocess.CalledProcessError as error:
            skipped.append(f"{name} is left out: {error.stderr.strip().splitlines()[-1]}")
    rows.sort(key=lambda each: each["what"])
    print(show(rows), *skipped, sep="\n")
    report("weight", {"rows": rows, "skipped": skipped})


if __name__ == "__main__":
    main()
