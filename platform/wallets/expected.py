"""What wallets, escrow items and claims must be, as statements that compute them from the ledger alone."""

from collections.abc import Callable
from functools import partial
from typing import Any

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


def _expected_items(key: dict[str, str], since: int) -> Select[Any]:
    """The rows of the escrow items as the holds, and what ended them, give them."""
    hold, end = TRANSACTIONS.alias("began"), TRANSACTIONS.alias("ended")
    held, to_model, to_user = ENTRIES.alias("held"), ENTRIES.alias("to_model"), ENTRIES.alias("to_user")
    ended = and_(
        end.c.escrow_id == hold.c.escrow_id,
        end.c.owner_id == hold.c.owner_id,
        end.c.operation.in_(ENDING),
    )
    joined = (
        hold.join(held, _entry_of(held, hold, Bucket.ESCROW))
        .outerjoin(end, ended)
        .outerjoin(to_model, _entry_of(to_model, end, Bucket.EARNED))
        .outerjoin(to_user, _entry_of(to_user, end, Bucket.AVAILABLE))
    )
    columns: dict[str, ColumnElement[Any]] = {
        "escrow_id": hold.c.escrow_id,
        "owner_id": hold.c.owner_id,
        "currency": hold.c.currency,
        "amount": held.c.amount,
        "status": func.coalesce(case(LEAVES, value=end.c.operation), EscrowStatus.HELD.value),
        "queue_item_id": hold.c.queue_item_id,
        "feature_type": hold.c.feature_type,
        "reason": hold.c.reason,
        "metadata_json": hold.c.metadata_json,
        "model_id": end.c.model_id,
        "settled_amount": func.coalesce(to_model.c.amount, 0),
        "refunded_amount": func.coalesce(to_user.c.amount, 0),
        "created_at": hold.c.occurred_at,
        "processed_at": end.c.occurred_at,
        "expires_at": cast(null(), UtcDateTime()),
    }
    statement = select(*(columns[column.key].label(column.key) for column in ESCROW_ITEMS.c)).select_from(joined)
    statement = statement.where(hold.c.operation.in_(BEGINNING))
    if key:
        statement = statement.where(hold.c.escrow_id == key["escrow_id"], hold.c.owner_id == key["owner_id"])
    if since:
        newer = (_sealed_after(each.c.transaction_id, since) for each in (hold, end))
        statement = statement.where(or_(*newer))
    return statement


def _expected_claims(key: dict[str, str], since: int) -> Select[Any]:
    """The rows of the claims as the transactions that claimed a reference give them."""
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
