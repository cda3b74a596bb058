"""What follows a commit: no step of it can fail the operation, the host's commit, or another step."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy.orm import Session

from points_platform.core.failures import Stale
from points_platform.core.sessions import after_commit
from points_platform.events import EventBus, WalletEvent
from points_platform.ledger import LedgerService
from points_platform.wallets import rebuild
from points_platform.wallets.facts import Record
from points_platform.wallets.remembered import Remembered
from support.world import World

AUDIT = "points_platform.audit"
ANNOUNCE = "points_platform.wallets.announce"
STANDARD = set(vars(logging.makeLogRecord({}))) | {"taskName", "message", "asctime"}


@contextmanager
def logging_with(
    *, factory: Callable[..., Any] | None = None, handler: logging.Handler | None = None, wrecked: Any = None
) -> Iterator[None]:
    """The host's logging: everything at DEBUG, by its own factory, handler and filter."""
    root, before = logging.getLogger(), logging.getLogRecordFactory()
    names = (
        AUDIT,
        ANNOUNCE,
        "points_platform.events.service",
        "points_platform.core.database",
        "points_platform.core.sessions",
    )
    loggers = {logger: logger.level for logger in (root, *map(logging.getLogger, names))}
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
        if wrecked is not None:
            logger.addFilter(wrecked)
    if factory is not None:
        logging.setLogRecordFactory(factory)
    if handler is not None:
        root.addHandler(handler)
    try:
        yield
    finally:
        logging.setLogRecordFactory(before)
        for logger, level in loggers.items():
            logger.setLevel(level)
            if wrecked is not None:
                logger.removeFilter(wrecked)
        if handler is not None:
            root.removeHandler(handler)


def of_the_cookbook(*given: Any, **options: Any) -> logging.LogRecord:
    """A factory that gives each record what the host's requests and services are known by."""
    record = logging.LogRecord(*given, **options)
    for name in ("request_id", "user_id", "operation", "event_id", "attempt", "table", "amount", "currency"):
        setattr(record, name, f"the host's {name}")
    return record


class Raising(logging.Handler):
    """What a handler may do where its own ``emit`` does not catch it."""

    def handle(self, record: logging.LogRecord) -> bool:
        raise OSError("the disk is full")


class Json(logging.Handler):
    """The plainest of all JSON formatters: whatever a record has that ``makeLogRecord`` does not give it."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        fields = {name: value for name, value in vars(record).items() if name not in STANDARD}
        self.lines.append(json.loads(json.dumps({"name": record.name, "message": record.getMessage(), **fields})))


def refuse(*given: Any) -> Any:
    raise RuntimeError("no")


LOGGING: dict[str, Callable[[], dict[str, Any]]] = {
    "a factory that sets names of ours": lambda: {"factory": of_the_cookbook},
    "a factory that raises": lambda: {"factory": lambda *given, **options: refuse()},
    "a factory that returns nothing": lambda: {"factory": lambda *given, **options: None},
    "a filter that raises": lambda: {"wrecked": refuse},
    "a handler that raises": lambda: {"handler": Raising()},
}


@pytest.fixture(params=LOGGING)
def hostile_logging(request: pytest.FixtureRequest) -> Iterator[None]:
    with logging_with(**LOGGING[request.param]()):
        yield


def three(world: World) -> list[Any]:
    return [world.credit_request(user_id=name) for name in ("ana", "ben", "cem")]


def is_whole(world: World, requests: list[Any], answers: list[Any]) -> None:
    """Each was answered, announced once in its order, and is what its key stands for."""
    assert [answer.replayed for answer in answers] == [False] * len(requests)
    ids = [answer.transaction_id for answer in answers]
    assert [event.event_id for event in world.events] == ids
    assert [world.send(request, world.service()).transaction_id for request in requests] == ids


@pytest.mark.usefixtures("hostile_logging")
def test_an_operation_succeeds_and_is_announced_whatever_the_hosts_logging_does(world: World) -> None:
    requests = three(world)
    answers = [world.send(request) for request in requests]
    assert [world.send(request).replayed for request in requests] == [True] * 3
    is_whole(world, requests, answers)


@pytest.mark.usefixtures("hostile_logging")
def test_a_batch_has_all_its_answers_and_events_whatever_the_hosts_logging_does(world: World) -> None:
    requests = three(world)
    is_whole(world, requests, world.wallets.credit_many(requests))


@pytest.mark.usefixtures("hostile_logging")
def test_the_hosts_commit_does_not_fail_whatever_its_logging_does(world: World) -> None:
    requests = three(world)
    with Session(world.database.engine) as session:
        answers = [world.send(request, session=session) for request in requests]
        session.commit()
    is_whole(world, requests, answers)


@pytest.mark.usefixtures("hostile_logging")
def test_a_retry_is_one_whatever_the_hosts_logging_does(stepwise: World) -> None:
    class Contended(LedgerService):
        times = 1

        def record(self, *given: Any) -> None:
            self.times -= 1
            if self.times >= 0:
                raise Stale
            super().record(*given)

    request, ledger = stepwise.credit_request(), Contended(stepwise.database)
    is_whole(stepwise, [request], [stepwise.send(request, stepwise.service(ledger=ledger))])
    assert ledger.times == -1


@pytest.mark.usefixtures("hostile_logging")
def test_a_repair_is_made_whatever_the_hosts_logging_does(world: World) -> None:
    world.credit()
    with world.database.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE user_wallets SET available = 99")
    with world.database.snapshot() as connection:
        (drift,) = rebuild.drifts(connection)
    assert rebuild.apply(world.database, drift) is True
    assert world.wallets.get_user_balance("ana").available == 100


def test_the_line_of_an_operation_tells_its_facts_beside_whatever_the_host_sets(world: World) -> None:
    """And any JSON formatter can write it."""
    handler = Json()
    with logging_with(factory=of_the_cookbook, handler=handler):
        credit = world.credit()
        response = world.settle(world.hold().escrow_id)
    lines = [line for line in handler.lines if line["name"] == AUDIT]
    assert [line["points_platform"]["operation"] for line in lines] == ["credit", "hold", "settle"]
    assert lines[0]["request_id"] == "the host's request_id"
    told = lines[0]["points_platform"]
    assert (told["request_id"], told["event_id"], told["amount"]) == ("request-1", credit.transaction_id, 100)
    assert datetime.fromisoformat(lines[2]["points_platform"]["occurred_at"]) == response.timestamp


# ── each step by itself ──


class BrokenBus(EventBus):
    def publish(self, event: WalletEvent) -> None:
        raise RuntimeError("the bus itself is broken")


STEPS: dict[str, Any] = {
    "the audit line failed on": Record.audit_fields,
    "the cache failed on": Remembered.keep,
    "the event bus failed on": Record.event,
}


@pytest.mark.parametrize("failed", STEPS)
@pytest.mark.parametrize("way", ["one by one", "in a batch", "in a session"])
def test_a_step_that_fails_is_logged_with_the_events_id_and_the_others_are_taken(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, failed: str, way: str
) -> None:
    """Of three operations the step of the second one fails."""
    requests, step = three(world), STEPS[failed]
    owner = Remembered if step is Remembered.keep else Record

    def fail_for_ben(self: Any, *given: Any) -> Any:
        transaction = given[0] if given else self.transaction
        if transaction.owner_id == "user:ben":
            raise RuntimeError("no")
        return step(self, *given)

    monkeypatch.setattr(owner, step.__name__, fail_for_ben)
    with caplog.at_level(logging.INFO):
        answers = carried_out(world, requests, way)
    ids = [answer.transaction_id for answer in answers]
    without = [ids[0], ids[2]]
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    if owner is Record or way == "one by one":  # what is not alone is not remembered
        (warning,) = warnings
        assert warning.getMessage() == f"{failed} event {ids[1]}"
        assert vars(warning)["points_platform"] == {"event_id": ids[1], "operation": "credit"}
        assert warning.exc_info is not None
    audited = [vars(record)["points_platform"]["event_id"] for record in caplog.records if record.name == AUDIT]
    assert audited == (without if step.__name__ == "audit_fields" else ids)
    assert [event.event_id for event in world.events] == (without if step.__name__ == "event" else ids)
    monkeypatch.undo()
    assert [world.send(request).transaction_id for request in requests] == ids


def carried_out(world: World, requests: list[Any], way: str) -> list[Any]:
    if way == "one by one":
        return [world.send(request) for request in requests]
    if way == "in a batch":
        return list(world.wallets.credit_many(requests))
    with Session(world.database.engine) as session:
        answers = [world.send(request, session=session) for request in requests]
        session.commit()
    return answers


@pytest.mark.parametrize("way", ["one by one", "in a batch", "in a session"])
def test_a_bus_that_raises_loses_its_events_and_nothing_else(
    world: World, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    world.wallets = world.service(events=BrokenBus())
    requests = three(world)
    with caplog.at_level(logging.INFO):
        answers = carried_out(world, requests, way)
    ids = [answer.transaction_id for answer in answers]
    assert [vars(each)["points_platform"]["event_id"] for each in caplog.records if each.name == AUDIT] == ids
    assert [vars(each)["points_platform"]["event_id"] for each in caplog.records if each.name == ANNOUNCE] == ids


def test_an_interrupt_is_no_failure_of_a_step(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*given: Any) -> None:
        raise KeyboardInterrupt

    request = world.credit_request()
    monkeypatch.setattr(Record, "event", interrupt)
    with pytest.raises(KeyboardInterrupt):
        world.send(request)
    monkeypatch.undo()
    assert world.send(request).replayed


# ── a host's commit ──


def test_the_hosts_commit_stands_where_the_committed_cannot_be_read(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Session(world.database.engine) as session:
        answer = world.send(world.credit_request(), session=session)
        monkeypatch.setattr(world.ledger, "transactions", refuse)
        session.commit()
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert vars(warning)["points_platform"] == {"event_ids": [answer.transaction_id]}
    assert world.wallets.get_user_balance("ana").available == 100


def test_a_delivery_that_raises_fails_neither_the_commit_nor_the_other_deliveries(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    delivered: list[list[str]] = []
    with Session(world.database.engine) as session:
        session.connection()
        after_commit(session, "first", "a", delivered.append)
        after_commit(session, "second", "b", refuse)
        after_commit(session, "third", "c", delivered.append)
        session.commit()
        assert delivered == [["a"], ["c"]]
        after_commit(session, "fourth", "d", delivered.append)
        session.connection()
        session.commit()
    assert delivered == [["a"], ["c"], ["d"]]
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert vars(warning)["points_platform"] == {"items": ["b"]}


def test_one_transaction_of_a_session_that_cannot_be_told_loses_none_of_the_others(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that a newer release has written under the same session, say."""
    made = Record.__init__

    def make(self: Record, transaction: Any) -> None:
        if transaction.owner_id == "user:ben" and not joining:
            raise RuntimeError("no")
        made(self, transaction)

    joining = True
    monkeypatch.setattr(Record, "__init__", make)
    requests = three(world)
    with Session(world.database.engine) as session:
        answers = [world.send(request, session=session) for request in requests]
        joining = False
        session.commit()
    ids = [answer.transaction_id for answer in answers]
    assert [event.event_id for event in world.events] == [ids[0], ids[2]]
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert warning.getMessage() == f"nothing was announced of event {ids[1]}"
