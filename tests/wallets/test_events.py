"""What is announced: one event per committed operation, after its commit, equal to its record."""

import json
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from points_platform.core import InsufficientBalanceError, WalletError
from points_platform.core.failures import Stale
from points_platform.events import (
    EVENT_TYPES,
    EscrowHeld,
    EscrowPartiallySettled,
    EscrowRefunded,
    EscrowSettled,
    EventBus,
    WalletCredited,
    WalletEvent,
)
from points_platform.ledger import LedgerService
from points_platform.wallets import WalletService, event_of
from support.world import World

METADATA = {"song": {"title": "Luna"}, "n": 1}
EVENT_CLASSES: dict[str, type[WalletEvent]] = {
    "credit": WalletCredited,
    "hold": EscrowHeld,
    "settle": EscrowSettled,
    "refund": EscrowRefunded,
    "partial_settle": EscrowPartiallySettled,
}
every_operation = pytest.mark.parametrize("operation", list(EVENT_CLASSES))


def prepared(world: World, operation: str, **changes: Any) -> Any:
    """A request of that kind that will be carried out; what happened before is forgotten."""
    make: dict[str, Callable[..., Any]] = {
        "credit": world.credit_request,
        "hold": world.hold_request,
        "settle": world.settle_request,
        "refund": world.refund_request,
        "partial_settle": world.partial_settle_request,
    }
    world.credit()
    escrow = [] if operation in {"credit", "hold"} else [world.hold().escrow_id]
    world.events.clear()
    return make[operation](*escrow, metadata=METADATA, **changes)


def balances(world: World) -> tuple[int, int, int]:
    user, model = world.wallets.get_user_balance("ana"), world.wallets.get_model_balance("luna")
    return user.available, user.escrow, model.earned


@every_operation
def test_each_operation_is_announced_with_what_its_request_response_and_record_say(
    world: World, operation: str
) -> None:
    request = prepared(world, operation)
    response = world.send(request)
    assert len(world.events) == 1
    event = world.events[0]
    assert type(event) is EVENT_CLASSES[operation]
    assert event.event_id == event.transaction_id == response.transaction_id
    assert event.occurred_at == response.timestamp
    assert event.metadata == METADATA
    assert (event.currency, event.schema_version) == ("points", 1)
    for source in (request, response):
        for field in fields(source):
            if hasattr(event, field.name) and field.name not in {"metadata", "currency"}:
                assert getattr(event, field.name) == getattr(source, field.name), field.name
    recorded = world.ledger.transaction(response.transaction_id)
    assert recorded is not None
    assert event_of(recorded) == event


def test_each_event_has_exactly_its_fields_and_the_new_balances(world: World) -> None:
    common = {"event_id", "event_type", "occurred_at", "transaction_id", "idempotency_key", "request_id", "user_id"}
    common |= {"currency", "reason", "metadata_json", "schema_version"}
    escrow = common | {"escrow_id", "queue_item_id", "feature_type"}
    decided = escrow | {"authorization_id"}
    own: dict[type[WalletEvent], set[str]] = {
        WalletCredited: common | {"amount", "previous_balance", "new_available_balance"},
        EscrowHeld: escrow | {"amount", "previous_balance", "new_available_balance", "escrow_balance"},
        EscrowSettled: decided | {"model_id", "settled_amount", "model_earned_balance"},
        EscrowRefunded: decided | {"refunded_amount", "user_available_balance"},
        EscrowPartiallySettled: decided
        | {"model_id", "refunded_amount", "settled_amount", "user_available_balance", "model_earned_balance"},
    }
    assert {kind: {field.name for field in fields(kind)} for kind in EVENT_CLASSES.values()} == own

    world.credit(amount=100)
    first, second, third = (world.hold(amount=30).escrow_id for _ in range(3))
    world.settle(first)
    world.refund(second)
    world.partial_settle(third, 10, 20)
    names = [
        *("amount", "settled_amount", "refunded_amount", "previous_balance", "new_available_balance"),
        *("escrow_balance", "user_available_balance", "model_earned_balance"),
    ]
    told = [(event.event_type, *(getattr(event, name, None) for name in names)) for event in world.events]
    assert told == [
        ("wallet.credited", 100, None, None, 0, 100, None, None, None),
        ("wallet.escrow_held", 30, None, None, 100, 70, 30, None, None),
        ("wallet.escrow_held", 30, None, None, 70, 40, 60, None, None),
        ("wallet.escrow_held", 30, None, None, 40, 10, 90, None, None),
        ("wallet.escrow_settled", None, 30, None, None, None, None, None, 30),
        ("wallet.escrow_refunded", None, None, 30, None, None, None, 40, None),
        ("wallet.escrow_partially_settled", None, 20, 10, None, None, None, 50, 50),
    ]
    assert [event.escrow_id for event in world.events[1:]] == [first, second, third] * 2  # type: ignore[attr-defined]


@every_operation
def test_an_event_holds_no_token_and_no_metadata_that_can_be_changed(world: World, operation: str) -> None:
    request = prepared(world, operation)
    options = {} if operation in {"credit", "hold"} else {"authorization": world.authorize(request)}
    world.send(request, **options)
    event = world.events[0]
    event.metadata["song"]["title"] = "changed"  # type: ignore[index]
    assert event.metadata == METADATA
    for authorization in options.values():
        assert authorization.token not in repr(vars(event))
    assert hash(event) == hash(world.events[0])


@every_operation
def test_an_event_is_published_after_the_commit(world: World, url: str, operation: str) -> None:
    """A receiver reads the new rows through a connection that shares nothing with the service."""
    elsewhere = create_engine(url)
    request = prepared(world, operation)
    seen: list[Any] = []

    def look(event: WalletEvent) -> None:
        with elsewhere.connect() as connection:
            recorded = connection.scalar(
                text("SELECT count(*) FROM ledger_transactions WHERE transaction_id = :id"), {"id": event.event_id}
            )
            wallet = connection.execute(text("SELECT available, escrow FROM user_wallets")).one()
            seen.append((recorded, *wallet))

    world.bus.subscribe(EVENT_CLASSES[operation](**_blank(operation)).event_type, look)
    world.send(request)
    elsewhere.dispose()
    assert world.bus.failures == 0
    assert seen == [(1, *balances(world)[:2])]


def _blank(operation: str) -> dict[str, Any]:
    return {field.name: None for field in fields(EVENT_CLASSES[operation]) if field.init}


@every_operation
def test_replays_and_refusals_are_not_announced(world: World, operation: str) -> None:
    request = prepared(world, operation)
    world.send(request)
    world.events.clear()
    assert world.send(request).replayed
    assert world.send(request, world.service()).replayed
    changes = {"request_id": "request-2"}
    assert world.send(type(request)(**{**vars(request), **changes})).replayed
    refusals = [{"reason": "other"}, {"idempotency_key": "another", "currency": "gems"}]
    for change in refusals if operation != "credit" else refusals[:1]:
        with pytest.raises(WalletError):
            world.send(type(request)(**{**vars(request), **change}))
    assert world.events == []


def test_a_write_that_fails_is_not_announced(stepwise: World) -> None:
    class Contended(LedgerService):
        def record(self, *given: Any) -> None:
            super().record(*given)
            raise Stale

    before = stepwise.snapshot()
    wallets = WalletService(
        Contended(stepwise.database), authorizer=stepwise.authorizer, events=stepwise.bus, config=stepwise.config
    )
    with pytest.raises(WalletError):
        wallets.credit_user(stepwise.credit_request())
    assert stepwise.events == []
    assert stepwise.snapshot() == before


@every_operation
def test_without_a_bus_everything_works(world: World, operation: str) -> None:
    request = prepared(world, operation)
    silent = world.service(events=None)
    assert world.send(request, silent) == world.send(request, silent)
    assert world.events == []


class BrokenBus(EventBus):
    def publish(self, event: WalletEvent) -> None:
        raise RuntimeError("the bus itself is broken")


@every_operation
def test_a_bus_that_raises_changes_nothing(world: World, caplog: pytest.LogCaptureFixture, operation: str) -> None:
    request = prepared(world, operation)
    broken = world.service(events=BrokenBus())
    response = world.send(request, broken)
    assert not response.replayed
    assert world.ledger.transaction(response.transaction_id) is not None
    assert (world.send(request, broken), world.send(request)) == (response, response)
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert [vars(record)["event_id"] for record in warnings] == [response.transaction_id]
    assert vars(warnings[0])["operation"] == operation
    assert warnings[0].getMessage() == f"the event bus failed on event {response.transaction_id}"
    assert warnings[0].exc_info is not None


@every_operation
def test_a_receiver_that_raises_hurts_neither_the_operation_nor_the_others(
    world: World, caplog: pytest.LogCaptureFixture, operation: str
) -> None:
    request = prepared(world, operation)

    def failing(event: WalletEvent) -> None:
        raise RuntimeError("no")

    for event_type in EVENT_TYPES:
        world.bus.subscribe(event_type, failing)
    response = world.send(request)
    assert [event.event_id for event in world.events] == [response.transaction_id]
    assert world.bus.failures == 1
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert [vars(record)["event_id"] for record in warnings] == [response.transaction_id]
    assert world.send(request) == response
    assert world.bus.failures == 1


def test_a_receiver_may_use_the_service(world: World) -> None:
    """A bonus for each settled performance, and a new hold out of it, all inside the receivers."""
    world.credit()
    escrow_id = world.hold().escrow_id

    def give_bonus(event: EscrowSettled) -> None:
        world.credit(event.user_id, 5, reason="bonus", idempotency_key=f"bonus-{event.event_id}")

    def hold_it_again(event: WalletCredited) -> None:
        if event.reason == "bonus":
            world.hold(event.user_id, event.amount)

    world.bus.subscribe("wallet.escrow_settled", give_bonus)
    world.bus.subscribe("wallet.credited", hold_it_again)
    world.events.clear()
    response = world.settle(escrow_id)
    assert response.model_earned_balance == 30
    assert world.bus.failures == 0
    assert balances(world) == (70, 5, 30)
    told = {event.event_type for event in world.events}
    assert told == {"wallet.escrow_settled", "wallet.credited", "wallet.escrow_held"}
    assert len(world.events) == 3


def test_a_receiver_that_repeats_its_own_request_gets_the_answer(world: World) -> None:
    request = world.credit_request()
    answers: list[Any] = []
    world.bus.subscribe("wallet.credited", lambda event: answers.append(world.wallets.credit_user(request)))
    response = world.wallets.credit_user(request)
    assert (answers, answers[0].replayed, world.bus.failures) == ([response], True, 0)


def test_a_receivers_refusal_is_a_failure_of_the_receiver_alone(world: World) -> None:
    def overspend(event: WalletEvent) -> None:
        with pytest.raises(InsufficientBalanceError):
            world.hold(amount=1000)
        world.hold(amount=1000)

    world.bus.subscribe("wallet.credited", overspend)
    assert world.credit().new_available_balance == 100
    assert world.bus.failures == 1
    assert balances(world) == (100, 0, 0)


@every_operation
def test_in_the_callers_transaction_the_event_waits_for_the_commit(world: World, operation: str) -> None:
    request = prepared(world, operation)
    with Session(world.database.engine) as session:
        world.send(request, session=session)
        assert world.events == []
        session.rollback()
    assert world.events == []
    with Session(world.database.engine) as session:
        response = world.send(request, session=session)
        assert not response.replayed
        session.commit()
        assert [event.event_id for event in world.events] == [response.transaction_id]
        assert world.send(request, session=session).replayed
        session.commit()
    recorded = world.ledger.transaction(response.transaction_id)
    assert recorded is not None
    assert world.events == [event_of(recorded)]


def test_an_event_read_back_from_the_ledger_is_the_one_that_was_published(world: World) -> None:
    """Metadata is canonical, so that a delivery from the log is recognizable as the same."""
    odd = {"z": [1.5, "\U0001f600", None, True], "a": {"\x00": "\x1f"}, "big": 2**70, "e": 1e100}
    world.credit(metadata=odd)
    recorded = world.ledger.transaction(world.events[0].event_id)
    assert recorded is not None
    assert event_of(recorded) == world.events[0]
    assert world.events[0].metadata == odd
    assert json.loads(world.events[0].metadata_json or "") == odd
