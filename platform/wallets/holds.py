"""What operations do to a hold's escrow item: begin it, or end it."""

from dataclasses import dataclass
from typing import Any

from ..core.values import Identifier
from ..events.models import UserEvent
from .models import ESCROW_ITEMS, EscrowStatus
from .needs import Held
from .operation import Occasion, UserRequest
from .rows import Begun, Changed

HELD = EscrowStatus.HELD.value


@dataclass(frozen=True, kw_only=True)
class EscrowEvent(UserEvent):
    """What every event of a hold has."""

    escrow_id: str
    queue_item_id: str
    feature_type: str


@dataclass(frozen=True, kw_only=True)
class EndingRequest(UserRequest):
    """What every request that ends a hold names: the hold."""

    escrow_id: Identifier


def begun(request: Any, occasion: Occasion) -> Begun:
    """The row of a new hold: what the request says of it, held."""
    return Begun(
        table=ESCROW_ITEMS,
        key=(occasion.made_id, request.owner_id),
        values={"amount": request.amount, "status": HELD},
        copies=("currency", "queue_item_id", "feature_type", "reason", "metadata_json"),
        at="created_at",
        gives={"escrow_id": occasion.made_id},
    )


def held(request: Any, amount: int, occasion: Occasion) -> Held:
    """The need that the hold is there, held, and what the request says of it."""
    return Held(request.escrow_id, request.owner_id, amount, request.queue_item_id, occasion.currency)


def settled(request: Any, status: EscrowStatus, *, amount: int, refunded: int = 0) -> Changed:
    """The row of a hold of which a model has got the amount, and its user what was refunded."""
    return _ended(
        request, {"status": status.value, "settled_amount": amount, "refunded_amount": refunded}, ("model_id",)
    )


def refunded(request: Any, status: EscrowStatus) -> Changed:
    """The row of a hold that has gone back to its user."""
    return _ended(request, {"status": status.value, "refunded_amount": request.amount}, ())


def _ended(request: Any, values: dict[str, Any], copies: tuple[str, ...]) -> Changed:
    return Changed(
        table=ESCROW_ITEMS,
        key=(request.escrow_id, request.owner_id),
        values=values,
        copies=copies,
        at="processed_at",
        # Its id too: the request's may be longer than any that there is.
        tells=("escrow_id", "currency", "feature_type"),
    )
