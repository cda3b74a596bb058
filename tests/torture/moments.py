"""What must hold at any moment, also in the middle of everything: looked at in one snapshot."""

import json
from collections.abc import Iterator, Set
from pathlib import Path

from sqlalchemy import Connection, text

from points_platform.core import Database
from points_platform.ledger import LedgerService, LogHead
from points_platform.wallets.verify import verify
from support.recount import recount_on

from .journal import acknowledged_by

NEGATIVE = (
    "SELECT owner_id FROM user_wallets WHERE available < 0 OR escrow < 0 OR paying < 0"
    " UNION ALL SELECT owner_id FROM model_wallets WHERE earned < 0 OR paying < 0"
)
IN_WALLETS = (
    "SELECT coalesce((SELECT sum(available) + sum(escrow) + sum(paying) FROM user_wallets), 0)"
    " + coalesce((SELECT sum(earned) + sum(paying) FROM model_wallets), 0)"
)
# What came from outside, and has not been spent.
LEFT = (
    "SELECT coalesce(sum(amount), 0) FROM ledger_entries JOIN ledger_transactions USING (transaction_id)"
    " WHERE operation IN ('credit', 'deposit', 'spend') AND bucket = 'available'"
)
ALL_KNOWN = "SELECT transaction_id FROM ledger_transactions"


class Acknowledged:
    """What the journals say was acknowledged, as they grow."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, int] = {}
        self.transactions: set[str] = set()

    def update(self) -> None:
        """Read what is new."""
        for path in sorted(self._folder.glob("*_*.jsonl")):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                text_ = file.read()
            complete = text_[: text_.rfind(b"\n") + 1]
            self._read[path] = self._read.get(path, 0) + len(complete)
            for line in map(json.loads, complete.splitlines()):
                self.transactions |= {each["transaction_id"] for each in acknowledged_by(line)}


class Moments:
    """Looks at one database from time to time, and seals its ledger, so that no row may change from then on."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._head: LogHead | None = None

    def look(self, acknowledged: Set[str]) -> list[str]:
        """What is wrong at this moment. Raises the module's errors where the database is out of reach."""
        with self._database.snapshot() as connection:
            found = [*_totals(connection), *_recounted(connection)]
            there = set(connection.execute(text(ALL_KNOWN)).scalars())
        found += (f"{each}: acknowledged, and not in the ledger" for each in acknowledged - there)
        # A planted bug has taken walls down, and is to be found by what it does.
        found += (str(each) for each in verify(self._database, head=self._head) if each.kind != "constraint_missing")
        if not found:
            LedgerService(self._database).seal()
            self._head = LedgerService(self._database).head()
        return found


def _recounted(connection: Connection) -> Iterator[str]:
    try:
        recount_on(connection)
    except AssertionError as error:
        yield f"recount: {error}"


def _totals(connection: Connection) -> Iterator[str]:
    yield from (f"{each} has a negative balance" for each in connection.execute(text(NEGATIVE)).scalars())
    wallets, left = connection.scalar(text(IN_WALLETS)), connection.scalar(text(LEFT))
    if wallets != left:
        yield f"the wallets have {wallets} points, credited and not spent were {left}"
