"""Every check of the project: `nox -l` lists them, `nox` runs the default ones, `.ci/run` runs some of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2026.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.download_python = "never"
nox.options.error_on_missing_interpreters = False  # A missing Python skips its session and says so, in CI too.
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "types", "tests", "wheel"]

ROOT = Path(__file__).parent
PYTHONS = nox.project.python_versions(nox.project.load_toml(ROOT / "pyproject.toml"))
EXTRAS = ("asyncpg", "fastapi", "opentelemetry", "pgqueuer", "rich", "trio", "typer")

# Run where only the wheel is installed: it must be importable, typed, and must neither find nor need an extra.
IMPORT_THE_WHEEL = f"""
import importlib.util, sys
from pathlib import Path
found = [name for name in {EXTRAS!r} if importlib.util.find_spec(name)]
assert not found, f"not a bare environment: it has {{found}}"
import useapi_voice
home = Path(useapi_voice.__file__).parent
assert home.is_relative_to(sys.prefix), f"imported from {{home}}, not from the wheel"
assert (home / "py.typed").is_file(), "the wheel has no py.typed"
print("useapi_voice", useapi_voice.__version__, "imports without extras")
"""


@nox.session
def lint(session: nox.Session) -> None:
    """Style, format, and which room may import which."""
    session.install("-e", ".[dev]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """The package's types by two checkers, and whether a user's checker knows every public name."""
    session.install("-e", ".[dev]")
    session.run("mypy")
    session.run("pyright", "useapi_voice", "tests/typing_api.py")
    session.run("pyright", "--verifytypes", "useapi_voice", "--ignoreexternal")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The tests on one Python; what they covered is added up over all of them (see `coverage`)."""
    session.install("-e", ".[dev]")
    data = f".coverage.py{session.python}"
    for stale in ROOT.glob(f"{data}.*"):
        stale.unlink()
    session.run("coverage", "run", "-m", "pytest", *session.posargs, env={"COVERAGE_FILE": data})
    if not session.posargs:  # A chosen few tests cover little, and that says nothing.
        session.notify("coverage")


@nox.session
def coverage(session: nox.Session) -> None:
    """What the last runs of `tests` covered together; under 100 % of lines and branches is a failure."""
    if not list(ROOT.glob(".coverage.py*")):
        session.skip("nothing was recorded: run the session `tests` first")
    session.install("coverage")
    session.run("coverage", "combine")
    session.run("coverage", "report")


@nox.session(python=PYTHONS[0], venv_backend="uv")
def lowest(session: nox.Session) -> None:
    """The tests with the oldest dependencies that `pyproject.toml` allows, on the oldest Python."""
    session.install("--resolution", "lowest-direct", "-e", ".[dev]")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def wheel(session: nox.Session) -> None:
    """The tests against the built wheel, from a place where the package's source is absent."""
    scratch = Path(session.create_tmp())
    built, bare, copy = scratch / "built", scratch / "bare", scratch / "copy"
    for old in (built, bare, copy):
        shutil.rmtree(old, ignore_errors=True)

    session.install("build")
    session.run("python", "-m", "build", "--wheel", "--outdir", str(built), str(ROOT))
    (archive,) = built.glob("*.whl")

    session.run("python", "-m", "venv", str(bare))
    (python,) = [path for path in (bare / "bin" / "python", bare / "Scripts" / "python.exe") if path.exists()]
    session.run(str(python), "-m", "pip", "install", "--quiet", str(archive), external=True)
    session.run(str(python), "-I", "-c", IMPORT_THE_WHEEL, external=True)

    session.install("--force-reinstall", "--no-deps", str(archive))
    session.install(f"{archive}[dev]")
    copy.mkdir()
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, copy)
    for name in ("tests", "benchmarks"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    with session.chdir(copy):
        session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """One table of all benchmarks, or of those named: `nox -s bench -- [--size full] [--json FILE] [overhead ...]`."""
    session.install("-e", ".[dev]")
    session.run("python", str(ROOT / "benchmarks"), *session.posargs)


@nox.session
def million(session: nox.Session) -> None:
    """A million clones through every fault in virtual time (about half an hour); give another number as an argument."""
    session.install("-e", ".[dev]")
    clones = session.posargs[0] if session.posargs else "1_000_000"
    session.run("python", "-m", "pytest", "tests/test_machine.py", "-q", env={"USEAPI_VOICE_CLONES": clones})
