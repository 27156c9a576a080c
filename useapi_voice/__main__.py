"""`python -m useapi_voice` and `useapi-voice`: hands over to the command line, or names what is missing for it."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; without its extra, say which command installs it."""
    try:
        from ._cli import app
    except ModuleNotFoundError as error:
        if error.name not in {"typer", "rich"}:
            raise
        sys.exit(f"The command line needs {error.name}: pip install 'useapi-voice[cli]'")
    app()


if __name__ == "__main__":
    main()
