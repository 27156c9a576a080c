"""`useapi-voice voices` and `accounts`: what is at the remote, listed and tidied up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .._models import VoiceInfo
from ._connect import Remote, connected
from ._exit import CliError, ExitCode
from ._plan import free_slots
from ._text import confirmed, count, names, put_json, put_table, say, shown

COLUMNS = ("voice_id", "voice_name", "languages", "account", "created")


@dataclass(frozen=True, slots=True)
class Listing:
    """What was asked for."""

    account: str | None = None
    system: bool = False
    json: bool = False


async def list_all(listing: Listing) -> ExitCode:
    """List voices."""
    async with connected(Remote()) as client:
        found = [voice async for voice in client.voices(not listing.system, account=listing.account)]
    if listing.json:
        for voice in found:
            put_json(voice.model_dump(mode="json"))
        return ExitCode.OK
    put_table(COLUMNS, [_cells(voice) for voice in found])
    return ExitCode.OK


def _cells(voice: VoiceInfo) -> tuple[str, ...]:
    created = "" if voice.created_at is None else voice.created_at.strftime("%Y-%m-%d %H:%M")
    return voice.voice_id, voice.voice_name or "", ", ".join(voice.tag_list), voice.account or "", created


async def delete(wanted: Sequence[str], account: str | None, yes: bool) -> ExitCode:  # noqa: FBT001 - as anyio calls it
    """Delete voices by id or name."""
    async with connected(Remote()) as client:
        there = [voice async for voice in client.voices(account=account)]
        found = [_only(name, there) for name in dict.fromkeys(wanted)]
        if not confirmed(f"Delete {count(len(found), 'voice')} for good: {_called(found)}?", yes=yes):
            return _kept(found)
        for voice in found:
            await client.delete_voice(voice.voice_id, voice.account)
            say(f"Deleted {shown(voice.voice_name)} ({shown(voice.voice_id, 120)}).")
    return ExitCode.OK


def _only(name: str, there: Sequence[VoiceInfo]) -> VoiceInfo:
    """Find the voice that is meant: the remote says yes to deleting what does not exist, so slips are caught here."""
    fits = [voice for voice in there if voice.voice_id == name] or [
        voice for voice in there if voice.voice_name == name
    ]
    if len(fits) == 1:
        return fits[0]
    what = f"{len(fits)} voices are called" if fits else "There is no cloned voice with the id or name"
    raise CliError(ExitCode.USAGE, f"{what} {shown(name)!r}: give the id that voices list shows. Nothing was deleted.")


def _called(found: Sequence[VoiceInfo]) -> str:
    return names([voice.voice_name or voice.voice_id for voice in found])


def _kept(found: Sequence[VoiceInfo]) -> ExitCode:
    say(f"Nothing was deleted; --yes deletes {count(len(found), 'voice')}: {_called(found)}.")
    return ExitCode.OK


async def prune(prefix: str, account: str | None, yes: bool) -> ExitCode:  # noqa: FBT001 - as anyio calls it
    """Delete the voices whose names begin with a prefix; only show them unless told otherwise."""
    async with connected(Remote()) as client:
        found = await client.prune(prefix, account=account, dry_run=True)
        if not found:
            say(f"No cloned voice has a name that begins with {shown(prefix)!r}.")
            return ExitCode.OK
        put_table(COLUMNS, [_cells(voice) for voice in found])
        if not yes:
            return _kept(found)
        for voice in found:
            await client.delete_voice(voice.voice_id, voice.account)
    say(f"Deleted {count(len(found), 'voice')}.")
    return ExitCode.OK


async def accounts(json: bool) -> ExitCode:  # noqa: FBT001 - as anyio calls it
    """List the accounts behind the token."""
    async with connected(Remote()) as client:
        found = await client.accounts()
        slots = [await free_slots(client, one.account) if one.usable else None for one in found]
    if json:
        for one, free in zip(found, slots, strict=True):
            put_json({"account": one.account, "usable": one.usable, "error": one.error, "free_slots": free})
        return ExitCode.OK
    cells = [
        (one.account, _state(one.usable, one.error), "not told" if free is None else free)
        for one, free in zip(found, slots, strict=True)
    ]
    put_table(("account", "state", "free slots"), cells)
    return ExitCode.OK


def _state(usable: bool, error: str | None) -> str:  # noqa: FBT001 - two facts of one account
    return "in order" if usable else f"out of order: {error}" if error else "has no audio"
