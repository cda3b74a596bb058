"""Counts every invariant of the architecture document again, from the rows alone, with none of the module's code."""

from collections import defaultdict
from typing import Any

from sqlalchemy import Connection, text

from points_platform.core import Database

MAX_POINTS = 2**53 - 1


def recount(database: Database) -> None:
    """Assert the invariants 1 to 7 and 9 (8 and 10 are about what happens, not about what is there)."""
    with database.engine.connect() as connection:
        recount_on(connection)


def recount_on(connection: Connection) -> None:
    """The same on a connection, whose snapshot it may be."""
    transactions = _rows(connection, "ledger_transactions")
    entries = _rows(connection, "ledger_entries")
    items = _rows(connection, "escrow_items")
    wallets = {
        (f"{kind}:{row[f'{kind}_id']}", row["currency"]): row
        for kind in ("user", "model")
        for row in _rows(connection, f"{kind}_wallets")
    }
    _each_transaction_sums_to_zero(transactions, entries)
    _wallets_equal_their_entries(wallets, entries)
    _held_items_equal_escrow(wallets, items)
    _keys_are_used_once(transactions)
    _items_are_explained(items, transactions, entries)


def _rows(connection: Connection, table: str) -> list[dict[str, Any]]:
    return [dict(row._mapping) for row in connection.execute(text(f"SELECT * FROM {table}"))]


def _each_transaction_sums_to_zero(transactions: list[dict[str, Any]], entries: list[dict[str, Any]]) -> None:
    sums: dict[str, int] = defaultdict(int)
    for entry in entries:
        assert entry["amount"] != 0
        sums[entry["transaction_id"]] += entry["amount"]
    assert set(sums) == {transaction["transaction_id"] for transaction in transactions}, "entries without transaction"
    assert set(sums.values()) <= {0}, "invariant 1: a transaction does not sum to zero"


def _wallets_equal_their_entries(wallets: dict[Any, dict[str, Any]], entries: list[dict[str, Any]]) -> None:
    histories: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for entry in entries:
        if entry["bucket"] == "issued":
            assert (entry["balance_before"], entry["balance_after"], entry["wallet_version"]) == (None, None, None)
        else:
            histories[entry["account_id"], entry["currency"]].append(entry)
    assert set(histories) == set(wallets), "wallets without entries, or the other way round"
    for owner, history in histories.items():
        history.sort(key=lambda entry: entry["wallet_version"])
        wallet = wallets[owner]
        balances: dict[str, int] = defaultdict(int)
        for entry in history:
            assert entry["balance_before"] == balances[entry["bucket"]], "invariant 2: a gap between two balances"
            balances[entry["bucket"]] += entry["amount"]
            assert entry["balance_after"] == balances[entry["bucket"]], "invariant 2: a balance is not the sum"
            assert 0 <= entry["balance_after"] <= MAX_POINTS, "invariant 4"
        columns = ("available", "escrow") if owner[0].startswith("user:") else ("earned",)
        assert all(wallet[column] == balances[column] for column in columns), "invariant 2: wallet and ledger differ"
        assert sum(wallet[column] for column in columns) <= MAX_POINTS, "invariant 4"
        versions = sorted({entry["wallet_version"] for entry in history})
        assert versions == list(range(1, wallet["version"] + 1)), "invariant 9: a version is missing"
        times = [entry["posted_at"] for entry in history]
        assert times == sorted(times), "invariant 9: posted into the past"
        assert (wallet["created_at"], wallet["updated_at"]) == (times[0], times[-1])


def _held_items_equal_escrow(wallets: dict[Any, dict[str, Any]], items: list[dict[str, Any]]) -> None:
    held: dict[Any, int] = defaultdict(int)
    for item in items:
        if item["status"] == "held":
            held[f"user:{item['user_id']}", item["currency"]] += item["amount"]
    escrow = {owner: row["escrow"] for owner, row in wallets.items() if row.get("escrow")}
    assert held == escrow, "invariant 3: held items and escrow balances differ"


def _keys_are_used_once(transactions: list[dict[str, Any]]) -> None:
    keys = [(row["owner_id"], row["operation"], row["idempotency_key"]) for row in transactions]
    assert len(keys) == len(set(keys)), "invariant 5"


def _items_are_explained(
    items: list[dict[str, Any]], transactions: list[dict[str, Any]], entries: list[dict[str, Any]]
) -> None:
    by_escrow: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for transaction in transactions:
        if transaction["escrow_id"] is not None:
            by_escrow[transaction["escrow_id"]].append(transaction)
        assert (transaction["authorization_id"] is None) == (transaction["operation"] in {"credit", "hold"}), (
            "invariant 7"
        )
    assert set(by_escrow) == {item["escrow_id"] for item in items}, "items without transactions, or the other way round"
    amounts = {(entry["transaction_id"], entry["bucket"]): entry["amount"] for entry in entries}
    for item in items:
        hold, *ends = sorted(by_escrow[item["escrow_id"]], key=lambda row: row["operation"] != "hold")
        assert hold["operation"] == "hold"
        assert (hold["occurred_at"], hold["metadata"]) == (item["created_at"], item["metadata"])
        assert amounts[hold["transaction_id"], "escrow"] == item["amount"]
        assert len(ends) == (item["status"] != "held"), "invariant 6: it left 'held' more than once, or never"
        for end in ends:
            status = {"settle": "settled", "refund": "refunded", "partial_settle": "partially_settled"}[
                end["operation"]
            ]
            assert (item["status"], item["processed_at"]) == (status, end["occurred_at"])
            assert item["settled_amount"] + item["refunded_amount"] == item["amount"], "invariant 6"
            assert item["settled_amount"] == amounts.get((end["transaction_id"], "earned"), 0)
            assert item["refunded_amount"] == amounts.get((end["transaction_id"], "available"), 0)
            assert item["model_id"] == end["model_id"]
