"""For each operation a request that is carried out, with all its fields given, and what it needs for that."""

import uuid
from collections.abc import Callable
from typing import Any

from .by_operation import ByOperation
from .world import World

Maker = Callable[..., Any]
METADATA = {"private": "Ana of Lisbon", "n": 1}
# What a hold has in common with the request that ends it.
OF_HOLD = ("user_id", "currency", "queue_item_id")


def _gives(make: Callable[[World], Maker], **usual: Any) -> Maker:
    """Needs nothing to be there."""
    return lambda world, **changes: make(world)(**{"metadata": METADATA, **usual, **changes})


def _takes(make: Callable[[World], Maker], **usual: Any) -> Maker:
    """Needs points of its user's."""

    def request(world: World, **changes: Any) -> Any:
        world.credit(changes.get("user_id", "ana"), 1000, currency=changes.get("currency"))
        return make(world)(**{"metadata": METADATA, **usual, **changes})

    return request


def _ends(make: Callable[[World], Maker]) -> Maker:
    """Needs a hold of its user's, of 30 points."""

    def request(world: World, **changes: Any) -> Any:
        named = {name: changes[name] for name in OF_HOLD if name in changes}
        world.credit(changes.get("user_id", "ana"), 1000, currency=changes.get("currency"))
        return make(world)(world.hold(**named).escrow_id, **{"metadata": METADATA, **changes})

    return request


EXAMPLES: dict[str, Maker] = ByOperation(
    "EXAMPLES in tests/support/examples.py",
    {
        "credit": _gives(lambda world: world.credit_request),
        "deposit": _gives(lambda world: world.deposit_request),
        "hold": _takes(lambda world: world.hold_request),
        "settle": _ends(lambda world: world.settle_request),
        "refund": _ends(lambda world: world.refund_request),
        "partial_settle": _ends(lambda world: world.partial_settle_request),
        "spend": _takes(lambda world: world.spend_request, order_id="order-7"),
        "transfer": _takes(lambda world: world.transfer_request),
        "open": _gives(lambda world: world.open_request),
    },
)


def another(value: Any) -> Any:
    """Another valid value for a field that has this one."""
    if value is None:
        return "gems"
    if isinstance(value, dict):
        return value | {"n": True}  # in Python equal to 1
    if isinstance(value, str) and _is_id(value):
        return str(uuid.UUID(int=uuid.UUID(value).int ^ 1))
    other: Any = value + 1 if isinstance(value, int) else f"{value}2"
    return other


def _is_id(value: str) -> bool:
    try:
        return str(uuid.UUID(value)) == value
    except ValueError:
        return False
