"""A decision that came over a wire is carried out whichever it is, as its own method would, and only if genuine."""

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy.orm import Session

from points_platform.core import EscrowAlreadyProcessedError, InvalidAuthorizationError, InvalidRequestError
from points_platform.queue import QueueAuthorizer
from points_platform.wallets import QueueAuthorization
from points_platform.wallets.operations import OPERATIONS
from support.world import World

OF_THE_QUEUE = [operation.name for operation in OPERATIONS if operation.authorization is not None]
KEYS: dict[str, Any] = {"idempotency_key": "decided-1", "request_id": "r-9"}
every_decision = pytest.mark.parametrize("name", OF_THE_QUEUE)


def decided(world: World, name: str) -> Any:
    """What the queue has signed, with nothing but its token come over the wire."""
    request = getattr(world, f"{name}_request")(world.hold(amount=30).escrow_id)
    return QueueAuthorization.from_token(world.authorize(request).token)


@every_decision
def test_it_answers_what_the_operations_own_method_answers(world: World, name: str) -> None:
    world.credit()
    authorization = decided(world, name)
    answer = world.wallets.carry_out(authorization, **KEYS, metadata={"show": 7})
    request = getattr(world, f"{name}_request")(authorization.escrow_id, **KEYS, metadata={"show": 7})
    again = world.send(request)
    assert (type(again), again, again.replayed) == (type(answer), answer, True)
    assert world.wallets.get_user_balance("ana").escrow == 0


@every_decision
def test_again_it_is_a_replay_and_under_another_key_refused(world: World, name: str) -> None:
    world.credit()
    authorization = decided(world, name)
    first = world.wallets.carry_out(authorization, **KEYS)
    again = world.wallets.carry_out(authorization, **KEYS)
    assert (again, again.replayed) == (first, True)
    with pytest.raises(EscrowAlreadyProcessedError):
        world.wallets.carry_out(authorization, idempotency_key="decided-2", request_id="r-9")


@every_decision
def test_what_the_queue_has_not_signed_is_refused(world: World, name: str) -> None:
    world.credit()
    genuine = decided(world, name)
    request = getattr(world, f"{name}_request")(genuine.escrow_id)
    forged = QueueAuthorizer("some other secret of at least 32 bytes").authorize(request)
    altered = replace(genuine, user_id="ben")
    for wrong, cause in ((forged, "unknown_key"), (altered, "claim_mismatch")):
        with pytest.raises(InvalidAuthorizationError) as caught:
            world.wallets.carry_out(wrong, **KEYS)
        assert caught.value.details["cause"] == cause
    assert world.wallets.get_user_balance("ana").escrow == 30


@pytest.mark.parametrize("given", [None, "a.b.c", QueueAuthorization, 7])
def test_what_is_no_authorization_is_told_by_its_type_alone(world: World, given: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        world.wallets.carry_out(given, **KEYS)
    assert caught.value.details["field"] == "authorization"
    assert "a.b.c" not in str(caught.value)


@every_decision
def test_it_joins_the_callers_transaction(world: World, name: str) -> None:
    world.credit()
    authorization = decided(world, name)
    with Session(world.database.engine) as session:
        world.wallets.carry_out(authorization, **KEYS, session=session)
        session.rollback()
    assert world.wallets.get_user_balance("ana").escrow == 30
