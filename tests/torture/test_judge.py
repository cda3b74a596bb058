"""The judge sees every kind of lie: each is told once, in a story that is otherwise true."""

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from points_platform.core import Database
from points_platform.events import EVENT_TYPES, EventBus
from support.world import World

from .bursts import histories
from .client import PAGE, Client, next_number, note, unfinished, wallets_on
from .history import Call, Ledger, calls_of, key_of, without_flag
from .journal import CALM, Journal, Line, clock, lines
from .judge import Judge, unacknowledged
from .linearizability import explain
from .moments import Acknowledged, Moments
from .operations import OPERATIONS
from .plan import Plan
from .timelines import Evidence
from .worker import Round

T = TypeVar("T")
CLIENTS = ("0.0", "1.0")
STEPS = 250
# Of a story in which every refusal occurs.
SEED = "story 34"
Lie = Callable[[list[Call], Ledger], None]
Story = tuple[list[Call], Ledger]


@pytest.fixture
def story(database: Database, tmp_path: Path) -> Story:
    """What two clients did in turn, with nothing in their way."""
    bus = EventBus()
    for event_type in EVENT_TYPES:
        bus.subscribe(event_type, note)
    plan = Plan(SEED, CLIENTS)
    clients = [client(name, database, tmp_path, events=bus) for name in CLIENTS]
    streams = [plan.stream(name) for name in CLIENTS]
    for number in range(STEPS):
        for each, stream in zip(clients, streams, strict=True):
            each.carry_out(next(stream))
            for step in plan.burst(each.name, number // 10 + 1)[number % 10 : number % 10 + 1]:
                each.carry_out(step)
    return [call for name in CLIENTS for call in calls_of(name, lines(tmp_path, name))], Ledger.of(database)


def client(name: str, database: Database, folder: Path, incarnation: int = 0, **options: Any) -> Client:
    """A client of the story, in one of its lives."""
    wallets = wallets_on(database, **options)
    return Client(name, Plan(SEED, CLIENTS), Journal(folder, name), database, wallets, incarnation)


def checks(calls: list[Call], ledger: Ledger) -> set[str]:
    return {finding.check for finding in Judge(calls, ledger).findings()}


def test_a_true_story_has_nothing_against_it(story: Story, database: Database) -> None:
    calls, ledger = story
    assert list(Judge(calls, ledger).findings()) == []
    assert {call.form for call in calls} == {"one", "many", "session", "read"}
    assert {transaction["operation"] for transaction in ledger.transactions.values()} == set(OPERATIONS)
    found = histories(calls)
    assert found
    assert all(explain(history) is None for history in found.values())
    acknowledged = {outcome["transaction_id"] for call in calls if call.committed for _, outcome in call.successes()}
    assert Moments(database).look(acknowledged) == []
    assert Moments(database).look({"another"}) == ["another: acknowledged, and not in the ledger"]


def told(what: str, found: Iterable[T]) -> T:
    """The first of what was found in the story, which says what it lacks where nothing was."""
    for each in found:
        return each
    pytest.fail(f"the story of the seed {SEED!r} has no {what}: another seed or more steps may have one")


def test_a_story_says_what_it_lacks() -> None:
    with pytest.raises(pytest.fail.Exception, match=f"the story of the seed '{SEED}' has no lottery of a call"):
        told("lottery of a call", ())


def success(calls: list[Call], operation: str = "hold") -> tuple[Call, Line]:
    """A single call that was the first of its key, and its answer."""
    return told(
        f"{operation} that was carried out by a call of its own",
        (
            (call, outcome)
            for call in calls
            if call.form == "one" and call.events
            for part, outcome in call.successes()
            if part["operation"] == operation and not outcome["replayed"]
        ),
    )


def refusal(calls: list[Call], code: str) -> tuple[Call, Line]:
    """A single call that was refused so, at a time when the user had something."""
    return told(
        f"{code} of a user who has something",
        (
            (call, outcome)
            for call in calls
            for _, outcome in call.outcomes()
            if call.form == "one" and outcome.get("code") == code and outcome["details"].get("available") != 0
        ),
    )


def read(calls: list[Call]) -> tuple[Call, Line]:
    return told(
        "read of a balance of several versions",
        (
            (call, outcome)
            for call in calls
            if call.form == "read"
            for _, outcome in call.outcomes()
            if outcome.get("available", 0) and outcome["version"] > 1
        ),
    )


def lose(operation: str) -> Lie:
    """An operation was told as done, and the ledger knows nothing of it."""

    def lie(calls: list[Call], ledger: Ledger) -> None:
        _, outcome = success(calls, operation)
        lost = ledger.transactions.pop(outcome["transaction_id"])
        del ledger.by_key[lost["owner_id"], lost["operation"], lost["idempotency_key"]]

    lie.__name__ = f"lose_a_{operation}"
    return lie


def done(calls: list[Call], ledger: Ledger, operation: str) -> Line:
    """The transaction of a single call."""
    return ledger.transactions[success(calls, operation)[1]["transaction_id"]]


def misstate(calls: list[Call], ledger: Ledger) -> None:
    success(calls)[1]["escrow_balance"] += 1


def claim_a_replay(calls: list[Call], ledger: Ledger) -> None:
    success(calls)[1]["replayed"] = True


def invent(calls: list[Call], ledger: Ledger) -> None:
    ledger.transactions[success(calls)[1]["transaction_id"]]["request_id"] = "nobody"


def move_more(operation: str) -> Lie:
    """One point more than was asked for, also where none was."""

    def lie(calls: list[Call], ledger: Ledger) -> None:
        done(calls, ledger, operation)["entries"][0]["amount"] += 1

    lie.__name__ = f"move_more_in_a_{operation}"
    return lie


def move_to_another(operation: str) -> Lie:
    """Somebody else has the points, or is touched."""

    def lie(calls: list[Call], ledger: Ledger) -> None:
        entry = max(done(calls, ledger, operation)["entries"], key=lambda entry: entry["amount"])
        entry["account_id"] += "-thief"

    lie.__name__ = f"move_to_another_in_a_{operation}"
    return lie


def move_twice(operation: str) -> Lie:
    """The one who takes is given it twice."""

    def lie(calls: list[Call], ledger: Ledger) -> None:
        entries = done(calls, ledger, operation)["entries"]
        entries.append(max(entries, key=lambda entry: entry["amount"]))

    lie.__name__ = f"move_twice_in_a_{operation}"
    return lie


def move_nothing(operation: str) -> Lie:
    """It is there, and without effect."""

    def lie(calls: list[Call], ledger: Ledger) -> None:
        done(calls, ledger, operation)["entries"].clear()

    lie.__name__ = f"move_nothing_in_a_{operation}"
    return lie


def move_on_one_side(name: str, sign: int) -> Lie:
    """Only the one who pays, or only the one who takes, sees a transfer."""

    def lie(calls: list[Call], ledger: Ledger) -> None:
        entries = done(calls, ledger, "transfer")["entries"]
        entries[:] = [entry for entry in entries if entry["amount"] * sign > 0]

    lie.__name__ = f"show_a_transfer_to_the_{name}_only"
    return lie


def record(name: str, operation: str = "settle") -> Lie:
    """The ledger has another value there than was asked for."""

    def lie(calls: list[Call], ledger: Ledger) -> None:
        done(calls, ledger, operation)[name] = "another"

    lie.__name__ = f"record_another_{name}"
    return lie


def record_detail(operation: str, name: str) -> Lie:
    """The same of what stands beside the header."""

    def lie(calls: list[Call], ledger: Ledger) -> None:
        done(calls, ledger, operation)["details"][name] = "another"

    lie.__name__ = f"record_another_{name}"
    return lie


def announce(name: str, operation: str = "settle") -> Lie:
    """The event has another value there."""

    def lie(calls: list[Call], ledger: Ledger) -> None:
        success(calls, operation)[0].events[0][name] = "another"

    lie.__name__ = f"announce_another_{name}_of_a_{operation}"
    return lie


def claim_of(calls: list[Call], ledger: Ledger) -> Line:
    """The claim of a deposit that was told as new."""
    return told(
        "claim of such a deposit",
        (claim for claim in ledger.claims.values() if claim["transaction_id"] == deposited(calls)),
    )


def deposited(calls: list[Call]) -> str:
    return str(success(calls, "deposit")[1]["transaction_id"])


def repeated_deposit(calls: list[Call], ledger: Ledger) -> tuple[Line, Line]:
    """What was answered with the deposit that another key has made."""
    return told(
        "deposit that was told again under another key",
        (
            (part, outcome)
            for call in calls
            if call.form == "one"
            for part, outcome in call.successes()
            if part["operation"] == "deposit" and key_of(part) not in ledger.by_key
        ),
    )


def refused_transfer(calls: list[Call]) -> Line:
    """What was said of a taker who has no room."""
    return told(
        "transfer to a taker without room",
        (
            outcome
            for call in calls
            for part, outcome in call.outcomes()
            if call.form == "one" and part["operation"] == "transfer" and outcome.get("code") == "balance_limit"
        ),
    )


def lose_a_claim(calls: list[Call], ledger: Ledger) -> None:
    claim = claim_of(calls, ledger)
    del ledger.claims[claim["source"], claim["reference"]]


def claim_what_nobody_deposited(calls: list[Call], ledger: Ledger) -> None:
    ledger.claims["bank", "another"] = claim_of(calls, ledger) | {"transaction_id": "nobody's", "reference": "another"}


def claim_under_two_references(calls: list[Call], ledger: Ledger) -> None:
    ledger.claims["bank", "another"] = claim_of(calls, ledger) | {"reference": "another"}


def claim_otherwise(name: str, value: Any) -> Lie:
    """A claim says something else than its deposit."""

    def lie(calls: list[Call], ledger: Ledger) -> None:
        claim_of(calls, ledger)[name] = value

    lie.__name__ = f"claim_another_{name}"
    return lie


def credit_a_deposit_twice(calls: list[Call], ledger: Ledger) -> None:
    """A second key has a deposit of its own for what was deposited before."""
    part, outcome = repeated_deposit(calls, ledger)
    again = copy.deepcopy(ledger.transactions[outcome["transaction_id"]])
    again |= {"transaction_id": "again", "idempotency_key": part["key"]}
    ledger.transactions["again"] = ledger.by_key[key_of(part)] = again


def tell_a_repeated_deposit_as_new(calls: list[Call], ledger: Ledger) -> None:
    repeated_deposit(calls, ledger)[1]["replayed"] = False


def tell_another_balance_of_a_repeated_deposit(calls: list[Call], ledger: Ledger) -> None:
    repeated_deposit(calls, ledger)[1]["new_available_balance"] += 1


def repeat_a_deposit_of_another_amount(calls: list[Call], ledger: Ledger) -> None:
    repeated_deposit(calls, ledger)[0]["request"]["amount"] += 1


def repeat_a_deposit_of_another_user(calls: list[Call], ledger: Ledger) -> None:
    repeated_deposit(calls, ledger)[0]["request"]["user_id"] = "another"


def refuse_a_deposit_that_nobody_claims(calls: list[Call], ledger: Ledger) -> None:
    details = refusal(calls, "deposit_conflict")[1]["details"]
    del ledger.claims[details["source"], details["reference"]]


def refuse_a_deposit_before_it_was_claimed(calls: list[Call], ledger: Ledger) -> None:
    call, _ = refusal(calls, "deposit_conflict")
    assert call.answer is not None
    call.asked["at"] = call.answer["at"] = 0.0


def tell_the_takers_balance(calls: list[Call], ledger: Ledger) -> None:
    refused_transfer(calls)["details"]["balance"] = 10**9


def refuse_a_taker_who_has_room(calls: list[Call], ledger: Ledger) -> None:
    for states in ledger.states.values():
        for state in states:
            state |= {"available": min(state["available"], 10**9), "escrow": min(state["escrow"], 10**9)}


def refuse(code: str, name: str, value: Any) -> Lie:
    """A refusal says something that is not so."""

    def lie(calls: list[Call], ledger: Ledger) -> None:
        refusal(calls, code)[1]["details"][name] = value

    lie.__name__ = f"refuse_with_{code}_and_another_{name}"
    return lie


def read_item(name: str, value: Any) -> Lie:
    """An escrow item is read as it never was."""

    def lie(calls: list[Call], ledger: Ledger) -> None:
        items = (each for call in calls if call.form == "read" for _, each in call.outcomes() if "status" in each)
        next(items)[name] = value

    lie.__name__ = f"read_item_with_another_{name}"
    return lie


def refuse_what_was_done(calls: list[Call], ledger: Ledger) -> None:
    call, _ = success(calls)
    details = {"required": 10**9, "available": 0}
    call.answer = {
        "at": call.returned,
        "error": {"code": "insufficient_balance", "retryable": False, "details": details},
    }


def fail_what_was_done(calls: list[Call], ledger: Ledger) -> None:
    call, _ = success(calls)
    error = {"code": "optimistic_lock", "retryable": True, "details": {"attempts": 4}}
    call.answer = {"at": call.returned, "error": error}


def refuse_for_no_reason(calls: list[Call], ledger: Ledger) -> None:
    refusal(calls, "insufficient_balance")[1]["code"] = "idempotency_conflict"


def call_it_final(calls: list[Call], ledger: Ledger) -> None:
    refusal(calls, "insufficient_balance")[1]["code"] = "storage_unavailable"


def end_what_is_held(calls: list[Call], ledger: Ledger) -> None:
    _, outcome = refusal(calls, "escrow_already_processed")
    del ledger.ends[outcome["details"]["escrow_id"]]


def accept_a_bad_token(calls: list[Call], ledger: Ledger) -> None:
    call, _ = success(calls, "settle")
    call.asked["parts"][0]["flaw"] = "token"


def accept_a_mutation(calls: list[Call], ledger: Ledger) -> None:
    call, _ = success(calls)
    call.asked["parts"][0]["mutation"] = "amount"


def raise_something(calls: list[Call], ledger: Ledger) -> None:
    call, _ = read(calls)
    call.answer = {"at": call.returned, "unexpected": "KeyError"}


def say_nothing(calls: list[Call], ledger: Ledger) -> None:
    call, _ = read(calls)
    call.answer = {"at": call.returned}


def announce_twice(calls: list[Call], ledger: Ledger) -> None:
    call, _ = success(calls)
    call.events *= 2


def announce_nothing(calls: list[Call], ledger: Ledger) -> None:
    success(calls)[0].events.clear()


def announce_what_is_not(calls: list[Call], ledger: Ledger) -> None:
    success(calls)[0].events[0]["event_id"] = "nothing"


def announce_for_another(calls: list[Call], ledger: Ledger) -> None:
    (call, _), (other, _) = success(calls, "hold"), success(calls, "settle")
    call.events, other.events = other.events, call.events


def announce_nothing_of_sessions(calls: list[Call], ledger: Ledger) -> None:
    for call in calls:
        if call.form == "session":
            call.events.clear()


def leave_out_an_answer(calls: list[Call], ledger: Ledger) -> None:
    call = told("batch that was committed", (call for call in calls if call.form == "many" and call.committed))
    assert call.answer is not None
    call.answer["outcomes"].pop()


def carry_out_half(calls: list[Call], ledger: Ledger) -> None:
    call = told(
        "batch that was committed whole",
        (call for call in calls if call.form == "many" and call.asked["atomic"] and call.committed),
    )
    del ledger.by_key[key_of(call.asked["parts"][0])]
    call.answer = None


def answer_again_differently(calls: list[Call], ledger: Ledger) -> None:
    call = told(
        "call of its own with an answer",
        (call for call in calls if call.form == "one" and call.answer and call.answer.get("outcomes")),
    )
    other = copy.deepcopy(call)
    assert other.answer is not None
    other.answer["outcomes"][0]["new_available_balance"] = 10**9
    calls.append(other)


def keep_what_was_rolled_back(calls: list[Call], ledger: Ledger) -> None:
    call = told(
        "success in a caller's transaction",
        (call for call in calls if call.form == "session" and call.committed and any(call.successes())),
    )
    assert call.answer is not None
    call.answer["committed"] = False


def read_something_else(calls: list[Call], ledger: Ledger) -> None:
    read(calls)[1]["available"] += 1


def read_another(calls: list[Call], ledger: Ledger) -> None:
    call, _ = read(calls)
    call.asked["parts"][0]["request"] = {"user_id": "another"}


def read_the_past(calls: list[Call], ledger: Ledger) -> None:
    _, balance = read(calls)
    first = ledger.states[f"user:{balance['user_id']}"][1]
    balance |= {"version": 1, **{name: first[name] for name in ("available", "escrow")}}


def read_the_future(calls: list[Call], ledger: Ledger) -> None:
    call, _ = read(calls)
    assert call.answer is not None
    call.asked["at"] = call.answer["at"] = 0.0


def listed(
    calls: list[Call], operation: str, of: Callable[[list[Line]], object] = lambda items: len(items) > 1
) -> tuple[Call, Line]:
    """A read of a list with such items, from its beginning."""
    return told(
        f"read of {operation} with such items",
        (
            (call, outcome)
            for call in calls
            if call.form == "read"
            for part, outcome in call.outcomes()
            if part["operation"] == operation and not part["request"].get("after") and of(outcome["items"])
        ),
    )


def next_page(calls: list[Call]) -> Line:
    """The second page of a statement."""
    return told(
        "second page of a statement",
        (
            outcome
            for call in calls
            for part, outcome in call.outcomes()
            if part["operation"] == "statement" and part["request"]["after"] and len(outcome["items"]) > 1
        ),
    )


def list_escrows_without_one(calls: list[Call], ledger: Ledger) -> None:
    listed(calls, "escrows")[1]["items"].pop()


def list_an_escrow_twice(calls: list[Call], ledger: Ledger) -> None:
    items = listed(calls, "escrows")[1]["items"]
    items.append(items[0])


def list_escrows_in_disorder(calls: list[Call], ledger: Ledger) -> None:
    listed(calls, "escrows")[1]["items"].reverse()


def list_more_escrows_than_all(calls: list[Call], ledger: Ledger) -> None:
    _, outcome = listed(calls, "escrows")
    outcome["next"] = "more"
    last = outcome["items"][-1]
    for number in range(PAGE - len(outcome["items"])):
        outcome["items"].append(last | {"escrow_id": f"{last['escrow_id']}-{number:02d}"})
        ledger.items[outcome["items"][-1]["escrow_id"]] = ledger.items[last["escrow_id"]]


def list_half_a_page(calls: list[Call], ledger: Ledger) -> None:
    _, outcome = listed(calls, "escrows")
    outcome |= {"items": [], "next": "more"}


def list_escrows_of_another(calls: list[Call], ledger: Ledger) -> None:
    call, _ = listed(calls, "escrows")
    call.asked["parts"][0]["request"]["user_id"] = "another"


def list_an_escrow_with_another_amount(calls: list[Call], ledger: Ledger) -> None:
    listed(calls, "escrows")[1]["items"][0]["amount"] += 1


def leave_out_a_line(calls: list[Call], ledger: Ledger) -> None:
    del listed(calls, "statement", lambda items: len(items) > 2)[1]["items"][1]


def leave_out_the_newest_line(calls: list[Call], ledger: Ledger) -> None:
    del listed(calls, "statement")[1]["items"][0]


def leave_out_the_oldest_line(calls: list[Call], ledger: Ledger) -> None:
    listed(calls, "statement")[1]["items"].pop()


def promise_more_lines(calls: list[Call], ledger: Ledger) -> None:
    _, outcome = listed(calls, "statement")
    outcome["next"] = None if outcome["next"] else "more"


def misstate_a_line(calls: list[Call], ledger: Ledger) -> None:
    listed(calls, "statement")[1]["items"][-1]["amount"] += 1


def read_no_lines(calls: list[Call], ledger: Ledger) -> None:
    listed(calls, "statement")[1]["items"].clear()


def list_what_has_ended(calls: list[Call], ledger: Ledger) -> None:
    _, outcome = listed(calls, "escrows")
    item = outcome["items"][0]
    ledger.items[item["escrow_id"]] |= {"status": "refunded", "refunded_amount": item["amount"]}
    item |= ledger.items[item["escrow_id"]]


def list_no_escrow_from_there_on(calls: list[Call], ledger: Ledger) -> None:
    outcome = told(
        "second page of escrows",
        (
            outcome
            for call in calls
            for part, outcome in call.outcomes()
            if part["operation"] == "escrows" and part["request"]["after"] and outcome["items"]
        ),
    )
    outcome["items"].clear()


def list_half_of_what_is_settled(calls: list[Call], ledger: Ledger) -> None:
    listed(calls, "escrows")[1]["items"][0]["settled_amount"] = 1


def end_a_page_early(calls: list[Call], ledger: Ledger) -> None:
    next_page(calls)["items"].pop()


def begin_a_page_late(calls: list[Call], ledger: Ledger) -> None:
    del next_page(calls)["items"][0]


def misstate_a_time(calls: list[Call], ledger: Ledger) -> None:
    listed(calls, "statement")[1]["items"][0]["posted_at"] = "2020-01-01T00:00:00+00:00"


def misname_a_line(calls: list[Call], ledger: Ledger) -> None:
    listed(calls, "statement")[1]["items"][0]["operation"] = "another"


def skip_a_day(calls: list[Call], ledger: Ledger) -> None:
    items = listed(calls, "earnings")[1]["items"]
    del items[told("day without earnings", (number for number, item in enumerate(items) if not item["earned"]))]


def see_half_of_a_batch(calls: list[Call], ledger: Ledger) -> None:
    """A balance is read that was only ever within somebody's transaction."""
    timeline = Evidence(calls, ledger).timeline
    account, version = told(
        "version of a user's wallet within a transaction",
        (
            (account, version)
            for account in ledger.states
            for version, within in enumerate(timeline(account).within)
            if within and account.startswith("user:")
        ),
    )
    call, balance = read(calls)
    assert call.answer is not None
    call.asked["at"], call.answer["at"] = 0.0, math.inf
    state, user_id = ledger.states[account][version], account.removeprefix("user:")
    balance |= {name: state[name] for name in ("version", "available", "escrow")} | {"user_id": user_id}
    balance["total"] = balance["available"] + balance["escrow"]


def earn_more(calls: list[Call], ledger: Ledger) -> None:
    listed(calls, "earnings")[1]["items"][0]["earned"] += 1


def earn_in_the_future(calls: list[Call], ledger: Ledger) -> None:
    call, _ = listed(calls, "earnings", of=lambda items: any(item["earned"] for item in items))
    assert call.answer is not None
    call.asked["at"] = call.answer["at"] = 0.0


def answer_before_asking(calls: list[Call], ledger: Ledger) -> None:
    alone = (call for call in calls if call.form == "one" and call.events)
    # On a wallet that others have changed before.
    of_many = (call for call in alone if call.asked["parts"][0]["request"].get("user_id", "").startswith("hot-"))
    call = max(of_many, key=lambda call: call.invoked)
    assert call.answer is not None
    call.asked["at"] = call.answer["at"] = 0.0


LIES: dict[Lie, str] = {
    **{lose(operation): "answers are in the ledger" for operation in OPERATIONS},
    misstate: "answers are in the ledger",
    claim_a_replay: "answers are in the ledger",
    invent: "effects were asked for",
    **{
        wrong(operation): "effects were asked for"
        for wrong in (move_more, move_to_another, move_twice, move_nothing)
        for operation in OPERATIONS
    },
    move_on_one_side("payer", -1): "effects were asked for",
    move_on_one_side("taker", +1): "effects were asked for",
    record_detail("spend", "order_id"): "effects were asked for",
    record_detail("deposit", "source"): "effects were asked for",
    record_detail("deposit", "reference"): "claims",
    record_detail("credit", "order_id"): "effects were asked for",
    lose_a_claim: "claims",
    claim_what_nobody_deposited: "claims",
    claim_under_two_references: "claims",
    claim_otherwise("owner_id", "user:another"): "claims",
    claim_otherwise("amount", 10**9): "claims",
    claim_otherwise("currency", "gold"): "claims",
    claim_otherwise("reference", "another"): "claims",
    credit_a_deposit_twice: "claims",
    tell_a_repeated_deposit_as_new: "answers are in the ledger",
    tell_another_balance_of_a_repeated_deposit: "answers are in the ledger",
    repeat_a_deposit_of_another_amount: "answers are in the ledger",
    repeat_a_deposit_of_another_user: "answers are in the ledger",
    refuse_a_deposit_that_nobody_claims: "refusals are true",
    refuse_a_deposit_before_it_was_claimed: "refusals are true",
    refuse("deposit_conflict", "fields", ["currency"]): "refusals are true",
    refuse("deposit_conflict", "fields", []): "refusals are true",
    refuse("deposit_conflict", "reference", "another"): "refusals are true",
    tell_the_takers_balance: "refusals are true",
    refuse_a_taker_who_has_room: "refusals are true",
    **{
        record(name): "effects were asked for"
        for name in ("reason", "currency", "queue_item_id", "feature_type", "model_id", "escrow_id", "authorization_id")
    },
    refuse_what_was_done: "effects were asked for",
    fail_what_was_done: "effects were asked for",
    refuse("insufficient_balance", "available", 0): "refusals are true",
    refuse("insufficient_balance", "required", 10**9): "refusals are true",
    refuse("balance_limit", "balance", 0): "refusals are true",
    refuse("escrow_already_processed", "status", "lost"): "refusals are true",
    refuse("escrow_mismatch", "expected", 0): "refusals are true",
    refuse("idempotency_conflict", "fields", ["user_id"]): "refusals are true",
    refuse("invalid_authorization", "cause", "issuer"): "refusals are true",
    refuse_for_no_reason: "refusals are true",
    call_it_final: "refusals are true",
    end_what_is_held: "refusals are true",
    accept_a_bad_token: "effects were asked for",
    accept_a_mutation: "answers are in the ledger",
    raise_something: "documented errors",
    say_nothing: "documented errors",
    announce_twice: "events",
    announce_nothing: "events",
    announce_what_is_not: "events",
    announce_for_another: "events",
    announce_nothing_of_sessions: "events",
    **{
        announce(name): "events"
        for name in ("user_id", "model_id", "authorization_id", "event_type", "settled_amount", "metadata_json")
    },
    **{
        announce(name, operation): "events"
        for operation, names in {
            "spend": ("order_id", "amount", "new_available_balance"),
            "transfer": ("user_id", "recipient_id", "amount", "previous_balance"),
            "open": ("owner", "user_id"),
            "deposit": ("user_id", "amount", "source", "reference"),
        }.items()
        for name in names
    },
    leave_out_an_answer: "documented errors",
    carry_out_half: "all or nothing",
    read_item("status", "lost"): "reads",
    read_item("amount", 10**9): "reads",
    read_item("user_id", "somebody"): "reads",
    answer_again_differently: "one answer for ever",
    keep_what_was_rolled_back: "all or nothing",
    read_something_else: "reads",
    read_another: "reads",
    read_the_past: "reads",
    read_the_future: "reads",
    answer_before_asking: "real time",
    list_escrows_without_one: "reads",
    list_an_escrow_twice: "reads",
    list_escrows_in_disorder: "reads",
    list_more_escrows_than_all: "reads",
    list_half_a_page: "reads",
    list_escrows_of_another: "reads",
    list_an_escrow_with_another_amount: "reads",
    leave_out_a_line: "reads",
    leave_out_the_newest_line: "reads",
    leave_out_the_oldest_line: "reads",
    promise_more_lines: "reads",
    misstate_a_line: "reads",
    read_no_lines: "reads",
    list_what_has_ended: "reads",
    list_no_escrow_from_there_on: "reads",
    list_half_of_what_is_settled: "reads",
    end_a_page_early: "reads",
    begin_a_page_late: "reads",
    misstate_a_time: "reads",
    misname_a_line: "reads",
    skip_a_day: "reads",
    see_half_of_a_batch: "reads",
    earn_more: "reads",
    earn_in_the_future: "reads",
}


def test_every_lie_is_seen(story: Story) -> None:
    for lie, check in LIES.items():
        calls, ledger = copy.deepcopy(story)
        lie(calls, ledger)
        assert check in checks(calls, ledger), lie.__name__


def test_points_from_nowhere_are_seen_at_a_moment(world: World) -> None:
    world.credit()
    moments = Moments(world.database)
    assert moments.look(set()) == []
    change = "UPDATE user_wallets SET available = available + {}"
    with world.database.engine.begin() as connection:
        connection.exec_driver_sql(change.format(1))
    found = moments.look(set())
    with world.database.engine.begin() as connection:
        connection.exec_driver_sql(change.format(-1))
    assert found[0] == "the wallets have 101 points, credited and not spent were 100"
    assert found[1] == "recount: invariant 2: wallet and ledger differ"
    assert "user_wallet_differs" in found[2]


def test_what_was_not_answered_is_to_be_sent_again() -> None:
    part = {"operation": "hold", "key": "k", "flaw": None, "mutation": None, "request": {"user_id": "ana"}}
    asked = {"call": "a", "form": "one", "parts": [part]}
    refused = {"error": {"code": "insufficient_balance", "retryable": False, "details": {}}}
    contended = {"error": {"code": "optimistic_lock", "retryable": True, "details": {}}}
    done = {"outcomes": [{"transaction_id": "t"}]}
    key = ("user:ana", "hold", "k")
    stories: list[tuple[list[Line | None], set[tuple[str, str, str]]]] = [
        ([None], {key}),
        ([contended], {key}),
        ([refused], set()),
        ([refused, None], {key}),
        ([None, done], set()),
        ([done, contended], set()),
    ]
    for answers, expected in stories:
        calls = [Call("0.0", asked, answer) for answer in answers]
        assert set(unacknowledged(calls)) == expected
    flawed = {**asked, "parts": [part | {"flaw": "token"}, part | {"mutation": "amount"}]}
    assert not unacknowledged([Call("0.0", flawed)])


def test_a_torn_line_is_not_read_and_the_stream_goes_on_behind_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "0.0")
    asked: dict[str, Any] = {"form": "one", "series": 0, "resent": False, "parts": []}
    journal.write(call="a", number=0, **asked)
    journal.write(answer="a", outcomes=[])
    journal.write(call="b", number=1, **asked)
    [path] = tmp_path.iterdir()
    path.write_bytes(path.read_bytes() + b'{"call": "c", "numb')
    read_again = list(lines(tmp_path, "0.0"))
    assert [line.get("call") for line in read_again] == ["a", None, "b"]
    last = unfinished(read_again)
    assert last is not None
    assert last["call"] == "b"
    assert next_number(read_again) == 2


def test_a_client_recovers_what_it_had_sent_before_its_death(database: Database, tmp_path: Path) -> None:
    steps = Plan(SEED, CLIENTS).stream("0.0")
    first_life = client("0.0", database, tmp_path)
    for _ in range(15):
        first_life.carry_out(next(steps))
    first = told(
        "success among its first calls",
        (call for call in calls_of("0.0", lines(tmp_path, "0.0")) if call.form == "one" and any(call.successes())),
    )
    client("0.0", database, tmp_path, 1).recover(first.asked)
    *_, last = calls_of("0.0", lines(tmp_path, "0.0"))
    assert last.asked["resent"]
    assert last.name != first.name
    assert first.answer
    assert last.answer
    assert list(map(without_flag, last.answer["outcomes"])) == list(map(without_flag, first.answer["outcomes"]))


def test_only_what_is_new_is_progress(database: Database, tmp_path: Path) -> None:
    clients = (CLIENTS,)
    round_ = Round(folder=tmp_path, url="", proxy=None, seed=SEED, clients=clients, isolation_level=None, began=clock())
    only = client("0.0", database, tmp_path)
    steps = round_.plan().stream("0.0")
    credit = next(step for step in steps if step.kind == "one" and step.intents[0].operation == "credit")
    read = next(step for step in steps if step.kind == "read" and step.intents[0].hold is None)
    only.carry_out(credit)
    round_.note_recovery(only)
    assert round_.waiting() == list(CLIENTS)
    (tmp_path / CALM).write_text(str(clock()))
    only.carry_out(replace(credit, resent=True))
    only.carry_out(read)
    round_.note_recovery(only)
    assert round_.waiting() == list(CLIENTS), "neither a replay nor a read is progress"
    only.carry_out(next(step for step in steps if step.kind == "one" and step.intents[0].operation == "credit"))
    round_.note_recovery(only)
    assert round_.waiting() == ["1.0"]


def test_what_was_rolled_back_is_not_acknowledged(tmp_path: Path) -> None:
    acknowledged, journal = Acknowledged(tmp_path), Journal(tmp_path, "0.0")
    journal.write(answer="a", outcomes=[{"transaction_id": "t", "replayed": True}])
    journal.write(answer="b", outcomes=[{"version": 1}])
    journal.write(answer="c", outcomes=[{"transaction_id": "u", "replayed": False}], committed=False)
    journal.write(answer="d", error={"code": "optimistic_lock"})
    acknowledged.update()
    assert acknowledged.transactions == {"t"}
