"""
The command line: one function a command, which says what may be asked for, and hands it on.

Each loads what it needs when it is run, so that `--help`, and a mistyped option, are answered at once.
"""

# Typer reads a flag from a parameter with a default.
# ruff: noqa: FBT002

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .._jobs import JobState
from .._version import __version__
from . import _fleet
from ._exit import EPILOG, Debug, run
from ._options import AccountOption, JsonOption
from ._text import put

app = typer.Typer(
    name="useapi-voice",
    help="Clone voices in bulk through useapi.net, at most two at a time per account.\n\n"
    "Set USEAPI_TOKEN to your token (and USEAPI_BASE_URL, USEAPI_VOICE_API if need be). A first look, free of "
    "charge: demo. Then: doctor, plan SOURCE, clone SOURCE.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    pretty_exceptions_show_locals=False,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
voices_app = typer.Typer(
    help="List, delete and prune cloned voices.", epilog=EPILOG, no_args_is_help=True, rich_markup_mode="markdown"
)
jobs_app = typer.Typer(
    help="See, retry and forget the jobs of a store.", epilog=EPILOG, no_args_is_help=True, rich_markup_mode="markdown"
)

Source = Annotated[
    Path,
    typer.Argument(
        help="A manifest or a folder. A manifest is CSV or JSON Lines with voice_name, language_tag and samples, and "
        "if you like account, need_noise_reduction and key; several samples are divided by ';', globs are allowed, "
        "and paths start at the manifest's folder. In a folder, each recording, and each sub-folder of recordings, "
        "becomes a voice.",
        show_default=False,
    ),
]
Store = Annotated[
    Path, typer.Argument(help="The store of an earlier clone, or the manifest or folder that it was for.")
]
Language = Annotated[
    str | None, typer.Option(help="Language of voices that name none, such as English; needed for a folder.")
]
StoreOption = Annotated[
    Path | None,
    typer.Option(
        help="The file that remembers the jobs. By default SOURCE.db (for a folder SOURCE/.useapi-voice.db), so that "
        "the same command goes on where it stopped.",
        show_default=False,
    ),
]
MaxParallel = Annotated[int, typer.Option(min=1, max=2, help="Clones in progress per account.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but what went wrong.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")]
Rehearse = Annotated[
    bool, typer.Option("--sandbox", help="A rehearsal: the embedded sandbox answers, and nothing is sent or kept.")
]


def _version(wanted: bool) -> None:  # noqa: FBT001 - as typer calls it
    if wanted:
        put(f"useapi-voice {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Take what stands before a command."""


@app.command(epilog=EPILOG)
def clone(
    source: Source,
    language: Language = None,
    account: AccountOption = None,
    store: StoreOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Write the voices there at the end: a .jsonl or .csv file; - is standard output."
        ),
    ] = None,
    max_parallel: MaxParallel = 2,
    sandbox: Rehearse = False,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first voice that fails.")] = False,
    quiet: Quiet = False,
    json: JsonOption = False,
    debug: Debug = False,
) -> None:
    """
    Clone all voices of a manifest or a folder.

    Everything is checked first, and all faults are shown before anything is sent. Ctrl-C stops when the clones in
    progress have ended, a second one at once; the same command goes on in either case, makes no voice twice, and
    tries again what failed for a reason that may have passed.
    """
    from . import _clone
    from ._batch import Style

    style = Style(quiet, json)
    asked = _clone.Plan(source, language, account, store, out, max_parallel, sandbox, fail_fast, style)
    run(_clone.run, asked, debug=debug)


@app.command(epilog=EPILOG)
def plan(
    source: Source,
    language: Language = None,
    account: AccountOption = None,
    store: StoreOption = None,
    max_parallel: MaxParallel = 2,
    sandbox: Rehearse = False,
    json: JsonOption = False,
    debug: Debug = False,
) -> None:
    """
    Check a manifest or a folder, and tell what a clone of it would do; spends nothing.

    Counts voices, uploads, free slots and time for each account. Exits with 4 if there are fewer slots than voices.
    """
    from . import _plan

    run(_plan.run, _plan.Plan(source, language, account, store, max_parallel, sandbox, json), debug=debug)


@app.command(epilog=EPILOG)
def doctor(json: JsonOption = False, debug: Debug = False) -> None:
    """Look at the token, the network, the accounts, their slots and languages; every finding comes with its remedy."""
    from . import _doctor

    run(_doctor.run, json, debug=debug)


@app.command(epilog=EPILOG)
def accounts(json: JsonOption = False, debug: Debug = False) -> None:
    """List the accounts behind the token, whether they are in order, and their free slots."""
    from . import _voices

    run(_voices.accounts, json, debug=debug)


@voices_app.command("list", epilog=EPILOG)
def voices_list(
    account: Annotated[str | None, typer.Option(metavar="NAME", help="Of this account alone.")] = None,
    system: Annotated[bool, typer.Option("--system", help="The built-in voices instead of the cloned ones.")] = False,
    json: JsonOption = False,
    debug: Debug = False,
) -> None:
    """List cloned voices, or the built-in ones."""
    from . import _voices

    run(_voices.list_all, _voices.Listing(account, system, json), debug=debug)


@voices_app.command("delete", epilog=EPILOG)
def voices_delete(
    voices: Annotated[list[str], typer.Argument(help="Ids, or names that only one voice has.", show_default=False)],
    account: Annotated[str | None, typer.Option(metavar="NAME", help="Of this account alone.")] = None,
    yes: Yes = False,
    debug: Debug = False,
) -> None:
    """Delete cloned voices for good, and free their slots."""
    from . import _voices

    run(_voices.delete, tuple(voices), account, yes, debug=debug)


@voices_app.command("prune", epilog=EPILOG)
def voices_prune(
    prefix: Annotated[str, typer.Argument(help="The beginning of their names.", show_default=False)],
    account: Annotated[str | None, typer.Option(metavar="NAME", help="Of this account alone.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete them; without it they are only shown.")] = False,
    debug: Debug = False,
) -> None:
    """Delete all cloned voices whose names begin with PREFIX; without --yes, only show them."""
    from . import _voices

    run(_voices.prune, prefix, account, yes, debug=debug)


@jobs_app.command("list", epilog=EPILOG)
def jobs_list(
    store: Store,
    state: Annotated[JobState | None, typer.Option(help="Those in this state alone.")] = None,
    json: JsonOption = False,
    debug: Debug = False,
) -> None:
    """List the jobs of a store, with their voices and errors; needs no token."""
    from . import _jobs

    run(_jobs.list_all, store, state, json, debug=debug)


@jobs_app.command("show", epilog=EPILOG)
def jobs_show(
    store: Store,
    job: Annotated[str, typer.Argument(help="Its key or id, or the id's first characters.", show_default=False)],
    json: JsonOption = False,
    debug: Debug = False,
) -> None:
    """Show one job with the history of its attempts; needs no token."""
    from . import _jobs

    run(_jobs.show, store, job, json, debug=debug)


@jobs_app.command("retry", epilog=EPILOG)
def jobs_retry(
    store: Store,
    jobs: Annotated[
        list[str] | None, typer.Argument(help="Keys or ids; all that failed by default.", show_default=False)
    ] = None,
    unknown: Annotated[
        bool, typer.Option("--unknown", help="Also those whose voice may exist: look first, or pay twice.")
    ] = False,
    max_parallel: MaxParallel = 2,
    quiet: Quiet = False,
    json: JsonOption = False,
    debug: Debug = False,
) -> None:
    """Clone once more what ended without a voice; the recordings must still be where they were."""
    from . import _jobs
    from ._batch import Style

    asked = _jobs.Retry(store, tuple(jobs or ()), unknown, max_parallel, Style(quiet, json))
    run(_jobs.retry, asked, debug=debug)


@jobs_app.command("forget", epilog=EPILOG)
def jobs_forget(
    store: Store,
    jobs: Annotated[list[str], typer.Argument(help="Keys or ids.", show_default=False)],
    yes: Yes = False,
    debug: Debug = False,
) -> None:
    """Forget jobs that have ended, so that their keys are free; a voice that was made stays at the remote."""
    from . import _jobs

    run(_jobs.forget, store, tuple(jobs), yes, debug=debug)


@app.command(epilog=EPILOG)
def report(
    store: Store,
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("report.html"),
    debug: Debug = False,
) -> None:
    """Write one HTML page about a store: timelines, throughput, voices to listen to, failures; needs no token."""
    from . import _report

    run(_report.run, store, out, debug=debug)


@app.command(epilog=EPILOG)
def demo(
    clones: Annotated[int, typer.Option(min=1, help="How many voices to clone.")] = 24,
    accounts: Annotated[int, typer.Option(min=1, max=30, help="How many accounts the sandbox has.")] = 3,
    clone_s: Annotated[float, typer.Option(min=0.01, help="Seconds that the sandbox takes for one clone.")] = 2.0,
    live: Annotated[
        bool, typer.Option("--live", help="Use the real API with USEAPI_TOKEN: makes real voices, and uses slots.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Watch a batch of clones go through the queue: on the built-in sandbox, and free of charge, unless --live."""
    from . import _demo

    run(_demo.run, _demo.Plan(clones, accounts, clone_s, live), debug=debug)


@app.command(epilog=EPILOG)
def sandbox(
    accounts: Annotated[int, typer.Option(min=1, help="How many accounts it has.")] = 1,
    clone_s: Annotated[float, typer.Option(min=0.0, help="Seconds that one clone takes.")] = 20.0,
    slots: Annotated[int | None, typer.Option(min=0, help="Voice slots per account; unlimited by default.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; any free one by default.")] = 0,
    faults: Annotated[
        bool, typer.Option("--faults", help="Misbehave now and then: 429, lost answers, errors of all kinds.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Serve the API in a box until Ctrl-C, and print what to set to use it."""
    from . import _sandbox

    run(
        _sandbox.run,
        _sandbox.Plan(accounts, clone_s, slots, host, port, faults),
        debug=debug,
        stopped="Sandbox stopped.",
    )


app.add_typer(voices_app, name="voices")
app.add_typer(jobs_app, name="jobs")
app.add_typer(_fleet.fleet_app, name="fleet")
