"""Manifests and folders: what is read, and one clear message with the line for all that is wrong; nothing is sent."""

from __future__ import annotations

import json
import re
import shutil
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from useapi_voice._cli import _check, _manifest
from useapi_voice._cli._exit import CliError
from useapi_voice._cli._manifest import read
from useapi_voice.sandbox import Sandbox

from .conftest import MP3, Cli, json_lines

Write = Callable[..., Path]
HEAD = "voice_name,language_tag,samples\n"

# Each manifest, its name, the line of its fault, and words of the message.
BROKEN: dict[str, tuple[str | bytes, str, int | None, str]] = {
    "no samples column": ("voice_name,language_tag\nAda,English\n", "voices.csv", 1, "the column samples is missing"),
    "no language column": ("voice_name,samples\nAda,a.mp3\n", "voices.csv", 1, "or give --language for all"),
    "mistyped column": ("voice_nam,language_tag,samples\nAda,English,a.mp3\n", "v.csv", 1, "is it 'voice_nam'?"),
    "mistyped optional column": (
        "voice_name,language_tag,samples,need_noise_reducton\nAda,English,a.mp3,no\n",
        "voices.csv",
        1,
        "did you mean 'need_noise_reduction'?",
    ),
    "column twice": (
        "voice_name,samples,samples,language_tag\nA,a.mp3,b.mp3,English\n",
        "v.csv",
        1,
        "stands there twice",
    ),
    "byte order mark": ("\ufeff" + HEAD + "Ada,English,gone.mp3\n", "v.csv", 2, "gone.mp3 does not exist"),
    "windows line ends": (
        HEAD.replace("\n", "\r\n") + "Ada,English,a.mp3\r\n,English,a.mp3\r\n",
        "v.csv",
        3,
        "is empty",
    ),
    "open quote": (HEAD + 'Ada,English,a.mp3\n"Bea,English,b.mp3\nCid,English,c.wav\n', "v.csv", 3, "never closed"),
    "quote inside": (HEAD + '"Ada" the first,English,a.mp3\n', "v.csv", 2, "cannot be read as CSV"),
    "unquoted comma": (HEAD + "Lovelace, Ada,English,a.mp3\n", "v.csv", 2, "4 cells stand under 3 columns"),
    "duplicate key": (
        "voice_name,language_tag,samples,key\nA,English,a.mp3,1\nB,English,b.mp3,1\n",
        "v.csv",
        3,
        "'1' is taken by line 2",
    ),
    "duplicate name": (HEAD + "Ada,English,a.mp3\n\nAda,English,b.mp3\n", "v.csv", 4, "'Ada' is taken by line 2"),
    "missing file": (HEAD + "Ada,English,a.mp3;sub/gone.mp3\n", "v.csv", 2, "sub/gone.mp3 does not exist"),
    "long name": (HEAD + "Ada,English,a.mp3\n" + "x" * 31 + ",English,b.mp3\n", "v.csv", 3, "has 31 characters"),
    "no language": (HEAD + "Ada, ,a.mp3\n", "v.csv", 2, "language_tag: is empty"),
    "unknown language": (HEAD + "Ada,Englsh,a.mp3\n", "v.csv", 2, "did you mean 'English'?"),
    "outlandish language": (HEAD + "Ada,Qx,a.mp3\n", "v.csv", 2, "there are Arabic"),
    "unknown account": (
        "voice_name,language_tag,samples,account\nAda,English,a.mp3,nobody\n",
        "v.csv",
        2,
        "there is no account 'nobody'",
    ),
    "empty": ("", "v.csv", None, "there is no row in it"),
    "header alone": (HEAD, "v.csv", None, "there is no row in it"),
    "binary": (HEAD.encode() + b"Ada\0,English,a.mp3\n", "v.csv", 2, "it has NUL bytes"),
    "latin-1": (HEAD.encode() + "B\u00e9a,English,a.mp3\n".encode("latin-1"), "v.csv", 2, "not UTF-8 text (byte 0xE9)"),
    "utf-16 without a mark": ((HEAD + "Ada,English,a.mp3\n").encode("utf-16-le"), "v.csv", 1, "it has NUL bytes"),
    "recording": (MP3.read_bytes(), "v.csv", 1, "it is a recording"),
    "glob without match": (HEAD + "Ada,English,take*.mp3\n", "v.csv", 2, "no file matches 'take*.mp3'"),
    "too many samples": (HEAD + "Ada,English," + ";".join(["a.mp3"] * 11) + "\n", "v.csv", 2, "11 are given"),
    "no sample": (HEAD + "Ada,English, ; \n", "v.csv", 2, "no sample is given"),
    "not audio": (HEAD + "Ada,English,v.csv\n", "v.csv", 2, "v.csv"),
    "odd boolean": (
        "voice_name,language_tag,samples,need_noise_reduction\nAda,English,a.mp3,perhaps\n",
        "v.csv",
        2,
        "'perhaps' is neither true nor false",
    ),
    "escape sequence": (HEAD + "Ada\x1b[2J,Qx,a.mp3\n,Qx,a.mp3\n", "v.csv", 2, "there is no language 'Qx'"),
    "json array": ('[{"voice_name": "Ada"},\n{"voice_name": "Bea"}]', "v.json", 1, "it is not JSON"),
    "json array in a line": ('[{"voice_name": "Ada"}]', "v.jsonl", 1, "it is a list, not an object"),
    "json cut": (
        '{"voice_name": "Ada", "language_tag"',
        "v.jsonl",
        1,
        "it is not JSON (expecting ':' delimiter at column 37)",
    ),
    "json abyss": ("[" * 100_000, "v.jsonl", 1, "it is not JSON (nested too deeply)"),
    "json text": ('\n"Ada"', "v.jsonl", 2, "it is a text, not an object"),
    "json null": ("null", "v.jsonl", 1, "it is null, not an object"),
    "json name is a list": ('{"voice_name": ["Ada"], "samples": "a.mp3"}', "v.jsonl", 1, "a list is not a text"),
    "json samples are numbers": ('{"voice_name": "Ada", "samples": [1]}', "v.jsonl", 1, "a list cannot name samples"),
    "json slip": (
        '{"voice_name": "Ada", "language_tag": "English", "sample": "a.mp3"}',
        "v.jsonl",
        1,
        "did you mean 'samples'?",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", BROKEN)
def test_broken_manifest(case: str, cli: Cli, manifest: Write, sandbox: Sandbox) -> None:
    """A broken manifest is told with its line, and nothing is sent: a server is started for each, to be sure."""
    content, name, line, words = BROKEN[case]
    path = manifest(content, name)

    result = cli("clone", path)

    assert result.exit_code == 2
    assert "nothing was sent" in result.stderr
    place = name if line is None else f"{name}:{line}"
    (message,) = [text for text in result.stderr.splitlines() if text.startswith(f"  {place}: ") and words in text]
    assert "\x1b" not in result.output
    assert re.search(r"\(.+\)", message), "there is no remedy"
    assert not sandbox.uploads
    assert not sandbox.clones
    assert not list(path.parent.glob("*.db"))


def test_source_is_not_there(cli: Cli, tmp_path: Path) -> None:
    """A source that does not exist is bad usage."""
    result = cli("plan", tmp_path / "nowhere.csv")

    assert result.exit_code == 2
    assert "Give a manifest (CSV or JSON Lines) or a folder of recordings." in result.stderr
    assert cli("plan", "nowhere.csv").stderr.startswith("nowhere.csv does not exist")


def test_huge_manifest(cli: Cli, manifest: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is far too large for a manifest is not read to its end."""
    monkeypatch.setattr(_manifest, "LARGEST_BYTES", 1000)

    result = cli("plan", manifest(HEAD + "Ada,English,a.mp3\n" * 100))

    assert result.exit_code == 2
    assert "which no manifest is" in result.stderr


def test_huge_cell(cli: Cli, manifest: Write) -> None:
    """A quote that swallows the rest of a large file is told where it opens."""
    result = cli("plan", manifest(HEAD + '"Ada,English,a.mp3\n' + "Bea,English,b.mp3\n" * 20_000))

    assert result.exit_code == 2
    assert "voices.csv:2: row: a quote is opened here and never closed" in result.stderr


def test_all_faults_are_told_at_once(cli: Cli, manifest: Write, sandbox: Sandbox) -> None:
    """Faults of the table, the samples, the languages and the accounts come together, in the order of the lines."""
    text = (
        "voice_name,language_tag,samples,account\n"
        "Ada,Klingon,a.mp3,\n"
        "Bea,English,gone.mp3,\n"
        "Cid,English,c.wav,nobody\n"
        f"{'x' * 40},English,a.mp3,\n"
    )

    result = cli("plan", manifest(text), "--json")

    assert result.exit_code == 2
    faults = json_lines(result.stdout)
    assert [(fault["line"], fault["field"]) for fault in faults] == [
        (2, "language_tag"),
        (3, "samples"),
        (4, "account"),
        (5, "voice_name"),
    ]
    assert all(fault["remedy"] for fault in faults)


def test_one_fault_of_many_lines_is_told_once(cli: Cli, manifest: Write, sandbox: Sandbox) -> None:
    """What is wrong with every line for one reason is one message."""
    result = cli("clone", manifest(HEAD + "".join(f"Voice {n},english,a.mp3\n" for n in range(300))))

    assert result.exit_code == 2
    assert result.stderr.count("did you mean 'English'?") == 1
    assert "likewise in lines 3, 4, 5, 6, 7, 8, 9, 10 and 291 more" in result.stderr


def test_many_different_faults_are_cut(cli: Cli, manifest: Write, sandbox: Sandbox) -> None:
    """Nobody reads a thousand messages; --json has all of them."""
    path = manifest(HEAD + "".join(f"Voice {n},English,gone-{n}.mp3\n" for n in range(80)))

    assert "... and 30 more like these (--json shows all)" in cli("clone", path).stderr
    assert len(json_lines(cli("clone", path, "--json").stdout)) == 80


def test_faults_come_before_the_missing_token(cli: Cli, manifest: Write) -> None:
    """Without a token a manifest's own faults are told all the same; without faults, the token is."""
    assert cli("clone", manifest(HEAD + "Ada,English,gone.mp3\n")).exit_code == 2
    assert cli("clone", manifest(HEAD + "Ada,English,a.mp3\n")).exit_code == 3


def test_csv_in_all_its_forms(manifest: Write) -> None:
    """Semicolons, tabs, UTF-16, odd cases of column names, blank lines, and cells that are not there."""
    for text, encoding in (
        ('Voice Name;Language-Tag;samples;account\n\nAda;English;"a.mp3;b.mp3"\n', "utf-8"),
        ("VOICE_NAME\tlanguage_tag\tSamples\tnotes\nAda\tEnglish\ta.mp3;b.mp3\tfine\n", "utf-16"),
        ("voice_name, language_tag, samples\r\nAda, English, a.mp3;b.mp3\r\n", "utf-8-sig"),
    ):
        found = read(manifest(text.encode(encoding)))

        assert not found.faults
        (row,) = found.rows
        assert (row.key, row.request.voice_name, row.request.language_tag) == ("Ada", "Ada", "English")
        assert [sample.name for sample in row.request.samples] == ["a.mp3", "b.mp3"]
        assert row.request.account is None


def test_columns_of_ones_own_are_noted(manifest: Write) -> None:
    """A column that is no slip of ours is left alone, and said once."""
    lines = '{"voice_name": "A", "samples": "a.mp3", "mood": 1}\n{"voice_name": "B", "samples": "b.mp3", "mood": 2}\n'

    assert read(manifest(lines, "v.jsonl"), language="English").notes == ["columns that mean nothing here: mood"]


def test_json_lines(manifest: Write) -> None:
    """JSON Lines take lists, booleans and numbers; defaults fill what is missing."""
    rows = [
        {"voice_name": 2024, "samples": ["a.mp3", " c.wav "], "need_noise_reduction": False, "key": "first"},
        {
            "voice_name": "Bea",
            "language_tag": "French",
            "samples": "b.mp3",
            "account": "mine",
            "need_noise_reduction": "no",
        },
        {"voice_name": "Cid", "samples": "c.wav", "need_noise_reduction": None},
    ]

    found = read(manifest("\n".join(map(json.dumps, rows))), language="English", account="other")

    assert not found.faults
    assert [row.key for row in found.rows] == ["first", "Bea", "Cid"]
    assert [row.request.language_tag for row in found.rows] == ["English", "French", "English"]
    assert [row.request.account for row in found.rows] == ["other", "mine", "other"]
    assert [row.request.need_noise_reduction for row in found.rows] == [False, False, True]
    assert [row.line for row in found.rows] == [1, 2, 3]


def test_globs(manifest: Write, tmp_path: Path) -> None:
    """A glob starts at the manifest's folder, sorts as people do, and never hides a file that is called like one."""
    (tmp_path / "takes").mkdir()
    for name in ("take 10.mp3", "take 2.mp3", "odd[1].mp3"):
        shutil.copy(MP3, tmp_path / "takes" / name)
    found = read(manifest(HEAD + "Ada,English,takes/take*.mp3\nBea,English,takes/odd[1].mp3\nCid,English,**/*.wav\n"))

    assert not found.faults
    assert [[sample.name for sample in row.request.samples] for row in found.rows] == [
        ["takes/take 2.mp3", "takes/take 10.mp3"],
        ["takes/odd[1].mp3"],
        ["c.wav"],
    ]


def test_lone_surrogates_are_a_fault(manifest: Write, cli: Cli) -> None:
    """JSON can name what no encoding can write."""
    result = cli(
        "plan", manifest('{"voice_name": "\\ud800", "language_tag": "English", "samples": "a.mp3"}', "v.jsonl")
    )

    assert result.exit_code == 2
    assert "leave out lone surrogates" in result.stderr


def test_folder(folder: Path) -> None:
    """Each recording and each sub-folder of recordings is a voice; hidden and other files are none."""
    (folder / ".hidden.mp3").touch()
    (folder / "notes.txt").touch()
    (folder / "Empty").mkdir()
    (folder / "Both" / "deeper").mkdir()

    found = read(folder, language="English")

    assert not found.faults
    assert [(row.key, [sample.name for sample in row.request.samples]) for row in found.rows] == [
        ("Ada", ["Ada.mp3"]),
        ("Both", ["Both/take 2.wav", "Both/take 10.mp3"]),
        ("Emil", ["Emil.WAV"]),
    ]
    assert found.notes == ["left out, being neither mp3 nor wav: notes.txt"]


def test_folder_with_faults(folder: Path, cli: Cli) -> None:
    """A folder's faults name the recording; no language is one fault."""
    (folder / "Both" / "song.m4a").touch()
    shutil.copy(MP3, folder / "Emil.mp3")

    result = cli("clone", folder)

    assert result.exit_code == 2
    assert "recordings: language_tag: a folder does not say its language (give --language" in result.stderr
    assert "recordings/Both/song.m4a: samples: .m4a is not taken (convert it to mp3 or wav" in result.stderr
    assert "'Emil' is taken by recordings/Emil.mp3" in result.stderr
    assert "put both into one sub-folder" in result.stderr
    assert "language_tag: is empty" not in result.stderr


def test_folder_samples_with_faults(folder: Path, cli: Cli, sandbox: Sandbox) -> None:
    """A recording that is none is told with its place."""
    for name in ("Ada.mp3", "Emil.WAV"):
        (folder / name).write_bytes(b"no sound")

    result = cli("clone", folder, "--language", "English")

    assert result.exit_code == 2
    assert "recordings/Ada.mp3: samples: Ada.mp3" in result.stderr
    assert "recordings/Emil.WAV: samples: Emil.WAV" in result.stderr


def test_same_fault_in_two_places_of_a_folder(folder: Path) -> None:
    """Places without lines are named."""
    faults = [_manifest.RowFault(0, f"r/{n}", _manifest.Fault("f", "m", "r")) for n in range(2)]

    assert "likewise in place r/1" in str(_manifest.ManifestInvalid(folder, faults))


def test_empty_folder(tmp_path: Path, cli: Cli) -> None:
    """There is nothing to clone in a folder without recordings."""
    assert "there is no recording (mp3 or wav) in it" in cli("clone", tmp_path, "--language", "English").stderr


def test_unreadable_folder(tmp_path: Path) -> None:
    """What cannot be read is bad usage."""
    with pytest.raises(CliError, match="does not exist"):
        read(tmp_path / "gone")


@pytest.mark.slow
def test_large_manifest_is_planned_in_seconds(cli: Cli, manifest: Write, sandbox: Sandbox) -> None:
    """5,000 lines over three recordings: three inspections, seconds, and little memory; it is the size that matters."""
    names = ("a.mp3", "b.mp3", "c.wav")
    path = manifest(HEAD + "".join(f"Voice {n},English,{names[n % 3]}\n" for n in range(5_000)))
    inspected: list[int] = []
    whole = _check.SampleBook.inspect_all

    async def inspect_all(self: object, samples: list[object]) -> object:
        inspected.append(len(samples))
        return await whole(self, samples)  # type: ignore[arg-type]

    tracemalloc.start()
    began_s = time.perf_counter()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_check.SampleBook, "inspect_all", inspect_all)
        result = cli("plan", path, "--json")
    took_s = time.perf_counter() - began_s
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert result.exit_code == 4  # there are fewer slots than voices
    assert json.loads(result.stdout)["voices"] == 5_000
    assert inspected == [3]
    assert took_s < 20
    assert most_bytes < 40e6
