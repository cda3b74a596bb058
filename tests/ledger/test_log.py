"""The log: what is sealed can be recomputed by anybody, comes in order, and is never missed, doubled or changed."""

import hashlib
import itertools
import json
import logging
import random
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, String, event, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from points_platform.core import (
    Database,
    InvalidRequestError,
    OptimisticLockError,
    StorageUnavailableError,
    WalletError,
)
from points_platform.core.clock import GivenClock
from points_platform.core.errors import LedgerDamagedError
from points_platform.core.values import id_at, new_id
from points_platform.ledger import (
    ISSUER,
    Bucket,
    LedgerService,
    LedgerTransaction,
    LogEntry,
    LogReader,
    Movement,
    Sealed,
    Sealer,
    TransactionDraft,
    WalletState,
    log_store,
    post,
)
from points_platform.ledger.accounts import available
from points_platform.ledger.log import GENESIS, Candidate, canonical_form, in_order
from support.answers import refused
from support.recount import recount
from support.statements import execute, once_before
from support.world import World, at_once

GIVE_UP = 20.0  # seconds after which a test that waits in vain fails
MINUTE = timedelta(minutes=1)


@pytest.fixture
def unaudited(database: Database) -> World:
    """A world that is damaged on purpose: no recount at the end."""
    return World(database)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("points_platform.ledger.sealing.SEAL_BATCH", 3)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Retries come at once; what they would have waited for is noted."""
    pauses: list[float] = []
    monkeypatch.setattr("points_platform.core.database.time.sleep", pauses.append)
    return pauses


def play(world: World, rounds: int = 2, users: Sequence[str] = ("ana", "ben")) -> None:
    """Seven transactions of each user, with one model."""
    for user_id, _ in itertools.product(users, range(rounds)):
        world.credit(user_id)
        world.settle(world.hold(user_id).escrow_id, user_id=user_id)
        world.refund(world.hold(user_id).escrow_id, user_id=user_id)
        world.partial_settle(world.hold(user_id).escrow_id, user_id=user_id)


def trade(world: World, users: Sequence[str]) -> None:
    """Five more of each, which touch wallets of two users, one of one, or nothing but the log."""
    for user_id, other in zip(users, [*users[1:], users[0]], strict=True):
        world.deposit(user_id)
        world.spend(user_id, order_id="order-1")
        world.transfer(user_id, recipient_id=other)
        world.open(f"user:{other}")
        world.open("model:luna")


def around_triggers(world: World, *statements: str) -> None:
    """Do what only somebody with all rights on the database can do; the triggers are back afterwards."""
    with world.database.engine.begin() as connection:
        triggers: list[tuple[str, str]] = []
        if world.database.is_sqlite:
            found = connection.execute(text("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"))
            triggers = [(row.name, row.sql) for row in found]
        else:
            connection.execute(text("SET LOCAL session_replication_role = replica"))
        for name, _ in triggers:
            connection.execute(text(f"DROP TRIGGER {name}"))
        for statement in statements:
            assert connection.execute(text(statement)).rowcount >= 1, "the damage has been done"
        for _, sql in triggers:
            connection.execute(text(sql))


def column(world: World, statement: str) -> list[Any]:
    with world.database.engine.connect() as connection:
        return list(connection.scalars(text(statement)))


def log_rows(world: World) -> list[tuple[int, str, str]]:
    with world.database.engine.connect() as connection:
        rows = connection.execute(text("SELECT position, transaction_id, hash FROM ledger_log ORDER BY position"))
        return [(row.position, row.transaction_id, row.hash) for row in rows]


def whole_log(world: World, limit: int = 1000) -> list[LogEntry]:
    found: list[LogEntry] = []
    while page := world.ledger.read_log(len(found), limit):
        found += page
    return found


# What the architecture document tells an outsider, with nothing but a standard library.
HEADER = [
    *("transaction_id", "owner_id", "operation", "idempotency_key", "request_id", "reason", "currency", "occurred_at"),
    *("escrow_id", "queue_item_id", "feature_type", "model_id", "authorization_id", "metadata_json"),
]
ENTRY = ["account_id", "bucket", "amount", "balance_before", "balance_after", "wallet_version", "posted_at"]


def plain(value: Any) -> Any:
    if not isinstance(value, datetime):
        return value
    assert value.utcoffset() == timedelta(0)
    return value.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def outsiders_form(transaction: LedgerTransaction) -> str:
    entries = sorted(transaction.entries, key=lambda entry: (entry.account_id, entry.bucket))
    lines = [[plain(getattr(entry, name)) for name in ENTRY] for entry in entries]
    # What few operations have to tell stands there only where it is told.
    told = [] if transaction.details_json is None else [transaction.details_json]
    return json.dumps([*(plain(getattr(transaction, name)) for name in HEADER), *told, lines], ensure_ascii=False)


def sha256(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()


def check_log(world: World) -> list[LogEntry]:
    """The log has each transaction once, without gaps, by versions, in a chain that an outsider recomputes."""
    entries = whole_log(world)
    assert [entry.position for entry in entries] == list(range(1, len(entries) + 1))
    sealed = [entry.transaction.transaction_id for entry in entries]
    assert [(e.position, e.transaction.transaction_id, e.hash) for e in entries] == log_rows(world)
    assert len(set(sealed)) == len(sealed)
    last = "0" * 64
    for entry in entries:
        assert canonical_form(entry.transaction) == outsiders_form(entry.transaction)
        last = sha256(last + sha256(outsiders_form(entry.transaction)))
        assert entry.hash == last
    head = world.ledger.head()
    assert (head.position, head.hash) == (len(entries), last)
    assert str(head) == f"{len(entries)}:{last}"
    assert_by_version(entry.transaction for entry in entries)
    return entries


def assert_by_version(transactions: Iterable[LedgerTransaction]) -> None:
    reached: dict[tuple[str, str], int] = defaultdict(int)
    for transaction in transactions:
        versions = {(e.account_id, e.wallet_version) for e in transaction.entries if e.wallet_version is not None}
        for account_id, version in versions:
            wallet = account_id, transaction.currency
            assert version == reached[wallet] + 1, (wallet, transaction.transaction_id)
            reached[wallet] = version


def check_complete(world: World) -> list[LogEntry]:
    """The log is right, and nothing of the ledger is missing in it."""
    entries = check_log(world)
    sealed = sorted(entry.transaction.transaction_id for entry in entries)
    assert sealed == sorted(column(world, "SELECT transaction_id FROM ledger_transactions"))
    return entries


class Clocks:
    """Gives every thread a clock of its own, which differs from the real one, for the wallets' times and ids."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self._local = threading.local()
        self._numbers = itertools.count()
        monkeypatch.setattr(world.database, "_clock", GivenClock(self.now))
        monkeypatch.setattr("points_platform.wallets.executor.new_id", self.new_id)

    def now(self) -> datetime:
        shift: timedelta = getattr(self._local, "shift", timedelta(0))
        return datetime.now(UTC) + shift

    def new_id(self) -> str:
        return f"{id_at(self.now())[:24]}{next(self._numbers):012x}"

    @contextmanager
    def shifted(self, shift: timedelta) -> Iterator[None]:
        self._local.shift = shift
        try:
            yield
        finally:
            self._local.shift = timedelta(0)


@pytest.fixture
def clocks(world: World, monkeypatch: pytest.MonkeyPatch) -> Clocks:
    return Clocks(world, monkeypatch)


def falling_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on each id is lower than the one before."""
    numbers = itertools.count(1)

    def falling() -> str:
        return id_at(datetime.now(UTC) - next(numbers) * timedelta(seconds=1))

    monkeypatch.setattr("points_platform.wallets.executor.new_id", falling)


# What must be escaped, what must not be, and what looks as if it had been.
TEXTS = [
    '"',
    "\\",
    "\\\\n",
    "\\u0041",
    "/",
    "</script>",
    "'",
    "%s %(x)s :name",
    "é",
    "e\u0301",
    "ß",
    "日本語",
    "🎤🎭",
    "{}",
    "\ufffd",
]
CONTROLS = "".join(map(chr, range(0x20))) + "\x7f\x80\x9f\u200d\u2028\u2029\ufeff\U0010ffff"


def test_what_is_sealed_is_recomputed_by_an_outsider(world: World) -> None:
    """Whatever stands in the names and the metadata; on PostgreSQL the server computes the digests."""
    for number, name in enumerate(TEXTS):
        metadata = {name: [name, {"nested": [None, True, 1.5, -0.0, 2**53, name * 3]}], "controls": CONTROLS}
        user_id = f"ana {name}"
        world.credit(user_id, 2**53 - 1 - number, idempotency_key=name, request_id=name, metadata=metadata)
        held = world.hold(user_id, 30, metadata={} if number % 2 else None, queue_item_id=name)
        world.settle(held.escrow_id, 30, user_id=user_id, queue_item_id=name, model_id=name, metadata=metadata)
        world.spend(user_id, 1, order_id=name)
        world.transfer(user_id, 1, recipient_id=name)
        world.deposit(f"friend of {user_id}", 1, source=name, reference=name, metadata=metadata)
        world.open(f"model:{name}", metadata=metadata)
    world.ledger.seal()
    entries = check_complete(world)
    assert len(entries) == 7 * len(TEXTS)
    forms = [json.loads(outsiders_form(entry.transaction)) for entry in entries]
    assert {len(form) for form in forms} == {len(HEADER) + 1, len(HEADER) + 2}
    for position, name in enumerate(HEADER):
        nullable = {"escrow_id", "queue_item_id", "feature_type", "model_id", "authorization_id", "metadata_json"}
        assert (None in [form[position] for form in forms]) == (name in nullable), name


def test_a_digest_holds_whatever_text_the_columns_hold(unaudited: World) -> None:
    """Also what no request would let in, such as a control character that is not escaped."""
    world = unaudited
    with world.database.engine.begin() as connection:
        for number, raw in enumerate([CONTROLS[1:], *TEXTS, "", " ", "x" * 20_000]):
            texts: dict[str, Any] = {"metadata_json": raw, "details_json": raw if number % 2 else None}
            _record(connection, world, f"user-{number}", **texts, request_id=raw[:128])
    assert world.ledger.seal().waiting == 0
    check_complete(world)


def _record(connection: Connection, world: World, user_id: str, version: int = 1, **changes: Any) -> str:
    """A credit of 5 straight in the ledger, without a wallet."""
    header: dict[str, Any] = {"transaction_id": new_id(), "idempotency_key": f"key-{version}", "request_id": "r"}
    header |= {"operation": "credit", "reason": "top_up", "currency": "points"}
    at = changes.pop("occurred_at", datetime.now(UTC))
    draft = TransactionDraft(
        **(header | changes), owner_id=f"user:{user_id}", moves=(Movement(ISSUER, available(user_id), 5),)
    )
    state = WalletState(balances={Bucket.AVAILABLE: 5 * version}, version=version, posted_at=at)
    world.ledger.record(connection, [post(draft, {draft.owner_id: state}, at=at)])
    return draft.transaction_id


def test_times_in_the_log_are_utc_with_microseconds(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    times = [datetime(2025, 3, 30, 1, 0, 0, micro, tzinfo=UTC) for micro in (0, 1, 999999, 120000)]
    for at in times:
        monkeypatch.setattr(world.database, "_clock", GivenClock(partial(_identity, at)))
        world.credit(f"user-{at.microsecond}")
    with world.database.engine.begin() as connection:
        if not world.database.is_sqlite:
            name = connection.scalar(text("SELECT current_database()"))
            connection.execute(text(f"ALTER DATABASE {name} SET TimeZone = 'Asia/Kathmandu'"))
    world.database.engine.dispose()
    world.ledger.seal()
    for entry, at in zip(check_complete(world), times, strict=True):
        assert f'"2025-03-30T01:00:00.{at.microsecond:06}Z"' in canonical_form(entry.transaction)


def _identity(value: datetime) -> datetime:
    return value


def test_an_empty_ledger_has_an_empty_log(world: World) -> None:
    assert world.ledger.head() == GENESIS
    for sweep in (True, False):
        assert world.ledger.seal(sweep=sweep) == Sealed(appended=0, waiting=0, head=GENESIS)
    assert (world.ledger.read_log(), str(GENESIS)) == ([], "0:" + "0" * 64)


@pytest.mark.parametrize("batch", [1, 2, 5000])
def test_sealing_again_appends_nothing_and_going_on_keeps_what_is_there(
    world: World, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr("points_platform.ledger.sealing.SEAL_BATCH", batch)
    play(world, rounds=1)
    counts: list[int] = []
    first = world.ledger.seal(progress=counts.append)
    assert (first.appended, first.waiting, counts[-1]) == (14, 0, 14)
    assert counts == sorted(counts)
    assert len(counts) >= 14 / batch
    rows = log_rows(world)
    for sweep in (True, False):
        assert world.ledger.seal(sweep=sweep) == Sealed(appended=0, waiting=0, head=first.head)
    play(world, rounds=1)
    trade(world, ["ana", "ben"])
    assert world.ledger.seal(sweep=False).appended == 14 + 10
    assert log_rows(world)[: len(rows)] == rows
    check_complete(world)


@pytest.mark.parametrize("batch", [1, 2, 3, 5000])
def test_versions_decide_the_order_even_where_ids_run_backwards(
    world: World, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    """Two wallets of each transaction can each demand another predecessor."""
    monkeypatch.setattr("points_platform.ledger.sealing.SEAL_BATCH", batch)
    falling_ids(monkeypatch)
    play(world, rounds=1, users=("ana", "ben", "cem"))
    trade(world, ("ana", "ben", "cem"))
    sealed = world.ledger.seal()
    assert (sealed.appended, sealed.waiting) == (21 + 15, 0)
    ids = [entry.transaction.transaction_id for entry in check_complete(world)]
    assert ids != sorted(ids), "else versions and ids would say the same"


def test_versions_decide_the_order_whatever_the_ids(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    dice = random.Random(7)
    at = datetime.now(UTC)
    for batch in (1, 2, 4, 5000):
        monkeypatch.setattr("points_platform.ledger.sealing.SEAL_BATCH", batch)
        monkeypatch.setattr(
            "points_platform.wallets.executor.new_id",
            lambda: f"{id_at(at + dice.uniform(-50, 0) * MINUTE)[:24]}{dice.getrandbits(48):012x}",
        )
        play(world, rounds=1, users=("ana", "ben", "cem"))
        trade(world, ("ana", "ben", "cem"))
        assert world.ledger.seal(sweep=batch % 2 == 0).waiting == 0
    check_complete(world)


def test_transactions_that_share_no_wallet_are_sealed_by_id(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    falling_ids(monkeypatch)
    for user_id in ("ana", "ben", "cem"):
        world.credit(user_id)
    world.ledger.seal()
    ids = [entry.transaction.transaction_id for entry in check_complete(world)]
    assert ids == sorted(ids)


def test_among_those_that_may_come_next_the_lowest_id_is_sealed() -> None:
    """The whole order is fixed by versions and ids, on whichever wallets, whatever order they are found in."""
    dice = random.Random(11)
    for _ in range(200):
        versions: Counter[tuple[str, str]] = Counter()
        candidates = []
        for id_ in dice.sample(range(10, 99), 12):
            wallets = dice.sample([(owner, "points") for owner in ("user:ana", "user:ben", "model:luna")], 1 + id_ % 2)
            versions.update(wallets)
            candidates.append(Candidate(str(id_), "", {wallet: versions[wallet] for wallet in wallets}))
        dice.shuffle(candidates)
        assert in_order(candidates, lambda wanted: set()) == lowest_first(candidates)


def lowest_first(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The same order, computed step by step."""
    left, reached, ordered = list(candidates), Counter[tuple[str, str]](), list[Candidate]()
    while left:
        free = [each for each in left if all(reached[w] + 1 == version for w, version in each.versions.items())]
        lowest = min(free, key=lambda each: each.transaction_id)
        reached.update(lowest.versions.keys())
        ordered.append(lowest)
        left.remove(lowest)
    return ordered


def test_without_a_sweep_what_is_near_is_found_and_with_one_everything(world: World, clocks: Clocks) -> None:
    world.credit("ana")
    assert world.ledger.seal().appended == 1
    for user_id, behind in (("ben", 1), ("cem", 30), ("dua", 59), ("eve", 61), ("fay", 600), ("gus", 60 * 24 * 365)):
        with clocks.shifted(-behind * MINUTE):
            world.credit(user_id)
    assert world.ledger.seal(sweep=False).appended == 3
    assert world.ledger.seal(sweep=False).appended == 0
    assert world.ledger.seal().appended == 3
    check_complete(world)


def test_a_clock_that_is_far_ahead_hides_nothing_from_a_seal_without_a_sweep(world: World, clocks: Clocks) -> None:
    with clocks.shifted(timedelta(days=3650)):
        world.credit("ana")
    assert world.ledger.seal(sweep=False).appended == 1
    world.credit("ben")
    with clocks.shifted(-30 * MINUTE):
        world.credit("cem")
    assert world.ledger.seal(sweep=False).appended == 2
    check_complete(world)


def test_a_transaction_that_commits_late_is_sealed_by_the_next_sweep(postgresql_url: str, clocks: Clocks) -> None:
    """It stays open while others are sealed, and its id lies far below what a seal without a sweep looks at."""
    with Database(postgresql_url) as database, Session(database.engine) as session:
        world = World(database)
        world.credit("ana")
        with clocks.shifted(-120 * MINUTE):
            late = world.send(world.credit_request("ana"), session=session)
        world.credit("ben")
        assert world.ledger.seal().appended == 2
        session.commit()
        after = world.credit("ana")
        assert world.ledger.seal(sweep=False) == Sealed(appended=0, waiting=1, head=world.ledger.head())
        assert world.ledger.seal().appended == 2
        ids = [entry.transaction.transaction_id for entry in check_complete(world)]
        assert ids[2:] == [late.transaction_id, after.transaction_id]
        recount(database)


def test_what_is_not_committed_is_never_sealed(postgresql_url: str) -> None:
    with Database(postgresql_url) as database, Session(database.engine) as session:
        world = World(database)
        world.send(world.credit_request("ana"), session=session)
        assert world.ledger.seal().appended == 0
        session.rollback()
        assert world.ledger.seal().appended == 0


@pytest.mark.usefixtures("small_batches")
def test_the_successors_of_a_missing_transaction_wait_and_others_go_on(unaudited: World) -> None:
    world = unaudited
    held = world.hold_request("ana")
    world.credit("ana")
    missing = world.credit("ana").transaction_id
    held_by = world.send(held)
    world.settle(held_by.escrow_id, model_id="luna")
    world.credit("ben")
    after_luna = world.hold("ben")
    world.settle(after_luna.escrow_id, user_id="ben", model_id="luna")
    world.settle(world.hold("ben").escrow_id, user_id="ben", model_id="sol")
    for table in ("ledger_entries", "ledger_transactions"):
        around_triggers(world, f"DELETE FROM {table} WHERE transaction_id = '{missing}'")
    for sweep, appended in ((True, 3), (True, 0), (False, 0)):
        sealed = world.ledger.seal(sweep=sweep)
        assert (sealed.appended, sealed.waiting) == (appended, 5)
    owners = [(e.transaction.owner_id, e.transaction.operation) for e in check_log(world)]
    assert owners == [("user:ana", "credit"), ("user:ben", "credit"), ("user:ben", "hold")]
    world.credit("cem")
    assert (world.ledger.seal().appended, world.ledger.head().position) == (1, 4)


def test_any_number_of_transactions_may_wait(unaudited: World) -> None:
    """More than a statement takes parameters: 32766 on SQLite, 65535 on PostgreSQL."""
    many = [Candidate(f"id-{number}", "", {}) for number in range(70_000)]
    unaudited.credit()
    unaudited.ledger.seal()
    ((_, sealed, _),) = log_rows(unaudited)
    with unaudited.database.engine.connect() as connection:
        found = log_store.still_unsealed(connection, [*many, Candidate(sealed, "", {})])
    assert found == many


@pytest.mark.usefixtures("small_batches")
def test_sealers_that_meet_do_no_harm(url: str, impatient: list[float]) -> None:
    with Database(url) as database, Database(url) as other:
        world = World(database)
        play(world)
        sealers = [LedgerService(place).seal for place in (database, database, other, other)]
        answers = at_once(*sealers)
        failures = [answer for answer in answers if not isinstance(answer, Sealed)]
        assert all(isinstance(failure, OptimisticLockError) for failure in failures)
        rest = world.ledger.seal().appended
        assert sum(answer.appended for answer in answers if isinstance(answer, Sealed)) + rest <= 28
        check_complete(world)
        recount(database)


def test_a_sealer_that_meets_another_goes_on_after_it(world: World, impatient: list[float]) -> None:
    """The other one seals everything between the first's look at the log and its append."""
    if not world.database.is_sqlite:
        play(world)
        with once_before(world.database.engine, "INSERT INTO ledger_log", world.ledger.seal):
            sealed = world.ledger.seal()
        assert sealed == Sealed(appended=0, waiting=0, head=world.ledger.head())
        assert (check_complete(world)[-1].position, impatient) == (28, [])
        return
    # On SQLite the second waits for the lock before it looks.
    play(world)
    assert [answer.appended for answer in at_once(world.ledger.seal, world.ledger.seal) if isinstance(answer, Sealed)]
    check_complete(world)


SEALING_PROCESS = """
import sys
from points_platform.core import Database
from points_platform.ledger import LedgerService, sealing
sealing.SEAL_BATCH = 3
with Database(sys.argv[1]) as database:
    log = LedgerService(database)
    log.head()
    print("ready", flush=True)
    sys.stdin.readline()
    print(log.seal().appended, flush=True)
"""


def test_sealers_in_processes_of_their_own_share_the_work(postgresql_url: str) -> None:
    with Database(postgresql_url) as database:
        world = World(database)
        play(world)
        run = [sys.executable, "-c", SEALING_PROCESS, postgresql_url]
        processes = [subprocess.Popen(run, stdin=-1, stdout=-1, text=True) for _ in range(3)]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        appended = [int(process.communicate(timeout=GIVE_UP)[0]) for process in processes]
        assert sum(appended) == 28
        check_complete(world)
        recount(database)


class Killed(Exception):  # noqa: N818 - it is no error of the module
    """What ends a sealer in the middle."""


@contextmanager
def killed_at(engine: Engine, batch: int) -> Iterator[None]:
    """End the sealer after it has written that batch, right before the commit."""
    batches = itertools.count(1)

    def kill(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if "INTO ledger_log" in statement and next(batches) == batch:
            raise Killed

    event.listen(engine, "after_cursor_execute", kill)
    try:
        with pytest.raises(Killed):
            yield
    finally:
        event.remove(engine, "after_cursor_execute", kill)


@pytest.mark.usefixtures("small_batches")
def test_a_sealer_that_is_killed_leaves_whole_batches(world: World) -> None:
    play(world)
    for batch, position in ((1, 0), (2, 3), (3, 9)):
        with killed_at(world.database.engine, batch):
            world.ledger.seal()
        assert [entry.position for entry in check_log(world)] == list(range(1, position + 1))
    assert world.ledger.seal().appended == 19
    check_complete(world)


def test_the_log_cannot_be_changed(world: World) -> None:
    play(world, rounds=1, users=["ana"])
    world.ledger.seal()
    statements = [f"UPDATE ledger_log SET {name} = {name}" for name in ("position", "transaction_id", "hash")]
    statements += ["DELETE FROM ledger_log", "DELETE FROM ledger_log WHERE position = 7"]
    row = "(position, transaction_id, hash) SELECT position, transaction_id, 'forged' FROM ledger_log WHERE true"
    for key in ("position", "transaction_id"):
        statements.append(f"INSERT INTO ledger_log {row} ON CONFLICT ({key}) DO UPDATE SET hash = 'forged'")
    if world.database.is_sqlite:
        statements += [f"{verb} INTO ledger_log {row}" for verb in ("INSERT OR REPLACE", "REPLACE")]
        other = row.replace("SELECT position,", "SELECT position + 100,")
        statements += [f"REPLACE INTO ledger_log {other}", "UPDATE OR REPLACE ledger_log SET hash = 'forged'"]
    else:
        statements += ["TRUNCATE ledger_log", "TRUNCATE ledger_log, ledger_transactions CASCADE"]
        statements += ["UPDATE ledger_log SET hash = 'forged' WHERE false"]
    before = world.snapshot()
    for statement in statements:
        with pytest.raises(DBAPIError, match="append-only"):
            execute(world, statement)
    assert world.snapshot() == before


def test_a_position_and_a_transaction_are_in_the_log_once(world: World) -> None:
    play(world, rounds=1, users=["ana"])
    world.ledger.seal()
    before = world.snapshot()
    id_ = log_rows(world)[0][1]
    for position, transaction_id in ((1, new_id()), (8, id_), (0, new_id()), (-1, new_id())):
        with pytest.raises(IntegrityError):
            execute(world, f"INSERT INTO ledger_log VALUES ({position}, '{transaction_id}', 'x')")
    assert world.snapshot() == before


@pytest.mark.parametrize("limit", [1, 2, 3, 13, 14, 1000])
def test_the_log_is_read_once_whatever_the_size_of_the_pages(database: Database, limit: int) -> None:
    world = World(database)
    play(world, rounds=1)
    world.ledger.seal()
    entries = whole_log(world, limit)
    assert [entry.position for entry in entries] == list(range(1, 15))
    for entry in entries:
        assert entry.transaction == world.ledger.transaction(entry.transaction.transaction_id)
    assert world.ledger.read_log(3, 4) == entries[3:7] if limit > 3 else entries[3:7]
    for beyond in (14, 15, 2**53 - 1):
        assert world.ledger.read_log(beyond, limit) == []


def test_the_log_refuses_pages_that_cannot_be(world: World) -> None:
    wrong: Any
    for wrong in (-1, 1.0, True, None, "1", 2**53, b"", []):
        refused("after", world.ledger.read_log, wrong)
    for wrong in (0, -1, 1001, 1.0, True, None, "1"):
        refused("limit", world.ledger.read_log, 0, wrong)


def test_a_refusal_says_what_was_given_and_what_was_expected(world: World) -> None:
    calls: dict[str, Callable[[], object]] = {
        f"interval must be a number of seconds above 0, at most {threading.TIMEOUT_MAX:.0f}, not 0": lambda: Sealer(
            world.ledger, interval=0
        ),
        "sweep_every must be a whole number from 1, not 0": lambda: Sealer(world.ledger, sweep_every=0),
        "position must be not before the one seen, not 1": lambda: world.ledger.reader("relay").move(1, seen=2),
        "name must be a string of 1 to 128 printable characters, not ''": lambda: world.ledger.reader(""),
    }
    for message, call in calls.items():
        with pytest.raises(InvalidRequestError) as refusal:
            call()
        assert str(refusal.value) == message


DAMAGES = {
    "a log row": ["DELETE FROM ledger_log WHERE position = 3"],
    "three log rows": ["DELETE FROM ledger_log WHERE position BETWEEN 3 AND 5"],
    "a transaction": [
        f"DELETE FROM {table} WHERE transaction_id = (SELECT transaction_id FROM ledger_log WHERE position = 3)"
        for table in ("ledger_entries", "ledger_transactions")
    ],
    "its header": [
        "DELETE FROM ledger_transactions WHERE transaction_id = "
        "(SELECT transaction_id FROM ledger_log WHERE position = 3)"
    ],
    "its entries": [
        "DELETE FROM ledger_entries WHERE transaction_id = (SELECT transaction_id FROM ledger_log WHERE position = 3)"
    ],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_reader_never_passes_a_place_where_something_is_missing(unaudited: World, damage: list[str]) -> None:
    """Nor does it take the place for the end of the log, whatever the size of its pages."""
    world = unaudited
    play(world, rounds=1)
    world.ledger.seal()
    around_triggers(world, *damage)
    for limit in (1, 2, 3, 1000):
        seen: list[int] = []
        with pytest.raises(LedgerDamagedError) as error:
            read_to_the_end(world, limit, seen)
        assert error.value.details == {"what": "position 3 of the log", "position": 3}
        assert seen == list(range(1, len(seen) + 1))
        assert len(seen) <= 2
    assert world.ledger.read_log(5, 2)[0].position == 6


def read_to_the_end(world: World, limit: int, seen: list[int]) -> None:
    while page := world.ledger.read_log(len(seen), limit):
        seen += [entry.position for entry in page]


class HostBase(DeclarativeBase):
    """The host's own tables, which the module knows nothing of."""


class Sent(HostBase):
    __tablename__ = "sent"
    transaction_id: Mapped[str] = mapped_column(String(36), primary_key=True)


@pytest.fixture
def followed(world: World) -> World:
    """A world with a log of seven entries, whose host notes what it has sent on."""
    HostBase.metadata.create_all(world.database.engine)
    play(world, rounds=1, users=["ana"])
    world.ledger.seal()
    return world


def test_a_reader_keeps_its_position_in_the_database(followed: World, url: str) -> None:
    reader = followed.ledger.reader("relay")
    assert (reader.position, column(followed, "SELECT count(*) FROM ledger_log_readers")) == (0, [0])
    page = reader.read(3)
    assert [entry.position for entry in page] == [1, 2, 3]
    assert reader.read(3) == page, "until it moves"
    reader.move(3, seen=0)
    with Database(url) as other:
        elsewhere = LedgerService(other).reader("relay")
        assert (elsewhere.position, [entry.position for entry in elsewhere.read(2)]) == (3, [4, 5])
        elsewhere.move(5, seen=3)
    assert (reader.position, [entry.position for entry in reader.read()]) == (5, [6, 7])
    reader.move(5, seen=5)
    reader.move(7, seen=5)
    assert (reader.position, reader.read()) == (7, [])
    assert followed.ledger.reader("exports").position == 0, "others stand elsewhere"


def test_a_reader_moves_with_the_callers_rows_or_not_at_all(followed: World) -> None:
    reader = followed.ledger.reader("relay")
    for commits in (False, True):
        seen = reader.position
        with Session(followed.database.engine) as session:
            page = followed.ledger.read_log(seen, 3) if not followed.database.is_sqlite else reader.read(3)
            session.add_all(Sent(transaction_id=entry.transaction.transaction_id) for entry in page)
            reader.move(page[-1].position, seen=seen, session=session)
            if commits:
                session.commit()
        assert (reader.position, len(column(followed, "SELECT * FROM sent"))) == ((3, 3) if commits else (0, 0))
    with Session(followed.database.engine) as session:
        session.add(Sent(transaction_id="once more"))
        with pytest.raises(OptimisticLockError):
            reader.move(6, seen=0, session=session)
        session.rollback()
    assert (reader.position, len(column(followed, "SELECT * FROM sent"))) == (3, 3)


def test_a_refused_move_leaves_the_callers_transaction_usable(followed: World) -> None:
    reader = followed.ledger.reader("relay")
    reader.move(2, seen=0)
    with Session(followed.database.engine) as session:
        session.add(Sent(transaction_id="kept"))
        session.flush()
        with pytest.raises(OptimisticLockError):
            reader.move(1, seen=1, session=session)
        session.commit()
    assert (reader.position, column(followed, "SELECT transaction_id FROM sent")) == (2, ["kept"])


@pytest.mark.parametrize("seen", [0, 2])
def test_of_processes_that_move_one_reader_one_wins(
    followed: World, url: str, impatient: list[float], seen: int
) -> None:
    if seen:
        followed.ledger.reader("relay").move(seen, seen=0)
    with Database(url) as other:
        readers = [LedgerService(place).reader("relay") for place in (followed.database, other) * 2]
        moves = [partial(reader.move, position, seen=seen) for position, reader in enumerate(readers, 4)]
        answers = at_once(*moves)
    assert Counter(map(type, answers)) == {type(None): 1, OptimisticLockError: 3}
    assert followed.ledger.reader("relay").position == 4 + answers.index(None)


def test_a_reader_that_stands_elsewhere_is_refused_without_waiting(followed: World, impatient: list[float]) -> None:
    """Another try can not help: a reader does not come back to where it was seen."""
    reader = followed.ledger.reader("relay")
    reader.move(4, seen=0)
    for seen in (0, 3, 5):
        with pytest.raises(OptimisticLockError):
            reader.move(6, seen=seen)
    assert (reader.position, impatient) == (4, [])


def test_two_open_transactions_cannot_both_move_a_reader(postgresql_url: str) -> None:
    with Database(postgresql_url) as database:
        world = World(database)
        world.credit()
        world.ledger.seal()
        reader = world.ledger.reader("relay")
        for seen in (0, 1):
            with Session(database.engine) as first, Session(database.engine) as second:
                reader.move(seen + 1, seen=seen, session=first)
                waiting = threading.Thread(target=first.commit)
                write = f"{'UPDATE' if seen else 'INSERT INTO'} ledger_log_readers"
                with once_before(database.engine, write, waiting.start), pytest.raises(OptimisticLockError):
                    reader.move(seen + 1, seen=seen, session=second)
                waiting.join(GIVE_UP)
            assert reader.position == seen + 1


def test_a_reader_refuses_what_is_no_position(followed: World) -> None:
    reader = followed.ledger.reader("relay")
    reader.move(5, seen=0)
    wrong: Any
    for wrong in (-1, 1.0, True, None, "1", 2**53):
        refused("position", reader.move, wrong, seen=5)
        refused("seen", reader.move, 6, seen=wrong)
    refused("position", reader.move, 4, seen=5)
    for wrong in (0, 1001, True, None):
        refused("limit", reader.read, wrong)
    for wrong in ("", None, 5, "x" * 129, "a\n", b"relay"):
        refused("name", followed.ledger.reader, wrong)
    assert reader.position == 5


class WatchedLedger(LedgerService):
    """Says when a round of sealing has ended, and lets rounds fail as told."""

    def __init__(self, database: Database, failures: Sequence[Exception] = ()) -> None:
        super().__init__(database)
        self._failures = list(failures)
        self._changed = threading.Condition()
        self.sweeps: list[bool] = []

    def seal(self, *, sweep: bool = True, progress: Callable[[int], object] | None = None) -> Sealed:
        try:
            if self._failures:
                raise self._failures.pop(0)
            return super().seal(sweep=sweep, progress=progress)
        finally:
            with self._changed:
                self.sweeps.append(sweep)
                self._changed.notify_all()

    def rounds(self, count: int) -> None:
        """Wait for that many rounds more."""
        with self._changed:
            self.reach(len(self.sweeps) + count)

    def reach(self, count: int) -> None:
        """Wait for that many rounds in all."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.sweeps) >= count, GIVE_UP), "no round has come"


def sealer_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "ledger-sealer"]


def test_a_sealer_seals_until_it_is_stopped(world: World) -> None:
    ledger = WatchedLedger(world.database)
    world.credit()
    sealer = Sealer(ledger, interval=0.001, sweep_every=3)
    assert (ledger.sweeps, sealer_threads()) == ([], []), "it does not start by itself"
    with sealer:
        assert len(sealer_threads()) == 1
        ledger.rounds(1)
        assert ledger.head().position == 1
        world.credit()
        ledger.rounds(6)
        assert ledger.head().position == 2
    assert sealer_threads() == []
    rounds = len(ledger.sweeps)
    assert ledger.sweeps == [number % 3 == 0 for number in range(rounds)], "a sweep first, then every third round"
    world.credit()
    assert (ledger.head().position, len(ledger.sweeps)) == (2, rounds), "stopped is stopped"


def test_a_sealer_that_waits_for_its_next_round_stops_at_once(world: World) -> None:
    ledger = WatchedLedger(world.database)
    sealer = Sealer(ledger, interval=10 * GIVE_UP)
    sealer.start()
    ledger.reach(1)
    stopping = threading.Thread(target=sealer.stop)
    stopping.start()
    stopping.join(GIVE_UP)
    assert (stopping.is_alive(), sealer_threads(), len(ledger.sweeps)) == (False, [], 1)


def test_a_sealer_ends_with_its_block_also_after_an_error_in_it(world: World) -> None:
    with pytest.raises(Killed), Sealer(WatchedLedger(world.database), interval=0.001):
        raise Killed
    assert sealer_threads() == []


FAILURES: list[Exception] = [StorageUnavailableError(cause="57P01"), OptimisticLockError(attempts=11)]


@pytest.mark.parametrize("failure", [*FAILURES, ValueError("a year that no datetime has")], ids=repr)
def test_a_sealer_survives_what_sealing_raises(
    world: World, caplog: pytest.LogCaptureFixture, failure: Exception
) -> None:
    ledger = WatchedLedger(world.database, [failure, failure])
    world.credit()
    with caplog.at_level(logging.WARNING, "points_platform"), Sealer(ledger, interval=0.001):
        ledger.reach(4)
    assert world.ledger.head().position == 1
    warnings = [record for record in caplog.records if record.name == "points_platform.ledger.sealing"]
    assert [record.levelname for record in warnings] == ["WARNING", "WARNING"]
    assert [record.exc_info[1] for record in warnings if record.exc_info] == [failure, failure]


def test_a_sealer_goes_on_after_the_database_was_away(world: World) -> None:
    """The table is not there for a while: a failure of the real database."""
    ledger = WatchedLedger(world.database)
    world.credit()
    execute(world, "ALTER TABLE ledger_log RENAME TO away")
    with Sealer(ledger, interval=0.001):
        ledger.rounds(2)
        execute(world, "ALTER TABLE away RENAME TO ledger_log")
        ledger.rounds(2)
    check_complete(world)


WRITERS, OPERATIONS_EACH = 8, 12


class Writer:
    """Sends operations in transactions that stay open for a while, by a clock that is minutes off."""

    def __init__(self, world: World, clocks: Clocks, number: int) -> None:
        self._world, self._clocks = world, clocks
        self._shift = (number - 4) * 7 * MINUTE
        self._dice = random.Random(number)
        self._pause = threading.Event()  # is never set: it only passes a few milliseconds
        self.committed: list[str] = []

    def run(self) -> None:
        with self._clocks.shifted(self._shift):
            for _ in range(OPERATIONS_EACH):
                with suppress(WalletError), Session(self._world.database.engine) as session:
                    self._transaction(session)

    def _transaction(self, session: Session) -> None:
        """A credit and what becomes of a hold, of one user so that no two writers wait for each other in a ring."""
        user_id = self._dice.choice(["ana", "ben", "cem"])
        made = [self._world.send(self._world.credit_request(user_id), session=session)]
        self._stay_open()
        if self._dice.random() < 0.7:
            made.append(self._world.send(self._world.hold_request(user_id), session=session))
            self._stay_open()
        if len(made) == 2 and self._dice.random() < 0.8:
            request = self._world.settle_request(made[1].escrow_id, user_id=user_id)
            made.append(self._world.send(request, session=session))
            self._stay_open()
        if self._dice.random() < 0.15:
            session.rollback()
            return
        session.commit()
        self.committed += [response.transaction_id for response in made]

    def _stay_open(self) -> None:
        self._pause.wait(self._dice.uniform(0, 0.006))


def follow(reader: LogReader, done: threading.Event, seen: list[LogEntry]) -> None:
    """Read on until all is done and nothing is left, moving after each page."""
    pause = threading.Event()
    while True:
        last = done.is_set()
        position = reader.position
        page = reader.read(limit=7)
        seen += page
        if page:
            reader.move(page[-1].position, seen=position)
        elif last:
            return
        else:
            pause.wait(0.002)


def test_a_reader_sees_each_transaction_once_and_by_versions_while_writers_stay_open_and_clocks_differ(
    world: World, clocks: Clocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("points_platform.ledger.sealing.SEAL_BATCH", 5)
    writers = [Writer(world, clocks, number) for number in range(WRITERS)]
    done, seen = threading.Event(), list[LogEntry]()
    ledger = WatchedLedger(world.database)
    with Sealer(ledger, interval=0.001, sweep_every=4):
        reading = threading.Thread(target=follow, args=(world.ledger.reader("relay"), done, seen))
        reading.start()
        failures = [answer for answer in at_once(*(writer.run for writer in writers)) if answer is not None]
        ledger.rounds(2)
    assert world.ledger.seal().waiting == 0
    done.set()
    reading.join(GIVE_UP)
    assert (failures, reading.is_alive()) == ([], False)
    committed = [id_ for writer in writers for id_ in writer.committed]
    assert len(committed) > WRITERS * OPERATIONS_EACH / 2, "most of them got through"
    assert sorted(entry.transaction.transaction_id for entry in seen) == sorted(committed)
    assert_by_version(entry.transaction for entry in seen)
    ids = [entry.transaction.transaction_id for entry in seen]
    assert ids != sorted(ids), "else the clocks made no difference"
    assert check_complete(world) == seen
