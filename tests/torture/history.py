"""What the journals say: every call with its answer and its events; and what the ledger says, from its rows alone."""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, text

from points_platform.core import Database

from .journal import Line
from .operations import ENDS, OPERATIONS, claim_of, owner_of

Key = tuple[str, str, str]
NOTHING: Line = {"transaction_id": None, "version": 0, "available": 0, "escrow": 0, "earned": 0}


@dataclass
class Call:
    """One call of a client. ``answer`` is ``None`` where the process died first."""

    client: str
    asked: Line
    answer: Line | None = None
    events: list[Line] = field(default_factory=list)

    @property
    def name(self) -> str:
        return str(self.asked["call"])

    @property
    def form(self) -> str:
        return str(self.asked["form"])

    @property
    def whole(self) -> bool:
        """Whether it commits once. (A batch that is not atomic may be tried again for what was refused at first.)"""
        return self.form == "session" or bool(self.asked["atomic"])

    @property
    def invoked(self) -> float:
        return float(self.asked["at"])

    @property
    def returned(self) -> float:
        return float(self.answer["at"]) if self.answer else math.inf

    @property
    def committed(self) -> bool | None:
        """Whether what was answered is in force; ``None`` where nobody knows."""
        if self.answer is None or "unexpected" in self.answer:
            return None
        if "error" in self.answer:
            return None if self.answer["error"]["code"] == "storage_unavailable" else False
        committed: bool | None = self.answer.get("committed", True)
        return committed

    def outcomes(self) -> Iterator[tuple[Line, Line]]:
        """Each part that was answered, with its answer: a response or a refusal."""
        if self.answer is None:
            return
        parts = self.asked["parts"]
        if "outcomes" in self.answer:
            yield from zip(parts, self.answer["outcomes"], strict=False)
        elif "error" in self.answer:
            index = self.answer["error"]["details"].get("index", 0)
            yield parts[int(index)], self.answer["error"]

    def successes(self) -> Iterator[tuple[Line, Line]]:
        """The parts that were answered with a transaction."""
        return ((part, outcome) for part, outcome in self.outcomes() if "transaction_id" in outcome)


def calls_of(client: str, journal: Iterable[Line]) -> list[Call]:
    """The calls in a client's journal, in order."""
    calls: dict[str, Call] = {}
    for line in journal:
        if "answer" in line:
            calls[line["answer"]].answer = line
        elif "event" in line:
            calls[line["during"]].events.append(line["event"])
        elif "call" in line:
            calls[line["call"]] = Call(client, line)
    return list(calls.values())


def key_of(part: Line) -> Key:
    """What a request's key belongs to."""
    return owner_of(part["request"]), part["operation"], part["key"]


def version_of(entry: Line) -> int:
    """Which version of its wallet an entry has made."""
    version: int = entry["wallet_version"]
    return version


def without_flag(answer: Line) -> Line:
    """An answer without what tells a replay from the first one."""
    return {name: value for name, value in answer.items() if name != "replayed"}


@dataclass
class Ledger:
    """The rows, by what the judge asks for.

    ``states`` are a wallet's balances, by version, from 0 on; ``lines`` the entries of an account, oldest first, as
    a statement has them; ``holds`` and ``ends`` the transactions of an escrow item; ``claims`` those of deposits.
    """

    transactions: dict[str, Line]
    by_key: dict[Key, Line]
    states: dict[str, list[Line]]
    items: dict[str, Line]
    holds: dict[str, Line]
    ends: dict[str, Line]
    lines: dict[tuple[str, str], list[Line]]
    claims: dict[tuple[str, str], Line]

    @classmethod
    def of(cls, database: Database) -> "Ledger":
        """What is in it now."""
        with database.snapshot() as connection:
            return cls._read(connection)

    @classmethod
    def _read(cls, connection: Connection) -> "Ledger":
        transactions = {
            row["transaction_id"]: row | {"entries": [], "details": json.loads(row["details"] or "{}")}
            for row in _rows(connection, "ledger_transactions")
        }
        versions: dict[str, dict[int, Line]] = defaultdict(dict)
        entries: dict[tuple[str, str], list[Line]] = defaultdict(list)
        for row in _rows(connection, "ledger_entries"):
            transactions[row["transaction_id"]]["entries"].append(row)
            if not row["account_id"].startswith("platform:"):
                entries[row["account_id"], row["bucket"]].append(_line(row, transactions[row["transaction_id"]]))
                state = versions[row["account_id"]].setdefault(row["wallet_version"], {})
                state |= {"transaction_id": row["transaction_id"], row["bucket"]: row["balance_after"]}
        keys = {(row["owner_id"], row["operation"], row["idempotency_key"]): row for row in transactions.values()}
        items = {row["escrow_id"]: _item(row) for row in _rows(connection, "escrow_items")}
        holds = {row["escrow_id"]: row for row in transactions.values() if row["operation"] == "hold"}
        ends = {row["escrow_id"]: row for row in transactions.values() if row["operation"] in ENDS}
        states = {account: _states(found) for account, found in versions.items()}
        lines = {account: sorted(found, key=version_of) for account, found in entries.items()}
        claims = {(row["source"], row["reference"]): row for row in _rows(connection, "deposit_claims")}
        return cls(transactions, keys, states, items, holds, ends, lines, claims)

    def transaction_of(self, part: Line) -> Line | None:
        """What a request has done, or another one that has deposited the same; nothing if there is none."""
        found = self.by_key.get(key_of(part))
        claim = self.claims.get(claim_of(part["operation"], part["request"]) or ("", ""))
        if found is None and claim is not None and not claimed_otherwise(claim, part["request"]):
            return self.transactions.get(claim["transaction_id"])
        return found

    def states_of(self, account: str) -> list[Line]:
        """Those of a wallet that may not be there."""
        return self.states.get(account, [NOTHING])

    def answer(self, transaction: Line) -> Line:
        """What whoever asked for this transaction must have been told."""
        own = {each["bucket"]: each for each in transaction["entries"] if each["account_id"] == transaction["owner_id"]}
        answer = {"transaction_id": transaction["transaction_id"], "timestamp": _moment(transaction["occurred_at"])}
        if transaction["operation"] in ENDS:
            return answer | self._of_an_end(transaction, own)
        if transaction["operation"] != "open" and (available := own.get("available")):
            answer["previous_balance"] = available["balance_before"]
            answer["new_available_balance"] = available["balance_after"]
        if "escrow" in own:
            answer |= {"escrow_id": transaction["escrow_id"], "escrow_balance": own["escrow"]["balance_after"]}
        return answer

    def _of_an_end(self, transaction: Line, own: Line) -> Line:
        answer: Line = {}
        for earned in (each for each in transaction["entries"] if each["bucket"] == "earned"):
            answer |= {"settled_amount": earned["amount"], "model_earned_balance": earned["balance_after"]}
        if available := own.get("available"):
            answer |= {"refunded_amount": available["amount"], "user_available_balance": available["balance_after"]}
        return answer

    def event(self, transaction: Line) -> Line:
        """What must have been announced of this transaction."""
        operation = transaction["operation"]
        names = ("transaction_id", "idempotency_key", "request_id", "currency", "reason")
        event = self.answer(transaction) | {name: transaction[name] for name in names}
        event["occurred_at"] = event.pop("timestamp")
        event |= {
            "event_id": transaction["transaction_id"],
            "event_type": OPERATIONS[operation].event,
            "metadata_json": transaction["metadata"],
            "schema_version": 1,
        }
        event |= {name: transaction["details"].get(name) for name in OPERATIONS[operation].details}
        if operation == "open":
            return event | {"owner": transaction["owner_id"]}
        event["user_id"] = transaction["owner_id"].removeprefix("user:")
        if "new_available_balance" in event:
            event["amount"] = abs(event["new_available_balance"] - event["previous_balance"])
        if operation == "transfer":
            takers = [each["account_id"] for each in transaction["entries"] if each["amount"] > 0]
            event["recipient_id"] = ", ".join(takers).removeprefix("user:")
        if operation in ("hold", *ENDS):
            event |= {name: transaction[name] for name in ("escrow_id", "queue_item_id", "feature_type")}
        if operation in ENDS:
            event["authorization_id"] = transaction["authorization_id"]
        if operation in ("settle", "partial_settle"):
            event["model_id"] = transaction["model_id"]
        return event


def claimed_otherwise(claim: Line, request: Line) -> set[str]:
    """In what a deposit is another than the one that has its claim."""
    said = {"user_id": owner_of(request), "amount": request["amount"], "currency": request["currency"] or "points"}
    claimed = {"user_id": claim["owner_id"], "amount": claim["amount"], "currency": claim["currency"]}
    return {name for name in said if said[name] != claimed[name]}


def _states(versions: dict[int, Line]) -> list[Line]:
    """A version's entries name only the buckets that changed; the others are as before."""
    states = [NOTHING]
    for version in sorted(versions):
        states.append({**states[-1], **versions[version], "version": version})
    return states


def _rows(connection: Connection, table: str) -> Iterator[Line]:
    return (dict(row._mapping) for row in connection.execute(text(f"SELECT * FROM {table}")))


def _line(entry: Line, transaction: Line) -> Line:
    """An entry as a statement must have it."""
    names = ("account_id", "bucket", "amount", "balance_before", "balance_after", "wallet_version")
    of_transaction = (
        *("transaction_id", "operation", "reason", "currency", "request_id", "idempotency_key"),
        *("escrow_id", "queue_item_id", "feature_type", "model_id"),
    )
    line = {name: entry[name] for name in names} | {"posted_at": _moment(entry["posted_at"])}
    return line | {name: transaction[name] for name in of_transaction} | {"metadata_json": transaction["metadata"]}


def _item(row: Line) -> Line:
    """An escrow item as it must be read now."""
    item = {name: value for name, value in row.items() if name not in ("metadata", "owner_id")}
    item["user_id"] = row["owner_id"].removeprefix("user:")
    times = {name: item[name] and _moment(item[name]) for name in ("created_at", "processed_at", "expires_at")}
    return item | times | {"metadata_json": row["metadata"]}


def _moment(value: Any) -> str:
    time = datetime.fromisoformat(value) if isinstance(value, str) else value
    return (time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)).isoformat()
