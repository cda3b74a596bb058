"""What must be so for a decision to hold, as data: each need with the refusal that it gives and the guard that it is.

A refusal is decided on a state that was read. A guard is the same as a condition of PostgreSQL's on the row that the
need is about, written where the decision is tried without reading. A need has both or is none: a rule without a guard
would be kept by nobody in the composed statement, and a guard without a rule refused without a reason.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, Protocol

from sqlalchemy import Table

from ..core.errors import WalletError
from ..core.refusals import (
    BalanceLimitError,
    DepositConflictError,
    EscrowAlreadyProcessedError,
    EscrowMismatchError,
    EscrowNotFoundError,
    InsufficientBalanceError,
)
from ..core.values import MAX_POINTS
from ..ledger.accounts import WALLETS, Account, Bucket, kind_of
from .models import DEPOSIT_CLAIMS, ESCROW_ITEMS, EscrowStatus
from .rows import Key


class State(Protocol):
    """What a need is asked on. A wallet that is not there has nothing in it."""

    @property
    def currency(self) -> str:
        """The currency of the operation."""
        ...

    def balances(self, owner_id: str) -> Mapping[Bucket, int]:
        """The balances of an owner's wallet, in the currency of the operation."""
        ...

    def row(self, table: Table, key: Key) -> Mapping[str, Any] | None:
        """The row of that key, ``None`` if there is none."""
        ...


class Guard(NamedTuple):
    """A condition on one row: an owner's wallet, or the row of a table and a key.

    ``condition`` names the row's columns as ``{row}.column`` and its values as ``{name}``, with their types.
    """

    on: str | tuple[Table, Key]
    condition: str
    values: Mapping[str, Any]


class Making(NamedTuple):
    """Making the row is the guard: nobody else can have made one of this table and key."""

    on: tuple[Table, Key]


class Need(ABC):
    """Something that must be so."""

    @abstractmethod
    def refusal(self, state: State) -> WalletError | None:
        """Why the operation cannot be carried out in this state; ``None`` if this need is met."""

    @abstractmethod
    def guard(self) -> Guard | Making:
        """The same for the composed statement."""

    def answered_by(self, state: State) -> str | None:
        """The id of a transaction that has done already what is asked for; ``None`` for most needs, always."""
        return None


@dataclass(frozen=True, slots=True)
class Enough(Need):
    """There are at least ``amount`` points in the account. Refuses with ``InsufficientBalanceError``."""

    account: Account
    amount: int

    def refusal(self, state: State) -> WalletError | None:
        """Why not; in terms of the account."""
        balance = state.balances(self.account.account_id).get(self.account.bucket, 0)
        if balance >= self.amount:
            return None
        return InsufficientBalanceError(required=self.amount, available=balance, currency=state.currency)

    def guard(self) -> Guard:
        """On the wallet."""
        return Guard(self.account.account_id, _at_least(self.account.bucket), {"enough": self.amount})


@dataclass(frozen=True, slots=True)
class Room(Need):
    """The owner's wallet can take ``amount`` points more. Refuses with ``BalanceLimitError``.

    ``private`` keeps the balance out of the refusal, where it is not the caller's to know.
    """

    account: Account
    amount: int
    private: bool = False

    def refusal(self, state: State) -> WalletError | None:
        """Why not; in terms of the whole wallet."""
        balance = sum(state.balances(self.account.account_id).values())
        if balance + self.amount <= MAX_POINTS:
            return None
        told = {} if self.private else {"balance": balance}
        return BalanceLimitError(limit=MAX_POINTS, amount=self.amount, currency=state.currency, **told)

    def guard(self) -> Guard:
        """On the wallet, where it is there; a new one has room for any amount."""
        owner = self.account.account_id
        return Guard(owner, _at_most(kind_of(owner)), {"room": self.amount})


@cache
def _at_least(bucket: Bucket) -> str:
    return f"{{row}}.{bucket} >= {{enough}}::bigint"


@cache
def _at_most(kind: str) -> str:
    whole = " + ".join(f"{{row}}.{bucket}" for bucket in WALLETS[kind])
    return f"{whole} <= {MAX_POINTS} - {{room}}::bigint"


@dataclass(frozen=True, slots=True)
class Held(Need):
    """The escrow item is held, and is what the request says of it; any currency if it says none (``""``).

    Refuses with ``EscrowNotFoundError``, ``EscrowAlreadyProcessedError``, ``EscrowMismatchError``.
    """

    escrow_id: str
    owner_id: str
    amount: int
    queue_item_id: str
    currency: str

    def refusal(self, state: State) -> WalletError | None:
        """Why not; of several mismatches the first."""
        item = state.row(ESCROW_ITEMS, (self.escrow_id, self.owner_id))
        if item is None:
            return EscrowNotFoundError(escrow_id=self.escrow_id)
        if item["status"] != EscrowStatus.HELD:
            return EscrowAlreadyProcessedError(escrow_id=self.escrow_id, status=str(item["status"]))
        given = {"amount": self.amount, "queue_item_id": self.queue_item_id, "currency": self.currency}
        for field, value in given.items():
            if value not in ("", item[field]):
                return EscrowMismatchError(field=field, expected=item[field], given=value)
        return None

    def guard(self) -> Guard:
        """On the item."""
        condition = """{row}.status = 'held' AND {row}.amount = {held}::bigint
    AND {row}.queue_item_id = {of_queue_item}::varchar
    AND {row}.currency = coalesce(nullif({of_currency}::varchar, ''), {row}.currency)"""
        values = {"held": self.amount, "of_queue_item": self.queue_item_id, "of_currency": self.currency}
        return Guard((ESCROW_ITEMS, (self.escrow_id, self.owner_id)), condition, values)


@dataclass(frozen=True, slots=True)
class Unclaimed(Need):
    """Nobody has been credited for the source's reference, or the same user with the same points: a replay.

    Refuses with ``DepositConflictError``.
    """

    source: str
    reference: str
    owner_id: str
    amount: int
    currency: str

    def refusal(self, state: State) -> WalletError | None:
        """Why not; names all that differs, and none of the values."""
        claim = state.row(DEPOSIT_CLAIMS, (self.source, self.reference))
        if claim is None:
            return None
        told = {"user_id": (self.owner_id, claim["owner_id"]), "amount": (self.amount, claim["amount"])}
        told["currency"] = (self.currency, claim["currency"])
        differing = tuple(name for name, (ours, theirs) in told.items() if ours != theirs)
        if not differing:
            return None
        return DepositConflictError(source=self.source, reference=self.reference, fields=differing)

    def guard(self) -> Making:
        """On the claim."""
        return Making((DEPOSIT_CLAIMS, (self.source, self.reference)))

    def answered_by(self, state: State) -> str | None:
        """The transaction that has credited the reference."""
        claim = state.row(DEPOSIT_CLAIMS, (self.source, self.reference))
        return None if claim is None else str(claim["transaction_id"])
