"""`useapi-voice sandbox`: the API in a box, for any client."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from ..sandbox import Sandbox, serve
from ._connect import misbehave
from ._exit import CliError, ExitCode
from ._text import count, put


@dataclass(frozen=True, slots=True)
class Plan:
    """What was asked for."""

    accounts: int
    clone_s: float
    slots: int | None
    host: str
    port: int
    faults: bool = False


async def run(plan: Plan) -> ExitCode:
    """Serve until stopped."""

    def announce(sandbox: Sandbox) -> None:
        if plan.faults:
            misbehave(sandbox)
        put(f"# Sandbox with {count(plan.accounts, 'account')}, {plan.clone_s:g} s a clone. To use it:")
        # Neither wrapped nor coloured: these lines are to be copied. The token opens nothing but a sandbox.
        put(f"export USEAPI_BASE_URL={sandbox.base_url}")
        put(f"export USEAPI_TOKEN={sandbox.token}")
        put("# Ctrl-C stops it.")
        sys.stdout.flush()

    try:
        await serve(
            host=plan.host,
            port=plan.port,
            on_ready=announce,
            accounts=plan.accounts,
            clone_s=plan.clone_s,
            slots=plan.slots,
        )
    except OSError as error:
        message = f"Cannot listen on {plan.host} port {plan.port}: {error.strerror or error}"
        raise CliError(ExitCode.USAGE, f"{message}. Choose another --port, or 0 for any free one.") from error
    return ExitCode.OK  # pragma: no cover - it serves until it is cancelled
