"""Verifying: a database that was only ever used has no finding; every damage that goes around the walls has one."""

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from unittest.mock import ANY

import pytest
from sqlalchemy import (
    URL,
    Connection,
    Executable,
    Table,
    create_engine,
    delete,
    func,
    insert,
    literal_column,
    make_url,
    select,
    text,
    update,
)

from points_platform.core import Base, Database
from points_platform.core.values import now
from points_platform.ledger import LedgerService, LogHead
from points_platform.ledger import verify as ledger_verify
from points_platform.ledger.accounts import CHART
from points_platform.ledger.models import ENTRIES, LOG, TRANSACTIONS
from points_platform.ledger.verify import Finding
from points_platform.wallets import verify as wallets_verify
from points_platform.wallets.models import DEPOSIT_CLAIMS, ESCROW_ITEMS, MODEL_WALLETS, USER_WALLETS
from points_platform.wallets.verify import verify
from support.world import World, at_once

OF_WALLS = "triggers, constraints and indexes"
WALLS = {"trigger_missing", "constraint_missing", "index_missing"}
SEALS = {"seal_broken", "log_gap", "sealed_transaction_missing"}
EARLY_ID = "01890a5d-ac96-774b-bcce-b302099a8057"
TABLES = Base.metadata.sorted_tables
METADATA = {"title": 'Für \u2028 \0 "Elise" 🎤', "n": 2**60}

Expected = tuple[str, dict[str, Any], Any, Any]


@dataclass
class Played:
    """A sealed evening in which each operation has happened, and what its transactions are called here."""

    world: World
    url: URL
    ids: dict[str, str] = field(default_factory=dict)
    items: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._play()
        self.head = self.world.ledger.seal().head
        log = self.world.ledger.read_log(limit=100)
        names = {id_: name for name, id_ in self.ids.items()}
        self.positions = {names[entry.transaction.transaction_id]: entry.position for entry in log}
        self.engine = create_engine(self.url)
        with self.engine.connect() as connection:
            self.rows = {table: rows_of(connection, table) for table in TABLES}

    def _play(self) -> None:
        send = self.world
        self.ids["credit ana"] = send.credit("ana", 100).transaction_id
        self.ids["credit ben"] = send.credit("ben", 50).transaction_id
        for name, user_id, amount, options in (
            ("1", "ana", 30, {"metadata": METADATA}),
            ("2", "ana", 10, {}),
            ("3", "ben", 20, {}),
            ("4", "ana", 5, {}),
        ):
            held = send.hold(user_id, amount, **options)
            self.ids[f"hold {name}"], self.items[name] = held.transaction_id, held.escrow_id
        self.ids["settle 1"] = send.settle(self.items["1"], 30).transaction_id
        self.ids["refund 2"] = send.refund(self.items["2"], 10).transaction_id
        self.ids["partial 3"] = send.partial_settle(self.items["3"], 7, 13, user_id="ben").transaction_id
        self.ids["deposit"] = send.deposit("cleo", 60, reference="payment-1").transaction_id
        self.ids["spend"] = send.spend("cleo", 15, order_id="order-1").transaction_id
        self.ids["transfer"] = send.transfer("cleo", 20, recipient_id="dora").transaction_id
        self.ids["open model"] = send.open("model:sol").transaction_id
        self.ids["open user"] = send.open("user:cleo").transaction_id
        self.ids["credit gems"] = send.credit("ana", 20, currency="gems").transaction_id
        held = send.hold("ana", 5, currency="gems")
        self.ids["hold gems"], self.items["gems"] = held.transaction_id, held.escrow_id

    # ── statements that no service would make ──

    def entry(self, name: str, bucket: str, **values: Any) -> Executable:
        mine = (ENTRIES.c.transaction_id == self.ids[name], ENTRIES.c.bucket == bucket)
        return update(ENTRIES).where(*mine).values(values)

    def moved_entry(self, name: str, bucket: str, to: str, **values: Any) -> Executable:
        mine = (ENTRIES.c.transaction_id == self.ids[name], ENTRIES.c.bucket == bucket)
        return update(ENTRIES).where(*mine).values(bucket=to, **values)

    def transaction(self, name: str, **values: Any) -> Executable:
        return update(TRANSACTIONS).where(TRANSACTIONS.c.transaction_id == self.ids[name]).values(values)

    def sealed(self, name: str, **values: Any) -> Executable:
        return update(LOG).where(LOG.c.position == self.positions[name]).values(values)

    def item(self, name: str, **values: Any) -> Executable:
        return update(ESCROW_ITEMS).where(ESCROW_ITEMS.c.escrow_id == self.items[name]).values(values)

    def without_transaction(self, name: str) -> list[Executable]:
        of = (table for table in (ENTRIES, TRANSACTIONS))
        return [delete(table).where(table.c.transaction_id == self.ids[name]) for table in of]

    def copied(self, table: Table, where: Any, **changes: Any) -> Executable:
        """Insert rows that are like others but for the changes."""
        row = next(row for row in self.rows[table] if all(row[name] == value for name, value in where.items()))
        return insert(table).values(row | changes)

    # ── what verify must say ──

    def of_entry(self, name: str, bucket: str) -> dict[str, Any]:
        row = next(
            row for row in self.rows[ENTRIES] if (row["transaction_id"], row["bucket"]) == (self.ids[name], bucket)
        )
        return {key: row[key] for key in ("account_id", "currency", "bucket", "wallet_version", "transaction_id")}

    def of_version(self, name: str, bucket: str) -> dict[str, Any]:
        """A version has one entry or two, and the finding names either."""
        return {key: value for key, value in self.of_entry(name, bucket).items() if key != "bucket"}

    def of(self, name: str) -> dict[str, str]:
        return {"transaction_id": self.ids[name]}

    def at(self, name: str) -> dict[str, Any]:
        return {"position": self.positions[name], "transaction_id": self.ids[name]}

    def broken(self, name: str) -> Expected:
        return "seal_broken", self.at(name), ANY, self.hash(name)

    def hash(self, name: str) -> str:
        return next(str(row["hash"]) for row in self.rows[LOG] if row["position"] == self.positions[name])

    # ── going around the walls, on connections of their own ──

    def tamper(self, *statements: Executable) -> None:
        with self.engine.begin() as connection:
            if self.engine.dialect.name == "sqlite":
                connection.execute(text("PRAGMA ignore_check_constraints = ON"))
            for statement in statements:
                connection.execute(statement)

    def restore(self) -> None:
        self.tamper(*(delete(table) for table in TABLES))
        with self.engine.begin() as connection:
            for table, rows in self.rows.items():
                if rows:
                    connection.execute(insert(table), rows)


def rows_of(connection: Connection, table: Table) -> list[dict[str, Any]]:
    names = [column.key for column in table.c]
    return [dict(zip(names, row, strict=True)) for row in connection.execute(select(table))]


def pull_down_the_walls(connection: Connection) -> None:
    if connection.dialect.name == "sqlite":
        for name in connection.scalars(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).all():
            connection.execute(text(f"DROP TRIGGER {name}"))
        return
    for table in (TRANSACTIONS, ENTRIES, LOG):
        connection.execute(text(f"ALTER TABLE {table.name} DISABLE TRIGGER ALL"))
    walls = text("SELECT conrelid::regclass::text, conname FROM pg_constraint WHERE contype = 'c' AND conrelid <> 0")
    for table_name, constraint in connection.execute(walls).all():
        if table_name in Base.metadata.tables:
            connection.execute(text(f"ALTER TABLE {table_name} DROP CONSTRAINT {constraint}"))
    connection.execute(text("ALTER TABLE ledger_entries DROP CONSTRAINT ledger_entries_version"))


def play_on(url: str) -> Iterator[Played]:
    with Database(url, clock=now) as database:
        played = Played(World(database), make_url(url))
        with played.engine.begin() as connection:
            pull_down_the_walls(connection)
        yield played
        played.engine.dispose()


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def evening(request: pytest.FixtureRequest) -> Iterator[Played]:
    databases = request.getfixturevalue(f"{request.param}_databases")
    with databases.fresh() as url:
        yield from play_on(url)


@pytest.fixture
def played(evening: Played) -> Iterator[Played]:
    """The one evening of the module, put back as it was after each test."""
    yield evening
    evening.restore()


def findings(played: Played, **options: Any) -> list[Finding]:
    """But for the walls, which were pulled down to get at the rows."""
    found = verify(played.world.database, **options)
    return [each for each in found if each.kind not in WALLS and each.ids != {"check": OF_WALLS}]


def matches(wanted: Any, found: Any) -> bool:
    """Equal, or, of two rows, at least what is wanted."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        return all(name in found and found[name] == value for name, value in wanted.items())
    return bool(wanted == found)


def is_named(wanted: Expected, found: Sequence[Finding]) -> bool:
    kind, *values = wanted
    return any(each.kind == kind and all(map(matches, values, (each.ids, each.expected, each.found))) for each in found)


# ── what is right has no finding ──────────────────────────────────────────────────────────────────


def test_an_evening_that_was_only_played_has_no_finding(played: Played) -> None:
    checks: list[str] = []
    assert findings(played, head=played.head, progress=checks.append) == []
    assert sorted(checks) == [
        "accounts and versions",
        "beginnings of escrow items",
        "deposits",
        "ends of escrow items",
        "entries",
        "held escrow",
        "idempotency keys",
        "seals",
        "times",
        "transactions",
        OF_WALLS,
        "wallets, escrow items and claims",
    ]
    for since in range(played.head.position + 1):
        assert findings(played, since=since, head=played.head) == []


def test_what_is_not_sealed_yet_is_checked_and_right(played: Played) -> None:
    played.tamper(delete(LOG).where(LOG.c.position > 6))
    assert findings(played) == []
    played.tamper(delete(LOG))
    assert findings(played) == []
    assert findings(played, head=played.world.ledger.seal().head) == []


def test_every_head_that_the_log_ever_had_is_accepted(played: Played) -> None:
    genesis = LogHead(position=0, hash="0" * 64)
    heads = [genesis, *(LogHead(position=row["position"], hash=row["hash"]) for row in played.rows[LOG])]
    for head in heads:
        assert findings(played, head=head) == []


def test_an_empty_database_has_no_finding(database: Database) -> None:
    assert list(verify(database, head=LogHead(position=0, hash="0" * 64))) == []


def test_a_live_database_has_no_finding_while_it_is_written_and_sealed(world: World) -> None:
    users = ("ana", "ben", "eva")
    at_once(*(partial(world.credit, user, 1000) for user in users))
    start = world.ledger.seal().head
    writing = threading.Semaphore(0)

    def write(user: str) -> None:
        for number in range(8):
            held = world.hold(user, 30, metadata={"n": number})
            end: Any = (world.settle, world.refund, world.partial_settle)[number % 3]
            end(held.escrow_id, user_id=user)
            world.credit("ana", 1)
            writing.release()

    def seal() -> None:
        for _ in range(6):
            writing.acquire(timeout=60)
            LedgerService(world.database).seal()

    def look() -> list[Finding]:
        seen: list[Finding] = []
        for since in (0, start.position, 0, start.position):
            writing.acquire(timeout=60)
            seen += verify(world.database, since=since, head=start)
        return seen

    calls: list[Callable[[], Any]] = [partial(write, user) for user in users]
    assert at_once(*calls, seal, look) == [None, None, None, None, []]
    assert list(verify(world.database, head=world.ledger.seal().head)) == []


# ── each damage is named ──────────────────────────────────────────────────────────────────────────

Damage = Callable[[Played], tuple[list[Executable], list[Expected]]]
CURRENT_ANA = {"account_id": "user:ana", "currency": "points"}
ANA = {"owner_id": "user:ana", "currency": "points"}
BEN = {"owner_id": "user:ben", "currency": "points"}
LUNA = {"owner_id": "model:luna", "currency": "points"}
CLEO, DORA, EVA = ({"owner_id": f"user:{name}", "currency": "points"} for name in ("cleo", "dora", "eva"))
SOL = {"owner_id": "model:sol", "currency": "points"}
PAID = {"source": "bank", "reference": "payment-1"}


def later(row: dict[str, Any], name: str) -> Any:
    return row[name] + timedelta(microseconds=1)


def occurred(p: Played, name: str) -> Any:
    return next(row for row in p.rows[TRANSACTIONS] if row["transaction_id"] == p.ids[name])["occurred_at"]


def of_item(p: Played, name: str, user_id: str = "ana") -> dict[str, str]:
    return {"escrow_id": p.items[name], "owner_id": f"user:{user_id}"}


def an_amount(p: Played) -> Any:
    return [p.entry("hold 1", "escrow", amount=31)], [
        ("transaction_unbalanced", p.of("hold 1"), 0, 1),
        ("balance_sum", p.of_entry("hold 1", "escrow"), 31, 30),
        p.broken("hold 1"),
        ("user_wallet_differs", ANA, {"escrow": 6}, {"escrow": 5}),
        ("escrow_item_differs", of_item(p, "1"), {"amount": 31}, {"amount": 30}),
    ]


def amounts_that_still_sum_to_zero(p: Played) -> Any:
    return [p.entry("credit ana", "available", amount=101), p.entry("credit ana", "issued", amount=-101)], [
        ("balance_sum", p.of_entry("credit ana", "available"), 101, 100),
        p.broken("credit ana"),
        ("user_wallet_differs", ANA, {"available": 66}, {"available": 65}),
    ]


def a_whole_credit_made_larger(p: Played) -> Any:
    """With the balance that follows from it: the next entry does not follow any more."""
    return [
        p.entry("credit ana", "available", amount=101, balance_after=101),
        p.entry("credit ana", "issued", amount=-101),
        update(USER_WALLETS).where(USER_WALLETS.c.owner_id == "user:ana").values(available=66),
    ], [
        ("balance_gap", p.of_entry("hold 1", "available"), 101, 100),
        p.broken("credit ana"),
        ("user_wallet_differs", {"owner_id": "user:ana", "currency": "gems"}, {"available": 15}, {"available": 66}),
    ]


def a_balance(p: Played) -> Any:
    return [p.entry("hold 2", "available", balance_after=61)], [
        ("balance_sum", p.of_entry("hold 2", "available"), 60, 61),
        p.broken("hold 2"),
    ]


def a_balance_below_zero(p: Played) -> Any:
    return [p.entry("hold gems", "available", amount=-25, balance_after=-5)], [
        ("transaction_unbalanced", p.of("hold gems"), 0, -20),
        ("balance_limit", p.of_entry("hold gems", "available"), f"0 to {2**53 - 1}", -5),
        p.broken("hold gems"),
        ("user_wallet_differs", {"owner_id": "user:ana", "currency": "gems"}, {"available": -5}, {"available": 15}),
    ]


def a_time_of_a_transaction(p: Played) -> Any:
    moved = occurred(p, "hold 4") + timedelta(microseconds=1)
    return [p.transaction("hold 4", occurred_at=moved)], [
        p.broken("hold 4"),
        ("escrow_item_differs", of_item(p, "4"), {"created_at": moved}, {"created_at": occurred(p, "hold 4")}),
    ]


def a_time_of_an_entry(p: Played) -> Any:
    return [p.entry("hold 2", "available", posted_at=occurred(p, "hold 2") + timedelta(days=1))], [
        ("posted_into_the_past", CURRENT_ANA, ANY, ANY),
        ("from_the_future", {"transaction_id": p.ids["hold 2"]}, ANY, ANY),
        p.broken("hold 2"),
        ("user_wallet_differs", ANA, ANY, ANY),
    ]


def a_reason(p: Played) -> Any:
    return [p.transaction("credit ben", reason="gift")], [p.broken("credit ben")]


def a_request_id(p: Played) -> Any:
    return [p.transaction("settle 1", request_id="other")], [p.broken("settle 1")]


def metadata(p: Played) -> Any:
    return [p.transaction("credit ben", metadata_json="{}")], [p.broken("credit ben")]


def the_metadata_of_a_hold(p: Played) -> Any:
    return [p.transaction("hold 1", metadata_json=None)], [
        p.broken("hold 1"),
        ("escrow_item_differs", of_item(p, "1"), {"metadata_json": None}, {"metadata_json": ANY}),
    ]


def an_authorization_removed(p: Played) -> Any:
    return [p.transaction("settle 1", authorization_id=None)], [
        ("authorization", p.of("settle 1"), "an authorization", None),
        p.broken("settle 1"),
    ]


def an_authorization_where_none_belongs(p: Played) -> Any:
    return [p.transaction("credit ana", authorization_id="jti")], [
        ("authorization", p.of("credit ana"), None, "jti"),
        p.broken("credit ana"),
    ]


def an_escrow_id_removed(p: Played) -> Any:
    return [p.transaction("refund 2", escrow_id=None)], [
        ("transaction_escrow", p.of("refund 2"), "an escrow item", None),
        p.broken("refund 2"),
        ("escrow_item_differs", of_item(p, "2"), {"status": "held"}, {"status": "refunded"}),
    ]


def an_operation(p: Played) -> Any:
    return [p.transaction("refund 2", operation="settle")], [
        ("illegal_movement", p.of("refund 2"), "the entries of a settle", ["own available 1", "own escrow -1"]),
        p.broken("refund 2"),
        ("escrow_item_differs", of_item(p, "2"), {"status": "settled"}, {"status": "refunded"}),
    ]


def an_operation_that_does_not_exist(p: Played) -> Any:
    """Or one of a newer release, whose rules this one cannot know."""
    known = f"an operation that this release knows: {', '.join(CHART)}"
    return [p.transaction("credit ben", operation="gift", authorization_id="jti", escrow_id=EARLY_ID)], [
        ("operation_unknown", p.of("credit ben"), known, "gift"),
        p.broken("credit ben"),
    ]


def an_operation_that_does_not_exist_and_does_not_sum_to_zero(p: Played) -> Any:
    """What holds for every operation holds for that one too."""
    return [p.transaction("open model", operation="gift"), p.entry("open model", "earned", amount=5)], [
        ("operation_unknown", p.of("open model"), ANY, "gift"),
        ("transaction_unbalanced", p.of("open model"), 0, 5),
        ("balance_sum", p.of_entry("open model", "earned"), 5, 0),
        p.broken("open model"),
        ("model_wallet_differs", SOL, {"earned": 5}, {"earned": 0}),
    ]


def an_operation_that_is_another_of_the_same_movement(p: Played) -> Any:
    """A deposit that calls itself a credit has no claim on the payment any more."""
    return [p.transaction("deposit", operation="credit")], [
        p.broken("deposit"),
        ("deposit_claim_unexplained", PAID, None, {"amount": 60}),
    ]


def the_details_of_a_spend(p: Played) -> Any:
    return [p.transaction("spend", details_json='{"order_id":"order-2"}')], [p.broken("spend")]


def the_details_of_a_spend_removed(p: Played) -> Any:
    return [p.transaction("spend", details_json=None)], [p.broken("spend")]


def details_where_none_were(p: Played) -> Any:
    return [p.transaction("credit ben", details_json="{}")], [p.broken("credit ben")]


def the_reference_of_a_deposit(p: Played) -> Any:
    other = {"source": "bank", "reference": "payment-2"}
    return [p.transaction("deposit", details_json='{"reference":"payment-2","source":"bank"}')], [
        p.broken("deposit"),
        ("deposit_claim_missing", other, {"amount": 60, **CLEO}, None),
        ("deposit_claim_unexplained", PAID, None, {"amount": 60, **CLEO}),
    ]


def the_details_of_a_deposit_removed(p: Played) -> Any:
    return [p.transaction("deposit", details_json=None)], [
        p.broken("deposit"),
        ("deposit_claim_missing", dict.fromkeys(PAID), {"amount": 60}, None),
        ("deposit_claim_unexplained", PAID, None, {"amount": 60}),
    ]


def the_account_of_a_spend_s_revenue(p: Played) -> Any:
    return [p.entry("spend", "revenue", account_id="platform:issuer")], [
        ("illegal_movement", p.of("spend"), "the entries of a spend", ["nobody revenue 1", "own available -1"]),
        p.broken("spend"),
    ]


def the_bucket_of_a_spend_s_revenue(p: Played) -> Any:
    return [p.moved_entry("spend", "revenue", "issued")], [
        ("illegal_movement", p.of("spend"), "the entries of a spend", ["nobody issued 1", "own available -1"]),
        p.broken("spend"),
    ]


def taken(p: Played) -> Any:
    return update(ENTRIES).where(ENTRIES.c.transaction_id == p.ids["transfer"], ENTRIES.c.amount > 0)


def the_taker_of_a_transfer(p: Played) -> Any:
    """Any other user would be legal; who it was is in seal and wallets."""
    return [taken(p).values(account_id="user:eva")], [
        p.broken("transfer"),
        ("user_wallet_missing", EVA, {"available": 20}, None),
        ("user_wallet_unexplained", DORA, None, {"available": 20}),
    ]


def a_transfer_to_a_model(p: Played) -> Any:
    return [taken(p).values(account_id="model:dora")], [
        ("illegal_movement", p.of("transfer"), "the entries of a transfer", ["nobody available 1", "own available -1"]),
        p.broken("transfer"),
        ("model_wallet_missing", {"owner_id": "model:dora", "currency": "points"}, {"earned": 0, "version": 1}, None),
        ("user_wallet_unexplained", DORA, None, {"available": 20}),
    ]


def a_touch_in_which_something_moved(p: Played) -> Any:
    return [p.entry("open model", "earned", amount=5, balance_after=5)], [
        ("transaction_unbalanced", p.of("open model"), 0, 5),
        p.broken("open model"),
        ("model_wallet_differs", SOL, {"earned": 5}, {"earned": 0}),
    ]


def a_touch_of_another_bucket(p: Played) -> Any:
    return [p.moved_entry("open user", "available", "paying", balance_before=0, balance_after=0)], [
        ("illegal_movement", p.of("open user"), "the entries of a open", ["own paying 0"]),
        p.broken("open user"),
    ]


def movements_that_became_touches(p: Played) -> Any:
    mine = ENTRIES.c.transaction_id == p.ids["credit ben"]
    return [
        update(ENTRIES).where(mine).values(amount=0),
        p.entry("credit ben", "available", balance_after=0),
    ], [
        (
            "illegal_movement",
            p.of("credit ben"),
            "the entries of a credit",
            ["own available 0", "platform:issuer issued 0"],
        ),
        ("balance_gap", p.of_entry("hold 3", "available"), 0, 50),
        p.broken("credit ben"),
        ("user_wallet_differs", BEN, {"available": -13}, {"available": 37}),
    ]


def a_claim_removed(p: Played) -> Any:
    return [delete(DEPOSIT_CLAIMS)], [("deposit_claim_missing", PAID, {"amount": 60, **CLEO}, None)]


def a_claim_added(p: Played) -> Any:
    return [p.copied(DEPOSIT_CLAIMS, PAID, reference="payment-2")], [
        ("deposit_claim_unexplained", {**PAID, "reference": "payment-2"}, None, {"amount": 60})
    ]


def a_claim_on_another_payment(p: Played) -> Any:
    return [update(DEPOSIT_CLAIMS).values(source="card")], [
        ("deposit_claim_missing", PAID, {"amount": 60}, None),
        ("deposit_claim_unexplained", {**PAID, "source": "card"}, None, {"amount": 60}),
    ]


def claim(**changes: tuple[Any, Any]) -> Damage:
    def damage(p: Played) -> Any:
        wrong = {name: after for name, (_, after) in changes.items()}
        right = {name: before for name, (before, _) in changes.items()}
        return [update(DEPOSIT_CLAIMS).values(wrong)], [("deposit_claim_differs", PAID, right, wrong)]

    return damage


def a_claim_s_time(p: Played) -> Any:
    (row,) = p.rows[DEPOSIT_CLAIMS]
    return claim(created_at=(row["created_at"], later(row, "created_at")))(p)


def a_claim_s_transaction(p: Played) -> Any:
    return [update(DEPOSIT_CLAIMS).values(transaction_id=p.ids["credit ben"])], [
        ("deposit_claim_differs", PAID, p.of("deposit"), p.of("credit ben")),
        ("deposit_claim_unexplained", PAID, None, p.of("credit ben")),
    ]


def the_payee(p: Played) -> Any:
    """Of the transaction alone: its entries went to somebody else."""
    return [p.transaction("settle 1", model_id="sol")], [
        ("illegal_movement", p.of("settle 1"), "the entries of a settle", ["nobody earned 1", "own escrow -1"]),
        p.broken("settle 1"),
        ("escrow_item_differs", of_item(p, "1"), {"model_id": "sol"}, {"model_id": "luna"}),
    ]


def the_owner_of_a_transaction(p: Played) -> Any:
    return [p.transaction("credit ben", owner_id="user:eva")], [
        ("illegal_movement", p.of("credit ben"), "the entries of a credit", "others"),
        p.broken("credit ben"),
    ]


def the_owner_of_an_entry(p: Played) -> Any:
    return [p.entry("credit ben", "issued", owner_id="user:eva")], [
        ("illegal_movement", p.of("credit ben"), "the entries of a credit", "others")
    ]


def the_account_of_an_entry(p: Played) -> Any:
    """Points that are given to somebody else, whose wallet says so too."""
    return [
        p.entry("credit gems", "available", account_id="user:eva"),
        p.copied(
            USER_WALLETS,
            {"owner_id": "user:ana", "currency": "gems"},
            owner_id="user:eva",
            available=20,
            escrow=0,
            version=1,
        ),
    ], [
        (
            "illegal_movement",
            p.of("credit gems"),
            "the entries of a credit",
            ["another available 1", "platform:issuer issued -1"],
        ),
        ("version_gap", p.of_version("hold gems", "available"), 1, 2),
        ("balance_gap", p.of_entry("hold gems", "available"), 0, 20),
        p.broken("credit gems"),
        ("user_wallet_differs", {"owner_id": "user:ana", "currency": "gems"}, ANY, ANY),
        ("user_wallet_differs", {"owner_id": "user:eva", "currency": "gems"}, ANY, ANY),
    ]


def the_currency_of_an_entry(p: Played) -> Any:
    return [p.entry("credit ben", "issued", currency="gems")], [
        ("illegal_movement", p.of("credit ben"), "the entries of a credit", "others")
    ]


def the_currency_of_a_transaction(p: Played) -> Any:
    return [p.transaction("credit ben", currency="gems")], [
        ("illegal_movement", p.of("credit ben"), "the entries of a credit", "others"),
        p.broken("credit ben"),
    ]


def a_version(p: Played) -> Any:
    mine = (ENTRIES.c.transaction_id == p.ids["hold 4"],)
    return [update(ENTRIES).where(*mine).values(wallet_version=40)], [
        ("version_gap", {**CURRENT_ANA, "transaction_id": p.ids["hold 4"]}, 7, 40),
        ("version_gap", {**CURRENT_ANA, "transaction_id": p.ids["settle 1"]}, 4, 5),
        ("balance_gap", {**CURRENT_ANA, "transaction_id": p.ids["hold 4"]}, ANY, ANY),
        ("posted_into_the_past", {**CURRENT_ANA, "transaction_id": p.ids["hold 4"]}, ANY, ANY),
        ("log_order", {**CURRENT_ANA, "transaction_id": p.ids["hold 4"]}, ANY, ANY),
        p.broken("hold 4"),
        ("user_wallet_differs", ANA, {"version": 40}, {"version": 6}),
    ]


def versions_used_twice(p: Played) -> Any:
    mine = (ENTRIES.c.transaction_id == p.ids["hold 4"],)
    return [update(ENTRIES).where(*mine).values(wallet_version=3)], [
        ("version_used_twice", {**CURRENT_ANA, "transaction_id": p.ids["hold 4"]}, p.ids["hold 2"], p.ids["hold 4"]),
        ("version_gap", {**CURRENT_ANA, "transaction_id": p.ids["settle 1"]}, 4, 5),
        p.broken("hold 4"),
    ]


def no_version_at_all(p: Played) -> Any:
    blank = {"wallet_version": None, "balance_before": None, "balance_after": None}
    wallet = {**p.of_entry("partial 3", "earned"), "wallet_version": None}
    return [p.entry("partial 3", "earned", **blank)], [
        ("entry_incomplete", wallet, "balances and a version", None),
        p.broken("partial 3"),
        ("model_wallet_differs", LUNA, {"version": 1}, {"version": 2}),
    ]


def an_id(p: Played) -> Any:
    return [p.transaction("credit ben", transaction_id=EARLY_ID)], [
        ("transaction_without_entries", {"transaction_id": EARLY_ID}, "entries", 0),
        ("entry_without_transaction", {**p.of("credit ben"), "account_id": "user:ben"}, "its transaction", None),
        ("entry_without_transaction", {**p.of("credit ben"), "bucket": "issued"}, "its transaction", None),
        ("sealed_transaction_missing", p.at("credit ben"), "its transaction", None),
    ]


def an_id_everywhere_but_in_the_log(p: Played) -> Any:
    mine = (ENTRIES.c.transaction_id == p.ids["credit ben"],)
    return [
        p.transaction("credit ben", transaction_id=EARLY_ID),
        update(ENTRIES).where(*mine).values(transaction_id=EARLY_ID),
    ], [
        ("sealed_transaction_missing", p.at("credit ben"), "its transaction", None),
        ("log_order", {"account_id": "user:ben", "wallet_version": 2}, f"sealed after {EARLY_ID}", ANY),
    ]


def an_id_everywhere(p: Played) -> Any:
    statements, _ = an_id_everywhere_but_in_the_log(p)
    return [*statements, p.sealed("credit ben", transaction_id=EARLY_ID)], [
        ("seal_broken", {"position": p.positions["credit ben"], "transaction_id": EARLY_ID}, ANY, p.hash("credit ben"))
    ]


def an_entry_deleted(p: Played) -> Any:
    mine = (ENTRIES.c.transaction_id == p.ids["hold 2"], ENTRIES.c.bucket == "escrow")
    return [delete(ENTRIES).where(*mine)], [
        ("transaction_unbalanced", p.of("hold 2"), 0, -10),
        ("balance_gap", p.of_entry("hold 4", "escrow"), 30, 40),
        p.broken("hold 2"),
        ("user_wallet_differs", ANA, {"escrow": -5}, {"escrow": 5}),
    ]


def all_entries_deleted(p: Played) -> Any:
    return [delete(ENTRIES).where(ENTRIES.c.transaction_id == p.ids["credit ben"])], [
        ("transaction_without_entries", p.of("credit ben"), "entries", 0),
        ("version_gap", p.of_version("hold 3", "available"), 1, 2),
        ("balance_gap", p.of_entry("hold 3", "available"), 0, 50),
        p.broken("credit ben"),
        ("user_wallet_differs", BEN, {"available": -13}, {"available": 37}),
    ]


def two_entries_swapped(p: Played) -> Any:
    return [
        p.entry("hold 1", "available", amount=-10),
        p.entry("hold 1", "escrow", amount=10),
        p.entry("hold 2", "available", amount=-30),
        p.entry("hold 2", "escrow", amount=30),
    ], [
        *(
            ("balance_sum", p.of_entry(f"hold {n}", bucket), ANY, ANY)
            for n in "12"
            for bucket in ("available", "escrow")
        ),
        p.broken("hold 1"),
        p.broken("hold 2"),
        ("escrow_item_differs", of_item(p, "1"), {"amount": 10}, {"amount": 30}),
        ("escrow_item_differs", of_item(p, "2"), {"amount": 30}, {"amount": 10}),
    ]


def transactions_of_two_entries_swapped(p: Played) -> Any:
    """The entries of two credits change places, as if each had been the other's."""
    first, second = (ENTRIES.c.transaction_id == p.ids[name] for name in ("credit ben", "credit gems"))
    swap = [(first, EARLY_ID), (second, p.ids["credit ben"])]
    third = (ENTRIES.c.transaction_id == EARLY_ID, p.ids["credit gems"])
    return [update(ENTRIES).where(mine).values(transaction_id=to) for mine, to in [*swap, third]], [
        ("illegal_movement", p.of("credit ben"), "the entries of a credit", "others"),
        ("illegal_movement", p.of("credit gems"), "the entries of a credit", "others"),
        ("log_order", {"account_id": "user:ben", "wallet_version": 2}, ANY, ANY),
        p.broken("credit ben"),
        p.broken("credit gems"),
    ]


def a_transaction_deleted_from_the_middle(p: Played) -> Any:
    return p.without_transaction("settle 1"), [
        ("sealed_transaction_missing", p.at("settle 1"), "its transaction", None),
        ("version_gap", p.of_version("refund 2", "available"), 5, 6),
        ("version_gap", p.of_version("partial 3", "earned"), 1, 2),
        ("balance_gap", p.of_entry("partial 3", "earned"), 0, 30),
        ("balance_gap", p.of_entry("refund 2", "escrow"), 45, 15),
        ("user_wallet_differs", ANA, {"escrow": 35}, {"escrow": 5}),
        ("model_wallet_differs", LUNA, {"earned": 13}, {"earned": 43}),
        ("escrow_item_differs", of_item(p, "1"), {"status": "held"}, {"status": "settled"}),
    ]


def the_first_transaction_deleted(p: Played) -> Any:
    return p.without_transaction("credit ana"), [
        ("sealed_transaction_missing", {"position": 1, **p.of("credit ana")}, "its transaction", None),
        ("version_gap", p.of_version("hold 1", "available"), 1, 2),
        ("balance_gap", p.of_entry("hold 1", "available"), 0, 100),
        ("user_wallet_differs", ANA, {"available": -35}, {"available": 65}),
    ]


def the_last_transaction_deleted(p: Played) -> Any:
    return p.without_transaction("hold gems"), [
        ("sealed_transaction_missing", p.at("hold gems"), "its transaction", None),
        ("user_wallet_differs", {"owner_id": "user:ana", "currency": "gems"}, {"version": 1}, {"version": 2}),
        ("escrow_item_unexplained", of_item(p, "gems"), None, ANY),
    ]


def a_credit_inserted_into_the_past(p: Played) -> Any:
    of = {"transaction_id": p.ids["credit ana"]}
    new = {"transaction_id": EARLY_ID}
    return [
        p.copied(TRANSACTIONS, of, **new, idempotency_key="forged"),
        p.copied(ENTRIES, {**of, "bucket": "issued"}, **new),
        p.copied(ENTRIES, {**of, "bucket": "available"}, **new, wallet_version=7, balance_before=65, balance_after=165),
        update(USER_WALLETS)
        .where(USER_WALLETS.c.owner_id == "user:ana", USER_WALLETS.c.currency == "points")
        .values(available=165, version=7),
    ], [("posted_into_the_past", {**CURRENT_ANA, "transaction_id": EARLY_ID, "wallet_version": 7}, ANY, ANY)]


def a_credit_before_the_first(p: Played) -> Any:
    of = {"transaction_id": p.ids["credit ana"]}
    new = {"transaction_id": EARLY_ID}
    return [
        p.copied(TRANSACTIONS, of, **new, idempotency_key="forged"),
        p.copied(ENTRIES, {**of, "bucket": "issued"}, **new),
        p.copied(ENTRIES, {**of, "bucket": "available"}, **new),
    ], [
        ("version_used_twice", {**CURRENT_ANA, **p.of("credit ana")}, EARLY_ID, p.ids["credit ana"]),
        ("log_order", {**CURRENT_ANA, **p.of("credit ana")}, f"sealed after {EARLY_ID}", "position 1"),
        ("user_wallet_differs", ANA, {"available": 165}, {"available": 65}),
    ]


def a_second_end_of_one_hold(p: Played) -> Any:
    """A forged refund of what is settled, right in everything but that points of another hold pay for it."""
    of = {"transaction_id": p.ids["refund 2"]}
    new: dict[str, Any] = {"transaction_id": "ffffffff-ac96-774b-bcce-b302099a8057"}
    at = {"posted_at": now()}
    moved: dict[str, dict[str, int]] = {
        "available": {"balance_before": 65, "balance_after": 70, "amount": 5},
        "escrow": {"balance_before": 5, "balance_after": 0, "amount": -5},
    }
    return [
        p.copied(TRANSACTIONS, of, **new, idempotency_key="forged", escrow_id=p.items["1"]),
        *(
            p.copied(ENTRIES, {**of, "bucket": b}, **new, **at, wallet_version=7, **values)
            for b, values in moved.items()
        ),
        update(USER_WALLETS)
        .where(USER_WALLETS.c.owner_id == "user:ana", USER_WALLETS.c.currency == "points")
        .values(available=70, escrow=0, version=7, updated_at=at["posted_at"]),
    ], [
        (
            "escrow_ended_twice",
            {"escrow_id": p.items["1"], "transaction_ids": [p.ids["settle 1"], new["transaction_id"]]},
            1,
            2,
        ),
        ("escrow_balance", ANA, 5, 0),
    ]


def a_settlement_of_less_than_was_held(p: Played) -> Any:
    return [
        p.entry("settle 1", "escrow", amount=-20, balance_after=25),
        p.entry("settle 1", "earned", amount=20, balance_after=20),
        p.item("1", settled_amount=20),
    ], [
        ("balance_gap", p.of_entry("refund 2", "escrow"), 25, 15),
        ("balance_gap", p.of_entry("partial 3", "earned"), 20, 30),
        p.broken("settle 1"),
        ("user_wallet_differs", ANA, {"escrow": 15}, {"escrow": 5}),
        ("model_wallet_differs", LUNA, {"earned": 33}, {"earned": 43}),
    ]


def wallet(table: Table, key: dict[str, str], **changes: tuple[Any, Any]) -> Damage:
    kind = "user_wallet_differs" if table is USER_WALLETS else "model_wallet_differs"

    def damage(p: Played) -> Any:
        mine = [table.c[name] == value for name, value in key.items()]
        right = {name: before for name, (before, _) in changes.items()}
        wrong = {name: after for name, (_, after) in changes.items()}
        return [update(table).where(*mine).values(wrong)], [(kind, key, right, wrong)]

    return damage


def a_wallet_s_escrow(p: Played) -> Any:
    statements, expected = wallet(USER_WALLETS, ANA, escrow=(5, 6), available=(65, 64))(p)
    return statements, [*expected, ("escrow_balance", ANA, 5, 6)]


def a_wallet_s_time(p: Played) -> Any:
    row = next(row for row in p.rows[USER_WALLETS] if matches(ANA, row))
    return wallet(USER_WALLETS, ANA, updated_at=(row["updated_at"], later(row, "updated_at")))(p)


def a_wallet_s_creation(p: Played) -> Any:
    row = next(row for row in p.rows[MODEL_WALLETS] if matches(LUNA, row))
    return wallet(MODEL_WALLETS, LUNA, created_at=(row["created_at"], later(row, "created_at")))(p)


def a_wallet_removed(p: Played) -> Any:
    return [delete(MODEL_WALLETS).where(MODEL_WALLETS.c.owner_id == "model:luna")], [
        ("model_wallet_missing", LUNA, {"earned": 43, "version": 2}, None)
    ]


def a_touched_wallet_removed(p: Played) -> Any:
    return [delete(MODEL_WALLETS).where(MODEL_WALLETS.c.owner_id == "model:sol")], [
        ("model_wallet_missing", SOL, {"earned": 0, "version": 1}, None)
    ]


def a_user_s_wallet_removed(p: Played) -> Any:
    mine = (USER_WALLETS.c.owner_id == "user:ben",)
    return [delete(USER_WALLETS).where(*mine)], [("user_wallet_missing", BEN, {"available": 37, "escrow": 0}, None)]


def a_wallet_added(p: Played) -> Any:
    of = {"owner_id": "user:ben", "currency": "points"}
    return [p.copied(USER_WALLETS, of, owner_id="user:eva")], [
        ("user_wallet_unexplained", {"owner_id": "user:eva", "currency": "points"}, None, {"available": 37})
    ]


def a_model_s_wallet_added(p: Played) -> Any:
    return [p.copied(MODEL_WALLETS, LUNA, currency="gems")], [
        ("model_wallet_unexplained", {"owner_id": "model:luna", "currency": "gems"}, None, {"earned": 43})
    ]


def item(name: str, user_id: str = "ana", **changes: tuple[Any, Any]) -> Damage:
    def damage(p: Played) -> Any:
        right = {field: before for field, (before, _) in changes.items()}
        wrong = {field: after for field, (_, after) in changes.items()}
        return [p.item(name, **wrong)], [("escrow_item_differs", of_item(p, name, user_id), right, wrong)]

    return damage


def an_item_held_again(p: Played) -> Any:
    again = {"status": "held", "processed_at": None, "settled_amount": 0, "model_id": None}
    return [p.item("1", **again)], [
        ("escrow_item_differs", of_item(p, "1"), {"status": "settled", "settled_amount": 30}, again),
        ("escrow_balance", ANA, 35, 5),
    ]


def an_item_processed_too_early(p: Played) -> Any:
    ended = {"status": "refunded", "processed_at": now(), "refunded_amount": 5}
    return [p.item("4", **ended)], [
        ("escrow_item_differs", of_item(p, "4"), {"status": "held", "processed_at": None}, ended),
        ("escrow_balance", ANA, 0, 5),
    ]


def an_item_s_amount(p: Played) -> Any:
    statements, expected = item("4", amount=(5, 6))(p)
    return statements, [*expected, ("escrow_balance", ANA, 6, 5)]


def an_item_s_owner(p: Played) -> Any:
    return [p.item("3", owner_id="user:eva")], [
        ("escrow_item_missing", of_item(p, "3", "ben"), {"amount": 20}, None),
        ("escrow_item_unexplained", of_item(p, "3", "eva"), None, {"amount": 20}),
    ]


def an_item_removed(p: Played) -> Any:
    return [delete(ESCROW_ITEMS).where(ESCROW_ITEMS.c.escrow_id == p.items["4"])], [
        ("escrow_item_missing", of_item(p, "4"), {"amount": 5, "status": "held"}, None),
        ("escrow_balance", ANA, 0, 5),
    ]


def an_item_added(p: Played) -> Any:
    return [p.copied(ESCROW_ITEMS, {"escrow_id": p.items["1"]}, escrow_id=EARLY_ID)], [
        ("escrow_item_unexplained", {"escrow_id": EARLY_ID, "owner_id": "user:ana"}, None, {"amount": 30})
    ]


def a_log_row_deleted_from_the_middle(p: Played) -> Any:
    at = p.positions["hold 4"]
    following = next(name for name, position in p.positions.items() if position == at + 1)
    return [delete(LOG).where(LOG.c.position == at)], [
        ("log_gap", p.at(following), at, at + 1),
        ("log_order", p.of_version("settle 1", "escrow"), f"sealed after {p.ids['hold 4']}", ANY),
    ]


def the_first_log_row_deleted(p: Played) -> Any:
    return [delete(LOG).where(LOG.c.position == 1)], [
        ("log_gap", {"position": 2}, 1, 2),
        ("log_order", p.of_version("hold 1", "available"), f"sealed after {p.ids['credit ana']}", ANY),
    ]


def a_hash(p: Played) -> Any:
    at = p.positions["settle 1"]
    following = next(name for name, position in p.positions.items() if position == at + 1)
    return [p.sealed("settle 1", hash="f" * 64)], [
        ("seal_broken", p.at("settle 1"), p.hash("settle 1"), "f" * 64),
        p.broken(following),
    ]


def the_transactions_of_two_log_rows_swapped(p: Played) -> Any:
    first, second = p.positions["hold 1"], p.positions["hold 2"]
    swapped = [(first, EARLY_ID), (second, p.ids["hold 1"]), (first, p.ids["hold 2"])]
    return [update(LOG).where(LOG.c.position == at).values(transaction_id=to) for at, to in swapped], [
        ("seal_broken", {"position": first, **p.of("hold 2")}, ANY, p.hash("hold 1")),
        ("seal_broken", {"position": second, **p.of("hold 1")}, ANY, p.hash("hold 2")),
        ("log_order", p.of_version("hold 2", "available"), f"sealed after {p.ids['hold 1']}", f"position {first}"),
    ]


DAMAGES: dict[str, Damage] = {
    **{
        damage.__name__: damage
        for damage in (
            an_amount,
            amounts_that_still_sum_to_zero,
            a_whole_credit_made_larger,
            a_balance,
            a_balance_below_zero,
            a_time_of_a_transaction,
            a_time_of_an_entry,
            a_reason,
            a_request_id,
            metadata,
            the_metadata_of_a_hold,
            an_authorization_removed,
            an_authorization_where_none_belongs,
            an_escrow_id_removed,
            an_operation,
            an_operation_that_does_not_exist,
            an_operation_that_does_not_exist_and_does_not_sum_to_zero,
            an_operation_that_is_another_of_the_same_movement,
            the_details_of_a_spend,
            the_details_of_a_spend_removed,
            details_where_none_were,
            the_reference_of_a_deposit,
            the_details_of_a_deposit_removed,
            the_account_of_a_spend_s_revenue,
            the_bucket_of_a_spend_s_revenue,
            the_taker_of_a_transfer,
            a_transfer_to_a_model,
            a_touch_in_which_something_moved,
            a_touch_of_another_bucket,
            movements_that_became_touches,
            a_claim_removed,
            a_claim_added,
            a_claim_on_another_payment,
            a_claim_s_time,
            a_claim_s_transaction,
            the_payee,
            the_owner_of_a_transaction,
            the_owner_of_an_entry,
            the_account_of_an_entry,
            the_currency_of_an_entry,
            the_currency_of_a_transaction,
            a_version,
            no_version_at_all,
            an_id,
            an_id_everywhere_but_in_the_log,
            an_id_everywhere,
            an_entry_deleted,
            all_entries_deleted,
            two_entries_swapped,
            transactions_of_two_entries_swapped,
            a_transaction_deleted_from_the_middle,
            the_first_transaction_deleted,
            the_last_transaction_deleted,
            a_credit_inserted_into_the_past,
            a_second_end_of_one_hold,
            a_settlement_of_less_than_was_held,
            a_wallet_s_escrow,
            a_wallet_s_time,
            a_wallet_s_creation,
            a_wallet_removed,
            a_touched_wallet_removed,
            a_user_s_wallet_removed,
            a_wallet_added,
            a_model_s_wallet_added,
            an_item_held_again,
            an_item_processed_too_early,
            an_item_s_amount,
            an_item_s_owner,
            an_item_removed,
            an_item_added,
            a_log_row_deleted_from_the_middle,
            the_first_log_row_deleted,
            a_hash,
            the_transactions_of_two_log_rows_swapped,
        )
    },
    "a wallet's balance": wallet(USER_WALLETS, ANA, available=(65, 66)),
    "a wallet's version": wallet(USER_WALLETS, BEN, version=(3, 4)),
    "a model's balance": wallet(MODEL_WALLETS, LUNA, earned=(43, 44)),
    "a user's points that are being paid": wallet(USER_WALLETS, ANA, paying=(0, 1)),
    "a model's points that are being paid": wallet(MODEL_WALLETS, LUNA, paying=(0, 1)),
    "a user's state": wallet(USER_WALLETS, ANA, state=("active", "closed")),
    "a model's state": wallet(MODEL_WALLETS, SOL, state=("active", "suspended")),
    "a touched wallet's version": wallet(USER_WALLETS, CLEO, version=(4, 3)),
    "a claim's amount": claim(amount=(60, 61)),
    "a claim's owner": claim(owner_id=("user:cleo", "user:dora")),
    "a claim's currency": claim(currency=("points", "gems")),
    "an item's expiry": item("4", expires_at=(None, datetime(2027, 1, 1, tzinfo=UTC))),
    "an item's status": item("2", status=("refunded", "settled")),
    "an item's model": item("1", model_id=("luna", "sol")),
    "an item's split": item("3", "ben", settled_amount=(13, 14), refunded_amount=(7, 6)),
    "an item's reason": item("4", reason=("performance_request", "gift")),
    "an item's queue item": item("4", queue_item_id=("queue-1", "queue-2")),
    "an item's feature": item("4", feature_type=("song", "dance")),
    "an item's metadata": item("4", metadata_json=(None, "{}")),
    "an item's currency": item("1", currency=("points", "gems")),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damage_is_named_with_its_ids_what_was_expected_and_what_is_there(played: Played, damage: Damage) -> None:
    statements, expected = damage(played)
    played.tamper(*statements)
    found = findings(played)
    missing = [wanted for wanted in expected if not is_named(wanted, found)]
    assert not missing, f"not among {found}"
    assert {each.kind for each in found} == {kind for kind, *_ in expected}
    places = {ids["position"] for kind, ids, *_ in expected if kind in SEALS}
    assert {each.ids["position"] for each in found if each.kind in SEALS} == places, "the log is broken there alone"


def unique_version_is_no_more(played: Played) -> None:
    """SQLite's own indexes cannot be dropped; a copy of the table has none."""
    copy_without_walls(played, "ledger_entries")


def copy_without_walls(played: Played, table: str) -> None:
    if played.engine.dialect.name == "sqlite":
        played.tamper(
            text(f"CREATE TABLE copied AS SELECT * FROM {table}"),
            text(f"DROP TABLE {table}"),
            text(f"ALTER TABLE copied RENAME TO {table}"),
        )
    elif table == "ledger_transactions":
        played.tamper(text(f"ALTER TABLE {table} DROP CONSTRAINT {table}_idempotency_key"))


@pytest.fixture
def own(url: str) -> Iterator[Played]:
    """An evening of a test's own, for damages to the tables themselves."""
    yield from play_on(url)


def test_the_entries_of_one_transaction_on_one_wallet_have_one_time(own: Played) -> None:
    """The entry that is read last is posted apart if it is the later one, and else into the past of the other."""
    at, named = occurred(own, "hold gems"), []
    for later, earlier in (("available", "escrow"), ("escrow", "available")):
        own.tamper(
            own.entry("hold gems", later, posted_at=at + timedelta(seconds=1)),
            own.entry("hold gems", earlier, posted_at=at),
        )
        named += [each for each in findings(own) if each.kind.startswith("posted_")]
    kinds = {each.kind: (str(each.expected), str(each.found)) for each in named}
    times = tuple(sorted({time for each in kinds.values() for time in each}))
    assert kinds == {"posted_apart": times, "posted_into_the_past": times[::-1]}
    assert [dict(each.ids) | {"bucket": ""} for each in named] == 2 * [
        own.of_entry("hold gems", "escrow") | {"bucket": ""}
    ]


def test_a_key_that_was_used_twice_is_named(own: Played) -> None:
    key = next(row for row in own.rows[TRANSACTIONS] if row["transaction_id"] == own.ids["credit ana"])
    copy_without_walls(own, "ledger_transactions")
    of = own.ids["credit gems"]
    change = {"idempotency_key": key["idempotency_key"]}
    own.tamper(update(TRANSACTIONS).where(TRANSACTIONS.c.transaction_id == of).values(change))
    ids = {"owner_id": "user:ana", "operation": "credit", **change}
    found = findings(own)
    assert is_named(("key_used_twice", ids, 1, 2), found)
    assert is_named(own.broken("credit gems"), found)
    assert len(found) == 2
    at = own.positions["credit gems"]
    assert {each.kind for each in findings(own, since=at)} == set()


@pytest.mark.parametrize("damage", [versions_used_twice, a_credit_before_the_first])
def test_a_version_that_was_used_twice_is_named(own: Played, damage: Damage) -> None:
    unique_version_is_no_more(own)
    statements, expected = damage(own)
    own.tamper(*statements)
    found = findings(own)
    assert [wanted for wanted in expected if not is_named(wanted, found)] == []


def test_a_byte_changed_in_the_file_with_an_editor_is_named(sqlite_url: str) -> None:
    playing = play_on(sqlite_url)
    played = next(playing)
    name = str(played.url.database)
    played.tamper(played.transaction("credit ben", request_id="request-of-ben"))
    played.tamper(delete(LOG))
    played.world.ledger.seal()
    assert findings(played) == []
    played.world.database.close()
    played.engine.dispose()
    with sqlite3.connect(name) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    with open(name, "r+b") as file:
        content = file.read()
        assert content.count(b"request-of-ben") == 1
        file.seek(content.index(b"request-of-ben"))
        file.write(b"request-of-bem")
    with Database(sqlite_url) as database:
        (finding,) = (each for each in verify(database) if each.kind not in WALLS)
    assert (finding.kind, finding.ids) == ("seal_broken", played.at("credit ben"))


def test_a_wallet_that_does_not_begin_at_version_one_is_named(played: Played) -> None:
    """Every later row follows from it: nothing but the first version is wrong."""
    luna = ENTRIES.c.account_id == "model:luna"
    shifted = update(ENTRIES).where(luna).values(wallet_version=literal_column("wallet_version + 10"))
    of_luna = MODEL_WALLETS.c.owner_id == "model:luna"
    played.tamper(delete(LOG), shifted, update(MODEL_WALLETS).where(of_luna).values(version=12))
    (finding,) = findings(played)
    assert (finding.kind, finding.expected, finding.found) == ("version_gap", 1, 11)
    assert matches(played.of("settle 1"), finding.ids)


def test_what_is_not_sealed_yet_takes_no_place_among_the_findings(
    played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much is unsealed, the limit is for what is wrong."""
    for module in (ledger_verify, wallets_verify):
        monkeypatch.setattr(module, "MOST_FINDINGS", 2)
    played.tamper(delete(LOG), played.entry("refund 2", "available", balance_before=56, balance_after=66))
    found = findings(played)
    assert is_named(("balance_gap", played.of_entry("refund 2", "available"), 55, 56), found)


# ── what the log alone cannot tell ────────────────────────────────────────────────────────────────


def without_the_last(p: Played) -> list[Executable]:
    """The last transaction with everything that it did, gone from every table."""
    gems = (USER_WALLETS.c.currency == "gems",)
    first = occurred(p, "credit gems")
    return [
        *p.without_transaction("hold gems"),
        delete(LOG).where(LOG.c.transaction_id == p.ids["hold gems"]),
        delete(ESCROW_ITEMS).where(ESCROW_ITEMS.c.escrow_id == p.items["gems"]),
        update(USER_WALLETS).where(*gems).values(available=20, escrow=0, version=1, updated_at=first),
    ]


def test_a_log_cut_at_its_end_is_found_with_the_kept_head_alone(played: Played) -> None:
    played.tamper(*without_the_last(played))
    assert findings(played) == []
    kept = {"position": played.head.position}
    expected = [Finding(kind="log_cut", ids=kept, expected=played.head.hash, found=None)]
    assert findings(played, head=played.head) == expected
    since = Finding(kind="log_cut", ids=kept, expected=played.head.position, found=None)
    assert findings(played, head=played.head, since=played.head.position) == [since, *expected]


def test_a_log_sealed_anew_after_a_change_is_found_with_the_kept_head_alone(played: Played) -> None:
    played.tamper(played.transaction("credit ben", reason="gift"), delete(LOG))
    again = played.world.ledger.seal().head
    assert again.position == played.head.position
    assert findings(played, head=again) == []
    ids = {"position": again.position}
    rewritten = Finding(kind="log_rewritten", ids=ids, expected=played.head.hash, found=again.hash)
    assert findings(played, head=played.head) == [rewritten]


def test_sealing_a_damaged_ledger_further_hides_nothing(played: Played) -> None:
    played.tamper(played.transaction("credit ben", reason="gift"), delete(LOG).where(LOG.c.position == 5))
    before = {each.kind for each in findings(played)}
    played.world.ledger.seal()
    assert {each.kind for each in findings(played)} == before == {"seal_broken", "log_gap", "log_order"}


# ── narrowed, and bounded ─────────────────────────────────────────────────────────────────────────


def test_since_looks_at_what_came_after_that_position_and_at_nothing_before(played: Played) -> None:
    at = played.positions["hold 4"]
    played.tamper(played.transaction("hold 4", request_id="other"))
    for since in range(at):
        assert [each.kind for each in findings(played, since=since)] == ["seal_broken"]
    for since in range(at, played.head.position + 1):
        assert findings(played, since=since) == []
    (cut,) = findings(played, since=played.head.position + 1)
    assert (cut.kind, cut.ids) == ("log_cut", {"position": played.head.position + 1})


def test_since_finds_what_was_put_in_unsealed_and_what_drifted_later(played: Played) -> None:
    statements, expected = a_credit_inserted_into_the_past(played)
    played.tamper(*statements)
    assert all(is_named(wanted, findings(played, since=played.head.position)) for wanted in expected)
    played.restore()
    gems = {"owner_id": "user:ana", "currency": "gems"}
    statements, expected = wallet(USER_WALLETS, gems, available=(15, 16))(played)
    played.tamper(*statements)
    assert all(is_named(wanted, findings(played, since=played.positions["credit gems"])) for wanted in expected)


def test_since_a_position_that_is_gone_is_a_finding(played: Played) -> None:
    at = played.positions["hold 4"]
    played.tamper(delete(LOG).where(LOG.c.position == at))
    gone = [each for each in findings(played, since=at) if each.kind == "log_gap"]
    assert [(each.ids["position"], each.found) for each in gone] == [(at, None)]


def test_more_findings_than_are_read_end_with_saying_so(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (ledger_verify, wallets_verify):
        monkeypatch.setattr(module, "MOST_FINDINGS", 3)
    played.tamper(update(TRANSACTIONS).values(request_id="other"))
    found = findings(played)
    assert [each.kind for each in found] == ["seal_broken"] * 3 + ["more_findings"]
    assert [each.ids.get("position") for each in found] == [1, 2, 3, None]
    assert found[-1].ids == {"check": "seals"}


def test_the_entries_of_a_whole_ledger_gone_are_named_one_by_one(played: Played) -> None:
    played.tamper(delete(ENTRIES))
    found = findings(played)
    without = {each.ids["transaction_id"] for each in found if each.kind == "transaction_without_entries"}
    assert without == set(played.ids.values())
    kinds = {each.kind for each in found}
    assert {"user_wallet_unexplained", "model_wallet_unexplained", "seal_broken"} <= kinds


def test_every_row_of_the_ledger_gone_leaves_a_log_of_what_is_missing(played: Played) -> None:
    played.tamper(delete(ENTRIES), delete(TRANSACTIONS))
    missing = [each.ids for each in findings(played) if each.kind == "sealed_transaction_missing"]
    assert missing == [played.at(name) for name in sorted(played.positions, key=played.positions.__getitem__)]


def test_all_damages_of_the_same_kind_are_named_not_only_the_first(played: Played) -> None:
    doubled = update(ENTRIES).where(func.abs(ENTRIES.c.amount) > 0).values(amount=literal_column("amount * 2"))
    played.tamper(doubled)
    found = findings(played)
    entries = [row for row in played.rows[ENTRIES] if row["wallet_version"] is not None and row["amount"]]
    assert len([each for each in found if each.kind == "balance_sum"]) == len(entries)
    touches = {played.positions[name] for name in ("open model", "open user")}
    broken = {each.ids["position"] for each in found if each.kind == "seal_broken"}
    assert broken == set(played.positions.values()) - touches


@pytest.mark.parametrize("value", ["'many'", "x'00ff'", "1.5"])
def test_a_balance_that_is_no_number_is_a_finding_and_not_a_crash(sqlite_url: str, value: str) -> None:
    for played in play_on(sqlite_url):
        played.tamper(text(f"UPDATE ledger_entries SET balance_after = {value} WHERE wallet_version = 6"))
        found = findings(played)
        assert {"balance_sum", "seal_broken"} <= {each.kind for each in found}


@pytest.mark.parametrize("details", ["", "no JSON", "[]", "5", '{"source":5,"reference":[]}', '{"source":"\\u0000"}'])
def test_details_that_cannot_be_read_are_findings_and_hide_no_other(played: Played, details: str) -> None:
    played.tamper(
        played.transaction("deposit", details_json=details), update(ESCROW_ITEMS).values(status="held", amount=6)
    )
    kinds = {each.kind for each in findings(played)}
    assert "seal_broken" in kinds
    assert kinds & {"unreadable", "deposit_claim_missing", "deposit_claim_unexplained"}
    assert {"escrow_item_differs", "escrow_balance"} <= kinds
