"""The ledger: writes each transaction once, answers what happened."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial

from sqlalchemy import Connection

from ..core.errors import InvalidRequestError
from ..core.rows import chunks
from ..core.sessions import HostSession
from ..core.values import (
    Page,
    check_code,
    check_count,
    check_identifier,
    check_limit,
    check_reason,
    check_time,
    decode_cursor,
    encode_cursor,
    plain_string,
)
from . import store
from .accounts import PLATFORM, WALLETS, Account, accounts_of, check_name, earned, has_wallet
from .models import EarningsPeriod, LedgerTransaction, StatementLine, StatementTransaction
from .periods import period_edges
from .sealing import LedgerLog


class LedgerService(LedgerLog):
    """The append-only double-entry ledger in a ``Database``, and its log.

    What reads takes the caller's SQLAlchemy ``session``, and then sees what its transaction sees. The first call of
    any method raises ``SchemaVersionError`` for a database without this release's schema.
    """

    def record(self, connection: Connection, transactions: Sequence[LedgerTransaction]) -> None:
        """Write posted transactions, in the transaction of ``connection``: how the wallets write.

        Raises SQLAlchemy's ``IntegrityError`` when an idempotency key has been used: ``Database.run``
        answers that.
        """
        store.add(connection, transactions)

    def transaction(self, transaction_id: str, *, session: HostSession = None) -> LedgerTransaction | None:
        """The transaction with that id, ``None`` if there is none.

        Raises ``InvalidRequestError``, ``StorageUnavailableError``.
        """
        found = self.transactions([check_identifier("transaction_id", transaction_id)], session=session)
        return found[0] if found else None

    def transactions(self, transaction_ids: Sequence[str], *, session: HostSession = None) -> list[LedgerTransaction]:
        """Those of these transactions that exist, each once, in the order of their ids; a list or tuple of ids.

        Raises ``InvalidRequestError``, ``StorageUnavailableError``.
        """
        if not isinstance(transaction_ids, list | tuple):
            raise InvalidRequestError(field="transaction_ids", value=transaction_ids, expected="a list of ids")
        ids = sorted({check_identifier("transaction_ids", each) for each in transaction_ids})

        def found(connection: Connection) -> list[LedgerTransaction]:
            return [each for part in chunks(ids) for each in store.transactions(connection, part)]

        return self.database.ask(found, session=session)

    def transactions_of_escrow(self, escrow_id: str, *, session: HostSession = None) -> list[LedgerTransaction]:
        """The life of one hold: the hold first, then what ended it. Empty for an unknown id.

        Raises ``InvalidRequestError``, ``StorageUnavailableError``.
        """
        asked = partial(store.transactions_of_escrow, escrow_id=check_identifier("escrow_id", escrow_id))
        return self.database.ask(asked, session=session)

    def entries(
        self,
        account_id: str,
        currency: str,
        *,
        bucket: str | None = None,
        operation: str | None = None,
        reason: str | None = None,
        escrow_id: str | None = None,
        queue_item_id: str | None = None,
        request_id: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        newest_first: bool = False,
        limit: int = 50,
        after: str | None = None,
        session: HostSession = None,
    ) -> Page[StatementLine]:
        """A page of a statement: the entries on an owner's accounts in one currency, in the order of posting.

        ``account_id`` is ``user:…``, ``model:…`` or an account of the platform's, like ``platform:issuer``;
        ``bucket`` narrows it to one account, the other filters to transactions that have these values,
        ``since`` (inclusive) and ``until`` (exclusive) to the time of posting, in any UTC offset. Pages of users and
        models stay right while entries arrive, since a wallet's entries are never posted into its past; the
        platform has no wallet, and its entries have the times of their transactions. Raises ``InvalidRequestError``,
        ``StorageUnavailableError``.
        """
        values = {"operation": operation, "reason": reason, "escrow_id": escrow_id}
        equal = _filters({**values, "queue_item_id": queue_item_id, "request_id": request_id})
        span, edge = _span(since, until), None if after is None else _edge(after)
        which = store.Which(_accounts(account_id, bucket), check_code("currency", currency), equal, span)
        more = check_limit("limit", limit) + 1
        asked = partial(store.lines, which=which, limit=more, after=edge, newest=newest_first)
        found = self.database.ask(asked, session=session)
        items = tuple(found[:limit])
        return Page(items=items, next=_cursor(items[-1]) if len(found) > limit else None)

    def statement(
        self,
        account_id: str,
        currency: str,
        *,
        operation: str | None = None,
        reason: str | None = None,
        escrow_id: str | None = None,
        queue_item_id: str | None = None,
        request_id: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        newest_first: bool = False,
        limit: int = 50,
        after: str | None = None,
        session: HostSession = None,
    ) -> Page[StatementTransaction]:
        """The same as ``entries`` with one line for each transaction, though it has two entries, as a hold has.

        A line has all that the transaction was (feature, model, metadata and details too), and what it did to each
        bucket of this owner. Filters, order, and what it raises are those of ``entries``; the cursors are its own.
        """
        values = {"operation": operation, "reason": reason, "escrow_id": escrow_id}
        equal = _filters({**values, "queue_item_id": queue_item_id, "request_id": request_id})
        span, edge = _span(since, until), None if after is None else _edge_beyond(after, newest_first)
        which = store.Which(_accounts(account_id, None), check_code("currency", currency), equal, span)
        check_limit("limit", limit)
        asked = partial(store.statement, which=which, limit=limit, after=edge, newest=newest_first)
        found = self.database.ask(asked, session=session)
        items = tuple(found[:limit])
        return Page(items=items, next=_cursor_of(items[-1]) if len(found) > limit else None)

    def balance_as_of(
        self,
        account: Account,
        currency: str,
        *,
        at: datetime | None = None,
        version: int | None = None,
        session: HostSession = None,
    ) -> int:
        """The exact balance of a user's or model's account at a time, or at a version of its wallet.

        It is what the last entry until then (inclusive) has left, zero before the first. It is final
        once every transaction that began before that time has ended. Raises ``InvalidRequestError``
        for the platform's accounts, which have no balances, for neither or both of ``at`` and
        ``version``, for a time in the future or a version not reached; ``StorageUnavailableError``.
        """
        if not isinstance(account, tuple) or len(account) != 2 or account[1] is None:
            raise InvalidRequestError(field="account", value=account, expected="an account id with a bucket")
        (account,) = _accounts(*account)
        if not has_wallet(account.account_id):
            raise InvalidRequestError(field="account", value=account, expected="an account of a user or a model")
        currency = check_code("currency", currency)
        if (at is None) == (version is None):
            raise InvalidRequestError(field="at", value=at, expected="given, or else version, and not both")
        if at is not None:
            at = _past("at", at, self.database.now())
        else:
            version = check_count("version", version)

        def asked(connection: Connection) -> int | None:
            if at is not None:
                return store.balance_at(connection, account, currency, at)
            return store.balance_at_version(connection, account, currency, version or 0)

        balance = self.database.ask(asked, session=session)
        if balance is None:
            raise InvalidRequestError(field="version", value=version, expected="a version that the wallet has reached")
        return balance

    def earnings(
        self,
        model_id: str,
        currency: str,
        *,
        period: str,
        timezone: str,
        since: datetime,
        until: datetime,
        session: HostSession = None,
    ) -> list[EarningsPeriod]:
        """What a model earned per ``day``, ``week`` (from Monday) or ``month`` of a time zone, in one query.

        The first period is the one that ``since`` falls into, the last the one before ``until``; a day
        around a change of the clocks has 23 or 25 hours. Periods without earnings are there with zero;
        at most 1000. ``timezone`` is a name of the IANA database. Raises ``InvalidRequestError``,
        ``StorageUnavailableError``.
        """
        account = earned(check_name("model_id", model_id))
        currency = check_code("currency", currency)
        edges = period_edges(period, timezone, check_time("since", since), check_time("until", until))
        asked = partial(store.earned_between, account=account, currency=currency, edges=edges)
        return self.database.ask(asked, session=session)


OWNERS = ", ".join([*(f"{kind}:…" for kind in WALLETS), *(account.account_id for account in PLATFORM)])


def _accounts(account_id: str, bucket: str | None) -> list[Account]:
    text = plain_string(account_id) or ""
    kind, _, owner = text.partition(":")
    accounts = accounts_of(text)
    if not accounts:
        raise InvalidRequestError(field="account_id", value=account_id, expected=f"one of {OWNERS}")
    check_identifier("account_id", owner)
    wanted = accounts if bucket is None else [each for each in accounts if each.bucket == plain_string(bucket)]
    if not wanted:
        raise InvalidRequestError(field="bucket", value=bucket, expected=f"a bucket of a {kind}")
    return list(wanted)


FILTERS = {
    "operation": check_code,
    "reason": check_reason,
    "escrow_id": check_identifier,
    "queue_item_id": check_identifier,
    "request_id": check_identifier,
}


def _filters(given: Mapping[str, str | None]) -> dict[str, str]:
    return {name: FILTERS[name](name, value) for name, value in given.items() if value is not None}


def _cursor(line: StatementLine) -> str:
    posted_at, version, transaction_id, bucket = store.place(line)
    return encode_cursor(posted_at, version, transaction_id, bucket)


def _edge(after: str) -> store.Place:
    posted_at, version, transaction_id, bucket = decode_cursor("after", after, datetime, int, str, str)
    return posted_at, version, transaction_id, bucket


def _cursor_of(line: StatementTransaction) -> str:
    return encode_cursor(line.posted_at, line.wallet_version or 0, line.transaction_id)


def _edge_beyond(after: str, newest: bool) -> store.Place:
    """Beyond all buckets of the transaction with which a page ended."""
    posted_at, version, transaction_id = decode_cursor("after", after, datetime, int, str)
    return posted_at, version, transaction_id, store.FIRST_BUCKET if newest else store.LAST_BUCKET


def _span(since: datetime | None, until: datetime | None) -> tuple[datetime | None, ...]:
    return tuple(None if time is None else check_time(n, time) for n, time in (("since", since), ("until", until)))


def _past(field: str, value: datetime, now: datetime) -> datetime:
    time = check_time(field, value)
    if time > now:
        raise InvalidRequestError(field=field, value=value, expected="a time that is not in the future")
    return time
