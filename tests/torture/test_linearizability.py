"""The checker accepts what a correct platform can answer and refuses what it cannot; on small histories it is exact."""

import heapq
import itertools
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.orm import Session

from points_platform.core import OptimisticLockError, WalletError
from support.reference import EMPTY, STATUS, Fields, Reference, Refused, claim_of, owner_of
from support.world import World
from torture.linearizability import ITEM, MADE, READS, Call, Part, Undecided, explain
from torture.operations import OPERATIONS, request_of

TAKER = "zoe"  # who does nothing but take what is transferred
LOCKED = {"code": "optimistic_lock", "details": {"attempts": 4}}


def request(operation: str, key: str, user_id: str = "ana", **changes: Any) -> Any:
    """A request of which only what is said matters. Amounts are tens, so that no sum is off by one."""
    defaults = {
        "idempotency_key": key,
        "request_id": key,
        "user_id": user_id,
        "owner": f"user:{user_id}",
        "recipient_id": "ben" if user_id != "ben" else "ana",
        "model_id": "luna",
        "reason": "because",
        "queue_item_id": "queue-1",
        "feature_type": "song",
        "source": "bank",
        "reference": key,
    }
    return request_of(operation, defaults | changes)


def answered(state: Reference, part: Part, made: Fields) -> Fields:
    """What the reference answers; on its own, apart from the checker's code."""
    try:
        if part.operation not in READS:
            return state.send(part.operation, part.request, made, part.authorized)
        if part.operation == "escrow":
            if part.request["escrow_id"] not in state.items:
                return {"code": "escrow_not_found"}
            return {name: state.items[part.request["escrow_id"]][name] for name in ITEM}
        ((_, owner_id),) = part.request.items()
        kind, names = {
            "user_balance": ("user", ("available", "escrow", "version")),
            "model_balance": ("model", ("earned", "version")),
        }[part.operation]
        wallet = state.wallets.get((f"{kind}:{owner_id}", "points"), EMPTY)
        return {name: wallet[name] for name in names}
    except Refused as refusal:
        return {"code": refusal.args[0], "details": refusal.args[1]}


# ── a platform that answers many at once, correctly unless it is told otherwise ──


@dataclass
class Platform:
    """Workers whose calls take effect at a random time between invocation and answer; all chances come from a seed.

    ``lost`` of the calls are never answered; half of those take effect, perhaps much later. After the last
    answer everything is read once more, one after the other.
    """

    seed: int
    workers: int = 8
    length: int = 30
    users: Sequence[str] = ("ana", "ben", "eva")
    models: Sequence[str] = ("luna", "sol")
    lost: float = 0.1
    concurrency: float = 3.0
    reading: bool = True
    operations: Sequence[str] = tuple(OPERATIONS)
    state: Reference = field(default_factory=Reference)

    def __post_init__(self) -> None:
        self.random = Random(self.seed)
        self.numbers = itertools.count()
        self.sent: list[Part] = []
        self.holds: list[tuple[str, Any]] = []
        self.calls: list[Call] = []
        self.events: list[tuple[float, int, Any]] = []

    def history(self) -> list[Call]:
        for user_id in self.users:
            self.carry_out("setup", Part(operation="credit", request=self.asked("credit", user_id, 200)))
        for number in range(self.workers):
            self.at(self.random.random(), lambda now, number=number: self.invoke(f"w{number}", now))
        self.left = self.length - len(self.calls)
        while self.events:
            now, _, event = heapq.heappop(self.events)
            event(now)
        if self.reading:
            self.read_everything()
        return self.calls

    def at(self, when: float, event: Any) -> None:
        heapq.heappush(self.events, (when, next(self.numbers), event))

    def carry_out(self, worker: str, *parts: Part) -> None:
        """A call that nothing else overlaps."""
        now = max([0.0, *(call.returned or call.invoked for call in self.calls)])
        outcomes = self.effect(parts)
        self.calls.append(self.call(worker, now + 0.001, now + 0.002, parts, outcomes))

    def call(
        self, worker: str, invoked: float, returned: float | None, parts: Sequence[Part], outcomes: Sequence[Any]
    ) -> Call:
        told = tuple(replace(part, outcome=outcome) for part, outcome in zip(parts, outcomes, strict=True))
        for part, outcome in zip(parts, outcomes, strict=True):
            if part.operation == "hold" and outcome and "code" not in outcome:
                self.holds.append((outcome["escrow_id"], part.request))
        return Call(worker=worker, invoked=invoked, returned=returned, parts=told)

    def invoke(self, worker: str, now: float) -> None:
        if self.left <= 0:
            return
        self.left -= 1
        random = self.random
        lasting = random.random() * self.concurrency / self.workers * 8 + 0.001
        parts = self.chosen()
        chance = random.random()
        if chance < self.lost:
            self.calls.append(self.call(worker, now, None, parts, [None] * len(parts)))
            if random.random() < 0.5:
                late = random.choice([random.random() * lasting, random.expovariate(0.2)])
                self.at(now + late, lambda _: self.effect(parts))
            self.at(now + lasting, lambda then: self.invoke(worker, then))
            return
        if chance > 0.98 and not any(part.operation in READS for part in parts):
            self.calls.append(self.call(worker, now, now + lasting, parts, [LOCKED] * len(parts)))
            self.at(now + lasting, lambda then: self.invoke(worker, then))
            return
        outcomes: list[Any] = []
        undone = chance > 0.95 and not any(part.operation in READS for part in parts)
        self.at(now + random.random() * lasting, lambda _: outcomes.extend(self.effect(parts, undone)))
        self.at(now + lasting, lambda then: self.answer(worker, now, then, parts, outcomes, undone))

    def answer(
        self, worker: str, invoked: float, now: float, parts: Sequence[Part], outcomes: list[Any], undone: bool
    ) -> None:
        call = self.call(worker, invoked, now, parts, outcomes)
        self.calls.append(replace(call, undone=undone))
        self.at(now + self.random.random() * 0.5, lambda then: self.invoke(worker, then))

    def effect(self, parts: Sequence[Part], undone: bool = False) -> list[Fields]:
        state = self.state.copy() if undone else self.state
        return [self.answer_of(state, part) for part in parts]

    def answer_of(self, state: Reference, part: Part) -> Fields:
        made = {name: f"{name}-{next(self.numbers)}" for name in MADE}
        if part.operation != "hold":
            del made["escrow_id"]
        return answered(state, part, made)

    # ── what is asked for ──

    def chosen(self) -> tuple[Part, ...]:
        count = self.random.choice([1] * 8 + [2, 3])
        return tuple(self.one() for _ in range(count))

    def one(self) -> Part:
        random = self.random
        if self.sent and random.random() < 0.15:
            again = random.choice(self.sent)
            if random.random() < 0.3 and hasattr(again.request, "amount"):
                return replace(again, request=replace(again.request, amount=again.request.amount + 10))
            return again
        operation = random.choice(["hold", *self.operations, *READS])
        if operation in READS:
            return self.read(operation)
        user_id = random.choice(self.users)
        authorized = random.random() > 0.05
        if operation in STATUS and not self.holds:
            operation = "hold"
        part = Part(
            operation=operation,
            request=self.asked(operation, user_id, random.randint(1, 9) * 10),
            authorized=authorized or operation not in STATUS,
        )
        self.sent.append(part)
        return part

    def asked(self, operation: str, user_id: str, amount: int) -> Any:
        key = f"key-{next(self.numbers)}"
        if operation not in STATUS:
            return request(operation, key, **{"user_id": user_id, "amount": amount, **self.about(operation, user_id)})
        escrow_id, hold = self.random.choice(self.holds[-4:])
        ends: Fields = {"user_id": hold.user_id, "escrow_id": escrow_id}
        if operation != "refund":
            ends["model_id"] = self.random.choice(self.models)
        if operation != "partial_settle":
            return request(operation, key, **ends, amount=hold.amount)
        part = max(1, hold.amount // 20 * 10)
        return request(operation, key, **ends, refund_amount=part, settle_amount=max(10, hold.amount - part))

    def about(self, operation: str, user_id: str) -> Fields:
        """What else is said: who takes, whose wallet is opened; and of a deposit what others may have claimed too."""
        random = self.random
        if operation == "transfer":
            return {"recipient_id": random.choice([each for each in (*self.users, TAKER) if each != user_id])}
        if operation == "open" and random.random() < 0.5:
            return {"owner": f"model:{random.choice(self.models)}"}
        if operation == "deposit" and random.random() < 0.5:
            claimed = {"reference": f"reference-{random.randrange(2)}", "user_id": random.choice(self.users[:2])}
            return claimed | {"amount": random.choice((50, 50, 60))}
        return {}

    def read(self, operation: str) -> Part:
        random = self.random
        asked = {
            "user_balance": {"user_id": random.choice(self.users)},
            "model_balance": {"model_id": random.choice(self.models)},
            "escrow": {"escrow_id": random.choice(self.holds)[0] if self.holds else "nothing"},
        }[operation]
        return Part(operation=operation, request=asked)

    def read_everything(self) -> None:
        for user_id in (*self.users, TAKER):
            self.carry_out("auditor", Part(operation="user_balance", request={"user_id": user_id}))
        for model_id in self.models:
            self.carry_out("auditor", Part(operation="model_balance", request={"model_id": model_id}))
        for escrow_id in {escrow_id: None for escrow_id, _ in self.holds}:
            self.carry_out("auditor", Part(operation="escrow", request={"escrow_id": escrow_id}))


# ── what is correct is never refused ──

BUSY: list[dict[str, Any]] = [
    {},
    {"lost": 0.0},
    {"lost": 0.2},
    {"concurrency": 12.0},
    {"concurrency": 12.0, "users": ("ana",), "models": ("luna",)},
    {"workers": 2, "length": 40, "lost": 0.05},
]


@pytest.mark.parametrize("options", BUSY, ids=str)
def test_what_a_correct_platform_answers_is_linearizable_and_soon_found_to_be(options: dict[str, Any]) -> None:
    for seed in range(150):
        assert explain(Platform(seed=seed, **options).history()) is None, f"seed {seed}"


def test_the_order_in_which_the_calls_are_given_is_of_no_importance() -> None:
    calls = Platform(seed=1).history()
    Random(1).shuffle(calls)
    assert explain(calls) is None


# ── what has a fault in it is refused ──


@dataclass
class Faulty(Platform):
    """Somewhere in the middle, once, something goes wrong. All calls are answered."""

    fault: str = ""
    lost: float = 0.0
    done: bool = False

    def answer_of(self, state: Reference, part: Part) -> Fields:
        before = state.copy()
        answer = super().answer_of(state, part)
        effect = len(state.answers) > len(before.answers)
        if self.done or state is not self.state or not effect or len(state.answers) < 10:
            return answer
        self.done = getattr(self, self.fault)(before, part.operation, part.request)
        return answer

    def doubled(self, before: Reference, operation: str, asked: Any) -> bool:
        for owner, wallet in self.state.wallets.items():
            old = before.wallets.get(owner, EMPTY)
            self.state.wallets[owner] = {name: 2 * value - old[name] for name, value in wallet.items()}
        return True

    def missing(self, before: Reference, operation: str, asked: Any) -> bool:
        self.state = before
        return True

    def lost_update(self, before: Reference, operation: str, asked: Any) -> bool:
        """The balances are those of before, the version and the hold go on."""
        if operation == "open":
            return False  # changes no balance
        for owner, old in before.wallets.items():
            self.state.wallets[owner] = old | {"version": self.state.wallets[owner]["version"]}
        return True

    def version_skipped(self, before: Reference, operation: str, asked: Any) -> bool:
        wallet = self.state.wallets[owner_of(asked), "points"]
        self.state.wallets[owner_of(asked), "points"] = wallet | {"version": wallet["version"] + 1}
        return True

    def half(self, before: Reference, operation: str, asked: Any) -> bool:
        """The user's side happens, the model's does not."""
        if operation not in ("settle", "partial_settle"):
            return False
        model = f"model:{asked.model_id}", "points"
        self.state.wallets[model] = before.wallets.get(model, EMPTY)
        return True

    def one_side(self, before: Reference, operation: str, asked: Any) -> bool:
        """The payer pays, and nobody is given anything."""
        if operation != "transfer":
            return False
        taker = f"user:{asked.recipient_id}", "points"
        self.state.wallets[taker] = before.wallets.get(taker, EMPTY)
        return True

    def untouched(self, before: Reference, operation: str, asked: Any) -> bool:
        """A wallet is opened, and its version stays what it was."""
        if operation != "open":
            return False
        self.state.wallets[asked.owner, "points"] = before.wallets.get((asked.owner, "points"), EMPTY)
        return True

    def twice_ended(self, before: Reference, operation: str, asked: Any) -> bool:
        """The item is held again, so that another can end it too."""
        if operation not in STATUS:
            return False
        self.state.items[asked.escrow_id] = before.items[asked.escrow_id]
        return True

    def key_forgotten(self, before: Reference, operation: str, asked: Any) -> bool:
        """The next to send this key has an effect as well; it is sent at the end."""
        if operation != "credit":
            return False
        self.state.answers.popitem()
        self.forgotten = Part(operation=operation, request=asked)
        return True

    def claim_forgotten(self, before: Reference, operation: str, asked: Any) -> bool:
        """The next to deposit the same under another key is given it as well; it is sent at the end."""
        if operation != "deposit":
            return False
        self.state.claims.popitem()
        self.forgotten = Part(operation=operation, request=replace(asked, idempotency_key="another"))
        return True

    def read_everything(self) -> None:
        if self.done and self.fault.endswith("_forgotten"):
            self.carry_out("auditor", self.forgotten)
        super().read_everything()


FAULTS = (
    *("doubled", "missing", "lost_update", "version_skipped", "half", "one_side", "untouched"),
    *("twice_ended", "key_forgotten", "claim_forgotten"),
)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_platform_with_one_fault_is_refused(fault: str) -> None:
    found = 0
    for seed in range(60):
        platform = Faulty(seed=seed, fault=fault, length=40)
        calls = platform.history()
        if platform.done:
            found += 1
            assert explain(calls) is not None, f"seed {seed}"
        else:
            assert explain(calls) is None, f"seed {seed}"
    assert found > 20


def quiet(seed: int, **options: Any) -> tuple[list[Call], list[Call]]:
    """A history with every call answered, and those of its calls that changed something."""
    calls = Platform(seed=seed, lost=0.0, **options).history()
    makers = [
        call
        for call in calls
        if not call.undone and any((part.outcome or {}).get("replayed") is False for part in call.parts)
    ]
    return calls, makers


@pytest.mark.parametrize("seed", range(30))
def test_an_answer_that_is_off_by_one_is_refused_wherever_it_stands(seed: int) -> None:
    # A touch changes nothing but the version, so that beside it a version may be either.
    calls, _ = quiet(seed, operations=[each for each in OPERATIONS if each != "open"])
    random = Random(seed)
    numbers = [
        (call, place, name)
        for call in calls
        for place, part in enumerate(call.parts)
        for name, value in (part.outcome or {}).items()
        if type(value) is int
    ]
    for call, place, name in random.sample(numbers, 10):
        for change in (1, -1):
            assert explain(changed(calls, call, place, name, change)) is not None, (call, name)


def changed(calls: list[Call], call: Call, place: int, name: str, change: int) -> list[Call]:
    outcome = dict(call.parts[place].outcome or {})
    outcome[name] += change
    parts = list(call.parts)
    parts[place] = replace(parts[place], outcome=outcome)
    return [replace(other, parts=tuple(parts)) if other is call else other for other in calls]


@pytest.mark.parametrize("seed", range(30))
def test_an_effect_before_its_invocation_is_refused(seed: int) -> None:
    calls, makers = quiet(seed)
    end = max(call.returned or 0.0 for call in calls)
    for call in Random(seed).sample(makers, 3):
        # Everything was read once more before it was invoked, with its effect.
        others = [other for other in calls if other is not call]
        assert explain([*others, replace(call, invoked=end + 1, returned=end + 2)]) is not None, call


@pytest.mark.parametrize("seed", range(30))
def test_an_acknowledged_effect_that_nobody_asked_for_or_that_is_missing_is_refused(seed: int) -> None:
    calls, makers = quiet(seed)
    for call in Random(seed).sample(makers, 3):
        assert explain([other for other in calls if other is not call]) is not None, call
        assert explain([*calls, replace(call, worker="once more")]) is not None, call


@pytest.mark.parametrize("seed", range(30))
def test_a_stale_read_is_refused(seed: int) -> None:
    """A balance of before the last effect that had been answered when the read began."""
    calls, _ = quiet(seed)
    reads = [call for call in calls if call.worker == "auditor" and call.parts[0].operation == "user_balance"]
    for call in reads:
        (part,) = call.parts
        earlier = [
            {"available": before["available"], "escrow": before["escrow"], "version": before["version"]}
            for before in wallets_of(calls, part.request["user_id"])
        ]
        for before in earlier[:-1]:
            stale = replace(call, parts=(replace(part, outcome=before),))
            assert explain([stale if other is call else other for other in calls]) is not None


def wallets_of(calls: list[Call], user_id: str) -> list[Fields]:
    """What the user's wallet was, one change after the other, as the order of some linearization has it."""
    read = [
        dict(part.outcome or {})
        for call in calls
        for part in call.parts
        if part.operation == "user_balance" and part.request == {"user_id": user_id} and (part.outcome or {})["version"]
    ]
    return [dict(EMPTY), *sorted((dict(items) for items in {tuple(one.items()) for one in read}), key=version_of)]


def version_of(wallet: Fields) -> int:
    version: int = wallet["version"]
    return version


# ── small histories: exactly those that some permutation explains ──


def permutation_exists(calls: Sequence[Call]) -> bool:
    answered_calls = [call for call in calls if call.returned is not None]
    unanswered = [call for call in calls if call.returned is None]
    return any(
        in_time(order) and any(plays(order, made) for made in choices_of_ids(calls))
        for count in range(len(unanswered) + 1)
        for some in itertools.combinations(unanswered, count)
        for order in itertools.permutations([*answered_calls, *some])
    )


def in_time(order: Sequence[Call]) -> bool:
    return not any(
        later.returned is not None and later.returned < earlier.invoked
        for earlier, later in itertools.combinations(order, 2)
    )


def choices_of_ids(calls: Sequence[Call]) -> Iterator[dict[int, Fields]]:
    """What each part may have made: the ids in its answer, else those of another that asks for it, or its own."""
    parts = [part for call in calls for part in call.parts if part.operation not in READS]
    seen: dict[Any, list[Fields]] = {}
    for part in parts:
        if ids := ids_in(part.outcome):
            seen.setdefault(thing_of(part), []).append(ids)
    options: list[list[Fields]] = []
    for part in parts:
        own = {name: f"nobody's {id(part)}" for name in MADE}
        ids = ids_in(part.outcome)
        options.append([own | ids] if ids else [own | other for other in [{}, *unique(seen.get(thing_of(part), []))]])
    for choice in itertools.product(*options):
        yield {id(part): ids for part, ids in zip(parts, choice, strict=True)}


def unique(found: list[Fields]) -> list[Fields]:
    return [one for place, one in enumerate(found) if one not in found[:place]]


def ids_in(outcome: Mapping[str, Any] | None) -> Fields:
    return {name: value for name, value in (outcome or {}).items() if name in MADE}


def thing_of(part: Part) -> tuple[str, ...]:
    """What can be there once only: what a key has made, or a claim."""
    claim = claim_of(part.operation, part.request)
    return claim or (part.operation, owner_of(part.request), part.request.idempotency_key)


def plays(order: Sequence[Call], made: dict[int, Fields]) -> bool:
    state = Reference()
    for call in order:
        before = state.copy()
        for part in call.parts:
            if (part.outcome or {}).get("code") == "optimistic_lock":
                continue
            answer = answered(state, part, made.get(id(part), {}))
            if part.outcome is not None and not agrees(part.outcome, answer):
                return False
        if call.undone:
            state = before
    return True


def agrees(outcome: Mapping[str, Any], answer: Fields) -> bool:
    if "code" in outcome or "code" in answer:
        return {name: outcome.get(name) for name in answer} == answer
    return all(name in answer and answer[name] == value for name, value in outcome.items())


def tampered(random: Random, calls: list[Call]) -> list[Call]:
    """The history with something in it changed, so that it may or may not be linearizable still."""
    change = random.choice([wrong_number, wrong_number, moved, moved, swapped, repeated, left_out, unanswered, unknown])
    place = random.randrange(len(calls))
    return [*calls[:place], *change(random, calls[place], calls), *calls[place + 1 :]]


def wrong_number(random: Random, call: Call, calls: list[Call]) -> list[Call]:
    part = random.choice(call.parts)
    outcome = dict(part.outcome or {})
    if names := [name for name, value in outcome.items() if isinstance(value, int)]:
        name = random.choice(names)
        value = outcome[name]
        outcome[name] = not value if isinstance(value, bool) else value + random.choice([-10, -1, 1, 10])
    wrong = replace(part, outcome=outcome)
    return [replace(call, parts=tuple(wrong if other is part else other for other in call.parts))]


def moved(random: Random, call: Call, calls: list[Call]) -> list[Call]:
    times = [time for other in calls for time in (other.invoked, other.returned) if time is not None]
    invoked, returned = sorted(random.choices(times, k=2))
    return [replace(call, invoked=invoked, returned=returned)]


def swapped(random: Random, call: Call, calls: list[Call]) -> list[Call]:
    outcomes = [part.outcome for part in random.choice(calls).parts]
    told = (replace(part, outcome=outcome) for part, outcome in zip(call.parts, outcomes, strict=False))
    return [replace(call, parts=(*told, *call.parts[len(outcomes) :]))]


def repeated(random: Random, call: Call, calls: list[Call]) -> list[Call]:
    return [call, *moved(random, call, calls)] if len(calls) < 6 else [call]


def left_out(random: Random, call: Call, calls: list[Call]) -> list[Call]:
    return [] if len(calls) > 1 else [call]


def unanswered(random: Random, call: Call, calls: list[Call]) -> list[Call]:
    return [replace(call, returned=None, undone=False)]


def unknown(random: Random, call: Call, calls: list[Call]) -> list[Call]:
    return [replace(call, parts=tuple(replace(part, outcome=None) for part in call.parts))]


@settings(max_examples=400, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    users=st.sampled_from([("ana",), ("ana", "ben")]),
    lost=st.sampled_from([0.0, 0.2, 0.5]),
    concurrency=st.sampled_from([0.5, 3.0, 12.0]),
    changes=st.integers(0, 3),
)
def test_on_small_histories_the_answer_is_that_of_trying_all_permutations(
    seed: int, users: Sequence[str], lost: float, concurrency: float, changes: int
) -> None:
    platform = Platform(
        seed=seed, workers=3, length=6, users=users, models=("luna",), lost=lost, concurrency=concurrency, reading=False
    )
    calls, random = platform.history(), Random(seed)
    for _ in range(changes):
        calls = tampered(random, calls)
    exists = permutation_exists(calls)
    assert exists or changes
    account = explain(calls)
    assert (account is None) is exists, account


# ── examples of the literature, with balances for registers ──


def credit(worker: str, times: tuple[float, float | None], before: int | None, user_id: str = "ana") -> Call:
    """A credit of ten that found so much; ``None``: nothing is known of its answer."""
    outcome = None if before is None else {"previous_balance": before, "new_available_balance": before + 10}
    key = f"{worker} at {times[0]}"
    part = Part(operation="credit", request=request("credit", key, user_id, amount=10), outcome=outcome)
    return Call(worker=worker, invoked=times[0], returned=times[1], parts=(part,))


def read(worker: str, times: tuple[float, float | None], available: int, user_id: str = "ana") -> Call:
    outcome = {"available": available, "escrow": 0, "version": available // 10}
    part = Part(operation="user_balance", request={"user_id": user_id}, outcome=outcome)
    return Call(worker=worker, invoked=times[0], returned=times[1], parts=(part,))


EXAMPLES: dict[str, tuple[bool, list[Call]]] = {
    "nothing happened": (True, []),
    "a read beside a write may see it": (True, [credit("a", (0, 9), 0), read("b", (1, 2), 10)]),
    "a read beside a write need not see it": (True, [credit("a", (0, 9), 0), read("b", (1, 2), 0)]),
    "first the old value, then the new one": (
        True,
        [credit("a", (0, 9), 0), read("b", (1, 2), 0), read("c", (3, 4), 10)],
    ),
    "the new value, and then the old one": (
        False,
        [credit("a", (0, 9), 0), read("b", (1, 2), 10), read("c", (3, 4), 0)],
    ),
    "overlapping reads may see both": (True, [credit("a", (0, 9), 0), read("b", (1, 4), 10), read("c", (3, 5), 0)]),
    "a read after the write must see it": (False, [credit("a", (0, 1), 0), read("b", (2, 3), 0)]),
    "what touches may be in either order": (True, [credit("a", (0, 1), 0), read("b", (1, 2), 0)]),
    "a read of what nobody has written": (False, [read("b", (0, 1), 10), credit("a", (2, 3), 0)]),
    "of two writes at once one is first": (True, [credit("a", (0, 5), 10), credit("b", (1, 4), 0)]),
    "of two writes at once both are first: a lost update": (False, [credit("a", (0, 5), 0), credit("b", (1, 4), 0)]),
    "each sees its own write alone, as with store buffers": (
        False,
        [
            credit("a", (0, 1), 0, "ana"),
            credit("b", (0, 1), 0, "ben"),
            read("a", (2, 3), 0, "ben"),
            read("b", (2, 3), 0, "ana"),
        ],
    ),
    "independent writes are read in two orders": (
        False,
        [
            credit("a", (0, 9), 0, "ana"),
            credit("b", (0, 9), 0, "ben"),
            read("c", (1, 2), 10, "ana"),
            read("c", (3, 4), 0, "ben"),
            read("d", (1, 2), 10, "ben"),
            read("d", (3, 4), 0, "ana"),
        ],
    ),
    "an unanswered write is never seen": (True, [credit("a", (0, None), None), read("b", (5, 6), 0)]),
    "an unanswered write is seen late": (
        True,
        [credit("a", (0, None), None), read("b", (5, 6), 0), read("b", (7, 8), 10)],
    ),
    "an unanswered write is seen and gone": (
        False,
        [credit("a", (0, None), None), read("b", (5, 6), 10), read("b", (7, 8), 0)],
    ),
    "an unanswered write is seen before it was invoked": (
        False,
        [read("b", (0, 1), 10), credit("a", (2, None), None)],
    ),
    "an unanswered write is seen twice": (
        False,
        [credit("a", (0, None), None), read("b", (5, 6), 10), read("b", (7, 8), 20)],
    ),
    "two unanswered writes, seen one by one": (
        True,
        [credit("a", (0, None), None), credit("b", (0, None), None), read("c", (1, 2), 10), read("c", (3, 4), 20)],
    ),
    "two unanswered writes, seen at once": (
        True,
        [credit("a", (0, None), None), credit("b", (0, None), None), read("c", (1, 2), 20)],
    ),
    "an answer of which nothing is known has its effect all the same": (
        False,
        [credit("a", (0, 1), None), read("b", (2, 3), 0)],
    ),
    "an answer of which nothing is known may be a refusal here and an effect later": (
        True,
        [
            replace(
                credit("a", (0, 3), None), parts=(Part(operation="hold", request=request("hold", "h", amount=10)),)
            ),
            credit("b", (1, 4), 0),
            replace(
                read("c", (6, 7), 0),
                parts=(
                    Part(
                        operation="user_balance",
                        request={"user_id": "ana"},
                        outcome={"available": 0, "escrow": 10, "version": 2},
                    ),
                ),
            ),
        ],
    ),
    "an unanswered read says nothing": (True, [read("a", (0, None), 70)]),
}


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_of_the_literature(example: str) -> None:
    linearizable, calls = EXAMPLES[example]
    assert (explain(calls) is None) is linearizable
    assert permutation_exists(calls) is linearizable


# ── keys, refusals, what is undone ──


def holding(*calls: tuple[str, tuple[float, float | None], str, Fields | None]) -> list[Call]:
    """Ana, with 100 points of which 30 are held as "item", and what is sent then: operation, times, key, outcome."""
    opening = [
        Part(operation="credit", request=request("credit", "first", amount=100), outcome={}),
        Part(operation="hold", request=request("hold", "second", amount=30), outcome={"escrow_id": "item"}),
    ]
    history = [Call(worker="z", invoked=0, returned=1, parts=tuple(opening))]
    for operation, (invoked, returned), key, outcome in calls:
        part = Part(operation=operation, request=request(operation, key, amount=30, escrow_id="item"), outcome=outcome)
        history.append(Call(worker=key, invoked=invoked, returned=returned, parts=(part,)))
    return history


DONE: Fields = {"code": "escrow_already_processed", "details": {"escrow_id": "item", "status": "settled"}}
MADE_FIRST: Fields = {"transaction_id": "t", "replayed": False}
MADE_BEFORE: Fields = {"transaction_id": "t", "replayed": True}
CASES: dict[str, tuple[bool, list[Call]]] = {
    "an item is settled twice": (False, holding(("settle", (2, 5), "a", {}), ("settle", (3, 4), "b", {}))),
    "an item is settled and refunded": (False, holding(("settle", (2, 5), "a", {}), ("refund", (3, 4), "b", {}))),
    "the second to settle is refused": (True, holding(("settle", (2, 5), "a", DONE), ("settle", (3, 4), "b", {}))),
    "the first to settle is refused": (False, holding(("settle", (2, 3), "a", DONE), ("settle", (4, 5), "b", {}))),
    "it was the unanswered one that settled": (
        True,
        holding(("settle", (2, None), "a", None), ("settle", (4, 5), "b", DONE)),
    ),
    "refused in another way": (
        False,
        holding(("settle", (2, 5), "a", {}), ("settle", (3, 4), "b", {"code": "escrow_not_found"})),
    ),
    "refused with other details": (
        False,
        holding(
            ("settle", (2, 5), "a", {}),
            ("settle", (3, 4), "b", DONE | {"details": {"escrow_id": "item", "status": "refunded"}}),
        ),
    ),
    "nobody has made what is repeated": (False, holding(("credit", (2, 3), "a", MADE_BEFORE))),
    "two have made the same": (
        False,
        holding(("credit", (2, 5), "a", MADE_FIRST), ("credit", (3, 4), "a", MADE_FIRST)),
    ),
    "the earlier repeats the later": (
        False,
        holding(("credit", (2, 3), "a", MADE_BEFORE), ("credit", (4, 5), "a", MADE_FIRST)),
    ),
    "one repeats what another makes at that time": (
        True,
        holding(("credit", (2, 5), "a", MADE_BEFORE), ("credit", (3, 4), "a", MADE_FIRST)),
    ),
    "another answer is repeated": (
        False,
        holding(("credit", (2, 3), "a", MADE_FIRST), ("credit", (4, 5), "a", MADE_BEFORE | {"transaction_id": "u"})),
    ),
    "the unanswered one made what is repeated": (
        True,
        holding(("credit", (2, None), "a", None), ("credit", (4, 5), "a", MADE_BEFORE)),
    ),
    "the unanswered one made nothing": (
        True,
        holding(("credit", (2, None), "a", None), ("credit", (4, 5), "a", MADE_FIRST)),
    ),
    "a hold of which only the repetition is known": (
        True,
        [
            *holding(
                ("hold", (2, None), "a", None),
                ("hold", (4, 5), "a", {"escrow_id": "new", "replayed": True, "escrow_balance": 60}),
            ),
            Call(
                worker="c",
                invoked=6,
                returned=7,
                parts=(
                    Part(operation="escrow", request={"escrow_id": "new"}, outcome={"status": "held", "amount": 30}),
                ),
            ),
        ],
    ),
    "given up for others": (
        True,
        holding(
            ("settle", (2, 3), "a", {"code": "optimistic_lock", "details": {"attempts": 4}}),
            ("settle", (4, 5), "b", {}),
        ),
    ),
    "an unknown field": (False, holding(("credit", (2, 3), "a", {"color": "red"}))),
}


@pytest.mark.parametrize("case", CASES)
def test_keys_and_refusals(case: str) -> None:
    linearizable, calls = CASES[case]
    assert (explain(calls) is None) is linearizable


def sending(*calls: tuple[str, tuple[float, float | None], str, Fields, Fields | None]) -> list[Call]:
    """Ana and ben, with 100 points each, and what is sent then: operation, times, key, what it says, outcome."""
    opening = [
        Part(operation="credit", request=request("credit", "first", each, amount=100)) for each in ("ana", "ben")
    ]
    history = [Call(worker="z", invoked=0, returned=1, parts=tuple(opening))]
    for operation, (invoked, returned), key, said, outcome in calls:
        asked = said if operation in READS else request(operation, key, **{"amount": 30, **said})
        part = Part(operation=operation, request=asked, outcome=outcome)
        history.append(Call(worker=key, invoked=invoked, returned=returned, parts=(part,)))
    return history


ANA: Fields = {"user_id": "ana"}
BEN: Fields = {"user_id": "ben"}
TO_ANA: Fields = {"user_id": "ben", "recipient_id": "ana"}
ONCE: Fields = {"reference": "r"}
MORE: Fields = {"reference": "r", "amount": 40}


def paid(before: int, amount: int = 30) -> Fields:
    return {"previous_balance": before, "new_available_balance": before - amount}


def conflict(*names: str) -> Fields:
    return {"code": "deposit_conflict", "details": {"source": "bank", "reference": "r", "fields": names}}


BETWEEN_WALLETS: dict[str, tuple[bool, list[Call]]] = {
    "both sides of a transfer": (
        True,
        sending(
            ("transfer", (2, 3), "a", {}, paid(100)),
            ("user_balance", (4, 5), "b", ANA, {"available": 70, "version": 2}),
            ("user_balance", (4, 5), "c", BEN, {"available": 130, "version": 2}),
        ),
    ),
    "only the payer sees it": (
        False,
        sending(("transfer", (2, 3), "a", {}, paid(100)), ("user_balance", (4, 5), "b", BEN, {"available": 100})),
    ),
    "only the taker sees it": (
        False,
        sending(
            ("transfer", (2, 9), "a", {}, paid(100)),
            ("user_balance", (3, 4), "b", BEN, {"available": 130}),
            ("user_balance", (5, 6), "c", ANA, {"available": 100}),
        ),
    ),
    "the taker is given it twice": (
        False,
        sending(("transfer", (2, 3), "a", {}, paid(100)), ("user_balance", (4, 5), "b", BEN, {"available": 160})),
    ),
    "each pays the other": (
        True,
        sending(("transfer", (2, 5), "a", {}, paid(100)), ("transfer", (3, 4), "b", TO_ANA, paid(130))),
    ),
    "each pays the other, and neither sees it": (
        False,
        sending(("transfer", (2, 5), "a", {}, paid(100)), ("transfer", (3, 4), "b", TO_ANA, paid(100))),
    ),
    "what was given is passed on, before it was asked for": (
        False,
        sending(("spend", (2, 3), "a", BEN, paid(130)), ("transfer", (4, 5), "b", {}, paid(100))),
    ),
    "a spend without effect": (
        False,
        sending(("spend", (2, 3), "a", {}, paid(100)), ("spend", (4, 5), "b", {}, paid(100))),
    ),
    "a spend that nobody could pay": (False, sending(("spend", (2, 3), "a", {"amount": 110}, {}))),
    "a wallet is touched": (
        True,
        sending(("open", (2, 3), "a", {}, {}), ("user_balance", (4, 5), "b", ANA, {"available": 100, "version": 2})),
    ),
    "a touch that left no version": (
        False,
        sending(("open", (2, 3), "a", {}, {}), ("user_balance", (4, 5), "b", ANA, {"version": 1})),
    ),
    "a touch that a read beside it has not seen": (
        True,
        sending(("open", (2, 5), "a", {}, {}), ("user_balance", (3, 4), "b", ANA, {"version": 1})),
    ),
    "the same is deposited under two keys": (
        True,
        sending(("deposit", (2, 3), "a", ONCE, MADE_FIRST), ("deposit", (4, 5), "b", ONCE, MADE_BEFORE)),
    ),
    "the same is credited under two keys": (
        False,
        sending(
            ("deposit", (2, 3), "a", ONCE, MADE_FIRST),
            ("deposit", (4, 5), "b", ONCE, {"transaction_id": "u", "replayed": False}),
        ),
    ),
    "a replay of a deposit is told as new": (
        False,
        sending(("deposit", (2, 3), "a", ONCE, MADE_FIRST), ("deposit", (4, 5), "b", ONCE, MADE_FIRST)),
    ),
    "the earlier deposit repeats the later": (
        False,
        sending(("deposit", (2, 3), "a", ONCE, MADE_BEFORE), ("deposit", (4, 5), "b", ONCE, MADE_FIRST)),
    ),
    "an unanswered deposit made what is repeated under another key": (
        True,
        sending(("deposit", (2, None), "a", ONCE, None), ("deposit", (4, 5), "b", ONCE, MADE_BEFORE)),
    ),
    "an unanswered deposit made nothing, since another was told that it did": (
        False,
        sending(
            ("deposit", (2, None), "a", ONCE, None),
            ("deposit", (4, 5), "b", ONCE, MADE_FIRST),
            ("user_balance", (6, 7), "c", ANA, {"available": 160}),
        ),
    ),
    "more is deposited than was claimed": (
        False,
        sending(("deposit", (2, 3), "a", ONCE, MADE_FIRST), ("deposit", (4, 5), "b", MORE, MADE_BEFORE)),
    ),
    "more than was claimed is refused": (
        True,
        sending(("deposit", (2, 3), "a", ONCE, MADE_FIRST), ("deposit", (4, 5), "b", MORE, conflict("amount"))),
    ),
    "of two that claim different amounts the first is refused": (
        False,
        sending(("deposit", (2, 3), "a", ONCE, conflict("amount")), ("deposit", (4, 5), "b", MORE, MADE_FIRST)),
    ),
    "a claim of somebody else's is refused": (
        True,
        sending(
            ("deposit", (2, 3), "a", ONCE, MADE_FIRST),
            ("deposit", (4, 5), "b", MORE | BEN, conflict("user_id", "amount")),
        ),
    ),
    "a claim is refused for what does not differ": (
        False,
        sending(("deposit", (2, 3), "a", ONCE, MADE_FIRST), ("deposit", (4, 5), "b", MORE, conflict("user_id"))),
    ),
    "the key of a repeated deposit is free": (
        True,
        sending(
            ("deposit", (2, 3), "a", ONCE, MADE_FIRST),
            ("deposit", (4, 5), "b", ONCE, MADE_BEFORE),
            ("deposit", (6, 7), "b", {"reference": "s"}, {"transaction_id": "u", "replayed": False}),
        ),
    ),
    "a used key is looked at before the claim": (
        True,
        sending(
            ("deposit", (2, 3), "a", ONCE, MADE_FIRST),
            (
                "deposit",
                (4, 5),
                "a",
                MORE,
                {"code": "idempotency_conflict", "details": {"key": "a", "fields": ("amount",)}},
            ),
        ),
    ),
}


@pytest.mark.parametrize("case", BETWEEN_WALLETS)
def test_transfers_touches_and_claims(case: str) -> None:
    linearizable, calls = BETWEEN_WALLETS[case]
    assert (explain(calls) is None) is linearizable
    assert permutation_exists(calls) is linearizable


def test_an_unauthorized_call_is_refused_whatever_it_asks_for() -> None:
    (opening, call) = holding(
        ("settle", (2, 3), "a", {"code": "invalid_authorization", "details": {"cause": "missing"}})
    )
    unauthorized = replace(call, parts=(replace(call.parts[0], authorized=False),))
    assert explain([opening, unauthorized]) is None
    assert explain([opening, call]) is not None


def test_a_key_with_another_request_is_refused_naming_what_differs_also_as_a_journal_has_it() -> None:
    opening, call = holding(("credit", (2, 3), "first", None))
    for fields, linearizable in ((("amount",), True), (["amount"], True), (["reason"], False)):
        outcome = {"code": "idempotency_conflict", "details": {"key": "first", "fields": fields}}
        conflict = replace(call, parts=(replace(call.parts[0], outcome=outcome),))
        assert (explain([opening, conflict]) is None) is linearizable


def test_what_is_undone_is_answered_in_one_step_and_leaves_nothing_behind() -> None:
    opening, hold, refused = holding(
        ("hold", (2, 3), "a", {"new_available_balance": 40}),
        (
            "hold",
            (2, 3),
            "b",
            {
                "code": "insufficient_balance",
                "details": {"required": 30, "available": 10, "currency": "points", "index": 2},
            },
        ),
    )
    again = replace(hold.parts[0], request=request("hold", "c", amount=30), outcome={})
    batch = replace(hold, parts=(*hold.parts, again, *refused.parts), undone=True)
    after = read("r", (4, 5), 70)
    after = replace(after, parts=(replace(after.parts[0], outcome={"available": 70, "escrow": 30, "version": 2}),))
    assert explain([opening, batch, after]) is None
    assert explain([opening, replace(batch, undone=False), after]) is not None
    assert explain([opening, replace(batch, parts=(again, *refused.parts)), after]) is not None


@pytest.mark.parametrize("replayed", [True, False])
def test_what_is_undone_tells_the_ids_of_what_it_repeats_but_its_own_are_free_again(replayed: bool) -> None:
    """A hold whose answer was lost, or not yet sent; then it is answered in a transaction that is rolled back."""
    known = {"escrow_id": "a" if replayed else "b", "replayed": replayed}
    opening, lost, undone, again, end = holding(
        ("hold", (2, None), "h", None),
        ("hold", (3, 4), "h", known),
        ("hold", (5, 6), "h", {"escrow_id": "a", "replayed": True}),
        ("settle", (7, 8), "s", {}),
    )
    ended = replace(end.parts[0], request=request("settle", "s", amount=30, escrow_id="a"))
    calls = [opening, lost, replace(undone, undone=True), again, replace(end, parts=(ended,))]
    assert explain(calls) is None
    assert explain([call for call in calls if call is not lost]) is not None


def test_a_batch_is_one_step() -> None:
    """A read between its parts sees what no moment had."""
    parts = tuple(Part(operation="credit", request=request("credit", key, amount=10), outcome={}) for key in "ab")
    batch = Call(worker="a", invoked=0, returned=9, parts=parts)
    assert explain([batch, read("b", (1, 2), 20)]) is None
    assert explain([batch, read("b", (1, 2), 0)]) is None
    assert explain([batch, read("b", (1, 2), 10)]) is not None


# ── what it says, and when it gives up ──


def test_the_account_has_the_order_that_was_found_and_what_could_not_follow() -> None:
    calls = [credit("a", (0, 1), 0), read("b", (2, 3.5), 70), credit("c", (2, None), None)]
    account = explain(calls) or ""
    assert account.splitlines() == [
        "not linearizable: 1 of 2 answered calls fit into an order:",
        "  a, 0.000000 to 1.000000: credit(idempotency_key='a at 0', user_id='ana', amount=10)"
        " -> {'previous_balance': 0, 'new_available_balance': 10}",
        "and none of these can follow:",
        "  b, 2.000000 to 3.500000: user_balance(user_id='ana') -> {'available': 70, 'escrow': 0, 'version': 7}",
        "      here: {'available': 10, 'escrow': 0, 'earned': 0, 'version': 1}",
        "nor do these help, which were not answered:",
        "  c, 2.000000 to ?: credit(idempotency_key='c at 2', user_id='ana', amount=10) -> ?",
    ]


def test_a_search_that_takes_too_long_ends_undecided() -> None:
    unanswered = [credit(f"w{number}", (0, None), None) for number in range(20)]
    calls = [*unanswered, read("r", (1, 2), 7)]
    with pytest.raises(Undecided, match="21 calls, undecided after 1000 attempts"):
        explain(calls, limit=1000)


# ── the real thing ──


class Recorder:
    """A worker thread that sends what chance chooses, and writes down what it was answered and when."""

    def __init__(self, world: World, name: str, seed: int, items: list[tuple[str, Any]]) -> None:
        self.world, self.name, self.random = world, name, Random(seed)
        self.items = items  # of all workers
        self.calls: list[Call] = []

    def run(self, barrier: threading.Barrier) -> None:
        barrier.wait(timeout=60)
        for _ in range(6):
            self.random.choice([self.one, self.one, self.one, self.balance, self.batch, self.transaction])()

    def record(self, parts: Sequence[tuple[str, Any]], send: Any) -> None:
        invoked = time.monotonic()
        try:
            answers = send()
        except OptimisticLockError as error:
            answers = [error] * len(parts)
        returned = time.monotonic()
        for answer, (operation, sent) in zip(answers, parts, strict=True):
            if operation == "hold" and not isinstance(answer, WalletError):
                self.items.append((answer.escrow_id, sent))
        told = tuple(
            Part(operation=operation, request=sent, outcome=told_of(operation, answer))
            for answer, (operation, sent) in zip(answers, parts, strict=True)
        )
        self.calls.append(Call(worker=self.name, invoked=invoked, returned=returned, parts=told))

    def chosen(self) -> tuple[str, Any]:
        operation = self.random.choice(["hold", *OPERATIONS])
        if operation in STATUS and not self.items:
            operation = "hold"
        make = getattr(self.world, f"{operation}_request")
        if operation in STATUS:
            escrow_id, hold = self.random.choice(self.items[-3:])
            return operation, make(escrow_id, user_id=hold.user_id)
        if operation == "open":
            return operation, make(self.random.choice(["user:ana", "user:ben", "model:luna"]))
        if operation == "deposit":
            return operation, make(
                "ana", self.random.choice([10, 20]), reference=f"payment-of-{self.random.randrange(3)}"
            )
        payer, taker = self.random.sample(["ana", "ben"], 2)
        about = {"recipient_id": taker} if operation == "transfer" else {}
        return operation, make(payer, 10 * self.random.randint(1, 4), **about)

    def one(self) -> None:
        operation, sent = self.chosen()
        for _ in range(self.random.choice([1, 1, 2])):
            self.record([(operation, sent)], lambda: [answer_or_refusal(self.world, sent)])

    def balance(self) -> None:
        user_id, model_id = self.random.choice(["ana", "ben"]), "luna"
        self.record(
            [("model_balance", {"model_id": model_id})], lambda: [self.world.wallets.get_model_balance(model_id)]
        )
        self.read(user_id)

    def read(self, user_id: str) -> None:
        self.record([("user_balance", {"user_id": user_id})], lambda: [self.world.wallets.get_user_balance(user_id)])

    def batch(self) -> None:
        parts: list[tuple[str, Any]] = [
            ("hold", self.world.hold_request(user_id, 20)) for user_id in ("ana", "ben", "ana")
        ]
        self.record(parts, lambda: self.world.wallets.hold_many([sent for _, sent in parts]))
        pairs = [("ana", "ben"), ("ben", "ana")]
        parts = [("transfer", self.world.transfer_request(payer, 10, recipient_id=taker)) for payer, taker in pairs]
        self.record(parts, lambda: self.world.wallets.transfer_many([sent for _, sent in parts]))

    def transaction(self) -> None:
        parts = [("credit", self.world.credit_request(user_id, 10)) for user_id in ("ana", "ben")]

        def send() -> list[Any]:
            with Session(self.world.database.engine) as session, session.begin():
                return [self.world.send(sent, session=session) for _, sent in parts]

        self.record(parts, send)


def answer_or_refusal(world: World, sent: Any) -> Any:
    try:
        return world.send(sent)
    except OptimisticLockError:
        raise
    except WalletError as refusal:
        return refusal


def told_of(operation: str, answer: Any) -> Fields:
    if isinstance(answer, WalletError):
        return {"code": answer.code, "details": answer.details}
    names = {"user_balance": ("available", "escrow", "version"), "model_balance": ("earned", "version")}.get(operation)
    return {name: value for name, value in vars(answer).items() if names is None or name in names}


@pytest.mark.parametrize("seed", range(3))
def test_what_the_module_answers_to_threads_is_linearizable(world: World, seed: int) -> None:
    items: list[tuple[str, Any]] = []
    workers = [Recorder(world, f"w{number}", 100 * seed + number, items) for number in range(6)]
    for user_id in ("ana", "ben"):
        workers[0].record([("credit", sent := world.credit_request(user_id, 100))], lambda: [world.send(sent)])
    barrier = threading.Barrier(len(workers))
    with ThreadPoolExecutor(len(workers)) as threads:
        for running in [threads.submit(worker.run, barrier) for worker in workers]:
            running.result()
    for name in ("ana", "ben"):
        workers[0].read(name)
    calls = [call for worker in workers for call in worker.calls]
    assert explain(calls) is None
    # The very same answers are refused where one of them is in the wrong place.
    last = calls.index(workers[0].calls[-1])
    calls[last] = replace(calls[last], invoked=0.0, returned=0.1)
    assert explain(calls) is not None
