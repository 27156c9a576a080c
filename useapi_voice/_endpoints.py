"""
The remote's endpoints as pure calls: path, parameters and body of each, in both generations.

A generation is a small table, not a fork of the code: `audio/*` is the project's specification (December 2024, marked
decommissioned on August 21, 2025), `speech/*` its successor (August 2026). Paths are written as the documentation
writes them, slashes before the query included. Source keys such as [D U24] are those of the API contract that this was
built from: D documented, S documented for a sibling API, I inferred.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from ._models import CloneRequest

GenerationName = Literal["audio", "speech"]


@dataclass(frozen=True, slots=True)
class Generation:
    """
    What differs between the two generations of voice endpoints.

    Attributes:
        name: First part of its paths.
        clone_takes_account: Whether clone-voice has an `account` parameter: [D C24] yes; [D C26] no longer listed, and
            the sibling delete page refuses it [D X26].
        delete_takes_account: Likewise for delete-voice [D X24; D X26 answers 400].
        has_equity: Whether voice slots can be counted [D Q26].
    """

    name: GenerationName
    clone_takes_account: bool
    delete_takes_account: bool
    has_equity: bool


AUDIO: Final = Generation("audio", clone_takes_account=True, delete_takes_account=True, has_equity=False)
SPEECH: Final = Generation("speech", clone_takes_account=False, delete_takes_account=False, has_equity=True)


@dataclass(frozen=True, slots=True)
class Call:
    """
    One request to the remote, before it is sent.

    Attributes:
        name: The endpoint's own name, such as `clone-voice`.
        method: HTTP method.
        path: Path below the base URL.
        params: Query parameters.
        body: JSON body, or `None`.
        content_type: Media type of a raw body that goes with the call, or `None`.
        account: The account it concerns, where there is one.
        is_repeatable: Whether sending it twice can do no harm: reads, deletes (idempotent [D X24, X26]) and uploads (an
            upload too many leaves an orphan sample); never a clone.
        generation: The generation whose route it uses, or `None` for a route that both share.
    """

    name: str
    method: Literal["GET", "POST"]
    path: str
    params: tuple[tuple[str, str], ...] = ()
    body: Mapping[str, Any] | None = None
    content_type: str | None = None
    account: str | None = None
    is_repeatable: bool = True
    generation: Generation | None = None


def _query(account: str | None, **more: str) -> tuple[tuple[str, str], ...]:
    return ((("account", account),) if account else ()) + tuple(more.items())


def upload_sample(generation: Generation, account: str | None, content_type: str) -> Call:
    """POST upload-sample: the raw bytes as the body; `account` needed with several accounts [D U24, U26]."""
    return Call(
        name="upload-sample",
        method="POST",
        path=f"/{generation.name}/upload-sample/",
        params=_query(account),
        content_type=content_type,
        account=account,
        generation=generation,
    )


def clone_voice(generation: Generation, request: CloneRequest, files: Sequence[str], account: str | None) -> Call:
    """POST clone-voice: synchronous, up to 60 s, no idempotency key [D C24 to C26]. Never repeatable."""
    body: dict[str, Any] = {
        "voice_name": request.voice_name,
        "language_tag": request.language_tag,
        "files": ",".join(files),
        "need_noise_reduction": request.need_noise_reduction,
    }
    if account and generation.clone_takes_account:
        body["account"] = account
    return Call(
        name="clone-voice",
        method="POST",
        path=f"/{generation.name}/clone-voice",
        body=body,
        account=account,
        is_repeatable=False,
        generation=generation,
    )


def config(generation: Generation, account: str | None = None) -> Call:
    """GET config: the languages and tags that the remote knows [D K25]; for speech [I]."""
    return Call("config", "GET", f"/{generation.name}/config/", _query(account), account=account, generation=generation)


def voices(
    generation: Generation,
    account: str | None = None,
    *,
    cloned: bool = True,
    tag_list: Sequence[str] = (),
    page: int | None = None,
    page_size: int | None = None,
) -> Call:
    """
    GET voices. Cloned ones come whole in one answer in the audio generation [D V25a]; whether the speech generation
    pages them is unknown, so callers follow `has_more` in both. `tag_list` is matched exactly, an unknown tag silently
    ignored [D V26].
    """
    more = {"is_system": "false" if cloned else "true"}
    if tag_list:
        more["tag_list"] = ",".join(tag_list)
    if page is not None:
        more["page"] = str(page)
    if page_size is not None:
        more["page_size"] = str(page_size)
    path = f"/{generation.name}/voices/"
    return Call("voices", "GET", path, _query(account, **more), account=account, generation=generation)


def delete_voice(generation: Generation, voice_id: str, account: str | None = None) -> Call:
    """POST delete-voice: answers 200 for unknown voices as well [D X24, X26]; speech refuses `account` [D X26]."""
    body = {"voice_id": voice_id}
    if account and generation.delete_takes_account:
        body["account"] = account
    path = f"/{generation.name}/delete-voice"
    return Call("delete-voice", "POST", path, body=body, account=account, generation=generation)


def accounts() -> Call:
    """GET accounts: the upstream accounts of this token [D A25]."""
    return Call("accounts", "GET", "/accounts")


def scheduler_available() -> Call:
    """GET scheduler/available: what each account is doing [D H25, JS-S]; an optimisation at best."""
    return Call("scheduler/available", "GET", "/scheduler/available")


def equity(account: str | None = None) -> Call:
    """GET speech/equity: voice slots used and in all; no slash before the query [D Q26]."""
    return Call("equity", "GET", "/speech/equity", _query(account), account=account, generation=SPEECH)
