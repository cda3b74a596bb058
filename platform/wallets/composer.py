"""The one statement of all decisions of a shape: its rows, then each wallet, the platform's accounts as plain entries.

It writes only where every need of the decision is met, since each is a guard of the part that it is about, and the
idempotency key must be free. The parts are a chain in the order of all locks: each reads from the one before it, and a
part that finds no row leaves nothing for the parts after it. Where an earlier part has written by then, the last line
divides by zero, which undoes the statement. The transaction is recorded before the last of the chain, which many may
want: what that locks is free again after one more part. The ledger supplies its own two parts.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

from sqlalchemy import Column, Table

from ..core.clock import microseconds
from ..core.database import SENT_AT
from ..core.schema import if_may_write
from ..core.statement import Statement
from ..ledger import store as ledger_store
from ..ledger.accounts import WALLETS, Account, Bucket
from .models import WALLET_TABLES
from .rows import Changed, Row

# What the header has of the draft; its time is that of the statement.
HEADER = tuple(column.key for column in ledger_store.HEADER if column.key != SENT_AT)
AT = f"%({SENT_AT})s::timestamptz"
CURRENCY = "%(currency)s::varchar"
# The wait for a row lock is bounded before the first row is touched, and the time is judged.
SET_TIMEOUT = "set_config('lock_timeout', %(lock_timeout)s, true)"
BOUNDED = f"""
    SELECT {if_may_write(SET_TIMEOUT)}
    WHERE abs(extract(epoch FROM statement_timestamp() - {AT})) <= %(tolerance)s::numeric"""
TIME = microseconds("statement_timestamp()")
STATEMENTS = 1000  # shapes differ by operation and by what is optional in one
KINDS = list(WALLET_TABLES)

# A condition, and the names of its values.
Condition = tuple[str, tuple[str, ...]]


class RowShape(NamedTuple):
    """What a statement knows of a row: everything but its values."""

    how: type[Row]
    table: Table
    columns: tuple[str, ...]
    copies: tuple[str, ...]
    at: str
    tells: tuple[str, ...]
    claimed: bool
    guards: tuple[Condition, ...]

    @property
    def in_the_way(self) -> bool:
        """Whether others may want the row too."""
        return self.how is Changed or self.claimed

    @property
    def key(self) -> list[Column[Any]]:
        """The columns of the key."""
        return list(self.table.primary_key)


class WalletShape(NamedTuple):
    """What a statement knows of a wallet: its kind, whether it is the owner's own, where it gains or loses."""

    kind: str
    own: bool
    buckets: tuple[Bucket, ...]
    loses: bool
    guards: tuple[Condition, ...]


class Shape(NamedTuple):
    """What decisions have in common that are one statement."""

    operation: str
    rows: tuple[RowShape, ...]
    wallets: tuple[WalletShape, ...]
    platform: tuple[Account, ...]


class Composed(NamedTuple):
    """A statement, the names of its parameters in the order of the shape's values, and what its row tells last."""

    statement: Statement
    parameters: tuple[str, ...]
    tells: tuple[str, ...]


@lru_cache(STATEMENTS)
def compose(shape: Shape) -> Composed:
    """The one statement of all decisions of a shape."""
    operation, rows, wallets, platform = shape
    shape = Shape(
        operation,
        tuple(RowShape(*row) for row in rows),
        tuple(WalletShape(*wallet) for wallet in wallets),
        platform,
    )
    text, told = _text(shape)
    # The server cuts the names of prepared statements.
    name = f"{operation:.20}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return Composed(Statement(name, text), tuple(_parameters(shape)), told)


def _parameters(shape: Shape) -> Iterator[str]:
    """The names of the values that ``shape_of`` gives, in their order."""
    yield from HEADER
    for number, row in enumerate(shape.rows):
        name = f"row{number}"
        yield from (f"{name}_{column.key}" for column in row.key if column.key not in HEADER)
        yield from (f"{name}_{each}" for each in row.columns)
        yield from (f"{name}_{each}" for _, names in row.guards for each in names)
    for number, wallet in enumerate(shape.wallets):
        name = f"wallet{number}"
        if not wallet.own:
            yield f"{name}_owner"
        yield from (f"{name}_{bucket}" for bucket in wallet.buckets)
        yield from (f"{name}_{each}" for _, names in wallet.guards for each in names)
    for number, _ in enumerate(shape.platform):
        yield f"platform{number}"


def _text(shape: Shape) -> tuple[str, tuple[str, ...]]:
    """The statement, and what it tells of the transaction at the end of its row."""
    teller = next((f"row{number}" for number, row in enumerate(shape.rows) if "currency" in row.tells), None)
    told = {each: f"row{number}.{each}" for number, row in enumerate(shape.rows) for each in row.tells}
    parts = {"bounded": BOUNDED}
    chain: list[str] = []
    links = list(_links(shape))
    for place, (name, write) in enumerate(links):
        if len(links) > 1 and place == len(links) - 1:
            parts["recorded"] = ledger_store.recording(source=_from(chain[-1], teller), values=told)
        source = list(parts)[-1]
        parts[name] = write(
            name, _from(source, teller if chain else None), f"{teller}.currency" if teller else CURRENCY
        )
        chain.append(name)
    if len(links) == 1:
        parts["recorded"] = ledger_store.recording(source=chain[0], values=told)
    for number, row in enumerate(shape.rows):
        if not row.in_the_way:
            parts[f"row{number}"] = _making(row, f"row{number}", chain[-1])
    wallets = [f"wallet{number}" for number in range(len(shape.wallets))]
    parts["posted"] = ledger_store.posting(wallets=wallets, entries=list(_entries(shape)))
    result = [each for name, wallet in zip(wallets, shape.wallets, strict=True) for each in _returned(name, wallet)]
    result += told.values()
    if len(chain) > 1:
        result.append(f"1 / ({chain[-1]}.there IS NOT NULL)::int")
    result.append(TIME)
    text = "WITH " + ",\n".join(f"{name} AS ({part}\n)" for name, part in parts.items())
    joined = chain[0] + "".join(f" LEFT JOIN {name} ON true" for name in chain[1:])
    text += f"\nSELECT {', '.join(result)}\nFROM {joined}"
    return text, tuple(told)


Link = tuple[str, Callable[[str, str, str], str]]


def _links(shape: Shape) -> Iterator[Link]:
    """The parts that others may be in the way of, in the order of all locks: each by its name, source and currency."""
    # What can happen only once tells a repeated key by itself; else it is looked for, so that it violates nothing.
    once = any(row.in_the_way for row in shape.rows)
    unused = () if once else (ledger_store.unused_key(),)
    for number, row in enumerate(shape.rows):
        if row.in_the_way:
            yield f"row{number}", partial(_changing if row.how is Changed else _making, row)
    for number, wallet in enumerate(shape.wallets):
        yield f"wallet{number}", partial(_losing if wallet.loses else _gaining, wallet, unused if number == 0 else ())


def _from(*sources: str | None) -> str:
    return ", ".join(dict.fromkeys(each for each in sources if each))


def _written(row: RowShape, name: str) -> dict[str, str]:
    """The columns that are written, by their names in the database, each with the SQL of its value."""
    columns = row.table.c
    own = {columns[each].name: ledger_store.parameter(columns[each], f"{name}_{each}") for each in row.columns}
    copied = {columns[each].name: ledger_store.parameter(columns[each]) for each in row.copies}
    return own | copied | {columns[row.at].name: AT}


def _key(row: RowShape, name: str) -> dict[str, str]:
    """The same of the key; what the header has is the header's."""
    return {c.name: ledger_store.parameter(c, None if c.key in HEADER else f"{name}_{c.key}") for c in row.key}


def _changing(row: RowShape, name: str, source: str, currency: str = "") -> str:
    changes = ",\n        ".join(f"{column} = {value}" for column, value in _written(row, name).items())
    key = " AND ".join(f"{name}.{column} = {value}" for column, value in _key(row, name).items())
    where = "\n    AND ".join([key, *_guards(row.guards, name)])
    return f"""
    UPDATE {row.table} AS {name}
    SET {changes}
    FROM {source}
    WHERE {where}
    RETURNING true AS there{"".join(f", {name}.{each}" for each in row.tells)}"""


def _making(row: RowShape, name: str, source: str, currency: str = "") -> str:
    values = _key(row, name) | _written(row, name)
    conflict = "\n    ON CONFLICT DO NOTHING\n    RETURNING true AS there" if row.claimed else ""
    return f"""
    INSERT INTO {row.table} ({ledger_store.in_lines(values)})
    SELECT {ledger_store.in_lines(values.values())}
    FROM {source}{conflict}"""


def _losing(wallet: WalletShape, unused: tuple[str, ...], name: str, source: str, currency: str) -> str:
    changes = ", ".join(f"{bucket} = {name}.{bucket} + %({name}_{bucket})s::bigint" for bucket in wallet.buckets)
    key = f"{name}.owner_id = {_owner(wallet, name)} AND {name}.currency = {currency}"
    where = "\n    AND ".join([key, *_guards(wallet.guards, name), *unused])
    return f"""
    UPDATE {WALLET_TABLES[wallet.kind]} AS {name}
    SET {changes}, version = {name}.version + 1,
        updated_at = greatest({name}.updated_at, {AT})
    FROM {source}
    WHERE {where}
    RETURNING true AS there, {_columns(wallet, name)}"""


def _gaining(wallet: WalletShape, unused: tuple[str, ...], name: str, source: str, currency: str) -> str:
    everything = WALLETS[wallet.kind]
    gains = ", ".join(f"%({name}_{b})s::bigint" if b in wallet.buckets else "0" for b in everything)
    changes = ", ".join(f"{bucket} = {name}.{bucket} + excluded.{bucket}" for bucket in wallet.buckets)
    where, guards = (
        f"\n    WHERE {' AND '.join(conditions)}" if conditions else ""
        for conditions in (unused, _guards(wallet.guards, name))
    )
    return f"""
    INSERT INTO {WALLET_TABLES[wallet.kind]} AS {name}
        (owner_id, currency, {", ".join(everything)}, version, created_at, updated_at)
    SELECT {_owner(wallet, name)}, {currency}, {gains}, 1, {AT}, {AT}
    FROM {source}{where}
    ON CONFLICT (owner_id, currency) DO UPDATE
    SET {changes}, version = {name}.version + 1,
        updated_at = greatest({name}.updated_at, excluded.updated_at){guards}
    RETURNING true AS there, {_columns(wallet, name)}"""


def _columns(wallet: WalletShape, name: str) -> str:
    return ", ".join(f"{name}.{each}" for each in (*wallet.buckets, "version", "updated_at"))


def _returned(name: str, wallet: WalletShape) -> Iterator[str]:
    yield from (f"{name}.{each}" for each in (*wallet.buckets, "version"))
    yield microseconds(f"{name}.updated_at")


def _guards(guards: Sequence[Condition], name: str) -> list[str]:
    """The conditions, with the row's name and those of its values."""
    return [condition.format(row=name, **{each: f"%({name}_{each})s" for each in names}) for condition, names in guards]


def _owner(wallet: WalletShape, name: str) -> str:
    return f"%({'owner_id' if wallet.own else f'{name}_owner'})s::varchar"


def _entries(shape: Shape) -> Iterator[str]:
    for number, wallet in enumerate(shape.wallets):
        name = f"wallet{number}"
        for bucket in wallet.buckets:
            state = f"{name}.{bucket}, {name}.version, {name}.updated_at"
            yield f"({_owner(wallet, name)}, '{bucket}', %({name}_{bucket})s::bigint, {state})"
    for number, account in enumerate(shape.platform):
        yield f"('{account.account_id}', '{account.bucket}', %(platform{number})s::bigint, NULL, NULL, {AT})"
