"""What is announced: one event per committed operation, after its commit, equal to its record."""

import json
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from points_platform.core import InsufficientBalanceError, WalletError
from points_platform.core.failures import Stale
from points_platform.events import EVENT_TYPES, EventBus, WalletEvent
from points_platform.ledger import LedgerService
from points_platform.ledger.accounts import CHART
from points_platform.wallets import EscrowSettled, WalletCredited, WalletService, event_of
from support.examples import EXAMPLES
from support.world import World

VERSIONS = text("SELECT owner_id, version FROM user_wallets UNION ALL SELECT owner_id, version FROM model_wallets")
METADATA = {"song": {"title": "Luna"}, "n": 1}
every_operation = pytest.mark.parametrize("operation", EXAMPLES)


def prepared(world: World, operation: str) -> Any:
    """A request of that kind that will be carried out; what happened before is forgotten."""
    request = EXAMPLES[operation](world, metadata=METADATA)
    world.events.clear()
    return request


def balances(world: World) -> tuple[int, int, int]:
    user, model = world.wallets.get_user_balance("ana"), world.wallets.get_model_balance("luna")
    return user.available, user.escrow, model.earned


@every_operation
def test_an_event_holds_no_token_and_no_metadata_that_can_be_changed(world: World, operation: str) -> None:
    request = prepared(world, operation)
    options = {"authorization": world.authorize(request)} if CHART[operation].authorized else {}
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
            seen.append((recorded, connection.execute(VERSIONS).all()))

    world.bus.subscribe(CHART[operation].announced, look)
    world.send(request)
    with elsewhere.connect() as connection:
        versions = connection.execute(VERSIONS).all()
    elsewhere.dispose()
    assert world.bus.failures == 0
    assert seen == [(1, versions)]


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
    assert [vars(record)["points_platform"]["event_id"] for record in warnings] == [response.transaction_id]
    assert vars(warnings[0])["points_platform"]["operation"] == operation
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
    assert [vars(record)["points_platform"]["event_id"] for record in warnings] == [response.transaction_id]
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


def test_an_event_read_back_from_the_ledger_is_the_one_that_was_published(world: World) -> None:
    """Metadata is canonical, so that a delivery from the log is recognizable as the same."""
    odd = {"z": [1.5, "\U0001f600", None, True], "a": {"\x00": "\x1f"}, "big": 2**70, "e": 1e100}
    world.credit(metadata=odd)
    recorded = world.ledger.transaction(world.events[0].event_id)
    assert recorded is not None
    assert event_of(recorded) == world.events[0]
    assert world.events[0].metadata == odd
    assert json.loads(world.events[0].metadata_json or "") == odd
