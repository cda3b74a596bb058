"""A decision carried out as one data-modifying statement, on a single PostgreSQL: one round trip, commit included.

The statement is composed from the decision's shape: its rows, then each wallet in the order of all locks, the
platform's accounts as plain entries. It writes only where every need of the decision is met, since each is a guard of
the part that it is about, and the idempotency key must be free. So nothing is read beforehand, and a change that
leaves the needs met is in nobody's way. Where one is not met nothing is written, and nothing is refused.

The parts are a chain: each reads from the one before it, and a part that finds no row leaves nothing for the parts
after it. Where an earlier part has written by then, the last line divides by zero, which undoes the statement. The
transaction is recorded before the last of the chain, which many may want: what that locks is free again after one
more part. The ledger supplies its own two parts.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from typing import Any, NamedTuple

from sqlalchemy import Table

from ..core.database import Execute
from ..core.statement import Statement
from ..ledger import store as ledger_store
from ..ledger.accounts import WALLETS, Account, Bucket, has_wallet, kind_of, net
from ..ledger.models import LedgerTransaction, TransactionDraft, WalletState
from ..ledger.posting import post
from .models import WALLET_TABLES
from .needs import Making
from .operation import Decision
from .rows import Begun, Changed, Row

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
AT = "%(occurred_at)s::timestamptz"
CURRENCY = "%(currency)s::varchar"
# The wait for a row lock is bounded before the first row is touched.
BOUNDED = "\n    SELECT set_config('lock_timeout', %(lock_timeout)s, true)"
STATEMENTS = 1000  # shapes differ by operation and by what is optional in one


class RowShape(NamedTuple):
    """What a statement knows of a row: everything but its values."""

    how: type[Row]
    table: Table
    columns: tuple[str, ...]
    tells: tuple[str, ...]
    guards: tuple[str, ...]
    fresh: bool

    @property
    def changes(self) -> bool:
        """Whether the row must be there."""
        return self.how is Changed


class WalletShape(NamedTuple):
    """What a statement knows of a wallet: its kind, the buckets in which it gains or loses, what guards it."""

    kind: str
    buckets: tuple[Bucket, ...]
    loses: bool
    guards: tuple[str, ...]


class Shape(NamedTuple):
    """What decisions have in common that are one statement."""

    operation: str
    rows: tuple[RowShape, ...]
    wallets: tuple[WalletShape, ...]
    platform: tuple[Account, ...]


class Composed(NamedTuple):
    """A statement, and where in its row the wallets are, and what the rows have told."""

    statement: Statement
    tells: tuple[str, ...]


def carry_out(
    execute: Execute, decision: Decision, draft: TransactionDraft, *, lock_timeout: str
) -> LedgerTransaction | None:
    """Carry out the decision, ledger and all, in one statement; ``None`` if a need of it is not met.

    Raises ``ValueError`` for a need that guards nothing which the decision writes.
    """
    changes = net(draft.moves)
    owners = _in_lock_order(changes)
    values: dict[str, Any] = {"lock_timeout": lock_timeout, **vars(draft)}
    shape = _shape(decision, draft.operation, changes, owners, values)
    composed = compose(shape)
    row = execute(composed.statement, values)
    if row is None:
        return None
    wallets, place = {}, 0
    for owner, wallet in zip(owners, shape.wallets, strict=True):
        *balances, version, microseconds = row[place : place + len(wallet.buckets) + 2]
        place += len(wallet.buckets) + 2
        wallets[owner] = WalletState(
            balances=dict(zip(wallet.buckets, map(int, balances), strict=True)),
            version=int(version),
            posted_at=EPOCH + timedelta(microseconds=int(microseconds)),
        )
    if composed.tells:
        draft = replace(draft, **dict(zip(composed.tells, row[place:], strict=False)))
    return post(draft, wallets)


def _in_lock_order(changes: Mapping[Account, int]) -> list[str]:
    """The owners of wallets: users by id, then models by id."""
    owners = {account.account_id for account in changes if has_wallet(account.account_id)}
    return sorted(owners, key=lambda owner: (_KINDS.index(kind_of(owner)), owner)) if len(owners) > 1 else list(owners)


_KINDS = list(WALLET_TABLES)


def _shape(
    decision: Decision,
    operation: str,
    changes: Mapping[Account, int],
    owners: Sequence[str],
    values: dict[str, Any],
) -> Shape:
    """The decision's shape, and its values, each by the name that the shape's statement has for it."""
    guards: dict[Any, list[Any]] = {}
    for need in decision.needs:
        guard = need.guard()
        guards.setdefault(guard.on, []).append(guard)
    rows = []
    for number, row in enumerate(decision.rows):
        mine = guards.pop((row.table, row.key), ())
        rows.append(_row_shape(row, number, mine, values))
    wallets = []
    for number, owner in enumerate(owners):
        mine = guards.pop(owner, ())
        wallets.append(_wallet_shape(owner, number, changes, mine, values))
    if guards:
        raise ValueError(f"{operation} needs what nothing that it writes would guard: {list(guards)}")
    platform: list[Account] = []
    for account, amount in changes.items():
        if not has_wallet(account.account_id):
            values[f"platform{len(platform)}"] = amount
            platform.append(account)
    return Shape(operation, tuple(rows), tuple(wallets), tuple(platform))


def _row_shape(row: Row, number: int, guards: Sequence[Any], values: dict[str, Any]) -> RowShape:
    name = f"row{number}"
    values.update(zip(_key_names(row.table, name), row.key, strict=True))
    for column, value in row.values.items():
        values[f"{name}_{column}"] = value
    begun = isinstance(row, Begun)
    claimed = isinstance(row, Begun) and row.claimed
    if any(isinstance(guard, Making) for guard in guards) and not claimed:
        raise ValueError(f"a row of {row.table} guards nothing, since it is not claimed")
    conditions = _conditions(name, [guard for guard in guards if not isinstance(guard, Making)], values)
    tells = row.tells if isinstance(row, Changed) else ()
    return RowShape(type(row), row.table, tuple(row.values), tells, conditions, begun and not claimed)


def _wallet_shape(
    owner: str, number: int, changes: Mapping[Account, int], guards: Sequence[Any], values: dict[str, Any]
) -> WalletShape:
    name = f"wallet{number}"
    values[f"{name}_owner"] = owner
    buckets, loses = [], False
    for account, amount in changes.items():
        if account.account_id == owner:
            values[f"{name}_{account.bucket}"] = amount
            buckets.append(account.bucket)
            loses = loses or amount < 0
    return WalletShape(kind_of(owner), tuple(buckets), loses, _conditions(name, guards, values))


def _conditions(name: str, guards: Sequence[Any], values: dict[str, Any]) -> tuple[str, ...]:
    for guard in guards:
        for each, value in guard.values.items():
            values[f"{name}_{each}"] = value
    return tuple(guard.condition for guard in guards)


# ── the statement of a shape ──


@lru_cache(STATEMENTS)
def compose(shape: Shape) -> Composed:
    """The one statement of all decisions of a shape."""
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
        if row.fresh:
            parts[f"row{number}"] = _making(row, f"row{number}", chain[-1])
    wallets = [f"wallet{number}" for number in range(len(shape.wallets))]
    parts["posted"] = ledger_store.posting(wallets=wallets, entries=list(_entries(shape)))
    result = [each for name, wallet in zip(wallets, shape.wallets, strict=True) for each in _returned(name, wallet)]
    result += told.values()
    if len(chain) > 1:
        result.append(f"1 / ({chain[-1]}.there IS NOT NULL)::int")
    text = "WITH " + ",\n".join(f"{name} AS ({part}\n)" for name, part in parts.items())
    joined = chain[0] + "".join(f" LEFT JOIN {name} ON true" for name in chain[1:])
    text += f"\nSELECT {', '.join(result)}\nFROM {joined}"
    # The server cuts the names of prepared statements.
    name = f"{shape.operation:.20}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return Composed(Statement(name, text), tuple(told))


Link = tuple[str, Callable[[str, str, str], str]]


def _links(shape: Shape) -> Iterator[Link]:
    """The parts that others may be in the way of, in the order of all locks: each by its name, source and currency."""
    # What can happen only once tells a repeated key by itself; else it is looked for, so that it violates nothing.
    once = any(not row.fresh for row in shape.rows)
    unused = () if once else (ledger_store.unused_key(),)
    for number, row in enumerate(shape.rows):
        if not row.fresh:
            yield f"row{number}", partial(_changing if row.changes else _making, row)
    for number, wallet in enumerate(shape.wallets):
        yield f"wallet{number}", partial(_losing if wallet.loses else _gaining, wallet, unused if number == 0 else ())


def _from(*sources: str | None) -> str:
    return ", ".join(dict.fromkeys(each for each in sources if each))


def _key_names(table: Table, name: str) -> list[str]:
    return [f"{name}_{column.key}" for column in table.primary_key]


def _changing(row: RowShape, name: str, source: str, currency: str = "") -> str:
    columns = row.table.c
    changes = ", ".join(f"{columns[c].name} = {ledger_store.parameter(columns[c], f'{name}_{c}')}" for c in row.columns)
    key = [f"{name}.{c.name} = {ledger_store.parameter(c, f'{name}_{c.key}')}" for c in row.table.primary_key]
    where = "\n    AND ".join([" AND ".join(key), *_guards(row.guards, name)])
    return f"""
    UPDATE {row.table} AS {name}
    SET {changes}
    FROM {source}
    WHERE {where}
    RETURNING true AS there{"".join(f", {name}.{each}" for each in row.tells)}"""


def _making(row: RowShape, name: str, source: str, currency: str = "") -> str:
    columns = [*row.table.primary_key, *(row.table.c[each] for each in row.columns)]
    names = ", ".join(column.name for column in columns)
    values = ", ".join(ledger_store.parameter(column, f"{name}_{column.key}") for column in columns)
    conflict = "" if row.fresh else "\n    ON CONFLICT DO NOTHING\n    RETURNING true AS there"
    return f"""
    INSERT INTO {row.table} ({names})
    SELECT {values}
    FROM {source}{conflict}"""


def _losing(wallet: WalletShape, unused: tuple[str, ...], name: str, source: str, currency: str) -> str:
    changes = ", ".join(f"{bucket} = {name}.{bucket} + %({name}_{bucket})s::bigint" for bucket in wallet.buckets)
    key = f"{name}.owner_id = %({name}_owner)s::varchar AND {name}.currency = {currency}"
    where = "\n    AND ".join([key, *_guards(wallet.guards, name), *unused])
    return f"""
    UPDATE {WALLET_TABLES[wallet.kind]} AS {name}
    SET {changes}, version = {name}.version + 1, updated_at = greatest({name}.updated_at, {AT})
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
    SELECT %({name}_owner)s::varchar, {currency}, {gains}, 1, {AT}, {AT}
    FROM {source}{where}
    ON CONFLICT (owner_id, currency) DO UPDATE
    SET {changes}, version = {name}.version + 1,
        updated_at = greatest({name}.updated_at, excluded.updated_at){guards}
    RETURNING true AS there, {_columns(wallet, name)}"""


def _columns(wallet: WalletShape, name: str) -> str:
    return ", ".join(f"{name}.{each}" for each in (*wallet.buckets, "version", "updated_at"))


def _returned(name: str, wallet: WalletShape) -> Iterator[str]:
    yield from (f"{name}.{each}" for each in (*wallet.buckets, "version"))
    yield f"(1000000 * extract(epoch FROM {name}.updated_at))::bigint"


def _guards(guards: Sequence[str], name: str) -> list[str]:
    """The conditions, with the row's name and those of its values."""
    return [guard.format_map(_Names(name)) for guard in guards]


class _Names(dict[str, str]):
    def __init__(self, name: str) -> None:
        super().__init__(row=name)
        self._name = name

    def __missing__(self, key: str) -> str:
        return f"%({self._name}_{key})s"


def _entries(shape: Shape) -> Iterator[str]:
    for number, wallet in enumerate(shape.wallets):
        name = f"wallet{number}"
        for bucket in wallet.buckets:
            state = f"{name}.{bucket}, {name}.version, {name}.updated_at"
            yield f"(%({name}_owner)s::varchar, '{bucket}', %({name}_{bucket})s::bigint, {state})"
    for number, account in enumerate(shape.platform):
        yield f"('{account.account_id}', '{account.bucket}', %(platform{number})s::bigint, NULL, NULL, {AT})"
