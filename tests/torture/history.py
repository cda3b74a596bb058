"""What the journals say: every call with its answer and its events; and what the ledger says, from its rows alone."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, text

from .journal import Line

Key = tuple[str, str, str]
WALLET_BUCKETS = {"available", "escrow", "earned"}


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
    return f"user:{part['request']['user_id']}", part["operation"], part["key"]


def without_flag(answer: Line) -> Line:
    """An answer without what tells a replay from the first one."""
    return {name: value for name, value in answer.items() if name != "replayed"}


@dataclass
class Ledger:
    """The rows, by what the judge asks for."""

    transactions: dict[str, Line]
    by_key: dict[Key, Line]
    versions: dict[str, dict[int, Line]]
    items: dict[str, Line]

    @classmethod
    def read(cls, connection: Connection) -> "Ledger":
        transactions = {
            row["transaction_id"]: row | {"entries": {}} for row in _rows(connection, "ledger_transactions")
        }
        versions: dict[str, dict[int, Line]] = defaultdict(dict)
        for row in _rows(connection, "ledger_entries"):
            transactions[row["transaction_id"]]["entries"][row["bucket"]] = row
            if row["bucket"] in WALLET_BUCKETS:
                state = versions[row["account_id"]].setdefault(
                    row["wallet_version"], {"transaction_id": row["transaction_id"]}
                )
                state[row["bucket"]] = row["balance_after"]
        for states in versions.values():
            _carry_on(states)
        keys = {(row["owner_id"], row["operation"], row["idempotency_key"]): row for row in transactions.values()}
        items = {row["escrow_id"]: row for row in _rows(connection, "escrow_items")}
        return cls(transactions, keys, dict(versions), items)

    def answer(self, transaction: Line) -> Line:
        """What whoever asked for this transaction must have been told."""
        entries = transaction["entries"]
        common = {"transaction_id": transaction["transaction_id"], "timestamp": _moment(transaction["occurred_at"])}
        available, escrow, earned = (entries.get(name) for name in ("available", "escrow", "earned"))
        match transaction["operation"]:
            case "credit" | "hold":
                before_and_after = {
                    "previous_balance": available["balance_before"],
                    "new_available_balance": available["balance_after"],
                }
                held = (
                    {"escrow_id": transaction["escrow_id"], "escrow_balance": escrow["balance_after"]} if escrow else {}
                )
                return common | before_and_after | held
            case _:
                settled = (
                    {"settled_amount": earned["amount"], "model_earned_balance": earned["balance_after"]}
                    if earned
                    else {}
                )
                refunded = (
                    {"refunded_amount": available["amount"], "user_available_balance": available["balance_after"]}
                    if available
                    else {}
                )
                return common | settled | refunded


def _carry_on(states: dict[int, Line]) -> None:
    """A version's entries name only the buckets that changed; the others are as before."""
    before: Line = {}
    for version in sorted(states):
        states[version] = before = {**before, **states[version]}


def _rows(connection: Connection, table: str) -> Iterator[Line]:
    return (dict(row._mapping) for row in connection.execute(text(f"SELECT * FROM {table}")))


def _moment(value: Any) -> str:
    time = datetime.fromisoformat(value) if isinstance(value, str) else value
    return (time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)).isoformat()
