"""`useapi-voice fleet` on a database of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from fleets import a_database, run_sql
from typer.testing import CliRunner

from useapi_voice._cli import app

pytestmark = [pytest.mark.postgres, pytest.mark.slow]


@pytest.fixture
def url() -> Iterator[str]:
    """Give an empty database."""
    with a_database() as url:
        yield url


def fleet(url: str, *arguments: str) -> tuple[int, str]:
    """Run a command; return its code and all that it said."""
    done = CliRunner().invoke(app, ["fleet", *arguments], env={"USEAPI_VOICE_STORE": url})
    return done.exit_code, done.output


def test_a_fleet_is_made_and_looked_at(url: str) -> None:
    """Without a schema the remedy is named; with it, made once or twice, accounts and cap can be set and seen."""
    code, told = fleet(url, "status")
    assert code == 2
    assert "fleet init" in told
    assert [fleet(url, "init")[0] for _ in range(2)] == [0, 0]
    assert fleet(url, "accounts", "set", "north", "south", "--max-parallel", "1")[0] == 0
    code, told = fleet(url, "accounts", "list", "--json")
    assert json.loads(told) == {"max_parallel": 1, "accounts": ["north", "south"]}
    code, told = fleet(url, "status", "--json")
    assert [account["account"] for account in json.loads(told)["accounts"]] == ["north", "south"]
    assert fleet(url, "status")[0] == 0


def test_accounts_do_not_change_under_a_clone(url: str) -> None:
    """While a place is occupied the accounts stay, and status tells who holds it."""
    assert fleet(url, "init")[0] == 0
    run_sql(
        url,
        "INSERT INTO useapi_voice.jobs (seq, id, state, priority, account, voice_name, payload, attempts, shas, seat, "
        "owner, sent_at) VALUES (1, 'one', 'sent', 0, 'north', 'Ann', '{}', 1, '{}', 0, 'nobody', now())",
    )
    code, told = fleet(url, "accounts", "set", "south")
    assert code == 2
    assert "occupied" in told
    assert "a replica that is gone" in fleet(url, "status")[1]


def test_a_lost_replica_is_named(url: str) -> None:
    """One that was not seen for a while is lost: status says so, and for how long its seats are kept."""
    assert fleet(url, "init")[0] == 0
    run_sql(
        url,
        "INSERT INTO useapi_voice.replicas (id, host, pid, works, lease_s, seen_at) VALUES "
        "('lost', 'far', 7, true, 150, now() - interval '30 s'), ('here', 'near', 8, true, 150, now()), "
        "('idle', 'far', 9, true, 150, now() - interval '1 min')",
        "INSERT INTO useapi_voice.pgqueuer (priority, entrypoint, status, slot, heartbeat) "
        "VALUES (0, 'useapi_voice:north', 'picked', 0, now() - interval '31 s')",
        "INSERT INTO useapi_voice.jobs (seq, id, state, priority, account, voice_name, payload, attempts, shas, seat, "
        "owner, sent_at) VALUES (1, 'one', 'sent', 0, 'north', 'Ann', '{}', 1, '{}', 0, 'lost', now())",
    )
    told = json.loads(fleet(url, "status", "--json")[1])
    found = {row["id"]: (row["is_lost"], row["seats"]) for row in told["replicas"]}
    assert found == {"here": (False, 0), "idle": (True, 0), "lost": (True, 1)}
    assert 100 < told["seats"][0]["kept_s"] < 120
    text = fleet(url, "status")[1]
    assert "far:7 (lost)" in text
    assert re.search(r"far:7 is lost: not seen for \d+ s; 1 seat kept for 1 min \d+ s more, then another", text)
    assert re.search(r"far:9 is lost: not seen for 1 min.*; it holds no seat", text)
    assert "near:8 is" not in text


def test_a_fleet_must_be_named(url: str) -> None:
    """Without a URL, or with one of something else, the variable is named; with a wrong one, no password is shown."""
    assert fleet("", "status")[0] == 2
    assert "USEAPI_VOICE_STORE" in fleet("jobs.db", "status")[1]
    code, told = fleet("postgresql://ann:hunter2@127.0.0.1:1/nowhere", "status")
    assert code == 2
    assert "127.0.0.1:1/nowhere" in told
    assert "hunter2" not in told
