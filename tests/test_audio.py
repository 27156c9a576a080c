"""What `_audio` says of files that encoders made, of files written here byte by byte, and of junk."""

import io
import random
import struct
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from useapi_voice import _audio
from useapi_voice._audio import AudioFacts, judge, measure

AUDIO = Path(__file__).parent / "audio"
REAL_FILES = sorted(path for path in AUDIO.iterdir() if path.suffix != ".md")
GIF = b"GIF89a" + bytes(range(200))


def facts_of(content: bytes) -> AudioFacts:
    """Measure what must be audio."""
    facts = measure(io.BytesIO(content), len(content))
    assert isinstance(facts, AudioFacts), facts
    return facts


def reason_for(content: bytes) -> str:
    """Measure what must be refused."""
    reason = measure(io.BytesIO(content), len(content))
    assert isinstance(reason, str), reason
    return reason


def mp3(
    frames: int, *, bitrate: int = 9, rate: int = 0, version: int = 3, layer: int = 1, fill: bytes = b"\0"
) -> bytes:
    """Write frames by the norm's formula; by default MPEG-1 layer III, 128 kbit/s (index 9), 44.1 kHz."""
    low = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
    high = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
    kbps = (0, *(high if version == 3 else low))
    rate_hz = (44100, 48000, 32000)[rate] // {3: 1, 2: 2, 0: 4}[version]
    per_frame = 1152 if version == 3 else 576
    out = bytearray()
    for number in range(frames):
        pad = number % 2
        length = per_frame // 8 * kbps[bitrate] * 1000 // rate_hz + pad
        head = bytes((0xFF, 0xE1 | version << 3 | layer << 1, bitrate << 4 | rate << 2 | pad << 1, 0xC4))
        out += head + (fill * length)[: length - 4]
    return bytes(out)


def wav(
    data: bytes,
    *,
    codec: int = 1,
    channels: int = 1,
    rate_hz: int = 8000,
    bits: int = 16,
    block: int | None = None,
    bytes_per_s: int | None = None,
    extra: bytes = b"",
    before: bytes = b"",
    data_size: int | None = None,
    riff_size: int | None = None,
    kind: bytes = b"RIFF",
) -> bytes:
    """Write a WAV file of one format chunk and one data chunk, wrong wherever a test says so."""
    block = channels * bits // 8 if block is None else block
    bytes_per_s = rate_hz * block if bytes_per_s is None else bytes_per_s
    order = ">" if kind == b"RIFX" else "<"
    fmt = struct.pack(order + "HHIIHH", codec, channels, rate_hz, bytes_per_s, block, bits) + extra
    body = b"WAVE" + before + b"fmt " + struct.pack(order + "I", len(fmt)) + fmt
    body += b"data" + struct.pack(order + "I", len(data) if data_size is None else data_size) + data
    return kind + struct.pack(order + "I", len(body) if riff_size is None else riff_size) + body


def chunk(name: bytes, body: bytes) -> bytes:
    """Write a chunk with its padding byte."""
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def id3(body: bytes, *, flags: int = 0) -> bytes:
    """Write an ID3v2.4 tag, with a footer where the flags say so."""
    size = len(body)
    syncsafe = bytes((size >> 21 & 127, size >> 14 & 127, size >> 7 & 127, size & 127))
    return b"ID3\4\0" + bytes((flags,)) + syncsafe + body + (b"3DI\4\0\0" + syncsafe if flags & 0x10 else b"")


@pytest.mark.parametrize(
    ("name", "duration_s"),
    [
        ("mpeg25_cbr32_gapless.mp3", 11.0),
        ("mpeg2_cbr16_no_info.mp3", 11.088),
        ("mpeg2_v9_xing.mp3", 11.0),
        ("mpeg2_v9_no_xing.mp3", 11.088),
        ("mpeg1_abr40.mp3", 11.0),
        ("mpeg1_crc_id3v1.mp3", 11.050),
        ("ffmpeg_picture.mp3", 11.0),
        ("ima_adpcm.wav", 11.2255),
        ("ms_adpcm.wav", 11.198),
        ("ms_adpcm_piped.wav", 11.198),
        ("yamaha_adpcm.wav", 11.008),
        ("a_law.wav", 11.0),
        ("gsm.wav", 11.0),
        ("mp3_inside.wav", 11.16),
        ("float.wav", 0.5),
        ("extensible.wav", 0.5),
        ("rf64.wav", 0.5),
        ("piped.wav", 0.5),
        ("rifx.wav", 0.5),
    ],
)
def test_real_files_have_the_length_that_decoding_gives(name: str, duration_s: float) -> None:
    """Every kind of MP3 and WAV measures within 10 ms of the samples that a decoder finds in it."""
    facts = facts_of((AUDIO / name).read_bytes())
    assert facts.duration_s == pytest.approx(duration_s, abs=0.01)
    assert facts.format == name[-3:]
    assert facts.content_type == {"mp3": "audio/mpeg", "wav": "audio/wav"}[name[-3:]]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("short.ogg", "looks like Ogg"),
        ("short.flac", "looks like FLAC"),
        ("short.m4a", "looks like M4A/MP4"),
        ("short.aac", "looks like AAC"),
        ("short.mp2", "looks like MPEG audio layer II (MP2)"),
        ("short.aiff", "looks like AIFF"),
        ("short.wma", "looks like WMA"),
        ("short.caf", "looks like CAF"),
        ("short.w64", "looks like Wave64"),
        ("short.mka", "looks like WebM/Matroska"),
        ("short.au", "looks like AU"),
        ("short.wv", "looks like WavPack"),
        ("short.avi", "looks like AVI"),
        ("free_format.mp3", "looks like a free-format MP3, whose length cannot be told"),
        ("README.md", "looks like text"),
    ],
)
def test_other_formats_are_named(name: str, reason: str) -> None:
    """A file that is not MP3 or WAV is told apart by its content, whatever it is called."""
    assert reason_for((AUDIO / name).read_bytes()) == reason


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"hello\n", "looks like text"),
        ("Grüße €".encode()[:-1], "looks like text"),
        ("Grüße".encode("utf-16"), "looks like text"),
        (b"\xff\xfea", "is neither MP3 nor WAV"),
        (b"abc\xff" * 20, "is neither MP3 nor WAV"),
        (b"\0" * 5000, "is neither MP3 nor WAV"),
        (GIF, "is neither MP3 nor WAV"),
        (b"  <!DOCTYPE html><html>", "looks like a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "looks like a Git LFS pointer, not the file itself"),
        (b"RIFF\x04\0\0\0WEBP", "is neither MP3 nor WAV"),
        (id3(b"\0" * 50) + b"fLaC", "looks like FLAC"),
        (random.Random(1).randbytes(400_000), "is neither MP3 nor WAV"),
        (b"\xff\xfb\x92" * 700_000, "is neither MP3 nor WAV"),
    ],
)
def test_junk_is_junk(content: bytes, reason: str) -> None:
    """Empty, textual, random and hostile content is named or refused, never given a length it does not have."""
    assert reason_for(content) == reason


@pytest.mark.parametrize(
    ("content", "layer"),
    [(bytes((0xFF, 0xFF, 0x14, 0xC4)) + b"\0" * 28, "I"), (bytes((0xFF, 0xFD, 0x14, 0xC4)) + b"\0" * 92, "II")],
)
def test_layers_i_and_ii_are_not_mp3(content: bytes, layer: str) -> None:
    """MPEG audio of the older layers is refused by name (32 kbit/s at 48 kHz: frames of 32 and 96 bytes)."""
    assert reason_for(content * 50) == f"looks like MPEG audio layer {layer} (MP{len(layer)})"


@given(
    frames=st.integers(3, 300),
    bitrate=st.integers(1, 14),
    rate=st.integers(0, 2),
    version=st.sampled_from((0, 2, 3)),
    leading=st.integers(0, 3000),
    trailing=st.integers(0, 300),
)
@settings(deadline=None)
def test_every_frame_counts_once(
    frames: int, bitrate: int, rate: int, version: int, leading: int, trailing: int
) -> None:
    """For all bitrates, rates and versions, zeros before and a tag behind, all frames are counted."""
    content = b"\0" * leading + mp3(frames, bitrate=bitrate, rate=rate, version=version) + b"TAG" + b"x" * trailing
    rate_hz = (44100, 48000, 32000)[rate] / {3: 1, 2: 2, 0: 4}[version]
    assert facts_of(content).duration_s == pytest.approx(frames * (1152 if version == 3 else 576) / rate_hz)


def test_a_file_longer_than_a_window_is_walked_whole() -> None:
    """Frames across the edges of the windows in which a file is read are neither lost nor counted twice."""
    assert facts_of(mp3(5000)).duration_s == pytest.approx(5000 * 1152 / 44100)


def test_a_cut_frame_does_not_count() -> None:
    """The last frame of a cut file is not there, and an Info header that claims more does not bring it back."""
    content = mp3(100)
    assert facts_of(content[:-1]).duration_s == pytest.approx(99 * 1152 / 44100)
    real = (AUDIO / "mpeg25_cbr32_gapless.mp3").read_bytes()
    half = facts_of(real[: len(real) // 2])
    assert half.duration_s == pytest.approx(5.5, abs=0.2)
    assert half.padding_s > 0


def test_junk_between_frames_is_passed_over() -> None:
    """What is not a frame adds nothing, and another stream is found behind it."""
    content = mp3(50) + random.Random(2).randbytes(5000) + mp3(50, bitrate=5, rate=1)
    assert facts_of(content).duration_s == pytest.approx(50 * 1152 / 44100 + 50 * 1152 / 48000, abs=0.06)


def test_a_lone_header_is_not_a_stream() -> None:
    """Two frames before something else, or one at the very end, are not MP3; a third that is cut short is enough."""
    assert reason_for(mp3(2) + GIF) == "is neither MP3 nor WAV"
    assert reason_for(mp3(1)) == "is neither MP3 nor WAV"
    assert reason_for(mp3(1) + GIF * 5) == "is neither MP3 nor WAV"
    assert facts_of(mp3(3)[:-10]).duration_s == pytest.approx(2 * 1152 / 44100)


def test_leading_junk_is_searched_only_so_far() -> None:
    """A stream that begins behind more junk than any tag's remains is not looked for."""
    assert facts_of(b"\0" * 900_000 + mp3(10)).duration_s > 0
    assert reason_for(b"\0" * 1_500_000 + mp3(10)) == "is neither MP3 nor WAV"


def test_id3_tags_are_skipped_whatever_they_hold() -> None:
    """Tags, footers and pictures full of frame headers do not count; a tag longer than the file is not believed."""
    tags = id3(mp3(20)) + id3(b"x" * 300, flags=0x10)
    assert facts_of(tags + mp3(100)).duration_s == pytest.approx(100 * 1152 / 44100)
    too_long = b"ID3\4\0\0\x7f\x7f\x7f\x7f"
    assert facts_of(too_long + mp3(100)).duration_s == pytest.approx(100 * 1152 / 44100)
    broken = b"ID3\4\0\0\xff\0\0\0"
    assert facts_of(broken + mp3(100)).duration_s == pytest.approx(100 * 1152 / 44100)


def test_a_chain_of_tags_ends() -> None:
    """Tags without end are given up, not followed."""
    assert reason_for(id3(b"") * 1000 + b"\1") == "is neither MP3 nor WAV"


def info_frame(tag: bytes, fields: int, rest: bytes) -> bytes:
    """Write a first frame that holds facts in place of sound."""
    frame = bytearray(mp3(1))
    body = tag + struct.pack(">I", fields) + rest
    frame[36 : 36 + len(body)] = body
    return bytes(frame)


@pytest.mark.parametrize(
    ("first", "silent_frames", "padding_known"),
    [
        (
            info_frame(
                b"Info", 15, struct.pack(">II", 100, 0) + bytes(104) + b"LAME3.100" + bytes(12) + b"\x24\x06\x00"
            ),
            2.83,
            True,
        ),
        (info_frame(b"Xing", 1, struct.pack(">I", 100) + b"Lavf" + bytes(17) + b"\x24\x06\x00"), 2.83, True),
        (info_frame(b"Xing", 1, struct.pack(">I", 99) + b"Lavf" + bytes(17) + b"\x24\x06\x00"), 1, False),
        (info_frame(b"Xing", 1, struct.pack(">I", 100) + b"Mine" + bytes(17) + b"\x24\x06\x00"), 1, False),
        (info_frame(b"Xing", 0, b"LAME" + bytes(20)), 1, False),
        (info_frame(b"VBRI", 0, bytes(20)), 1, False),
        (mp3(1), 0, False),
    ],
)
def test_silence_is_taken_off_when_it_is_written_down(first: bytes, silent_frames: float, padding_known: bool) -> None:
    """A first frame of facts does not play; padding comes off if its writer is known and its count of frames right."""
    facts = facts_of(first + mp3(100))
    silent_s = facts.duration_s - (101 - silent_frames) * 1152 / 44100
    # 0x240 samples of delay and 0x600 of padding are 576 + 1536 = 2112, or 1.83 frames, beside the frame itself.
    assert silent_s == pytest.approx(0, abs=0.0001)
    assert (facts.padding_s == 0) is padding_known


def test_an_info_frame_cut_short_is_not_read_past() -> None:
    """An Info tag of which the file holds only the name is still a frame that does not play."""
    end = mp3(3, version=0, bitrate=1, rate=1)  # frames of 24 bytes
    assert facts_of(end[:44] + b"Xing" + end[48:]).duration_s == pytest.approx(2 * 576 / 12000)


def test_what_follows_the_walk_is_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past `WALK_BYTES` a stream that still plays is taken to go on as it began; junk is not."""
    monkeypatch.setattr(_audio, "WALK_BYTES", 300_000)
    assert facts_of(mp3(2000)).duration_s == pytest.approx(2000 * 1152 / 44100, rel=0.01)
    assert facts_of(mp3(500) + b"\0" * 500_000).duration_s == pytest.approx(500 * 1152 / 44100)


@pytest.mark.parametrize(
    ("codec", "bits", "duration_s"),
    [(1, 8, 2.0), (1, 16, 1.0), (1, 24, 2 / 3), (1, 32, 0.5), (3, 32, 0.5), (3, 64, 0.25), (6, 8, 2.0), (7, 8, 2.0)],
)
def test_uncompressed_wav_is_exact(codec: int, bits: int, duration_s: float) -> None:
    """PCM, float, A-law and mu-law last as long as their bytes, also when the header lacks the block size."""
    assert facts_of(wav(bytes(16000), codec=codec, bits=bits)).duration_s == pytest.approx(duration_s, abs=0.0002)
    assert facts_of(wav(bytes(16000), codec=codec, bits=bits, block=0)).duration_s == pytest.approx(
        duration_s, abs=0.0002
    )


@pytest.mark.parametrize("kind", [b"RIFF", b"RIFX", b"RF64"])
@pytest.mark.parametrize("claimed", [None, 0, 0xFFFFFFFF, 0x7FFFF000, 16001])
def test_what_is_there_bounds_what_a_wav_claims(kind: bytes, claimed: int | None) -> None:
    """Sizes of 0, of 0xFFFFFFFF (a pipe), of sox's 0x7FFFF000, and of a file cut since, all mean what is there."""
    riff_size = None if claimed is None else 0xFFFFFFFF if claimed else 0
    content = wav(bytes(16000), kind=kind, data_size=claimed, riff_size=riff_size)
    assert facts_of(content).duration_s == pytest.approx(1.0)
    assert facts_of(content[:-8000]).duration_s == pytest.approx(0.5)


def test_a_wav_without_audio_lasts_nothing() -> None:
    """A data chunk of size 0 in a finished file is empty, and what follows it is not audio."""
    content = wav(b"", data_size=0) + chunk(b"LIST", bytes(5000))
    content = content[:4] + struct.pack("<I", len(content) - 8) + content[8:]
    assert facts_of(content).duration_s == 0


def test_rf64_takes_its_size_from_ds64() -> None:
    """With 0xFFFFFFFF in the data chunk, the 64-bit size counts, not the chunks behind the audio."""
    ds64 = chunk(b"ds64", struct.pack("<QQQI", 0, 16000, 8000, 0))
    content = wav(bytes(16000), kind=b"RF64", before=ds64, data_size=0xFFFFFFFF, riff_size=0xFFFFFFFF)
    assert facts_of(content + chunk(b"LIST", bytes(999))).duration_s == pytest.approx(1.0)


def test_chunks_before_the_audio_are_skipped() -> None:
    """Odd-sized chunks are followed by a padding byte, and an ID3 tag may stand before it all."""
    content = wav(bytes(16001), bits=8, before=chunk(b"LIST", b"INFOodd") + chunk(b"bext", bytes(602)))
    assert facts_of(content).duration_s == pytest.approx(16001 / 8000)
    assert facts_of(id3(b"tag") + content).duration_s == pytest.approx(16001 / 8000)


def test_chunks_in_the_wrong_order_are_found() -> None:
    """A format that stands behind the audio is used all the same."""
    plain = wav(b"")
    content = plain[:12] + chunk(b"data", bytes(16000)) + plain[12:36] + bytes(8)
    assert facts_of(content).duration_s == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"RIFF\0\0\0\0WAVE", "looks like a damaged WAV without audio data"),
        (b"RIFF\0\0\0\0WAVE" + b"abcd\0\0\0\0" * 200_000, "looks like a damaged WAV without audio data"),
        (b"RIFF\0\0\0\0WAVE" + chunk(b"data", bytes(100)), "looks like a damaged WAV without a usable format"),
        (wav(bytes(100), rate_hz=0), "looks like a damaged WAV without a usable format"),
        (wav(bytes(100), channels=0), "looks like a damaged WAV without a usable format"),
        (
            wav(bytes(100), codec=0x31, bits=0, rate_hz=0, bytes_per_s=1),
            "looks like a damaged WAV without a usable format",
        ),
        (wav(bytes(100), codec=0x31, bits=0, bytes_per_s=0), "looks like a damaged WAV without a usable format"),
        (wav(bytes(100), codec=0x55, bits=0, bytes_per_s=0), "looks like a damaged WAV without a usable format"),
    ],
)
def test_a_damaged_wav_is_refused(content: bytes, reason: str) -> None:
    """A WAV that cannot have a length gets none, and chunks without end are given up."""
    assert reason_for(content) == reason


@pytest.mark.parametrize(("fact_samples", "duration_s"), [(0, 2.0), (1, 2.0), (15_900, 1.9875), (99_000, 2.0)])
def test_a_count_of_samples_counts_if_the_bytes_agree(fact_samples: int, duration_s: float) -> None:
    """The fact chunk of a compressed WAV is exact where it can be true, and ignored where it cannot."""
    fact = chunk(b"fact", struct.pack("<I", fact_samples))
    content = wav(bytes(3200), codec=0x31, bits=0, bytes_per_s=1600, before=fact)
    assert facts_of(content).duration_s == pytest.approx(duration_s)


def test_mp3_within_wav_is_walked() -> None:
    """A WAV of MP3 frames is as long as they are, whatever byte rate it states; without frames that rate serves."""
    content = wav(mp3(100), codec=0x55, bits=0, bytes_per_s=1)
    assert facts_of(content).duration_s == pytest.approx(100 * 1152 / 44100)
    assert facts_of(content).content_type == "audio/wav"
    assert facts_of(wav(bytes(3200), codec=0x55, bits=0, bytes_per_s=1600)).duration_s == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("duration_s", "padding_s", "good"),
    [
        (9.94, 0, False),
        (9.95, 0, True),
        (10, 0, True),
        (60, 0, True),
        (60.05, 0, True),
        (60.06, 0, False),
        (60.09, 0.052, True),
        (60.11, 0.052, False),
    ],
)
def test_the_limits_are_10_to_60_seconds(duration_s: float, padding_s: float, good: bool) -> None:
    """Both ends are included, and forgiven by the documented tolerance and by no more."""
    fault = judge(AudioFacts("mp3", "audio/mpeg", duration_s, padding_s), "samples[3]", "who.mp3")
    assert (fault is None) is good
    if fault is not None:
        assert fault.field == "samples[3]"
        assert fault.message == f"who.mp3 plays for {duration_s:g} s, where 10 to 60 s are needed"
        assert "60" in fault.remedy or "10" in fault.remedy


def test_what_is_no_audio_is_a_fault_with_a_remedy() -> None:
    """A verdict becomes one clause with the sample's name, and says how to convert."""
    fault = judge("looks like Ogg", "samples[0]", "who.mp3")
    assert fault is not None
    assert fault.message == "who.mp3 looks like Ogg, where MP3 or WAV is needed"
    assert "ffmpeg" in fault.remedy


def check_any(content: bytes) -> None:
    """Ask for a verdict on any bytes, and check that it is sane."""
    verdict = measure(io.BytesIO(content), len(content))
    assert judge(verdict, "samples[0]", "x") is None or isinstance(verdict, str | AudioFacts)
    if isinstance(verdict, AudioFacts):
        # 8 kbit/s and one byte a second are the least that MP3 and WAV can take.
        assert 0 <= verdict.duration_s <= len(content) * (1 if verdict.format == "mp3" else 65536)


@given(
    st.binary(max_size=600),
    st.sampled_from((b"", b"RIFF\0\0\0\0WAVE", b"ID3\4\0\0\0\0\0\x08", b"\xff\xfb\x90\xc4", wav(b""))),
)
@example(content=b"fmt \x10\0\0\0", start=b"RIFF\0\0\0\0WAVE")
@settings(deadline=None)
def test_any_bytes_get_a_verdict(content: bytes, start: bytes) -> None:
    """Whatever the bytes, there is a verdict and no exception."""
    check_any(start + content)


@given(st.sampled_from(REAL_FILES), st.randoms(use_true_random=False), st.integers(1, 30))
@settings(deadline=None)
def test_mutated_real_files_get_a_verdict(path: Path, dice: random.Random, changes: int) -> None:
    """Real files with bytes changed, cut out and cut off, most of them in the headers, never raise or hang."""
    content = bytearray(path.read_bytes()[: dice.choice((60, 400, 5000, 100_000))])
    for _ in range(changes):
        content[dice.randrange(min(len(content), dice.choice((64, 5000))))] = dice.choice(
            (0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256))
        )
    if dice.random() < 0.3:
        del content[dice.randrange(len(content)) :]
    check_any(bytes(content))


@pytest.mark.parametrize(
    "content",
    [
        mp3(24_000),
        b"\xff" * 10_000_000,
        b"\xff\xfb\x92" * 3_300_000,
        b"\xff\xfb\x90\0" + b"\xff\xe3\x14" * 3_300_000,
        bytes(10_000_000),
    ],
    ids=["mp3", "ones", "false starts", "mixed", "zeros"],
)
def test_ten_megabytes_take_a_moment(content: bytes) -> None:
    """Work is bounded: 10 MB of MP3 or of hostile bytes take some 10 ms (a second is allowed to a busy machine)."""
    started = time.process_time()
    measure(io.BytesIO(content), len(content))
    assert time.process_time() - started < 1


def test_nothing_is_read_past_the_size_given() -> None:
    """What a file gains while it is measured is not looked at."""
    content = mp3(100)
    facts = measure(io.BytesIO(content + mp3(100)), len(content))
    assert isinstance(facts, AudioFacts)
    assert facts.duration_s == pytest.approx(100 * 1152 / 44100)
