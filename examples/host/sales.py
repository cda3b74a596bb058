"""What has sold how well: a table of the platform's, in which each settlement of the ledger counts exactly once.

    HOST_DATABASE=postgresql+psycopg://… python -m examples.host.sales

Run it by a timer, as often as the figures are to be fresh, and in as many places as there are.
"""

import os

from sqlalchemy.orm import Session

from points_platform.core import Database
from points_platform.ledger import Bucket, LedgerService, LogEntry, follow

from .tables import Sales


def count(entry: LogEntry, session: Session) -> None:
    """Add what a transaction has brought a model, if it has."""
    earned = sum(moved.amount for moved in entry.transaction.entries if moved.bucket == Bucket.EARNED)
    if earned and (feature := entry.transaction.feature_type):
        sales = session.get(Sales, feature) or Sales(feature=feature)
        sales.sold, sales.earned = sales.sold + 1, sales.earned + earned
        session.add(sales)


def main() -> None:
    with Database(os.environ["HOST_DATABASE"]) as database:
        follow(LedgerService(database), "sales", count)


if __name__ == "__main__":
    main()
