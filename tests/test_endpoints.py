"""Endpoints: each call's path, parameters and body, in both generations, as the documentation writes them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from useapi_voice import _endpoints
from useapi_voice._endpoints import AUDIO, SPEECH, Call, Generation
from useapi_voice._models import CloneRequest

REQUEST = CloneRequest(voice_name="Zoë", language_tag="English", files=["f1", "f2"], need_noise_reduction=False)
BOTH = pytest.mark.parametrize("generation", [AUDIO, SPEECH], ids=lambda generation: generation.name)


def facts(call: Call) -> dict[str, Any]:
    """Return the fields that are not at their default."""
    return {
        field.name: getattr(call, field.name)
        for field in dataclasses.fields(call)
        if getattr(call, field.name) != field.default
    }


@BOTH
def test_upload_sample(generation: Generation) -> None:
    """[D U24, U26]: raw body, a slash before the query, the account as a query parameter."""
    call = _endpoints.upload_sample(generation, "A", "audio/mpeg")
    assert facts(call) == {
        "name": "upload-sample",
        "method": "POST",
        "path": f"/{generation.name}/upload-sample/",
        "params": (("account", "A"),),
        "content_type": "audio/mpeg",
        "account": "A",
        "generation": generation,
    }
    assert _endpoints.upload_sample(generation, None, "audio/wav").params == ()


@BOTH
@pytest.mark.parametrize("account", [None, "", "A"])
def test_clone_voice(generation: Generation, account: str | None) -> None:
    """[D C24; D C26]: files joined by commas; `account` only where the page lists it; never repeatable."""
    body = {"voice_name": "Zoë", "language_tag": "English", "files": "f1,f2", "need_noise_reduction": False}
    if account and generation is AUDIO:
        body["account"] = account
    call = _endpoints.clone_voice(generation, REQUEST, REQUEST.files, account)
    assert facts(call) == {
        "name": "clone-voice",
        "method": "POST",
        "path": f"/{generation.name}/clone-voice",
        "body": body,
        "is_repeatable": False,
        "generation": generation,
    } | ({} if account is None else {"account": account})


@BOTH
def test_config(generation: Generation) -> None:
    """[D K25]: a slash before the query."""
    call = _endpoints.config(generation, "A")
    assert (call.method, call.path, call.params) == ("GET", f"/{generation.name}/config/", (("account", "A"),))
    assert _endpoints.config(generation).params == ()


@BOTH
def test_voices(generation: Generation) -> None:
    """[D V24, V25a]: `is_system=false` lists the cloned ones; tags by comma; pages only where asked."""
    call = _endpoints.voices(generation)
    assert (call.method, call.path, call.params) == ("GET", f"/{generation.name}/voices/", (("is_system", "false"),))
    call = _endpoints.voices(generation, "A", cloned=False, tag_list=["Italian", "Calm"], page=0, page_size=500)
    assert dict(call.params) == {
        "account": "A",
        "is_system": "true",
        "tag_list": "Italian,Calm",
        "page": "0",
        "page_size": "500",
    }


@BOTH
@pytest.mark.parametrize("account", [None, "A"])
def test_delete_voice(generation: Generation, account: str | None) -> None:
    """[D X24]; [D X26]: the speech generation answers 400 to `account`."""
    call = _endpoints.delete_voice(generation, "v:1", account)
    expected = {"voice_id": "v:1"} | ({"account": "A"} if account and generation is AUDIO else {})
    assert (call.method, call.path, call.body) == ("POST", f"/{generation.name}/delete-voice", expected)
    assert call.is_repeatable
    assert call.account == account


def test_shared_routes() -> None:
    """[D A25, H25, Q26]: accounts and scheduler belong to no generation; equity is of speech, without a slash."""
    assert facts(_endpoints.accounts()) == {"name": "accounts", "method": "GET", "path": "/accounts"}
    assert _endpoints.scheduler_available().path == "/scheduler/available"
    assert _endpoints.scheduler_available().generation is None
    call = _endpoints.equity("A")
    assert (call.path, call.params, call.generation) == ("/speech/equity", (("account", "A"),), SPEECH)
    assert _endpoints.equity().params == ()


def test_only_a_clone_may_not_be_repeated() -> None:
    """Reads, deletes and uploads may go twice; a clone never."""
    calls = [
        _endpoints.upload_sample(AUDIO, None, "audio/wav"),
        _endpoints.clone_voice(AUDIO, REQUEST, ("f",), None),
        _endpoints.config(AUDIO),
        _endpoints.voices(AUDIO),
        _endpoints.delete_voice(AUDIO, "v"),
        _endpoints.accounts(),
        _endpoints.scheduler_available(),
        _endpoints.equity(),
    ]
    assert [call.name for call in calls if not call.is_repeatable] == ["clone-voice"]
    assert len({call.name for call in calls}) == len(calls)


def test_generations_differ_in_three_facts() -> None:
    """A generation is a table of names and facts, not a fork of the code."""
    assert dataclasses.astuple(AUDIO) == ("audio", True, True, False)
    assert dataclasses.astuple(SPEECH) == ("speech", False, False, True)
