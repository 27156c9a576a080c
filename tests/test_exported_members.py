"""The front door: what can be imported from `useapi_voice` is what `__all__` says, under its public name."""

from types import ModuleType

import useapi_voice


def test_public_names_equal_all() -> None:
    """Every public name is exported, and nothing else is lying about."""
    public = {
        name
        for name, value in vars(useapi_voice).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert public | {"__version__"} == set(useapi_voice.__all__)


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
