"""The locked way: everything that operations need in one read, behind locks in one order, and each table written once.

Any number of operations, on any number of wallets of any kind; what they need is told by their decisions.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from functools import cache
from operator import itemgetter
from typing import Any, NamedTuple

from sqlalchemy import Column, ColumnElement, Connection, FromClause, Select, Table, and_, bindparam, func, select

from ..core.failures import Stale
from ..core.rows import chunks, given, insert_rows, parameters, update_rows
from ..ledger import store as ledger_store
from ..ledger.accounts import WALLETS, kind_of
from ..ledger.models import TRANSACTIONS, TransactionDraft
from .models import ESCROW_ITEMS, ROW_TABLES, WALLET_TABLES
from .operation import Decision
from .rows import Begun, Key, key_names
from .unit_of_work import UnitOfWork, Wallet, Written

Column_ = Column[Any]
OWNER, CURRENCY = WALLET_TABLES["user"].c.owner_id, WALLET_TABLES["user"].c.currency
# A hold tells the currency of whoever names none.
TELLER = ESCROW_ITEMS
TELLER_KEY = tuple(TELLER.primary_key)
NO_TELLER = (None,) * len(TELLER_KEY)


class ReadShape(NamedTuple):
    """The tables of the rows, and the kinds of the owners."""

    tables: tuple[Table, ...]
    kinds: tuple[str, ...]


@cache
def _read_shape_of(tables: tuple[Table, ...], kinds: tuple[str, ...]) -> ReadShape:
    """The same one each time: a batch has many, and the garbage collector looks at each object of each item."""
    return ReadShape(tables, kinds)


class Wanted(NamedTuple):
    """The rows that one operation wants, whose decision was made but not carried out.

    ``shape`` is what it has in common with others that one statement can read for, ``values`` its own as that statement
    wants them: idempotency key, currency, the keys of its rows, the owners of its wallets.
    """

    shape: ReadShape
    values: tuple[Any, ...]

    @classmethod
    def by(cls, decision: Decision, draft: TransactionDraft) -> "Wanted":
        """What a decision wants: its wallets, rows that may be there already, and what its key stands for."""
        owners, tables = draft.changes.wallets, []
        values = [draft.owner_id, draft.operation, draft.idempotency_key, draft.currency]
        for row in decision.rows:
            if not isinstance(row, Begun) or row.claimed:
                tables.append(row.table)
                values += row.key
        return cls(_read_shape_of(tuple(tables), tuple([kind_of(owner) for owner in owners])), (*values, *owners))

    @property
    def currency(self) -> str:
        """Its currency, ``""`` where a row tells it."""
        currency: str = self.values[len(ledger_store.KEY)]
        return currency

    @property
    def rows(self) -> Iterator[tuple[Table, Key]]:
        """Its rows: the table and the key of each."""
        place = len(ledger_store.KEY) + 1
        for table in self.shape.tables:
            yield table, self.values[place : (place := place + len(key_names(table)))]

    @property
    def wallets(self) -> Iterator[tuple[str, str]]:
        """Its wallets: the kind and the owner of each."""
        kinds = self.shape.kinds
        return zip(kinds, self.values[len(self.values) - len(kinds) :], strict=True)


def lock(connection: Connection, wanted: Sequence[Wanted]) -> None:
    """Lock the rows that the operations will change, in the one order that all lock in.

    SQLite has no row locks and needs none: its writers come one after the other.
    """
    if connection.dialect.name == "sqlite":
        return
    rows: dict[Table, set[Key]] = {table: set() for table in ROW_TABLES}
    wallets: dict[str, set[Key]] = {kind: set() for kind in WALLET_TABLES}
    for each in wanted:
        teller = NO_TELLER
        for table, key in each.rows:
            rows[table].add(key)
            teller = key if table is TELLER else teller
        for kind, owner in each.wallets:
            wallets[kind].add((owner, each.currency, *teller))
    for table, keys in rows.items():
        _lock(connection, _lock_rows, table, sorted(keys))
    for kind, mine in wallets.items():
        _lock(connection, _lock_wallets, WALLET_TABLES[kind], sorted(mine, key=itemgetter(0, 1)))


def _lock(
    connection: Connection, statement: Callable[[str, Table, bool], Select[Any]], table: Table, rows: Sequence[Any]
) -> None:
    if rows:
        locking = statement(connection.dialect.name, table, len(rows) > 1)
        connection.execute(locking, _parameters(connection, rows))


@cache
def _lock_rows(dialect: str, table: Table, many: bool) -> Select[Any]:
    key = tuple(table.primary_key)
    asked = _asked(dialect, many, key, [column.key for column in key])
    same = and_(*(column == asked.c[column.key] for column in key))
    return _counted(select(key[0]).join_from(asked, table, same).order_by(*key).with_for_update(of=table))


@cache
def _lock_wallets(dialect: str, table: Table, many: bool) -> Select[Any]:
    columns = (OWNER, CURRENCY, *TELLER_KEY)
    asked = _asked(dialect, many, columns, ["owner", "currency", *(f"teller_{column.key}" for column in TELLER_KEY)])
    of_hold = and_(*(column == asked.c[f"teller_{column.key}"] for column in TELLER_KEY))
    source = asked.outerjoin(TELLER, of_hold)
    mine = and_(
        table.c.owner_id == asked.c.owner, table.c.currency == func.coalesce(TELLER.c.currency, asked.c.currency)
    )
    wanted = select(table.c.owner_id).select_from(source.join(table, mine))
    return _counted(wanted.order_by(table.c.owner_id, table.c.currency).with_for_update(of=table))


def _counted(rows: Select[Any]) -> Select[Any]:
    """Nobody wants to see them."""
    return select(func.count()).select_from(rows.subquery())


def read(connection: Connection, wanted: Sequence[Wanted], at: datetime) -> UnitOfWork:
    """Everything that the operations need: the rows, and what their keys already did.

    One statement for all operations of a shape, so one snapshot: it can not see what a twin with the same key has done
    to the rows without seeing the twin's transaction too.
    """
    work = UnitOfWork(at)
    for shape, alike in _grouped(wanted, lambda each: each.shape):
        _read_shape(connection, shape, [each.values for each in alike], work)
    # A claim tells which transaction has made it.
    rows = [row.now for of in work.rows.values() for row in of.values()]
    told = {str(row["transaction_id"]) for row in rows if "transaction_id" in row}
    for ids in chunks(sorted(told - set(work.by_id))):
        work.by_id.update((each.transaction_id, each) for each in ledger_store.transactions(connection, ids))
    return work


def _read_shape(connection: Connection, shape: ReadShape, values: Sequence[Key], work: UnitOfWork) -> None:
    recorded: dict[str, list[Any]] = {}
    statement = _reading(connection.dialect.name, shape, len(values) > 1)
    for row in connection.execute(statement, _parameters(connection, values)):
        if row[0] is not None:
            recorded.setdefault(row[0], []).append(row)
        currency, place = row[1], 2
        for kind in shape.kinds:
            buckets = WALLETS[kind]
            owner, version, updated_at = row[place : place + 3]
            balances = row[place + 3 : (place := place + 3 + len(buckets))]
            if version is not None:
                work.wallets[owner, currency] = Wallet(dict(zip(buckets, balances, strict=True)), version, updated_at)
        for table in shape.tables:
            names = _names(table)
            found = dict(zip(names, row[place : (place := place + len(names))], strict=True))
            key = tuple([found[name] for name in key_names(table)])
            if key[0] is not None:
                work.rows[table][key] = Written(found, found)
    for rows in recorded.values():
        transaction = ledger_store.collect(rows)
        work.recorded[transaction.owner_id, transaction.operation, transaction.idempotency_key] = transaction
        work.by_id[transaction.transaction_id] = transaction


@cache
def _names(table: Table) -> tuple[str, ...]:
    return tuple(table.c.keys())


@cache
def _reading(dialect: str, shape: ReadShape, many: bool) -> Select[Any]:
    tables = [table.alias(f"row{number}") for number, table in enumerate(shape.tables)]
    wallets = [WALLET_TABLES[kind].alias(f"wallet{number}") for number, kind in enumerate(shape.kinds)]
    keys: list[tuple[Any, str]] = [
        (column, f"{table.name}_{column.key}") for table in tables for column in table.primary_key
    ]
    owners = [(wallet.c.owner_id, f"{wallet.name}_owner") for wallet in wallets]
    columns = [*((TRANSACTIONS.c[name], name) for name in ledger_store.KEY), (CURRENCY, "currency"), *keys, *owners]
    asked = _asked(dialect, many, tuple(column for column, _ in columns), [name for _, name in columns])
    source: FromClause = asked
    currency: ColumnElement[str] = asked.c.currency
    for table, original in zip(tables, shape.tables, strict=True):
        same = (column == asked.c[f"{table.name}_{column.key}"] for column in table.primary_key)
        source = source.outerjoin(table, and_(*same))
        currency = func.coalesce(table.c.currency, currency) if original is TELLER else currency
    read: list[Any] = [TRANSACTIONS.c.transaction_id, currency]
    for wallet, kind in zip(wallets, shape.kinds, strict=True):
        owner = asked.c[f"{wallet.name}_owner"]
        source = source.outerjoin(wallet, and_(wallet.c.owner_id == owner, wallet.c.currency == currency))
        read += [owner, wallet.c.version, wallet.c.updated_at, *(wallet.c[bucket] for bucket in WALLETS[kind])]
    read += [column for table in tables for column in table.c]
    source = ledger_store.with_recorded(source, asked)
    return select(*read, *ledger_store.RECORD).select_from(source)


def write(connection: Connection, work: UnitOfWork) -> None:
    """Write what has been decided on rows and wallets, where each is as it was read.

    Raises ``Stale`` when one is not. A row that was not there is inserted, so a unique violation says
    that it is there by now.
    """
    for table in ROW_TABLES:
        _write_rows(connection, table, list(work.rows[table].values()))
    wallets: dict[str, list[Any]] = {kind: [] for kind in WALLET_TABLES}
    for (owner, currency), wallet in work.wallets.items():
        if wallet.version != wallet.seen:
            wallets[kind_of(owner)].append((owner, currency, wallet))
    for kind, changed in wallets.items():
        _write_wallets(connection, kind, sorted(changed, key=itemgetter(0, 1)))


def _write_rows(connection: Connection, table: Table, rows: Sequence[Written]) -> None:
    new = [row.now for row in rows if row.seen is None]
    for names, alike in _grouped(new, tuple):
        insert_rows(connection, tuple(table.c[name] for name in names), [tuple(row.values()) for row in alike])
    changed = [(row.seen, row.now) for row in rows if row.seen is not None and row.seen != row.now]
    names = _names(table)
    for columns, alike in _grouped(changed, lambda row: tuple(n for n in names if row[0][n] != row[1][n])):
        # What is never NULL must be as it was read, where it changes.
        guards = (*key_names(table), *(name for name in columns if not table.c[name].nullable))
        values = [[seen[name] for name in guards] + [now[name] for name in columns] for seen, now in alike]
        as_read, to_be = (tuple(table.c[name] for name in each) for each in (guards, columns))
        _all(values, update_rows(connection, as_read, to_be, values))


def _write_wallets(connection: Connection, kind: str, wallets: Sequence[tuple[str, str, Wallet]]) -> None:
    table, buckets = WALLET_TABLES[kind], WALLETS[kind]
    owner, currency = table.primary_key
    changed = (table.c.version, table.c.updated_at, *(table.c[bucket] for bucket in buckets))
    new, old = [], []
    for owner_id, code, wallet in wallets:
        values = (wallet.version, wallet.updated_at, *wallet.balances.values())
        if wallet.seen:
            old.append((owner_id, code, wallet.seen, *values))
        else:
            new.append((owner_id, code, wallet.created_at, *values))
    if old:
        _all(old, update_rows(connection, (owner, currency, table.c.version), changed, old))
    if new:
        insert_rows(connection, (owner, currency, table.c.created_at, *changed), new)


def _all(rows: Sequence[Any], changed: int) -> None:
    if changed != len(rows):
        raise Stale


def _asked(dialect: str, many: bool, columns: tuple[Column_, ...], names: Sequence[str]) -> FromClause:
    """What is asked for as a table: from a parameter for each value, or from one with all rows."""
    if many:
        return given(dialect, columns, tuple(names))
    pairs = enumerate(zip(names, columns, strict=True))
    values = (bindparam(f"value_{n}", type_=column.type).label(name) for n, (name, column) in pairs)
    return select(*values).subquery("given")


def _parameters(connection: Connection, rows: Sequence[Key]) -> dict[str, Any]:
    """The values as ``_asked`` wants them."""
    return parameters(connection, rows) if len(rows) > 1 else {f"value_{n}": value for n, value in enumerate(rows[0])}


def _grouped(items: Iterable[Any], key: Callable[[Any], Any]) -> Iterator[tuple[Any, list[Any]]]:
    groups: dict[Any, list[Any]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    yield from groups.items()
