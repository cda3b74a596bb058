"""Values that no column should hold are findings and errors of the module, never something else."""

import io
import json
from typing import Any

import pytest

from points_platform.core import Database, InvalidRequestError, StorageUnavailableError
from points_platform.ledger import Sealer
from points_platform.ledger.files import export_log
from points_platform.ledger.log import GENESIS, chained, digest
from points_platform.wallets.rebuild import restore
from points_platform.wallets.verify import verify
from support.statements import execute
from support.world import World


@pytest.fixture
def played(database: Database) -> World:
    world = World(database)
    world.credit()
    world.settle(world.hold().escrow_id)
    world.ledger.seal()
    return world


def test_a_time_that_is_none_is_a_finding(played: World) -> None:
    """PostgreSQL has times that Python has not; SQLite keeps any text."""
    time = "garbage" if played.database.is_sqlite else "infinity"
    execute(played, f"UPDATE user_wallets SET updated_at = '{time}'")
    found = list(verify(played.database))
    assert {each.kind for each in found} == {"unreadable"}
    assert {each.ids["check"] for each in found} == {"wallets, escrow items and claims"}


def test_a_time_that_is_none_is_an_error_of_the_module(sqlite_url: str) -> None:
    with Database(sqlite_url) as database:
        world = World(database)
        world.credit()
        execute(world, "UPDATE user_wallets SET updated_at = 'garbage'")
        with pytest.raises(StorageUnavailableError):
            world.wallets.get_user_balance("ana")


def test_a_transaction_that_is_there_twice_is_no_conflict_with_others(played: World, sqlite_url: str) -> None:
    """The chain of the file is right, so only the database can tell."""
    file = io.StringIO()
    export_log(played.database, file)
    first = json.loads(file.getvalue().splitlines()[0])
    (entry,) = played.ledger.read_log(limit=1)
    once = chained(GENESIS.hash, digest(entry.transaction))
    twice = chained(once, digest(entry.transaction))
    lines: list[dict[str, Any]] = [first, {**first, "position": 2, "hash": twice}, {"count": 2, "hash": twice}]
    text_lines = [json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines]
    with Database(sqlite_url.replace(".db", "-copy.db")) as copy:
        copy.create_schema()
        with pytest.raises(InvalidRequestError) as refusal:
            restore(copy, io.StringIO("".join(text_lines), newline="\n"))
        assert refusal.value.details["field"] == "lines 1 to 2"
        assert World(copy).snapshot()["ledger_transactions"] == []


@pytest.mark.parametrize(
    ("field", "wrong"), [("interval", 0), ("interval", -1), ("interval", "1"), ("sweep_every", 0), ("sweep_every", 1.0)]
)
def test_a_sealer_that_could_not_work_is_refused(played: World, field: str, wrong: Any) -> None:
    with pytest.raises(InvalidRequestError) as refusal:
        Sealer(played.ledger, **{field: wrong})
    assert refusal.value.details["field"] == field


def test_a_sealer_that_never_ran_can_be_stopped(played: World) -> None:
    Sealer(played.ledger).stop()
