"""Counts every invariant of the architecture document again, from the rows alone, with none of the module's code."""

import json
from collections import defaultdict
from typing import Any

from sqlalchemy import Connection

from points_platform.core import Database

from .raw import raw_rows
from .reference import STATUS

MAX_POINTS = 2**53 - 1
BUCKETS = {"user": ("available", "escrow", "paying"), "model": ("earned", "paying")}
USER, OTHER, MODEL, ISSUER, REVENUE = "user", "another user", "model", "platform:issuer", "platform:revenue"
# Whose points each operation moves, in which direction: once each, and nothing else.
MOVES = {
    "credit": {(ISSUER, "issued", -1), (USER, "available", +1)},
    "deposit": {(ISSUER, "issued", -1), (USER, "available", +1)},
    "hold": {(USER, "available", -1), (USER, "escrow", +1)},
    "settle": {(USER, "escrow", -1), (MODEL, "earned", +1)},
    "refund": {(USER, "escrow", -1), (USER, "available", +1)},
    "partial_settle": {(USER, "escrow", -1), (USER, "available", +1), (MODEL, "earned", +1)},
    "spend": {(USER, "available", -1), (REVENUE, "revenue", +1)},
    "transfer": {(USER, "available", -1), (OTHER, "available", +1)},
}
TOUCHES = {"open": [{(USER, "available", 0)}, {(MODEL, "earned", 0)}]}
# What the header of an operation has no room for.
DETAILS = {"spend": [set(), {"order_id"}], "deposit": [{"source", "reference"}]}
Row = dict[str, Any]
Wallets = dict[tuple[str, str], Row]


def recount(database: Database) -> None:
    """Assert the invariants 1 to 7, 9 and 11 (8 and 10 are about what happens, not about what is there)."""
    with database.engine.connect() as connection:
        recount_on(connection)


def recount_on(connection: Connection) -> None:
    """The same on a connection, whose snapshot it may be."""
    transactions = _rows(connection, "ledger_transactions")
    entries: dict[str, list[Row]] = defaultdict(list)
    for entry in _rows(connection, "ledger_entries"):
        entries[entry["transaction_id"]].append(entry)
    items = _rows(connection, "escrow_items")
    wallets = _wallets(connection)
    assert set(entries) == {transaction["transaction_id"] for transaction in transactions}, (
        "entries without transaction"
    )
    for transaction in transactions:
        _it_moves_what_its_operation_may(transaction, entries[transaction["transaction_id"]])
    _wallets_equal_their_entries(wallets, [entry for found in entries.values() for entry in found])
    _held_items_equal_escrow(wallets, items)
    _keys_are_used_once(transactions)
    _items_are_explained(items, transactions, entries)
    _claims_are_explained(_rows(connection, "deposit_claims"), transactions, entries)


def _rows(connection: Connection, table: str) -> list[Row]:
    names, rows = raw_rows(connection, table)
    return [dict(zip(names, row, strict=True)) for row in rows]


def _wallets(connection: Connection) -> Wallets:
    wallets: Wallets = {}
    for kind in BUCKETS:
        for row in _rows(connection, f"{kind}_wallets"):
            assert row["owner_id"].startswith(f"{kind}:"), "somebody's wallet in another's table"
            assert row["state"] == "active", "nothing changes a wallet's state yet"
            wallets[row["owner_id"], row["currency"]] = row
    return wallets


def _it_moves_what_its_operation_may(transaction: Row, entries: list[Row]) -> None:
    operation, moved = transaction["operation"], {_direction(transaction, entry) for entry in entries}
    assert sum(entry["amount"] for entry in entries) == 0, "invariant 1: a transaction does not sum to zero"
    assert operation in {*MOVES, *TOUCHES}, f"MOVES and TOUCHES have nothing for {operation}"
    assert moved == MOVES[operation] if operation in MOVES else moved in TOUCHES[operation], (
        f"{operation} moves {moved}"
    )
    assert len(moved) == len(entries), f"{operation} moves the same twice"
    assert {entry["currency"] for entry in entries} == {transaction["currency"]}
    assert (transaction["authorization_id"] is not None) == (operation in STATUS), "invariant 7"
    told = set() if transaction["details"] is None else set(json.loads(transaction["details"]))
    assert told in DETAILS.get(operation, [set()]), f"{operation} tells {told}"
    assert (transaction["details"] is None) == (not told), "details that tell nothing"


def _direction(transaction: Row, entry: Row) -> tuple[str, str, int]:
    kind = entry["account_id"].partition(":")[0]
    if kind == "user" and entry["account_id"] != transaction["owner_id"]:
        kind = OTHER
    amount: int = entry["amount"]
    whose = entry["account_id"] if kind == "platform" else kind
    return whose, entry["bucket"], (amount > 0) - (amount < 0)


def _wallets_equal_their_entries(wallets: Wallets, entries: list[Row]) -> None:
    histories: dict[Any, list[Row]] = defaultdict(list)
    for entry in entries:
        if entry["account_id"].startswith("platform:"):
            assert (entry["balance_before"], entry["balance_after"], entry["wallet_version"]) == (None, None, None)
        else:
            histories[entry["account_id"], entry["currency"]].append(entry)
    assert set(histories) == set(wallets), "wallets without entries, or the other way round"
    for owner, history in histories.items():
        _wallet_equals_its_entries(wallets[owner], sorted(history, key=lambda entry: entry["wallet_version"]))


def _wallet_equals_its_entries(wallet: Row, history: list[Row]) -> None:
    balances: dict[str, int] = defaultdict(int)
    for entry in history:
        assert entry["balance_before"] == balances[entry["bucket"]], "invariant 2: a gap between two balances"
        balances[entry["bucket"]] += entry["amount"]
        assert entry["balance_after"] == balances[entry["bucket"]], "invariant 2: a balance is not the sum"
        assert 0 <= entry["balance_after"] <= MAX_POINTS, "invariant 4"
    buckets = BUCKETS[wallet["owner_id"].partition(":")[0]]
    assert set(balances) <= set(buckets), "a bucket that this wallet has not"
    assert all(wallet[bucket] == balances[bucket] for bucket in buckets), "invariant 2: wallet and ledger differ"
    assert sum(wallet[bucket] for bucket in buckets) <= MAX_POINTS, "invariant 4"
    versions = sorted({entry["wallet_version"] for entry in history})
    assert versions == list(range(1, wallet["version"] + 1)), "invariant 9: a version is missing"
    assert len({(entry["wallet_version"], entry["transaction_id"]) for entry in history}) == len(versions), (
        "invariant 9: a version that two transactions have made"
    )
    times = [entry["posted_at"] for entry in history]
    assert times == sorted(times), "invariant 9: posted into the past"
    assert (wallet["created_at"], wallet["updated_at"]) == (times[0], times[-1])


def _held_items_equal_escrow(wallets: Wallets, items: list[Row]) -> None:
    held: dict[Any, int] = defaultdict(int)
    for item in items:
        if item["status"] == "held":
            held[item["owner_id"], item["currency"]] += item["amount"]
    escrow = {owner: row["escrow"] for owner, row in wallets.items() if row.get("escrow")}
    assert held == escrow, "invariant 3: held items and escrow balances differ"


def _keys_are_used_once(transactions: list[Row]) -> None:
    keys = [(row["owner_id"], row["operation"], row["idempotency_key"]) for row in transactions]
    assert len(keys) == len(set(keys)), "invariant 5"


def _items_are_explained(items: list[Row], transactions: list[Row], entries: dict[str, list[Row]]) -> None:
    by_escrow: dict[str, list[Row]] = defaultdict(list)
    for transaction in transactions:
        if transaction["escrow_id"] is not None:
            by_escrow[transaction["escrow_id"]].append(transaction)
    assert set(by_escrow) == {item["escrow_id"] for item in items}, "items without transactions, or the other way round"
    for item in items:
        hold, *ends = sorted(by_escrow[item["escrow_id"]], key=lambda row: row["operation"] != "hold")
        assert (hold["operation"], hold["owner_id"]) == ("hold", item["owner_id"])
        assert (hold["occurred_at"], hold["metadata"]) == (item["created_at"], item["metadata"])
        assert _moved(entries, hold, "escrow") == item["amount"]
        assert len(ends) == (item["status"] != "held"), "invariant 6: it left 'held' more than once, or never"
        for end in ends:
            assert (item["status"], item["processed_at"]) == (STATUS[end["operation"]], end["occurred_at"])
            assert item["settled_amount"] + item["refunded_amount"] == item["amount"], "invariant 6"
            assert item["settled_amount"] == _moved(entries, end, "earned")
            assert item["refunded_amount"] == _moved(entries, end, "available")
            assert (item["owner_id"], item["model_id"]) == (end["owner_id"], end["model_id"])


def _claims_are_explained(claims: list[Row], transactions: list[Row], entries: dict[str, list[Row]]) -> None:
    deposits = {row["transaction_id"]: row for row in transactions if row["operation"] == "deposit"}
    assert len({(claim["source"], claim["reference"]) for claim in claims}) == len(claims), "invariant 11"
    assert sorted(claim["transaction_id"] for claim in claims) == sorted(deposits), (
        "invariant 11: deposits without a claim, or the other way round"
    )
    for claim in claims:
        deposit = deposits[claim["transaction_id"]]
        assert json.loads(deposit["details"]) == {name: claim[name] for name in ("source", "reference")}, "invariant 11"
        assert all(claim[name] == deposit[name] for name in ("owner_id", "currency")), "invariant 11"
        assert claim["amount"] == _moved(entries, deposit, "available"), "invariant 11"
        assert claim["created_at"] == deposit["occurred_at"]


def _moved(entries: dict[str, list[Row]], transaction: Row, bucket: str) -> int:
    """What a transaction has brought to a bucket, of whomever."""
    return sum(entry["amount"] for entry in entries[transaction["transaction_id"]] if entry["bucket"] == bucket)
