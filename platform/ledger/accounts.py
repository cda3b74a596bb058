"""The ledger's constitution: who owns accounts, which accounts there are, and what each operation may do to them.

It is a second opinion on what the wallets decide, asked when a transaction is posted and again by ``verify``. A new
operation is one line in ``CHART``.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Annotated, Any, NamedTuple

from ..core.errors import InvalidRequestError
from ..core.values import MAX_ID_LENGTH, check_identifier, plain_string


class Bucket(StrEnum):
    """What the points in an account are for."""

    AVAILABLE = "available"
    ESCROW = "escrow"
    EARNED = "earned"
    PAYING = "paying"
    ISSUED = "issued"
    REVENUE = "revenue"


class Account(NamedTuple):
    """One balance of one owner. The currency is the transaction's."""

    account_id: str
    bucket: Bucket


# The owners that have wallets, and the buckets of each: one row, whose one version counts the changes of all of them.
WALLETS: dict[str, tuple[Bucket, ...]] = {
    "user": (Bucket.AVAILABLE, Bucket.ESCROW, Bucket.PAYING),
    "model": (Bucket.EARNED, Bucket.PAYING),
}

_WITH_WALLETS = tuple(f"{kind}:" for kind in WALLETS)

# The platform's accounts have no wallet row, which would be a hot one: their balance is the sum of their entries.
ISSUER = Account("platform:issuer", Bucket.ISSUED)
REVENUE = Account("platform:revenue", Bucket.REVENUE)
PLATFORM = (ISSUER, REVENUE)
_OWNERS = (*_WITH_WALLETS, "platform:")


def user_owner(user_id: str) -> str:
    """The account owner that a user is."""
    return f"user:{user_id}"


def model_owner(model_id: str) -> str:
    """The account owner that a model is."""
    return f"model:{model_id}"


def kind_of(account_id: str) -> str:
    """Which kind of owner it is: ``user``, ``model`` or ``platform``."""
    return account_id.partition(":")[0]


def name_of(account_id: str) -> str:
    """What its owner is called outside of the ledger: of ``user:ana`` it is ``ana``."""
    return account_id.partition(":")[2]


def has_wallet(account_id: str) -> bool:
    """Whether the owner's balances are a row that each change counts."""
    return account_id.startswith(_WITH_WALLETS)


def check_name(field: str, value: Any) -> str:
    """What a user or a model is called: an identifier that does not begin as an owner of the ledger does.

    ``user_id="user:ana"`` would be another user than ``ana``, with a wallet that nobody looks for.
    """
    text = check_identifier(field, value)
    if text.startswith(_OWNERS):
        expected = f"the id alone, as in {name_of(text) or 'ana'!r}; what the ledger puts before it is not a part of it"
        raise InvalidRequestError(field=field, value=text, expected=expected)
    return text


def check_owner(field: str, value: Any) -> str:
    """The owner of a wallet: ``user:`` or ``model:``, and what it is called."""
    text = plain_string(value) or ""
    if not has_wallet(text) or not name_of(text):
        kinds = " or ".join(f"{kind}:…" for kind in WALLETS)
        expected = f"{kinds}, with an identifier of 1 to {MAX_ID_LENGTH} printable characters"
        raise InvalidRequestError(field=field, value=value, expected=expected)
    check_name(field, name_of(text))
    return text


Owner = Annotated[str, check_owner]
Name = Annotated[str, check_name]


def available(user_id: str) -> Account:
    return Account(user_owner(user_id), Bucket.AVAILABLE)


def escrow(user_id: str) -> Account:
    return Account(user_owner(user_id), Bucket.ESCROW)


def earned(model_id: str) -> Account:
    return Account(model_owner(model_id), Bucket.EARNED)


def accounts_of(account_id: str) -> tuple[Account, ...]:
    """All accounts of an owner; none for an owner that there cannot be."""
    if has_wallet(account_id):
        return tuple(Account(account_id, bucket) for bucket in WALLETS[kind_of(account_id)])
    return tuple(account for account in PLATFORM if account.account_id == account_id)


@dataclass(frozen=True, slots=True)
class Movement:
    """Points that leave one account and enter another: balanced, whatever the amount."""

    source: Account
    target: Account
    amount: int


@dataclass(frozen=True, slots=True)
class Touch:
    """A wallet in which nothing moves: an entry of 0, so that it has its version and its place in the log."""

    account: Account


Move = Movement | Touch


class Changes(NamedTuple):
    """What moves come to: what each account gains (or loses, below zero; or 0, a touch).

    The accounts of owners of wallets by owner and bucket, and those of the platform.
    """

    wallets: dict[str, dict[Bucket, int]]
    platform: dict[Account, int]


def net(moves: Iterable[Move]) -> Changes:
    """What the moves come to; movements between the same accounts add up."""
    changes = Changes({}, {})
    for move in moves:
        if isinstance(move, Touch):
            _add(changes, move.account, 0)
        else:
            _add(changes, move.source, -move.amount)
            _add(changes, move.target, move.amount)
    return changes


def _add(changes: Changes, account: Account, amount: int) -> None:
    owner, bucket = account
    if has_wallet(owner):
        gains = changes.wallets.setdefault(owner, {})
        gains[bucket] = gains.get(bucket, 0) + amount
    else:
        changes.platform[account] = changes.platform.get(account, 0) + amount


# ── what an operation may do ──


class Place(NamedTuple):
    """An account as the owner of a transaction sees it.

    ``whose`` is ``own``, ``another`` (another user's), ``model`` (of the model that the transaction names), or the id
    of an account of the platform.
    """

    whose: str
    bucket: Bucket


# From where to where points move; nowhere is a touch.
Path = tuple[Place, Place | None]


class InHold(StrEnum):
    """What an operation does to the hold that its transaction names."""

    BEGINS = "begins"
    ENDS = "ends"


@dataclass(frozen=True, kw_only=True)
class Law:
    """What the transactions of an operation must be, each exactly one of its ``ways``: paths, each taken once.

    ``hold`` is what becomes of the hold that each names (``None``: none is named), ``authorized`` whether the queue
    must have permitted each, ``announced`` the type of the event.
    """

    announced: str
    ways: frozenset[frozenset[Path]]
    hold: InHold | None
    authorized: bool


def _law(announced: str, *ways: Sequence[Path], hold: InHold | None = None, authorized: bool = False) -> Law:
    return Law(announced=announced, ways=frozenset(map(frozenset, ways)), hold=hold, authorized=authorized)


AVAILABLE, ESCROW = Place("own", Bucket.AVAILABLE), Place("own", Bucket.ESCROW)
EARNED, OWN_EARNED = Place("model", Bucket.EARNED), Place("own", Bucket.EARNED)
ANOTHERS = Place("another", Bucket.AVAILABLE)
ISSUED, SPENT = Place(*ISSUER), Place(*REVENUE)
BEGINS, ENDS = InHold.BEGINS, InHold.ENDS

CHART: dict[str, Law] = {
    "credit": _law("wallet.credited", [(ISSUED, AVAILABLE)]),
    "deposit": _law("wallet.deposited", [(ISSUED, AVAILABLE)]),
    "hold": _law("wallet.escrow_held", [(AVAILABLE, ESCROW)], hold=BEGINS),
    "settle": _law("wallet.escrow_settled", [(ESCROW, EARNED)], hold=ENDS, authorized=True),
    "refund": _law("wallet.escrow_refunded", [(ESCROW, AVAILABLE)], hold=ENDS, authorized=True),
    "partial_settle": _law(
        "wallet.escrow_partially_settled", [(ESCROW, AVAILABLE), (ESCROW, EARNED)], hold=ENDS, authorized=True
    ),
    "spend": _law("wallet.spent", [(AVAILABLE, SPENT)]),
    "transfer": _law("wallet.transferred", [(AVAILABLE, ANOTHERS)]),
    "open": _law("wallet.opened", [(AVAILABLE, None)], [(OWN_EARNED, None)]),
}


def operations_that(hold: InHold) -> list[str]:
    """The operations that begin holds, or end them."""
    return [name for name, law in CHART.items() if law.hold is hold]


def is_legal(operation: str, owner_id: str, model_id: str | None, moves: Sequence[Move]) -> bool:
    """Whether these are exactly the moves of one way of that operation, between accounts that there can be."""
    law = CHART.get(operation)
    paths: set[tuple[tuple[str, Bucket], tuple[str, Bucket] | None]] = set()
    for move in moves:
        if isinstance(move, Touch):
            paths.add((_place(move.account, owner_id, model_id), None))
        elif move.amount > 0:
            paths.add((_place(move.source, owner_id, model_id), _place(move.target, owner_id, model_id)))
    return law is not None and len(paths) == len(moves) and paths in law.ways


def _place(account: Account, owner_id: str, model_id: str | None) -> tuple[str, Bucket]:
    """The account's ``Place``."""
    account_id, bucket = account
    kind, _, name = account_id.partition(":")
    if not name or bucket not in WALLETS.get(kind, ()):
        return account  # of the platform, or of nobody
    if account_id == owner_id:
        return "own", bucket
    return "another" if kind == "user" else "model" if name == model_id else account_id, bucket


# What the entries of a transaction are, in no order: each place with the sign of its amount.
Shape = frozenset[tuple[str, str, int]]


@cache
def shapes(operation: str) -> frozenset[Shape]:
    """What the entries of that operation's transactions can be; nothing for an operation that is not in the chart."""
    law = CHART.get(operation)
    return frozenset() if law is None else frozenset(map(_shape, law.ways))


def _shape(way: Iterable[Path]) -> Shape:
    signs = set()
    for source, target in way:
        signs.add((*source, 0 if target is None else -1))
        if target is not None:
            signs.add((*target, 1))
    return frozenset((whose, bucket.value, sign) for whose, bucket, sign in signs)
