"""A batch gives exactly what one call per item in its order would have given: answers, rows, events."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from sqlalchemy.orm import Session

from points_platform.core import Base, Database, InvalidAuthorizationError, InvalidRequestError, WalletError
from points_platform.queue import QueueAuthorizer
from points_platform.wallets import WalletConfig
from points_platform.wallets.verify import verify
from support.databases import PostgreSQLDatabases, SQLiteDatabases
from support.recount import recount
from support.world import World

MAX_POINTS = 2**53 - 1
FORTUNE = MAX_POINTS - 60
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
UNKNOWN = "01890a5d-ac96-774b-bcce-b302099a8057"
SINGLY = {"credit": "credit_user", "hold": "hold_in_escrow", "settle": "settle_escrow", "refund": "refund_escrow"}

# What a request may say that is not so, or a repetition differently.
OTHERWISE: dict[str, Any] = {
    "request_id": "request-2",
    "reason": "another_reason",
    "metadata": {"n": True},  # in Python equal to {"n": 1}, as JSON not
    "currency": "gems",
    "amount": 61,
    "user_id": "ben",
    "queue_item_id": "queue-3",
    "escrow_id": UNKNOWN,
    "model_id": "sol",
    "feature_type": "dance",
}
FORGER = QueueAuthorizer("another secret of at least 32 bytes, of nobody's")
Item = tuple[Any, ...]
Spec = dict[str, Any]

specs = st.fixed_dictionaries(
    {
        "what": st.sampled_from(["new"] * 6 + ["again"] * 3 + ["of another type"]),
        "number": st.integers(0, 11),
        "otherwise": st.sampled_from([None] * 4 + list(OTHERWISE)),
        "user_id": st.sampled_from(["ana", "ana", "ben", "eva", "zoe"]),
        "amount": st.integers(1, 60) | st.sampled_from([1, 60, 61, MAX_POINTS - 60, MAX_POINTS]),
        "currency": st.sampled_from([None, None, "points", "gems"]),
        "idempotency_key": st.sampled_from([None] * 5 + ["a", "b"]),
        "metadata": st.sampled_from([None, None, {"n": 1}, {"ü\u0000": ["\"'\\", 1.5e300, None]}]),
        "model_id": st.sampled_from(["luna", "luna", "sol", "full"]),
        "token": st.sampled_from(["right"] * 6 + ["of what is so", "missing", "forged", "for the other end"]),
    }
)
steps = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(list(SINGLY)),
        "items": st.lists(specs, min_size=1, max_size=9),
        "way": st.sampled_from(["own", "own", "joined", "calls"]),
        "atomic": st.booleans(),
    }
)


def spec(**changes: Any) -> Spec:
    usual = {"what": "new", "number": 0, "otherwise": None, "user_id": "ana", "amount": 20, "currency": None}
    return usual | {"idempotency_key": None, "metadata": None, "model_id": "luna", "token": "right"} | changes


AGAIN = [spec(), spec(what="again"), spec(what="again", otherwise="amount"), spec(what="of another type")]
UNTRUE = [spec(number=1, otherwise=name) for name in ("escrow_id", "user_id", "amount", "queue_item_id")]
UNSIGNED = [spec(number=1, token=token) for token in ("of what is so", "missing", "forged", "for the other end")]
WHAT_CHANCE_MAY_LEAVE_OUT = {
    "credit": [*AGAIN, spec(user_id="eva", amount=MAX_POINTS), spec(user_id="zoe")],
    "hold": [*AGAIN, *[spec(amount=60)] * 4, spec(user_id="zoe", amount=1)],
    # The fourth hold is of 61 points, and the model "full" can earn but 60.
    "settle": [*AGAIN, spec(), *UNTRUE, *UNSIGNED, spec(number=3, model_id="full"), spec(number=2, model_id="full")],
    "refund": [spec(number=4), *AGAIN[1:], spec(number=1), spec(number=1), *UNTRUE, *UNSIGNED, spec(number=3)],
}


@dataclass
class Side:
    """One of two platforms that are asked the same; what is compared is told without its ids and times."""

    world: World
    holds: list[tuple[str, Any]] = field(default_factory=list)
    sent: dict[str, list[Any]] = field(default_factory=lambda: {kind: [] for kind in SINGLY})
    ids: dict[str, str] = field(default_factory=dict)

    def an_evening_begins(self) -> None:
        """Points in two currencies, holds of three users, and wallets with nearly all the points that fit."""
        self.world.credit("eva", MAX_POINTS)
        rich = self.hold("eva", FORTUNE)
        self.world.settle(rich, FORTUNE, user_id="eva", model_id="full")
        self.world.credit("eva", FORTUNE)
        self.holds.pop()
        for user, amount, currency in (("ana", 150, None), ("ana", 70, "gems"), ("ben", 90, None)):
            self.world.credit(user, amount, currency=currency)
        for user, amount, currency in (("ana", 30, None), ("ana", 9, "gems"), ("ben", 60, None), ("eva", 61, None)):
            self.hold(user, amount, currency=currency)
        self.hold("ana", 60)

    def hold(self, user_id: str, amount: int, **options: Any) -> str:
        request = self.world.hold_request(user_id, amount, **options)
        held = self.world.wallets.hold_in_escrow(request)
        self.holds.append((held.escrow_id, request))
        return held.escrow_id

    # ── what is asked ──

    def items(self, kind: str, specs: Sequence[Spec]) -> list[Item]:
        return [self.item(kind, spec) for spec in specs]

    def item(self, kind: str, spec: Spec) -> Item:
        """What one call takes: a request, with an authorization where it ends a hold."""
        ends = kind in {"settle", "refund"}
        if spec["what"] == "of another type":
            wrong = [None, 7, "hold", {}, (), self.world.partial_settle_request(UNKNOWN)][spec["number"] % 6]
            return (wrong, None) if ends else (wrong,)
        honest = self.honest(kind, spec)
        name = spec["otherwise"]
        request = replace(honest, **{name: OTHERWISE[name]}) if hasattr(honest, str(name)) else honest
        self.sent[kind].append(request)
        return (request, self.token(kind, spec["token"], request, honest)) if ends else (request,)

    def honest(self, kind: str, spec: Spec) -> Any:
        if spec["what"] == "again" and self.sent[kind]:
            return self.sent[kind][-1 - spec["number"] % len(self.sent[kind])]
        options = {name: spec[name] for name in ("idempotency_key", "metadata", "currency")}
        if kind in {"credit", "hold"}:
            make: Any = getattr(self.world, f"{kind}_request")
            return make(spec["user_id"], spec["amount"], **options)
        escrow_id, hold = self.holds[spec["number"] % len(self.holds)]
        options |= {"user_id": hold.user_id, "queue_item_id": hold.queue_item_id}
        options["currency"] = spec["currency"] and (hold.currency or "points")
        if kind == "settle":
            return self.world.settle_request(escrow_id, hold.amount, model_id=spec["model_id"], **options)
        return self.world.refund_request(escrow_id, hold.amount, **options)

    def token(self, kind: str, which: str, request: Any, honest: Any) -> Any:
        if which == "missing":
            return None
        if which == "forged":
            return World(self.world.database, authorizer=FORGER).authorize(request)
        if which == "for the other end":
            other = self.world.refund_request if kind == "settle" else self.world.settle_request
            return self.world.authorize(other(request.escrow_id, request.amount, user_id=request.user_id))
        return self.world.authorize(honest if which == "of what is so" else request)

    # ── what is answered ──

    def one_by_one(self, kind: str, items: list[Item]) -> list[Any]:
        call = getattr(self.world.wallets, SINGLY[kind])
        return [self.answer(partial(call, *item)) for item in items]

    def in_a_batch(self, kind: str, items: list[Item], way: str, *, atomic: bool = False) -> Any:
        call = getattr(self.world.wallets, f"{kind}_many")
        given = [item if len(item) > 1 else item[0] for item in items]
        if way != "joined":
            return self.answer(partial(call, given, atomic=atomic))
        with Session(self.world.database.engine) as session, session.begin():
            return self.answer(partial(call, given, atomic=atomic, session=session))

    def answer(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except WalletError as refusal:
            return refusal

    def learn(self, kind: str, items: list[Item], answers: list[Any]) -> None:
        """Remember what was held, so that it can be ended."""
        for (request, *_), answer in zip(items, answers, strict=True):
            if kind == "hold" and not isinstance(answer, WalletError) and not answer.replayed:
                self.holds.append((answer.escrow_id, request))

    # ── what is compared ──

    def told(self, answer: Any) -> Any:
        if not isinstance(answer, WalletError):
            return type(answer).__name__, self.plain(vars(answer))
        return type(answer).__name__, answer.code, self.plain(answer.details), self.plain(str(answer))

    def state(self) -> Any:
        """All rows of all tables and all events. The ids of transactions and holds sort in the order of making."""
        rows = self.world.snapshot()
        names = {table.name: [column.name for column in table.columns] for table in Base.metadata.sorted_tables}
        tables = {t: [self.plain(dict(zip(names[t], row, strict=True))) for row in rows[t]] for t in rows}
        return tables, [(type(event).__name__, self.plain(vars(event))) for event in self.world.events]

    def plain(self, value: Any) -> Any:
        """Ids by their order of appearance, no times; everything else with its type."""
        if isinstance(value, dict):
            return {k: v and "a time" if k.endswith("_at") else self.plain(v) for k, v in value.items()}
        if isinstance(value, datetime):
            return "a time"
        return UUID.sub(lambda id_: self.ids.setdefault(id_[0], f"id-{len(self.ids)}"), repr(value))


@contextmanager
def two_sides(databases: SQLiteDatabases | PostgreSQLDatabases, single_statement: bool) -> Iterator[tuple[Side, Side]]:
    with ExitStack() as resources:
        sides = []
        for option in (True, single_statement):
            url = resources.enter_context(databases.fresh())
            database = resources.enter_context(Database(url, single_statement=option))
            sides.append(Side(World(database, config=WalletConfig(retry_backoff_ms=0))))
            sides[-1].an_evening_begins()
        yield sides[0], sides[1]


def carry_out(step: dict[str, Any], batched: Side, single: Side) -> Counter[str]:
    """Ask both sides the same, one of them in a batch; returns what the batch answered."""
    kind, way = step["kind"], step["way"]
    items, twins = (side.items(kind, step["items"]) for side in (batched, single))
    expected = single.one_by_one(kind, twins)
    refused = any(isinstance(answer, WalletError) for answer in expected)
    if way == "calls":
        answers = batched.one_by_one(kind, items)
    else:
        if refused:
            assert_refused_whole(kind, way, items, batched, single, expected)
        answers = batched.in_a_batch(kind, items, way, atomic=step["atomic"] and not refused)
    assert isinstance(answers, list), answers
    assert [batched.told(answer) for answer in answers] == [single.told(answer) for answer in expected]
    batched.learn(kind, items, answers)
    single.learn(kind, twins, expected)
    return Counter() if way == "calls" else Counter(f"{kind} {outcome(answer)}" for answer in answers)


def outcome(answer: Any) -> str:
    return answer.code if isinstance(answer, WalletError) else "replayed" if answer.replayed else "done"


def assert_refused_whole(
    kind: str, way: str, items: list[Item], batched: Side, single: Side, expected: list[Any]
) -> None:
    """All or nothing: the first refusal is named, though what needs no look at the database is refused before."""
    before = batched.world.snapshot(), list(batched.world.events)
    refusal = batched.in_a_batch(kind, items, way, atomic=True)
    assert isinstance(refusal, WalletError), refusal
    assert (batched.world.snapshot(), batched.world.events) == before
    refusals = [place for place, answer in enumerate(expected) if isinstance(answer, WalletError)]
    unseen = [
        place for place in refusals if isinstance(expected[place], InvalidRequestError | InvalidAuthorizationError)
    ]
    first = (unseen or refusals)[0]
    assert refusal.details.pop("index") == first
    assert batched.told(refusal) == single.told(expected[first])


# Each operation must have met these in batches, or nothing has been shown.
BEGIN = {"done", "replayed", "invalid_request", "idempotency_conflict"}
END = BEGIN | {"invalid_authorization", "escrow_not_found", "escrow_already_processed", "escrow_mismatch"}
TO_BE_MET = {
    *(f"credit {met}" for met in BEGIN | {"balance_limit"}),
    *(f"hold {met}" for met in BEGIN | {"insufficient_balance"}),
    *(f"settle {met}" for met in END | {"balance_limit"}),
    *(f"refund {met}" for met in END),
}


@pytest.mark.parametrize(
    ("engine", "single_statement", "examples"),
    [("sqlite", True, 60), ("postgresql", True, 12), ("postgresql", False, 12)],
    ids=["sqlite", "postgresql", "postgresql-stepwise"],
)
def test_a_batch_gives_what_one_call_after_the_other_gives(
    request: pytest.FixtureRequest, engine: str, single_statement: bool, examples: int
) -> None:
    databases = request.getfixturevalue(f"{engine}_databases")
    met: Counter[str] = Counter()

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @example([{"kind": k, "items": i, "way": "own", "atomic": False} for k, i in WHAT_CHANCE_MAY_LEAVE_OUT.items()])
    @given(st.lists(steps, min_size=1, max_size=8))
    def compare(program: list[dict[str, Any]]) -> None:
        with two_sides(databases, single_statement) as (batched, single):
            for step in program:
                met.update(carry_out(step, batched, single))
                assert batched.state() == single.state()
            recount(batched.world.database)
            assert list(verify(batched.world.database)) == []

    compare()
    assert set(met) >= TO_BE_MET, f"never met: {TO_BE_MET - set(met)}"
