"""
Bodies as the remote writes them: plain values in, JSON out; it knows no state, no routes and no clock.

Shapes follow the contract's examples. A mark in brackets gives level and source of a fact: D documented, U documented
by the upstream vendor, S documented for a sibling API, I inferred.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

JSON_TYPE = "application/json; charset=utf-8"
CDN = "https://cdn.hailuoai.video/made-up"
SLOTS_FULL_CODE = 2600010

PENDING_ERROR = (
    "Your minimax account has pending error. Please address this issue at "
    "https://useapi.net/docs/api-minimax-v1/post-minimax-accounts-account before making any new API calls."
)


@dataclass(frozen=True, slots=True)
class Reply:
    """One whole HTTP answer before it is put on a wire: status, headers besides Date and Content-Length, and body."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = (("content-type", JSON_TYPE),)


def dumps(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def json_reply(status: int, value: object, headers: Iterable[tuple[str, str]] = ()) -> Reply:
    return Reply(status, dumps(value).encode(), (("content-type", JSON_TYPE), *headers))


def error_reply(
    status: int, message: str, *, code: int | None = None, headers: Iterable[tuple[str, str]] = ()
) -> Reply:
    """
    Give the error envelope `{"error": text, "code": number}` [D U24, U26].

    `code` repeats the status unless given.
    """
    return json_reply(status, {"error": message, "code": status if code is None else code}, headers)


def iso_z(moment: datetime) -> str:
    """Write a UTC moment as the remote does: `2026-08-24T12:34:56.000Z`."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def base_resp(code: int, message: str) -> dict[str, object]:
    """Give an upstream refusal in a success envelope [I]; 1026 and 1027 mean sensitive content [U MM-E]."""
    sensitive = code in (1026, 1027)
    return {
        "input_sensitive": sensitive,
        "input_sensitive_type": int(sensitive),
        "base_resp": {"status_code": code, "status_msg": message},
    }


def account(name: str, epoch: datetime, *, audio: bool, error: str | None) -> dict[str, object]:
    """Give one account as GET accounts shows it [D A25]; `error` is present on a broken one only [D JS-S, JS-V]."""
    expires = epoch + timedelta(days=30)
    fields: dict[str, object] = {
        "account": name,
        "jwt": {
            "token": "abc…secured…xyz",
            "user": {
                "deviceID": "547946200000000001",
                "id": name,
                "isAnonymous": False,
                "name": "Voice Lab",
                "avatar": f"{CDN}/avatar/1.png",
            },
            "exp": expires.timestamp(),
            "iat": epoch.timestamp(),
            "host": "www.minimax.io",
            "searchParams": "device_platform=web&app_id=3001",
            "iat_Issued": iso_z(epoch),
            "exp_Expire": iso_z(expires),
        },
        "maxJobs": 1,
        "supportVideo": False,
        "supportChat": False,
        "supportAudio": audio,
    }
    if error is not None:
        fields["error"] = error
    return fields


def config(languages: Sequence[str]) -> dict[str, object]:
    """Give the tags of GET audio/config [D K25]; the shape of speech/config is carried over [I]."""
    return {
        "t2a_emotion": [{"label": "Happy", "value": "happy"}, {"label": "Sad", "value": "sad"}],
        "voice_tag_accent": [{"language": "English", "tag_name": "US (General)"}],
        "voice_tag_age": [{"tag_name": "Young Adult"}, {"tag_name": "Adult"}],
        "voice_tag_gender": [{"tag_name": "Male"}, {"tag_name": "Female"}],
        "voice_tag_language": [{"tag_name": name} for name in languages],
    }


def equity(used: int, total: int) -> dict[str, object]:
    """Give the voice slots of an account [D Q26]."""
    return {
        "used": used,
        "total": total,
        "voice_clone_preview_free_quota": "inf",
        "srt_download": False,
        "base_resp": {},
    }


def voice(
    *,
    voice_id: str,
    voice_name: str,
    tag_list: Sequence[str],
    file_id: str,
    create_time: int,
    uniq_id: str,
    group_id: str,
    cover: str,
    sample: str,
) -> dict[str, object]:
    """
    Give one `Voice` [D C24, V24].

    Times are epoch milliseconds; `update_time` trails `create_time` by 1 as in the samples.
    """
    return {
        "voice_id": voice_id,
        "parent_voice_id": "0",
        "voice_name": voice_name,
        "tag_list": list(tag_list),
        "file_id": file_id,
        "cover_url": f"{CDN}/cover/{cover}.png",
        "create_time": create_time,
        "update_time": create_time + 1,
        "collected": False,
        "voice_status": 2,
        "sample_audio": f"{CDN}/sample/{sample}.mp3",
        "uniq_id": uniq_id,
        "group_id": group_id,
    }


def wrapped_clone(voice_text: str) -> str:
    """Wrap a voice as the clone answer of December 2024 did [D C24]: `base_resp` is empty on success."""
    return f'{{"input_sensitive":false,"input_sensitive_type":0,"voice_info":{voice_text},"base_resp":{{}}}}'


def voice_list(texts: Iterable[str], extra: Mapping[str, object]) -> bytes:
    """Join voices that are JSON already, so that a long list costs one join and no encoding."""
    tail = "".join(f",{dumps(name)}:{dumps(value)}" for name, value in extra.items())
    return f'{{"voice_list":[{",".join(texts)}]{tail}}}'.encode()


def system_voices(count: int, languages: Sequence[str]) -> tuple[tuple[tuple[str, ...], str], ...]:
    """Make up built-in voices: for each its tags and its JSON; ids are bare digits and `group_id` is "0" [D V24]."""
    made: list[tuple[tuple[str, ...], str]] = []
    for index in range(count):
        tags = (
            languages[index % len(languages)],
            ("Female", "Male")[index % 2],
            ("Adult", "Young Adult")[index // 2 % 2],
        )
        uniq = f"{tags[0].split()[0]}_Speaker{index + 1}"
        fields = voice(
            voice_id=str(209533299589184 + index),
            voice_name=f"Speaker {index + 1}",
            tag_list=tags,
            file_id="",
            create_time=1732711650948 + index,
            uniq_id=uniq,
            group_id="0",
            cover=uniq,
            sample=uniq,
        )
        made.append((tags, dumps(fields)))
    return tuple(made)
