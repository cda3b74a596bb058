"""The rows that operations begin or change beside wallets and ledger: holds, claims on deposits.

One mechanism for all, by two ways of writing: the composed statement (``composer``) and the unit of work (``locked``).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from sqlalchemy import Table

Key = tuple[Any, ...]
Values = Mapping[str, Any]


@cache
def key_names(table: Table) -> tuple[str, ...]:
    """The names of the columns of a table's key."""
    return tuple(column.key for column in table.primary_key)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A row that a decision writes.

    ``key`` has the values of the table's primary key; a part of it that the header of the transaction has too is the
    header's. ``values`` has columns by their names, ``copies`` names those that have the header's values, and ``at``
    the one that has the transaction's time.
    """

    table: Table
    key: Key
    values: Values
    copies: tuple[str, ...] = ()
    at: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Begun(Row):
    """A row that is made; columns that it does not name are empty, or the database's default.

    ``claimed`` says that others may want to make a row of this key too: it is what everything else waits for. Else the
    key was made for it, and nobody can be in its way. ``gives`` are fields of the transaction's header that it gives.
    """

    gives: Mapping[str, str] = field(default_factory=dict)
    claimed: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Changed(Row):
    """A row that is there and changes.

    ``tells`` are the columns that the header of the transaction has too, and takes from the row.
    """

    tells: tuple[str, ...] = ()
