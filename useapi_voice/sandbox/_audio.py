"""
Is it audio, of which kind, and about how long: a small parser of WAV headers and MP3 frames over bytes; it reads no
file and decodes no sound.
"""

from __future__ import annotations

import struct
from typing import Literal, NamedTuple

AudioKind = Literal["mp3", "wav"]

# Rows of the MPEG audio header, Layer III. Index 0 ("free") and 15 ("bad") of a bit rate are not taken.
_KBPS_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0)
_KBPS_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0)
_HZ = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
_LAYER_3 = 1


class Audio(NamedTuple):
    """What a sample is: its kind by content and its length in seconds (mp3: to about one frame, 0.05 s)."""

    kind: AudioKind
    duration_s: float


class _Frame(NamedTuple):
    size_bytes: int
    duration_s: float


def inspect(data: bytes) -> Audio | None:
    """Tell the kind and length of a sample by its content; None when it is neither WAV nor MP3."""
    duration_s = _wav_s(data)
    if duration_s is not None:
        return Audio("wav", duration_s)
    duration_s = _mp3_s(data)
    if duration_s is not None:
        return Audio("mp3", duration_s)
    return None


def _wav_s(data: bytes) -> float | None:
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return None
    bytes_per_s = 0
    at = 12
    while at + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, at)
        at += 8
        if name == b"fmt " and at + 12 <= len(data):
            (bytes_per_s,) = struct.unpack_from("<I", data, at + 8)
        elif name == b"data":
            # A stream writes a size of 0xFFFFFFFF, a cut file one that is too large: what is there counts.
            return min(size, len(data) - at) / bytes_per_s if bytes_per_s else None
        at += size + size % 2
    return None


def _frame(data: bytes, at: int) -> _Frame | None:
    if at + 4 > len(data) or data[at] != 0xFF or data[at + 1] & 0xE0 != 0xE0:
        return None
    version, layer = data[at + 1] >> 3 & 3, data[at + 1] >> 1 & 3
    rate = data[at + 2] >> 2 & 3
    if version not in _HZ or layer != _LAYER_3 or rate == 3:
        return None
    kbps = (_KBPS_1 if version == 3 else _KBPS_2)[data[at + 2] >> 4]
    if not kbps:
        return None
    hz = _HZ[version][rate]
    samples = 1152 if version == 3 else 576
    return _Frame(samples * kbps * 125 // hz + (data[at + 2] >> 1 & 1), samples / hz)


def _mp3_s(data: bytes) -> float | None:
    at = 0
    if data[:3] == b"ID3" and len(data) >= 10:
        at = 10 + (data[6] << 21 | data[7] << 14 | data[8] << 7 | data[9])
    first = data.find(b"\xff", at, at + 4096)
    # Text or noise may hold one pattern that looks like a header, hardly two at the right distance.
    while first >= 0:
        frame = _frame(data, first)
        if frame is not None and _frame(data, first + frame.size_bytes) is not None:
            break
        first = data.find(b"\xff", first + 1, at + 4096)
    else:
        return None
    at, duration_s = first, 0.0
    while (frame := _frame(data, at)) is not None:
        at += frame.size_bytes
        duration_s += frame.duration_s
    return duration_s
