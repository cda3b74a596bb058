"""A ledger that the first release sealed is the same ledger for ever: its head, its export, everything that follows."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from points_platform.core import Database
from points_platform.ledger import LedgerService, LedgerTransaction, LogHead, Sealed
from points_platform.ledger.files import export_log
from points_platform.ledger.log import canonical_form
from points_platform.wallets.rebuild import drifts, restore
from points_platform.wallets.verify import verify
from support.recount import recount
from support.world import World

FOLDER = Path(__file__).parent / "sealed"
FILE = (FOLDER / "first.jsonl").read_text()
POSITION, HASH = (FOLDER / "first.head").read_text().strip().split(":")
HEAD = LogHead(position=int(POSITION), hash=HASH)


def restored(database: Database, file: str) -> LogHead:
    return restore(database, io.StringIO(file, newline="\n"))


def exported(database: Database) -> str:
    file = io.StringIO()
    export_log(database, file)
    return file.getvalue()


@pytest.fixture
def old(database: Database) -> Database:
    assert restored(database, FILE) == HEAD
    return database


def test_it_is_imported_to_exactly_its_head_and_has_no_finding(old: Database) -> None:
    assert LedgerService(old).head() == HEAD
    assert list(verify(old, head=HEAD)) == []
    with old.snapshot() as connection:
        assert list(drifts(connection)) == []
    recount(old)


def test_sealing_it_again_adds_nothing_and_its_export_is_the_same_bytes(old: Database) -> None:
    assert LedgerService(old).seal() == Sealed(appended=0, waiting=0, head=HEAD)
    assert exported(old) == FILE


def test_sealed_anew_from_its_transactions_alone_it_has_the_same_digests(old: Database) -> None:
    """Digests are computed by the server on PostgreSQL, and in Python on SQLite; the hash of the first has no other."""
    before = LedgerService(old).read_log(limit=100)
    around_triggers(old, "DELETE FROM ledger_log WHERE position > 1")
    LedgerService(old).seal()
    again = LedgerService(old).read_log(limit=100)
    forms = {entry.transaction.transaction_id: canonical_form(entry.transaction) for entry in before}
    assert {entry.transaction.transaction_id: canonical_form(entry.transaction) for entry in again} == forms
    assert list(verify(old, head=LedgerService(old).head())) == []


def around_triggers(database: Database, statement: str) -> None:
    """Do what only somebody with all rights on the database can do; the triggers are back afterwards."""
    with database.engine.begin() as connection:
        triggers: list[Any] = []
        if database.is_sqlite:
            found = connection.execute(text("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"))
            triggers = list(found)
        else:
            connection.execute(text("SET LOCAL session_replication_role = replica"))
        for name, _ in triggers:
            connection.execute(text(f"DROP TRIGGER {name}"))
        assert connection.exec_driver_sql(statement).rowcount >= 1, "the damage has been done"
        for _, created in triggers:
            connection.execute(text(created))


def test_its_requests_sent_again_are_answered_with_what_was_done_then(old: Database) -> None:
    world = World(old)
    first = LedgerService(old).read_log(limit=1)[0].transaction
    request = world.credit_request("ana", 500, idempotency_key=first.idempotency_key, request_id="another")
    answer = world.send(request)
    assert (answer.transaction_id, answer.replayed, answer.timestamp) == (
        first.transaction_id,
        True,
        first.occurred_at,
    )
    assert LedgerService(old).seal().appended == 0


def go_on(world: World) -> None:
    """Everything that the first release did not know yet, and one more of what it did."""
    world.spend("ana", 7, order_id="order-1", idempotency_key="spent")
    world.spend("ana", 7, idempotency_key="spent without an order")
    world.deposit("ben", 40, reference="payment-1", idempotency_key="deposited")
    world.transfer("ben", 11, recipient_id="żółw 🐢", idempotency_key="given")
    world.open("model:luna", idempotency_key="touched")
    world.open("user:new", currency="stars", idempotency_key="opened")
    held = world.hold("ana", 30, idempotency_key="held")
    world.settle(held.escrow_id, idempotency_key="settled")


def test_new_operations_go_on_top_of_it_and_travel_with_it(
    old: Database, url: str, request: pytest.FixtureRequest
) -> None:
    world = World(old)
    go_on(world)
    sealed = world.ledger.seal()
    assert (sealed.appended, sealed.waiting, sealed.head.position) == (8, 0, HEAD.position + 8)
    assert list(verify(old, head=sealed.head)) == list(verify(old, head=HEAD)) == []
    file = exported(old)
    assert file.startswith(FILE[: FILE.rindex('{"count"')]), "the old lines are what they were"
    other = request.getfixturevalue("postgresql_url" if old.is_sqlite else "sqlite_url")
    with Database(other) as copy:
        assert restored(copy, file) == sealed.head
        assert exported(copy) == file
        assert list(verify(copy, head=sealed.head)) == []
        recount(copy)
        again = World(copy)
        assert again.deposit("ben", 40, reference="payment-1", idempotency_key="another key").replayed is True
    recount(old)


# ── details ──


def details_of(line: str) -> str | None:
    found: str | None = json.loads(line)["transaction"].get("details_json")
    return found


def test_details_stand_in_a_line_only_where_there_are_some(old: Database) -> None:
    go_on(World(old))
    World(old).ledger.seal()
    *lines, _ = exported(old).splitlines()
    told = {json.loads(line)["transaction"]["idempotency_key"]: details_of(line) for line in lines[HEAD.position :]}
    assert {key: details for key, details in told.items() if details is not None} == {
        "spent": '{"order_id":"order-1"}',
        "deposited": '{"reference":"payment-1","source":"bank"}',
    }
    assert all("details_json" not in line for line in lines if details_of(line) is None)


def test_without_details_the_canonical_form_is_the_old_one(old: Database) -> None:
    transaction = LedgerService(old).read_log(limit=1)[0].transaction
    assert transaction.details_json is None
    fields = json.loads(canonical_form(transaction))
    assert len(fields) == 15
    assert fields[-2:] == [transaction.metadata_json, fields[-1]]
    told = replace(transaction, details_json="{}")
    assert json.loads(canonical_form(told)) == [*fields[:-1], "{}", fields[-1]]


CHANGES = {
    "another value": '\'{"order_id":"order-2"}\'',
    "another name": '\'{"order_ie":"order-1"}\'',
    "one character more": '\'{"order_id":"order-1"} \'',
    "the same, not canonical": '\'{"order_id": "order-1"}\'',
    "an empty object": "'{}'",
    "nothing": "''",
    "NULL": "NULL",
    "the text null": "'null'",
}


@pytest.fixture
def spent(database: Database) -> tuple[World, LedgerTransaction, LedgerTransaction]:
    """A sealed spend with details, and one without."""
    world = World(database)
    world.credit()
    ids = [world.spend(order_id="order-1").transaction_id, world.spend().transaction_id]
    world.ledger.seal()
    first, second = world.ledger.transactions(ids)
    return world, first, second


def broken(world: World, transaction: LedgerTransaction, details: str) -> list[str]:
    change = f"UPDATE ledger_transactions SET details = {details} WHERE transaction_id = '{transaction.transaction_id}'"
    around_triggers(world.database, change)
    found = list(verify(world.database))
    assert [each.ids["transaction_id"] for each in found] == [transaction.transaction_id] * len(found)
    return [each.kind for each in found]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_its_details_breaks_the_seal(spent: Any, change: str) -> None:
    world, told, _ = spent
    assert broken(world, told, CHANGES[change]) == ["seal_broken"]
    assert broken(world, told, f"'{told.details_json}'") == [], "and the right ones are right again"


@pytest.mark.parametrize("details", ["'{}'", "''", "'null'", '\'{"order_id":"order-1"}\''])
def test_details_where_none_were_sealed_break_the_seal(spent: Any, details: str) -> None:
    world, _, untold = spent
    assert broken(world, untold, details) == ["seal_broken"]
    assert broken(world, untold, "NULL") == []
