"""The matrix would see an operation that is wrong: each wrong one here makes the check fail that is there for it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import count
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest

from points_platform.core import Database
from points_platform.ledger.accounts import Movement, Touch, available, escrow
from points_platform.wallets import UserCreditResponse, WalletDeposited
from points_platform.wallets.needs import Room
from points_platform.wallets.operation import Decision
from points_platform.wallets.operations import BY_NAME
from support.world import World

from . import checks
from .by_hand import BY_HAND

Change = Callable[[Decision], Decision]


class Fault(NamedTuple):
    """What is wrong with an operation, and the check that must see it."""

    name: str
    changes: dict[str, Any]
    check: Callable[[World, str], None]


def by_hand(place: int = 0) -> Callable[[World, str], None]:
    return lambda world, name: checks.check_by_hand(world, name, BY_HAND[name][place])


def sealed(world: World, name: str) -> None:
    with TemporaryDirectory() as folder, Database(f"sqlite:///{folder}/elsewhere.db") as elsewhere:
        elsewhere.create_schema()
        checks.check_sealed(world, name, elsewhere)


def decides(name: str, change: Change) -> dict[str, Any]:
    right = BY_NAME[name].decide
    return {"decide": lambda request, occasion: change(right(request, occasion))}


def tells(name: str, **wrong: Callable[[Any], Any]) -> dict[str, Any]:
    right = BY_NAME[name].told

    def told(transaction: Any) -> Any:
        facts = dict(right(transaction))
        return facts | {field: of(facts) for field, of in wrong.items()}

    return {"told": told}


def one_more(move: Any) -> Movement:
    return Movement(move.source, move.target, move.amount + 1)


def back(move: Any) -> Movement:
    return Movement(move.target, move.source, move.amount)


def swapped(one: Any, other: Any) -> tuple[Movement, Movement]:
    return replace(one, amount=other.amount), replace(other, amount=one.amount)


def with_row(decision: Decision, **changes: Any) -> Decision:
    [row] = decision.rows
    return replace(decision, rows=(replace(row, **changes),))


def told_to_all(decision: Decision) -> Decision:
    enough, room = decision.needs
    assert isinstance(room, Room)
    return replace(decision, needs=(enough, replace(room, private=False)))


TICKS = count()
FAULTS: dict[str, Fault] = {
    "a point more": Fault(
        "credit", decides("credit", lambda d: replace(d, moves=tuple(map(one_more, d.moves)))), by_hand()
    ),
    "the other direction": Fault(
        "spend", decides("spend", lambda d: replace(d, moves=tuple(map(back, d.moves)))), by_hand()
    ),
    "from escrow": Fault(
        "transfer",
        decides("transfer", lambda d: replace(d, moves=(Movement(escrow("ana"), available("ben"), 30),))),
        by_hand(),
    ),
    "each side gets the other's": Fault(
        "partial_settle",
        decides("partial_settle", lambda d: replace(d, moves=swapped(*d.moves))),
        by_hand(),
    ),
    "nothing moves": Fault("open", decides("open", lambda d: replace(d, moves=())), by_hand(1)),
    "another's wallet is touched": Fault(
        "open", decides("open", lambda d: replace(d, moves=(Touch(available("ben")),))), by_hand(1)
    ),
    "points that are not there": Fault(
        "spend", decides("spend", lambda d: replace(d, needs=())), checks.check_refusals
    ),
    "no room": Fault("credit", decides("credit", lambda d: replace(d, needs=())), checks.check_refusals),
    "a hold that nobody has looked at": Fault(
        "refund", decides("refund", lambda d: replace(d, needs=())), checks.check_refusals
    ),
    "the order of the refusals": Fault(
        "transfer", decides("transfer", lambda d: replace(d, needs=d.needs[::-1])), checks.check_refusals
    ),
    "the taker's balance in the refusal": Fault("transfer", decides("transfer", told_to_all), checks.check_refusals),
    "nobody's permission": Fault("settle", {"authorization": None}, checks.check_refusals),
    "no claim": Fault("deposit", decides("deposit", lambda d: replace(d, rows=())), by_hand(1)),
    "an item of another amount": Fault(
        "hold", decides("hold", lambda d: with_row(d, values={"amount": 31, "status": "held"})), sealed
    ),
    "an item without its model": Fault("settle", decides("settle", lambda d: with_row(d, copies=())), by_hand()),
    "an item without its model, by the ledger": Fault(
        "settle", decides("settle", lambda d: with_row(d, copies=())), sealed
    ),
    "another balance is told": Fault("hold", tells("hold", escrow_balance=lambda facts: facts["amount"]), by_hand()),
    "another answer each time": Fault(
        "credit", tells("credit", new_available_balance=lambda facts: next(TICKS)), checks.check_replay
    ),
    "another request is told": Fault("spend", tells("spend", amount=lambda facts: 7), sealed),
    "a detail that is not kept": Fault("spend", {"details": ()}, checks.check_conflicts),
    "a detail that is not kept, by hand": Fault("spend", {"details": ()}, by_hand()),
    "a detail that is not kept, in the record": Fault("spend", {"details": ()}, sealed),
    "the default's currency for the hold's": Fault("settle", {"currency_of_hold": False}, by_hand(1)),
    "another event": Fault("credit", {"event": WalletDeposited}, checks.check_event),
    "another answer": Fault("deposit", {"response": UserCreditResponse}, checks.check_event),
}


@contextmanager
def planted(fault: Fault) -> Iterator[None]:
    """The operation is wrong inside the block."""
    operation: Any = BY_NAME[fault.name]
    right = {name: getattr(operation, name) for name in fault.changes}
    assign = partial(object.__setattr__, operation)
    for name, value in fault.changes.items():
        assign(name, value)
    try:
        yield
    finally:
        for name, value in right.items():
            assign(name, value)


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_wrong_operation_fails_the_check_that_is_there_for_it(database: Database, fault: Fault) -> None:
    with planted(fault), pytest.raises(AssertionError):
        fault.check(World(database), fault.name)


@pytest.mark.parametrize("name", sorted({fault.name for fault in FAULTS.values()}))
def test_where_nothing_is_planted_the_same_checks_pass(sqlite_url: str, name: str) -> None:
    fault = Fault(name, decides(name, lambda decision: decision), checks.check_refusals)
    with Database(sqlite_url) as database, planted(fault):
        fault.check(World(database), name)
