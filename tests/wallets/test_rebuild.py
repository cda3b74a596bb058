"""Rebuilding: wallets and escrow items follow from the ledger alone, and are put right without touching it."""

import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import ColumnElement, Executable, Table, create_engine, delete, insert, select, text, update

from points_platform.core import Database
from points_platform.wallets.models import DEPOSIT_CLAIMS, ESCROW_ITEMS, MODEL_WALLETS, USER_WALLETS
from points_platform.wallets.rebuild import Drift, apply, drifts
from support.recount import recount
from support.world import World, at_once

TABLES = (DEPOSIT_CLAIMS, ESCROW_ITEMS, USER_WALLETS, MODEL_WALLETS)
VIEWS = tuple(table.name for table in TABLES)
CHECKS = {
    "user_wallets": ("user_wallets_balance", "user_wallets_version"),
    "model_wallets": ("model_wallets_balance", "model_wallets_version"),
    "escrow_items": ("escrow_items_amount", "escrow_items_split", "escrow_items_status"),
    "deposit_claims": ("deposit_claims_amount",),
}
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture
def evening(world: World) -> World:
    """Each operation has happened, in two currencies, and two holds wait; the CHECKs are gone where they can be."""
    world.credit("ana", 100)
    world.credit("ben", 50)
    world.settle(world.hold("ana", metadata={"title": "\0 Für \u2028"}).escrow_id)
    world.refund(world.hold("ana", 10).escrow_id, 10)
    world.partial_settle(world.hold("ben", 20).escrow_id, 7, 13, user_id="ben")
    world.hold("ana", 5)
    world.credit("ana", 20, currency="gems")
    world.hold("ana", 5, currency="gems")
    world.deposit("cleo", 60, source="bank 🎤", reference='Nº "1" \\')
    world.transfer("cleo", 20, recipient_id="dora")
    world.spend("cleo", 5, order_id="order-1")
    world.open("model:mira")
    if not world.database.is_sqlite:
        for table, names in CHECKS.items():
            execute(world, *(text(f"ALTER TABLE {table} DROP CONSTRAINT {name}") for name in names))
    return world


def execute(world: World, *statements: Executable) -> None:
    """On a connection of its own, without the CHECKs."""
    engine = create_engine(world.database.engine.url)
    with engine.begin() as connection:
        if world.database.is_sqlite:
            connection.execute(text("PRAGMA ignore_check_constraints = ON"))
        for statement in statements:
            connection.execute(statement)
    engine.dispose()


def drifted(world: World, **options: Any) -> list[Drift]:
    with world.database.snapshot() as connection:
        return list(drifts(connection, **options))


def row_of(world: World, table: Table, mine: ColumnElement[bool]) -> dict[str, Any]:
    with world.database.engine.connect() as connection:
        (row,) = connection.execute(select(table).where(mine)).all()
    return dict(zip([column.key for column in table.c], row, strict=True))


def ledger_of(world: World) -> dict[str, Any]:
    return {table: rows for table, rows in world.snapshot().items() if table not in VIEWS}


ANA = (USER_WALLETS.c.owner_id == "user:ana") & (USER_WALLETS.c.currency == "points")
LUNA, MIRA = (MODEL_WALLETS.c.owner_id == f"model:{name}" for name in ("luna", "mira"))
PAID = DEPOSIT_CLAIMS.c.source == "bank 🎤"
SETTLED = ESCROW_ITEMS.c.status == "settled"
HELD = (ESCROW_ITEMS.c.status == "held") & (ESCROW_ITEMS.c.currency == "points")

# Every column that is no key, and what it may be changed to.
CHANGES: list[tuple[Table, ColumnElement[bool], dict[str, Any]]] = [
    *((USER_WALLETS, ANA, {name: value}) for name, value in (("available", 66), ("escrow", 0), ("version", 7))),
    *((USER_WALLETS, ANA, {name: LONG_AGO}) for name in ("created_at", "updated_at")),
    (USER_WALLETS, ANA, {"available": -1, "escrow": -1, "version": -1}),
    *((table, mine, {"paying": 1}) for table, mine in ((USER_WALLETS, ANA), (MODEL_WALLETS, LUNA))),
    *((table, mine, {"state": "closed"}) for table, mine in ((USER_WALLETS, ANA), (MODEL_WALLETS, MIRA))),
    (MODEL_WALLETS, MIRA, {"version": 2, "earned": 1}),
    *((MODEL_WALLETS, LUNA, {name: value}) for name, value in (("earned", 44), ("version", 1))),
    *((MODEL_WALLETS, LUNA, {name: LONG_AGO}) for name in ("created_at", "updated_at")),
    *(
        (ESCROW_ITEMS, SETTLED, {name: value})
        for name, value in (
            ("currency", "gems"),
            ("amount", 31),
            ("queue_item_id", "queue-9"),
            ("feature_type", "dance"),
            ("reason", "gift"),
            ("metadata_json", None),
            ("model_id", None),
            ("model_id", "sol"),
            ("settled_amount", 29),
            ("refunded_amount", 1),
            ("created_at", LONG_AGO),
            ("processed_at", None),
            ("expires_at", LONG_AGO),
        )
    ),
    *(
        (DEPOSIT_CLAIMS, PAID, {name: value})
        for name, value in (("owner_id", "user:dora"), ("currency", "gems"), ("amount", 61), ("created_at", LONG_AGO))
    ),
    (ESCROW_ITEMS, SETTLED, {"status": "held", "processed_at": None, "settled_amount": 0, "model_id": None}),
    (ESCROW_ITEMS, HELD, {"status": "refunded", "processed_at": LONG_AGO, "refunded_amount": 5}),
    (ESCROW_ITEMS, HELD, {"metadata_json": "{}"}),
]


def test_what_was_only_played_has_not_drifted(evening: World) -> None:
    assert drifted(evening) == []
    evening.ledger.seal()
    for since in range(16):
        assert drifted(evening, since=since) == []


def test_the_changes_below_are_of_every_column_but_the_keys() -> None:
    changed = {(table.name, name) for table, _, change in CHANGES for name in change}
    # A claim of another transaction is two drifts: this one's is missing, and that one made none.
    changed.add(("deposit_claims", "transaction_id"))
    assert changed == {(table.name, c.key) for table in TABLES for c in table.c if not c.primary_key}


def test_each_changed_value_is_named_and_put_right_and_nothing_else(
    evening: World, caplog: pytest.LogCaptureFixture
) -> None:
    rows = evening.snapshot()
    for table, mine, change in CHANGES:
        right = row_of(evening, table, mine)
        key = {column.key: right[column.key] for column in table.primary_key}
        at = [column == key[column.key] for column in table.primary_key]
        execute(evening, update(table).where(*at).values(change))
        (drift,) = drifted(evening)
        assert drift == Drift(table=table.name, key=key, expected=right, found=right | change)
        caplog.clear()
        with caplog.at_level(logging.INFO):
            assert apply(evening.database, drift) is True
        assert evening.snapshot() == rows, change
        (record,) = [each for each in caplog.records if hasattr(each, "points_platform")]
        fields = record.__dict__["points_platform"]
        said = (record.levelname, fields["table"], fields["key"], set(fields["columns"]))
        assert said == ("WARNING", table.name, key, set(change)), "names alone: metadata may be personal"
        assert table.name in record.getMessage()
        assert all(str(value) in record.getMessage() for value in key.values())
        caplog.clear()
        assert apply(evening.database, drift) is False, "it is right by now"
        assert caplog.records == []
    assert evening.snapshot() == rows


def without(table: Table, mine: ColumnElement[bool]) -> Callable[[World], Executable]:
    return lambda world: delete(table).where(mine)


def another(table: Table, mine: ColumnElement[bool], **key: str) -> Callable[[World], Executable]:
    return lambda world: insert(table).values(row_of(world, table, mine) | key)


def elsewhere(table: Table, mine: ColumnElement[bool], **key: str) -> Callable[[World], Executable]:
    return lambda world: update(table).where(mine).values(key)


ROWS: list[tuple[Callable[[World], Executable], list[str]]] = [
    (without(USER_WALLETS, ANA), ["missing"]),
    (without(MODEL_WALLETS, LUNA), ["missing"]),
    (without(MODEL_WALLETS, MIRA), ["missing"]),
    (without(DEPOSIT_CLAIMS, PAID), ["missing"]),
    (another(DEPOSIT_CLAIMS, PAID, reference="forged"), ["unexplained"]),
    (another(DEPOSIT_CLAIMS, PAID, source="bank", transaction_id="forged"), ["unexplained"]),
    (elsewhere(DEPOSIT_CLAIMS, PAID, reference="forged"), ["missing", "unexplained"]),
    (without(ESCROW_ITEMS, SETTLED), ["missing"]),
    (without(ESCROW_ITEMS, HELD), ["missing"]),
    (another(USER_WALLETS, ANA, owner_id="user:eva"), ["unexplained"]),
    (another(USER_WALLETS, ANA, currency="gold"), ["unexplained"]),
    (another(MODEL_WALLETS, LUNA, owner_id="model:sol"), ["unexplained"]),
    (another(ESCROW_ITEMS, SETTLED, escrow_id="forged"), ["unexplained"]),
    (another(ESCROW_ITEMS, SETTLED, owner_id="user:eva"), ["unexplained"]),
    (elsewhere(USER_WALLETS, ANA, owner_id="user:eva"), ["missing", "unexplained"]),
    (elsewhere(MODEL_WALLETS, LUNA, currency="gems"), ["missing", "unexplained"]),
    (elsewhere(ESCROW_ITEMS, HELD, owner_id="user:ben"), ["missing", "unexplained"]),
]


def kind_of(drift: Drift) -> str:
    return "missing" if drift.found is None else "unexplained" if drift.expected is None else "differs"


def test_rows_that_are_missing_or_unexplained_are_named_and_put_right(evening: World) -> None:
    rows = evening.snapshot()
    for damage, kinds in ROWS:
        execute(evening, damage(evening))
        found = drifted(evening)
        assert sorted(map(kind_of, found)) == kinds
        assert [apply(evening.database, drift) for drift in found] == [True] * len(kinds)
        assert evening.snapshot() == rows
        assert [apply(evening.database, drift) for drift in found] == [False] * len(kinds)
    assert evening.snapshot() == rows


def test_a_claim_of_another_transaction_is_told_from_both_sides_and_put_right_once(evening: World) -> None:
    rows = evening.snapshot()
    execute(evening, elsewhere(DEPOSIT_CLAIMS, PAID, transaction_id="forged")(evening))
    found = drifted(evening)
    assert sorted(map(kind_of, found)) == ["differs", "unexplained"]
    assert [apply(evening.database, drift) for drift in found] == [True, False]
    assert evening.snapshot() == rows


def test_wallets_and_escrow_items_come_back_byte_for_byte_from_the_ledger_alone(evening: World) -> None:
    evening.ledger.seal()
    rows = evening.snapshot()
    execute(evening, *(delete(table) for table in TABLES))
    ledger = ledger_of(evening)
    found = drifted(evening)
    assert len(found) == sum(len(rows[table]) for table in VIEWS)
    assert all(drift.found is None for drift in found)
    assert all(apply(evening.database, drift) for drift in found)
    assert ledger_of(evening) == ledger
    assert evening.snapshot() == rows
    assert drifted(evening) == []


def test_applying_one_drift_leaves_the_others(evening: World) -> None:
    execute(evening, update(ESCROW_ITEMS).values(reason="gift"), update(USER_WALLETS).values(created_at=LONG_AGO))
    found = drifted(evening)
    assert len(found) == 10
    for number, drift in enumerate(found, 1):
        assert apply(evening.database, drift)
        assert drifted(evening) == found[number:]


def test_a_repair_goes_by_what_the_ledger_says_by_then(evening: World) -> None:
    """Not by what it said when the drift was seen."""
    execute(evening, update(USER_WALLETS).where(ANA).values(created_at=LONG_AGO))
    (drift,) = drifted(evening)
    evening.credit("ana", 1000)
    assert apply(evening.database, drift) is True
    wallet = row_of(evening, USER_WALLETS, ANA)
    assert (wallet["available"], wallet["version"]) == (1065, 7)
    assert drifted(evening) == []


def test_a_hold_that_ended_since_the_drift_was_seen_stays_ended(evening: World) -> None:
    held = row_of(evening, ESCROW_ITEMS, HELD)["escrow_id"]
    execute(evening, update(ESCROW_ITEMS).where(ESCROW_ITEMS.c.escrow_id == held).values(reason="gift"))
    (drift,) = drifted(evening)
    evening.settle(held, 5)
    assert apply(evening.database, drift) is True
    assert evening.wallets.get_escrow(held).status == "settled"


def test_a_row_that_somebody_put_right_meanwhile_is_left_alone(evening: World) -> None:
    execute(evening, update(MODEL_WALLETS).where(LUNA).values(version=9))
    (drift,) = drifted(evening)
    execute(evening, update(MODEL_WALLETS).where(LUNA).values(version=2))
    rows = evening.snapshot()
    assert apply(evening.database, drift) is False
    assert evening.snapshot() == rows


def test_a_row_that_is_right_is_left_alone_also_where_another_is_unexplained(evening: World) -> None:
    """A repair that took the other row's drift for its own would delete what is right."""
    execute(evening, update(MODEL_WALLETS).where(LUNA).values(version=9))
    (drift,) = drifted(evening)
    execute(evening, update(MODEL_WALLETS).where(LUNA).values(version=2))
    execute(evening, another(MODEL_WALLETS, LUNA, owner_id="model:sol")(evening))
    rows = evening.snapshot()
    assert apply(evening.database, drift) is False
    assert evening.snapshot() == rows
    (unexplained,) = drifted(evening)
    assert apply(evening.database, unexplained) is True


def test_since_compares_what_was_touched_after_that_position_alone(evening: World) -> None:
    head = evening.ledger.seal().head
    execute(evening, update(USER_WALLETS).values(updated_at=LONG_AGO))
    assert {drift.key["owner_id"] for drift in drifted(evening, since=1)} == {
        f"user:{name}" for name in ("ana", "ben", "cleo", "dora")
    }
    assert drifted(evening, since=head.position) == []
    evening.credit("ben", 1)
    execute(evening, update(USER_WALLETS).values(updated_at=LONG_AGO))
    assert [drift.key["owner_id"] for drift in drifted(evening, since=head.position)] == ["user:ben"]
    for drift in drifted(evening):
        assert apply(evening.database, drift)


def test_no_more_drifts_of_a_table_are_read_than_the_limit(evening: World) -> None:
    execute(evening, *(delete(table) for table in TABLES))
    tables = [drift.table for drift in drifted(evening, limit=2)]
    assert tables == ["deposit_claims"] + ["escrow_items"] * 2 + ["user_wallets"] * 2 + ["model_wallets"] * 2
    while found := drifted(evening, limit=2):
        assert all(apply(evening.database, drift) for drift in found)


def test_an_empty_database_has_no_drift_and_needs_no_repair(world: World) -> None:
    assert drifted(world) == []
    nobody = Drift(table="user_wallets", key={"owner_id": "user:ana", "currency": "points"}, expected=None, found=None)
    assert apply(world.database, nobody) is False


def test_repairs_beside_writers_lose_nothing(evening: World) -> None:
    """Damages that no writer carries on into the ledger, on rows that are written all the time."""
    wrong_times = [update(table).values(created_at=LONG_AGO) for table in TABLES]
    execute(evening, *wrong_times, insert(MODEL_WALLETS).values(row_of(evening, MODEL_WALLETS, LUNA) | STRANGER))
    found = drifted(evening)
    assert len(found) == 14

    def write(user: str) -> None:
        for number in range(6):
            held = evening.hold(user, 1)
            end: Any = evening.settle if number % 2 else evening.refund
            end(held.escrow_id, 1, user_id=user)
            evening.credit(user, 1)

    def repair() -> list[bool]:
        return [apply(evening.database, drift) for drift in found]

    answers = at_once(*(partial(write, user) for user in ("ana", "ben", "ana")), repair, repair)
    assert answers[:3] == [None] * 3
    assert all(isinstance(answer, list) for answer in answers[3:]), answers
    first, second = (answer for answer in answers[3:] if isinstance(answer, list))
    assert [one + other for one, other in zip(first, second, strict=True)] == [1] * 14, "each is repaired once"
    assert drifted(evening) == []
    recount(evening.database)


STRANGER = {"owner_id": "model:sol", "updated_at": LONG_AGO + timedelta(days=1)}


@pytest.fixture(autouse=True)
def repaired_at_the_end(database: Database) -> Iterator[None]:
    """Whatever a test has damaged it has also repaired."""
    yield
    with database.snapshot() as connection:
        assert list(drifts(connection)) == []
