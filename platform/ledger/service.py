"""The ledger: writes each transaction once, answers what happened."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import Connection

from ..core.database import Database
from ..core.errors import InvalidRequestError
from ..core.values import (
    Page,
    check_code,
    check_identifier,
    check_limit,
    decode_cursor,
    encode_cursor,
)
from . import store
from .accounts import ISSUER, OWNER_KIND, Account, Bucket, is_legal, net
from .models import LedgerEntry, LedgerTransaction, StatementLine, TransactionDraft, WalletState


class LedgerService:
    """The append-only double-entry ledger in a ``Database``."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def record(
        self, connection: Connection, draft: TransactionDraft, wallets: Mapping[str, WalletState]
    ) -> LedgerTransaction:
        """Write the draft as a transaction, in the transaction of ``connection``: how the wallets write.

        ``wallets`` has each touched wallet, by account id, as the write before has left it. The
        entries derive from the draft's movements, so they sum to zero. Raises ``ValueError`` for
        movements that the operation must not make and for a wallet that is not given, and SQLAlchemy's
        ``IntegrityError`` when the idempotency key has been used: ``Database.run`` answers that.
        """
        if not is_legal(draft.operation, draft.movements):
            raise ValueError(f"{draft.operation} must not make the movements {draft.movements}")
        entries = (
            _entry(account, amount, wallets.get(account.account_id), draft.occurred_at)
            for account, amount in net(draft.movements).items()
        )
        if missing := [a for a in net(draft.movements) if a.account_id not in wallets and a != ISSUER]:
            raise ValueError(f"{draft.operation} was recorded without the wallets of {missing}")
        header = {name: value for name, value in vars(draft).items() if name != "movements"}
        transaction = LedgerTransaction(**header, entries=store.in_order(entries))
        store.add(connection, transaction)
        return transaction

    def transaction(self, transaction_id: str) -> LedgerTransaction | None:
        """The transaction with that id, ``None`` if there is none.

        Raises ``InvalidRequestError``, ``StorageUnavailableError``.
        """
        found = self.transactions([check_identifier("transaction_id", transaction_id)])
        return found[0] if found else None

    def transactions(self, transaction_ids: Sequence[str]) -> list[LedgerTransaction]:
        """Those of these transactions that exist, in the order of their ids."""
        with self.database.read() as connection:
            return store.transactions(connection, transaction_ids)

    def entries(
        self,
        account_id: str,
        currency: str,
        *,
        bucket: str | None = None,
        newest_first: bool = False,
        limit: int = 50,
        after: str | None = None,
    ) -> Page[StatementLine]:
        """A page of a statement: the entries on an owner's accounts in one currency, in the order of posting.

        ``account_id`` is ``user:…``, ``model:…`` or ``platform:issuer``; ``bucket`` narrows it to one
        account. Pages stay right while entries arrive, since a wallet's entries are never posted into
        its past. Raises ``InvalidRequestError``, ``StorageUnavailableError``.
        """
        accounts = _accounts(account_id, bucket)
        check_code("currency", currency)
        check_limit("limit", limit)
        edge = None if after is None else _edge(after)
        with self.database.read() as connection:
            lines = store.lines(connection, accounts, currency, limit=limit + 1, after=edge, newest=newest_first)
        items = tuple(lines[:limit])
        return Page(items=items, next=_cursor(items[-1]) if len(lines) > limit else None)


def _entry(account: Account, amount: int, wallet: WalletState | None, occurred_at: datetime) -> LedgerEntry:
    after = wallet.balances[account.bucket] if wallet else None
    return LedgerEntry(
        account_id=account.account_id,
        bucket=account.bucket.value,
        amount=amount,
        balance_before=None if after is None else after - amount,
        balance_after=after,
        wallet_version=wallet.version if wallet else None,
        posted_at=wallet.posted_at if wallet else occurred_at,
    )


def _accounts(account_id: str, bucket: str | None) -> list[Account]:
    kind, separator, owner = account_id.partition(":") if isinstance(account_id, str) else ("", "", "")
    buckets = [b for b, owner_kind in OWNER_KIND.items() if owner_kind == kind and bucket in (None, b)]
    if not separator:
        buckets = []
    if not buckets and bucket is not None and kind in OWNER_KIND.values():
        raise InvalidRequestError(field="bucket", value=bucket, expected=f"a bucket of a {kind}")
    if not buckets:
        raise InvalidRequestError(field="account_id", value=account_id, expected="user:…, model:… or platform:issuer")
    check_identifier("account_id", owner)
    return [Account(account_id, Bucket(b)) for b in buckets]


def _cursor(line: StatementLine) -> str:
    posted_at, version, transaction_id, bucket = store.place(line)
    return encode_cursor(posted_at, version, transaction_id, bucket)


def _edge(after: str) -> store.Place:
    posted_at, version, transaction_id, bucket = decode_cursor("after", after, datetime, int, str, str)
    return posted_at, version, transaction_id, bucket
