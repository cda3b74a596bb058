"""Every account there is, and every movement that an operation may make between two of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class Bucket(StrEnum):
    """What the points in an account are for."""

    AVAILABLE = "available"
    ESCROW = "escrow"
    EARNED = "earned"
    ISSUED = "issued"


class Account(NamedTuple):
    """One balance of one owner. The currency is the transaction's."""

    account_id: str
    bucket: Bucket


class Operation(StrEnum):
    """What a transaction records."""

    CREDIT = "credit"
    HOLD = "hold"
    SETTLE = "settle"
    REFUND = "refund"
    PARTIAL_SETTLE = "partial_settle"


# Where points come from. It has no wallet row, which would be a hot one: its balance is the sum of its entries.
ISSUER = Account("platform:issuer", Bucket.ISSUED)

OWNER_KIND = {Bucket.AVAILABLE: "user", Bucket.ESCROW: "user", Bucket.EARNED: "model", Bucket.ISSUED: "platform"}

OWNER_PREFIX = {bucket: f"{kind}:" for bucket, kind in OWNER_KIND.items()}

# The buckets that one wallet has, and one version counts.
WALLET_OF = {
    bucket: [other for other, kind in OWNER_KIND.items() if kind == OWNER_KIND[bucket]] for bucket in OWNER_KIND
}

LEGAL_MOVEMENTS: dict[str, set[tuple[Bucket, Bucket]]] = {
    Operation.CREDIT: {(Bucket.ISSUED, Bucket.AVAILABLE)},
    Operation.HOLD: {(Bucket.AVAILABLE, Bucket.ESCROW)},
    Operation.SETTLE: {(Bucket.ESCROW, Bucket.EARNED)},
    Operation.REFUND: {(Bucket.ESCROW, Bucket.AVAILABLE)},
    Operation.PARTIAL_SETTLE: {(Bucket.ESCROW, Bucket.AVAILABLE), (Bucket.ESCROW, Bucket.EARNED)},
}


def user_owner(user_id: str) -> str:
    """The account owner that a user is."""
    return f"user:{user_id}"


def model_owner(model_id: str) -> str:
    """The account owner that a model is."""
    return f"model:{model_id}"


def available(user_id: str) -> Account:
    return Account(user_owner(user_id), Bucket.AVAILABLE)


def escrow(user_id: str) -> Account:
    return Account(user_owner(user_id), Bucket.ESCROW)


def earned(model_id: str) -> Account:
    return Account(model_owner(model_id), Bucket.EARNED)


@dataclass(frozen=True, slots=True)
class Movement:
    """Points that leave one account and enter another: balanced, whatever the amount."""

    source: Account
    target: Account
    amount: int


def is_legal(operation: str, movements: Sequence[Movement]) -> bool:
    """Whether these are exactly movements of that operation, between owners of the right kind."""
    made = []
    for movement in movements:
        for account_id, bucket in (movement.source, movement.target):
            if not account_id.startswith(OWNER_PREFIX[bucket]):
                return False
        made.append((movement.source.bucket, movement.target.bucket))
    legal = LEGAL_MOVEMENTS.get(operation, set())
    return made != [] and len(made) == len(legal) and set(made) == legal and all(m.amount > 0 for m in movements)


def net(movements: Iterable[Movement]) -> dict[Account, int]:
    """What each account gains (or loses, below zero); movements between the same accounts add up."""
    change: dict[Account, int] = {}
    for movement in movements:
        change[movement.source] = change.get(movement.source, 0) - movement.amount
        change[movement.target] = change.get(movement.target, 0) + movement.amount
    return change
