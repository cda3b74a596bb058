"""An operation that is declared and told nowhere here is a failing test: nothing goes on without knowing it."""

from dataclasses import fields
from itertools import islice
from typing import Any

import pytest

from points_platform.wallets import WalletService
from points_platform.wallets.operations import OPERATIONS as DECLARED
from support.recount import MOVES, TOUCHES
from support.reference import STATUS, Reference

from .judge import OF_LIMIT, Judge
from .operations import OPERATIONS
from .plan import MUTATED, STREAM, Intent, Plan, Step

CLIENTS = ("0.0", "0.1", "1.0")
# What is said by other means: the client's call, the hold's answer; and the currency, which is always the default.
ELSEWHERE = {"request_id", "escrow_id", "currency"}
every = pytest.mark.parametrize("name", [declared.name for declared in DECLARED])


def test_requests_and_events_are_those_that_are_declared() -> None:
    declared = {each.name: (each.request, type_of(each.event)) for each in DECLARED}
    assert {name: (known.request, known.event) for name, known in OPERATIONS.items()} == declared


def type_of(event: Any) -> Any:
    return next(field.default for field in fields(event) if field.name == "event_type")


@every
def test_the_reference_model_has_a_rule(name: str) -> None:
    assert callable(getattr(Reference, f"_{name}", None))
    assert STATUS.get(name) == OPERATIONS[name].status


@every
def test_the_recount_knows_what_it_moves(name: str) -> None:
    assert (name in MOVES) != (name in TOUCHES)


@every
def test_the_judge_can_tell_whether_its_refusals_are_true(name: str) -> None:
    known = OPERATIONS[name]
    assert all(hasattr(Judge, f"_{code}") for code in known.refusals)
    assert ("balance_limit" in known.refusals) == (name in OF_LIMIT)


@every
def test_the_client_sends_it_alone_and_where_the_service_does_in_batches(name: str) -> None:
    known = OPERATIONS[name]
    assert callable(getattr(WalletService, known.method, None))
    assert hasattr(WalletService, f"{name}_many") == known.batches


@every
def test_the_plan_says_every_field_of_its_request(name: str) -> None:
    said = Intent(key="k", operation=name).said().keys() | ELSEWHERE
    assert {field.name for field in fields(OPERATIONS[name].request)} <= said


@pytest.fixture(scope="module")
def steps() -> list[Step]:
    plan = Plan("7", CLIENTS)
    bursts = (step for burst in range(1, 300) for client in plan.members(burst) for step in plan.burst(client, burst))
    return [*islice(plan.stream("0.0"), 4000), *bursts]


@every
def test_it_is_sent_in_every_way(name: str, steps: list[Step]) -> None:
    """In streams and in bursts, alone, in a caller's transaction, in batches, again, and with another payload."""
    sent = [(step, intent) for step in steps for intent in step.intents if intent.operation == name]
    for in_stream in (True, False):
        mine = [(step, intent) for step, intent in sent if (step.place.series == STREAM) == in_stream]
        kinds = {step.kind for step, _ in mine}
        assert kinds >= {"one", "session"} | ({"many"} if OPERATIONS[name].batches else set())
        assert {step.resent for step, _ in mine} == {True, False}
    differing: set[Any] = {intent.mutation for _, intent in sent} - {None}
    assert differing == {field.name for field in fields(OPERATIONS[name].request)} & MUTATED.keys()
