"""What operations do to a hold's escrow item: begin it, or end it."""

from dataclasses import dataclass
from typing import Any

from ..core.values import Identifier, canonical_json
from ..events.models import UserEvent
from .models import ESCROW_ITEMS, EscrowStatus
from .needs import Held
from .operation import Occasion, UserRequest
from .rows import Begun, Changed


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
    values = {
        "currency": occasion.currency,
        "amount": request.amount,
        "status": EscrowStatus.HELD.value,
        "queue_item_id": request.queue_item_id,
        "feature_type": request.feature_type,
        "reason": request.reason,
        "metadata_json": None if request.metadata is None else canonical_json(request.metadata),
        "model_id": None,
        "settled_amount": 0,
        "refunded_amount": 0,
        "created_at": occasion.at,
        "processed_at": None,
        "expires_at": None,
    }
    tells = {"escrow_id": occasion.made_id}
    return Begun(table=ESCROW_ITEMS, key=(occasion.made_id, request.owner_id), values=values, tells=tells)


def held(request: Any, amount: int, occasion: Occasion) -> Held:
    """The need that the hold is there, held, and what the request says of it."""
    return Held(request.escrow_id, request.owner_id, amount, request.queue_item_id, occasion.currency)


def ended(request: Any, status: EscrowStatus, occasion: Occasion, *, settled: int = 0, refunded: int = 0) -> Changed:
    """The row of a hold that is over."""
    values = {
        "status": status.value,
        "model_id": getattr(request, "model_id", None),
        "settled_amount": settled,
        "refunded_amount": refunded,
        "processed_at": occasion.at,
    }
    key = (request.escrow_id, request.owner_id)
    return Changed(table=ESCROW_ITEMS, key=key, values=values, tells=("currency", "feature_type"))
