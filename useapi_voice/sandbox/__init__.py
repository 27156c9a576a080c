"""
The API in a box: `Sandbox` answers as useapi.net's MiniMax voice API does, in process or over a loopback server; it
imports nothing of the client.

Example:
    >>> from useapi_voice.sandbox import Fault, Sandbox, sample_paths
    >>> async with Sandbox(accounts=2, clone_s=0.2) as sandbox:
    ...     sandbox.fail("clone-voice", Fault.drop(made=True), nth=3)
    ...     ...  # point a client at sandbox.base_url with sandbox.token
    ...     assert not sandbox.breaches
"""

from pathlib import Path

from ._faults import Fault, FaultRule
from ._sandbox import LANGUAGES, Sandbox, SandboxOptions, serve
from ._transport import SandboxTransport
from ._world import Breach, CloneRecord, SandboxStatistics, UploadRecord, VoiceRecord

__all__ = [
    "LANGUAGES",
    "Breach",
    "CloneRecord",
    "Fault",
    "FaultRule",
    "Sandbox",
    "SandboxOptions",
    "SandboxStatistics",
    "SandboxTransport",
    "UploadRecord",
    "VoiceRecord",
    "sample_paths",
    "serve",
]


def sample_paths() -> tuple[Path, ...]:
    """Give the paths of three small speech samples that the API takes: two mp3 and one wav, 10.9 to 15 s each."""
    folder = Path(__file__).parent / "samples"
    return tuple(sorted(path for path in folder.iterdir() if path.suffix in (".mp3", ".wav")))
