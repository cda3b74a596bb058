"""Batches: what is no batch, all or nothing, the caller's transaction, and what is announced."""

import logging
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.orm import Session

from points_platform.core import (
    Database,
    EscrowAlreadyProcessedError,
    EscrowNotFoundError,
    IdempotencyConflictError,
    InvalidAuthorizationError,
    InvalidRequestError,
    WalletError,
)
from points_platform.ledger import LedgerService
from points_platform.queue import QueueAuthorizer
from points_platform.wallets import WalletService
from points_platform.wallets.verify import verify
from support.answers import announced, called, codes, ids
from support.recount import recount
from support.world import World

OPERATIONS = ("credit", "hold", "settle", "refund")
EVENT = {"credit": "credited", "hold": "escrow_held", "settle": "escrow_settled", "refund": "escrow_refunded"}
UNKNOWN = "01890a5d-ac96-774b-bcce-b302099a8057"
USERS = ("cem", "ana", "ben")
FORGER = QueueAuthorizer("another secret of at least 32 bytes, of nobody's")
every_operation = pytest.mark.parametrize("operation", OPERATIONS)


def many(world: World, operation: str, given: Any, wallets: WalletService | None = None, **options: Any) -> Any:
    """Hand it to the batch method as it is."""
    return getattr(wallets or world.wallets, f"{operation}_many")(given, **options)


def batch(world: World, operation: str, users: Sequence[str] = USERS) -> list[Any]:
    """Items that will be carried out, one for each user; what happened before is forgotten."""
    made = []
    for user in users:
        world.credit(user)
        if operation in {"credit", "hold"}:
            made.append(getattr(world, f"{operation}_request")(user))
        else:
            end = getattr(world, f"{operation}_request")(world.hold(user).escrow_id, user_id=user)
            made.append((end, world.authorize(end)))
    world.events.clear()
    return made


def refusable(world: World, operation: str) -> Any:
    """An item that the state of the database refuses, and nothing else does."""
    if operation == "credit":
        world.credit("rich", 2**53 - 1)
        request: Any = world.credit_request("rich", 1)
    elif operation == "hold":
        request = world.hold_request("nobody", 1)
    else:
        request = getattr(world, f"{operation}_request")(UNKNOWN)
    world.events.clear()
    return request if operation in {"credit", "hold"} else (request, world.authorize(request))


def request_in(item: Any) -> Any:
    return item[0] if isinstance(item, tuple) else item


@contextmanager
def watched(world: World) -> Iterator[list[str]]:
    """The statements and commits of the world's engine."""
    seen: list[str] = []

    def statement(connection: Any, cursor: Any, sql: str, *rest: Any) -> None:
        seen.append(sql)

    def commit(connection: Any) -> None:
        seen.append("COMMIT")

    event.listen(world.database.engine, "before_cursor_execute", statement)
    event.listen(world.database.engine, "commit", commit)
    try:
        yield seen
    finally:
        event.remove(world.database.engine, "before_cursor_execute", statement)
        event.remove(world.database.engine, "commit", commit)


# ── what is no batch ──


@every_operation
def test_where_nothing_is_left_to_do_no_database_is_touched(tmp_path: Path, operation: str) -> None:
    with Database(f"sqlite:///{tmp_path}/no-such-folder/none.db") as database:
        world = World(database)
        empty: list[Any] = [[], ()]
        for nothing in empty:
            assert many(world, operation, nothing) == []
            assert many(world, operation, nothing, atomic=True, session=Session(database.engine)) == []
        assert codes(many(world, operation, [None, 7])) == ["invalid_request"] * 2
        with pytest.raises(InvalidRequestError) as refusal:
            many(world, operation, [None, 7], atomic=True)
        assert refusal.value.details["index"] == 0


@every_operation
def test_what_is_no_list_is_refused_and_not_even_looked_at(world: World, operation: str) -> None:
    items = batch(world, operation)
    before = world.snapshot()
    generator = (item for item in items)
    no_lists: list[Any] = [generator, iter(items), set(), {}, "requests", b"", None, 3, range(2), request_in(items[0])]
    for wrong in no_lists:
        with pytest.raises(InvalidRequestError) as refusal:
            many(world, operation, wrong)
        details = {"field": "requests", "value": called(wrong), "expected": "a list of at most 10000"}
        assert refusal.value.details == details
    assert next(generator) is items[0]
    assert (world.snapshot(), world.events) == (before, [])


@every_operation
def test_a_batch_has_at_most_ten_thousand_items(world: World, operation: str) -> None:
    items = batch(world, operation)
    before = world.snapshot()
    for longer in (items * 3334, tuple(items * 3334)):
        assert len(longer) == 10_002
        with pytest.raises(InvalidRequestError) as refusal:
            many(world, operation, longer)
        assert refusal.value.details["value"] == "10002 of them"
    assert (world.snapshot(), world.events) == (before, [])
    answers = many(world, operation, [None] * 9_997 + items)
    assert codes(answers) == ["invalid_request"] * 9_997 + ["done"] * 3


@every_operation
def test_a_tuple_of_items_is_a_batch_and_the_callers_list_stays_as_it_was(world: World, operation: str) -> None:
    items = batch(world, operation)
    given = [*items, None]
    answers = many(world, operation, given)
    assert given == [*items, None]
    again = many(world, operation, tuple(given))
    assert again[:3] == answers[:3]
    assert [answer.replayed for answer in again[:3]] == [True] * 3
    assert codes(again) == ["done"] * 3 + ["invalid_request"]


@pytest.mark.parametrize("operation", ["settle", "refund"])
def test_an_item_that_is_no_pair_is_refused_alone_and_shows_no_token(world: World, operation: str) -> None:
    items = batch(world, operation)
    request, authorization = items[1]
    partial = world.partial_settle_request(request.escrow_id, user_id=request.user_id)
    wrong = [
        *(request, authorization, [request, authorization], (request,), (request, authorization, None), ()),
        *((authorization, request), (None, authorization), {request.user_id: authorization}, "ab", 2, None),
        (partial, world.authorize(partial)),
    ]
    answers = many(world, operation, [items[0], *wrong, items[2]])
    assert codes(answers) == ["done", *["invalid_request"] * len(wrong), "done"]
    for refusal in answers[1:-1]:
        assert refusal.details["field"] == "request"
        assert authorization.token not in f"{refusal} {refusal.details}"
    assert world.wallets.get_escrow(request.escrow_id).status == "held"


@pytest.mark.parametrize("operation", ["credit", "hold"])
def test_what_needs_no_authorization_is_no_pair_and_of_its_own_kind(world: World, operation: str) -> None:
    first, second, third = batch(world, operation)
    other = world.hold_request() if operation == "credit" else world.credit_request()
    before = world.snapshot()["ledger_transactions"]
    answers = many(world, operation, [first, (second, None), (second,), other, vars(second), third])
    assert codes(answers) == ["done", *["invalid_request"] * 4, "done"]
    assert len(world.snapshot()["ledger_transactions"]) == len(before) + 2


# ── one transaction, however many ──


@every_operation
def test_the_number_of_statements_does_not_depend_on_the_number_of_items(world: World, operation: str) -> None:
    counts = []
    for number in (3, 300):
        items = batch(world, operation, [f"user-{number}-{n % 60}" for n in range(number)])
        with watched(world) as seen:
            answers = many(world, operation, items)
        assert codes(answers) == ["done"] * number
        assert seen.count("COMMIT") == 1
        counts.append(len(seen))
    # New wallets are inserted, known ones updated; the second batch may meet one kind more.
    assert counts[0] <= counts[1] <= counts[0] + 1


def test_more_items_than_travel_in_one_statement(world: World) -> None:
    """Three thousand holds of 37 users; two in three are settled to five models, the others refunded."""
    users = [f"user-{n % 37}" for n in range(3000)]
    assert codes(many(world, "credit", [world.credit_request(user, 10) for user in users])) == ["done"] * 3000
    world.events.clear()
    holds = [world.hold_request(user, 1 + n % 9, metadata={"n": n}) for n, user in enumerate(users)]
    held = many(world, "hold", holds)
    assert announced(world) == ids(held)
    ends: list[list[Any]] = [[], []]
    for n, (hold, answer) in enumerate(zip(holds, held, strict=True)):
        assert world.events[n].metadata == {"n": n}
        make: Any = world.refund_request if n % 3 == 0 else world.settle_request
        models = {} if n % 3 == 0 else {"model_id": f"model-{n % 5}"}
        end = make(answer.escrow_id, hold.amount, user_id=hold.user_id, **models)
        ends[n % 3 == 0].append((end, world.authorize(end)))
    settled, refunded = many(world, "settle", ends[0]), many(world, "refund", ends[1])
    assert codes([*settled, *refunded]) == ["done"] * 3000
    assert announced(world) == ids([*held, *settled, *refunded])
    for model in {f"model-{n}" for n in range(5)}:
        mine = [a for (end, _), a in zip(ends[0], settled, strict=True) if end.model_id == model]
        earned = [sum(a.settled_amount for a in mine[: n + 1]) for n in range(len(mine))]
        assert [answer.model_earned_balance for answer in mine] == earned
        assert world.wallets.get_model_balance(model).earned == earned[-1]
    assert list(verify(world.database)) == []


# ── all or nothing ──


@every_operation
def test_atomic_the_first_refusal_is_raised_and_nothing_has_happened(world: World, operation: str) -> None:
    items = batch(world, operation)
    bad = refusable(world, operation)
    before = world.snapshot()
    (alone,) = many(world, operation, [bad])
    for place in range(len(items) + 1):
        given = [*items[:place], bad, *items[place:], bad]
        with pytest.raises(WalletError) as refusal:
            many(world, operation, given, atomic=True)
        assert type(refusal.value) is type(alone)
        assert refusal.value.details == alone.details | {"index": place}
        assert (world.snapshot(), world.events) == (before, [])
    for item in items:
        assert not world.send(request_in(item)).replayed, "a batch that was undone has used up a key"


@every_operation
def test_atomic_without_a_refusal_everything_happens_and_repetitions_count_as_done(
    world: World, operation: str
) -> None:
    items = batch(world, operation)
    first = many(world, operation, [items[0]], atomic=True)
    answers = many(world, operation, [*items, items[1]], atomic=True)
    assert [answer.replayed for answer in answers] == [True, False, False, True]
    assert (answers[0], answers[3]) == (first[0], answers[1])
    assert announced(world) == ids(answers[:3])


def test_atomic_a_key_that_two_items_mean_differently_undoes_both(world: World) -> None:
    first = world.credit_request(amount=1)
    before = world.snapshot()
    with pytest.raises(IdempotencyConflictError) as refusal:
        many(world, "credit", [first, world.credit_request("ben"), replace(first, amount=2)], atomic=True)
    assert refusal.value.details == {"key": first.idempotency_key, "fields": ("amount",), "index": 2}
    assert (world.snapshot(), world.events) == (before, [])


@pytest.mark.parametrize("operation", ["settle", "refund"])
def test_atomic_a_refused_authorization_wins_over_all_refusals_before_it(world: World, operation: str) -> None:
    items = batch(world, operation)
    last = items[2][0]
    forged = World(world.database, authorizer=FORGER).authorize(last)
    before = world.snapshot()
    with watched(world) as seen, pytest.raises(InvalidAuthorizationError) as refusal:
        many(world, operation, [refusable(world, operation), items[0], (last, forged), (last, None)], atomic=True)
    assert refusal.value.details["index"] == 2
    assert (seen, world.snapshot(), world.events) == ([], before, [])
    with pytest.raises(EscrowNotFoundError) as later:
        many(world, operation, [items[0], refusable(world, operation), items[2]], atomic=True)
    assert later.value.details["index"] == 1


class Broken(LedgerService):
    """A ledger that writes everything, and then fails."""

    def record(self, *given: Any) -> None:
        super().record(*given)
        raise ZeroDivisionError


@every_operation
def test_a_batch_that_fails_in_the_middle_leaves_nothing(world: World, operation: str) -> None:
    items = batch(world, operation)
    before = world.snapshot()
    with pytest.raises(ZeroDivisionError):
        many(world, operation, items, world.service(ledger=Broken(world.database)))
    assert (world.snapshot(), world.events) == (before, [])
    assert [answer.replayed for answer in many(world, operation, items)] == [False] * 3


# ── the caller's transaction ──


@every_operation
def test_in_the_callers_transaction_it_is_committed_and_announced_with_it_or_not_at_all(
    world: World, operation: str
) -> None:
    items = batch(world, operation)
    before = world.snapshot()
    with Session(world.database.engine) as session:
        many(world, operation, items, session=session)
        session.rollback()
        session.commit()
        assert (world.snapshot(), world.events) == (before, [])
        answers = many(world, operation, [items[0], None, *items[1:], items[0]], session=session)
        assert codes(answers) == ["done", "invalid_request", "done", "done", "done"]
        assert [answer.replayed for answer in (*answers[:1], *answers[2:])] == [False, False, False, True]
        assert world.events == []
        session.commit()
        assert announced(world) == ids([answers[0], answers[2], answers[3]])
        assert [answer.replayed for answer in many(world, operation, items, session=session)] == [True] * 3
        session.commit()
    assert len(world.events) == 3


@every_operation
@pytest.mark.parametrize("atomic", [False, True])
def test_a_refusal_does_not_doom_the_callers_transaction(world: World, operation: str, atomic: bool) -> None:
    items = batch(world, operation)
    bad = refusable(world, operation)
    with Session(world.database.engine) as session:
        before = world.credit_request("host", 1)
        world.send(before, session=session)
        if atomic:
            with pytest.raises(WalletError):
                many(world, operation, [*items, bad], atomic=True, session=session)
        else:
            assert codes(many(world, operation, [*items, bad], session=session))[:3] == ["done"] * 3
        world.send(world.credit_request("host", 2), session=session)
        session.commit()
    assert world.wallets.get_user_balance("host").available == 3
    assert [world.send(request_in(item)).replayed for item in items] == [not atomic] * 3
    assert len(set(announced(world))) == len(world.events) == 2 + len(items)


def test_a_savepoint_that_the_caller_undoes_takes_its_batch_and_its_events_with_it(world: World) -> None:
    items = batch(world, "hold")
    with Session(world.database.engine) as session:
        kept = many(world, "hold", items[:1], session=session)
        savepoint = session.begin_nested()
        many(world, "hold", items[1:], session=session)
        savepoint.rollback()
        kept += many(world, "hold", items[2:], session=session)
        session.commit()
    assert announced(world) == ids(kept)
    assert not world.send(items[1]).replayed


def test_one_transaction_of_the_caller_takes_more_batches_than_a_statement_takes_parameters(sqlite_url: str) -> None:
    """PostgreSQL takes 65,535; here the limit is lowered, so that a small number shows what a large one does."""

    def lower(connection: sqlite3.Connection, record: object) -> None:
        connection.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 2500)

    with Database(sqlite_url) as database:
        event.listen(database.engine, "connect", lower)
        world = World(database)
        with Session(database.engine) as session, session.begin():
            for _ in range(3):
                requests = [world.credit_request(f"user-{n}") for n in range(1000)]
                assert codes(many(world, "credit", requests, session=session)) == ["done"] * 1000
        assert len(world.events) == 3000
        recount(database)


# ── what is announced, and what is kept ──


@every_operation
def test_each_new_transaction_has_its_event_and_its_audit_line_in_the_order_of_the_list(
    world: World, caplog: pytest.LogCaptureFixture, operation: str
) -> None:
    items = batch(world, operation)
    world.send(request_in(items[1]))
    world.events.clear()
    caplog.clear()
    caplog.set_level(logging.INFO)
    bad = refusable(world, operation)
    caplog.clear()
    answers = many(world, operation, [items[2], bad, items[1], items[0], items[2]])
    new = ids([answers[0], answers[3]])
    assert announced(world) == new
    assert {event.event_type for event in world.events} == {f"wallet.{EVENT[operation]}"}
    lines = [vars(record)["points_platform"] for record in caplog.records if record.name == "points_platform.audit"]
    assert [line["transaction_id"] for line in lines] == new
    assert [line["user_id"] for line in lines] == [USERS[2], USERS[0]]


@every_operation
def test_receivers_hear_of_a_batch_when_all_of_it_is_committed(world: World, operation: str) -> None:
    items = batch(world, operation)
    seen: list[Any] = []

    def count(event: Any) -> None:
        with world.database.engine.connect() as connection:
            seen.append(connection.scalar(text("SELECT count(*) FROM ledger_transactions")))

    def fail(event: Any) -> None:
        raise RuntimeError("no")

    world.bus.subscribe(f"wallet.{EVENT[operation]}", fail)
    world.bus.subscribe(f"wallet.{EVENT[operation]}", count)
    assert codes(many(world, operation, items)) == ["done"] * 3
    assert (seen, world.bus.failures) == ([len(world.snapshot()["ledger_transactions"])] * 3, 3)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def test_a_refusal_in_an_answer_holds_on_to_no_frames(world: World) -> None:
    """Frames would keep the whole batch, and the keys with which its tokens were verified."""
    items = batch(world, "settle")
    request, authorization = items[0]
    tokens = ["x.y.z", f"{authorization.token}A", authorization.token.rpartition(".")[0] + ".AAAA", None]
    wrong = [(request, replace(authorization, token=token)) for token in tokens]
    given = [*wrong, (request, None), None, refusable(world, "settle"), items[1], items[1]]
    answers = [*many(world, "settle", given), *many(world, "hold", [None, world.hold_request("nobody")])]
    refusals = [answer for answer in answers if isinstance(answer, WalletError)]
    assert len(refusals) == 9
    for refusal in refusals:
        assert [error for error in chain(refusal) if error.__traceback__ is not None] == [], refusal


# ── batches and single calls ──


@every_operation
def test_a_call_after_a_batch_and_a_batch_after_a_call_get_the_first_answer(world: World, operation: str) -> None:
    items = batch(world, operation)
    others = [world.wallets, world.service()]
    in_batch = many(world, operation, items[:2])
    alone = world.send(request_in(items[2]))
    for wallets in others:
        for item, answer in zip(items, [*in_batch, alone], strict=True):
            again = world.send(request_in(item), wallets)
            assert (again, again.replayed) == (answer, True)
        again = many(world, operation, items, wallets)
        assert (again, [answer.replayed for answer in again]) == ([*in_batch, alone], [True] * 3)
    assert announced(world) == ids([*in_batch, alone])


@every_operation
def test_a_key_used_in_a_batch_is_refused_for_another_request_and_the_other_way_round(
    world: World, operation: str
) -> None:
    items = batch(world, operation)
    many(world, operation, items[:1])
    world.send(request_in(items[1]))
    before = world.snapshot()
    others = [replace(request_in(item), reason="another") for item in items[:2]]
    for other in others:
        with pytest.raises(IdempotencyConflictError) as refusal:
            world.send(other)
        assert refusal.value.details == {"key": other.idempotency_key, "fields": ("reason",)}
    if operation in {"settle", "refund"}:
        others = [(other, world.authorize(other)) for other in others]
    for wallets in (world.wallets, world.service()):
        answers = many(world, operation, others, wallets)
        assert codes(answers) == ["idempotency_conflict"] * 2
        assert answers[1].details == {"key": request_in(items[1]).idempotency_key, "fields": ("reason",)}
    assert world.snapshot() == before


def test_what_one_item_takes_the_next_does_not_find_and_a_refusal_frees_its_key(world: World) -> None:
    world.credit(amount=100)
    first = world.hold_request(amount=70)
    requests = [first, world.hold_request(amount=31, idempotency_key="mine"), world.hold_request(amount=30)]
    answers = many(world, "hold", [*requests, replace(requests[1], amount=1), first])
    assert codes(answers) == ["done", "insufficient_balance", "done", "insufficient_balance", "done"]
    assert [answers[n].details for n in (1, 3)] == [
        {"required": 31, "available": 30, "currency": "points"},
        {"required": 1, "available": 0, "currency": "points"},
    ]
    assert (answers[4], answers[4].replayed) == (answers[0], True)
    world.credit(amount=31)
    assert not world.send(requests[1]).replayed


@pytest.mark.parametrize("operation", ["settle", "refund"])
def test_a_hold_that_one_item_ends_has_ended_for_the_next(world: World, operation: str) -> None:
    first, *_ = batch(world, operation)
    again = replace(first[0], idempotency_key="another")
    done, refusal = many(world, operation, [first, (again, world.authorize(again))])
    assert done.replayed is False
    assert type(refusal) is EscrowAlreadyProcessedError
    assert refusal.details == {
        "escrow_id": again.escrow_id,
        "status": {"settle": "settled", "refund": "refunded"}[operation],
    }


def test_a_batch_is_answered_from_the_ledger_where_no_cache_knows_it(url: str, world: World) -> None:
    """A batch through one ``Database``, its repetition through another that shares nothing with it."""
    items = batch(world, "settle")
    answers = many(world, "settle", items)
    with Database(url) as database:
        again = many(World(database), "settle", items)
    assert (again, [answer.replayed for answer in again]) == (answers, [True] * 3)
