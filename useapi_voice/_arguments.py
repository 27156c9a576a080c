"""What a `VoiceClient` and its methods are handed: each argument judged, all that is wrong in one error. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Final, TypeVar

from ._errors import ConfigurationError

T = TypeVar("T")

LONGEST_S: Final = 1e10
"""Some 300 years: what is longer is a mistake in the unit, and would overflow a date."""


class Arguments:
    """
    Gathers what is wrong, to be told at once by `raise_if_wrong`.

    Each judge returns the value as it came: whoever goes on before asking `raise_if_wrong` goes on with a wrong one.
    """

    def __init__(self) -> None:
        self._faults: list[str] = []

    def wrong(self, fault: str) -> None:
        """Note one more fault: what is wrong with which argument, and what may stand there."""
        self._faults.append(fault)

    def taken(self, check: Callable[[], T], instead: T, *, variable: str | None = None) -> T:
        """Return what `check` does, or `instead` where it raises `ConfigurationError`; say which variable it is of."""
        try:
            return check()
        except ConfigurationError as error:
            self.wrong(error.message if variable is None else f"{error.message} (it is from {variable})")
            return instead

    def one_of(self, name: str, value: T, choices: Collection[T], why: str = "") -> T:
        """A value of these, and of their type: `True` is no 1."""
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            words = " or ".join(repr(choice) for choice in choices)
            self.wrong(f"{name} must be {words}, not {_shown(value)}{why}")
        return value

    def seconds(self, name: str, value: T, *, may_be_zero: bool = False, may_be_none: bool = False) -> T:
        """Seconds, finite; `None`, where it may stand, is no limit."""
        least = 0.0 if may_be_zero else math.ulp(0.0)
        is_right = _is_between(value, (int, float), least, LONGEST_S)
        kind = "a number of seconds, 0 or more" if may_be_zero else "a positive number of seconds"
        self._judge(name, value, kind, is_right=is_right, may_be_none=may_be_none)
        return value

    def whole(self, name: str, value: T, *, least: int | None = None, may_be_none: bool = False) -> T:
        """A whole number, `least` or more; `None`, where it may stand, is no limit."""
        is_right = _is_between(value, (int,), -math.inf if least is None else least, math.inf)
        kind = "a whole number" if least is None else f"a whole number, {least} or more"
        self._judge(name, value, kind, is_right=is_right, may_be_none=may_be_none)
        return value

    def _judge(self, name: str, value: object, kind: str, *, is_right: bool, may_be_none: bool) -> None:
        if is_right or (value is None and may_be_none):
            return
        self.wrong(f"{name} must be {kind}, not {_shown(value)}{'; for no limit, leave it out' if may_be_none else ''}")

    def raise_if_wrong(self) -> None:
        """Raise `ConfigurationError` with every fault that was noted, if any was."""
        if len(self._faults) == 1:
            raise ConfigurationError(self._faults[0])
        if self._faults:
            listed = "\n".join(f"- {fault}" for fault in self._faults)
            raise ConfigurationError(f"{len(self._faults)} arguments are wrong:\n{listed}")


def _is_between(value: object, kinds: tuple[type, ...], least: float, most: float) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return isinstance(value, kinds) and least <= value <= most  # false of nan


def _shown(value: object) -> str:
    """Numbers and short words in full; of anything else its type, as its repr may be long, or secret."""
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)[:80]
    return type(value).__name__
