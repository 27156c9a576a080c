"""The whole client under SIGKILL, against a server that keeps the truth: a short run of `benchmarks/kill.py`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="SIGKILL is POSIX's")
def test_a_batch_that_is_killed_again_and_again_is_done_once(tmp_path: Path) -> None:
    """Six deaths in the middle of 30 clones lose none, double none, break no cap and repeat no upload."""
    figures = tmp_path / "figures.json"
    command = [sys.executable, "kill.py", "--kills", "6", "--kills-per-batch", "6", "--jobs", "30", "--seed", "1"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [*command, "--json", str(figures)],
        cwd=BENCHMARKS,
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    found = json.loads(figures.read_text(encoding="utf-8"))
    assert found["kills"] >= 6
    assert found["jobs"] >= 30
    assert {name: found[name] for name in ("forgotten", "lost", "doubled", "breaches", "repeated")} == {
        "forgotten": 0,
        "lost": 0,
        "doubled": 0,
        "breaches": 0,
        "repeated": 0,
    }
