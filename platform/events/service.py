"""The in-process event bus on blinker: receivers that can hurt neither the operation nor each other."""

import logging
import threading
from collections.abc import Callable
from inspect import iscoroutinefunction
from types import BuiltinMethodType, MethodType
from typing import Any

from blinker import Namespace, Signal

from ..core.errors import InvalidRequestError
from ..core.values import plain_string
from .models import EVENT_TYPES, WalletEvent

Receiver = Callable[[Any], object]

log = logging.getLogger(__name__)


class EventBus:
    """Hands each event to the receivers of its type, in the publishing thread, before ``publish`` returns.

    Receivers are held by strong references. One that raises is logged with the event's id and counted
    in ``failures``; the others still get the event.
    """

    def __init__(self) -> None:
        signals = Namespace()
        self._signals: dict[str, Signal] = {name: signals.signal(name) for name in EVENT_TYPES}
        # A bound method is a new object at each access, and blinker tells some of them apart.
        self._held: dict[tuple[str, int, object], Receiver] = {}
        self._lock = threading.Lock()
        self._failures = 0

    @property
    def failures(self) -> int:
        """How many deliveries to a receiver have failed."""
        return self._failures

    def subscribe(self, event_type: str, receiver: Receiver) -> None:
        """Call ``receiver(event)`` for every event of that type; subscribing twice changes nothing.

        Raises ``InvalidRequestError`` for an unknown type, and for a receiver that is not callable or
        is a coroutine function, which nobody would await.
        """
        if not callable(receiver) or iscoroutinefunction(receiver) or iscoroutinefunction(type(receiver).__call__):
            raise InvalidRequestError(
                field="receiver", value=receiver, expected="a plain callable that takes the event"
            )
        event_type = self._known(event_type)
        with self._lock:
            signal = self._signals[event_type]
            signal.connect(self._held.setdefault((event_type, *_identity(receiver)), receiver), weak=False)

    def unsubscribe(self, event_type: str, receiver: Receiver) -> None:
        """Stop calling the receiver; one that was never subscribed is no error.

        Raises ``InvalidRequestError`` for an unknown type.
        """
        event_type = self._known(event_type)
        with self._lock:
            signal = self._signals[event_type]
            signal.disconnect(self._held.pop((event_type, *_identity(receiver)), receiver))

    def publish(self, event: WalletEvent) -> None:
        """Deliver the event. Raises ``InvalidRequestError`` for what is no known event, nothing of a receiver's."""
        if not isinstance(event, WalletEvent):
            raise InvalidRequestError(field="event", value=event, expected="a WalletEvent")
        signal = self._signals[self._known(event.event_type)]
        with self._lock:
            receivers = list(signal.receivers_for(event))
        for receiver in receivers:
            try:
                receiver(event)
            except Exception:
                with self._lock:
                    self._failures += 1
                log.warning(
                    "a receiver failed on event %s",
                    event.event_id,
                    exc_info=True,
                    extra={"event_id": event.event_id, "event_type": event.event_type, "receiver": _name(receiver)},
                )

    def _known(self, event_type: object) -> str:
        text = plain_string(event_type)
        if text is None or text not in self._signals:
            raise InvalidRequestError(field="event_type", value=event_type, expected=f"one of {', '.join(EVENT_TYPES)}")
        return text


def _identity(receiver: Receiver) -> tuple[int, object]:
    """What makes two receivers the same: the object, or the object and its method."""
    owner = getattr(receiver, "__self__", None)
    if isinstance(receiver, MethodType | BuiltinMethodType) and owner is not None:
        return id(owner), receiver.__name__
    return id(receiver), None


def _name(receiver: Receiver) -> str:
    return getattr(receiver, "__qualname__", type(receiver).__name__)
