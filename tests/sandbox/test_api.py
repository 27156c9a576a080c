"""`_api`: the contract's rules, through the in-process skin."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import pytest

from useapi_voice.sandbox import Fault, Sandbox, sample_paths

from .tools import calling, example, shape, wav

pytestmark = pytest.mark.anyio

OTHER_ACCOUNT = "999999999999999999"


def refused(reply: httpx.Response, status: int, text: str) -> bool:
    """Say whether a reply is this refusal, with the code repeated and the text in its message."""
    return reply.status_code == status and reply.json()["code"] == status and text in reply.json()["error"]


# -- token and routes


@pytest.mark.parametrize(
    "header", [None, "Bearer wrong", "bearer {token}", "Bearer {token} ", "Basic {token}", "{token}"]
)
async def test_only_the_exact_token_is_taken(header: str | None) -> None:
    """Anything but `Bearer <token>` is 401, with the documented body, on every route, known or not."""
    sandbox = Sandbox()
    headers = {} if header is None else {"Authorization": header.format(token=sandbox.token)}
    async with httpx.AsyncClient(transport=sandbox.transport(), base_url=sandbox.base_url, headers=headers) as http:
        for path in ("accounts", "audio/config/", "nothing"):
            reply = await http.get(path)
            assert (reply.status_code, reply.json()) == (401, example("error.401"))


@pytest.mark.parametrize(
    "path", ["nothing", "/elsewhere", "audio/equity", "audio/clone-voice/", "accounts/1/2", "audio"]
)
async def test_unknown_routes_are_404(path: str) -> None:
    """What is no route is 404, and counted as "other"."""
    sandbox = Sandbox()
    async with calling(sandbox) as caller:
        url = f"https://sandbox.invalid{path}" if path.startswith("/") else path
        assert refused(await caller.get(url), 404, "Not found")
    assert sandbox.requests == {"other": 1}


@pytest.mark.parametrize(
    "path", ["audio/config", "audio/voices", "speech/config", "speech/voices", "speech/equity", "accounts", "scheduler"]
)
async def test_reads_take_a_slash_or_none(path: str) -> None:
    """GET routes answer with and without the slash at their end."""
    async with calling(Sandbox()) as caller:
        assert (await caller.get(path)).status_code == 200
        assert (await caller.get(path + "/")).status_code == 200


async def test_wrong_method() -> None:
    """A known route with another method is 405 and names the right one; HEAD gets no body."""
    async with calling(Sandbox()) as caller:
        reply = await caller.http.post("audio/config/")
        assert refused(reply, 405, "Method")
        assert reply.headers["allow"] == "GET"
        head = await caller.http.head("audio/config/")
        assert (head.status_code, head.content) == (405, b"")


@pytest.mark.parametrize(
    ("retired", "status", "text"),
    [("404", 404, "Not found"), ("405", 405, "Method"), ("410", 410, "Gone"), ("error", 400, "decommissioned")],
)
@pytest.mark.parametrize("generation", ["audio", "speech"])
async def test_a_generation_that_is_not_offered(generation: Any, retired: Any, status: int, text: str) -> None:
    """A retired generation answers as told, the other one as ever."""
    other: Any = "speech" if generation == "audio" else "audio"
    async with calling(Sandbox(generations=[other], retired=retired)) as caller:
        assert refused(await caller.get(f"{generation}/config"), status, text)
        assert (await caller.get(f"{other}/config")).status_code == 200


async def test_only_one_endpoint() -> None:
    """With `only`, every other endpoint is 404, and a clone of known files works alone."""
    sandbox = Sandbox(only={"audio/clone-voice"}, clone_s=0)
    async with calling(sandbox) as caller:
        assert refused(await caller.get("accounts"), 404, "Not found")
        assert refused(await caller.upload(), 404, "Not found")
        assert (await caller.clone()).status_code == 200


async def test_requests_are_counted_by_endpoint() -> None:
    """Requests are counted whatever they were answered, by full name, and by short name over both generations."""
    sandbox = Sandbox()
    async with calling(sandbox) as caller:
        await caller.get("audio/voices/")
        await caller.get("speech/voices", page="0")
        await caller.get("scheduler/available")
        await caller.get(f"accounts/{OTHER_ACCOUNT}")
    assert sandbox.count("voices") == 2
    assert (
        sandbox.count("audio/voices")
        == sandbox.count("scheduler/available")
        == sandbox.count("accounts/{account}")
        == 1
    )
    assert sandbox.count("available") == 0


async def test_date_and_create_time_follow_the_servers_clock() -> None:
    """Each reply has a Date, and it and `create_time` are off by the skew."""
    epoch = datetime(2026, 8, 24, 12, 34, 56, 500_000, UTC)
    async with calling(Sandbox(epoch=epoch, clock_skew_s=-3600, clone_s=0)) as caller:
        replies = [await caller.get("accounts"), await caller.get("nothing"), await caller.clone()]
    for reply in replies:
        date = parsedate_to_datetime(reply.headers["date"])
        assert timedelta(0) <= date - (epoch - timedelta(hours=1, milliseconds=500)) < timedelta(seconds=30)
    assert abs(replies[2].json()["create_time"] / 1000 - (epoch.timestamp() - 3600)) < 30


# -- accounts


@pytest.mark.parametrize("path", ["audio/config", "audio/voices", "speech/config", "speech/voices", "speech/equity"])
async def test_account_rules_of_reads(path: str) -> None:
    """The account is optional with one, required with several, 404 when unknown, and 596 when broken."""
    async with calling(Sandbox()) as caller:
        assert (await caller.get(path)).status_code == 200
        assert (await caller.get(path, account="")).status_code == 200
    sandbox = Sandbox(accounts=2)
    first, second = sandbox.accounts
    async with calling(sandbox) as caller:
        assert refused(await caller.get(path), 400, "account is required")
        assert refused(await caller.get(path, account=OTHER_ACCOUNT), 404, OTHER_ACCOUNT)
        sandbox.break_account(first)
        reply = await caller.get(path, account=first)
        assert (reply.status_code, reply.json()) == (596, example("error.596"))
        assert (await caller.get(path, account=second)).status_code == 200
        sandbox.repair(first)
        assert (await caller.get(path, account=first)).status_code == 200


async def test_accounts_are_shown_as_in_the_examples() -> None:
    """GET accounts is keyed by account, GET accounts/{account} is one of them, and a broken one has an `error`."""
    sandbox = Sandbox(accounts=2, without_audio=["335577991122334456"])
    assert sandbox.accounts == ("335577991122334455", "335577991122334456")
    sandbox.break_account(sandbox.accounts[1])
    async with calling(sandbox) as caller:
        shown = (await caller.get("accounts")).json()
        one = (await caller.get(f"accounts/{sandbox.accounts[0]}/")).json()
        missing = await caller.get(f"accounts/{OTHER_ACCOUNT}")
    assert [shape(value) for value in shown.values()] == [shape(value) for value in example("accounts.200").values()]
    assert shape(one) == shape(example("account.200"))
    assert one == shown[sandbox.accounts[0]]
    assert [account["supportAudio"] for account in shown.values()] == [True, False]
    assert (missing.status_code, shape(missing.json())) == (404, shape(example("error.404")))


async def test_scheduler_shows_running_clones() -> None:
    """`executingAudio` counts clones in progress, and no video job runs."""
    sandbox = Sandbox(accounts=2)
    async with calling(sandbox) as caller:
        sandbox.fail("clone-voice", Fault.drop(made=True))
        with pytest.raises(httpx.RemoteProtocolError):
            await caller.clone(on=sandbox.accounts[1])
        available = (await caller.get("scheduler/available")).json()
        assert (await caller.get("scheduler/")).json() == []
    assert shape(available) == shape(example("scheduler_available.200.2026-08"))
    assert [one["executingAudio"] for one in available["available"]] == [0, 1]


# -- upload-sample


@pytest.mark.parametrize("generation", ["audio", "speech"])
async def test_upload_stores_each_sample_under_an_id_of_its_own(generation: str) -> None:
    """Real samples of both formats are taken; equal contents get two ids and one digest."""
    sandbox = Sandbox()
    types = {".mp3": "audio/mpeg", ".wav": "audio/wave; codec=1"}
    async with calling(sandbox, generation) as caller:
        for path in (*sample_paths(), sample_paths()[0]):
            reply = await caller.upload(path.read_bytes(), content_type=types[path.suffix])
            assert reply.status_code == 200
            assert shape(reply.json()) == shape(example(f"{generation}_upload_sample.200"))
    uploads = sandbox.uploads
    assert [upload.file_id for upload in uploads][-1] == reply.json()["fileID"]
    assert len({upload.file_id for upload in uploads}) == 4
    assert len({upload.sha256 for upload in uploads}) == 3
    assert uploads[0].size_bytes == sample_paths()[0].stat().st_size
    assert uploads[0].duration_s == pytest.approx(15, abs=0.2)
    assert uploads[0].file_id.startswith("user:4242-minimax:335577991122334455-file:")


@pytest.mark.parametrize(
    ("content", "content_type", "text"),
    [
        (wav(11), "application/octet-stream", "Content-Type"),
        (wav(11), "", "Content-Type"),
        (b"", "audio/wav", "empty"),
        (b"who-1.mp3", "audio/mpeg", "not mp3"),
        (wav(11), "audio/mpeg", "not mp3"),
        (wav(9.8), "audio/wav", "10 to 60"),
        (wav(60.2), "audio/wav", "10 to 60"),
    ],
)
async def test_upload_refuses_what_is_no_sample(content: bytes, content_type: str, text: str) -> None:
    """A wrong content type, an empty body, other content and other lengths are 400, and nothing is stored."""
    sandbox = Sandbox()
    async with calling(sandbox) as caller:
        assert refused(await caller.upload(content, content_type=content_type), 400, text)
    assert sandbox.uploads == ()


async def test_upload_without_audio_checks() -> None:
    """With `check_audio=False` any body is taken, but not any content type."""
    sandbox = Sandbox(check_audio=False)
    async with calling(sandbox) as caller:
        assert (await caller.upload(b"x")).status_code == 200
        assert refused(await caller.upload(b"x", content_type="text/plain"), 400, "Content-Type")
    assert sandbox.uploads[0].duration_s is None


async def test_measured_samples_are_forgotten_in_time() -> None:
    """The memory of measured samples is bounded and changes no answer."""
    sandbox = Sandbox()
    short = [wav(1) + bytes([index % 256, index // 256]) for index in range(258)]
    async with calling(sandbox) as caller:
        for content in (*short, short[0], short[257], wav(11), wav(11)):
            last = await caller.upload(content)
    assert last.status_code == 200
    assert len(sandbox.uploads) == 2


async def test_account_rules_of_upload() -> None:
    """Uploads need the account when there are several, and an account with an audio subscription."""
    sandbox = Sandbox(accounts=["a", "b", "c"], without_audio=["b"])
    async with calling(sandbox) as caller:
        assert refused(await caller.upload(), 400, "account is required")
        assert refused(await caller.upload(account="x"), 404, "account x not found")
        no_audio = await caller.upload(account="b")
        assert (no_audio.status_code, no_audio.json()) == (412, example("error.412"))
        sandbox.break_account("c")
        assert refused(await caller.upload(account="c"), 596, "pending error")
        assert (await caller.upload(account="a")).json()["fileID"].startswith("user:4242-minimax:a-file:")


# -- clone-voice


@pytest.mark.parametrize(
    ("generation", "shape_option", "name"),
    [
        ("audio", "flat", "audio_clone_voice.200.2025-01-24"),
        ("audio", "wrapped", "audio_clone_voice.200.2024-12-27"),
        ("speech", "wrapped", "speech_clone_voice.200"),
    ],
)
async def test_clone_answers_as_in_the_examples(generation: str, shape_option: Any, name: str) -> None:
    """The clone's answer has the documented shape, and echoes name and language."""
    sandbox = Sandbox(clone_s=0, reply_shape=shape_option)
    async with calling(sandbox, generation) as caller:
        reply = await caller.clone("Ännchen 安", language_tag="German")
    assert reply.status_code == 200
    assert shape(reply.json()) == shape(example(name))
    voice = reply.json().get("voice_info", reply.json())
    assert (voice["voice_name"], voice["tag_list"]) == ("Ännchen 安", ["German"])
    record = sandbox.clones[0]
    assert voice["file_id"] == record.files[0].rpartition(":")[2]
    assert (record.voice_id, record.made, record.reply) == (voice["voice_id"], True, "200")
    assert sandbox.voices()[0].fields() == voice


@pytest.mark.parametrize(
    ("form", "generation", "start"),
    [
        (None, "audio", "user:77-minimax:a-audio:"),
        (None, "speech", "user:77-minimax:a-voice:"),
        ("voice", "audio", "user:77-minimax:a-voice:"),
        ("audio", "speech", "user:77-minimax:a-audio:"),
        ("bare", "audio", "3"),
    ],
)
async def test_ids_of_cloned_voices(form: Any, generation: str, start: str) -> None:
    """The id carries the token's user, the account, and the tag that was asked for."""
    sandbox = Sandbox(accounts=["a"], id_form=form, token="user:77-x", clone_s=0)
    async with calling(sandbox, generation) as caller:
        voice_id = (await caller.clone()).json()["voice_id"]
    assert voice_id.startswith(start)
    assert voice_id[len(start) :].isdigit()


GOOD = "user:4242-minimax:a-file:1"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"voice_name": None}, "voice_name is required"),
        ({"voice_name": ""}, "voice_name is required"),
        ({"voice_name": 5}, "voice_name must be a string"),
        ({"voice_name": "n" * 31}, "voice_name is longer than 30"),
        ({"language_tag": None}, "language_tag is required"),
        ({"language_tag": "english"}, "language_tag has unknown value english"),
        ({"need_noise_reduction": "yes"}, "need_noise_reduction must be"),
        ({"need_noise_reduction": 1}, "need_noise_reduction must be"),
        ({"files": ""}, "files is required"),
        ({"files": ["x"]}, "files must be a string"),
        ({"files": "x"}, "files has malformed value x"),
        ({"files": GOOD}, f"files has unknown value {GOOD}"),
        ({"files": ",".join([GOOD] * 11)}, "files names more than 10"),
        ({"account": "b"}, "account does not agree"),
        ({"account": 5}, "account does not agree"),
    ],
)
async def test_clone_parameters_are_checked(fields: dict[str, object], text: str) -> None:
    """A missing or wrong parameter is 400 with a message that names it, and no clone is begun."""
    sandbox = Sandbox(accounts=["a", "b"], clone_s=0)
    async with calling(sandbox) as caller:
        reply = await caller.clone(on="a", **fields)
        assert refused(reply, 400, text)
        assert shape(reply.json()) == shape(example("error.400"))
    assert sandbox.clones == ()


async def test_clone_limits_are_inclusive() -> None:
    """A name of 30 characters and 10 files are taken, noise reduction may be off, and the account may be named."""
    sandbox = Sandbox(accounts=["a", "b"], clone_s=0)
    files = ",".join(sandbox.add_sample(account="a") for _ in range(10))
    async with calling(sandbox) as caller:
        reply = await caller.clone("é" * 30, files=files, need_noise_reduction=False, account="a")
    assert reply.status_code == 200
    assert (len(sandbox.clones[0].files), sandbox.clones[0].need_noise_reduction) == (10, False)


async def test_files_of_other_users_and_accounts() -> None:
    """A file of another user is 403, of an unknown account 404, and of two accounts 400."""
    sandbox = Sandbox(accounts=["a", "b"])
    mixed = f"{sandbox.add_sample()},{sandbox.add_sample(account='b')}"
    async with calling(sandbox) as caller:
        alien = await caller.clone(files="user:9999-minimax:a-file:1")
        assert (alien.status_code, alien.json()) == (403, example("error.403"))
        assert refused(await caller.clone(files="user:4242-minimax:x-file:1"), 404, "account x not found")
        assert refused(await caller.clone(files=mixed), 400, "mixes samples")


async def test_clone_needs_a_working_audio_account() -> None:
    """A clone on an account without audio is 412, on a broken one 596."""
    sandbox = Sandbox(accounts=["a", "b"], without_audio=["b"])
    sandbox.break_account("a")
    async with calling(sandbox) as caller:
        assert refused(await caller.clone(files=sandbox.add_sample()), 596, "pending error")
        assert refused(await caller.clone(files=sandbox.add_sample(account="b")), 412, "subscription")


async def test_account_parameter_of_clones() -> None:
    """speech/clone-voice refuses `account` unless told otherwise; audio/clone-voice may be told to require it."""
    sandbox = Sandbox(accounts=["a", "b"], clone_s=0, clone_needs_account=True)
    files = sandbox.add_sample()
    async with calling(sandbox) as caller:
        assert refused(await caller.clone(files=files), 400, "account is required")
        assert (await caller.clone(files=files, account="a")).is_success
        speech = await caller.http.post("speech/clone-voice", json=caller.body(files=files) | {"account": "a"})
        assert (speech.status_code, speech.json()) == (400, example("speech_delete_voice.400.account_param"))
    lax = Sandbox(accounts=["a"], clone_s=0, clone_needs_account=True, strict_account_param=False)
    async with calling(lax, "speech") as caller:
        assert (await caller.clone(account="a")).is_success
        assert refused(await caller.clone(account="b"), 400, "agree")
        assert (await caller.http.post("audio/clone-voice", json=caller.body())).is_success


async def test_clone_takes_forms() -> None:
    """A multipart form carries the same parameters, booleans spelled out; parts that are no fields are passed over."""
    sandbox = Sandbox(clone_s=0)
    async with calling(sandbox, "speech") as caller:
        fields = {name: (None, str(value)) for name, value in caller.body("Zoë", need_noise_reduction="false").items()}
        reply = await caller.http.post("speech/clone-voice", files=fields)
        assert reply.json()["voice_name"] == "Zoë"
        odd = b'--x\r\n\r\nno name\r\n--x\r\nContent-Disposition: form-data; name="voice_name"\r\n\r\nBo\r\n--x--\r\n'
        headers = {"content-type": "multipart/form-data; boundary=x"}
        reply = await caller.http.post("speech/clone-voice", content=odd, headers=headers)
        assert refused(reply, 400, "language_tag is required")
    assert sandbox.clones[0].need_noise_reduction is False


@pytest.mark.parametrize(
    ("content_type", "content", "text"),
    [
        ("application/json", b"{", "not valid JSON"),
        ("application/json", b"\xff", "not valid JSON"),
        ("application/json", b"[]", "JSON object"),
        ("application/x-www-form-urlencoded", b"voice_name=x", "Content-Type"),
        ("multipart/form-data", b"x", "not valid multipart"),
    ],
)
async def test_bodies_that_cannot_be_read(content_type: str, content: bytes, text: str) -> None:
    """Broken JSON, JSON that is no object, and other content types are 400."""
    async with calling(Sandbox()) as caller:
        headers = {"content-type": content_type}
        assert refused(await caller.http.post("audio/clone-voice", content=content, headers=headers), 400, text)


async def test_duplicate_names() -> None:
    """Two voices of one name are accepted by default, and refused per account with `unique_names`."""
    async with calling(Sandbox(clone_s=0)) as caller:
        assert [(await caller.clone("Ann")).status_code for _ in range(2)] == [200, 200]
        assert await caller.cloned() == ["Ann", "Ann"]
    sandbox = Sandbox(accounts=["a", "b"], clone_s=0, unique_names=True)
    async with calling(sandbox) as caller:
        first = await caller.clone("Ann", files=sandbox.add_sample())
        assert refused(await caller.clone("Ann", files=sandbox.add_sample()), 400, "already in use")
        assert (await caller.clone("Ann", files=sandbox.add_sample(account="b"))).is_success
        twin = sandbox.add_voice("Ann")
        await caller.delete(account="a", voice_id=first.json()["voice_id"])
        assert refused(await caller.clone("Ann", files=sandbox.add_sample()), 400, "already in use")
        await caller.delete(account="a", voice_id=twin.voice_id)
        assert (await caller.clone("Ann", files=sandbox.add_sample())).is_success


# -- voices


async def test_lists_have_the_documented_shapes() -> None:
    """Built-in voices and clones of both generations are listed as in the examples."""
    sandbox = Sandbox(clone_s=0, system_voices=3)
    async with calling(sandbox) as caller:
        for generation in ("audio", "speech"):
            empty = (await caller.get(f"{generation}/voices", is_system="false")).json()
            assert empty == example(f"{generation}_voices.200.cloned.empty")
        await caller.clone("Ann")
        for generation in ("audio", "speech"):
            name = "2025-01-24" if generation == "audio" else None
            want = example(".".join(filter(None, [f"{generation}_voices.200.cloned", name])))
            assert shape((await caller.get(f"{generation}/voices", is_system="false")).json()) == shape(want)
            system = (await caller.get(f"{generation}/voices")).json()
            assert shape(system) == shape(example(f"{generation}_voices.200.system"))
            assert (system["total"], system["has_more"], len(system["voice_list"])) == (3, False, 3)


async def test_pages() -> None:
    """Built-in voices come in pages; clones all at once for audio, and in pages for speech unless told otherwise."""
    sandbox = Sandbox(system_voices=5, page_size=2)
    for index in range(5):
        sandbox.add_voice(f"v{index}")
    async with calling(sandbox) as caller:

        async def pages(path: str, **query: str) -> list[tuple[int, bool | None]]:
            found = [(await caller.get(path, page=str(page), **query)).json() for page in (1, 2, 3, 4)]
            return [(len(one["voice_list"]), one.get("has_more")) for one in found]

        by_two = [(2, True), (2, True), (1, False), (0, False)]
        assert await pages("audio/voices") == await pages("speech/voices") == by_two
        assert await pages("speech/voices", page_size="5") == [(5, False), (0, False), (0, False), (0, False)]
        assert await pages("speech/voices", is_system="false") == by_two
        assert await pages("audio/voices", is_system="false") == [(5, None)] * 4
    whole = Sandbox(page_clones=False, page_size=2)
    for index in range(5):
        whole.add_voice(f"v{index}")
    async with calling(whole, "speech") as caller:
        assert await caller.cloned() == ["v0", "v1", "v2", "v3", "v4"]


@pytest.mark.parametrize(
    "query", [{"page": "0"}, {"page": "x"}, {"page_size": "-1"}, {"page_size": "²"}, {"is_system": "no"}]
)
async def test_list_parameters_are_checked(query: dict[str, str]) -> None:
    """Pages are positive numbers and `is_system` is a boolean; the message names the parameter."""
    async with calling(Sandbox()) as caller:
        assert refused(await caller.get("speech/voices", **query), 400, f"Parameter {next(iter(query))}")


async def test_tags_filter_exactly_and_unknown_ones_are_ignored() -> None:
    """All known tags must fit, case counts, and a tag that nobody knows widens the result."""
    sandbox = Sandbox(system_voices=8, languages=["English", "Italian"])
    sandbox.add_voice("e")
    sandbox.add_voice("i", language_tag="Italian")
    async with calling(sandbox, "speech") as caller:

        async def count(tags: str) -> int:
            return len((await caller.get("speech/voices", tag_list=tags)).json()["voice_list"])

        assert await count("Italian") == 4
        assert await count("Italian,Young Adult") == 2
        assert await count("italian") == await count("") == 8
        assert await count("Italian,nonsense") == 4
        assert await caller.cloned(tag_list="Italian") == ["i"]
        assert await caller.cloned(tag_list="Italian,English") == []


async def test_a_mixed_list_shows_clones_too() -> None:
    """With `mixed_list` a list that does not say `is_system` ends with the clones."""
    sandbox = Sandbox(system_voices=1, mixed_list=True)
    sandbox.add_voice("Ann")
    async with calling(sandbox) as caller:
        mixed = (await caller.get("speech/voices")).json()["voice_list"]
        assert [voice["voice_name"] for voice in mixed] == ["Speaker 1", "Ann"]
        assert len((await caller.get("speech/voices", is_system="true")).json()["voice_list"]) == 1


async def test_languages_of_the_config() -> None:
    """The config has the documented shape and lists the languages that clones may use."""
    async with calling(Sandbox(languages=["Welsh", "Basque"])) as caller:
        for generation in ("audio", "speech"):
            config = (await caller.get(f"{generation}/config/")).json()
            assert shape(config) == shape(example(f"{generation}_config.200"))
            assert [tag["tag_name"] for tag in config["voice_tag_language"]] == ["Welsh", "Basque"]


# -- delete-voice and equity


async def test_delete_is_idempotent() -> None:
    """A voice is deleted once, and 200 is the answer for what does not exist too."""
    sandbox = Sandbox(accounts=["a", "b"])
    voice = sandbox.add_voice("Ann", "b")
    async with calling(sandbox) as caller:
        assert refused(await caller.delete(voice_id=voice.voice_id), 400, "account is required")
        assert refused(await caller.delete(account="a"), 400, "voice_id is required")
        assert refused(await caller.delete(account=5, voice_id="1"), 400, "account must be a string")
        assert (await caller.delete(account="a", voice_id=voice.voice_id)).status_code == 200
        assert sandbox.voices() == (voice,)
        assert (await caller.delete(account="b", voice_id=voice.voice_id)).status_code == 200
        assert sandbox.voices() == ()
        assert (await caller.delete(account="b", voice_id=voice.voice_id)).status_code == 200


async def test_speech_delete_reads_the_account_from_the_id() -> None:
    """speech/delete-voice refuses `account` and finds it in the id; a bare id is looked for everywhere."""
    sandbox = Sandbox(accounts=["a", "b"], id_form="bare")
    bare = sandbox.add_voice("Ann", "b")
    async with calling(sandbox, "speech") as caller:
        reply = await caller.delete(account="a", voice_id=bare.voice_id)
        assert (reply.status_code, reply.json()) == (400, example("speech_delete_voice.400.account_param"))
        assert (await caller.delete(voice_id="1")).status_code == 200
        assert (await caller.delete(voice_id=bare.voice_id)).status_code == 200
        assert sandbox.voices() == ()
        assert refused(await caller.delete(voice_id="user:4242-minimax:x-voice:1"), 404, "account x")
        sandbox.break_account("b")
        assert refused(await caller.delete(voice_id="user:4242-minimax:b-voice:1"), 596, "pending error")


async def test_equity() -> None:
    """Equity counts stored clones against the slots; it may be told to exceed them, and without slots it has room."""
    sandbox = Sandbox(slots=3, equity_offset=1)
    for name in "abc":
        sandbox.add_voice(name)
    async with calling(sandbox) as caller:
        assert (await caller.get("speech/equity")).json() == example("speech_equity.200.over")
    async with calling(Sandbox(slots=0, equity_offset=-1)) as caller:
        assert (await caller.get("speech/equity")).json() == example("speech_equity.200.full") | {"used": 0, "total": 0}
    async with calling(Sandbox()) as caller:
        roomy = (await caller.get("speech/equity/")).json()
        assert roomy["total"] > roomy["used"] == 0
