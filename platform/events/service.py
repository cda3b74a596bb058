"""The in-process event bus on blinker: receivers that can hurt neither the operation nor each other."""

import logging
import threading
from collections.abc import Callable
from inspect import iscoroutinefunction
from types import BuiltinMethodType, MethodType
from typing import Any, TypeVar, overload

from blinker import Namespace, Signal

from ..core.errors import InvalidRequestError
from ..core.logs import say
from ..core.values import plain_string
from .models import EVENT_TYPES, WalletEvent

Event = TypeVar("Event", bound=WalletEvent)
Receiver = Callable[[Any], object]
Topic = str | type[WalletEvent]

log = logging.getLogger(__name__)


class EventBus:
    """Hands each event to the receivers of its type, in the publishing thread, before ``publish`` returns.

    Receivers are held by strong references. One that raises is logged with the event's id and counted
    in ``failures``; the others still get the event.
    """

    def __init__(self) -> None:
        signals = Namespace()
        # By type; and by class for those that many events have in common.
        self._signals: dict[Topic, Signal] = {name: signals.signal(name) for name in EVENT_TYPES}
        # A bound method is a new object at each access, and blinker tells some of them apart.
        self._held: dict[tuple[Topic, int, object], Receiver] = {}
        self._lock = threading.Lock()
        self._failures = 0

    @property
    def failures(self) -> int:
        """How many deliveries to a receiver have failed."""
        return self._failures

    @overload
    def subscribe(self, event_type: str, receiver: Receiver) -> None: ...

    @overload
    def subscribe(self, event_type: type[Event], receiver: Callable[[Event], object]) -> None: ...

    def subscribe(self, event_type: Topic, receiver: Receiver) -> None:
        """Call ``receiver(event)`` for every event of that type; subscribing twice changes nothing.

        A type is a name (``"wallet.escrow_held"``) or the event's class (``EscrowHeld``). A class that many events
        have in common means all of them: ``WalletEvent`` every event there is. A receiver gets an event once,
        however many of its types it has subscribed to. Raises ``InvalidRequestError`` for a receiver that is not
        callable or is a coroutine function, which nobody would await, and for an unknown type.
        """
        if not callable(receiver) or iscoroutinefunction(receiver) or iscoroutinefunction(type(receiver).__call__):
            raise InvalidRequestError(
                field="receiver", value=receiver, expected="a plain callable that takes the event"
            )
        topic = self._topic(event_type)
        with self._lock:
            signal = self._signals.setdefault(topic, Signal())
            signal.connect(self._held.setdefault((topic, *_identity(receiver)), receiver), weak=False)

    @overload
    def unsubscribe(self, event_type: str, receiver: Receiver) -> None: ...

    @overload
    def unsubscribe(self, event_type: type[Event], receiver: Callable[[Event], object]) -> None: ...

    def unsubscribe(self, event_type: Topic, receiver: Receiver) -> None:
        """Stop calling the receiver for what it has subscribed to; one that was never subscribed is no error.

        A name and its class are the same; who has subscribed to ``WalletEvent`` unsubscribes from that. Raises
        ``InvalidRequestError`` for an unknown type.
        """
        topic = self._topic(event_type)
        with self._lock:
            if (signal := self._signals.get(topic)) is not None:
                signal.disconnect(self._held.pop((topic, *_identity(receiver)), receiver))

    def publish(self, event: WalletEvent) -> None:
        """Deliver the event. Raises ``InvalidRequestError`` for what is no known event, nothing of a receiver's."""
        if not isinstance(event, WalletEvent):
            raise InvalidRequestError(field="event", value=event, expected="a WalletEvent")
        for receiver in self._receivers(event, _known(event.event_type)):
            try:
                receiver(event)
            except Exception:
                with self._lock:
                    self._failures += 1
                told = {"event_id": event.event_id, "event_type": event.event_type, "receiver": _name(receiver)}
                say(log, logging.WARNING, "a receiver failed on event %s", event.event_id, exc_info=True, **told)

    def _receivers(self, event: WalletEvent, event_type: str) -> list[Receiver]:
        """Those of its type and of every class that it is of, each once."""
        found: dict[tuple[int, object], Receiver] = {}
        with self._lock:
            topics: tuple[Any, ...] = (event_type, *type(event).__mro__)
            for topic in topics:
                if (signal := self._signals.get(topic)) is not None:
                    found.update((_identity(receiver), receiver) for receiver in signal.receivers_for(event))
        return list(found.values())

    def _topic(self, event_type: object) -> Topic:
        """A class that says the type of its events stands for that type, any other for itself."""
        if not (isinstance(event_type, type) and issubclass(event_type, WalletEvent)):
            return _known(event_type)
        name: object = getattr(event_type, "event_type", None)
        return event_type if name is None else _known(name)


def _known(event_type: object) -> str:
    text = plain_string(event_type)
    if text is None or text not in EVENT_TYPES:
        expected = f"WalletEvent, the class of an event, or one of {', '.join(EVENT_TYPES)}"
        raise InvalidRequestError(field="event_type", value=event_type, expected=expected)
    return text


def _identity(receiver: Receiver) -> tuple[int, object]:
    """What makes two receivers the same: the object, or the object and its method."""
    owner = getattr(receiver, "__self__", None)
    if isinstance(receiver, MethodType | BuiltinMethodType) and owner is not None:
        return id(owner), receiver.__name__
    return id(receiver), None


def _name(receiver: Receiver) -> object:
    try:
        return getattr(receiver, "__qualname__", type(receiver).__name__)
    except Exception:  # a receiver that answers to any name with an error
        return type(receiver).__name__
