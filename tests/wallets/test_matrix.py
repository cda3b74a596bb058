"""One matrix over all operations that are declared: what must be so for each, on both engines, by each way to write."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from points_platform.core import Database
from points_platform.core.values import now
from points_platform.wallets import WalletService
from points_platform.wallets.operations import OPERATIONS
from support.examples import EXAMPLES
from support.recount import recount
from support.world import World

from . import checks
from .by_hand import BY_HAND

operations = pytest.mark.parametrize("name", [operation.name for operation in OPERATIONS])
# PostgreSQL stepwise: statement by statement, with a read before anything is written.
WAYS = {"sqlite": ("sqlite", True), "postgresql": ("postgresql", True), "stepwise": ("postgresql", False)}


def database_of(request: pytest.FixtureRequest, stack: ExitStack, way: str) -> Database:
    engine, single_statement = WAYS[way]
    url = stack.enter_context(request.getfixturevalue(f"{engine}_databases").fresh())
    return stack.enter_context(Database(url, single_statement=single_statement, clock=now))


@pytest.fixture(params=list(WAYS))
def place(request: pytest.FixtureRequest) -> Iterator[World]:
    """A platform on a database of its own, by each way; every test ends with a recount of the invariants."""
    with ExitStack() as stack:
        world = World(database_of(request, stack, request.param))
        yield world
        recount(world.database)


@operations
def test_the_same_request_gets_the_first_answer_from_wherever_it_is_asked(place: World, name: str) -> None:
    checks.check_replay(place, name)


@operations
def test_another_value_of_any_field_is_another_request(place: World, name: str) -> None:
    checks.check_conflicts(place, name)


@operations
def test_a_key_belongs_to_one_owner(place: World, name: str) -> None:
    checks.check_keys_of_others(place, name)


def test_a_key_belongs_to_one_operation(place: World) -> None:
    requests = [EXAMPLES[operation.name](place, idempotency_key="the key") for operation in OPERATIONS]
    answers = [checks.succeeded(checks.call(place, request)) for request in requests]
    for request, answer in zip(requests, answers, strict=True):
        checks.is_replay(checks.by_an_empty_cache(place, request), answer)


@operations
def test_of_several_wrongs_the_first_is_named_and_nothing_has_happened(place: World, name: str) -> None:
    checks.check_refusals(place, name)


@operations
def test_a_method_takes_its_own_request_alone(world: World, name: str) -> None:
    checks.check_other_requests(world, name)


@operations
def test_in_the_callers_transaction_it_is_committed_with_it_or_not_at_all(place: World, name: str) -> None:
    checks.check_joined(place, name)


@operations
def test_it_is_announced_once_as_its_request_answer_and_record_say(place: World, name: str) -> None:
    checks.check_event(place, name)


@operations
def test_it_leaves_one_audit_line_with_its_facts(world: World, name: str, caplog: pytest.LogCaptureFixture) -> None:
    checks.check_audit(world, name, caplog)


@operations
@pytest.mark.parametrize(("source", "target"), [("sqlite", "postgresql"), ("postgresql", "sqlite")])
def test_it_is_sealed_verified_rebuilt_and_carried_to_the_other_engine(
    request: pytest.FixtureRequest, name: str, source: str, target: str
) -> None:
    with ExitStack() as stack:
        first, second = (database_of(request, stack, way) for way in (source, target))
        checks.check_sealed(World(first), name, second)


@operations
def test_any_printable_text_is_stored_and_read_back_as_it_was_given(place: World, name: str) -> None:
    checks.check_texts(place, name)


@operations
def test_a_field_refuses_what_it_cannot_be(world: World, name: str) -> None:
    example = EXAMPLES[name](world)
    with checks.nothing_happens(world):
        checks.check_wrong_values(name, example)


@operations
def test_the_same_request_at_once_by_many_is_carried_out_once(place: World, name: str) -> None:
    checks.check_contention(place, name)


# ── one way or another ──


@operations
def test_every_way_answers_and_leaves_the_same(request: pytest.FixtureRequest, name: str) -> None:
    """In one statement or in several, in a batch, in the caller's transaction, on either engine."""
    ways = [*((way, "call") for way in WAYS), ("postgresql", "joined")]
    if hasattr(WalletService, f"{name}_many"):
        ways += [("sqlite", "batch"), ("postgresql", "batch")]
    runs: dict[Any, Any] = {}
    for way, how in ways:
        with ExitStack() as stack:
            world = World(database_of(request, stack, way))
            runs[way, how] = checks.run_of(world, name, how)
            recount(world.database)
            checks.assert_clean(world.database)
    first = runs.pop(("sqlite", "call"))
    for (way, how), run in runs.items():
        for mine, theirs in zip(run, first, strict=True):
            assert mine == theirs, (way, how)


# ── the rows written by hand ──

CASES = [pytest.param(name, case, id=f"{name}: {case.name}") for name, cases in BY_HAND.items() for case in cases]


@pytest.mark.parametrize(("name", "case"), CASES)
@pytest.mark.parametrize("way", WAYS)
def test_it_leaves_the_rows_that_are_written_by_hand(
    request: pytest.FixtureRequest, name: str, case: Any, way: str
) -> None:
    with ExitStack() as stack:
        checks.check_by_hand(World(database_of(request, stack, way)), name, case)


@pytest.mark.parametrize(("name", "case"), [case for case in CASES if hasattr(WalletService, f"{case.values[0]}_many")])
@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
def test_in_a_batch_it_leaves_the_same_rows(request: pytest.FixtureRequest, name: str, case: Any, engine: str) -> None:
    with ExitStack() as stack:
        checks.check_by_hand(World(database_of(request, stack, engine)), name, case, checks.in_a_batch)
