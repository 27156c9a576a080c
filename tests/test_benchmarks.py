"""The benchmarks start and print their rows: at the smallest size, whose figures mean nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="the benchmarks are not here")
SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("[!_]*.py"))


def run(*arguments: str | Path) -> str:
    """What a script prints; it must end well."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow  # runs benchmarks, each in processes of its own
@pytest.mark.timeout(300)  # as long as that takes on a machine that does much else
@pytest.mark.parametrize(
    ("names", "whats"),
    [
        (["throughput"], ["places busy"]),
        (["overhead"], ["CPU per clone, over HTTP", "one decision, 10 jobs waiting", "import useapi_voice"]),
        (["uploads", "store"], ["upload of 6 mp3", "SQLite: submit_many"]),
    ],
)
def test_all_rows_are_in_one_table(names: list[str], whats: list[str], tmp_path: Path) -> None:
    """The benchmarks named run one after the other, and their rows are in one table and in one file."""
    kept = tmp_path / "kept.json"

    told = run(BENCHMARKS, *names, "--size", "smoke", "--json", kept)

    whole = json.loads(kept.read_text(encoding="utf-8"))
    assert list(whole["benchmarks"]) == names
    for row in whole["rows"]:
        assert set(row) == {"what", "ours", "beside", "value", "ratio", "goal", "met"}
        assert f"| {row['what']} " in told
        assert (row["met"] is None) == (row["goal"] == "")
    for what in whats:
        assert any(row["what"].startswith(what) for row in whole["rows"]), what
    assert "goals are met" in told


@pytest.mark.slow  # starts an interpreter for each
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_starts(name: str) -> None:
    """Its imports are there, and it says what it takes."""
    assert "--json" in run(BENCHMARKS / f"{name}.py", "--help")


@pytest.mark.slow  # starts an interpreter for each
@pytest.mark.parametrize("number", range(8))
def test_the_paths_whose_instructions_are_counted_run(number: int) -> None:
    """Each does what it says as often as it is told, without valgrind."""
    listed = "import sys; sys.path.insert(0, sys.argv[1]); import _paths; print('\\n'.join(_paths.PATHS))"
    paths = run("-c", listed, BENCHMARKS).splitlines()
    assert len(paths) == 8
    run(BENCHMARKS / "_paths.py", paths[number], "2")


def test_a_name_that_no_benchmark_has_is_told() -> None:
    """A misspelt name runs nothing."""
    done = subprocess.run([sys.executable, BENCHMARKS, "overheat"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no such benchmark: overheat; there are throughput" in done.stderr
