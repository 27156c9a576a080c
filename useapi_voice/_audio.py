"""
What a sample is and how long it plays, told from its bytes: pure, no I/O but reads of the file object passed in.

Only headers are looked at; nothing is decoded and no name is believed. Two rules hold throughout. What is *there*
bounds what a header *claims*: a cut file is as long as it was cut, and a size of 0xFFFFFFFF from a pipe means "to the
end". And work is bounded by the bytes there are, up to `WALK_BYTES`, so that hostile input costs milliseconds.

MP3: every frame header is walked and its playing time added up (ISO/IEC 11172-3 section 2.4, 13818-3; MPEG-2.5 as LAME
writes it). An average from the first frames, or a Xing header, is a guess; the walk is not. WAV: the chunks up to
`data` are read (RIFF, RIFX, RF64).
"""

import codecs
import re
import struct
from dataclasses import dataclass
from typing import BinaryIO, Final, Literal, NamedTuple

from ._errors import Fault

SHORTEST_S: Final = 10.0
"""Shortest sample the remote takes. Source: the pages audio/upload-sample and speech/upload-sample (10-60 seconds)."""
LONGEST_S: Final = 60.0
"""Longest sample the remote takes; same source."""
ROUNDING_S: Final = 0.05
"""Forgiven at both ends: recorders stop a little early or late, and some encoders drop the last frame or two."""
WALK_BYTES: Final = 8 * 1024 * 1024
"""MP3 bytes walked frame by frame; the rest is estimated. At 320 kbit/s, the highest rate, that is 3.5 minutes."""

_WINDOW_BYTES: Final = 256 * 1024
_LEADING_JUNK_BYTES: Final = 1024 * 1024
_MOST_FALSE_STARTS: Final = 10_000
_MOST_TAGS: Final = 16
_MOST_CHUNKS: Final = 1_000


@dataclass(frozen=True, slots=True)
class AudioFacts:
    """
    What was measured.

    Attributes:
        format: What the bytes are.
        content_type: What the remote's upload wants to be told.
        duration_s: Playing time of what is there, less the encoder's padding where the file says how much that is.
        padding_s: How much of `duration_s` may be padding that nothing in the file tells; 0 where the length is exact.
    """

    format: Literal["mp3", "wav"]
    content_type: Literal["audio/mpeg", "audio/wav"]
    duration_s: float
    padding_s: float = 0.0


def measure(file: BinaryIO, size_bytes: int) -> AudioFacts | str:
    """
    Tell format and length from content.

    Args:
        file: Seekable, in binary mode; all of it from position 0 is the sample. Its position is left anywhere.
        size_bytes: How many bytes the file holds; nothing beyond is read.

    Returns:
        The facts, or why there are none, to follow the sample's name in a sentence ("looks like Ogg").

    Raises:
        OSError: Only what reading `file` raises.
    """
    if size_bytes <= 0:
        return "is empty"
    start = _after_id3(file, size_bytes)
    head = _read(file, start, min(1024, size_bytes - start))
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and head[8:12] == b"WAVE":
        return _measure_wav(file, start, size_bytes)
    return _known_kind(head) or _measure_mp3(file, start, size_bytes) or _unknown_kind(head)


def judge(facts: AudioFacts | str, field: str, name: str) -> Fault | None:
    """
    Hold a measured sample against what the remote takes: MP3 or WAV of 10 to 60 seconds, both included.

    `ROUNDING_S` is forgiven at both ends. Beyond 60 s, an MP3 that does not say how much padding its encoder added is
    forgiven as much as that can be (52 ms at 44.1 kHz, 0.22 s at 8 kHz), since encoding exactly 60 s gives such a file.
    Padding only lengthens, so nothing more is forgiven below 10 s.

    Args:
        facts: What `measure` returned.
        field: Where the sample stands in the request, as in `samples[0]`.
        name: What to call the sample in the message.
    """
    if isinstance(facts, str):
        return Fault(field, f"{name} {facts}, where MP3 or WAV is needed", _CONVERT)
    if facts.duration_s < SHORTEST_S - ROUNDING_S:
        remedy = f"use a recording of at least {SHORTEST_S:g} s, or join short ones into one file"
    elif facts.duration_s > LONGEST_S + ROUNDING_S + facts.padding_s:
        remedy = f"cut it, for example: ffmpeg -i INPUT -t {LONGEST_S:g} OUTPUT.wav"
    else:
        return None
    length = f"{facts.duration_s:.2f}".rstrip("0").rstrip(".")
    message = f"{name} plays for {length} s, where {SHORTEST_S:g} to {LONGEST_S:g} s are needed"
    return Fault(field, message, remedy)


_CONVERT: Final = "convert it, for example: ffmpeg -i INPUT OUTPUT.wav"


def _read(file: BinaryIO, offset: int, size_bytes: int) -> bytes:
    file.seek(offset)
    return file.read(size_bytes)


# What else it may be ------------------------------------------------------------------------------------------------

_KINDS: Final = tuple(
    (re.compile(pattern, re.DOTALL), kind)
    for pattern, kind in (
        (rb"OggS", "Ogg"),
        (rb"fLaC", "FLAC"),
        (rb"....ftyp", "M4A/MP4"),
        (rb"FORM....AIF[FC]", "AIFF"),
        (rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "WMA"),
        (rb"#!AMR", "AMR"),
        (rb"caff", "CAF"),
        (rb"\x1a\x45\xdf\xa3", "WebM/Matroska"),
        (rb"\.snd", "AU"),
        (rb"riff\x2e\x91\xcf\x11", "Wave64"),
        (rb"RIFF....AVI ", "AVI"),
        (rb"wvpk", "WavPack"),
        (rb"MAC ", "Monkey's Audio"),
        (rb"MThd", "MIDI"),
        (rb"ADIF|\xff[\xf0\xf1\xf8\xf9][\x40-\xbf]", "AAC"),
        (rb"\x00\x00\x01[\xba\xb3]", "MPEG video"),
        (rb"\x89PNG", "a PNG image"),
        (rb"\xff\xd8\xff", "a JPEG image"),
        (rb"PK\x03\x04", "a ZIP archive"),
        (rb"\x1f\x8b\x08", "gzip"),
        (rb"%PDF", "PDF"),
        (rb"version https://git-lfs", "a Git LFS pointer, not the file itself"),
        (rb"\s*<(?i:!doctype html|html)", "a web page"),
    )
)


def _known_kind(head: bytes) -> str | None:
    return next((f"looks like {kind}" for pattern, kind in _KINDS if pattern.match(head)), None)


def _unknown_kind(head: bytes) -> str:
    encoding = "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        # An incremental decoder does not mind the character that the end of `head` cuts in two.
        text = codecs.getincrementaldecoder(encoding)().decode(head)
    except UnicodeDecodeError:
        text = ""
    if text and all(character.isprintable() or character in "\t\r\n\f" for character in text):
        return "looks like text"
    return "is neither MP3 nor WAV"


# MP3 ----------------------------------------------------------------------------------------------------------------


class _Header(NamedTuple):
    """What three bytes say of a frame: its length, its playing time, and what it shares with others of its stream."""

    length_bytes: int
    playing_s: float
    family: int


_LAYER_I, _LAYER_II, _LAYER_III = 3, 2, 1
_MPEG_1 = 3
_BITRATES_KBPS: Final = {
    (True, _LAYER_I): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, _LAYER_II): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, _LAYER_III): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, _LAYER_I): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, _LAYER_II): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, _LAYER_III): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES_HZ: Final = {_MPEG_1: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}


def _samples_per_frame(version: int, layer: int) -> int:
    if layer == _LAYER_I:
        return 384
    return 576 if layer == _LAYER_III and version != _MPEG_1 else 1152


def _layer(family: int) -> int:
    return family >> 3 & 3


def _headers() -> dict[bytes, _Header]:
    """Lay out every legal beginning of a frame (some 3,000), so that walking costs one look-up a frame."""
    table: dict[bytes, _Header] = {}
    for version, rates_hz in _RATES_HZ.items():
        for layer in (_LAYER_I, _LAYER_II, _LAYER_III):
            samples = _samples_per_frame(version, layer)
            slot_bytes = 4 if layer == _LAYER_I else 1
            for bitrate_index, kbps in enumerate(_BITRATES_KBPS[version == _MPEG_1, layer], start=1):
                for rate_index, rate_hz in enumerate(rates_hz):
                    slots = samples * kbps * 125 // (slot_bytes * rate_hz)
                    family = version << 5 | layer << 3 | rate_index
                    for bits in range(8):  # protection, padding, private
                        first = 0xE0 | version << 3 | layer << 1 | bits & 1
                        second = bitrate_index << 4 | rate_index << 2 | bits >> 1
                        length_bytes = (slots + (bits >> 2)) * slot_bytes
                        table[bytes((0xFF, first, second))] = _Header(length_bytes, samples / rate_hz, family)
    return table


_HEADERS: Final = _headers()
_LONGEST_FRAME_BYTES: Final = max(header.length_bytes for header in _HEADERS.values())
# Three headers at the right distances make a stream: in noise one place in 15,000 looks like a header, three so spaced
# do not occur.
_LINKS: Final = 2
_REACH_BYTES: Final = (_LINKS + 1) * _LONGEST_FRAME_BYTES + 4
_SYNC: Final = re.compile(rb"\xff[\xe2-\xe7\xf2-\xf7\xfa-\xff][\x10-\xef]")
_FREE_FORMAT: Final = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb][\x00-\x0b]")


class _Walk:
    """
    A walk over the frames of a stream, fed window by window.

    Attributes:
        first_at: Where the first frame begins; -1 before there is one.
        family: What the frames being walked have in common.
        frames: How many were found.
        playing_s: How long they play.
        frame_s: How long the first one plays.
        running: Whether the last thing seen was a frame, not junk.
    """

    __slots__ = ("_false_starts", "family", "first_at", "frame_s", "frames", "playing_s", "running")

    def __init__(self) -> None:
        self.first_at = self.family = -1
        self.frames = self._false_starts = 0
        self.playing_s = self.frame_s = 0.0
        self.running = False

    def feed(self, window: bytes, base: int, *, final: bool) -> int:
        """
        Walk through a window.

        Args:
            window: Bytes that begin where the last call left off.
            base: The offset of the window in the file.
            final: Whether nothing follows it.

        Returns:
            How far the walk came: the whole of a final window; in others so far that the next headers are in sight.
        """
        limit = len(window) if final else len(window) - _REACH_BYTES
        position, frames, playing_s = 0, 0, 0.0
        while position < limit:
            header = _HEADERS.get(window[position : position + 3])
            if header is not None:
                length_bytes, frame_s, family = header
                if family == self.family:
                    position += length_bytes
                    if position <= len(window):
                        playing_s += frame_s
                        frames += 1
                    continue
            if position + 3 > len(window):
                break
            found = self._find_stream(window, position, limit)
            self.running = found is not None
            if found is None:
                position = limit
                break
            if self.first_at < 0:
                self.first_at = base + found
                self.frame_s = _HEADERS[window[found : found + 3]].playing_s
            position = found
        self.frames += frames
        self.playing_s += playing_s
        return position

    def _find_stream(self, window: bytes, position: int, limit: int) -> int | None:
        """Return where, from `position` on, frames follow each other; `feed` then gets on by one frame at least."""
        while self._false_starts < _MOST_FALSE_STARTS:
            match = _SYNC.search(window, position, limit + 2)
            if match is None:
                break
            family = _linked_family(window, match.start())
            if family is not None:
                self.family = family
                return match.start()
            self._false_starts += 1
            position = match.start() + 1
        return None


def _linked_family(window: bytes, position: int) -> int | None:
    """Return what the frames from `position` on have in common, or `None` for no frames; the last may be cut."""
    header = _HEADERS.get(window[position : position + 3])
    family = header.family if header else None
    for link in range(_LINKS):
        if header is None or header.family != family:
            return None
        position += header.length_bytes
        if position + 3 > len(window):
            return family if link else None
        header = _HEADERS.get(window[position : position + 3])
    return family if header is not None and header.family == family else None


def _walk_frames(file: BinaryIO, start: int, end: int) -> _Walk:
    """Add up the frames between two offsets, passing over junk; past `WALK_BYTES` what still plays is estimated."""
    walk = _Walk()
    stop = min(end, start + WALK_BYTES)
    position = start
    final = False
    while not final and not (walk.first_at < 0 and position - start > _LEADING_JUNK_BYTES):
        window = _read(file, position, min(_WINDOW_BYTES, stop - position))
        final = len(window) < _WINDOW_BYTES or position + len(window) >= stop
        position += walk.feed(window, position, final=final)
    if walk.running and stop < end:
        walk.playing_s *= (end - walk.first_at) / (stop - walk.first_at)
    return walk


def _after_id3(file: BinaryIO, size_bytes: int) -> int:
    """Return where the audio may begin: behind the ID3v2 tags (pictures live there), which may be several."""
    offset = 0
    for _ in range(_MOST_TAGS):
        tag = _read(file, offset, 10)
        if len(tag) < 10 or tag[:3] != b"ID3" or max(tag[6:10]) > 0x7F:
            break
        tag_bytes = 10 + (tag[6] << 21 | tag[7] << 14 | tag[8] << 7 | tag[9]) + (10 if tag[5] & 0x10 else 0)
        if offset + tag_bytes >= size_bytes:
            break
        offset += tag_bytes
    return offset


def _measure_mp3(file: BinaryIO, start: int, end: int) -> AudioFacts | str | None:
    walk = _walk_frames(file, start, end)
    if walk.frames == 0:
        free = _FREE_FORMAT.match(_read(file, start, 3))
        return "looks like a free-format MP3, whose length cannot be told" if free else None
    layer = _layer(walk.family)
    if layer != _LAYER_III:
        return f"looks like MPEG audio layer {'I' * (4 - layer)} (MP{4 - layer})"
    silent_s, padding_s = _silence(_read(file, walk.first_at, 192), walk)
    return AudioFacts("mp3", "audio/mpeg", max(0.0, walk.playing_s - silent_s), padding_s)


def _silence(frame: bytes, walk: _Walk) -> tuple[float, float]:
    """
    Tell what the walk counted that does not play.

    A first frame with Xing, Info or VBRI in it plays nothing. LAME and ffmpeg write into it how many samples of delay
    and padding they added; that is believed if the number of frames, written beside it, is the number found (a cut file
    has lost its padding).

    Returns:
        Seconds surely silent, and seconds of padding there may be besides.
    """
    # Others say nothing; they fill the last frame and add up to 1,105 samples for the filters' delay.
    unknown_s = walk.frame_s * (2 if walk.family >> 5 == _MPEG_1 else 3)
    found = _INFO_FRAME.search(frame, 0, 48)
    if found is None:
        return 0.0, unknown_s
    info = frame[found.start() :]
    if info[:4] == b"VBRI" or len(info) < 12:
        return walk.frame_s, unknown_s
    fields = info[7]
    encoder_at = 8 + sum(size for bit, size in ((1, 4), (2, 4), (4, 100), (8, 4)) if fields & bit)
    claimed_frames = int.from_bytes(info[8:12], "big") if fields & 1 else 0
    encoder = info[encoder_at : encoder_at + 24]
    if claimed_frames == walk.frames - 1 and encoder[:4] in _GAPLESS_ENCODERS and len(encoder) == 24:
        samples = int.from_bytes(encoder[21:], "big")
        per_frame = _samples_per_frame(walk.family >> 5, _LAYER_III)
        return walk.frame_s * (1 + ((samples >> 12) + (samples & 0xFFF)) / per_frame), 0.0
    return walk.frame_s, unknown_s


_INFO_FRAME: Final = re.compile(rb"Xing|Info|VBRI")
_GAPLESS_ENCODERS: Final = (b"LAME", b"Lavf", b"Lavc")


# WAV ----------------------------------------------------------------------------------------------------------------

_UNKNOWN_SIZE: Final = 0xFFFFFFFF
_PCM, _MS_ADPCM, _FLOAT, _A_LAW, _MU_LAW, _IMA_ADPCM, _MP3, _EXTENSIBLE = 1, 2, 3, 6, 7, 0x11, 0x55, 0xFFFE


@dataclass(slots=True)
class _Chunks:
    """What the chunks of a WAV file say; `order` is the byte order, in the letters of `struct`."""

    order: Literal["<", ">"]
    format: bytes = b""
    fact_samples: int = 0
    data_at: int = 0
    data_bytes: int = 0


def _measure_wav(file: BinaryIO, start: int, end: int) -> AudioFacts | str:
    chunks = _read_chunks(file, start, end)
    if not chunks.data_at:
        return "looks like a damaged WAV without audio data"
    if chunks.format[:2] == struct.pack(chunks.order + "H", _MP3):
        walk = _walk_frames(file, chunks.data_at, chunks.data_at + chunks.data_bytes)
        if walk.frames:
            silent_s, padding_s = _silence(_read(file, walk.first_at, 192), walk)
            return AudioFacts("wav", "audio/wav", max(0.0, walk.playing_s - silent_s), padding_s)
    duration_s = _wav_duration_s(chunks)
    if duration_s is None:
        return "looks like a damaged WAV without a usable format"
    return AudioFacts("wav", "audio/wav", duration_s)


def _read_chunks(file: BinaryIO, start: int, end: int) -> _Chunks:
    """Read the chunks up to the audio data, whose size is what is there if more is claimed, or none was written."""
    head = _read(file, start, 12)
    chunks = _Chunks(">" if head[:4] == b"RIFX" else "<")
    form_end = start + 8 + _integer(chunks.order, head[4:8])
    data64_bytes = end
    offset = start + 12
    for _ in range(_MOST_CHUNKS):
        chunk = _read(file, offset, 48)
        if len(chunk) < 8 or (chunks.data_at and chunks.format):
            break
        name, size_bytes, body = chunk[:4], _integer(chunks.order, chunk[4:8]), chunk[8:]
        if name == b"fmt ":
            chunks.format = body[:size_bytes]
        elif name == b"fact":
            chunks.fact_samples = _integer(chunks.order, body[:4])
        elif name == b"ds64":
            data64_bytes = _integer(chunks.order, body[8:16])
        elif name == b"data":
            there_bytes = end - offset - 8
            if size_bytes == _UNKNOWN_SIZE:
                size_bytes = data64_bytes or there_bytes
            elif size_bytes == 0 and not offset + 8 < form_end <= end:
                size_bytes = there_bytes
            chunks.data_at, chunks.data_bytes = offset + 8, min(size_bytes, there_bytes)
        offset += 8 + size_bytes + (size_bytes & 1)
    return chunks


def _integer(order: str, field: bytes) -> int:
    return int.from_bytes(field, "big" if order == ">" else "little")


def _wav_duration_s(chunks: _Chunks) -> float | None:
    """Work out the playing time; `None` if the format chunk is missing or makes no sense."""
    if len(chunks.format) < 16:
        return None
    codec, channels, rate_hz, bytes_per_s, block_bytes, bits = _format_fields(chunks)
    if codec in (_PCM, _FLOAT, _A_LAW, _MU_LAW):
        block_bytes = block_bytes or channels * bits // 8
        return chunks.data_bytes // block_bytes / rate_hz if block_bytes and rate_hz else None
    samples_per_block = _integer(chunks.order, chunks.format[18:20])
    if codec in (_MS_ADPCM, _IMA_ADPCM) and block_bytes and samples_per_block and rate_hz:
        bytes_per_s = block_bytes * rate_hz / samples_per_block
    elif bits in (2, 3, 4, 5):  # other ADPCM, where writers state wrong byte rates
        bytes_per_s = channels * rate_hz * bits / 8
    if not bytes_per_s or not rate_hz:
        return None
    # The 'fact' chunk counts samples exactly, but is 0, 1 or stale in files that were streamed or cut:
    # the bytes must agree.
    data_s, fact_s = chunks.data_bytes / bytes_per_s, chunks.fact_samples / rate_hz
    return fact_s if abs(fact_s - data_s) <= 0.1 + 0.05 * data_s else data_s


def _format_fields(chunks: _Chunks) -> tuple[int, int, int, float, int, int]:
    fields = struct.unpack(chunks.order + "HHIIHH", chunks.format[:16])
    codec, channels, rate_hz, bytes_per_s, block_bytes, bits = fields
    if codec == _EXTENSIBLE:  # the codec is in the first bytes of the subformat's GUID
        codec = _integer(chunks.order, chunks.format[24:26])
    return codec, channels, rate_hz, bytes_per_s, block_bytes, bits
