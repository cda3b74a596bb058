"""Operations carried out as one statement: the same answers and rows as the other way, in fewer round trips."""

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from freezegun import freeze_time
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from psycopg import sql
from sqlalchemy import event, make_url, select
from sqlalchemy.orm import Session

from points_platform.core import (
    BalanceLimitError,
    Base,
    Database,
    DepositConflictError,
    EscrowAlreadyProcessedError,
    EscrowNotFoundError,
    IdempotencyConflictError,
    InsufficientBalanceError,
    OptimisticLockError,
    StorageUnavailableError,
    WalletError,
)
from points_platform.core.statement import Statement
from points_platform.core.values import now
from points_platform.ledger import ISSUER, Account, Bucket, Movement, TransactionDraft
from points_platform.ledger.accounts import WALLETS, available
from points_platform.wallets import DepositRequest, WalletConfig, WalletService
from points_platform.wallets import at_once as single
from points_platform.wallets.models import DEPOSIT_CLAIMS, ESCROW_ITEMS
from points_platform.wallets.needs import Enough, Guard, Held, Making, Need, Room, Unclaimed
from points_platform.wallets.operation import Decision, Occasion
from points_platform.wallets.operations import BY_REQUEST
from points_platform.wallets.rows import Begun
from points_platform.wallets.verify import verify
from support.answers import caught, tally
from support.by_operation import assert_complete
from support.connections import administrator
from support.databases import PostgreSQLDatabases
from support.recount import MODEL, MOVES, recount
from support.reference import STATUS
from support.workers import OPERATIONS, one_of_each, ready
from support.world import World, at_once, elsewhere

MAX_POINTS = 2**53 - 1
NOON = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
ENDS = ("settle", "refund", "partial_settle")
BEGINS = ("credit", "hold", "spend", "transfer", "deposit", "open")
OTHERS = ("spend", "transfer", "transfer", "deposit", "deposit", "open")
ALONE, READ = "one statement of the driver's", "a read"
CARRIED_OUT, REFUSED = [ALONE], [ALONE, READ]
CLAIMED = [*REFUSED, READ]  # a claim that is there tells which transaction to read
ONE_TRY = WalletConfig(max_retry_attempts=0)


@pytest.fixture
def here(postgresql_url: str) -> Iterator[World]:
    """A platform whose operations have one try, and wait for a row lock as long as it takes."""
    with Database(postgresql_url, lock_timeout_ms=60_000, clock=now) as database:
        world = World(database, config=ONE_TRY)
        world.wallets.get_user_balance("nobody")  # the first read also checks the schema
        yield world
        recount(database)


def retrying(world: World) -> WalletService:
    """A service of the same world that tries again."""
    return world.service(config=WalletConfig(retry_backoff_ms=0))


@contextmanager
def sent(world: World) -> Iterator[list[str]]:
    """What the world sends to the server: each single statement, and the texts that go through SQLAlchemy."""
    seen: list[str] = []

    def through_sqlalchemy(connection: Any, cursor: Any, statement: str, *others: Any) -> None:
        seen.append(READ if statement.startswith("SELECT") and "FOR UPDATE" not in statement else statement)

    with before_each_statement(lambda: seen.append(ALONE)):
        event.listen(world.database.engine, "before_cursor_execute", through_sqlalchemy)
        try:
            yield seen
        finally:
            event.remove(world.database.engine, "before_cursor_execute", through_sqlalchemy)


@contextmanager
def before_each_statement(act: Callable[[], object]) -> Iterator[None]:
    execute = Statement.execute

    def watched(*given: Any) -> Any:
        act()
        return execute(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Statement, "execute", watched)
        yield


@contextmanager
def meanwhile(act: Callable[[], object]) -> Iterator[None]:
    """Act once, when the decision is made and the statement not yet sent."""
    left = [act]
    with before_each_statement(lambda: left.pop()() if left else None):
        yield
    assert not left, "no statement was sent"


@contextmanager
def before_the_read(world: World, act: Callable[[], object]) -> Iterator[None]:
    """Act once, when the statement has found a need unmet and nothing has been read yet."""
    left = [act]

    def watch(*given: Any) -> None:
        if left:
            left.pop()()

    event.listen(world.database.engine, "before_cursor_execute", watch)
    try:
        yield
    finally:
        event.remove(world.database.engine, "before_cursor_execute", watch)
    assert not left, "nothing was read"


def while_it_waits(call: Callable[[], Any], session: Session, then: Callable[[], object]) -> Any:
    """Start the call in a thread; when it waits for the session's lock, do what lets it go on. Errors are answers."""
    holder = session.connection().connection.dbapi_connection.info.backend_pid  # type: ignore[union-attr]
    with administrator(session.get_bind().url) as other, ThreadPoolExecutor(1) as threads:  # type: ignore[union-attr]
        try:
            answer = threads.submit(call)
            deadline = time.monotonic() + 30
            blocked = "SELECT FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))"
            while other.execute(blocked, [holder]).fetchone() is None:
                assert not answer.done(), f"it did not wait: {answer.exception() or answer.result()}"
                assert time.monotonic() < deadline, "it never waited"
        finally:
            then()
        return answer.exception() or answer.result()


# ── what a statement is composed of ──


def statements_of(world: World, *requests: Any) -> list[Statement]:
    """The statements that carry the requests out."""
    seen: list[Statement] = []
    execute = Statement.execute

    def watched(statement: Statement, *given: Any) -> Any:
        seen.append(statement)
        return execute(statement, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Statement, "execute", watched)
        for request in requests:
            assert world.send(request).replayed is False
    assert len(seen) == len(requests)
    return seen


def test_a_decision_is_made_of_the_request_alone(here: World) -> None:
    """So it can be made before anything is read, and once for all attempts."""
    for operation, request in one_of_each(here):
        occasion = Occasion(made_id="made-1", currency="points")
        decide = BY_REQUEST[type(request)].decide
        with before_each_statement(lambda: pytest.fail("a statement was sent")):
            assert decide(request, occasion) == decide(replace(request), occasion), operation


def test_there_is_one_statement_for_each_shape_and_its_name_is_short(here: World) -> None:
    """The server cuts names of prepared statements at 63 bytes, and would take two for one."""
    here.credit("rich", 10_000)
    names: dict[str, Statement] = {}
    for operation in OPERATIONS:
        requests = [ready(here, operation, f"user-{number} of {operation}") for number in range(2)]
        changes: dict[str, Any] = {"metadata": {"n": 1}, "request_id": "other", "reason": "other"}
        if operation in ("credit", "hold", "spend", "transfer", "deposit"):
            changes |= {"user_id": "rich", "amount": 7}
        requests[1] = replace(requests[1], **changes)
        one, other = statements_of(here, *requests)
        assert one is other, f"{operation}: values are no part of a shape"
        assert one.name.startswith(operation)
        assert len(one.name.encode()) <= 63
        names[one.name] = one
    assert len(names) == len({statement.sql for statement in names.values()}) == len(OPERATIONS)
    user, model = statements_of(here, here.open_request("user:zoe"), here.open_request("model:sol"))
    assert (user.sql, user.name) != (model.sql, model.name)
    assert len({user.name, model.name}) == 2


def test_wallets_are_locked_by_id_whichever_way_the_points_go(here: World) -> None:
    for user in ("ana", "ben"):
        here.credit(user)
    there, back = statements_of(
        here, here.transfer_request("ana", recipient_id="ben"), here.transfer_request("ben", recipient_id="ana")
    )
    assert there.name != back.name, "the one takes first and the other gives first: two shapes, one order"
    assert [here.wallets.get_user_balance(user).available for user in ("ana", "ben")] == [100, 100]


def drafted(**changes: Any) -> TransactionDraft:
    header: dict[str, Any] = {
        "transaction_id": "transaction-1",
        "owner_id": "user:ana",
        "operation": "credit",
        "idempotency_key": "key",
        "request_id": "request",
        "reason": "top_up",
        "currency": "points",
    }
    return TransactionDraft(**header | changes)


CLAIM: dict[str, Any] = {"table": DEPOSIT_CLAIMS, "values": {"amount": 5}, "at": "created_at"}
PAYMENT = Unclaimed("bank", "payment-1", "user:ana", 5, "points")
UNGUARDED: dict[str, tuple[Need, tuple[Begun, ...]]] = {
    "another's points": (Enough(available("ben"), 5), ()),
    "another's room": (Room(available("ben"), 5), ()),
    "points of the platform": (Enough(ISSUER, 5), ()),
    "a hold that does not change": (Held("escrow-1", "user:ana", 5, "queue-1", ""), ()),
    "a claim that is not made": (PAYMENT, ()),
    "another claim": (
        PAYMENT,
        (Begun(**CLAIM, key=("bank", "payment-2"), claimed=True),),
    ),
    "a claim that conflicts with nobody's": (
        PAYMENT,
        (Begun(**CLAIM, key=("bank", "payment-1")),),
    ),
}


@pytest.mark.parametrize(("need", "rows"), UNGUARDED.values(), ids=UNGUARDED)
def test_a_need_that_guards_nothing_that_is_written_is_an_error_and_nothing_is_sent(
    need: Need, rows: tuple[Begun, ...]
) -> None:
    """It would be enforced by nobody."""
    moves = (Movement(ISSUER, available("ana"), 5),)
    decision = Decision(needs=(need,), moves=moves, rows=rows)

    def execute(*given: Any) -> Any:
        pytest.fail("it was sent")

    with pytest.raises(ValueError, match="guard"):
        single.carry_out(execute, decision, drafted(moves=moves))


@dataclass
class Seen:
    """A state as needs are asked on it: one wallet's balances, one row."""

    wallet: dict[Bucket, int] = field(default_factory=dict)
    found: dict[str, Any] | None = None
    currency: str = "points"

    def balances(self, owner_id: str) -> dict[Bucket, int]:
        return self.wallet

    def row(self, table: Any, key: Any) -> dict[str, Any] | None:
        return self.found


class Rows:
    """Rows of any values: tables like the module's, without their CHECKs, in a transaction that is never committed."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        connection.execute("BEGIN")
        for name in ("user_wallets", "model_wallets", "escrow_items"):
            connection.execute(f"CREATE TEMP TABLE any_{name} (LIKE {name} INCLUDING DEFAULTS)")

    def holds(self, guard: Guard, table: str, row: dict[str, Any]) -> bool:
        """Whether the guard holds on the row, by PostgreSQL's own judgement."""
        insert = sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
            sql.Identifier(f"any_{table}"),
            sql.SQL(", ").join(map(sql.Identifier, row)),
            sql.SQL(", ").join(map(sql.Placeholder, row)),
        )
        self._connection.execute(f"DELETE FROM any_{table}")
        self._connection.execute(insert, row)
        condition = guard.condition.format(row="r", **{name: f"%({name})s" for name in guard.values})
        found = self._connection.execute(
            f"SELECT FROM any_{table} r WHERE {condition}",
            guard.values,
        ).fetchone()
        return found is not None


@pytest.fixture
def rows(postgresql_url: str) -> Iterator[Rows]:
    with administrator(postgresql_url) as connection:
        yield Rows(connection)
        connection.execute("ROLLBACK")


balances = st.sampled_from([0, 1, 29, 30, 31, MAX_POINTS - 31, MAX_POINTS - 30, MAX_POINTS - 1, MAX_POINTS])
points = balances.filter(bool)
many = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    database=None,
)


@many
@given(data=st.data(), kind=st.sampled_from(["user", "model"]), amount=points, private=st.booleans())
def test_what_a_wallet_must_have_is_the_same_in_a_refusal_and_in_a_guard(
    rows: Rows, data: st.DataObject, kind: str, amount: int, private: bool
) -> None:
    buckets = WALLETS[kind]
    there = {bucket: data.draw(balances) for bucket in buckets}
    row = {
        **{bucket.value: amount for bucket, amount in there.items()},
        "owner_id": f"{kind}:luna",
        "currency": "points",
        "version": 1,
        "created_at": NOON,
        "updated_at": NOON,
    }
    account = Account(f"{kind}:luna", data.draw(st.sampled_from(buckets)))
    for need in (Enough(account, amount), Room(account, amount, private=private)):
        guard = need.guard()
        assert isinstance(guard, Guard)
        assert guard.on == account.account_id
        refusal = need.refusal(Seen(wallet=there))
        assert rows.holds(guard, f"{kind}_wallets", row) is (refusal is None), (need, there)
        assert need.answered_by(Seen(wallet=there)) is None
        if isinstance(refusal, InsufficientBalanceError):
            assert refusal.details == {"required": amount, "available": there[account.bucket], "currency": "points"}
        elif refusal is not None:
            told = {} if private else {"balance": sum(there.values())}
            assert refusal.details == {"limit": MAX_POINTS, "amount": amount, "currency": "points", **told}
    # What is not there has nothing, and room for anything.
    assert Enough(account, amount).refusal(Seen()) is not None
    assert Room(account, amount).refusal(Seen()) is None


words = st.sampled_from(["queue-1", "QUEUE-1", "queue-2", "", " ", "é", "e\u0301", "'; --", "{row}", "%s"])


@many
@given(
    amounts=st.tuples(points, points) | points.map(lambda each: (each, each)),
    queue_items=st.tuples(words, words) | words.map(lambda each: (each, each)),
    currencies=st.tuples(st.sampled_from(["points", "gems", ""]), st.sampled_from(["points", "gems"])),
    status=st.sampled_from(["held", "held", "held", "settled", "refunded", "partially_settled", "disputed", "HELD"]),
)
def test_what_a_hold_must_be_is_the_same_in_a_refusal_and_in_a_guard(
    rows: Rows, amounts: tuple[int, int], queue_items: tuple[str, str], currencies: tuple[str, str], status: str
) -> None:
    need = Held("escrow-1", "user:ana", amounts[0], queue_items[0] or "queue-1", currencies[0])
    item = {
        "escrow_id": "escrow-1",
        "owner_id": "user:ana",
        "amount": amounts[1],
        "queue_item_id": queue_items[1],
        "currency": currencies[1],
        "status": status,
        "feature_type": "song",
        "reason": "performance_request",
        "settled_amount": 0,
        "refunded_amount": 0,
        "created_at": NOON,
    }
    guard, refusal = need.guard(), need.refusal(Seen(found=item))
    assert isinstance(guard, Guard)
    assert guard.on == (ESCROW_ITEMS, ("escrow-1", "user:ana"))
    assert rows.holds(guard, "escrow_items", item) is (refusal is None), (need, item)
    if status != "held":
        assert isinstance(refusal, EscrowAlreadyProcessedError)
        assert refusal.details == {"escrow_id": "escrow-1", "status": status}
    elif refusal is not None:
        asked = {"amount": need.amount, "queue_item_id": need.queue_item_id, "currency": need.currency}
        first = next(name for name, value in asked.items() if value not in ("", item[name]))
        assert refusal.details == {"field": first, "expected": item[first], "given": asked[first]}
    assert isinstance(need.refusal(Seen()), EscrowNotFoundError)


@many
@given(
    owners=st.tuples(*[st.sampled_from(["user:ana", "user:ben"])] * 2),
    amounts=st.tuples(points, points) | points.map(lambda each: (each, each)),
    currencies=st.tuples(*[st.sampled_from(["points", "gems"])] * 2),
)
def test_a_claim_that_is_there_is_refused_or_answered_and_one_that_is_not_is_made(
    owners: tuple[str, str], amounts: tuple[int, int], currencies: tuple[str, str]
) -> None:
    need = Unclaimed("bank", "payment-1", owners[0], amounts[0], currencies[0])
    assert need.guard() == Making((DEPOSIT_CLAIMS, ("bank", "payment-1"))), "which fails wherever there is a claim"
    assert (need.refusal(Seen()), need.answered_by(Seen())) == (None, None)
    claim = {"owner_id": owners[1], "amount": amounts[1], "currency": currencies[1], "transaction_id": "t-1"}
    there = Seen(found=claim)
    pairs = {"user_id": owners, "amount": amounts, "currency": currencies}
    differing = tuple(name for name, (ours, theirs) in pairs.items() if ours != theirs)
    refusal = need.refusal(there)
    if differing:
        assert isinstance(refusal, DepositConflictError)
        assert refusal.details == {"source": "bank", "reference": "payment-1", "fields": differing}
    else:
        assert (refusal, need.answered_by(there)) == (None, "t-1")


# ── both ways, the same ──


@dataclass
class Way:
    """A world of its own that has one way to carry things out, and plain names for the ids that it has made."""

    world: World
    uncached: WalletService
    names: dict[str, str] = field(default_factory=dict)

    def send(self, request: Any, *, cached: bool, **options: Any) -> Any:
        """The answer, with plain names for what the module has made."""
        answer = caught(lambda: self.world.send(request, None if cached else self.uncached, **options))
        if not isinstance(answer, WalletError):
            for made in ("transaction_id", "escrow_id"):
                if hasattr(answer, made):
                    self.names.setdefault(getattr(answer, made), f"{made} {len(self.names)}")
        return self.plainly(
            answer.details | {"error": answer.code} if isinstance(answer, WalletError) else asdict(answer)
        )

    def id_of(self, name: str) -> str:
        return next(id_ for id_, known in self.names.items() if known == name)

    def plainly(self, values: dict[str, Any]) -> dict[str, Any]:
        plain = {
            name: self.names.get(value, value) if isinstance(value, str) else value for name, value in values.items()
        }
        if plain.get("authorization_id"):
            plain["authorization_id"] = "one"
        return plain

    def rows(self) -> dict[str, list[Any]]:
        with self.world.database.engine.connect() as connection:
            return {
                table.name: sorted(
                    (self.plainly(dict(row._mapping)) for row in connection.execute(select(table))), key=repr
                )
                for table in Base.metadata.sorted_tables
            }

    def events(self) -> list[Any]:
        return [self.plainly(asdict(event)) for event in self.world.events]


@contextmanager
def both_ways(*urls: str) -> Iterator[tuple[Way, Way]]:
    """One statement at a time, and the other way; neither may ever need a second try."""
    with ExitStack() as stack:
        databases = (Database(url, single_statement=not n, clock=now) for n, url in enumerate(urls))
        worlds = [World(stack.enter_context(database), config=ONE_TRY) for database in databases]
        uncached = WalletConfig(max_retry_attempts=0, idempotency_cache_size=0)
        alone, other = (Way(world, world.service(config=uncached)) for world in worlds)
        for way in (alone, other):
            way.world.wallets.get_user_balance("nobody")
        yield alone, other
        assert alone.rows() == other.rows()
        assert alone.events() == other.events()
        for world in worlds:
            recount(world.database)
            # The clock has gone back.
            assert [each for each in verify(world.database) if each.kind != "from_the_future"] == []


class Twins:
    """Requests sent both ways, whose answers are compared; ids in them are plain names until they are sent."""

    def __init__(self, alone: Way, other: Way) -> None:
        self.ways = (alone, other)
        self.sent: list[Any] = []
        self.holds: list[tuple[str, Any]] = []

    def send(self, request: Any, *, cached: bool = False, signed: Any = None) -> dict[str, Any]:
        self.sent.append(request)
        answers = []
        for way in self.ways:
            mine = self.with_ids(way, request)
            options = {} if signed is None else {"authorization": way.world.authorize(self.with_ids(way, signed))}
            with sent(way.world) as round_trips:
                answers.append(way.send(mine, cached=cached, **options))
            if way is self.ways[0]:
                seen = round_trips
        assert answers[0] == answers[1]
        self.check_round_trips(answers[0], seen, cached)
        if "escrow_balance" in answers[0] and not answers[0]["replayed"]:
            self.holds.append((answers[0]["escrow_id"], request))
        answer: dict[str, Any] = answers[0]
        return answer

    def with_ids(self, way: Way, request: Any) -> Any:
        escrow_id = getattr(request, "escrow_id", "")
        return replace(request, escrow_id=way.id_of(escrow_id)) if escrow_id in way.names.values() else request

    def check_round_trips(self, answer: dict[str, Any], seen: list[str], cached: bool) -> None:
        if "error" not in answer:
            expected = REFUSED if answer["replayed"] else CARRIED_OUT
        else:
            expected = [] if answer["error"] == "invalid_authorization" else REFUSED
        ways = [expected, CLAIMED] if expected == REFUSED and self.is_claimed() else [expected]
        assert seen in ways or (cached and expected == REFUSED and not seen), answer

    def is_claimed(self) -> bool:
        return isinstance(self.sent[-1], DepositRequest)


steps = st.fixed_dictionaries(
    {
        "what": st.sampled_from(["credit", "hold", "hold", *ENDS, *ENDS, *OTHERS, "repeat", "mutate"]),
        "user_id": st.sampled_from(["ana", "ana", "ben", "eva"]),
        "model_id": st.sampled_from(["luna", "sol"]),
        "amount": st.integers(1, 60) | st.sampled_from([11, 40, 41, 50, MAX_POINTS - 40, MAX_POINTS]),
        "currency": st.sampled_from([None, None, "points", "gems", "gold"]),
        "key": st.sampled_from([None, None, None, "a", "b"]),
        "wrong": st.sampled_from(["", "", "", "", "user_id", "queue_item_id", "amount", "currency", "escrow_id"]),
        "lied": st.booleans(),
        "metadata": st.sampled_from([None, {"nul": "\0", "n": 1}]),
        "place": st.integers(0, 40),
        "minutes": st.integers(-90, 90),
        "cached": st.booleans(),
    }
)
UNTRUE = {"user_id": "zoe", "queue_item_id": "queue-3", "currency": "gold", "escrow_id": "no uuid"}
CHANGED = {
    "reason": "another_reason",
    "metadata": {"nul": "\0", "n": True},
    "currency": "gold",
    "amount": 61,
    "settle_amount": 61,
    "model_id": "mira",
    "queue_item_id": "queue-2",
    "request_id": "request-2",
    "order_id": "order-2",
    "recipient_id": "dora",
    "source": "card",
    "reference": "payment-9",
    "owner": "model:sol",
}


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
@given(asked=st.lists(steps, min_size=10, max_size=40))
def test_one_statement_answers_and_leaves_what_the_other_way_does(
    postgresql_databases: PostgreSQLDatabases, asked: list[dict[str, Any]]
) -> None:
    with ExitStack() as stack:
        urls = [stack.enter_context(postgresql_databases.fresh()) for _ in range(2)]
        clock = stack.enter_context(freeze_time(NOON))
        twins = Twins(*stack.enter_context(both_ways(*urls)))
        an_evening_begins(twins)
        for step in asked:
            clock.move_to(NOON + timedelta(minutes=step["minutes"]))
            request = request_of(twins, step)
            lied = step["lied"] and step["wrong"] not in ("", "currency") and hasattr(request, "escrow_id")
            honest = request_of(twins, step | {"wrong": ""}) if lied else None
            twins.send(request, cached=step["cached"], signed=honest)


def an_evening_begins(twins: Twins) -> None:
    """Points in two currencies, and one model with room for fifty points."""
    make = twins.ways[0].world
    for user, amount, currency in (("ana", 500, None), ("ana", 200, "gems"), ("eva", MAX_POINTS - 40, None)):
        twins.send(make.credit_request(user, amount, currency=currency))
    for user, amount, currency in (("eva", MAX_POINTS - 50, None), ("ana", 60, None), ("ana", 30, "gems")):
        twins.send(make.hold_request(user, amount, currency=currency))
    fortune = make.settle_request(twins.holds[0][0], MAX_POINTS - 50, user_id="eva")
    twins.send(fortune)
    twins.send(make.settle_request(twins.holds[1][0], 60))  # does not fit any more


def beginning(make: World, step: dict[str, Any], options: dict[str, Any]) -> Any:
    """A request that ends no hold."""
    what, place = step["what"], step["place"]
    if what == "open":
        return make.open_request(("user:ana", "user:eva", "model:luna", "model:sol")[place % 4], **options)
    takers = ("eva", "ana", "dora") if step["user_id"] == "ben" else ("ben",)
    own = {
        "deposit": {"reference": f"payment-{place % 3}"},
        "spend": {"order_id": step["key"]},
        "transfer": {"recipient_id": takers[place % len(takers)]},
    }
    return getattr(make, f"{what}_request")(step["user_id"], step["amount"], **options, **own.get(what, {}))


def request_of(twins: Twins, step: dict[str, Any]) -> Any:
    make, what, place = twins.ways[0].world, step["what"], step["place"]
    if what in ("repeat", "mutate"):
        request = twins.sent[place % len(twins.sent)]
        names = [name for name in CHANGED if hasattr(request, name)]
        name = names[step["amount"] % len(names)]
        return request if what == "repeat" else replace(request, **{name: CHANGED[name]})
    options = {"idempotency_key": step["key"], "metadata": step["metadata"], "currency": step["currency"]}
    if what not in ENDS:
        return beginning(make, step, options)
    escrow_id, hold = twins.holds[place % len(twins.holds)]
    options |= {"user_id": hold.user_id, "currency": step["currency"] and hold.currency}
    options |= {} if what == "refund" else {"model_id": step["model_id"]}
    amounts = {"amount": hold.amount}
    if what == "partial_settle":
        part = min(step["amount"], hold.amount - 1) or 1
        amounts = {"refund_amount": part, "settle_amount": hold.amount - part or 1}
    if step["wrong"] == "amount":
        amounts[next(iter(amounts))] = step["amount"]
    elif step["wrong"]:
        options[step["wrong"]] = UNTRUE[step["wrong"]]
    escrow_id = options.pop("escrow_id", escrow_id)
    return getattr(make, f"{what}_request")(escrow_id, **amounts, **options)


TEXTS = [
    'it\'s "quoted" `so`',
    "back\\slash \\' \\x41 \\N",
    "100% %s %(user_id)s %% %(x)s",
    "$1 $2 $$ :name ::int ?",
    "'; DROP TABLE user_wallets; --",
    "żółw 🐢 日本 \u00a1",
    "NULL",
    "x" * 128,
    "🐢" * 128,
]


def test_any_text_and_number_is_written_and_answered_as_it_was_given(
    postgresql_databases: PostgreSQLDatabases,
) -> None:
    with ExitStack() as stack:
        urls = [stack.enter_context(postgresql_databases.fresh()) for _ in range(2)]
        stack.enter_context(freeze_time(NOON))
        twins = Twins(*stack.enter_context(both_ways(*urls)))
        for number, text in enumerate(TEXTS):
            everything_about(twins, text, amount=MAX_POINTS if number % 2 else 1)
        rows = twins.ways[0].rows()
        users = {f"user:{text}" for text in TEXTS} | {f"user:{text:.127}{each}" for text in TEXTS for each in "dt"}
        assert {row["owner_id"] for row in rows["user_wallets"]} == users
        models = {f"model:{text:.127}{each}" for text in TEXTS for each in "mo"}
        assert {row["owner_id"] for row in rows["model_wallets"]} == models
        assert {row["queue_item_id"] for row in rows["ledger_transactions"]} == {None, *TEXTS}


def everything_about(twins: Twins, text: str, amount: int) -> None:
    """Each operation once, carried out, with that text in each field that takes one."""
    make = twins.ways[0].world
    names: dict[str, Any] = {
        "user_id": text,
        "request_id": text,
        "metadata": {text: [text, "\0\\u0000", 1.0, None], "nul\0": "\\"},
    }
    here: dict[str, Any] = names | {"queue_item_id": text}
    assert "error" not in twins.send(make.credit_request(amount=amount, idempotency_key=text, **names))
    giver: dict[str, Any] = names | {"user_id": f"{text:.127}d"}
    for request in (
        make.deposit_request(amount=2, source=text, reference=text, **giver),
        make.spend_request(amount=1, order_id=text, **giver),
        make.transfer_request(amount=1, recipient_id=f"{text:.127}t", **giver),
        make.open_request(f"model:{text:.127}o", request_id=text, metadata=names["metadata"]),
    ):
        assert "error" not in twins.send(replace(request, idempotency_key=text))
    for number, end in enumerate(ENDS if amount > 1 else ENDS[:2]):
        part = amount if amount == 1 else amount // 4
        hold = twins.send(make.hold_request(amount=part, idempotency_key=f"{text:.127}{number}", **here))
        model = {} if end == "refund" else {"model_id": f"{text:.127}m"}
        amounts = {"refund_amount": 1, "settle_amount": part - 1} if end == "partial_settle" else {"amount": part}
        options: dict[str, Any] = {**here, **model, **amounts, "idempotency_key": text}
        ended = twins.send(getattr(make, f"{end}_request")(hold["escrow_id"], **options))
        assert "error" not in ended
        if amount == 1 and end == "settle":
            twins.send(make.credit_request(amount=1, idempotency_key=f"{text:.127}+", **names))


# ── how much is sent ──


def test_what_is_carried_out_is_one_statement_and_what_is_not_is_one_read_more(here: World) -> None:
    for operation, request in one_of_each(here):
        with sent(here) as round_trips:
            assert here.send(request).replayed is False
        assert round_trips == CARRIED_OUT, operation
        with sent(here) as round_trips:
            assert here.send(request).replayed is True
        assert round_trips == [], f"{operation}: the cache knows"
        with sent(here) as round_trips:
            assert here.send(request, here.service()).replayed is True
        assert round_trips == REFUSED, operation
        with sent(here) as round_trips, pytest.raises(IdempotencyConflictError):
            here.send(replace(request, reason="another_reason"), here.service())
        assert round_trips == REFUSED, operation


def test_a_refusal_is_the_statement_and_one_read(here: World) -> None:
    here.credit(amount=MAX_POINTS)
    ended = here.hold()
    here.refund(ended.escrow_id)
    held = here.hold()
    here.deposit("ben", 5, reference="paid")
    unknown = "01890a5d-ac96-774b-bcce-b302099a8057"
    for request, error in (
        (here.credit_request(amount=1), "balance_limit"),
        (here.hold_request("nobody"), "insufficient_balance"),
        (here.hold_request(currency="gems"), "insufficient_balance"),
        (here.settle_request(unknown), "escrow_not_found"),
        (here.settle_request(held.escrow_id, user_id="ben"), "escrow_not_found"),
        (here.refund_request(ended.escrow_id), "escrow_already_processed"),
        (here.settle_request(held.escrow_id, 31), "escrow_mismatch"),
        (here.partial_settle_request(held.escrow_id, 29, 2), "escrow_mismatch"),
        (here.partial_settle_request(held.escrow_id, MAX_POINTS, MAX_POINTS), "escrow_mismatch"),
        (here.refund_request(held.escrow_id, queue_item_id="queue-2"), "escrow_mismatch"),
        (here.refund_request(held.escrow_id, currency="gems"), "escrow_mismatch"),
        (here.spend_request("nobody"), "insufficient_balance"),
        (here.spend_request(currency="gems"), "insufficient_balance"),
        (here.transfer_request("nobody", amount=MAX_POINTS, recipient_id="ana"), "insufficient_balance"),
        (here.transfer_request("ben", amount=5, recipient_id="ana"), "balance_limit"),
        (here.deposit_request(amount=1), "balance_limit"),
        (here.deposit_request("ben", amount=6, reference="paid"), "deposit_conflict"),
        (here.deposit_request(amount=5, reference="paid"), "deposit_conflict"),
    ):
        before, events = here.snapshot(), len(here.events)
        with sent(here) as round_trips, pytest.raises(WalletError) as refusal:
            here.send(request)
        expected = CLAIMED if error == "deposit_conflict" else REFUSED
        assert (refusal.value.code, round_trips) == (error, expected), request
        assert (here.snapshot(), len(here.events)) == (before, events)


def test_what_has_no_permission_is_not_sent(here: World) -> None:
    request = ready(here, "settle")
    with sent(here) as round_trips, pytest.raises(WalletError, match="authoriz"):
        here.send(request, authorization=here.authorize(request, amount=29))
    assert round_trips == []


def test_sessions_batches_and_whoever_wants_it_otherwise_go_the_other_way(here: World) -> None:
    with before_each_statement(lambda: pytest.fail("a statement of the driver's was sent")):
        with Session(here.database.engine) as session, session.begin():
            here.send(here.credit_request(), session=session)
        here.wallets.credit_many([here.credit_request()])
        with Database(here.database.engine.url, single_statement=False) as database:
            other = World(database)
            for _, request in one_of_each(other):
                assert other.send(request).replayed is False
    assert here.wallets.get_user_balance("ana").available == 200


def test_sqlite_has_no_single_statement(sqlite_url: str) -> None:
    with Database(sqlite_url) as database, before_each_statement(lambda: pytest.fail("sent past SQLAlchemy")):
        assert database.single_statement is False
        world = World(database)
        for _, request in one_of_each(world):
            assert world.send(request).replayed is False


def test_what_has_been_carried_out_is_announced_and_audited_once(here: World, caplog: pytest.LogCaptureFixture) -> None:
    for operation, request in one_of_each(here):
        before = len(here.events)
        with caplog.at_level(logging.INFO, logger="points_platform.audit"):
            caplog.clear()
            answer = here.send(request)
            again = here.send(request), here.send(request, here.service())
        assert again == (answer, answer), operation
        assert [event.transaction_id for event in here.events[before:]] == [answer.transaction_id], operation
        lines = [record.getMessage() for record in caplog.records if record.name == "points_platform.audit"]
        assert lines == [f"{operation} {answer.transaction_id}"]
        assert here.ledger.transaction(answer.transaction_id) is not None, operation


# ── what is committed between the decision and the statement ──


@pytest.mark.parametrize("operation", ENDS)
def test_a_hold_that_ends_meanwhile_is_already_processed_and_not_touched_again(here: World, operation: str) -> None:
    here.credit(amount=1000)
    here.hold(amount=1000)  # so that the escrow balance alone would let a hold end twice
    request = ready(here, operation)
    with elsewhere(here) as (wallets, _):
        twin = here.refund_request(request.escrow_id)
        after: list[Any] = []

        def end() -> None:
            here.send(twin, wallets)
            after.append(here.snapshot())

        with meanwhile(end):
            answer = caught(partial(here.send, request))
    assert isinstance(answer, EscrowAlreadyProcessedError)
    assert answer.details == {"escrow_id": request.escrow_id, "status": "refunded"}
    assert here.snapshot() == after[0]


def test_points_spent_meanwhile_are_not_spent_again(here: World) -> None:
    here.credit(amount=50)
    with elsewhere(here) as (wallets, _):
        with meanwhile(partial(here.send, here.hold_request(amount=30), wallets)):
            answer = caught(partial(here.hold, amount=30))
        assert isinstance(answer, InsufficientBalanceError)
        assert answer.details == {"required": 30, "available": 20, "currency": "points"}
        with meanwhile(partial(here.send, here.hold_request(amount=10), wallets)):
            assert here.hold(amount=10).new_available_balance == 0


def test_points_that_arrive_before_the_statement_are_there_for_it(here: World) -> None:
    with elsewhere(here) as (wallets, _), meanwhile(partial(here.send, here.credit_request(amount=35), wallets)):
        answer = here.hold(amount=30)
    assert (answer.previous_balance, answer.new_available_balance, answer.replayed) == (35, 5, False)


def test_points_that_arrive_between_the_statement_and_its_read_are_no_refusal(here: World) -> None:
    """Nothing is decided on what the statement has not found: it is tried again, or contention is named so."""
    with elsewhere(here) as (wallets, _):
        arriving = partial(here.send, here.credit_request(amount=35), wallets)
        with before_the_read(here, arriving), pytest.raises(OptimisticLockError) as error:
            here.hold(amount=30)
        assert error.value.details == {"attempts": 1}
        assert here.wallets.get_user_balance("ana").version == 1
        arriving = partial(here.send, here.credit_request("ben", 35), wallets)
        with before_the_read(here, arriving):
            answer = here.send(here.hold_request("ben"), retrying(here))
    assert (answer.previous_balance, answer.new_available_balance) == (35, 5)


def test_a_hold_made_between_the_statement_and_its_read_is_no_refusal(here: World) -> None:
    """Its escrow id is known before it is committed, as when the queue is faster than the caller's commit."""
    here.credit()
    with elsewhere(here) as (wallets, session):
        hold = here.send(here.hold_request(), wallets, session=session)
        request = here.settle_request(hold.escrow_id)
        with pytest.raises(EscrowNotFoundError):
            here.send(request)
        with before_the_read(here, session.commit):
            assert here.send(request, retrying(here)).settled_amount == 30


def near_the_limit(world: World, wallets: WalletService, **options: Any) -> Callable[[], object]:
    """Another user's settlement that leaves room for ten points in the model's wallet."""
    world.credit("ben", MAX_POINTS)
    hold = world.hold("ben", MAX_POINTS - 10)
    settle = world.settle_request(hold.escrow_id, MAX_POINTS - 10, user_id="ben")
    return partial(world.send, settle, wallets, **options)


@pytest.mark.parametrize(("operation", "amount"), [("settle", 30), ("partial_settle", 20)])
@pytest.mark.parametrize("earned_before", [False, True])
def test_a_model_that_reaches_its_limit_meanwhile_undoes_what_was_written_before_it(
    here: World, operation: str, amount: int, earned_before: bool
) -> None:
    request = ready(here, operation)
    with elsewhere(here) as (wallets, _):
        fill = near_the_limit(here, wallets)
        if earned_before:
            fill()
        with meanwhile(int if earned_before else fill):
            answer = caught(partial(here.send, request))
    assert isinstance(answer, BalanceLimitError)
    assert answer.details == {"limit": MAX_POINTS, "balance": MAX_POINTS - 10, "amount": amount, "currency": "points"}
    assert here.wallets.get_escrow(request.escrow_id).status == "held"
    assert here.wallets.get_user_balance("ana").escrow == 30
    assert here.wallets.get_model_balance("luna").version == 1


def test_a_key_taken_meanwhile_is_answered_with_what_it_stands_for(here: World) -> None:
    for operation, request in one_of_each(here):
        events = len(here.events)
        with elsewhere(here) as (wallets, _):
            twins: list[Any] = []
            with meanwhile(lambda: twins.append(here.send(request, wallets))):  # noqa: B023
                answer = here.send(request)
        assert (answer, answer.replayed) == (twins[0], True), operation
        assert len(here.events) == events, f"{operation}: a replay announces nothing"


def test_another_request_under_the_same_key_meanwhile_is_a_conflict_and_nothing_else(here: World) -> None:
    for operation, request in one_of_each(here):
        with elsewhere(here) as (wallets, _):
            other = replace(request, reason="another_reason")
            with meanwhile(partial(here.send, other, wallets)), pytest.raises(IdempotencyConflictError) as conflict:
                here.send(request)
        assert conflict.value.details == {"key": request.idempotency_key, "fields": ("reason",)}, operation


# ── what is committed while the statement waits ──


def test_a_twin_with_the_same_key_that_commits_while_the_statement_waits_is_found(here: World) -> None:
    for operation, request in one_of_each(here):
        with elsewhere(here) as (wallets, session):
            first = here.send(request, wallets, session=session)
            answer = while_it_waits(lambda: here.send(request, retrying(here)), session, session.commit)  # noqa: B023
        assert (answer, answer.replayed) == (first, True), operation


@pytest.mark.parametrize("operation", ENDS)
def test_a_key_that_ended_another_hold_is_a_conflict_in_the_first_try(here: World, operation: str) -> None:
    first, second = ready(here, operation), ready(here, operation)
    here.send(first)
    before = here.snapshot()
    with pytest.raises(IdempotencyConflictError) as conflict:
        here.send(replace(second, idempotency_key=first.idempotency_key), here.service())
    assert conflict.value.details["fields"] == ("escrow_id",)
    assert here.snapshot() == before


@pytest.mark.parametrize("operation", BEGINS)
def test_a_twin_that_commits_while_the_only_try_waits_is_found_or_contention_and_changes_nothing(
    here: World, operation: str
) -> None:
    """The key is free in the statement's snapshot; that it is taken shows only when it is written."""
    here.credit(amount=1000)
    request = getattr(here, f"{operation}_request")()
    with elsewhere(here) as (wallets, session):
        first = here.send(request, wallets, session=session)
        answer = while_it_waits(partial(here.send, request), session, session.commit)
    assert answer == first or isinstance(answer, OptimisticLockError), answer
    assert here.wallets.get_user_balance("ana").version == 2
    assert here.send(request) == first


@pytest.mark.parametrize("operation", ENDS)
def test_an_end_that_waits_for_another_end_of_its_hold_changes_nothing(here: World, operation: str) -> None:
    here.credit(amount=1000)
    here.hold(amount=1000)
    request = ready(here, operation)
    with elsewhere(here) as (wallets, session):
        here.send(here.refund_request(request.escrow_id), wallets, session=session)
        answer = while_it_waits(partial(here.send, request), session, session.commit)
    assert isinstance(answer, EscrowAlreadyProcessedError)
    assert here.wallets.get_user_balance("ana").escrow == 1000
    assert here.wallets.get_model_balance("luna").version == 0


def test_an_end_that_waits_for_one_that_is_rolled_back_is_carried_out_at_once(here: World) -> None:
    for operation in ENDS:
        request = ready(here, operation, f"user-of-{operation}")
        with elsewhere(here) as (wallets, session), sent(here) as round_trips:
            here.send(here.refund_request(request.escrow_id, user_id=request.user_id), wallets, session=session)
            answer = while_it_waits(partial(here.send, request), session, session.rollback)
        assert (answer.replayed, round_trips) == (False, CARRIED_OUT), operation


def test_a_hold_that_waits_sees_what_is_left_and_what_has_come(here: World) -> None:
    here.credit(amount=50)
    with elsewhere(here) as (wallets, session):
        here.send(here.hold_request(amount=30), wallets, session=session)
        answer = while_it_waits(partial(here.hold, amount=30), session, session.commit)
    assert isinstance(answer, InsufficientBalanceError)
    assert answer.details == {"required": 30, "available": 20, "currency": "points"}
    with elsewhere(here) as (wallets, session):
        here.send(here.credit_request(amount=15), wallets, session=session)
        answer = while_it_waits(partial(here.hold, amount=20), session, session.commit)
    assert (answer.previous_balance, answer.new_available_balance) == (35, 15)


def test_a_wallet_that_is_being_created_is_waited_for_and_added_to(here: World) -> None:
    with elsewhere(here) as (wallets, session):
        here.send(here.credit_request(amount=7), wallets, session=session)
        answer = while_it_waits(partial(here.credit, amount=5), session, session.commit)
    assert (answer.previous_balance, answer.new_available_balance) == (7, 12)
    requests = [ready(here, end, f"user-of-{end}") for end in ("settle", "partial_settle")]
    with elsewhere(here) as (wallets, session):
        here.send(requests[0], wallets, session=session)
        answer = while_it_waits(partial(here.send, requests[1]), session, session.commit)
    assert answer.model_earned_balance == 50
    assert here.wallets.get_model_balance("luna").version == 2


@pytest.mark.parametrize(("operation", "amount"), [("settle", 30), ("partial_settle", 20)])
def test_a_model_that_reaches_its_limit_while_the_statement_waits_undoes_all_of_it(
    here: World, operation: str, amount: int
) -> None:
    request = ready(here, operation)
    before = here.wallets.get_user_balance("ana")
    with elsewhere(here) as (wallets, session):
        near_the_limit(here, wallets, session=session)()
        answer = while_it_waits(partial(here.send, request), session, session.commit)
    assert isinstance(answer, BalanceLimitError), "one try is enough: what has come meanwhile can be read"
    assert answer.details == {"limit": MAX_POINTS, "balance": MAX_POINTS - 10, "amount": amount, "currency": "points"}
    assert here.wallets.get_escrow(request.escrow_id).status == "held"
    assert replace(here.wallets.get_user_balance("ana"), as_of=before.as_of) == before
    assert here.wallets.get_model_balance("luna").version == 1


# ── locks ──

LOCKS = {
    "user_wallets": ("credit", "hold", *ENDS, "spend", "transfer", "deposit", "open"),
    "escrow_items": ENDS,
    "model_wallets": ("settle", "partial_settle"),
}


def test_no_operation_is_missing_here() -> None:
    assert_complete("LOCKS of users", [*LOCKS["user_wallets"]])
    assert_complete("LOCKS of models", LOCKS["model_wallets"], [n for n in MOVES if (MODEL, "earned", 1) in MOVES[n]])
    assert_complete("LOCKS of holds", LOCKS["escrow_items"], STATUS)
    assert_complete("OTHERS", ["credit", "hold", *ENDS, *OTHERS])
    assert_complete("BEGINS", BEGINS, {*LOCKS["user_wallets"]} - {*ENDS})


@pytest.mark.parametrize("table", LOCKS)
def test_a_row_that_stays_locked_is_contention_after_the_lock_timeout_and_changes_nothing(
    postgresql_url: str, table: str
) -> None:
    with Database(postgresql_url, lock_timeout_ms=1) as database, administrator(postgresql_url) as other:
        world = World(database, config=ONE_TRY)
        world.send(ready(world, "settle", "eva"))  # so that there is a row of the model's
        requests = [ready(world, operation) for operation in LOCKS[table]]
        before = world.snapshot()
        other.execute("BEGIN")
        other.execute(f"SELECT FROM {table} FOR UPDATE")
        for request in requests:
            with sent(world) as round_trips, pytest.raises(OptimisticLockError) as error:
                world.send(request)
            assert (error.value.details, round_trips) == ({"attempts": 1}, CARRIED_OUT)
        other.execute("ROLLBACK")
        assert world.snapshot() == before
        assert [world.send(request).replayed for request in requests] == [False] * len(requests)
        recount(database)


def test_the_lock_timeout_is_the_statements_alone(here: World) -> None:
    with here.database.engine.connect() as connection:
        before = connection.exec_driver_sql("SHOW lock_timeout").scalar()
    here.credit()
    with pytest.raises(InsufficientBalanceError):
        here.hold(amount=101)
    connections = [here.database.engine.connect() for _ in range(here.database.engine.pool.checkedin())]  # type: ignore[attr-defined]
    for connection in connections:
        assert connection.exec_driver_sql("SHOW lock_timeout").scalar() == before
        connection.close()


def test_one_rows_lock_is_in_nobody_elses_way(here: World) -> None:
    requests = [request for _, request in one_of_each(here)]
    here.credit("zoe")
    with administrator(here.database.engine.url) as other:
        other.execute("BEGIN")
        other.execute("SELECT FROM user_wallets WHERE owner_id = 'user:zoe' FOR UPDATE")
        assert [here.send(request).replayed for request in requests] == [False] * len(requests)
        other.execute("ROLLBACK")


# ── what should never be so ──


@pytest.mark.parametrize("operation", ENDS)
@pytest.mark.parametrize("attempts", [0, 3])
def test_a_held_item_without_a_wallet_is_refused_and_everything_stays_as_it_was(
    postgresql_url: str, operation: str, attempts: int
) -> None:
    with Database(postgresql_url) as database, administrator(postgresql_url) as other:
        world = World(database, config=WalletConfig(max_retry_attempts=attempts, retry_backoff_ms=0))
        request = ready(world, operation)
        other.execute("DELETE FROM user_wallets")
        before, events = world.snapshot(), len(world.events)
        with pytest.raises(WalletError) as error:
            world.send(request)
        assert isinstance(error.value, StorageUnavailableError if attempts else OptimisticLockError)
        assert (world.snapshot(), len(world.events)) == (before, events)


@pytest.mark.parametrize("operation", ENDS)
def test_less_escrow_than_is_held_is_refused_and_everything_stays_as_it_was(
    postgresql_url: str, operation: str
) -> None:
    with Database(postgresql_url) as database, administrator(postgresql_url) as other:
        world = World(database, config=WalletConfig(retry_backoff_ms=0))
        request = ready(world, operation)
        other.execute("UPDATE user_wallets SET escrow = 29")
        before = world.snapshot()
        with pytest.raises(StorageUnavailableError):
            world.send(request)
        assert world.snapshot() == before


@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_is_undone_at_its_commit_is_not_answered_as_done(here: World, operation: str) -> None:
    """A host's deferred trigger, or a serialization failure, speaks up when all rows have been written."""
    request = ready(here, operation)
    before, events = here.snapshot(), len(here.events)
    with administrator(here.database.engine.url) as other:
        other.execute(
            """CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            RAISE EXCEPTION 'on purpose' USING ERRCODE = '40001'; END $$;
            CREATE CONSTRAINT TRIGGER fail AFTER INSERT ON ledger_entries DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION fail()"""
        )
        with pytest.raises(OptimisticLockError):
            here.send(request)
        assert (here.snapshot(), len(here.events)) == (before, events)
        other.execute("DROP TRIGGER fail ON ledger_entries")
    assert here.send(request).replayed is False, "neither the key nor the cache remembers what was undone"


def test_a_clock_that_goes_back_never_posts_into_the_past(here: World) -> None:
    with freeze_time(NOON) as clock:
        here.credit(amount=1000)
        here.settle(here.hold(amount=1).escrow_id, amount=1)
        latest = NOON
        for minutes in (-60, -1, 5, -30, 4, 6):
            at = NOON + timedelta(minutes=minutes)
            clock.move_to(at)
            latest = max(latest, at)
            holds = [here.hold() for _ in ENDS]
            answers = [here.credit(), *holds]
            answers += [getattr(here, end)(hold.escrow_id) for end, hold in zip(ENDS, holds, strict=True)]
            assert {answer.timestamp for answer in answers} == {at}
            for answer in answers:
                transaction: Any = here.ledger.transaction(answer.transaction_id)
                posted = {entry.posted_at for entry in transaction.entries if entry.wallet_version is not None}
                assert posted == {latest}, "neither earlier than the change before, nor later than the latest clock"
            with here.database.read() as connection:
                tables = [Base.metadata.tables[name] for name in ("user_wallets", "model_wallets")]
                assert [connection.scalar(select(table.c.updated_at)) for table in tables] == [latest] * 2


# ── threads ──


def test_thirty_two_threads_hold_on_one_users_wallet_without_a_failure_or_a_second_try(here: World) -> None:
    here.credit(amount=320)
    requests = [here.hold_request(amount=10) for _ in range(32)]
    answers: list[Any] = at_once(*(partial(here.send, request) for request in requests))
    assert tally(answers) == {"EscrowHoldResponse": 32}
    assert sorted(answer.new_available_balance for answer in answers) == list(range(0, 320, 10))
    assert len(here.events) == 33


@pytest.mark.parametrize("users", [1, 32])
def test_thirty_two_threads_settle_to_one_new_model_without_a_failure_or_a_second_try(here: World, users: int) -> None:
    requests = [ready(here, "settle", f"user-{number % users}") for number in range(32)]
    answers: list[Any] = at_once(*(partial(here.send, request) for request in requests))
    assert tally(answers) == {"EscrowSettleResponse": 32}
    assert sorted(answer.model_earned_balance for answer in answers) == list(range(30, 961, 30))


def test_while_points_suffice_nobody_is_told_that_they_do_not(here: World) -> None:
    """Credits, holds, refunds and settlements of one user at once; whatever their order, there is enough for all."""
    here.credit(amount=8 * 30)
    held = [here.hold(amount=10).escrow_id for _ in range(16)]
    requests: list[Any] = [here.hold_request(amount=10) for _ in range(8)]
    requests += [here.credit_request(amount=1) for _ in range(8)]
    requests += [here.refund_request(escrow_id, 10) for escrow_id in held[:8]]
    requests += [here.settle_request(escrow_id, 10) for escrow_id in held[8:]]
    answers: list[Any] = at_once(*(partial(here.send, request) for request in requests))
    assert not [answer for answer in answers if isinstance(answer, Exception)], tally(answers)
    balance = here.wallets.get_user_balance("ana")
    assert (balance.available, balance.escrow) == (240 - 160 - 80 + 8 + 80, 80)


def test_crossing_users_and_models_never_deadlock(here: World) -> None:
    requests: list[Any] = []
    for number in range(24):
        user, model = f"user-{number % 2}", f"model-{number // 2 % 2}"
        requests.append(replace(ready(here, ("settle", "partial_settle")[number % 3 // 2], user), model_id=model))
    answers: list[Any] = at_once(*(partial(here.send, request) for request in requests))
    assert not [answer for answer in answers if isinstance(answer, Exception)], tally(answers)


def test_the_last_points_go_to_exactly_as_many_as_they_suffice_for(here: World) -> None:
    here.credit(amount=75)
    requests = [here.hold_request(amount=10) for _ in range(32)]
    answers: list[Any] = at_once(*(partial(here.send, request) for request in requests))
    assert tally(answers) == {"EscrowHoldResponse": 7, "InsufficientBalanceError": 25}
    refused = [answer for answer in answers if isinstance(answer, WalletError)]
    assert [answer.details for answer in refused] == [{"required": 10, "available": 5, "currency": "points"}] * 25


def test_one_hold_ends_once_whoever_ends_it(here: World) -> None:
    here.credit(amount=1000)
    here.hold(amount=900)
    escrow_id = here.hold().escrow_id
    makers = (here.settle_request, here.refund_request, here.partial_settle_request)
    requests: list[Any] = [makers[number % 3](escrow_id) for number in range(30)]
    answers = at_once(*(partial(here.send, request) for request in requests))
    assert tally(answers)["EscrowAlreadyProcessedError"] == 29
    assert here.wallets.get_user_balance("ana").escrow == 900


# ── servers set up otherwise ──


def setting(url: str, name: str, value: str) -> None:
    """The default of every later session of the database."""
    with administrator(url) as other:
        statement = sql.SQL("ALTER DATABASE {} SET {} = {}")
        other.execute(statement.format(sql.Identifier(other.info.dbname), sql.Identifier(name), value))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("timezone", "Asia/Kathmandu"),
        ("timezone", "America/St_Johns"),
        ("timezone", "Pacific/Kiritimati"),
        ("intervalstyle", "sql_standard"),
        ("extra_float_digits", "0"),
        ("standard_conforming_strings", "off"),
        ("client_encoding", "LATIN1"),
        ("plan_cache_mode", "force_generic_plan"),
        ("enable_nestloop", "off"),
        ("jit_above_cost", "0"),
        ("default_transaction_deferrable", "on"),
        ("statement_timeout", "60000"),
    ],
)
def test_whatever_the_databases_defaults_are_it_is_the_same(
    postgresql_databases: PostgreSQLDatabases, name: str, value: str
) -> None:
    with ExitStack() as stack:
        urls = [stack.enter_context(postgresql_databases.fresh()) for _ in range(2)]
        setting(urls[0], name, value)
        stack.enter_context(freeze_time(NOON))
        twins = Twins(*stack.enter_context(both_ways(*urls)))
        everything_about(twins, "ÄÖ\\'\"%(x)s", amount=MAX_POINTS)
        an_evening_begins(twins)
        world = twins.ways[0].world
        assert {row.at for row in posting_times(world)} == {NOON}


def posting_times(world: World) -> list[Any]:
    entries = Base.metadata.tables["ledger_entries"]
    with world.database.read() as connection:
        return list(connection.execute(select(entries.c.posted_at.label("at"))))


@pytest.mark.parametrize("single", [True, False])
def test_a_text_that_the_databases_encoding_lacks_is_an_error_of_the_module_that_changes_nothing(
    postgresql_url: str, single: bool
) -> None:
    setting(postgresql_url, "client_encoding", "LATIN1")
    with Database(postgresql_url, single_statement=single) as database:
        world = World(database)
        world.credit("Zoë")
        before = world.snapshot()
        for request in (
            world.credit_request("✓"),
            world.hold_request("Zoë", queue_item_id="✓"),
            world.hold_request("Zoë", metadata={"✓": 1}),
        ):
            with pytest.raises(StorageUnavailableError):
                world.send(request)
        assert world.snapshot() == before
        assert world.hold("Zoë").new_available_balance == 70
        recount(database)


@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_stricter_isolation_is_only_ever_contention_or_success(postgresql_url: str, isolation: str) -> None:
    with Database(postgresql_url, isolation_level=isolation) as database:
        world = World(database, config=WalletConfig(retry_backoff_ms=1))
        for operation, request in one_of_each(world):
            assert (world.send(request).replayed, world.send(request, world.service()).replayed) == (False, True), (
                operation
            )
        world.credit(amount=1000)
        settles = [ready(world, "settle", f"user-{number % 3}") for number in range(12)]
        calls: list[Callable[[], Any]] = [partial(world.send, request) for request in settles]
        calls += [partial(world.hold, amount=1) for _ in range(12)]
        answers = at_once(*calls)
        assert set(tally(answers)) <= {"EscrowSettleResponse", "EscrowHoldResponse", "OptimisticLockError"}
        done = tally(answers)
        assert world.wallets.get_model_balance("luna").earned == 30 + 20 + 30 * done["EscrowSettleResponse"]
        assert world.wallets.get_user_balance("ana").escrow == done["EscrowHoldResponse"]
        recount(database)


def test_a_database_that_may_only_be_read_is_unavailable_and_refuses_nothing(postgresql_url: str) -> None:
    setting(postgresql_url, "default_transaction_read_only", "on")
    with Database(postgresql_url) as database:
        world = World(database)
        for request in (world.credit_request(), world.hold_request("nobody")):
            with pytest.raises(StorageUnavailableError) as error:
                world.send(request)
            assert error.value.details == {"cause": "25006"}


def test_a_database_in_another_encoding_takes_what_it_has(postgresql_databases: PostgreSQLDatabases) -> None:
    with postgresql_databases.fresh() as url, administrator(url) as other:
        name = sql.Identifier(f"{other.info.dbname}_latin1")
        other.execute(sql.SQL("CREATE DATABASE {} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0").format(name))
        try:
            with Database(make_url(url).set(database=f"{other.info.dbname}_latin1")) as database:
                database.create_schema()
                world = World(database, config=ONE_TRY)
                world.credit("Zoë ÿß", metadata={"ß": "\0"})
                assert world.hold("Zoë ÿß").new_available_balance == 70
                assert world.wallets.get_user_balance("Zoë ÿß").escrow == 30
                recount(database)
        finally:
            other.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))


def test_the_document_shows_the_statements_as_they_are_sent(here: World) -> None:
    by_name = {name: statements_of(here, request)[0] for name, request in one_of_each(here)}
    document = (Path(__file__).resolve().parents[2] / "docs" / "WALLET_ESCROW_ARCHITECTURE.md").read_text()
    for operation in ("hold", "settle"):
        assert f"```sql\n{by_name[operation].sql}\n```" in document, operation


def test_a_date_style_that_the_driver_cannot_read_is_an_error_of_the_module(postgresql_url: str) -> None:
    url = make_url(postgresql_url).update_query_dict({"options": "-c datestyle=German"})
    with Database(url) as database:
        world = World(database)
        world.credit()
        held = world.hold()
        with pytest.raises(StorageUnavailableError) as failure:
            world.wallets.get_escrow(held.escrow_id)
    assert failure.value.details == {"cause": "NotImplementedError"}
