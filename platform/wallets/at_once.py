"""The first try: a decision carried out as one statement on a single PostgreSQL, one round trip, commit included.

Nothing is read beforehand, and a change that leaves the decision's needs met is in nobody's way. Where a need is not
met nothing is written, and nothing is refused. The statement is that of the decision's shape (``composer``); what is
done here, for each call, is to tell the shape from the values.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from operator import attrgetter
from typing import Any

from sqlalchemy import Table

from ..core.clock import at as time_at
from ..core.database import SENT_AT, Execute
from ..ledger.accounts import kind_of
from ..ledger.models import LedgerTransaction, TransactionDraft, WalletState
from ..ledger.posting import post
from .composer import HEADER, Condition, Shape, compose
from .models import WALLET_TABLES
from .needs import Guard, Making
from .operation import Decision
from .rows import Changed, key_names

KINDS = list(WALLET_TABLES)
_HEADER_VALUES = attrgetter(*HEADER)


def carry_out(execute: Execute, decision: Decision, draft: TransactionDraft) -> LedgerTransaction | None:
    """Carry out the decision, ledger and all, in one statement; ``None`` if a need of it is not met.

    Raises ``ValueError`` for a need that guards nothing which the decision writes.
    """
    owners = _in_lock_order(draft.changes.wallets)
    values = [*_HEADER_VALUES(draft)]
    shape = shape_of(decision, draft, owners, values)
    composed = compose(shape)
    parameters = dict(zip(composed.parameters, values, strict=True))
    row = execute(composed.statement, parameters)
    if row is None:
        return None
    wallets, place = {}, 0
    for owner in owners:
        balances = {}
        for bucket in draft.changes.wallets[owner]:
            balances[bucket] = int(row[place])
            place += 1
        posted_at = time_at(row[place + 1])
        wallets[owner] = WalletState(balances=balances, version=int(row[place]), posted_at=posted_at)
        place += 2
    return post(draft, wallets, at=parameters[SENT_AT], **dict(zip(composed.tells, row[place:], strict=False)))


def _in_lock_order(owners: Mapping[str, Any]) -> list[str]:
    """The owners of wallets: users by id, then models by id."""
    return list(owners) if len(owners) == 1 else sorted(owners, key=lambda owner: (KINDS.index(kind_of(owner)), owner))


def shape_of(decision: Decision, draft: TransactionDraft, owners: Sequence[str], values: list[Any]) -> Shape:
    """The decision's shape; its own values are added to ``values``, in the order in which the shape names them."""
    guards: dict[Any, list[Guard | Making]] = {}
    for need in decision.needs:
        guard = need.guard()
        guards.setdefault(guard.on, []).append(guard)
    # Plain tuples: a statement is made of them once, and looked up by them each time.
    rows: list[Any] = []
    for row in decision.rows:
        values += [row.key[place] for place in _own_places(row.table)]
        values += row.values.values()
        tells, claimed = (row.tells, False) if isinstance(row, Changed) else ((), row.claimed)
        conditions = _conditions(guards.pop((row.table, row.key), ()), values, claimed=claimed)
        rows.append((type(row), row.table, tuple(row.values), row.copies, row.at, tells, claimed, conditions))
    wallets: list[Any] = []
    for owner in owners:
        gains, own = draft.changes.wallets[owner], owner == draft.owner_id
        if not own:
            values.append(owner)
        values += gains.values()
        conditions = _conditions(guards.pop(owner, ()), values)
        wallets.append((kind_of(owner), own, tuple(gains), min(gains.values()) < 0, conditions))
    values += draft.changes.platform.values()
    if guards:
        raise ValueError(f"{draft.operation} needs what nothing that it writes would guard: {list(guards)}")
    shape: Any = (draft.operation, tuple(rows), tuple(wallets), tuple(draft.changes.platform))
    return shape  # type: ignore[no-any-return]


@cache
def _own_places(table: Table) -> tuple[int, ...]:
    """The places in the table's key of what the header has not."""
    return tuple(place for place, name in enumerate(key_names(table)) if name not in HEADER)


def _conditions(guards: Sequence[Guard | Making], values: list[Any], *, claimed: bool = False) -> tuple[Condition, ...]:
    conditions = []
    for guard in guards:
        if isinstance(guard, Guard):
            values += guard.values.values()
            conditions.append((guard.condition, tuple(guard.values)))
        elif not claimed:
            raise ValueError(f"{guard.on} guards nothing, since it is not claimed")
    return tuple(conditions)
