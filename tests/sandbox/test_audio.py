"""`_audio`: kind and length by content."""

from __future__ import annotations

import struct

import pytest

from useapi_voice.sandbox import _audio, sample_paths

from .tools import wav

# MPEG 1 Layer III, 128 kbit/s, 44.1 kHz, no padding: 417 bytes and 1152 samples a frame.
FRAME = b"\xff\xfb\x90\x00" + bytes(413)


def test_samples_of_the_package_are_what_they_say() -> None:
    """The three samples are two mp3 and one wav, within the documented length, and small."""
    found = {path.name: _audio.inspect(path.read_bytes()) for path in sample_paths()}
    assert sorted(audio.kind for audio in found.values() if audio) == ["mp3", "mp3", "wav"]
    assert all(audio is not None and 10.5 <= audio.duration_s <= 20 for audio in found.values())
    assert all(path.stat().st_size < 100_000 for path in sample_paths())


@pytest.mark.parametrize("duration_s", [0.5, 10, 61])
def test_wav_length_comes_from_its_data(duration_s: float) -> None:
    """A WAV's length is its data over its byte rate."""
    assert _audio.inspect(wav(duration_s)) == ("wav", duration_s)


def test_wav_with_other_chunks_and_a_streamed_size() -> None:
    """Chunks of odd size before the data are skipped, and a size of 0xFFFFFFFF means what is there."""
    extra = b"LIST" + struct.pack("<I", 3) + b"abc\x00"
    assert _audio.inspect(wav(12, header=extra, data_size=0xFFFFFFFF)) == ("wav", 12)


def test_wav_without_data_or_rate_is_no_audio() -> None:
    """A WAV header without a data chunk, or with data before any format, tells no length."""
    assert _audio.inspect(b"RIFF\x00\x00\x00\x00WAVE") is None
    assert _audio.inspect(b"RIFF\x00\x00\x00\x00WAVEdata\x04\x00\x00\x00abcd") is None


def test_mp3_length_counts_frames() -> None:
    """An MP3's length is that of its frames, after an ID3 tag and some noise."""
    tag = b"ID3\x04\x00\x00\x00\x00\x02\x00" + bytes(256)
    audio = _audio.inspect(tag + b"\xff\x00noise" + FRAME * 100)
    assert audio is not None
    assert audio.kind == "mp3"
    assert audio.duration_s == pytest.approx(100 * 1152 / 44100)


def test_mpeg_2_frames_are_half_as_long() -> None:
    """MPEG 2 frames hold 576 samples; padding makes a frame one byte longer."""
    frame = b"\xff\xf3\x42\x00" + bytes(72 * 32000 // 22050 + 1 - 4)
    audio = _audio.inspect(frame * 10)
    assert audio is not None
    assert audio.duration_s == pytest.approx(10 * 576 / 22050)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"who-1.mp3",
        b"\xff\xfb",
        FRAME,  # one header may be chance
        b"\xff\xeb\x90\x00" * 200,  # reserved version
        b"\xff\xfd\x90\x00" * 200,  # Layer II
        b"\xff\xfb\x9c\x00" * 200,  # reserved rate
        b"\xff\xfb\x00\x00" * 200,  # free bit rate
    ],
)
def test_what_is_no_audio(data: bytes) -> None:
    """Text, one stray header and invalid headers are no audio."""
    assert _audio.inspect(data) is None
