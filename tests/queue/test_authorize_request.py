"""An authorization made from a request permits exactly that request."""

from dataclasses import fields
from datetime import timedelta
from typing import Any

import pytest
from freezegun import freeze_time

from points_platform.core import InvalidAuthorizationError, InvalidRequestError
from support.answers import called
from support.by_operation import assert_complete
from support.reference import STATUS
from support.world import METHODS, World

UNSIGNED = ("hold", "credit", "spend", "transfer", "deposit", "open")


def test_no_request_is_missing_here(world: World) -> None:
    signed = {type(request).__name__ for request in requests(world, "escrow-1")}
    assert_complete("requests", signed, [kind.__name__ for kind, (_, needs) in METHODS.items() if needs])
    assert_complete("UNSIGNED", [*UNSIGNED, *STATUS])


def requests(world: World, escrow_id: str) -> list[Any]:
    return [
        world.settle_request(escrow_id),
        world.refund_request(escrow_id),
        world.partial_settle_request(escrow_id),
    ]


def test_it_is_the_authorization_that_its_fields_would_have_given(world: World) -> None:
    with freeze_time("2026-11-20 20:00:00"):
        for request in requests(world, "escrow-1"):
            made, given = world.authorizer.authorize(request), world.authorize(request)
            assert type(made) is type(given)
            readable = [field.name for field in fields(made) if field.name != "token"]
            assert [getattr(made, name) for name in readable] == [getattr(given, name) for name in readable]


def test_it_ends_the_hold_that_it_was_made_for(world: World) -> None:
    world.credit(amount=90)
    for number in range(3):
        request = requests(world, world.hold(amount=30).escrow_id)[number]
        world.send(request, authorization=world.authorizer.authorize(request))
    assert world.wallets.get_user_balance("ana").escrow == 0


def test_it_permits_no_other_request(world: World) -> None:
    world.credit()
    first, second = (world.hold(amount=30).escrow_id for _ in range(2))
    permission = world.authorizer.authorize(world.settle_request(first))
    with pytest.raises(InvalidAuthorizationError):
        world.send(world.settle_request(second), authorization=permission)


def test_it_expires_when_asked_to(world: World) -> None:
    with freeze_time("2026-11-20 20:00:00"):
        made = world.authorizer.authorize(world.refund_request("escrow-1"), expires_in=timedelta(seconds=7))
    assert made.expires_at - made.issued_at == timedelta(seconds=7)


@pytest.mark.parametrize("wrong", [None, "token", 5, {"escrow_id": "escrow-1"}])
def test_what_the_queue_does_not_decide_on_is_refused(world: World, wrong: Any) -> None:
    request: Any
    own = [getattr(world, f"{name}_request")() for name in UNSIGNED]
    for request in (wrong, *own):
        with pytest.raises(InvalidRequestError) as refusal:
            world.authorizer.authorize(request)
        assert refusal.value.details == {
            "field": "request",
            "value": called(request),
            "expected": "one that the queue decides on",
        }
