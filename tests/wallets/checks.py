"""What must be so for every operation, whatever it is: each check takes a platform and the name of an operation.

They are functions so that a test can show that they fail where an operation is wrong (``test_matrix_bites``).
"""

import io
import logging
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from datetime import datetime
from functools import partial
from typing import Any, get_type_hints

import jwt
import pytest
from freezegun import freeze_time
from sqlalchemy import insert, select, text
from sqlalchemy.orm import Session

from points_platform.core import Base, Database, IdempotencyConflictError, InvalidRequestError, WalletError
from points_platform.ledger.accounts import CHART
from points_platform.ledger.files import export_log
from points_platform.wallets import WalletService, event_of, request_of, response_of
from points_platform.wallets.operations import BY_NAME
from points_platform.wallets.rebuild import drifts, restore
from points_platform.wallets.verify import verify
from support.answers import called
from support.examples import EXAMPLES, METADATA, another
from support.world import METHODS, World, at_once

from .by_hand.refusals import LADDERS, LIMIT, Rung
from .by_hand.rows import NOW, Case

# Which request it is, and whose: a key belongs to an owner.
NOT_COMPARED = {"idempotency_key", "request_id"}
WHOSE = {"user_id", "owner"}
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
TIME = re.compile(r"datetime\.datetime\(.*?tzinfo=datetime\.timezone\.utc\)")
TABLES = {table.name: table for table in Base.metadata.sorted_tables}
Rows = dict[str, list[dict[str, Any]]]
Send = Callable[[World, Any], Any]


# ── how a request is sent ──


def arguments(world: World, request: Any, *, signed: bool = True) -> tuple[Any, ...]:
    """What the method of a request takes: an authorization too, where the queue decides."""
    if not METHODS[type(request)][1]:
        return (request,)
    return request, world.authorize(request) if signed else None


def call(world: World, request: Any, *, signed: bool = True, **options: Any) -> Any:
    """The answer or the refusal of one call."""
    wallets: WalletService = options.pop("wallets", world.wallets)
    method = getattr(wallets, METHODS[type(request)][0])
    try:
        return method(*arguments(world, request, signed=signed), **options)
    except Exception as error:
        return error


def by_an_empty_cache(world: World, request: Any, **options: Any) -> Any:
    return call(world, request, wallets=world.service(), **options)


def joined(world: World, request: Any, **options: Any) -> Any:
    """In a transaction of the caller's, which commits whatever the answer is."""
    with Session(world.database.engine) as session:
        answer = call(world, request, session=session, **options)
        assert session.scalar(text("SELECT 1")) == 1, "the caller's transaction can go on"
        session.commit()
    return answer


def in_a_batch(world: World, request: Any, *, signed: bool = True) -> Any:
    [answer] = batch(world, name_of(request), [arguments(world, request, signed=signed)])
    return answer


def batch(world: World, name: str, given: Sequence[tuple[Any, ...]]) -> Any:
    """The answers of a batch of requests, each with its authorization where it needs one."""
    method = getattr(world.wallets, f"{name}_many")
    return method([each if len(each) > 1 else each[0] for each in given])


def name_of(request: Any) -> str:
    return next(name for name, operation in BY_NAME.items() if operation.request is type(request))


def ways_of(name: str) -> list[Callable[..., Any]]:
    """Every way by which a request of that operation can be sent."""
    ways: list[Callable[..., Any]] = [call, by_an_empty_cache, joined]
    return [*ways, in_a_batch] if hasattr(WalletService, f"{name}_many") else ways


# ── what is there ──


def rows_of(database: Database) -> Rows:
    """Every row of every table as its columns give it, the same on both engines."""
    with database.read() as connection:
        return {
            name: [{c.name: row[c] for c in table.c} for row in connection.execute(select(table)).mappings()]
            for name, table in TABLES.items()
        }


@contextmanager
def nothing_happens(world: World) -> Iterator[None]:
    """Every row stays as it is, byte by byte, and nothing is announced."""
    rows, events = world.snapshot(), list(world.events)
    yield
    assert world.snapshot() == rows
    assert world.events == events


def succeeded(answer: Any) -> Any:
    assert not isinstance(answer, Exception), repr(answer)
    assert answer.replayed is False
    return answer


def is_replay(answer: Any, first: Any) -> None:
    assert answer == first, repr(answer)
    assert answer.replayed is True


# ── a key stands for one thing, for ever ──


def check_replay(world: World, name: str) -> None:
    """The same request gets the first answer by every way, from every service, whatever has happened since."""
    request = EXAMPLES[name](world)
    first = succeeded(call(world, request))
    world.credit(amount=7)
    world.settle(world.hold(amount=1).escrow_id, 1)
    again = replace(request, request_id="request-2", currency="points")
    with nothing_happens(world):
        for send in ways_of(name):
            is_replay(send(world, request), first)
            is_replay(send(world, again), first)


def check_conflicts(world: World, name: str) -> None:
    """Another value of any field is another request, and is refused by the names of what differs."""
    request = EXAMPLES[name](world)
    succeeded(call(world, request))
    names = [f.name for f in fields(request) if f.name not in NOT_COMPARED | WHOSE]
    others = {each: {each: another(getattr(request, each))} for each in names}
    with nothing_happens(world):
        for different in ([each] for each in names):
            for send in ways_of(name):
                assert_conflict(send(world, replace(request, **others[different[0]])), request, different)
        everything = {each: value for other in others.values() for each, value in other.items()}
        assert_conflict(call(world, replace(request, **everything)), request, names)


def assert_conflict(refusal: Any, request: Any, names: Sequence[str]) -> None:
    assert type(refusal) is IdempotencyConflictError, (names, repr(refusal))
    assert refusal.details == {"key": request.idempotency_key, "fields": tuple(names)}


def check_keys_of_others(world: World, name: str) -> None:
    """The same key of another owner is another key."""
    request = EXAMPLES[name](world)
    [whose] = [f.name for f in fields(request) if f.name in WHOSE]
    others = EXAMPLES[name](world, idempotency_key=request.idempotency_key, **{whose: another(getattr(request, whose))})
    first, second = (succeeded(call(world, each)) for each in (request, others))
    is_replay(by_an_empty_cache(world, request), first)
    is_replay(by_an_empty_cache(world, others), second)


# ── refusals ──


class Crowd:
    """What the ladders of refusals say is there."""

    def __init__(self, world: World, name: str) -> None:
        assert name in LADDERS, f"LADDERS in by_hand/refusals.py has nothing for {name}"
        self.world, self.name, self.ladder = world, name, LADDERS[name]
        world.credit("full", LIMIT)
        world.credit("rich", LIMIT)
        world.settle(world.hold("rich", LIMIT).escrow_id, LIMIT, user_id="rich", model_id="full")
        world.deposit("ben", 5, reference="payment-1")
        world.credit("ana", 500)
        world.credit("ana", 1, currency="gems")
        self.ids = {word: world.hold().escrow_id for word in ("HELD", "DONE", "OTHER")}
        world.settle(self.ids["DONE"])
        succeeded(call(world, self.request(idempotency_key="USED", **self.ladder.used)))
        if world.wallets.get_escrow(self.ids["OTHER"]).status == "held":
            world.refund(self.ids["OTHER"])
        missing = 1000 - world.wallets.get_user_balance("ana").available
        world.credit("ana", missing)
        world.events.clear()

    def request(self, **wrong: Any) -> Any:
        """The right request but for that, or what is refused in making it."""
        given = {"idempotency_key": "RIGHT", "request_id": "request-1", **self.ladder.right, **wrong}
        try:
            return BY_NAME[self.name].request(**self.named(given))
        except WalletError as refusal:
            return refusal

    def named(self, values: dict[str, Any]) -> dict[str, Any]:
        """With ids for the words that stand for them."""
        words = self.ids
        return {name: words.get(value, value) if isinstance(value, str) else value for name, value in values.items()}

    def rungs(self) -> Iterator[tuple[Rung, Any, bool]]:
        """Each rung with its request, wrong in this way and in all that follow, and whether it is signed."""
        for number, rung in enumerate(self.ladder.rungs):
            below = self.ladder.rungs[number:]
            wrong = {name: value for each in reversed(below) for name, value in each.wrong.items()}
            yield rung, self.request(**wrong), all(each.signed for each in below)


def check_refusals(world: World, name: str) -> None:
    """The first refusal by the documented order wins, changes nothing, and uses up no key."""
    crowd = Crowd(world, name)
    for rung, request, signed in crowd.rungs():
        if isinstance(request, WalletError):
            assert (rung.code, request.code) == ("invalid_request",) * 2, repr(request)
            assert request.details["field"] == rung.details["field"]
            continue
        with nothing_happens(world):
            for send in ways_of(name):
                refusal = send(world, request, signed=signed)
                assert isinstance(refusal, WalletError), (rung.code, send.__name__, repr(refusal))
                assert (refusal.code, refusal.details) == (rung.code, crowd.named(rung.details)), send.__name__
    succeeded(call(world, crowd.request()))
    assert len(world.events) == 1


def check_other_requests(world: World, name: str) -> None:
    """A method takes its own request alone."""
    own = EXAMPLES[name](world)
    others: list[Any] = [EXAMPLES[other](world) for other in EXAMPLES if other != name]
    method = getattr(world.wallets, METHODS[type(own)][0])
    rest = arguments(world, own)[1:]
    with nothing_happens(world):
        for wrong in [*others, None, {}, "request", vars(own), type(own), *rest]:
            for signed in {rest, (None,) * len(rest)}:
                with pytest.raises(InvalidRequestError) as refused:
                    method(wrong, *signed)
                told = refused.value.details
                assert (told["field"], told["value"]) == ("request", called(wrong)), "its type alone"
            if in_a_batch in ways_of(name):
                [answer] = batch(world, name, [(wrong, *rest)])
                assert type(answer) is InvalidRequestError
    succeeded(call(world, own))


# ── the rows written by hand ──


def check_by_hand(world: World, name: str, case: Case, send: Callable[..., Any] = call) -> None:
    """From the rows that are there to exactly those that must be; with the answers and the events of that."""
    with world.database.engine.begin() as connection:
        for table, rows in case.state.items():
            connection.execute(insert(TABLES[table]), [_by_key(table, row) for row in rows])
    ids: dict[str, str] = {}
    for number, sent in enumerate(case.sent, 1):
        world.events.clear()
        with freeze_time(NOW):
            request = BY_NAME[name].request(**sent.request)
            given = arguments(world, request)
            answer = _send_given(world, name, given, send)
        assert not isinstance(answer, Exception), repr(answer)
        if not sent.replayed:
            ids |= _made(number, answer, given)
        assert fields_of(answer) == _with_ids(sent.answer, ids) | {"replayed": sent.replayed}
        expected = [] if sent.event is None else [_with_ids(sent.event, ids)]
        assert [fields_of(event) for event in world.events] == expected
    for table, found in rows_of(world.database).items():
        assert _sorted(found) == _sorted([_with_ids(row, ids) for row in case.rows.get(table, ())]), table


def fields_of(value: Any) -> dict[str, Any]:
    return {each.name: getattr(value, each.name) for each in fields(value)}


def _by_key(table: str, row: dict[str, Any]) -> dict[str, Any]:
    return {column.key: row[column.name] for column in TABLES[table].c}


def _send_given(world: World, name: str, given: tuple[Any, ...], send: Callable[..., Any]) -> Any:
    try:
        if send is in_a_batch:
            [answer] = batch(world, name, [given])
            return answer
        method = METHODS[type(given[0])][0]
        if send is not joined:
            return getattr(world.service(), method)(*given)
        with Session(world.database.engine) as session, session.begin():
            return getattr(world.wallets, method)(*given, session=session)
    except Exception as error:
        return error


def _made(number: int, answer: Any, given: tuple[Any, ...]) -> dict[str, str]:
    """The ids that the module has made, by the words that stand for them."""
    made = {f"T{number}": answer.transaction_id}
    if hasattr(answer, "escrow_id"):
        made[f"E{number}"] = answer.escrow_id
    for authorization in given[1:]:
        made[f"A{number}"] = jwt.decode(authorization.token, options={"verify_signature": False})["jti"]
    assert {uuid.UUID(each).version for each in made.values()} == {7}
    return made


def _with_ids(row: dict[str, Any], ids: dict[str, str]) -> dict[str, Any]:
    return {name: ids.get(value, value) if isinstance(value, str) else value for name, value in row.items()}


def _sorted(rows: list[dict[str, Any]]) -> list[str]:
    return sorted(repr(sorted(row.items())) for row in rows)


# ── one way or another ──


def run_of(world: World, name: str, way: str) -> tuple[Any, Any, Any]:
    """What right, wrong and repeated requests of an operation are answered and leave, without the ids and times."""
    crowd = Crowd(world, name)
    right = crowd.request()
    wrong = [(request, signed) for _, request, signed in crowd.rungs() if not isinstance(request, WalletError)]
    others = [EXAMPLES[name](world, reason="another_reason"), EXAMPLES[name](world, currency="gems")]
    asked = [*wrong, (right, True), (right, True), *((other, True) for other in others)]
    asked += [(replace(other, metadata=None), True) for other in others]
    asked += [(replace(right, idempotency_key="again"), True)]
    given = [arguments(world, request, signed=signed) for request, signed in asked]
    if way == "batch":
        answers = batch(world, name, given)
    else:
        send = joined_given if way == "joined" else call_given
        answers = [send(world, each) for each in given]
    ids: dict[str, str] = {}
    told = [_plain(_told(answer), ids) for answer in answers]
    rows = {name: sorted(_plain(row, ids) for row in rows) for name, rows in _by_id(rows_of(world.database)).items()}
    return told, rows, [_plain((type(event).__name__, fields_of(event)), ids) for event in world.events]


def call_given(world: World, given: tuple[Any, ...], **options: Any) -> Any:
    try:
        return getattr(world.wallets, METHODS[type(given[0])][0])(*given, **options)
    except WalletError as refusal:
        return refusal


def joined_given(world: World, given: tuple[Any, ...]) -> Any:
    with Session(world.database.engine) as session, session.begin():
        return call_given(world, given, session=session)


def _told(answer: Any) -> Any:
    if isinstance(answer, WalletError):
        return type(answer).__name__, answer.details, str(answer)
    return type(answer).__name__, vars(answer)


def _by_id(rows: Rows) -> Rows:
    """In the order of making, which the ids sort by."""
    return {name: sorted(each, key=lambda row: repr(list(row.values()))) for name, each in rows.items()}


def _plain(value: Any, ids: dict[str, str]) -> str:
    text = TIME.sub("a time", repr(value))
    return UUID.sub(lambda found: ids.setdefault(found[0], f"id-{len(ids)}"), text)


# ── the caller's transaction ──


def check_joined(world: World, name: str) -> None:
    """It commits with the caller, and is announced once then; rolled back, nothing is left of it, not even the key."""
    request = EXAMPLES[name](world)
    engine = world.database.engine
    world.events.clear()
    with nothing_happens(world), Session(engine) as session:
        assert call(world, request, session=session).replayed is False
        session.rollback()
    with nothing_happens(world), Session(engine) as session:
        savepoint = session.begin_nested()
        assert call(world, request, session=session).replayed is False
        savepoint.rollback()
        session.commit()
    before = rows_of(world.database)
    with Session(engine) as session:
        with session.begin_nested():
            first = succeeded(call(world, request, session=session))
        is_replay(call(world, request, session=session), first)
        assert (world.events, rows_of(world.database)) == ([], before), "seen before it is committed"
        session.commit()
        assert world.events == list(map(event_of, world.ledger.transactions([first.transaction_id])))
        session.commit()
    with nothing_happens(world):
        is_replay(call(world, request), first)
    assert len(world.events) == 1


# ── what is told of it ──


def check_event(world: World, name: str) -> None:
    """One event, of the class that is declared and the type that the chart has, equal to request, answer and record."""
    request = EXAMPLES[name](world)
    world.events.clear()
    response = succeeded(call(world, request))
    assert type(response) is get_type_hints(getattr(WalletService, METHODS[type(request)][0]))["return"]
    is_replay(call(world, request), response)
    is_replay(by_an_empty_cache(world, request), response)
    assert len(world.events) == 1
    [event] = world.events
    assert type(event) is BY_NAME[name].event
    assert event.event_type == CHART[name].announced
    assert (event.event_id, event.occurred_at, event.metadata) == (
        response.transaction_id,
        response.timestamp,
        METADATA,
    )
    recorded = world.ledger.transaction(response.transaction_id)
    assert recorded is not None
    assert event_of(recorded) == event
    for source in (replace(request, currency="points"), response):
        for each in fields(source):
            if hasattr(event, each.name) and each.name != "metadata":
                assert getattr(event, each.name) == getattr(source, each.name), each.name
    told = {each.name for each in fields(event)}
    assert told >= {each.name for each in fields(response)} - {"timestamp", "replayed"}, "the event tells less"


def check_audit(world: World, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """One line with everything that request and answer say, but no metadata; none for repetitions and refusals."""
    request = EXAMPLES[name](world)
    caplog.set_level(logging.INFO)
    caplog.clear()
    response = succeeded(call(world, request))
    is_replay(by_an_empty_cache(world, request), response)
    assert_conflict(call(world, replace(request, reason="another_reason")), request, ["reason"])
    [line] = [record for record in caplog.records if record.name == "points_platform.audit"]
    assert line.getMessage() == f"{name} {response.transaction_id}"
    told = vars(line)["points_platform"]
    for source in (replace(request, currency="points"), response):
        for each in fields(source):
            if each.name not in {"metadata", "replayed", "timestamp", "settle_amount", "refund_amount"}:
                assert told[each.name] == getattr(source, each.name), each.name
    assert told["occurred_at"] == response.timestamp.isoformat()
    recorded = world.ledger.transaction(response.transaction_id)
    header = {each: getattr(recorded, each) for each in ("owner_id", "escrow_id", "model_id", "authorization_id")}
    assert {each: told[each] for each in header} == header
    assert not {"metadata", "metadata_json", "details_json"} & set(told)
    assert "Lisbon" not in "".join(repr(vars(record)) for record in caplog.records)


# ── the ledger knows it all ──


def check_sealed(world: World, name: str, elsewhere: Database) -> None:
    """Sealed, verified, computed again, and carried to another database byte by byte; the request is in its record."""
    requests = [EXAMPLES[name](world), EXAMPLES[name](world, metadata=None, currency="gems")]
    for request in requests:
        response = succeeded(call(world, request))
        recorded = world.ledger.transaction(response.transaction_id)
        assert recorded is not None
        assert request_of(recorded) == replace(request, currency=request.currency or "points")
        assert response_of(recorded) == response
    head = world.ledger.seal().head
    assert_clean(world.database, head=head)
    with world.database.snapshot() as connection:
        assert list(drifts(connection)) == []
    text_of_it = exported(world.database)
    assert restore(elsewhere, io.StringIO(text_of_it, newline="\n")) == head
    assert _by_id(rows_of(elsewhere)) == _by_id(rows_of(world.database))
    assert exported(elsewhere) == text_of_it
    assert_clean(elsewhere, head=head)
    there = World(elsewhere)
    is_replay(there.send(requests[-1]), response)


def assert_clean(database: Database, **options: Any) -> None:
    findings = list(verify(database, **options))
    assert findings == [], findings


def exported(database: Database) -> str:
    file = io.StringIO()
    export_log(database, file)
    return file.getvalue()


# ── hostile values ──

TEXTS = (
    """'; DROP TABLE user_wallets; -- "quoted" \\ \\n %s %(name)s %% {row} {{x}} :name $1 ? ::text NULL """,
    " 🎤 e\u0301 é ß İ 漢字 a | b , c ",
    "-" * 128,
)
CODES = {"reason": 64, "currency": 32, "feature_type": 32}


def check_texts(world: World, name: str) -> None:
    """Whatever text is printable is an identifier: stored, answered and read back as it was given."""
    for words in TEXTS:
        request = EXAMPLES[name](world, **_all_texts(name, words, EXAMPLES[name](world)))
        response = succeeded(call(world, request))
        is_replay(by_an_empty_cache(world, request), response)
        recorded = world.ledger.transaction(response.transaction_id)
        assert recorded is not None
        assert request_of(recorded) == request
        assert event_of(recorded) == world.events[-1]
    assert_clean(world.database)


def _all_texts(name: str, words: str, example: Any) -> dict[str, Any]:
    """That text in every field that takes any, codes of their full length in the others."""
    given: dict[str, Any] = {}
    for each in fields(example):
        if each.name in CODES:
            given[each.name] = "a_9" * 10 + "z" * (CODES[each.name] - 30)
        elif each.name == "owner":
            given["owner"] = f"user:{words}" if len(words) % 2 else f"model:{words}"
        elif each.name == "recipient_id":
            given["recipient_id"] = words[:-1] + "~"
        elif each.name != "escrow_id" and isinstance(getattr(example, each.name), str):
            given[each.name] = words
    return given | {"metadata": {words: [words]}}


WRONG_TEXTS: list[Any] = [7, 1.5, True, b"x", [], {}, object(), datetime(2026, 3, 1), "", "a\0", "\n", "\ud800"]
WRONG: dict[type, list[Any]] = {
    str: [*WRONG_TEXTS, "x" * 129],
    int: [0, -1, 2**53, 1.0, float("nan"), True, "30", b"1", [], object()],
    dict: [7, "x", [], {1: 2}, {"n": float("nan")}, {"s": {1}}, b"", {"long": "x" * 2**14}],
}
WRONG_CODES = ["Upper", "with space", "1st", "a-b", "é"]
WRONG_OWNERS = [
    "ana",
    "user:",
    ":ana",
    "user",
    "platform:issuer",
    "robot:r2",
    "User:ana",
    "user:" + "x" * 129,
    "user:\0",
]


def check_wrong_values(name: str, example: Any) -> None:
    """A value that a field cannot have is refused by the field's name."""
    for each in fields(example):
        value = getattr(example, each.name)
        wrong = list(WRONG[str if value is None else type(value)])
        wrong += WRONG_CODES if each.name in CODES else WRONG_OWNERS if each.name == "owner" else []
        wrong += [None] if each.default is not None else []
        for one in wrong:
            with pytest.raises(InvalidRequestError) as refused:
                replace(example, **{each.name: one})
            assert refused.value.details["field"] == each.name, (name, one)


# ── many at once ──

THREADS = 8


def check_contention(world: World, name: str) -> None:
    """The same request, sent at once by many, is carried out once, and all have the one answer."""
    request = EXAMPLES[name](world)
    world.events.clear()
    before = len(rows_of(world.database)["ledger_transactions"])
    services = [world.wallets, world.service()]
    answers = at_once(*(partial(world.send, request, services[n % 2]) for n in range(THREADS)))
    assert [each for each in answers if isinstance(each, Exception)] == []
    assert all(each == answers[0] for each in answers)
    assert sorted(each.replayed for each in answers) == [False] + [True] * (THREADS - 1)  # type: ignore[union-attr]
    assert len(rows_of(world.database)["ledger_transactions"]) == before + 1
    assert len(world.events) == 1
