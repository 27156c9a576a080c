"""The public face: how a client is made, entered, used and left, and the endpoints around cloning."""

from __future__ import annotations

import asyncio
import logging
import pickle
import threading
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from harness import (
    TOKEN,
    HangUp,
    Heard,
    Say,
    ask,
    both,
    closed_port,
    diary,
    error_of,
    in_process,
    over_loopback,
    serving,
    shown,
    virtual,
    wav,
)

from useapi_voice import (
    ApiError,
    CloneError,
    CloneRequest,
    ConfigurationError,
    QueueClosed,
    RequestInvalid,
    Sample,
    ServerError,
    UseapiVoiceError,
    VoiceClient,
    VoiceInfo,
)
from useapi_voice import _client as room
from useapi_voice.sandbox import Fault, Sandbox, sample_paths

# --- making one -------------------------------------------------------------------------------------------------------


def test_without_a_token_it_says_where_to_get_one() -> None:
    """No token is told when the client is made, in one sentence."""
    with pytest.raises(ConfigurationError, match="no token: pass token=… or set USEAPI_TOKEN"):
        VoiceClient()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"base_url": "http://example.com"}, "plain http would send the token to example.com unprotected"),
        ({"api": "video"}, 'api must be "auto", "audio" or "speech"'),
        ({"accounts": "a"}, r"accounts must be a list of names: accounts=\['a'\]"),
        ({"accounts": []}, "accounts must name at least one"),
        ({"accounts": ["a", " "]}, "accounts must name at least one"),
        ({"max_parallel": 3}, "max_parallel must be 1 or 2, not 3"),
        ({"max_parallel": 0}, "max_parallel must be 1 or 2"),
        ({"http_client": httpx.Client}, "http_client must be an httpx.AsyncClient"),
        ({"max_parallel": True}, "max_parallel must be 1 or 2, not True"),
        ({"max_parallel": []}, "max_parallel must be 1 or 2, not list"),
        ({"base_url": 5}, "base_url must be a str, not int"),
        ({"api": 2}, 'api must be "auto", "audio" or "speech", not 2'),
        ({"accounts": 5}, "accounts must be a list of names, each a str"),
        ({"accounts": ["a", 1]}, "accounts must be a list of names, each a str"),
        ({"clone_timeout_s": 0}, "clone_timeout_s must be a positive number of seconds, not 0"),
        ({"clone_timeout_s": float("inf")}, "clone_timeout_s must be a positive number of seconds, not inf$"),
        ({"deadline_s": float("inf")}, "deadline_s must be a positive number of seconds, not inf; for no limit, leave"),
        ({"settle_after_s": -1}, "settle_after_s must be"),
        ({"settle_after_s": float("nan")}, "settle_after_s must be"),
        ({"queue_timeout_s": "1"}, "queue_timeout_s must be"),
        ({"deadline_s": True}, "deadline_s must be"),
        ({"max_pending": 0}, "max_pending must be a whole number, 1 or more, not 0; for no limit, leave it out"),
        ({"max_pending": 2.5}, "max_pending must be a whole number"),
        ({"max_pending": float("inf")}, "max_pending must be a whole number"),
        ({"max_resends": -1}, "max_resends must be a whole number, 0 or more, not -1$"),
        ({"max_resends": True}, "max_resends must be"),
        ({"max_resends": None}, "max_resends must be"),
        ({"unreachable_after_s": -1}, "unreachable_after_s must be a number of seconds, 0 or more, not -1"),
        ({"unreachable_after_s": float("nan")}, "unreachable_after_s must be"),
        ({"close_grace_s": "x"}, "close_grace_s must be a number of seconds, 0 or more, not 'x'"),
        ({"keep_s": None}, "keep_s must be"),
        ({"keep_s": 1e12}, "keep_s must be"),
        ({"wait_when_blocked": "no"}, "wait_when_blocked must be True or False, not 'no'"),
        ({"work": 1}, "work must be True or False, not 1"),
        ({"resume": None}, "resume must be True or False, not None"),
        ({"look_again_after_s": 0}, "look_again_after_s must be"),
        ({"store": ""}, "store is empty"),
        ({"store": 5}, "store must be the path of a file or a postgresql:// URL, not int"),
        ({"store": b"clones.db"}, "store must be the path of a file or a postgresql:// URL, not bytes"),
        ({"store": "redis://host/0"}, "a postgresql:// URL, and not one of redis"),
        ({"store": "sqlite:///clones.db"}, "store must be the path of a file"),
        ({"store": ":memory:"}, "store names no file: to keep jobs in memory, leave it out"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], says: str) -> None:
    """Each is told when the client is made, by its name; the token is in no frame of the traceback."""
    with pytest.raises(ConfigurationError, match=says) as raised:
        VoiceClient(TOKEN, **settings)
    assert TOKEN not in shown(raised.value)


def test_everything_that_is_wrong_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One error names every argument that is wrong, and the variable that it comes from; no password is shown."""
    monkeypatch.setenv("USEAPI_BASE_URL", "http://example.com")
    monkeypatch.setenv("USEAPI_VOICE_API", "video")
    with pytest.raises(ConfigurationError) as raised:
        VoiceClient(
            5,  # type: ignore[arg-type]
            accounts=[],
            max_parallel=3,
            store="mysql://me:hunter2@host/db",
            deadline_s=-1,
            max_resends=2.5,  # type: ignore[arg-type]
        )
    assert raised.value.message.splitlines() == [
        "8 arguments are wrong:",
        "- token must be a str, not int",
        "- plain http would send the token to example.com unprotected: use https:// (it is from USEAPI_BASE_URL)",
        '- api must be "auto", "audio" or "speech", not \'video\' (it is from USEAPI_VOICE_API)',
        "- accounts must name at least one account, and none may be empty; or leave it out",
        "- store must be the path of a file or a postgresql:// URL, and not one of mysql",
        "- max_parallel must be 1 or 2, not 3: the remote takes no more",
        "- deadline_s must be a positive number of seconds, not -1; for no limit, leave it out",
        "- max_resends must be a whole number, 0 or more, not 2.5",
    ]
    assert "hunter2" not in shown(raised.value)


def test_limits_that_may_be_zero() -> None:
    """No resend, no patience, no grace and no memory are settings like any other."""
    VoiceClient(TOKEN, max_resends=0, unreachable_after_s=0, close_grace_s=0, keep_s=0)


def test_a_token_with_its_scheme() -> None:
    """The word before the token is told, and the token is not."""
    with pytest.raises(ConfigurationError, match="the token begins with 'Bearer '") as raised:
        VoiceClient(f"Bearer {TOKEN}")
    assert TOKEN not in shown(raised.value)


def test_a_bad_token_is_in_no_frame() -> None:
    """A token with a line break in the middle is refused, and no report with locals shows it."""
    bad = TOKEN[:20] + "\n" + TOKEN[20:]
    with pytest.raises(ConfigurationError, match="characters that cannot stand in a header") as raised:
        VoiceClient(bad)
    assert TOKEN[:20] not in shown(raised.value)


async def test_the_environment_is_read_when_the_client_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """`USEAPI_TOKEN`, `USEAPI_BASE_URL` and `USEAPI_VOICE_API` are the defaults; an argument goes before them."""
    sandbox = Sandbox(clone_s=0.01, generations=["speech"])
    async with sandbox:
        monkeypatch.setenv("USEAPI_TOKEN", TOKEN)
        monkeypatch.setenv("USEAPI_BASE_URL", sandbox.base_url)
        monkeypatch.setenv("USEAPI_VOICE_API", "speech")
        async with VoiceClient() as client:
            assert sandbox.base_url in repr(client)
            assert client.statistics().generation == "speech"
            await client.clone(ask())
        assert sandbox.count("audio/clone-voice") == 0
        async with VoiceClient(api="audio") as client:
            assert client.statistics().generation == "audio"
        monkeypatch.setenv("USEAPI_BASE_URL", "http://example.com")
        with pytest.raises(ConfigurationError, match="plain http"):
            VoiceClient()
        monkeypatch.setenv("USEAPI_TOKEN", "wrong")
        async with VoiceClient(TOKEN, base_url=sandbox.base_url) as client:
            await client.accounts()


def test_the_default_is_the_real_api() -> None:
    """Nothing is sent by making a client."""
    assert repr(VoiceClient(TOKEN)) == "<VoiceClient https://api.useapi.net/v1/minimax new>"


# --- entering and leaving ---------------------------------------------------------------------------------------------


@both
async def test_use_before_entering_twice_and_after() -> None:
    """Each misuse is told in one sentence, and changes nothing."""
    sandbox = Sandbox(clone_s=0.01)
    async with httpx.AsyncClient(transport=sandbox.transport()) as http:
        client = VoiceClient(TOKEN, base_url=sandbox.base_url, http_client=http)
        for wrong in (client.clone, client.submit):
            with pytest.raises(ConfigurationError, match="has not been entered: use `async with VoiceClient"):
                await wrong(ask())
        for plain in (client.statistics, client.events, lambda: client.job("k")):
            with pytest.raises(ConfigurationError, match="has not been entered"):
                plain()
        async with client:
            with pytest.raises(ConfigurationError, match="this VoiceClient is open already: enter it once"):
                await client.__aenter__()
            await client.accounts()
        for wrong in (client.clone, client.submit):
            with pytest.raises(QueueClosed, match="this VoiceClient is closed: make a new VoiceClient"):
                await wrong(ask())
        with pytest.raises(QueueClosed, match="is closed"):
            _ = [voice async for voice in client.voices()]
        with pytest.raises(ConfigurationError, match="is closed: make a new VoiceClient"):
            await client.__aenter__()
        assert repr(client).endswith("closed>")


async def test_use_from_another_event_loop() -> None:
    """A client belongs to the loop that it was entered in; another is told so, instead of hanging or breaking."""
    sandbox = Sandbox(clone_s=0.01)
    told: list[str] = []
    async with in_process(sandbox) as client:

        async def elsewhere() -> None:
            for wrong in (lambda: client.clone(ask()), client.config, client.drain):
                with pytest.raises(ConfigurationError) as raised:
                    await wrong()
                told.append(str(raised.value))

        thread = threading.Thread(target=lambda: asyncio.run(elsewhere()))
        thread.start()
        await anyio.to_thread.run_sync(thread.join)
        await client.clone(ask())
    assert told == ["this VoiceClient belongs to another event loop: make one in each loop"] * 3


@virtual
async def test_an_entering_that_fails_leaves_it_closed() -> None:
    """Where the store cannot be opened, the error comes out as itself, and the client is not half open."""
    closed: list[str] = []

    class Broken(room.MemoryStore):
        async def open(self) -> Any:
            raise room.UseapiVoiceError("no such luck")

        async def aclose(self) -> None:
            closed.append("store")

    async with httpx.AsyncClient() as http:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(room, "_open_store", lambda *_: Broken())
            client = VoiceClient(TOKEN, http_client=http)
            with pytest.raises(UseapiVoiceError, match="no such luck"):
                await client.__aenter__()
        with pytest.raises(QueueClosed, match="is closed"):
            client.statistics()
        assert not http.is_closed
    assert closed == ["store"]


@both
@pytest.mark.parametrize(
    "error", [ValueError("mine"), ExceptionGroup("mine", [ValueError("inner")]), KeyboardInterrupt()]
)
async def test_the_bodys_error_comes_out_as_itself(error: BaseException) -> None:
    """Not wrapped in a group, nor unwrapped where it is one."""
    sandbox = Sandbox()
    with pytest.raises(type(error)) as raised:
        async with in_process(sandbox):
            raise error
    # trio hands a group on as a copy of it.
    assert raised.value is error or (isinstance(error, ExceptionGroup) and repr(raised.value) == repr(error))
    assert raised.value.__cause__ is None


async def test_bugs_come_out_too() -> None:
    """An internal error ends the body, which learns of it; its jobs are told all the same."""
    sandbox = Sandbox(clone_s=5)
    job = None
    with pytest.raises(ZeroDivisionError):
        async with in_process(sandbox, close_grace_s=0) as client:
            job = await client.submit(ask(files=[sandbox.add_sample()]))
            client._queue._tasks.start_soon(_divide)  # type: ignore[union-attr]
            await anyio.sleep(30)
    assert job is not None
    assert (await error_of(job)).job_id == job.id


async def _divide() -> None:
    raise ZeroDivisionError


@both
async def test_several_errors_stay_together() -> None:
    """Where a bug and the body's error meet, none of them is lost."""
    sandbox = Sandbox()
    with pytest.raises(BaseExceptionGroup) as raised:
        async with in_process(sandbox) as client:
            client._queue._tasks.start_soon(_divide)  # type: ignore[union-attr]
            try:
                await anyio.sleep(30)
            finally:
                raise ValueError("mine")
    assert {type(error) for error in raised.value.exceptions} == {ZeroDivisionError, ValueError}


# --- submitting -------------------------------------------------------------------------------------------------------


async def test_only_requests_can_be_submitted() -> None:
    """Anything else is told by its type; keys must be as many as requests."""
    async with in_process(Sandbox()) as client:
        with pytest.raises(ConfigurationError, match="submit takes a CloneRequest, not dict"):
            await client.submit({"voice_name": "x"})  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match=r"submit_many\(\[request\]\), or submit\(request\)"):
            await client.submit_many(ask())  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="submit_many takes a list of CloneRequests, not NoneType"):
            await client.submit_many(None)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="2 keys for 1 requests"):
            await client.submit_many([ask()], keys=["a", "b"])
        with pytest.raises(ConfigurationError, match="keys must be a list with a key for each request, not str"):
            await client.submit_many([ask()], keys="a")
        with pytest.raises(RequestInvalid, match="2 faults") as raised:
            await client.submit_many([ask("A"), ask("B")], keys=[1, ""])  # type: ignore[list-item]
        assert [fault.message for fault in raised.value.faults] == ["1 is no name", "'' is no name"]


async def test_the_settings_of_a_job_are_judged_as_the_clients_are() -> None:
    """All that is wrong is told at once, and no job is made of it."""
    async with in_process(Sandbox()) as client:
        with pytest.raises(ConfigurationError) as raised:
            await client.submit(
                ask(),
                priority="high",  # type: ignore[arg-type]
                queue_timeout_s=-1,
                deadline_s=float("nan"),
            )
        assert raised.value.message.splitlines() == [
            "3 arguments are wrong:",
            "- priority must be a whole number, not 'high'",
            "- queue_timeout_s must be a positive number of seconds, not -1; for no limit, leave it out",
            "- deadline_s must be a positive number of seconds, not nan; for no limit, leave it out",
        ]
        assert [job async for job in client.jobs()] == []


async def test_arguments_that_name_nothing() -> None:
    """No such state, an empty voice_id, what is no list of jobs: each is told before anything is done."""
    sandbox = Sandbox(accounts=["a"], clone_s=0.02)
    async with in_process(sandbox) as client:
        with pytest.raises(ConfigurationError, match=r"state must be one of queued, .* not 'done'"):
            await anext(client.jobs("done"))
        for wrong in ("", " ", None):
            with pytest.raises(ConfigurationError, match="voice_id must be that of a voice"):
                await client.delete_voice(wrong)  # type: ignore[arg-type]
        job = await client.submit(ask())
        for jobs in (job, [ask()], None):
            with pytest.raises(ConfigurationError, match="as_completed takes a list of jobs"):
                await anext(client.as_completed(jobs))  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match='voice must be "keep" or "delete", not \'burn\''):
            job.cancel(voice="burn")  # type: ignore[arg-type]
        assert not job.done()
        await job
    assert sandbox.count("delete-voice") == 0


@both
async def test_a_first_voice() -> None:
    """The README's first example: a voice from three files, over a real connection, with every field."""
    sandbox = Sandbox(accounts=["a"], clone_s=0.02)
    async with over_loopback(sandbox) as client:
        request = CloneRequest(voice_name="Doctor Who", language_tag="English", samples=list(sample_paths()))
        voice = await client.clone(request)
    assert isinstance(voice, VoiceInfo)
    [made] = sandbox.voices()
    assert (voice.voice_id, voice.voice_name, voice.account, voice.tag_list) == (
        made.voice_id, "Doctor Who", "a", ("English",),
    )  # fmt: skip
    assert voice.created_at is not None
    assert [upload.content_type for upload in sandbox.uploads] == ["audio/mpeg", "audio/mpeg", "audio/wav"]


@pytest.mark.parametrize("shape", ["flat", "wrapped"])
@pytest.mark.parametrize("api", ["audio", "speech"])
async def test_both_generations_and_shapes(shape: Any, api: str) -> None:
    """Same client, same models, whatever the server speaks."""
    sandbox = Sandbox(accounts=2, clone_s=0.01, reply_shape=shape, clone_needs_account=True)
    async with over_loopback(sandbox, api=api) as client:
        voices = [await client.clone(ask(f"v{n}", account=account)) for n, account in enumerate(sandbox.accounts)]
        assert tuple(voice.account for voice in voices) == sandbox.accounts
        listed = [voice.voice_id async for voice in client.voices()]
        assert sorted(listed) == sorted(voice.voice_id for voice in voices)
        for voice in voices:
            await client.delete_voice(voice.voice_id)
        assert [voice async for voice in client.voices()] == []


async def test_auto_tells_of_its_change() -> None:
    """Going on with the speech generation is an event, a log line, and part of the statistics."""
    sandbox = Sandbox(clone_s=0.01, generations=["speech"])
    async with in_process(sandbox) as client, diary(client) as found:
        await client.clone(ask())
        assert client.statistics().generation == "speech"
    assert [event.detail for event in found.of("generation")] == [{"generation": "speech"}]
    async with in_process(Sandbox(clone_s=0.01, generations=["speech"])) as client:
        await client.clone(ask())


# --- the other endpoints ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accounts", [1, 3])
async def test_questions_need_no_account(accounts: int) -> None:
    """Languages and built-in voices are the same for all: any account that is in order is asked."""
    sandbox = Sandbox(accounts=accounts)
    if accounts > 1:
        sandbox.break_account(sandbox.accounts[0])
    async with over_loopback(sandbox) as client:
        assert "English" in (await client.config()).languages
        assert len([voice async for voice in client.voices(cloned=False)]) == 12
        assert len(await client.accounts()) == accounts
        assert len(await client.loads()) == accounts
        assert (await client.slots(sandbox.accounts[-1])).used == 0
        assert "English" in (await client.config(sandbox.accounts[-1])).languages


async def test_voices_are_listed_over_pages_and_accounts() -> None:
    """All cloned voices of all accounts in order, each with its account; tags narrow, an account selects."""
    sandbox = Sandbox(accounts=["a", "b", "c"], page_size=3)
    for account in "ab":
        for number in range(7):
            sandbox.add_voice(f"{account}{number}", account, language_tag="English" if number % 2 else "French")
    sandbox.break_account("c")
    async with over_loopback(sandbox, api="speech") as client:
        listed = [voice async for voice in client.voices()]
        assert [voice.voice_name for voice in listed] == [f"{account}{n}" for account in "ab" for n in range(7)]
        assert {voice.account for voice in listed} == {"a", "b"}
        only_b = [voice.voice_name async for voice in client.voices(account="b", tag_list=["French"])]
        assert only_b == ["b0", "b2", "b4", "b6"]
        with pytest.raises(ApiError):
            _ = [voice async for voice in client.voices(account="c")]


async def test_prune() -> None:
    """Only told by default; then deleted, by prefix; an empty prefix is refused before anything is asked."""
    sandbox = Sandbox(accounts=["a", "b"])
    for account in "ab":
        for name in ("tmp-1", "tmp-2", "keep"):
            sandbox.add_voice(name, account)
    async with over_loopback(sandbox) as client:
        with pytest.raises(ConfigurationError, match="prune needs a prefix"):
            await client.prune("")
        assert sandbox.requests.total() == 0
        assert [voice.voice_name for voice in await client.prune("tmp-")] == ["tmp-1", "tmp-2"] * 2
        assert len(sandbox.voices()) == 6
        assert len(await client.prune("tmp-", account="a", dry_run=False)) == 2
        assert len(await client.prune("tmp-", dry_run=False)) == 2
    assert [voice.voice_name for voice in sandbox.voices()] == ["keep", "keep"]


async def test_deleting_twice_is_no_error() -> None:
    """A voice that does not exist counts as deleted."""
    sandbox = Sandbox(clone_s=0.01)
    async with over_loopback(sandbox) as client:
        voice = await client.clone(ask())
        await client.delete_voice(voice.voice_id, voice.account)
        await client.delete_voice(voice.voice_id)
    assert sandbox.voices() == ()


# --- a voice for a while ----------------------------------------------------------------------------------------------


@virtual
@pytest.mark.parametrize("body", ["normal", "raises", "cancelled"])
async def test_a_temporary_voice_goes_with_its_block(body: str) -> None:
    """However the block ends; its own error comes out as itself."""
    sandbox = Sandbox(clone_s=10)
    async with in_process(sandbox) as client:
        caught: Exception | None = None
        with anyio.CancelScope() as scope:
            try:
                async with client.temporary_voice(ask()) as voice:
                    assert [made.voice_id for made in sandbox.voices()] == [voice.voice_id]
                    if body == "raises":
                        raise ValueError("mine")
                    if body == "cancelled":
                        scope.cancel()
                        await anyio.sleep(1)
            except ValueError as error:
                caught = error
        assert (caught is not None) == (body == "raises")
        assert scope.cancelled_caught == (body == "cancelled")
        assert sandbox.voices() == ()


async def test_a_temporary_voice_survives_a_native_cancellation() -> None:
    """Asyncio's own `cancel()` deletes it as well."""
    sandbox = Sandbox(clone_s=0.01)
    async with over_loopback(sandbox) as client:
        entered = asyncio.Event()

        async def block() -> None:
            async with client.temporary_voice(ask()):
                entered.set()
                await asyncio.sleep(60)

        task = asyncio.ensure_future(block())
        await entered.wait()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
    assert sandbox.voices() == ()


@virtual
async def test_a_temporary_voice_that_cannot_be_deleted() -> None:
    """It is an error where the block did not fail; else the block's error goes before, and the log tells."""
    sandbox = Sandbox(clone_s=10)
    sandbox.fail("delete-voice", Fault.status(400), times=None)
    async with in_process(sandbox) as client:
        with pytest.raises(ApiError):
            async with client.temporary_voice(ask()):
                pass
        with pytest.raises(ValueError, match="mine"):
            async with client.temporary_voice(ask()):
                raise ValueError("mine")
    assert len(sandbox.voices()) == 2


@virtual
async def test_a_temporary_voice_whose_delete_hangs() -> None:
    """It is given up after a while, and said so: the voice may still be there."""
    sandbox = Sandbox(clone_s=10)
    sandbox.fail("delete-voice", Fault.hang(made=False), times=None)
    async with in_process(sandbox) as client:
        with pytest.raises(ServerError, match="was not deleted within 15 s, and may still exist") as raised:
            async with client.temporary_voice(ask()) as voice:
                pass
        assert raised.value.voice_name == voice.voice_name
        with pytest.raises(ValueError, match="mine"):
            async with client.temporary_voice(ask()):
                raise ValueError("mine")


@virtual
async def test_a_temporary_voice_of_a_closed_client(caplog: pytest.LogCaptureFixture) -> None:
    """The block's own error is not replaced by one that says that the client is closed."""
    sandbox = Sandbox(clone_s=10)
    async with in_process(sandbox) as client:
        context = client.temporary_voice(ask())
        voice = await context.__aenter__()
    error = ValueError("mine")
    assert not await context.__aexit__(ValueError, error, None)
    assert f"temporary voice {voice.voice_id} could not be deleted" in caplog.text


@virtual
async def test_a_temporary_voice_that_is_never_made() -> None:
    """The clone's error comes out of `async with`, and nothing is deleted."""
    sandbox = Sandbox(clone_s=10)
    sandbox.fail("clone-voice", Fault.moderated())
    async with in_process(sandbox) as client:
        with pytest.raises(CloneError):
            async with client.temporary_voice(ask()):
                raise AssertionError
    assert sandbox.count("delete-voice") == 0


# --- secrets ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow  # backoffs
async def test_the_token_shows_nowhere(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """Neither in reprs, logs, errors and pickles, nor in what a report with locals shows of anything that is raised."""
    caplog.set_level(logging.DEBUG)
    sandbox = Sandbox(accounts=["a"], clone_s=0.01)
    raised: list[BaseException] = []
    seen: list[object] = []

    async def hang_up(_: Heard) -> Say:
        raise HangUp

    async def try_all(base_url: str) -> None:
        async with VoiceClient(
            TOKEN, base_url=base_url, api="audio", settle_after_s=0.1, unreachable_after_s=0.1, accounts=["a"]
        ) as client:
            jobs = await client.submit_many([ask(f"v{n}", files=["user:4242-minimax:a-file:1"]) for n in range(4)])
            seen.extend([client, client.statistics(), jobs, vars(client), vars(client._queue), vars(client._transport)])
            calls = [
                *(job.result() for job in jobs),
                client.config("nobody"),
                client.submit(ask("n" * 31)),
                client.upload_sample(tmp_path / "gone.wav"),
                client.upload_sample(wav()),
            ]
            for end in await asyncio.gather(*calls, return_exceptions=True):
                (raised if isinstance(end, BaseException) else seen).append(end)  # type: ignore[attr-defined]

    async with serving(hang_up) as dead, sandbox:
        for fault in (Fault.status(400), Fault.moderated(), Fault.bad_json(made=False), Fault.html(502)):
            sandbox.fail("clone-voice", fault)
        urls = [sandbox.base_url, dead, f"http://127.0.0.1:{closed_port()}"]
        await asyncio.gather(*(try_all(url) for url in urls))
    assert all(isinstance(error, UseapiVoiceError) for error in raised)
    assert len(raised) >= 12
    for error in raised:
        assert TOKEN not in shown(error)
        assert TOKEN not in repr(pickle.loads(pickle.dumps(error)).__dict__)
        assert TOKEN.encode() not in pickle.dumps(error)
    assert TOKEN not in repr(seen)
    assert TOKEN not in "\n".join(record.getMessage() for record in caplog.records if record.name == "useapi_voice")


def test_a_request_says_what_it_is_without_its_content() -> None:
    """The content of samples is in no repr."""
    request = ask(samples=[Sample(wav(), name="ann.wav")])
    assert "ann.wav" in repr(request)
    assert len(repr(request)) < 200
    assert issubclass(RequestInvalid, UseapiVoiceError)


# --- somebody else's httpx client -------------------------------------------------------------------------------------


async def test_an_injected_client_is_neither_changed_nor_closed() -> None:
    """Its headers, auth, hooks and pool are its owner's; it works on after our client has closed."""
    sandbox = Sandbox(accounts=["a"], clone_s=0.01)
    hooked: list[str] = []

    async def hook(request: httpx.Request) -> None:
        hooked.append(request.url.path)

    async with (
        sandbox,
        httpx.AsyncClient(
            auth=("me", "mine"), headers={"X-Mine": "1"}, event_hooks={"request": [hook]}, follow_redirects=True
        ) as http,
    ):
        before = (dict(http.headers), http.auth, http.timeout, http.event_hooks, http.follow_redirects, http.trust_env)
        async with VoiceClient(TOKEN, base_url=sandbox.base_url, http_client=http) as client:
            await client.clone(ask())
        after = (dict(http.headers), http.auth, http.timeout, http.event_hooks, http.follow_redirects, http.trust_env)
        assert before == after
        assert not http.is_closed
        assert (await http.get(sandbox.base_url + "/accounts")).status_code == 401
    assert "/v1/minimax/audio/clone-voice" in hooked


# --- a file that keeps jobs -------------------------------------------------------------------------------------------


@pytest.mark.slow  # real time, as a file is involved
async def test_jobs_are_listed_found_forgotten_and_exported(tmp_path: Path) -> None:
    """With a store and without: by state, by key, and as plain data; what has ended can be forgotten."""
    for store in (None, tmp_path / "jobs.db"):
        sandbox = Sandbox(accounts=["a"], clone_s=0.01)
        sandbox.fail("clone-voice", Fault.moderated(), voice_name="B")
        async with in_process(sandbox, store=store) as client:
            one = await client.submit(ask("A"), key="a")
            two = await client.submit(ask("B"), key="b")
            await one.wait()
            await two.wait()
            assert [job.request.voice_name async for job in client.jobs()] == ["A", "B"]
            assert [job.key async for job in client.jobs("refused")] == ["b"]
            assert [job.key async for job in client.jobs(key="a")] == ["a"]
            assert [job async for job in client.jobs("refused", key="a")] == []
            assert [job async for job in client.jobs(key="none")] == []
            assert len([row async for row in client.export()]) == (2 if store else 0)
            waits = await client.submit(ask("C"), priority=-1)
            assert not await client.forget(waits)
            await waits
            assert await client.forget(one)
            assert not await client.forget(one)
            assert client.job("a") is None
            assert (await (await client.submit(ask("A"), key="a"))).voice_name == "A"
