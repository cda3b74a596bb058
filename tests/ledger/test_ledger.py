"""The ledger: append-only in the database itself, only legal movements, statements page by page."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import FrozenInstanceError
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from freezegun import freeze_time
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError

from points_platform.core import MAX_POINTS, Database, InvalidRequestError
from points_platform.core.rows import CHUNK
from points_platform.core.values import encode_cursor
from points_platform.ledger import (
    ISSUER,
    REVENUE,
    Account,
    Bucket,
    LedgerService,
    Movement,
    StatementLine,
    Touch,
    TransactionDraft,
    WalletState,
    post,
)
from points_platform.ledger.accounts import CHART, available, earned, escrow, is_legal, net
from support.answers import told
from support.statements import execute
from support.workers import OPERATIONS
from support.world import World

NOON = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
LEDGER = ("ledger_transactions", "ledger_entries")
ANA, LUNA = available("ana"), earned("luna")


@pytest.fixture
def played(world: World) -> World:
    """A world in which every operation has happened, and one hold waits."""
    world.credit(amount=100)
    world.deposit(amount=50)
    world.spend(amount=20)
    world.transfer(amount=30)
    for owner in ("user:ana", "model:luna"):
        world.open(owner)
    world.settle(world.hold().escrow_id)
    world.refund(world.hold().escrow_id)
    world.partial_settle(world.hold().escrow_id)
    world.hold(amount=5)
    return world


@contextmanager
def rows_stay(world: World) -> Iterator[None]:
    rows = world.snapshot()
    yield
    assert world.snapshot() == rows


def columns_of(world: World, table: str) -> list[str]:
    with world.database.engine.connect() as connection:
        return list(connection.execute(text(f"SELECT * FROM {table} LIMIT 0")).keys())


def copied(world: World, table: str, verb: str = "INSERT", **expressions: str) -> str:
    """The statement that copies a row of the table, with some columns replaced by these SQL expressions."""
    columns = columns_of(world, table)
    assert set(expressions) <= set(columns)
    selected = ", ".join(expressions.get(name, name) for name in columns)
    held = " WHERE status = 'held'" if table == "escrow_items" else ""
    if table == "ledger_entries":
        held = " WHERE bucket = 'available' AND amount > 0"
    return f"{verb} INTO {table} ({', '.join(columns)}) SELECT {selected} FROM {table}{held} LIMIT 1"


@pytest.mark.parametrize("table", LEDGER)
def test_the_database_refuses_to_change_or_remove_a_ledger_row(played: World, table: str) -> None:
    statements = [f"UPDATE {table} SET {name} = {name}" for name in columns_of(played, table)]
    statements += [f"DELETE FROM {table}", f"DELETE FROM {table} WHERE owner_id = 'user:ana'"]
    copy = copied(played, table)
    conflict = {
        "ledger_transactions": "transaction_id, owner_id",
        "ledger_entries": "transaction_id, owner_id, account_id, bucket",
    }
    # SQLite reads the ON of a conflict as one of a join unless the SELECT has a WHERE.
    copy_where = copy.replace(" LIMIT 1", " WHERE true") if " WHERE " not in copy else copy.replace(" LIMIT 1", "")
    statements.append(f"{copy_where} ON CONFLICT ({conflict[table]}) DO UPDATE SET owner_id = 'user:eve'")
    if played.database.is_sqlite:
        statements += [
            copied(played, table, "REPLACE"),
            copied(played, table, "INSERT OR REPLACE", owner_id="owner_id"),
        ]
        statements.append(f"UPDATE OR REPLACE {table} SET owner_id = 'user:eve'")
    else:
        statements += [f"TRUNCATE {table}", f"TRUNCATE {', '.join(LEDGER)}", f"TRUNCATE {table} CASCADE"]
        statements += [f"UPDATE {table} SET owner_id = 'user:eve' WHERE false"]
    with rows_stay(played):
        for statement in statements:
            with pytest.raises(DBAPIError, match="append-only"):
                execute(played, statement)


def test_a_key_cannot_be_replaced_in_the_ledger_either(sqlite_url: str) -> None:
    """Only SQLite replaces, and a transaction can be replaced by its key as well as by its id."""
    with Database(sqlite_url) as database:
        world = World(database)
        world.credit()
        with rows_stay(world), pytest.raises(DBAPIError, match="append-only"):
            execute(world, copied(world, "ledger_transactions", "REPLACE", transaction_id=f"'{uuid4()}'"))


ATTACKS = {
    "user_wallets": [
        "available = -1",
        "escrow = -1",
        "available = -1, escrow = 6",
        f"available = {MAX_POINTS}",
        f"available = {MAX_POINTS}, escrow = 1",
        "paying = -1",
        f"paying = {MAX_POINTS}, available = 1",
        "version = 0",
        "version = -1",
        *(
            f"{name} = NULL"
            for name in ("available", "escrow", "paying", "state", "version", "created_at", "updated_at", "owner_id")
        ),
    ],
    "model_wallets": [
        "earned = -1",
        f"earned = {MAX_POINTS + 1}",
        "paying = -1",
        f"earned = {MAX_POINTS}, paying = 1",
        "version = 0",
        *(
            f"{name} = NULL"
            for name in ("earned", "paying", "state", "version", "created_at", "updated_at", "owner_id")
        ),
    ],
    "escrow_items": [
        "amount = 0",
        "amount = -1",
        f"amount = {MAX_POINTS + 1}",
        "status = NULL",
        "status = 'settled'",
        "status = 'settled', settled_amount = amount",
        "status = 'settled', settled_amount = amount - 1, refunded_amount = 0, processed_at = created_at",
        "status = 'refunded', settled_amount = 0, refunded_amount = amount + 1, processed_at = created_at",
        "status = 'partially_settled', settled_amount = -1, refunded_amount = amount + 1, processed_at = created_at",
        "status = 'held', settled_amount = 1, refunded_amount = 0, processed_at = NULL",
        "status = 'held', settled_amount = 0, refunded_amount = 1, processed_at = NULL",
        "status = 'held', settled_amount = 0, refunded_amount = 0, processed_at = created_at",
        *(f"{name} = NULL" for name in ("amount", "settled_amount", "refunded_amount", "created_at", "owner_id")),
        # Statuses are open, and yet a hold is whole until it is over, and then all of it is gone.
        "status = 'disputed', settled_amount = 1",
        "status = 'disputed', refunded_amount = 1",
        "status = 'expired', processed_at = created_at",
        "status = 'expired', refunded_amount = amount - 1, processed_at = created_at",
        "status = 'expired', refunded_amount = amount + 1, processed_at = created_at",
    ],
    "deposit_claims": [
        "amount = 0",
        "amount = -1",
        f"amount = {MAX_POINTS + 1}",
        *(
            f"{name} = NULL"
            for name in ("source", "reference", "owner_id", "transaction_id", "currency", "amount", "created_at")
        ),
    ],
}


def accepted(world: World, *statements: str) -> list[str]:
    """Those of the statements that the database's constraints let through; each is rolled back."""

    def accepts(statement: str) -> bool:
        with world.database.engine.connect() as connection:
            try:
                connection.execute(text(statement))
            except IntegrityError:
                return False
            finally:
                connection.rollback()
        return True

    return [statement for statement in statements if accepts(statement)]


def test_the_database_refuses_rows_that_break_a_promise(played: World) -> None:
    for table, attacks in ATTACKS.items():
        # Only held items: an ended one would be refused for another reason.
        which = " WHERE status = 'held'" if table == "escrow_items" else ""
        assert accepted(played, f"UPDATE {table} SET created_at = created_at{which}"), "the harmless goes through"
        assert accepted(played, *(f"UPDATE {table} SET {attack}{which}" for attack in attacks)) == []


def test_the_lists_of_statuses_and_states_stay_open(played: World) -> None:
    """Disputes, expiry, suspended and closed wallets come without a change of the schema."""
    statements = [
        "UPDATE escrow_items SET status = 'disputed', expires_at = created_at WHERE status = 'held'",
        "UPDATE escrow_items SET status = 'expired', refunded_amount = amount, processed_at = created_at"
        " WHERE status = 'held'",
        *(f"UPDATE {table} SET state = 'suspended', paying = 1" for table in ("user_wallets", "model_wallets")),
    ]
    assert accepted(played, *statements) == statements


OTHER_ID = f"'{uuid4()}'"
BROKEN_ENTRIES: list[dict[str, str]] = [
    {"amount": "0"},
    {"amount": "0", "balance_before": "NULL", "balance_after": "NULL", "wallet_version": "NULL"},
    {"amount": "amount + 1"},
    {"balance_after": "balance_after - 1"},
    {"balance_before": "-1", "balance_after": "amount - 1"},
    {"amount": "-1", "balance_before": "0", "balance_after": "-1"},
    {"wallet_version": "0"},
    {"wallet_version": "-1"},
    {"balance_before": "NULL"},
    {"balance_after": "NULL"},
    {"wallet_version": "NULL"},
    {"balance_before": "NULL", "balance_after": "NULL"},
    {"balance_after": "NULL", "wallet_version": "NULL"},
    {"balance_before": "NULL", "wallet_version": "NULL"},
    *({name: "NULL"} for name in ("transaction_id", "account_id", "bucket", "owner_id", "currency", "amount")),
    {"posted_at": "NULL"},
]


def test_the_database_refuses_an_entry_that_does_not_add_up(world: World) -> None:
    world.credit()
    other = {"transaction_id": OTHER_ID, "wallet_version": "wallet_version + 7"}
    whole = copied(world, "ledger_entries", **other)
    assert accepted(world, whole) == [whole]
    assert accepted(world, copied(world, "ledger_entries", transaction_id=OTHER_ID)) == [], "a version posted twice"
    touch = copied(world, "ledger_entries", **other, amount="0", balance_after="balance_before")
    assert accepted(world, touch) == [touch], "a wallet may be touched, and nothing move"
    broken = [copied(world, "ledger_entries", **{**other, **attack}) for attack in BROKEN_ENTRIES]
    assert accepted(world, *broken) == []


def test_the_database_refuses_every_second_row_of_one_key(played: World) -> None:
    twins: list[tuple[str, dict[str, str]]] = [
        ("ledger_transactions", {}),
        ("ledger_transactions", {"transaction_id": OTHER_ID}),
        ("ledger_transactions", {"transaction_id": OTHER_ID, "request_id": "'other'", "currency": "'gems'"}),
        ("ledger_transactions", {"idempotency_key": "'other'"}),
        ("ledger_entries", {}),
        ("ledger_entries", {"currency": "'gems'", "wallet_version": "wallet_version + 7"}),
        ("ledger_entries", {"owner_id": "'user:eve'"}),
        ("ledger_entries", {"transaction_id": OTHER_ID}),
        ("user_wallets", {"available": "0"}),
        ("model_wallets", {"earned": "0"}),
        ("escrow_items", {"amount": "1"}),
        ("deposit_claims", {"owner_id": "'user:eve'", "transaction_id": OTHER_ID, "amount": "1"}),
    ]
    with rows_stay(played):
        for table, changes in twins:
            with pytest.raises(IntegrityError, match=r"(?i)unique"):
                execute(played, copied(played, table, **changes))
        for name in ("transaction_id", "owner_id", "operation", "idempotency_key", "request_id", "reason", "currency"):
            with pytest.raises(IntegrityError):
                execute(played, copied(played, "ledger_transactions", **{name: "NULL"}))


def test_the_list_of_operations_reasons_and_buckets_stays_open(world: World) -> None:
    """Fees, payouts and corrections come without a change of the schema."""
    world.credit()
    payout = {"transaction_id": OTHER_ID, "operation": "'payout'", "reason": "'monthly'"}
    statements = [
        copied(world, "ledger_transactions", **payout),
        copied(world, "ledger_entries", transaction_id=OTHER_ID, bucket="'fees'"),
    ]
    assert accepted(world, *statements) == statements


Move = Movement | Touch


def draft(operation: str, *moves: Move, **changes: Any) -> TransactionDraft:
    header: dict[str, Any] = {
        "transaction_id": str(uuid4()),
        "owner_id": "user:ana",
        "operation": operation,
        "idempotency_key": "key",
        "request_id": "request",
        "reason": "top_up",
        "currency": "points",
    }
    return TransactionDraft(**(header | changes), moves=moves)


BEN = available("ben")
# What each operation of ana's may do, written by hand: the chart is asked about it.
LEGAL: dict[str, list[Move]] = {
    "credit": [Movement(ISSUER, ANA, 5)],
    "deposit": [Movement(ISSUER, ANA, 5)],
    "hold": [Movement(ANA, escrow("ana"), 5)],
    "settle": [Movement(escrow("ana"), LUNA, 5)],
    "refund": [Movement(escrow("ana"), ANA, 5)],
    "partial_settle": [Movement(escrow("ana"), ANA, 2), Movement(escrow("ana"), LUNA, 3)],
    "spend": [Movement(ANA, REVENUE, 5)],
    "transfer": [Movement(ANA, BEN, 5)],
    "open": [Touch(ANA)],
}
ALIKE = {"credit": "deposit", "deposit": "credit"}


def allowed(operation: str, moves: Sequence[Move], owner_id: str = "user:ana", model_id: str | None = "luna") -> bool:
    return is_legal(operation, owner_id, model_id, moves)


def test_the_chart_knows_these_operations_and_no_others() -> None:
    assert set(CHART) == set(LEGAL) == set(OPERATIONS)


def test_each_operation_makes_its_own_moves_and_no_others() -> None:
    for operation in LEGAL:
        for other, moves in LEGAL.items():
            assert allowed(operation, moves) is (other in (operation, ALIKE.get(operation)))
            reversed_ = [Movement(m.target, m.source, m.amount) for m in moves if isinstance(m, Movement)]
            assert not allowed(operation, reversed_) or (operation, other) in {("hold", "refund"), ("refund", "hold")}
    assert allowed("partial_settle", LEGAL["partial_settle"][::-1])
    assert allowed("open", [Touch(LUNA)], owner_id="model:luna", model_id=None)


STRANGE_USER, STRANGE_MODEL = Account("model:ana", Bucket.AVAILABLE), Account("user:luna", Bucket.EARNED)
ILLEGAL: dict[str, tuple[str, list[Move]]] = {
    "none": ("hold", []),
    "none, where nothing has to move": ("open", []),
    "twice": ("credit", LEGAL["credit"] * 2),
    "touched twice": ("open", LEGAL["open"] * 2),
    "half a split": ("partial_settle", LEGAL["partial_settle"][:1]),
    "the other half of a split": ("partial_settle", LEGAL["partial_settle"][1:]),
    "a split and more": ("partial_settle", LEGAL["partial_settle"] + LEGAL["hold"]),
    "the same half twice": ("partial_settle", LEGAL["partial_settle"][:1] * 2),
    "the other half twice": ("partial_settle", LEGAL["partial_settle"][1:] * 2),
    "nothing moves": ("credit", [Movement(ISSUER, ANA, 0)]),
    "less than nothing": ("credit", [Movement(ISSUER, ANA, -5)]),
    "from available to a model": ("settle", [Movement(ANA, LUNA, 5)]),
    "out of a model": ("refund", [Movement(LUNA, ANA, 5)]),
    "to the issuer": ("credit", [Movement(ANA, ISSUER, 5)]),
    "an available balance of a model": ("credit", [Movement(ISSUER, STRANGE_USER, 5)]),
    "an earned balance of a user": ("settle", [Movement(escrow("ana"), STRANGE_MODEL, 5)]),
    "issued by a user": ("credit", [Movement(Account("user:eve", Bucket.ISSUED), ANA, 5)]),
    "issued as revenue": ("credit", [Movement(REVENUE, ANA, 5)]),
    "issued from a bucket that is not the issuer's": (
        "credit",
        [Movement(Account("platform:issuer", Bucket.REVENUE), ANA, 5)],
    ),
    "credited to another": ("credit", [Movement(ISSUER, BEN, 5)]),
    "deposited for another": ("deposit", [Movement(ISSUER, BEN, 5)]),
    "held for another": ("hold", [Movement(ANA, escrow("ben"), 5)]),
    "another's hold": ("refund", [Movement(escrow("ben"), ANA, 5)]),
    "refunded to another": ("refund", [Movement(escrow("ana"), BEN, 5)]),
    "settled to a model that is not named": ("settle", [Movement(escrow("ana"), earned("sol"), 5)]),
    "spent by another": ("spend", [Movement(BEN, REVENUE, 5)]),
    "spent out of escrow": ("spend", [Movement(escrow("ana"), REVENUE, 5)]),
    "spent to the issuer": ("spend", [Movement(ANA, ISSUER, 5)]),
    "taken from another": ("transfer", [Movement(BEN, ANA, 5)]),
    "transferred between others": ("transfer", [Movement(BEN, available("cleo"), 5)]),
    "transferred to oneself": ("transfer", [Movement(ANA, ANA, 5)]),
    "transferred to two": ("transfer", [Movement(ANA, BEN, 5), Movement(ANA, available("cleo"), 5)]),
    "transferred into escrow": ("transfer", [Movement(ANA, escrow("ben"), 5)]),
    "transferred to a model": ("transfer", [Movement(ANA, LUNA, 5)]),
    "another's wallet opened": ("open", [Touch(BEN)]),
    "a bucket touched that is not the first": ("open", [Touch(escrow("ana"))]),
    "the issuer touched": ("open", [Touch(ISSUER)]),
    "a touch where points must move": ("credit", [Touch(ANA)]),
    "a touch beside what moves": ("credit", [*LEGAL["credit"], Touch(escrow("ana"))]),
    "points moved where none may": ("open", LEGAL["credit"]),
    "owner without a kind": ("credit", [Movement(ISSUER, Account("ana", Bucket.AVAILABLE), 5)]),
    "owner of a longer kind": ("credit", [Movement(ISSUER, Account("users:ana", Bucket.AVAILABLE), 5)]),
    "an unknown operation": ("payout", [Movement(ISSUER, ANA, 5)]),
}


@pytest.mark.parametrize(("operation", "moves"), ILLEGAL.values(), ids=ILLEGAL.keys())
def test_an_illegal_move_is_never_recorded(sqlite_url: str, operation: str, moves: list[Move]) -> None:
    """The refusal is the rule's and not the engine's, so one engine is enough."""
    with Database(sqlite_url) as database:
        world = World(database)
        state = WalletState(balances=dict.fromkeys(Bucket, 5), version=1, posted_at=NOON)
        wallets = dict.fromkeys(net(moves).wallets, state)
        with rows_stay(world), database.engine.begin() as connection, pytest.raises(ValueError, match="must not"):
            LedgerService(database).record(
                connection, [post(draft(operation, *moves, model_id="luna"), wallets, at=NOON)]
            )


def test_a_movement_without_its_wallet_is_never_recorded(sqlite_url: str) -> None:
    """An entry of a user or a model without a balance would be taken for one of the platform's."""
    with Database(sqlite_url) as database:
        world = World(database)
        given = draft("credit", *LEGAL["credit"])
        with (
            rows_stay(world),
            database.engine.begin() as connection,
            pytest.raises(ValueError, match="without the wallet"),
        ):
            LedgerService(database).record(connection, [post(given, {}, at=NOON)])


def test_movements_between_the_same_accounts_add_up() -> None:
    several = [Movement(ISSUER, ANA, 2), Movement(ISSUER, ANA, 3), Movement(ANA, escrow("ana"), 1)]
    assert net(several) == ({"user:ana": {Bucket.AVAILABLE: 4, Bucket.ESCROW: 1}}, {ISSUER: -5})
    assert net([]) == ({}, {})
    assert net([Touch(ANA)]) == ({"user:ana": {Bucket.AVAILABLE: 0}}, {})
    touched = net([Touch(ANA), Movement(ISSUER, ANA, 2), Touch(LUNA), Movement(ANA, REVENUE, 1)])
    wallets = {"user:ana": {Bucket.AVAILABLE: 1}, "model:luna": {Bucket.EARNED: 0}}
    assert touched == (wallets, {ISSUER: -2, REVENUE: 1})


def test_a_recorded_transaction_is_read_as_it_was_written(url: str) -> None:
    with Database(url) as database:
        ledger = LedgerService(database)
        wallets = {
            "user:ana": WalletState(balances={Bucket.AVAILABLE: 12, Bucket.ESCROW: 0}, version=7, posted_at=NOON),
            "model:luna": WalletState(balances={Bucket.EARNED: 3}, version=1, posted_at=NOON + timedelta(seconds=1)),
        }
        given = draft(
            "partial_settle",
            *LEGAL["partial_settle"],
            escrow_id=str(uuid4()),
            queue_item_id="queue-1",
            feature_type="song",
            model_id="luna",
            authorization_id="jti",
            metadata_json='{"a":1}',
            details_json='{"order_id":"order-1"}',
        )
        with database.engine.begin() as connection:
            written = post(given, wallets, at=NOON)
            ledger.record(connection, [written])
        read = ledger.transaction(given.transaction_id)
    assert read == written
    header = {name: value for name, value in vars(given).items() if name not in {"moves", "changes"}}
    assert {name: getattr(read, name) for name in header} == header
    for account, amount, after in ((ANA, 2, 12), (escrow("ana"), -5, 0), (LUNA, 3, 3)):
        entry = written.entry(account)
        assert (entry.amount, entry.balance_before, entry.balance_after) == (amount, after - amount, after)
        assert entry.wallet_version == (1 if account == LUNA else 7)
        assert entry.posted_at == wallets[account.account_id].posted_at
    with pytest.raises(KeyError):
        written.entry(ISSUER)
    with pytest.raises(FrozenInstanceError):
        written.reason = "other"  # type: ignore[misc]


def test_a_transaction_that_is_not_committed_has_not_happened(world: World) -> None:
    given = draft("credit", *LEGAL["credit"])
    with rows_stay(world), world.database.engine.connect() as connection:
        state = WalletState(balances={Bucket.AVAILABLE: 5}, version=1, posted_at=NOON)
        world.ledger.record(connection, [post(given, {"user:ana": state}, at=NOON)])
        connection.rollback()
    assert world.ledger.transaction(given.transaction_id) is None


def test_a_transaction_is_found_by_its_id_only(played: World) -> None:
    lines = played.ledger.entries("user:ana", "points").items
    ids = sorted({line.transaction_id for line in lines})
    assert [found.transaction_id for found in played.ledger.transactions([*reversed(ids), str(uuid4())])] == ids
    unknown_ids = [str(uuid4()) for _ in range(CHUNK)]
    found = played.ledger.transactions([*ids, *unknown_ids, *ids])
    assert [each.transaction_id for each in found] == ids, "read in two chunks, each given once"
    assert played.ledger.transactions([]) == []
    for unknown in (str(uuid4()), ids[0].upper(), "no uuid"):
        assert played.ledger.transaction(unknown) is None
    wrong: Any
    for wrong in ("", None, 5, "a\x00", "x" * 129):
        with pytest.raises(InvalidRequestError) as refusal:
            played.ledger.transaction(wrong)
        assert (refusal.value.details["field"], refusal.value.details["value"]) == ("transaction_id", told(wrong))
        with pytest.raises(InvalidRequestError) as refusal:
            played.ledger.transactions(wrong)
        assert (refusal.value.details["field"], refusal.value.details["value"]) == ("transaction_ids", told(wrong))


def test_a_statement_line_says_what_happened(world: World) -> None:
    with freeze_time(NOON):
        world.credit(amount=100)
        held = world.hold(idempotency_key="key-h", request_id="request-h")
    (line,) = world.ledger.entries("user:ana", "points", bucket="escrow").items
    assert line == StatementLine(
        account_id="user:ana",
        bucket="escrow",
        amount=30,
        balance_before=0,
        balance_after=30,
        wallet_version=2,
        posted_at=NOON,
        transaction_id=held.transaction_id,
        operation="hold",
        reason="performance_request",
        currency="points",
        request_id="request-h",
        idempotency_key="key-h",
        escrow_id=held.escrow_id,
        queue_item_id="queue-1",
        feature_type="song",
        model_id=None,
        metadata_json=None,
    )


def paged(world: World, account_id: str, limit: int, **options: Any) -> list[StatementLine]:
    found: list[StatementLine] = []
    after = None
    while True:
        page = world.ledger.entries(account_id, "points", limit=limit, after=after, **options)
        assert not set(page.items) & set(found), "a page repeats what an earlier one had"
        found += page.items
        assert len(page.items) == limit or page.next is None
        if (after := page.next) is None:
            return found


def test_statements_page_while_a_host_has_frozen_its_clock(played: World) -> None:
    """Where ``freezegun`` puts a class of its own in the place of ``datetime``."""
    expected = paged(played, "user:ana", 50)
    before = played.ledger.entries("user:ana", "points", limit=3).next
    with freeze_time(NOON):
        assert paged(played, "user:ana", 3) == expected
        assert played.ledger.entries("user:ana", "points", limit=50, after=before).items == tuple(expected[3:])
        inside = played.ledger.entries("user:ana", "points", limit=3).next
    assert inside == before


def test_statements_page_in_both_directions_per_bucket_and_for_the_whole_owner(world: World) -> None:
    """Half of the entries share one time, and another currency lies between them."""
    with freeze_time(NOON):
        for amount in (1, 2, 30):
            world.credit(amount=amount)
            world.credit(amount=amount, currency="gems")
    for _ in range(2):
        world.settle(world.hold(amount=3).escrow_id, 3)
        world.partial_settle(world.hold(amount=5).escrow_id, 1, 4)
    expected: dict[tuple[str, str | None], list[int]] = {
        ("user:ana", "available"): [1, 2, 30, -3, -5, 1, -3, -5, 1],
        ("user:ana", "escrow"): [3, -3, 5, -5, 3, -3, 5, -5],
        ("user:ana", None): [1, 2, 30, -3, 3, -3, -5, 5, 1, -5, -3, 3, -3, -5, 5, 1, -5],
        ("model:luna", "earned"): [3, 4, 3, 4],
        ("model:luna", None): [3, 4, 3, 4],
        ("platform:issuer", "issued"): [-1, -2, -30],
        ("platform:issuer", None): [-1, -2, -30],
        ("user:ben", None): [],
    }
    for (account_id, bucket), amounts in expected.items():
        for limit in (1, 2, 3, 1000):
            oldest = paged(world, account_id, limit, bucket=bucket)
            newest = paged(world, account_id, limit, bucket=bucket, newest_first=True)
            assert [line.amount for line in oldest] == amounts, (account_id, bucket, limit)
            assert newest == oldest[::-1]


def test_the_platforms_statements_have_no_balances(played: World) -> None:
    lines = played.ledger.entries("platform:issuer", "points", bucket="issued").items
    assert [(line.amount, line.operation) for line in lines] == [(-100, "credit"), (-50, "deposit")]
    lines += played.ledger.entries("platform:revenue", "points").items
    assert [(line.amount, line.operation) for line in lines[2:]] == [(20, "spend")]
    assert {(line.balance_before, line.balance_after, line.wallet_version) for line in lines} == {(None, None, None)}


def test_pages_of_a_statement_stay_right_while_entries_arrive_and_clocks_go_backwards(world: World) -> None:
    for amount in (1, 2, 3, 4):
        world.credit(amount=amount)
    oldest = world.ledger.entries("user:ana", "points", limit=2)
    newest = world.ledger.entries("user:ana", "points", limit=2, newest_first=True)
    with freeze_time(datetime.now(UTC) - timedelta(days=1)):
        world.credit(amount=5)
    rest = world.ledger.entries("user:ana", "points", after=oldest.next)
    before = world.ledger.entries("user:ana", "points", after=newest.next, newest_first=True)
    assert [line.amount for line in oldest.items + rest.items] == [1, 2, 3, 4, 5]
    assert [line.amount for line in newest.items + before.items] == [4, 3, 2, 1]


def test_names_in_a_statement_are_compared_by_every_character(played: World) -> None:
    for other in ("user:Ana", "user:an", "user:ana ", "user:luna", "model:ana", "user:%"):
        assert played.ledger.entries(other, "points").items == ()
    assert played.ledger.entries("user:ana", "gems").items == ()


NO_STATEMENT: list[tuple[str, list[Any]]] = [
    ("account_id", ["", "ana", "user", "user:", ":ana", "USER:ana", "fan:ana", None, 5, b"user:ana", [], True]),
    ("account_id", ["user:" + "x" * 129, "user:a\x00", "user:a\n", "user:\ud800"]),
    ("account_id", ["platform", "platform:", "platform:other", "platform:Issuer", "platform:revenue "]),
    ("currency", ["", "Points", None, 5, "points\n", "x" * 33]),
    ("bucket", ["", "earned", "issued", "AVAILABLE", 5, [], True]),
    ("limit", [0, -1, 1001, True, 1.0, None, "5"]),
    ("after", ["", "x", 5, True, b"x", "é", encode_cursor("an id"), encode_cursor(NOON, 1, "id")]),
    (
        "after",
        [
            encode_cursor("now", 1, "id", "available"),
            encode_cursor("2026-03-01", 1, "id", "available"),
            encode_cursor("0001-01-01T00:00:00+14:00", 1, "id", "available"),
            encode_cursor(NOON, "1", "id", "available"),
            encode_cursor(NOON, -1, "id", "available"),
            encode_cursor(NOON, 2**63, "id", "available"),
            encode_cursor(NOON, True, "id", "available"),
            encode_cursor(NOON, 1, 7, "available"),
            encode_cursor(NOON, 1, "id", "\x00"),
            encode_cursor(NOON, 1, "id", "available", "more"),
        ],
    ),
]


def test_a_statement_refuses_what_it_cannot_understand(world: World) -> None:
    for name, value in ((name, value) for name, values in NO_STATEMENT for value in values):
        options: dict[str, Any] = {"account_id": "user:ana", "currency": "points", name: value}
        with pytest.raises(InvalidRequestError) as refusal:
            world.ledger.entries(**options)
        assert refusal.value.details["field"] == name
        if not (name == "account_id" and isinstance(value, str)):
            assert refusal.value.details["value"] == told(value)


def test_a_bucket_belongs_to_one_kind_of_owner(world: World) -> None:
    for account_id, bucket in (("model:luna", "available"), ("model:luna", "escrow"), ("platform:issuer", "earned")):
        with pytest.raises(InvalidRequestError) as refusal:
            world.ledger.entries(account_id, "points", bucket=bucket)
        assert (refusal.value.details["field"], refusal.value.details["value"]) == ("bucket", bucket)
