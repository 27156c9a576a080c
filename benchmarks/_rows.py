"""Rows for the one table from the figures of those benchmarks that print tables of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from _common import Measured, Row, measured, row

OURS, LIMIT = "useapi_voice", "physical limit"
NONE_OF = ("forgotten", "lost", "doubled", "breaches", "repeated", "tasks left", "connections left busy",
           "memory grown, bytes above what is allowed")  # fmt: skip
"""What a run under trouble must have none of."""


def none_of(what: str, figures: Mapping[str, Any]) -> list[Row]:
    """Rows of what there must be none of, as far as it was counted."""
    return [
        row(f"{what}: {name}", measured([figures[name]], ""), at_most=0)
        for name in NONE_OF
        if isinstance(figures.get(name), int)
    ]


def of_throughput(kept: Mapping[str, Any]) -> list[Row]:
    """Busy places, alone and beside every contender; the goal is for clones of 0.2 s and above."""
    rows = []
    for work, by in kept["results"].items():
        busy = {name: measured((run["busy"] for run in runs), "%", 100) for name, runs in by.items()}
        if OURS not in busy:
            continue
        # Shorter clones than the remote's, of 10 to 60 s, only show what the client costs.
        rows.append(row(f"places busy: {work}", busy[OURS], at_least=None if "x 0.05 s" in work else 99))
        rows += [
            row(f"places busy: {work}", busy[OURS], (name, busy[name]), at_least=None if name == LIMIT else 1.0)
            for name in busy
            if name != OURS
        ]
    return rows


def of_trouble(kept: Mapping[str, Any]) -> list[Row]:
    """Voices missing, doubled and above the cap, and the time it took, beside every contender."""
    runs = kept["runs"]
    names = list(runs[0])

    def figure(name: str, column: str, unit: str) -> Measured:
        return measured((run[name][column] for run in runs), unit)

    rows = []
    for column, unit in (("missing", "voices"), ("doubled", "voices"), ("breaches", ""), ("makespan_s", "s")):
        goal = None if unit == "s" else 0.0
        ours = figure(OURS, column, unit)
        others = "; ".join(f"{name}: {figure(name, column, '')}" for name in names if name != OURS)
        made = row(f"with trouble: {column.removesuffix('_s')}", ours, at_most=goal)
        made["beside"] = others
        rows.append(made)
    return rows


def of_fleet(kept: Mapping[str, Any]) -> list[Row]:
    """Hand-over and cost by the number of processes and accounts; what the stress and the kills broke."""
    rows = []
    for shape, found in kept.get("saturated", {}).items():
        processes, _, accounts = shape.partition("x")
        what = f"fleet of {processes} workers, {accounts} accounts"
        rows += [
            row(f"{what}: {said}", measured([found[name]], unit))
            for name, said, unit in (
                ("p50_ms", "hand-over of a place, p50", "ms"),
                ("p99_ms", "hand-over of a place, p99", "ms"),
                ("cpu_ms", "CPU of the workers a job", "ms"),
                ("commits", "commits a job", ""),
            )
            if name in found
        ]
    for said, _, verdict in kept.get("runs", []):
        for name, count in zip(("breaches", "lost", "doubled"), verdict, strict=True):
            rows.append(row(f"fleet, {said}: {name}", measured([count], ""), at_most=0))
    return rows


TRANSLATORS: Mapping[str, Callable[[Mapping[str, Any]], list[Row]]] = {
    "throughput": of_throughput,
    "trouble": of_trouble,
    "fleet": of_fleet,
    "kill": lambda kept: none_of(f"{kept['kills']} times kill -9", kept),
    "soak": lambda kept: none_of(f"{kept['jobs']} clones in {kept['seconds']} s, a tenth struck by faults", kept),
}


def rows_of(name: str, kept: Mapping[str, Any]) -> list[Row]:
    """Return the rows of a benchmark: its own, or those made of its figures."""
    own = kept.get("rows")
    if own is not None and all(isinstance(each, dict) for each in own):
        return list(own)
    return TRANSLATORS[name](kept)


def summary(rows: Iterable[Row]) -> str:
    """Say how many goals are met, and name those that are not."""
    judged = [each for each in rows if each["met"] is not None]
    missed = [f"- {each['what']}: {each['ours']}, beside {each['beside'] or 'nothing'}; goal {each['goal']}"
              for each in judged if not each["met"]]  # fmt: skip
    told = f"{len(judged) - len(missed)} of {len(judged)} goals are met"
    return "\n".join([f"{told}; not met:", *missed]) if missed else f"{told}."
