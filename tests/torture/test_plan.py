"""A seed reproduces what a client does, in any process."""

import itertools
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from .operations import OPERATIONS
from .plan import CLAIMS, MUTATED, READS, Place, Plan, Step

CLIENTS = ("0.0", "0.1", "1.0", "1.1")
TESTS = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def plan() -> Plan:
    return Plan("7", CLIENTS)


def first(plan: Plan, count: int = 400, client: str = "0.0") -> list[Step]:
    return list(itertools.islice(plan.stream(client), count))


def test_a_seed_reproduces_the_steps_in_another_process(plan: Plan) -> None:
    program = (
        "import itertools; from torture.plan import Plan; plan = Plan('7', ('0.0', '0.1', '1.0', '1.1'));"
        "print(*itertools.islice(plan.stream('0.0'), 400), plan.members(5), *plan.burst('1.0', 5), sep='\\n')"
    )
    environment = os.environ | {"PYTHONPATH": str(TESTS), "PYTHONHASHSEED": "12345"}
    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    expected = [*first(plan), plan.members(5), *plan.burst("1.0", 5)]
    assert ran.stdout.splitlines() == [str(each) for each in expected]


def test_a_step_does_not_depend_on_the_steps_before_it(plan: Plan) -> None:
    assert Plan("7", CLIENTS).step(Place("0.0", 0, 300)) == first(plan)[300]
    assert list(itertools.islice(plan.stream("0.0", 300), 5)) == first(plan)[300:305]


def test_other_seeds_and_other_clients_do_something_else(plan: Plan) -> None:
    assert first(Plan("8", CLIENTS), 20) != first(plan, 20)
    assert [step.intents for step in first(plan, 20, "0.1")] != [step.intents for step in first(plan, 20)]


def test_everything_that_is_promised_occurs(plan: Plan) -> None:
    steps = first(plan, 6000)
    seen = Counter(step.kind for step in steps)
    seen.update(intent.operation for step in steps for intent in step.intents)
    seen.update(f"flaw {intent.flaw}" for step in steps for intent in step.intents)
    seen.update(f"mutation {intent.mutation}" for step in steps for intent in step.intents)
    expected = {"one", "many", "session", "read", *OPERATIONS, *READS}
    expected |= {f"flaw {flaw}" for flaw in (None, "token", "expired", "other_action", "amount", "user")}
    assert expected | {f"mutation {field}" for field in MUTATED} <= set(seen)
    assert {step.atomic for step in steps if step.kind == "many"} == {True, False}
    assert {step.commits for step in steps if step.kind == "session"} == {True, False}
    senders = {step.place.client for step in steps if step.resent}
    assert senders == set(CLIENTS), "keys are sent again from other processes too"


def test_what_is_sent_again_is_what_was_sent(plan: Plan) -> None:
    again = [step for step in first(plan, 1000) if step.resent and step.intents[0].mutation is None]
    assert again
    for step in again:
        assert step.intents == plan.step(step.place).intents


def test_a_mutation_is_another_request_under_the_same_key(plan: Plan) -> None:
    mutated = [step for step in first(plan, 2000) if step.intents[0].mutation is not None]
    assert mutated
    for step in mutated:
        [intent], [original] = step.intents, plan.step(step.place).intents
        given, before = (vars(each.request("e")) for each in (intent, original))
        assert given["idempotency_key"] == before["idempotency_key"]
        assert len([name for name in before if given[name] != before[name]]) == 1


def test_a_burst_keeps_to_its_own_wallets(plan: Plan) -> None:
    for burst in range(1, 40):
        members = plan.members(burst)
        assert 3 <= len(members) <= len(CLIENTS)
        for step in (step for member in members for step in plan.burst(member, burst)):
            named = {name for intent in step.intents for name in (intent.user, intent.model, intent.recipient)}
            assert all(name.startswith(f"burst-{burst}-") for name in named - {"", "somebody-else"})
            claimed = {intent.reference for intent in step.intents if intent.operation == "deposit"}
            assert all(f"/{burst}/" in reference for reference in claimed), "nobody else claims it"


def test_hot_users_and_the_two_of_a_burst_pay_each_other_in_both_directions(plan: Plan) -> None:
    steps = [step for client in CLIENTS for step in first(plan, 2000, client)]
    steps += [step for member in plan.members(5) for step in plan.burst(member, 5)]
    pairs = {
        (intent.user, intent.recipient) for step in steps for intent in step.intents if intent.operation == "transfer"
    }
    assert all(payer != taker for payer, taker in pairs)
    hot = {pair for pair in pairs if all(name.startswith("hot-") for name in pair)}
    assert len(hot) == 6
    assert hot == {(taker, payer) for payer, taker in hot}


def test_what_is_deposited_is_repeated_truly_and_with_each_difference(plan: Plan) -> None:
    """By another key: of the same source and reference with another amount or user, or of another source."""
    sent: dict[str, dict[str, tuple[str, int, str]]] = {}
    for step in (step for client in CLIENTS for step in first(plan, 4000, client)):
        for intent in (each for each in step.intents if each.operation == "deposit" and each.mutation is None):
            sent.setdefault(intent.reference, {})[intent.key] = intent.user, intent.amount, intent.source
    seen: Counter[str] = Counter()
    for several in sent.values():
        first_sent, *others = several.values()
        for other in others:
            different = [
                name for name, a, b in zip(("user", "amount", "source"), first_sent, other, strict=True) if a != b
            ]
            seen.update(different or ["nothing"])
    assert set(seen) == {difference or "nothing" for difference in CLAIMS}
