"""
What users hand in and what the remote hands back: strict requests, tolerant replies, all frozen.

The remote's documentation marks every field of every reply as optional [D], so a reply is refused only where the one
field that a caller needs is missing; a field of an unexpected type becomes its default, and unknown fields are kept.
Ids are opaque strings; `account_of` reads the account in them, as a hint.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, BinaryIO, ClassVar, Final, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidatorFunctionWrapHandler, field_validator

from ._errors import Fault, RequestInvalid

MAX_VOICE_NAME_CHARS: Final = 30
"""[D C24 to C26]; whether the remote counts characters or bytes is not stated."""
MAX_SAMPLES: Final = 10
"""[D C24 to C25b]; carried over to the speech generation [I]."""

_SAMPLE_REMEDY: Final = "give a path, bytes, a binary file object or a Sample"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_WRAPPED_ID = re.compile(r"minimax:(?P<account>[^:]+)-(?:file|audio|voice):")


def account_of(wrapped_id: str) -> str | None:
    """
    Return the account inside a wrapped id such as `user:1-minimax:ACCOUNT-file:2`, or `None` for any other form.

    Source: the forms are [D U24, C25b, X26]; that the account can be read from them is [I], so it is only a hint.
    """
    found = _WRAPPED_ID.search(wrapped_id)
    return found["account"] if found else None


def name_key(voice_name: str) -> str:
    """
    Return what two spellings of one voice name share: the remote may trim it, and may compose its characters anew.

    Source: [I]; that a list gives a name back as it was submitted is documented nowhere.
    """
    return " ".join(unicodedata.normalize("NFC", voice_name).split())


class Sample:
    """
    One audio sample: where its bytes come from, not the bytes themselves.

    Args:
        source: A path (`str` or `os.PathLike`), the content as `bytes`, or a binary file object. A `str` is always a
            path. A file object is read once, from where it stands when the request is checked, and is never closed.
        name: What messages call it; the file's name by default. It is never trusted for the format.

    The file is opened anew for every attempt. mp3 or wav, 10 to 60 s [D U24, U26]: checked when a request is submitted.
    """

    __slots__ = ("content", "name", "path", "stream")

    path: str | None
    content: bytes | None
    stream: BinaryIO | None
    name: str

    def __init__(self, source: str | os.PathLike[str] | bytes | BinaryIO, *, name: str | None = None) -> None:
        self.path = self.content = self.stream = None
        if isinstance(source, bytes | bytearray | memoryview):
            self.content = bytes(source)
            self.name = name or f"{len(self.content)} bytes"
        elif isinstance(source, str | os.PathLike):
            self.path = os.fsdecode(source)
            self.name = name or os.path.basename(self.path) or self.path  # noqa: PTH119 - a Path costs 1 kB a sample
        elif callable(getattr(source, "read", None)):
            self.stream = source
            self.name = name or os.path.basename(str(getattr(source, "name", "") or "stream"))  # noqa: PTH119
        else:
            raise RequestInvalid([Fault("samples[]", f"{type(source).__name__} is not a sample", _SAMPLE_REMEDY)])

    def __repr__(self) -> str:
        return f"Sample({self.name!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sample):
            return NotImplemented
        return (self.path, self.content) == (other.path, other.content) and self.stream is other.stream

    def __hash__(self) -> int:
        return hash((self.path, self.content, id(self.stream)))


SampleSource = str | os.PathLike[str] | bytes | BinaryIO | Sample


class CloneRequest(BaseModel):
    """
    One voice to be made.

    Args:
        voice_name: What the voice will be called; 1 to 30 characters [D].
        language_tag: A language of the remote's list, such as `English` (see `VoiceClient.config`) [D].
        samples: 1 to 10 samples: paths, `bytes`, binary file objects or `Sample`s; mp3 or wav, each 10 to 60 s.
        files: Instead of `samples`: 1 to 10 `fileID`s of samples that were uploaded already, all to one account.
        account: The account to use; any that is free by default, or the one that the `files` belong to.
        need_noise_reduction: Whether the remote cleans the samples first [D C24].

    Raises:
        RequestInvalid: An argument has the wrong type. Values are checked, all together, when the request is submitted,
            so that one error can name every fault, those of the files included.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    voice_name: str
    language_tag: str
    samples: tuple[Sample, ...] = ()
    files: tuple[str, ...] = ()
    account: str | None = None
    need_noise_reduction: bool = True

    # Spelled out for type checkers: the fields hold what these arguments become.
    def __init__(
        self,
        *,
        voice_name: str,
        language_tag: str,
        samples: Sequence[SampleSource] | SampleSource = (),
        files: Sequence[str] | str = (),
        account: str | None = None,
        need_noise_reduction: bool = True,
    ) -> None:
        try:
            super().__init__(
                voice_name=voice_name,
                language_tag=language_tag,
                samples=samples,
                files=files,
                account=account,
                need_noise_reduction=need_noise_reduction,
            )
        except ValidationError as error:
            faults = [_as_fault(detail) for detail in error.errors(include_url=False, include_input=False)]
        else:
            # One set shared by all: one of its own would be the largest part of a waiting request (728 of 1,250 bytes).
            object.__setattr__(self, "__pydantic_fields_set__", _ALL_FIELDS)
            return
        # Raised outside the handler: pydantic's error, as its context, would quote the content of samples.
        raise RequestInvalid(faults)

    @field_validator("samples", mode="before")
    @classmethod
    def _wrap_samples(cls, value: Any) -> Any:
        if isinstance(value, Sample) or _is_source(value):
            return (_wrap(value),)
        if isinstance(value, Iterable) and not isinstance(value, Mapping):
            return tuple(_wrap(item) for item in value)
        return value

    @field_validator("files", mode="before")
    @classmethod
    def _split_files(cls, value: Any) -> Any:
        # The remote's own form is one string of comma-separated fileIDs; whoever has that may pass it on.
        return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value

    def __repr__(self) -> str:
        what = f"{len(self.files)} files" if self.files else f"samples={list(self.samples)!r}"
        where = f", account={self.account!r}" if self.account else ""
        return f"CloneRequest({self.voice_name!r}, {self.language_tag!r}, {what}{where})"

    __str__ = __repr__

    @property
    def pinned_account(self) -> str | None:
        """The only account that can serve this request, or `None` where any can (or where it cannot be told)."""
        return self.account or next(filter(None, map(account_of, self.files)), None)

    def faults(self) -> list[Fault]:
        """Return every fault that can be seen without opening a file or asking the remote."""
        return [*self._name_faults(), *self._source_faults(), *self._account_faults()]

    def _name_faults(self) -> list[Fault]:
        faults = []
        length = len(self.voice_name)
        if not self.voice_name.strip():
            faults.append(Fault("voice_name", "is empty", f"give a name of 1 to {MAX_VOICE_NAME_CHARS} characters"))
        elif length > MAX_VOICE_NAME_CHARS:
            remedy = f"shorten it to {MAX_VOICE_NAME_CHARS} or fewer"
            faults.append(Fault("voice_name", f"{self.voice_name!r} has {length} characters", remedy))
        if not self.language_tag.strip():
            faults.append(Fault("language_tag", "is empty", "give a language such as 'English'"))
        faults += [
            Fault(field, f"{text!r} is no text that can be sent", "leave out lone surrogates")
            for field, text in (("voice_name", self.voice_name), ("language_tag", self.language_tag))
            if not _is_encodable(text)
        ]
        return faults

    def _source_faults(self) -> list[Fault]:
        if not self.samples and not self.files:
            return [Fault("samples", "no sample is given", f"give 1 to {MAX_SAMPLES} samples, or the fileIDs as files")]
        faults = []
        if self.samples and self.files:
            faults.append(Fault("samples", "samples and files are both given", "give one or the other"))
        faults += [
            Fault(field, f"{count} are given", f"give at most {MAX_SAMPLES}")
            for field, count in (("samples", len(self.samples)), ("files", len(self.files)))
            if count > MAX_SAMPLES
        ]
        faults += [
            Fault(f"files[{index}]", f"{file_id!r} is not a fileID", "give the fileID that the upload returned")
            for index, file_id in enumerate(self.files)
            if not file_id.strip() or "," in file_id or not _is_encodable(file_id)
        ]
        return faults

    def _account_faults(self) -> list[Fault]:
        owners = {account for file_id in self.files if (account := account_of(file_id))}
        is_named = self.account is not None and bool(self.account.strip())
        faults = []
        if self.account is not None and not is_named:
            faults.append(Fault("account", "is empty", "leave it out, or name one of your accounts"))
        elif self.account is not None and not _is_encodable(self.account):
            faults.append(Fault("account", f"{self.account!r} is no account", "name one of your accounts"))
        if len(owners) > 1:
            # [I]: whether the remote takes a mixture is undocumented (contract, section 9, question 4).
            message = f"belong to several accounts: {', '.join(sorted(owners))}"
            faults.append(Fault("files", message, "use files of one account"))
        if is_named and owners and self.account not in owners:
            message = f"{self.account!r} is given, but the files belong to {' and '.join(map(repr, sorted(owners)))}"
            remedy = "name that account, or none, or upload the samples to the account you want"
            faults.append(Fault("account", message, remedy))
        return faults


_ALL_FIELDS: Final = set(CloneRequest.model_fields)


def _is_source(value: object) -> bool:
    is_content_or_path = isinstance(value, str | bytes | bytearray | memoryview | os.PathLike)
    return is_content_or_path or callable(getattr(value, "read", None))


def _wrap(value: Any) -> Any:
    return Sample(value) if _is_source(value) else value


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_OF_FIELD: Final = {
    "voice_name": ("is no str", f"give a name of 1 to {MAX_VOICE_NAME_CHARS} characters"),
    "language_tag": ("is no str", "give a language such as 'English'"),
    "samples": ("are not samples", f"give a list of them: {_SAMPLE_REMEDY} for each"),
    "files": ("is no fileID", "give a list of the fileIDs that the uploads returned, each a str"),
    "account": ("is no str", "leave it out, or name one of your accounts"),
    "need_noise_reduction": ("is no bool", "give True or False"),
}
"""What is wrong with a field whose type is wrong, and the remedy."""


def _as_fault(detail: Mapping[str, Any]) -> Fault:
    field, *rest = detail["loc"]
    where = str(field) + "".join(f"[{index}]" for index in rest)
    if detail["type"] == "is_instance_of":
        return Fault(where, "is not a sample", _SAMPLE_REMEDY)
    message, remedy = _OF_FIELD[field]
    return Fault(where, message, remedy)


class _Reply(BaseModel):
    """Base of what the remote returns: frozen, unknown fields kept, no field able to spoil the rest."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True,
        extra="allow",
        coerce_numbers_to_str=True,
        populate_by_name=True,
        allow_inf_nan=False,
        defer_build=True,
    )

    @field_validator("*", mode="wrap")
    @classmethod
    def _tolerate(cls, value: Any, handler: ValidatorFunctionWrapHandler, info: Any) -> Any:
        field = cls.model_fields[info.field_name]
        try:
            return handler(value)
        except ValidationError:
            if field.is_required():
                raise
            return field.get_default(call_default_factory=True)


class VoiceInfo(_Reply):
    """
    A voice, as the remote describes it [D C24, V24].

    `voice_id` is opaque, and is what text-to-speech and `delete_voice` take. Times are epoch milliseconds, with aware
    datetimes as `created_at` and `updated_at`. The meaning of a `voice_status` other than 2 is undocumented. Fields
    that this model does not know are kept in `model_extra`; `account` is added by this library.
    """

    voice_id: str = Field(min_length=1)
    parent_voice_id: str | None = None
    voice_name: str | None = None
    tag_list: tuple[str, ...] = ()
    file_id: str | None = None
    cover_url: str | None = None
    create_time: float | None = None
    update_time: float | None = None
    collected: bool | None = None
    voice_status: int | None = None
    sample_audio: str | None = None
    uniq_id: str | None = None
    group_id: str | None = None
    managed_by_api: bool | None = None
    account: str | None = None

    @property
    def created_at(self) -> datetime | None:
        """`create_time` as an aware UTC datetime."""
        return _as_datetime(self.create_time)

    @property
    def updated_at(self) -> datetime | None:
        """`update_time` as an aware UTC datetime."""
        return _as_datetime(self.update_time)

    def on(self, account: str | None) -> Self:
        """Return this voice with its account, read from its id where `account` is `None`."""
        return self.model_copy(update={"account": account or account_of(self.voice_id)})


def _as_datetime(epoch_ms: float | None) -> datetime | None:
    if epoch_ms is None:
        return None
    try:
        return _EPOCH + timedelta(milliseconds=epoch_ms)
    except (OverflowError, ValueError):
        return None


class UploadedSample(_Reply):
    """A sample that is on the remote: its `fileID` goes into `CloneRequest.files` [D U24, U26]."""

    file_id: str = Field(alias="fileID", min_length=1)
    oss_path: str | None = Field(default=None, alias="ossPath")
    account: str | None = None


class Account(_Reply):
    """
    One upstream account [D A25]. What `jwt` holds of its login is left out on purpose.

    `error` is present on a broken account [D JS-S]: every call for it is answered with 596 until it is re-posted.
    """

    account: str = Field(min_length=1)
    max_jobs: int | None = Field(default=None, alias="maxJobs")
    support_audio: bool | None = Field(default=None, alias="supportAudio")
    support_video: bool | None = Field(default=None, alias="supportVideo")
    support_chat: bool | None = Field(default=None, alias="supportChat")
    error: str | None = None

    @field_validator("error", mode="before")
    @classmethod
    def _keep_error(cls, value: Any) -> Any:
        # In whatever form it comes, an object [S] included, it says that the account is broken; an empty one does not.
        if not value:
            return None
        return str((value.get("message") if isinstance(value, dict) else None) or value)

    @property
    def usable(self) -> bool:
        """Whether it can clone: no `error`, and audio not ruled out [D JS-S]."""
        return self.error is None and self.support_audio is not False


class VoiceConfig(_Reply):
    """What the remote's voices can be tagged with [D K25]; the speech generation's page was not readable [I]."""

    languages: tuple[str, ...] = ()
    accents: tuple[str, ...] = ()
    ages: tuple[str, ...] = ()
    genders: tuple[str, ...] = ()
    emotions: tuple[str, ...] = ()


class VoicePage(_Reply):
    """One page of a voice list [D V24]."""

    voice_list: tuple[VoiceInfo, ...]
    names_without_id: tuple[str, ...] = ()
    """What rows are called that cannot be used; added by this library."""
    total: int | None = None
    has_more: bool | None = None


class VoiceSlots(_Reply):
    """
    How many voice slots an account uses, of how many [D Q26].

    Advisory: `used` may exceed `total`, and only the clone call itself refuses for good.
    """

    used: int | None = None
    total: int | None = None

    @property
    def free(self) -> int | None:
        """How many voices still fit, or `None` where the remote does not say."""
        if self.used is None or self.total is None:
            return None
        return max(0, self.total - self.used)


class AccountLoad(_Reply):
    """What one account is doing [D H25, JS-S]; whether a running clone counts in `executing_audio` is unknown."""

    account: str = Field(min_length=1)
    max_jobs: int | None = Field(default=None, alias="maxJobs")
    executing: int | None = None
    available: int | None = None
    executing_audio: int = Field(default=0, alias="executingAudio")
