"""
The hot paths whose instructions are counted, each to be run so many times in a process of its own.

Each imports what it needs: valgrind takes fifty times as long for an import as well.

    python benchmarks/_paths.py "one decision, 10 jobs waiting" 200
"""

from __future__ import annotations

import asyncio
import gc
import io
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from useapi_voice._jobs import Job

ACCOUNT = "335577991122334455"
VOICE = {
    "voice_id": f"user:1-minimax:{ACCOUNT}-audio:212220880216",
    "parent_voice_id": "0",
    "voice_name": "Doctor Who",
    "tag_list": ["English"],
    "file_id": "391001112223336",
    "cover_url": "https://cdn.example.com/cover/0123456789abcdef.png",
    "create_time": 1_737_700_000_000,
    "update_time": 1_737_700_000_000,
    "collected": False,
    "voice_status": 2,
    "sample_audio": "https://cdn.example.com/sample/0123456789abcdef.mp3",
    "uniq_id": "moss_audio_1",
    "group_id": ACCOUNT,
}

Run = Callable[[int], object]
"""Does it so many times."""


# --- the paths: each is prepared for a number of times, and returns what does it -------------------------------------


def deciding(backlog: int, most: int) -> Run:
    """A place is freed, the next job is staged and sent."""
    from useapi_voice._jobs import Job, JobState, Step, advance
    from useapi_voice._models import CloneRequest
    from useapi_voice._schedule import Schedule, Stage

    schedule = Schedule(2)
    schedule.admit(ACCOUNT)
    requests = [CloneRequest(voice_name=f"v{number}", language_tag="English", files=["f"]) for number in range(8)]
    for number in range(backlog + most + 10):
        schedule.add(Job(str(number), None, requests[number % 8], 0, number, None))

    def turn() -> None:
        for action in schedule.assign(0.0):
            if isinstance(action, Stage):
                advance(action.job, Step.STAGED)
                schedule.staged(action.job)
            else:
                advance(action.job, Step.SEND)

    def run(times: int) -> None:
        for _ in range(times):
            done = next(iter(schedule.lanes[ACCOUNT].places.values()))
            done.state = JobState.CLONED
            schedule.free_place(done, ACCOUNT)
            turn()

    turn()
    return run


def replying(most: int) -> Run:
    """An answer's status, headers and bytes become a voice."""
    from useapi_voice._replies import Done, Reply, interpret, read_voice

    headers = {"content-type": "application/json; charset=utf-8", "date": "Fri, 24 Jan 2025 06:26:40 GMT"}
    reply = Reply(200, headers, json.dumps(VOICE).encode(), datetime.now(UTC))

    def run(times: int) -> None:
        for _ in range(times):
            verdict = interpret(reply)
            assert isinstance(verdict, Done)
            voice = read_voice(verdict.payload)
            assert voice is not None
            voice.on(None)

    return run


def inspecting(most: int) -> Run:
    """A minute of mp3, 64 kbit/s, in memory."""
    from _common import a_minute_of_mp3

    from useapi_voice._audio import AudioFacts, measure

    content = a_minute_of_mp3()

    def run(times: int) -> None:
        for _ in range(times):
            assert isinstance(measure(io.BytesIO(content), len(content)), AudioFacts)

    return run


def a_job() -> Job:
    """A job that was sent, with a sample in a file, and a key."""
    from useapi_voice._jobs import Attempt, Fingerprint, Job, JobState
    from useapi_voice._models import CloneRequest

    path = "/srv/samples/speaker-1.mp3"
    request = CloneRequest(voice_name="speaker 1", language_tag="English", samples=[path])
    prints = (Fingerprint("speaker-1.mp3", "0" * 64, 400_000, path),)
    job = Job("0" * 32, "order 1", request, 0, 1, None, fingerprints=prints)
    job.state, job.account, job.attempts = JobState.CLONED, ACCOUNT, 1
    moment = datetime(2025, 1, 24, tzinfo=UTC)
    job.history = (Attempt(ACCOUNT, moment, moment, "cloned", 200),)
    return job


def encoding(most: int) -> Run:
    """A job with its voice becomes a row."""
    from useapi_voice._models import VoiceInfo
    from useapi_voice.stores import codec

    job, voice, moment = a_job(), VoiceInfo.model_validate(VOICE), datetime(2025, 1, 24, tzinfo=UTC)

    def run(times: int) -> None:
        for _ in range(times):
            codec.encode(job, outcome=voice, settled_at=moment)

    return run


def decoding(most: int) -> Run:
    """The row becomes a job with its voice."""
    from useapi_voice._models import VoiceInfo
    from useapi_voice.stores import codec

    stored = codec.encode(
        a_job(), outcome=VoiceInfo.model_validate(VOICE), settled_at=datetime(2025, 1, 24, tzinfo=UTC)
    )

    def run(times: int) -> None:
        for _ in range(times):
            assert codec.decode(stored, str).outcome is not None

    return run


def on_a_client(method: str, most: int, *, answered: bool) -> Run:
    """Call this method of a client so many times, whose remote is in process and answers at once, or not at all."""
    import httpx
    from _common import Instantly

    from useapi_voice import CloneRequest, VoiceClient

    requests = iter([
        CloneRequest(voice_name=f"v{number}", language_tag="English", files=["f"], account=ACCOUNT)
        for number in range(most + 20)
    ])  # fmt: skip

    async def main(times: int) -> None:
        remote = Instantly(None if answered else asyncio.Event())
        async with (
            httpx.AsyncClient(transport=remote) as http,
            VoiceClient(
                "user:1-t", base_url="http://127.0.0.1", api="audio", http_client=http, close_grace_s=0.001
            ) as api,
        ):
            for request in islice(requests, 10 + times):
                await getattr(api, method)(request)

    return lambda times: asyncio.run(main(times))


PATHS: dict[str, tuple[int, Callable[[int], Run]]] = {
    "one decision, 10 jobs waiting": (200, partial(deciding, 10)),
    "one decision, 10,000 jobs waiting": (200, partial(deciding, 10_000)),
    "submit of one job": (100, partial(on_a_client, "submit", answered=False)),
    "a clone, from submit to voice, answered at once": (
        60,
        partial(on_a_client, "clone", answered=True),
    ),
    "a clone's reply read": (200, replying),
    "inspecting a minute of mp3": (20, inspecting),
    "encoding a job for a store": (200, encoding),
    "decoding a job of a store": (200, decoding),
}
"""How often the first time (then twice as often), and how it is prepared."""


def child(path: str, times: int) -> None:
    """Do it so many times, as prepared for the most."""
    first, prepare = PATHS[path]
    run = prepare(2 * first)
    gc.disable()
    run(times)


if __name__ == "__main__":
    child(sys.argv[1], int(sys.argv[2]))
