"""What the tests of the sandbox share: a caller that speaks plain HTTP, and audio of any length."""

from __future__ import annotations

import json
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from useapi_voice.sandbox import Sandbox

DATA = Path(__file__).parent / "data"


def example(name: str) -> Any:
    """Read an example of the contract."""
    return json.loads((DATA / f"{name}.json").read_text())


def shape(value: object) -> object:
    """Reduce JSON to its shape: keys and the kinds of values; a list to the shape of its first item."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value[:1]]
    return type(value).__name__


def wav(duration_s: float, *, header: bytes = b"", data_size: int | None = None) -> bytes:
    """Make a WAV of 8000 bytes a second."""
    data = bytes([128]) * int(duration_s * 8000)
    form = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 8000, 1, 8)
    chunk = b"data" + struct.pack("<I", len(data) if data_size is None else data_size)
    return b"RIFF\x00\x00\x00\x00WAVE" + header + form + chunk + data


class Caller:
    """Calls of the API over any skin, by generation."""

    def __init__(self, sandbox: Sandbox, http: httpx.AsyncClient, generation: str = "audio") -> None:
        self.sandbox, self.http, self.generation = sandbox, http, generation

    async def get(self, path: str, **query: str) -> httpx.Response:
        return await self.http.get(path, params=query)

    async def upload(
        self, content: bytes = wav(11), account: str | None = None, content_type: str = "audio/wav"
    ) -> httpx.Response:
        query = {} if account is None else {"account": account}
        headers = {"content-type": content_type}
        path = f"{self.generation}/upload-sample/"
        return await self.http.post(path, params=query, content=content, headers=headers)

    def body(self, voice_name: str | None = "Ann", on: str | None = None, **fields: object) -> dict[str, object]:
        """Give the body of a valid clone request, with a sample `on` an account; a field given as None is left out."""
        body: dict[str, object] = {"voice_name": voice_name, "language_tag": "English", **fields}
        if "files" not in body:
            body["files"] = self.sandbox.add_sample(account=on)
        return {name: value for name, value in body.items() if value is not None}

    async def clone(self, voice_name: Any = "Ann", on: str | None = None, **fields: object) -> httpx.Response:
        body = self.body(voice_name, on, **fields)
        return await self.http.post(f"{self.generation}/clone-voice", json=body)

    async def cloned(self, **query: str) -> list[str]:
        """Give the names in the list of cloned voices."""
        reply = await self.get(f"{self.generation}/voices", is_system="false", **query)
        return [voice["voice_name"] for voice in reply.json()["voice_list"]]

    async def delete(self, **fields: object) -> httpx.Response:
        return await self.http.post(f"{self.generation}/delete-voice", json=fields)


@asynccontextmanager
async def calling(
    sandbox: Sandbox, generation: str = "audio", *, timeout_s: float | None = 120.0, in_process: bool = True
) -> AsyncIterator[Caller]:
    """Open a client on one skin of a sandbox."""
    transport = sandbox.transport() if in_process else None
    headers = {"Authorization": f"Bearer {sandbox.token}"}
    async with httpx.AsyncClient(
        transport=transport, base_url=sandbox.base_url, headers=headers, timeout=timeout_s, trust_env=False
    ) as http:
        yield Caller(sandbox, http, generation)
