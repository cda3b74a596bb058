"""A key protects for ever: the same request gets the same answer once more, another request is refused."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from freezegun import freeze_time

from points_platform.core import (
    EscrowAlreadyProcessedError,
    IdempotencyConflictError,
    InsufficientBalanceError,
    InvalidAuthorizationError,
    WalletError,
)
from points_platform.wallets import WalletConfig, WalletService
from support.by_operation import assert_complete
from support.examples import EXAMPLES
from support.reference import STATUS
from support.statements import statements
from support.world import World

operations = pytest.mark.parametrize("operation", EXAMPLES)


def refusal_of(call: Callable[..., object], *arguments: Any) -> WalletError:
    with pytest.raises(WalletError) as refusal:
        call(*arguments)
    return refusal.value


@contextmanager
def nothing_happens(world: World) -> Iterator[None]:
    rows, events = world.snapshot(), list(world.events)
    yield
    assert (world.snapshot(), world.events) == (rows, events)


UNEQUAL: list[tuple[Any, Any]] = [
    ({"n": 1}, {"n": True}),
    ({"n": 1}, {"n": 1.0}),
    ({"n": True}, {"n": 1.0}),
    ({"n": 0.0}, {"n": -0.0}),
    ({"n": 1}, {"n": "1"}),
    ({"n": None}, {}),
    ({}, None),
    ({"n": [1, 2]}, {"n": [2, 1]}),
    ({"n": {"deep": [0]}}, {"n": {"deep": [False]}}),
    ({"n": "é"}, {"n": "e\u0301"}),
    ({"n": 2**64}, {"n": float(2**64)}),
]


def test_metadata_is_compared_as_json(world: World) -> None:
    for one, another in UNEQUAL + [(other, given) for given, other in UNEQUAL]:
        request = world.credit_request(metadata=one)
        world.send(request)
        for service in (world.wallets, world.service()):
            error = refusal_of(world.send, replace(request, metadata=another), service)
            assert error.details == {"key": request.idempotency_key, "fields": ("metadata",)}, (one, another)


def test_the_order_of_metadata_keys_is_no_difference(world: World) -> None:
    request = world.credit_request(metadata={"a": 1, "b": {"c": 2, "d": 3}})
    world.send(request)
    assert world.send(replace(request, metadata={"b": {"d": 3, "c": 2}, "a": 1}), world.service()).replayed


@pytest.mark.parametrize("operation", ["credit", "hold"])
def test_the_default_currency_is_resolved_before_the_comparison(world: World, operation: str) -> None:
    world.credit(amount=1000, currency="gems")
    request = EXAMPLES[operation](world)
    first = world.send(request)
    gems = world.service(config=WalletConfig(default_currency="gems"))
    with nothing_happens(world):
        assert world.send(replace(request, currency="points"), gems) == first
        for other, service in ((request, gems), (replace(request, currency="gems"), world.wallets)):
            error = refusal_of(world.send, other, service)
            told = {"key": request.idempotency_key, "fields": ("currency",)}
            assert error.details == told | ({} if other.currency else {"recorded": "points", "meant": "gems"})


# Where no currency is the default one; what ends a hold is in the hold's.
BY_DEFAULT = ["credit", "deposit", "hold", "spend", "transfer", "open"]


def test_no_operation_is_missing_here() -> None:
    assert_complete("BY_DEFAULT", [*BY_DEFAULT, *STATUS])


@pytest.mark.parametrize("again", ["remembered", "read"])
@pytest.mark.parametrize("operation", BY_DEFAULT)
def test_a_changed_default_currency_invites_nobody_to_do_it_twice(world: World, operation: str, again: str) -> None:
    """A new key, which other conflicts may be told of, would carry the same request out in the new currency."""
    world.credit()
    request = getattr(world, f"{operation}_request")()
    if again == "read":
        world.send(request)
    gems = world.service(config=WalletConfig(default_currency="gems"))
    if again == "remembered":
        world.send(replace(request, currency="points"), gems)
    with nothing_happens(world):
        conflict = refusal_of(world.send, request, gems)
        other = refusal_of(world.send, replace(request, reason="another"), gems)
        named = refusal_of(world.send, replace(request, currency="gems"), gems)
        key = request.idempotency_key
        assert conflict.details == {"key": key, "fields": ("currency",), "recorded": "points", "meant": "gems"}
        assert str(conflict) == (
            f"idempotency key {key} has carried out this request in points; it names no currency, which means gems "
            "as configured here: name points for its answer, since with another key it would happen twice"
        )
        assert other.details == {"key": key, "fields": ("reason", "currency")}
        assert named.details == {"key": key, "fields": ("currency",)}
        for message in (str(other), str(named)):
            assert "send that one unchanged for its answer" in message
            assert "new key" not in message
        assert world.send(replace(request, currency="points"), gems).replayed


@pytest.mark.parametrize("operation", ["settle", "refund", "partial_settle"])
def test_the_currency_left_open_is_the_holds_in_a_repetition_too(world: World, operation: str) -> None:
    world.credit(amount=1000, currency="gems")
    make = {"settle": world.settle_request, "refund": world.refund_request}.get(operation, world.partial_settle_request)
    request = make(world.hold(currency="gems").escrow_id)
    first = world.send(request)
    with nothing_happens(world):
        for service in (world.wallets, world.service()):
            assert world.send(replace(request, currency="gems"), service) == first
            assert world.send(request, service) == first
            error = refusal_of(world.send, replace(request, currency="points"), service)
            assert error.details == {"key": request.idempotency_key, "fields": ("currency",)}


def test_keys_are_compared_by_every_character(world: World) -> None:
    keys = ["key", "KEY", "key ", " key", "ké", "ke\u0301", "k" * 127, "k" * 128]
    for key in keys:
        assert world.credit(amount=1, idempotency_key=key).replayed is False
    assert world.wallets.get_user_balance("ana").available == len(keys)


def test_a_key_that_was_refused_for_missing_points_works_after_a_top_up(world: World) -> None:
    request = world.hold_request(amount=30)
    world.credit(amount=29)
    with nothing_happens(world):
        for _ in range(2):
            assert type(refusal_of(world.send, request)) is InsufficientBalanceError
    world.credit(amount=1)
    answer = world.send(request)
    assert (answer.replayed, answer.new_available_balance) == (False, 0)
    assert world.send(request) == answer


def test_another_key_for_what_was_done_is_no_repetition(world: World) -> None:
    request = EXAMPLES["settle"](world)
    world.send(request)
    with nothing_happens(world):
        error = refusal_of(world.send, replace(request, idempotency_key="another"))
        assert type(error) is EscrowAlreadyProcessedError


@pytest.mark.parametrize("operation", ["settle", "refund", "partial_settle"])
def test_a_repetition_needs_a_valid_authorization_too(world: World, operation: str) -> None:
    with freeze_time("2026-03-01 12:00:00") as clock:
        request = EXAMPLES[operation](world)
        authorization = world.authorize(request)
        first = world.send(request, authorization=authorization)
        assert world.send(request, authorization=authorization) == first
        clock.tick(timedelta(minutes=5, seconds=6))  # and the leeway
        for service in (world.wallets, world.service()):
            for wrong in (None, authorization, world.authorize(request, reason="another_reason")):
                error = refusal_of(lambda s=service, w=wrong: world.send(request, s, authorization=w))
                assert type(error) is InvalidAuthorizationError
            assert world.send(request, service) == first


def cached(world: World, wallets: WalletService, request: Any) -> bool:
    """Whether the repetition is answered without a look into the database."""
    with statements(world.database.engine) as seen:
        answer = world.send(request, wallets)
    assert answer.replayed is True
    return not seen


@operations
def test_the_cache_saves_the_read_until_its_time_is_over_and_the_ledger_answers_for_ever(
    world: World, operation: str
) -> None:
    wallets = world.service(config=WalletConfig(idempotency_cache_ttl_s=60))
    with freeze_time("2026-03-01 12:00:00") as clock:
        request = EXAMPLES[operation](world)
        first = world.send(request, wallets)
        clock.tick(59)
        with nothing_happens(world):
            assert cached(world, wallets, request)
            clock.tick(1)
            assert not cached(world, wallets, request)
            assert cached(world, wallets, request), "what the ledger has answered is kept again"
            clock.tick(timedelta(days=3650))
            assert not cached(world, wallets, request)
            assert world.send(request, wallets) == first
            other = replace(request, reason="another_reason")
            clock.tick(61)
            assert type(refusal_of(world.send, other, wallets)) is IdempotencyConflictError


@pytest.mark.parametrize(
    ("size", "ttl", "kept"), [(0, 300, [False, False]), (1, 300, [False, True]), (2, 0, [False, False])]
)
def test_the_cache_keeps_no_more_than_it_may(world: World, size: int, ttl: int, kept: list[bool]) -> None:
    wallets = world.service(config=WalletConfig(idempotency_cache_size=size, idempotency_cache_ttl_s=ttl))
    with freeze_time("2026-03-01 12:00:00"):
        requests = [world.credit_request(), world.credit_request()]
        for request in requests:
            world.send(request, wallets)
        assert [cached(world, wallets, request) for request in reversed(requests)] == kept[::-1]


def test_a_refusal_is_not_cached(world: World) -> None:
    request = world.hold_request(amount=30)
    refusal_of(world.send, request)
    world.service().credit_user(world.credit_request(amount=30))
    assert world.send(request).replayed is False


def test_a_service_that_saw_nothing_done_finds_what_another_has_done_meanwhile(world: World) -> None:
    other = world.service()
    request = world.hold_request(amount=30)
    refusal_of(world.send, request)
    world.credit(amount=30)
    first = world.send(request, other)
    answer = world.send(request)
    assert (answer, answer.replayed, len(world.events)) == (first, True, 2)
