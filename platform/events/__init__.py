"""Event types, and the bus that announces them in this process."""

from .models import (
    EVENT_TYPES,
    EscrowHeld,
    EscrowPartiallySettled,
    EscrowRefunded,
    EscrowSettled,
    WalletCredited,
    WalletEvent,
)
from .service import EventBus

__all__ = [
    "EVENT_TYPES",
    "EscrowHeld",
    "EscrowPartiallySettled",
    "EscrowRefunded",
    "EscrowSettled",
    "EventBus",
    "WalletCredited",
    "WalletEvent",
]
