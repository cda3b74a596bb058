"""What wallets, escrow items and claims must be, as statements that compute them from the ledger alone."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    FromClause,
    Select,
    String,
    Table,
    and_,
    case,
    cast,
    exists,
    func,
    literal,
    null,
    or_,
    select,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from ..core.models import UtcDateTime
from ..ledger.accounts import WALLETS, Bucket, InHold, operations_that
from ..ledger.models import ENTRIES, LOG, TRANSACTIONS
from ..ledger.store import exact_sum
from .models import ACTIVE, DEPOSIT_CLAIMS, ESCROW_ITEMS, ROW_TABLES, WALLET_TABLES, EscrowStatus
from .operations import OPERATIONS

# In which status an operation leaves the hold that it names.
LEAVES = {operation.name: operation.leaves.value for operation in OPERATIONS if operation.leaves}
BEGINNING, ENDING = operations_that(InHold.BEGINS), operations_that(InHold.ENDS)
CLAIMING = [operation.name for operation in OPERATIONS if operation.claims]


class Detail(FunctionElement[str]):
    """A field of the details that a transaction has as JSON."""

    inherit_cache = True
    type = String()


@compiles(Detail, "postgresql")
def _of_postgresql(element: Detail, compiler: Any, **options: Any) -> str:
    details, name = (compiler.process(clause, **options) for clause in element.clauses)
    read = f"CAST({details} AS jsonb) ->> {name}"
    # Before 16 the server cannot be asked, and one text that is no JSON ends the check.
    asks = compiler.dialect.server_version_info >= (16,)
    return f"(CASE WHEN pg_input_is_valid({details}, 'jsonb') THEN {read} END)" if asks else f"({read})"


@compiles(Detail, "sqlite")
def _of_sqlite(element: Detail, compiler: Any, **options: Any) -> str:
    details, name = (compiler.process(clause, **options) for clause in element.clauses)
    return f"(CASE WHEN json_valid({details}) THEN json_extract({details}, '$.' || {name}) END)"


def _detail(transactions: FromClause, name: str) -> Detail:
    return Detail(transactions.c.details_json, literal(name, literal_execute=True))


def _expected_wallets(kind: str, key: dict[str, str], since: int) -> Select[Any]:
    """The rows of a wallet table as the entries give them; for one key, or all."""
    owner, *_ = (ENTRIES.c.account_id,)
    columns: dict[str, ColumnElement[Any]] = {
        "owner_id": owner,
        "currency": ENTRIES.c.currency,
        **{bucket.value: _sum(bucket) for bucket in WALLETS[kind]},
        "state": literal(ACTIVE),
        "version": func.max(ENTRIES.c.wallet_version),
        "created_at": func.min(ENTRIES.c.posted_at),
        "updated_at": func.max(ENTRIES.c.posted_at),
    }
    statement = (
        select(*(columns[column.key].label(column.key) for column in WALLET_TABLES[kind].c))
        .where(func.substr(owner, 1, len(kind) + 1) == f"{kind}:")
        .group_by(owner, ENTRIES.c.currency)
    )
    if key:
        statement = statement.where(owner == key["owner_id"], ENTRIES.c.currency == key["currency"])
    if since:
        other = ENTRIES.alias("later")
        touched = select(other.c.account_id).where(_sealed_after(other.c.transaction_id, since))
        statement = statement.where(owner.in_(touched))
    return statement


def _sum(bucket: Bucket) -> ColumnElement[int]:
    high, low = exact_sum(case((ENTRIES.c.bucket == bucket.value, ENTRIES.c.amount), else_=0))
    return cast(high * 2**32 + low, BigInteger)


class Holds(NamedTuple):
    """The holds with what ended them, joined: each of its rows is one escrow item.

    A ledger in which one began or ended more than once is damaged; there the first of each counts, and ``several`` has
    a row for those that began so.
    """

    hold: FromClause
    held: FromClause
    end: FromClause
    to_model: FromClause
    to_user: FromClause
    several: FromClause
    joined: FromClause


def _holds(key: dict[str, str]) -> Holds:
    hold, end = _first(BEGINNING, key, "began"), _first(ENDING, key, "ended")
    held, to_model, to_user = ENTRIES.alias("held"), ENTRIES.alias("to_model"), ENTRIES.alias("to_user")
    several = _several(BEGINNING, key).subquery("several")
    joined = (
        hold.join(held, _entry_of(held, hold, Bucket.ESCROW))
        .outerjoin(several, _of_item(several, hold))
        .outerjoin(end, _of_item(end, hold))
        .outerjoin(to_model, _entry_of(to_model, end, Bucket.EARNED))
        .outerjoin(to_user, _entry_of(to_user, end, Bucket.AVAILABLE))
    )
    return Holds(hold, held, end, to_model, to_user, several, joined)


def _first(operations: Sequence[str], key: dict[str, str], name: str) -> FromClause:
    """What began holds, or ended them; of several of one hold the first."""
    several = _several(operations, key).subquery()
    # As an anti-join: of a comparison with what may be NULL the planner would expect few rows, and loop.
    later = exists().where(_of_item(several, TRANSACTIONS), several.c.first < TRANSACTIONS.c.transaction_id)
    return select(TRANSACTIONS).where(*_of_key(operations, key), ~later).subquery(name)


def _expected_items(key: dict[str, str], since: int) -> Select[Any]:
    """The rows of the escrow items as the holds, and what ended them, give them."""
    of = _holds(key)
    hold, end = of.hold, of.end
    settled, refunded = (func.coalesce(entry.c.amount, 0) for entry in (of.to_model, of.to_user))
    # Of several holds the item has the points of all, so that none is stuck in escrow.
    whole = case((end.c.operation.is_(None), _all_held(hold)), else_=settled + refunded)
    columns: dict[str, ColumnElement[Any]] = {
        "escrow_id": hold.c.escrow_id,
        "owner_id": hold.c.owner_id,
        "currency": hold.c.currency,
        "amount": case((of.several.c.first.is_(None), of.held.c.amount), else_=whole),
        "status": func.coalesce(case(LEAVES, value=end.c.operation), EscrowStatus.HELD.value),
        "queue_item_id": hold.c.queue_item_id,
        "feature_type": hold.c.feature_type,
        "reason": hold.c.reason,
        "metadata_json": hold.c.metadata_json,
        "model_id": end.c.model_id,
        "settled_amount": settled,
        "refunded_amount": refunded,
        "created_at": hold.c.occurred_at,
        "processed_at": end.c.occurred_at,
        "expires_at": cast(null(), UtcDateTime()),
    }
    statement = select(*(columns[column.key].label(column.key) for column in ESCROW_ITEMS.c)).select_from(of.joined)
    if since:
        newer = (_sealed_after(each.c.transaction_id, since) for each in (hold, end))
        statement = statement.where(or_(*newer))
    return statement


def _several(operations: Sequence[str], key: dict[str, str]) -> Select[Any]:
    """The escrow items that several transactions began, or ended: each with the first of these."""
    item = (TRANSACTIONS.c.escrow_id, TRANSACTIONS.c.owner_id)
    statement = select(*item, func.min(TRANSACTIONS.c.transaction_id).label("first")).where(*_of_key(operations, key))
    return statement.group_by(*item).having(func.count() > 1)


def _of_key(operations: Sequence[str], key: dict[str, str]) -> list[ColumnElement[bool]]:
    mine = (TRANSACTIONS.c[name] == value for name, value in key.items())
    return [TRANSACTIONS.c.operation.in_(operations), *mine]


def _of_item(of: FromClause, hold: FromClause) -> ColumnElement[bool]:
    return and_(of.c.escrow_id == hold.c.escrow_id, of.c.owner_id == hold.c.owner_id)


def _all_held(hold: FromClause) -> ColumnElement[int]:
    other, entry = TRANSACTIONS.alias("another"), ENTRIES.alias("also_held")
    high, low = exact_sum(entry.c.amount)
    held = select(cast(high * 2**32 + low, BigInteger)).join_from(other, entry, _entry_of(entry, other, Bucket.ESCROW))
    return held.where(_of_item(other, hold), other.c.operation.in_(BEGINNING)).correlate(hold).scalar_subquery()


def claimed_twice(since: int = 0) -> Select[Any]:
    """The references that several transactions claimed: source, reference, the first, the last, how many."""
    source, reference = _detail(TRANSACTIONS, "source"), _detail(TRANSACTIONS, "reference")
    claimed = select(TRANSACTIONS.c.transaction_id, source.label("source"), reference.label("reference"))
    claims = claimed.where(TRANSACTIONS.c.operation.in_(CLAIMING)).subquery("claims")
    one, other = (pick(claims.c.transaction_id) for pick in (func.min, func.max))
    names = (claims.c.source, claims.c.reference)
    grouped = select(*names, one.label("first"), other.label("last"), func.count().label("times"))
    grouped = grouped.where(*(name.is_not(None) for name in names)).group_by(*names).having(func.count() > 1)
    twice = grouped.subquery("twice")
    statement = select(twice)
    return statement.where(_sealed_after(twice.c.last, since)) if since else statement


def _expected_claims(key: dict[str, str], since: int) -> Select[Any]:
    """The rows of the claims as the transactions that claimed a reference give them; of several the first."""
    credited = and_(_entry_of(ENTRIES, TRANSACTIONS, Bucket.AVAILABLE), ENTRIES.c.account_id == TRANSACTIONS.c.owner_id)
    columns: dict[str, ColumnElement[Any]] = {
        "source": _detail(TRANSACTIONS, "source"),
        "reference": _detail(TRANSACTIONS, "reference"),
        "owner_id": TRANSACTIONS.c.owner_id,
        "transaction_id": TRANSACTIONS.c.transaction_id,
        "currency": TRANSACTIONS.c.currency,
        "amount": ENTRIES.c.amount,
        "created_at": TRANSACTIONS.c.occurred_at,
    }
    statement = select(*(columns[column.key].label(column.key) for column in DEPOSIT_CLAIMS.c))
    statement = statement.join_from(TRANSACTIONS, ENTRIES, credited).where(TRANSACTIONS.c.operation.in_(CLAIMING))
    twice = claimed_twice().subquery()
    claimed = and_(twice.c.source == columns["source"], twice.c.reference == columns["reference"])
    statement = statement.where(~exists().where(claimed, twice.c.first < TRANSACTIONS.c.transaction_id))
    if key:
        statement = statement.where(*(columns[name] == value for name, value in key.items()))
    if since:
        statement = statement.where(_sealed_after(TRANSACTIONS.c.transaction_id, since))
    return statement


def _entry_of(entries: Any, transaction: Any, bucket: Bucket) -> ColumnElement[bool]:
    return and_(entries.c.transaction_id == transaction.c.transaction_id, entries.c.bucket == bucket.value)


def _sealed_after(transaction_id: ColumnElement[Any], since: int) -> ColumnElement[bool]:
    """Whether a transaction came after a position of the log, or is not sealed yet."""
    return ~select(LOG.c.position).where(LOG.c.transaction_id == transaction_id, LOG.c.position <= since).exists()


_EXPECTED: dict[Table, Callable[[dict[str, str], int], Select[Any]]] = {
    ESCROW_ITEMS: _expected_items,
    DEPOSIT_CLAIMS: _expected_claims,
    **{table: partial(_expected_wallets, kind) for kind, table in WALLET_TABLES.items()},
}
# In the order in which rows are locked.
EXPECTED = {table: _EXPECTED[table] for table in (*ROW_TABLES, *WALLET_TABLES.values())}


def _entry_on(table: Table) -> Select[Any]:
    # By bucket, which an index leads by.
    buckets = [bucket.value for kind, mine in WALLETS.items() if WALLET_TABLES[kind] is table for bucket in mine]
    return select(ENTRIES.c.amount).where(
        ENTRIES.c.account_id == table.c.owner_id,
        ENTRIES.c.currency == table.c.currency,
        ENTRIES.c.bucket.in_(buckets),
    )


# What in the ledger a row exists for: the hold of an escrow item, what claimed a reference, an entry of a wallet.
EXPLAINED: dict[Table, Select[Any]] = {
    ESCROW_ITEMS: select(TRANSACTIONS.c.transaction_id).where(
        TRANSACTIONS.c.escrow_id == ESCROW_ITEMS.c.escrow_id,
        TRANSACTIONS.c.owner_id == ESCROW_ITEMS.c.owner_id,
        TRANSACTIONS.c.operation.in_(BEGINNING),
    ),
    DEPOSIT_CLAIMS: select(TRANSACTIONS.c.transaction_id).where(
        TRANSACTIONS.c.transaction_id == DEPOSIT_CLAIMS.c.transaction_id,
        TRANSACTIONS.c.operation.in_(CLAIMING),
        _detail(TRANSACTIONS, "source") == DEPOSIT_CLAIMS.c.source,
        _detail(TRANSACTIONS, "reference") == DEPOSIT_CLAIMS.c.reference,
    ),
    **{table: _entry_on(table) for table in WALLET_TABLES.values()},
}
