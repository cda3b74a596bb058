"""The bus: who gets which event, and that receivers can hurt neither the publisher nor each other."""

import functools
import gc
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

import pytest

from points_platform.core import InvalidRequestError
from points_platform.events import EVENT_TYPES, EventBus, UserEvent, WalletEvent
from points_platform.wallets import (
    EscrowHeld,
    EscrowPartiallySettled,
    EscrowRefunded,
    EscrowSettled,
    WalletCredited,
    WalletDeposited,
    WalletOpened,
    WalletSpent,
    WalletTransferred,
)
from points_platform.wallets.holds import EscrowEvent

CLASSES: dict[str, type[WalletEvent]] = {
    "wallet.credited": WalletCredited,
    "wallet.escrow_held": EscrowHeld,
    "wallet.escrow_settled": EscrowSettled,
    "wallet.escrow_refunded": EscrowRefunded,
    "wallet.escrow_partially_settled": EscrowPartiallySettled,
    "wallet.spent": WalletSpent,
    "wallet.transferred": WalletTransferred,
    "wallet.deposited": WalletDeposited,
    "wallet.opened": WalletOpened,
}
CREDITED = "wallet.credited"


def credited(event_id: str = "event-1", metadata_json: str | None = None) -> WalletCredited:
    return WalletCredited(
        event_id=event_id,
        transaction_id=event_id,
        occurred_at=datetime(2026, 3, 1, tzinfo=UTC),
        idempotency_key="key-1",
        request_id="request-1",
        user_id="ana",
        currency="points",
        reason="top_up",
        metadata_json=metadata_json,
        amount=5,
        previous_balance=0,
        new_available_balance=5,
    )


def held() -> EscrowHeld:
    common = {name: value for name, value in vars(credited("event-2")).items() if name != "event_type"}
    escrow: dict[str, Any] = {
        "escrow_id": "escrow-1",
        "queue_item_id": "queue-1",
        "feature_type": "song",
        "escrow_balance": 5,
    }
    return EscrowHeld(**common, **escrow)


@pytest.fixture
def bus() -> EventBus:
    return EventBus()


def test_the_event_types_are_those_of_the_event_classes() -> None:
    assert set(EVENT_TYPES) == set(CLASSES)
    assert {credited().event_type, held().event_type} == {CREDITED, "wallet.escrow_held"}


@pytest.mark.parametrize("event_type", EVENT_TYPES)
def test_nobody_chooses_the_type_of_an_event(event_type: str) -> None:
    kind: Any = CLASSES[event_type]
    with pytest.raises(TypeError, match="unexpected keyword argument 'event_type'"):
        kind(event_type=event_type)


def test_a_receiver_gets_the_event_itself_as_its_only_argument_before_publish_returns(bus: EventBus) -> None:
    seen: list[tuple[Any, ...]] = []
    bus.subscribe(CREDITED, lambda *given: seen.append((*given, threading.current_thread())))
    event = credited()
    bus.publish(event)
    assert len(seen) == 1
    assert seen[0][0] is event
    assert seen[0][1:] == (threading.current_thread(),)


def test_a_receiver_gets_events_of_its_types_only(bus: EventBus) -> None:
    seen: list[WalletEvent] = []
    receiver = seen.append
    bus.publish(credited("before anybody listens"))
    bus.subscribe(CREDITED, receiver)
    bus.publish(held())
    assert seen == []
    bus.subscribe("wallet.escrow_held", receiver)
    bus.publish(credited())
    bus.publish(held())
    assert seen == [credited(), held()]


def test_two_buses_know_nothing_of_each_other(bus: EventBus) -> None:
    seen: list[WalletEvent] = []
    EventBus().subscribe(CREDITED, seen.append)
    bus.publish(credited())
    assert seen == []


class Counter:
    """A receiver of every shape: a bound method, a callable object, a static and a class method."""

    seen: list[str]

    def __init__(self) -> None:
        self.seen = []

    def receive(self, event: WalletEvent) -> None:
        self.seen.append(event.event_id)

    __call__ = receive


def test_subscribing_twice_changes_nothing(bus: EventBus) -> None:
    counter, seen = Counter(), list[WalletEvent]()
    receivers: dict[str, Callable[[], Any]] = {
        "method": lambda: counter.receive,
        "object": lambda: counter,
        "built-in": lambda: seen.append,
    }
    for name, receiver in receivers.items():
        bus.subscribe(CREDITED, receiver())
        bus.subscribe(CREDITED, receiver())
        bus.publish(credited(name))
        bus.unsubscribe(CREDITED, receiver())
        bus.publish(credited("after unsubscribing"))
    assert counter.seen == ["method", "object"]
    assert seen == [credited("built-in")]


def test_equal_receivers_that_are_not_the_same_are_two(bus: EventBus) -> None:
    class Equal(Counter):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

    first, second = Equal(), Equal()
    bus.subscribe(CREDITED, first)
    bus.subscribe(CREDITED, second)
    bus.publish(credited())
    assert (first.seen, second.seen) == (["event-1"], ["event-1"])


def test_a_receiver_that_unsubscribed_gets_nothing_more(bus: EventBus) -> None:
    counter = Counter()
    bus.subscribe(CREDITED, counter.receive)
    bus.publish(credited("first"))
    bus.unsubscribe("wallet.escrow_held", counter.receive)
    bus.publish(credited("second"))
    bus.unsubscribe(CREDITED, counter.receive)
    bus.unsubscribe(CREDITED, counter.receive)
    bus.publish(credited("third"))
    bus.subscribe(CREDITED, counter.receive)
    bus.publish(credited("fourth"))
    assert counter.seen == ["first", "second", "fourth"]


def test_a_receiver_that_nobody_else_refers_to_stays(bus: EventBus) -> None:
    seen: list[str] = []

    def subscribe_and_forget() -> None:
        def receive(event: WalletEvent) -> None:
            seen.append("function")

        class Local:
            def method(self, event: WalletEvent) -> None:
                seen.append("method")

            def __call__(self, event: WalletEvent) -> None:
                seen.append("object")

        receivers: list[Any] = [receive, Local().method, Local(), functools.partial(receive)]
        for receiver in receivers:
            bus.subscribe(CREDITED, receiver)

    subscribe_and_forget()
    gc.collect()
    bus.publish(credited())
    assert sorted(seen) == ["function", "function", "method", "object"]


async def coroutine_function(event: WalletEvent) -> None: ...


class AsyncCall:
    async def __call__(self, event: WalletEvent) -> None: ...

    async def method(self, event: WalletEvent) -> None: ...


@pytest.mark.parametrize(
    "receiver",
    [
        coroutine_function,
        functools.partial(coroutine_function),
        AsyncCall(),
        AsyncCall().method,
        functools.partial(AsyncCall().method),
        None,
        42,
        "print",
        [print],
    ],
    ids=lambda receiver: type(receiver).__name__,
)
def test_what_is_no_plain_callable_is_refused(bus: EventBus, receiver: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        bus.subscribe(CREDITED, receiver)
    assert caught.value.details["field"] == "receiver"
    bus.publish(credited())
    assert bus.failures == 0


@pytest.mark.parametrize(
    "event_type", ["", "credited", "wallet.*", "wallet.Credited", "wallet.credited ", None, 1, [], EventBus, type]
)
def test_an_unknown_event_type_is_refused_everywhere(bus: EventBus, event_type: Any) -> None:
    event = credited()
    object.__setattr__(event, "event_type", event_type)
    calls: list[Callable[[], None]] = [
        lambda: bus.subscribe(event_type, print),
        lambda: bus.unsubscribe(event_type, print),
        lambda: bus.publish(event),
    ]
    for call in calls:
        with pytest.raises(InvalidRequestError, match=r"wallet\.escrow_held") as caught:
            call()
        assert caught.value.details["field"] == "event_type"


# ── by class ──


@pytest.mark.parametrize("event_type", EVENT_TYPES)
def test_the_class_of_an_event_stands_for_its_type(bus: EventBus, event_type: str) -> None:
    """A name and its class are one subscription."""
    seen: list[WalletEvent] = []
    kind = CLASSES[event_type]
    receiver = seen.append
    event = kind(**{field.name: None for field in fields(kind) if field.init})  # type: ignore[arg-type]
    bus.subscribe(kind, receiver)
    bus.subscribe(event_type, receiver)
    bus.publish(event)
    assert seen == [event]
    bus.unsubscribe(event_type, receiver)
    bus.publish(event)
    bus.subscribe(event_type, receiver)
    bus.unsubscribe(kind, receiver)
    bus.publish(event)
    assert seen == [event]


def test_a_class_gets_no_event_of_another(bus: EventBus) -> None:
    seen: list[EscrowHeld] = []
    bus.subscribe(EscrowHeld, seen.append)
    bus.publish(credited())
    bus.publish(held())
    assert seen == [held()]


def opened() -> WalletOpened:
    return WalletOpened(**{field.name: None for field in fields(WalletOpened) if field.init})  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "expected"), [(WalletEvent, [0, 1, 2]), (UserEvent, [0, 1]), (EscrowEvent, [1])])
def test_a_class_that_events_have_in_common_gets_all_of_them(
    bus: EventBus, kind: type[WalletEvent], expected: list[int]
) -> None:
    events = [credited(), held(), opened()]
    seen: list[WalletEvent] = []
    bus.subscribe(kind, seen.append)
    for event in events:
        bus.publish(event)
    assert seen == [events[number] for number in expected]
    bus.unsubscribe(kind, seen.append)
    bus.publish(held())
    assert len(seen) == len(expected)


def test_a_receiver_of_all_events_and_of_one_gets_each_once(bus: EventBus) -> None:
    counter = Counter()
    bus.subscribe(WalletEvent, counter.receive)
    bus.subscribe(WalletCredited, counter.receive)
    bus.publish(credited())
    assert counter.seen == ["event-1"]
    bus.unsubscribe(WalletCredited, counter.receive)
    bus.publish(credited("event-2"))
    assert counter.seen == ["event-1", "event-2"], "all events were not unsubscribed from"


def test_unsubscribing_from_a_class_that_nobody_has_subscribed_to_changes_nothing(bus: EventBus) -> None:
    bus.unsubscribe(UserEvent, print)
    bus.unsubscribe(EscrowHeld, print)
    bus.publish(held())


def test_an_event_class_of_somebody_elses_is_refused(bus: EventBus) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Unheard(WalletEvent):
        event_type: str = field(default="wallet.unheard", init=False)

    with pytest.raises(InvalidRequestError, match=r"the class of an event, or one of .*, not 'wallet\.unheard'"):
        bus.subscribe(Unheard, print)


def test_a_receiver_that_fails_where_logging_fails_too_stops_no_other(bus: EventBus) -> None:
    seen: list[WalletEvent] = []

    def failing(event: WalletEvent) -> None:
        raise ValueError("no")

    before = logging.getLogRecordFactory()

    def factory(*given: Any, **options: Any) -> logging.LogRecord:
        raise RuntimeError("no record")

    for number in range(3):
        bus.subscribe(CREDITED, functools.partial(failing))
        bus.subscribe(CREDITED, functools.partial(lambda number, event: seen.append(event), number))
    logging.setLogRecordFactory(factory)
    try:
        bus.publish(credited())
    finally:
        logging.setLogRecordFactory(before)
    assert (len(seen), bus.failures) == (3, 3)


@pytest.mark.parametrize("event", [None, "wallet.credited", {"event_type": "wallet.credited"}, WalletCredited])
def test_what_is_no_event_reaches_nobody(bus: EventBus, event: Any) -> None:
    seen: list[Any] = []
    bus.subscribe("wallet.credited", seen.append)
    with pytest.raises(InvalidRequestError, match="event must be a WalletEvent"):
        bus.publish(event)
    assert (seen, bus.failures) == ([], 0)


class HostileError(Exception):
    """What a receiver raises may be as bad as the receiver."""

    def __str__(self) -> str:
        raise RuntimeError("cannot be shown")

    __repr__ = __str__


@pytest.mark.parametrize("error", [ValueError("no"), HostileError(), StopIteration(), RecursionError()], ids=type)
def test_a_receiver_that_raises_stops_no_other_is_logged_and_counted(
    bus: EventBus, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    seen: list[str] = []

    def failing(event: WalletEvent) -> None:
        raise error

    failures: list[Any] = [functools.partial(failing), failing, functools.partial(failing)]
    for number, failure in enumerate(failures):
        bus.subscribe(CREDITED, functools.partial(lambda number, event: seen.append(str(number)), number))
        bus.subscribe(CREDITED, failure)
    bus.publish(credited("event-77"))
    assert sorted(seen) == ["0", "1", "2"]
    assert bus.failures == len(failures) == len(caplog.records)
    for record in caplog.records:
        assert (record.name, record.levelno) == ("points_platform.events.service", logging.WARNING)
        assert record.getMessage() == "a receiver failed on event event-77"
        assert record.exc_info is not None
        assert record.exc_info[1] is error
        fields = vars(record)["points_platform"]
        assert (fields["event_id"], fields["event_type"]) == ("event-77", CREDITED)
    named = f"{test_a_receiver_that_raises_stops_no_other_is_logged_and_counted.__name__}.<locals>.failing"
    assert sorted(vars(record)["points_platform"]["receiver"] for record in caplog.records) == [
        "partial",
        "partial",
        named,
    ]


def test_failures_are_counted_by_delivery_and_without_loss_between_threads(bus: EventBus) -> None:
    def failing(event: WalletEvent) -> None:
        raise ValueError

    logging.getLogger("points_platform.events.service").disabled = True
    try:
        bus.subscribe(CREDITED, failing)
        threads = [
            threading.Thread(target=lambda: [bus.publish(credited()) for _ in range(200)])  # type: ignore[func-returns-value]
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        logging.getLogger("points_platform.events.service").disabled = False
    assert bus.failures == 1600


def test_nobody_sets_the_count_of_failures(bus: EventBus) -> None:
    with pytest.raises(AttributeError):
        bus.failures = 0  # type: ignore[misc]


def test_a_receiver_cannot_change_the_event_for_another(bus: EventBus) -> None:
    seen: list[dict[str, Any] | None] = []

    def meddle(event: Any) -> None:
        seen.append(event.metadata)
        event.metadata["song"]["title"] = "changed"
        event.metadata.clear()
        event.amount = 1_000_000

    bus.subscribe(CREDITED, meddle)
    bus.subscribe(CREDITED, lambda event: meddle(event))
    event = credited(metadata_json='{"song":{"title":"Luna"}}')
    bus.publish(event)
    assert seen == [{"song": {"title": "Luna"}}] * 2
    assert bus.failures == 2, "an event is frozen"
    assert (event.amount, event.metadata) == (5, {"song": {"title": "Luna"}})


def test_a_receiver_may_publish_again(bus: EventBus) -> None:
    seen: list[str] = []

    def echo(event: WalletEvent) -> None:
        seen.append(event.event_id)
        if len(seen) < 3:
            bus.publish(credited(event.event_id + "+"))

    bus.subscribe(CREDITED, echo)
    bus.publish(credited("e"))
    assert (seen, bus.failures) == (["e", "e+", "e++"], 0)


def test_subscribing_during_a_publication_counts_from_the_next_one(bus: EventBus) -> None:
    late: list[str] = []

    def late_receiver(event: WalletEvent) -> None:
        late.append(event.event_id)

    bus.subscribe(CREDITED, lambda event: bus.subscribe(CREDITED, late_receiver))
    bus.publish(credited("first"))
    assert late == []
    bus.publish(credited("second"))
    assert (late, bus.failures) == (["second"], 0)


def test_receivers_that_unsubscribe_themselves_and_each_other_break_nothing(bus: EventBus) -> None:
    calls: list[int] = []
    receivers: list[Any] = []

    def unsubscribe_all(number: int, event: WalletEvent) -> None:
        calls.append(number)
        for receiver in receivers:
            bus.unsubscribe(CREDITED, receiver)

    receivers += [functools.partial(unsubscribe_all, number) for number in range(5)]
    for receiver in receivers:
        bus.subscribe(CREDITED, receiver)
    bus.publish(credited())
    assert (sorted(calls), bus.failures) == ([0, 1, 2, 3, 4], 0)
    bus.publish(credited())
    assert len(calls) == 5


def test_threads_may_subscribe_while_others_publish(bus: EventBus) -> None:
    barrier = threading.Barrier(4)
    errors: list[BaseException] = []

    def run(work: Any) -> None:
        try:
            barrier.wait(timeout=30)
            for _ in range(300):
                work()
        except BaseException as error:
            errors.append(error)

    def come_and_go() -> None:
        counter = Counter()
        bus.subscribe(CREDITED, counter)
        bus.unsubscribe(CREDITED, counter)

    threads = [
        threading.Thread(target=run, args=(work,)) for work in (come_and_go, lambda: bus.publish(credited())) * 2
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (errors, bus.failures) == ([], 0)
