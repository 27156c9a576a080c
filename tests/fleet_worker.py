"""A working replica in a process of its own, for tests and benchmarks: works until its standard input ends."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import AsyncExitStack
from urllib.parse import urlsplit

from relay import relay

from useapi_voice import VoiceClient
from useapi_voice.stores import _replica, postgres


async def main() -> None:
    """Work, as standard input's first line says."""
    wanted = json.loads(sys.stdin.readline())
    postgres.LEASE_MARGIN_S = wanted.pop("lease_margin_s", postgres.LEASE_MARGIN_S)
    _replica.POLL_S = wanted.pop("poll_s", _replica.POLL_S)
    async with AsyncExitStack() as stack:
        if (api := wanted.pop("relay", None)) is not None:
            # Plain HTTP is for loopback alone, and on this host the API is elsewhere.
            port = await stack.enter_async_context(relay(*api))
            wanted["base_url"] = f"http://127.0.0.1:{port}{urlsplit(wanted['base_url']).path}"
        await stack.enter_async_context(VoiceClient(**wanted))
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
