"""What must hold at any moment, also in the middle of everything: looked at in one snapshot."""

import json
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import Connection, text

from points_platform.core import Database
from points_platform.wallets.verify import verify

from .journal import Line

NEGATIVE = (
    "SELECT 'user ' || user_id FROM user_wallets WHERE available < 0 OR escrow < 0"
    " UNION ALL SELECT 'model ' || model_id FROM model_wallets WHERE earned < 0"
)
IN_WALLETS = (
    "SELECT coalesce((SELECT sum(available) + sum(escrow) FROM user_wallets), 0)"
    " + coalesce((SELECT sum(earned) FROM model_wallets), 0)"
)
CREDITED = (
    "SELECT coalesce(sum(amount), 0) FROM ledger_entries JOIN ledger_transactions USING (transaction_id)"
    " WHERE operation = 'credit' AND bucket = 'available'"
)
ALL_KNOWN = "SELECT transaction_id FROM ledger_transactions"


class Acknowledged:
    """The transactions that the journals say were acknowledged, read as they grow."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, int] = {}
        self.succeeded: dict[str, float] = {}
        self._committed: set[str] = set()

    def update(self) -> set[str]:
        """Read what is new; returns the transactions acknowledged since the last time."""
        new: set[str] = set()
        for path in sorted(self._folder.glob("*_*.jsonl")):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                text_ = file.read()
            complete = text_[: text_.rfind(b"\n") + 1]
            self._read[path] = self._read.get(path, 0) + len(complete)
            for line in map(json.loads, complete.splitlines()):
                if line.get("outcomes") and line.get("committed", True):
                    self.succeeded[path.name.partition("_")[0]] = line["at"]
                    new |= _acknowledged(line)
        return new


def _acknowledged(line: Line) -> set[str]:
    return {outcome["transaction_id"] for outcome in line["outcomes"] if "transaction_id" in outcome}


def look(database: Database, acknowledged: set[str]) -> Iterator[str]:
    """What is wrong at this moment. Raises the module's errors where the database is out of reach."""
    with database.snapshot() as connection:
        yield from _totals(connection)
        there = set(connection.execute(text(ALL_KNOWN)).scalars())
        yield from (f"{each}: acknowledged, and not in the ledger" for each in acknowledged - there)
    yield from (str(finding) for finding in verify(database))


def _totals(connection: Connection) -> Iterator[str]:
    yield from (f"{each} has a negative balance" for each in connection.execute(text(NEGATIVE)).scalars())
    wallets, credited = connection.scalar(text(IN_WALLETS)), connection.scalar(text(CREDITED))
    if wallets != credited:
        yield f"the wallets have {wallets} points, credited were {credited}"
