"""What events are, and the bus that announces them in this process."""

from .models import EVENT_TYPES, UserEvent, WalletEvent
from .service import EventBus

__all__ = ["EVENT_TYPES", "EventBus", "UserEvent", "WalletEvent"]
