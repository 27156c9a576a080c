"""The front door: what can be imported from `useapi_voice` is what `__all__` says, under its public name."""

import ast
import inspect
import subprocess
import sys
from importlib import import_module

import pytest

import useapi_voice


def imported_for_type_checkers() -> dict[str, str]:
    """The public names, and the room that a type checker finds each in."""
    return {
        name.name: f"useapi_voice.{node.module}"
        for node in ast.walk(ast.parse(inspect.getsource(useapi_voice)))
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for name in node.names
    }


def in_a_new_interpreter(code: str) -> str:
    """What this code prints where nothing was imported before."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout.strip()


def test_public_names_equal_all() -> None:
    """Every public name is exported, and nothing else is lying about."""
    public = {name for name in dir(useapi_voice) if not name.startswith("_")}
    assert public | {"__version__"} == set(useapi_voice.__all__)


def test_a_name_is_what_type_checkers_take_it_for() -> None:
    """Those loaded at the first use are the very objects that the imports for type checkers name."""
    rooms = imported_for_type_checkers()
    assert set(rooms) == set(useapi_voice.__all__)
    for name, room in rooms.items():
        assert getattr(useapi_voice, name) is getattr(import_module(room), name), name


def test_any_other_name_is_an_error() -> None:
    """A name that is misspelt is told by itself, loading nothing."""
    with pytest.raises(AttributeError, match="module 'useapi_voice' has no attribute 'VoiceCleint'"):
        _ = useapi_voice.VoiceCleint  # type: ignore[attr-defined]


def test_importing_the_package_alone_loads_no_client() -> None:
    """Whoever imports it for the fixtures, as every run of pytest does, pays for nothing else."""
    heavy = "sorted({'anyio', 'asyncio', 'httpx', 'pydantic', 'useapi_voice._client'} & set(sys.modules))"
    assert in_a_new_interpreter(f"import sys, useapi_voice; print({heavy})") == "[]"


def test_a_star_brings_all_names() -> None:
    """`from useapi_voice import *` works in an interpreter that has used none of them."""
    code = "from useapi_voice import *; import useapi_voice; print(set(useapi_voice.__all__) <= set(globals()))"
    assert in_a_new_interpreter(code) == "True"


def test_a_pickle_opens_where_nothing_was_used_yet() -> None:
    """A pickled voice names the package, and that is enough to load its class."""
    code = "import pickle, useapi_voice; print(pickle.dumps(useapi_voice.VoiceInfo(voice_id='v')))"
    pickled = in_a_new_interpreter(code)
    assert "useapi_voice._models" not in pickled
    assert in_a_new_interpreter(f"import pickle; print(pickle.loads({pickled}).voice_id)") == "v"


def test_all_is_sorted() -> None:
    """`__all__` is sorted, constants first, and names nothing twice."""
    names = useapi_voice.__all__
    assert names == sorted(set(names), key=lambda name: (not name.isupper(), name))


def test_classes_are_called_what_users_import() -> None:
    """Reprs and tracebacks name the package, not the rooms behind it."""
    classes = [value for name in useapi_voice.__all__ if isinstance(value := getattr(useapi_voice, name), type)]
    assert len(classes) > 30
    assert {cls.__module__ for cls in classes} == {"useapi_voice"}


def test_version_is_a_version() -> None:
    """The version is text that begins with a number."""
    assert useapi_voice.__version__.split(".")[0].isdigit()
