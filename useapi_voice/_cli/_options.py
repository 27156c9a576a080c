"""Options that several commands share; loads nothing, so that `--help` need not."""

from typing import Annotated

import typer

AccountOption = Annotated[
    str | None, typer.Option("--account", metavar="NAME", help="The account to use; any that is free by default.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON lines on standard output, for programs.")]
