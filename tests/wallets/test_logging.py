"""What is logged, at which level and with which fields, and what never is."""

import json
import logging
import pickle
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from sqlalchemy import event
from sqlalchemy.orm import Session

from points_platform.core import Database, OptimisticLockError, WalletError
from points_platform.core.failures import Stale
from points_platform.events import EVENT_TYPES, EventBus, WalletEvent
from points_platform.ledger import LedgerService
from points_platform.queue import AuthorizationKey, QueueAuthorizer
from points_platform.wallets import WalletConfig, WalletService
from support.world import SECRET, World

AUDIT = "points_platform.audit"
FIELDS = "points_platform"
RETRIES = "points_platform.core.database"
STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


@pytest.fixture(autouse=True)
def _everything_is_captured(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger="sqlalchemy")


def structured(record: logging.LogRecord) -> dict[str, Any]:
    """What the line tells beside its message: one attribute, so that nothing of a host's can be in its way."""
    assert {name for name in vars(record) if name not in STANDARD} == {FIELDS}
    told: dict[str, Any] = vars(record)[FIELDS]
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    return told


def records(caplog: pytest.LogCaptureFixture, logger: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == logger]


def of_the_module(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name.startswith("points_platform")]


class Contended(LedgerService):
    """A ledger whose first writes find that somebody else was faster."""

    def __init__(self, database: Database, times: int) -> None:
        super().__init__(database)
        self.times = times

    def record(self, *given: Any) -> None:
        self.times -= 1
        if self.times >= 0:
            raise Stale
        super().record(*given)


def contended(world: World, times: int, retries: int) -> WalletService:
    config = WalletConfig(max_retry_attempts=retries, retry_backoff_ms=0)
    ledger = Contended(world.database, times)
    return WalletService(ledger, authorizer=world.authorizer, events=world.bus, config=config)


# ── the audit line ──


def audited(world: World, caplog: pytest.LogCaptureFixture, request: Any, **options: Any) -> dict[str, Any]:
    """What the one audit line of the request says in its fields."""
    caplog.clear()
    response = world.send(request, **options)
    lines = records(caplog, AUDIT)
    assert len(lines) == 1
    assert lines[0].levelno == logging.INFO
    told = structured(lines[0])
    assert lines[0].getMessage() == f"{told['operation']} {response.transaction_id}"
    assert told["transaction_id"] == told["event_id"] == response.transaction_id
    assert told["occurred_at"] == response.timestamp.isoformat()
    return told


def test_replays_and_refusals_leave_no_audit_line(world: World, caplog: pytest.LogCaptureFixture) -> None:
    credit = world.credit_request()
    world.send(credit)
    hold = world.hold_request()
    escrow_id = world.send(hold).escrow_id
    settle = world.settle_request(escrow_id)
    world.send(settle)
    caplog.clear()
    for request in (credit, hold, settle):
        assert world.send(request).replayed
        assert world.send(request, world.service()).replayed
    refused: list[Callable[[], object]] = [
        lambda: world.send(replace(credit, amount=1)),
        lambda: world.hold(amount=1000),
        lambda: world.settle("no-such-item"),
        lambda: world.refund(escrow_id),
        lambda: world.send(settle, authorization=None),
        lambda: world.credit(amount=2**53 - 1),
    ]
    for call in refused:
        with pytest.raises(WalletError):
            call()
    assert records(caplog, AUDIT) == []


def test_in_the_callers_transaction_the_audit_line_follows_the_commit(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    with Session(world.database.engine) as session:
        world.send(world.credit_request(), session=session)
        session.rollback()
        response = world.send(world.credit_request(), session=session)
        assert records(caplog, AUDIT) == []
        session.commit()
    assert [structured(record)["transaction_id"] for record in records(caplog, AUDIT)] == [response.transaction_id]


def test_the_audit_line_is_written_without_a_bus_too(world: World, caplog: pytest.LogCaptureFixture) -> None:
    audited(world, caplog, world.credit_request(), wallets=world.service(events=None))


# ── retries and degraded events ──


@pytest.mark.parametrize("conflicts", [0, 1, 3])
def test_each_retry_is_logged_at_debug_with_its_number_and_its_reason(
    stepwise: World, caplog: pytest.LogCaptureFixture, conflicts: int
) -> None:
    stepwise.send(stepwise.credit_request(), contended(stepwise, conflicts, retries=3))
    lines = records(caplog, RETRIES)
    assert [line.levelno for line in lines] == [logging.DEBUG] * conflicts
    assert [structured(line) for line in lines] == [
        {"attempt": number, "code": "optimistic_lock"} for number in range(1, conflicts + 1)
    ]
    assert len(records(caplog, AUDIT)) == 1, "one operation, however often it was tried"


def test_a_conflict_that_wins_leaves_the_retries_at_debug_and_nothing_louder(
    stepwise: World, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(OptimisticLockError) as caught:
        stepwise.send(stepwise.credit_request(), contended(stepwise, 9, retries=2))
    assert caught.value.details == {"attempts": 3}
    assert [structured(line)["attempt"] for line in records(caplog, RETRIES)] == [1, 2]
    assert {record.levelno for record in of_the_module(caplog)} == {logging.DEBUG}


def test_a_conflict_of_two_real_transactions_is_logged_too(
    postgresql_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Between a hold's read and its write, a credit goes through on another connection."""
    with Database(postgresql_url, single_statement=False) as database:
        world = World(database)
        world.credit()
        waiting = [world.credit_request(amount=7)]

        def come_between(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
            if waiting and statement.startswith("SELECT") and "ledger_transactions" in statement:
                world.send(waiting.pop())

        event.listen(database.engine, "after_cursor_execute", come_between)
        response = world.hold(amount=50)
        event.remove(database.engine, "after_cursor_execute", come_between)
    assert (response.previous_balance, response.new_available_balance) == (107, 57)
    assert [structured(line) for line in records(caplog, RETRIES)] == [{"attempt": 1, "code": "optimistic_lock"}]


def test_a_failed_receiver_and_a_broken_bus_are_warnings_with_the_events_id(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(EventBus):
        def publish(self, event: WalletEvent) -> None:
            raise OSError("gone")

    world.bus.subscribe("wallet.credited", lambda event: 1 / 0)
    first = world.send(world.credit_request())
    second = world.send(world.credit_request(), world.service(events=Broken()))
    louder = [record for record in of_the_module(caplog) if record.levelno > logging.INFO]
    assert [record.levelno for record in louder] == [logging.WARNING] * 2
    assert [structured(record)["event_id"] for record in louder] == [first.transaction_id, second.transaction_id]
    assert all(
        response.transaction_id in record.getMessage() for response, record in zip((first, second), louder, strict=True)
    )
    assert all(record.exc_info for record in louder)


def test_an_ordinary_evening_is_silent_but_for_the_audit(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.credit()
    world.settle(world.hold().escrow_id)
    world.wallets.get_user_balance("ana")
    assert {record.name for record in of_the_module(caplog)} == {AUDIT}
    assert {record.levelno for record in of_the_module(caplog)} == {logging.INFO}


# ── secrets ──

PRIVATE = Ed25519PrivateKey.generate()
PEM = PRIVATE.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def shown(error: WalletError) -> str:
    """Everything that an error may end in a log with."""
    text = [str(error), repr(error), repr(error.details), repr(pickle.dumps(error.details))]
    return "\n".join([*text, *traceback.format_exception(error)])


def evening(stepwise: World, caplog: pytest.LogCaptureFixture) -> tuple[list[str], list[str]]:
    """All operations, replays and refusals; returns the tokens used and all that was shown of it."""
    tokens: list[str] = []
    said: list[str] = []

    def send(request: Any, **options: Any) -> Any:
        if hasattr(request, "escrow_id"):
            authorization = options.setdefault("authorization", stepwise.authorize(request))
            tokens.append(authorization.token)
            said.append(f"{authorization!r} {authorization} {[authorization]}")
        try:
            response = stepwise.send(request, **options)
        except WalletError as error:
            said.append(shown(error))
            return None
        said.append(repr(response))
        return response

    send(stepwise.credit_request())
    escrow_ids = [send(stepwise.hold_request()).escrow_id for _ in range(3)]
    make: list[Callable[..., Any]] = [stepwise.settle_request, stepwise.refund_request, stepwise.partial_settle_request]
    for request in [make(escrow_id) for make, escrow_id in zip(make, escrow_ids, strict=True)]:
        genuine = stepwise.authorize(request)
        head, body, signature = genuine.token.split(".")
        forged = [f"{head}.{body}.{signature[::-1]}", f"{head}.{head}.{signature}", f"{body}.{body}.{signature}"]
        forged += [genuine.token + "=", genuine.token + "\n", genuine.token * 20, f"{head}.{body}"]
        for token in forged:
            send(request, authorization=replace(genuine, token=token))
        for name in ("reason", "user_id", "queue_item_id"):
            send(request, authorization=replace(genuine, **{name: "else"}))
            send(request, authorization=stepwise.authorize(request, **{name: "else"}))
        send(request)
        send(request)
        send(replace(request, reason="another"))
        send(replace(request, idempotency_key=stepwise.key()))
        send(replace(request, idempotency_key=stepwise.key(), escrow_id="no-such-item"))
        send(replace(request, idempotency_key=stepwise.key()), wallets=contended(stepwise, 9, retries=1))
    said += [repr(event) + repr(vars(event)) for event in stepwise.events]
    said += [f"{record.getMessage()} {vars(record)!r} {record.exc_text}" for record in caplog.records]
    return tokens, said


@pytest.mark.parametrize("key", [SECRET, PEM], ids=["secret", "private key"])
def test_no_token_and_no_secret_is_ever_shown(url: str, caplog: pytest.LogCaptureFixture, key: str) -> None:
    """Down to the database driver's own log at DEBUG, with every statement and its parameters."""
    with Database(url) as database:
        world = World(database, authorizer=QueueAuthorizer(key))
        for event_type in EVENT_TYPES:
            world.bus.subscribe(event_type, lambda event: 1 / 0)
        tokens, said = evening(world, caplog)
        said += [repr(world.authorizer), repr(world.wallets), repr(AuthorizationKey.of(key))]
        said.append(repr(world.snapshot()))
    assert len(tokens) > 40
    assert any("sqlalchemy" in record.name for record in caplog.records), "the statements were captured"
    everything = "\n".join(said)
    for token in tokens:
        signature = token.strip("=\n").rpartition(".")[2]
        assert len(signature) > 20
        assert signature not in everything
        assert token[:60] not in everything
    for line in key.splitlines():
        if "-----" not in line:
            assert line not in everything
