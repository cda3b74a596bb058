"""Behind PgBouncer in transaction mode, whose clients share a few connections; runs where PgBouncer is installed.

From 1.21 on it keeps track of prepared statements, if ``max_prepared_statements`` says so. Without that the host
switches them off: ``prepare_threshold=None``.
"""

import os
import pwd
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import URL, Engine, create_engine, event, make_url, text
from sqlalchemy.orm import Session

from points_platform.core import (
    Database,
    EscrowAlreadyProcessedError,
    InsufficientBalanceError,
    WalletError,
)
from points_platform.wallets import WalletConfig
from points_platform.wallets.verify import verify
from support.answers import tally
from support.recount import recount
from support.workers import OPERATIONS, ready
from support.world import World, at_once

PGBOUNCER = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
SERVER_CONNECTIONS = 3
CLIENTS = 40

pytestmark = pytest.mark.skipif(PGBOUNCER is None, reason="PgBouncer is not installed (Debian: apt install pgbouncer)")


def version() -> tuple[int, ...]:
    told = subprocess.run([PGBOUNCER or "", "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"PgBouncer (\d+)\.(\d+)", told)
    return tuple(map(int, found.groups())) if found else (0, 0)


@contextmanager
def pgbouncer(server: URL, prepared_statements: int) -> Iterator[URL]:
    """The URL of the same database by way of a PgBouncer that is started here, on a socket in a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="points-platform-bouncer-"))
    settings = folder / "pgbouncer.ini"
    settings.write_text(settings_of(server, folder, prepared_statements))
    if os.geteuid() == 0:  # it refuses to be root
        owner = unprivileged(server)
        for path in (folder, settings):
            shutil.chown(path, owner)
    process = subprocess.Popen([PGBOUNCER or "", "--quiet", str(settings)])
    url = server.set(host=None, port=None).difference_update_query(["host", "port"])
    url = url.update_query_dict({"host": str(folder), "port": "6432"})
    try:
        wait_until_it_serves(process, url, folder)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=30)
        shutil.rmtree(folder)


def settings_of(server: URL, folder: Path, prepared_statements: int) -> str:
    reach = {
        "host": server.query.get("host") or server.host or "localhost",
        "port": server.query.get("port") or server.port or 5432,
        "dbname": server.database,
        "user": server.username,
        "password": server.password,
    }
    options: dict[str, object] = {
        "unix_socket_dir": folder,
        "listen_port": 6432,
        "logfile": folder / "log",
        "auth_type": "any",
        "pool_mode": "transaction",
        "default_pool_size": SERVER_CONNECTIONS,
        "max_client_conn": 200,
    }
    if os.geteuid() == 0:
        options["user"] = unprivileged(server)
    if version() >= (1, 21):
        options["max_prepared_statements"] = prepared_statements
    database = " ".join(f"{name}='{value}'" for name, value in reach.items() if value)
    lines = (f"{name} = {value}" for name, value in options.items())
    return "\n".join(["[databases]", f"{server.database} = {database}", "[pgbouncer]", *lines, ""])


def unprivileged(server: URL) -> str:
    """A user that is not root and reaches the server: who owns its socket, if it has one."""
    host = str(server.query.get("host") or server.host or "")
    owner = pwd.getpwuid(os.stat(host).st_uid).pw_name if host.startswith("/") else "nobody"
    return "nobody" if owner == "root" else owner


def wait_until_it_serves(process: "subprocess.Popen[bytes]", url: URL, folder: Path) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            psycopg.connect(plain(url)).close()
            return
        except psycopg.OperationalError:
            log = folder / "log"
            told = log.read_text() if log.exists() else ""
            assert process.poll() is None, f"PgBouncer has ended: {told}"
            assert time.monotonic() < deadline, f"PgBouncer does not serve: {told}"


def plain(url: URL) -> str:
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


@pytest.fixture(params=["tracked", "unprepared"])
def engine(request: pytest.FixtureRequest, postgresql_url: str) -> Iterator[Engine]:
    """A host's engine with one client connection for each thread, on a few server connections."""
    tracked = request.param == "tracked"
    if tracked and version() < (1, 21):
        pytest.skip(f"PgBouncer {version()} does not track prepared statements; 1.21 does")
    options: dict[str, Any] = {} if tracked else {"connect_args": {"prepare_threshold": None}}
    with pgbouncer(make_url(postgresql_url), 100 if tracked else 0) as url:
        engine = create_engine(url, pool_size=CLIENTS, max_overflow=0, **options)
        yield engine
        engine.dispose()


@pytest.fixture
def world(engine: Engine) -> Iterator[World]:
    with Database(engine) as database:
        database.create_schema()
        yield World(database, config=WalletConfig(retry_backoff_ms=5))
        recount(database)
        assert list(verify(database)) == []


@pytest.fixture
def administrator(postgresql_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection of somebody else's, past PgBouncer."""
    with psycopg.connect(plain(make_url(postgresql_url)), autocommit=True) as connection:
        yield connection


def server_connections(administrator: psycopg.Connection[Any]) -> list[int]:
    rows = administrator.execute(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND backend_type = 'client backend'"
    )
    return [pid for (pid,) in rows]


def on_all_server_connections(engine: Engine, sql: str) -> list[Any]:
    """What the query tells on each server connection: transactions that are open side by side have one each."""
    connections = [engine.connect() for _ in range(SERVER_CONNECTIONS)]
    try:
        told = [connection.execute(text(f"SELECT pg_backend_pid(), ({sql})")).one() for connection in connections]
    finally:
        for connection in connections:
            connection.close()
    assert len({pid for pid, _ in told}) == SERVER_CONNECTIONS
    return [value for _, value in told]


def test_every_operation_is_carried_out_at_once_repeated_and_refused(world: World) -> None:
    requests = [ready(world, operation, f"user-of-{operation}") for operation in OPERATIONS]
    seen: list[str] = []
    event.listen(world.database.engine, "before_cursor_execute", lambda *given: seen.append(given[2]))
    answers = [world.send(request) for request in requests]
    assert seen == [], "each was one statement of the driver's"
    uncached = world.service()
    assert [world.send(request, uncached) for request in requests] == answers
    with pytest.raises(InsufficientBalanceError):
        world.hold("nobody")
    settle: Any = requests[2]
    with pytest.raises(EscrowAlreadyProcessedError):
        world.refund(settle.escrow_id, user_id=settle.user_id)
    assert len(world.events) == len(world.snapshot()["ledger_transactions"])


def test_batches(world: World) -> None:
    users = [f"user-{number}" for number in range(30)]
    credited = world.wallets.credit_many([world.credit_request(user) for user in users])
    assert tally(credited) == {"UserCreditResponse": 30}
    holds: list[Any] = world.wallets.hold_many(
        [world.hold_request(user, amount) for user in users for amount in (30, 90)]
    )
    assert tally(holds) == {"EscrowHoldResponse": 30, "InsufficientBalanceError": 30}
    held = [(user, hold.escrow_id) for user, hold in zip(users, holds[::2], strict=True)]
    settles = [world.settle_request(escrow_id, user_id=user) for user, escrow_id in held[:15]]
    refunds = [world.refund_request(escrow_id, user_id=user) for user, escrow_id in held[10:]]
    settled = world.wallets.settle_many([(each, world.authorize(each)) for each in settles])
    refunded = world.wallets.refund_many([(each, world.authorize(each)) for each in refunds])
    assert tally([*settled]) == {"EscrowSettleResponse": 15}
    assert tally([*refunded]) == {"EscrowAlreadyProcessedError": 5, "EscrowRefundResponse": 15}
    assert world.wallets.get_model_balance("luna").earned == 15 * 30


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_callers_transaction_is_one_whatever_connection_it_gets(world: World, end: str) -> None:
    world.credit()
    with world.database.engine.begin() as connection:
        connection.execute(text("CREATE TABLE orders (order_id text)"))
    with Session(world.database.engine) as session:
        for number in range(3):
            session.execute(text("INSERT INTO orders VALUES (:id)"), {"id": number})
            world.send(world.hold_request(amount=10), session=session)
            world.credit("ben")  # another transaction, which wants another connection
        getattr(session, end)()
    with world.database.engine.connect() as connection:
        orders = connection.scalar(text("SELECT count(*) FROM orders"))
    assert orders == (3 if end == "commit" else 0)
    assert world.wallets.get_user_balance("ana").escrow == 10 * orders
    assert world.wallets.get_user_balance("ben").available == 300


def test_many_more_threads_than_server_connections_are_all_served(
    world: World, administrator: psycopg.Connection[Any]
) -> None:
    settles = [ready(world, "settle", f"user-{number}") for number in range(CLIENTS // 2)]
    world.credit(amount=10 * 7 + 5)
    calls: list[Callable[[], Any]] = []
    for number, settle in enumerate(settles):
        calls += [partial(world.send, settle), partial(world.hold, amount=10)]
        if number % 4 == 0:
            calls.append(partial(world.wallets.hold_many, [world.hold_request("ana", 1000), world.hold_request("x")]))
    answers = at_once(*calls)
    expected = {"EscrowSettleResponse": 20, "EscrowHoldResponse": 7, "InsufficientBalanceError": 13, "list": 5}
    assert tally(answers) == expected
    assert world.wallets.get_model_balance("luna").earned == 20 * 30
    assert 0 < len(server_connections(administrator)) <= SERVER_CONNECTIONS


def test_one_key_from_many_threads_has_one_effect(world: World) -> None:
    for operation in OPERATIONS:
        request = ready(world, operation, f"user-of-{operation}")
        services = [world.service() for _ in range(4)]
        answers: list[Any] = at_once(*(partial(world.send, request, services[n % 4]) for n in range(20)))
        assert not [answer for answer in answers if isinstance(answer, Exception)], tally(answers)
        assert [answer.replayed for answer in answers].count(False) == 1
        assert all(answer == answers[0] for answer in answers)


@pytest.mark.parametrize("setting", ["lock_timeout", "plan_cache_mode", "default_transaction_isolation"])
def test_no_setting_is_left_behind_on_a_connection_that_others_get_next(world: World, setting: str) -> None:
    engine = world.database.engine
    before = on_all_server_connections(engine, f"SELECT current_setting('{setting}')")
    at_once(*(partial(world.credit, f"user-{number}") for number in range(10)))
    with Session(engine) as session, session.begin():
        world.send(world.credit_request(), session=session)
    world.wallets.hold_many([world.hold_request(), world.hold_request("nobody")])
    with pytest.raises(WalletError):
        world.hold("nobody")
    assert on_all_server_connections(engine, f"SELECT current_setting('{setting}')") == before


def test_server_connections_that_are_cut_while_idle_cost_nobody_anything(
    world: World, administrator: psycopg.Connection[Any]
) -> None:
    world.credit()
    on_all_server_connections(world.database.engine, "SELECT 1")
    for pid in server_connections(administrator):
        administrator.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
    assert world.hold().new_available_balance == 70
    assert world.wallets.get_user_balance("ana").version == 2


def test_a_server_connection_that_is_cut_during_the_statement_leaves_one_effect(
    world: World, administrator: psycopg.Connection[Any], postgresql_url: str
) -> None:
    world.credit()
    request = world.hold_request()
    with psycopg.connect(plain(make_url(postgresql_url))) as holder, ThreadPoolExecutor(1) as threads:
        holder.execute("SELECT FROM user_wallets FOR UPDATE")
        answer = threads.submit(world.send, request)
        administrator.execute("SELECT pg_terminate_backend(%s, 10000)", [waiting_for(holder, administrator)])
        holder.rollback()
        assert answer.result(timeout=30).new_available_balance == 70
    assert world.send(request, world.service()).replayed is True
    assert world.wallets.get_user_balance("ana").version == 2


def waiting_for(holder: psycopg.Connection[Any], administrator: psycopg.Connection[Any]) -> int:
    """The connection that waits for the holder's lock, as soon as there is one."""
    deadline = time.monotonic() + 30
    blocked = "SELECT pid FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))"
    while (row := administrator.execute(blocked, [holder.info.backend_pid]).fetchone()) is None:
        assert time.monotonic() < deadline, "nobody came to wait"
    return int(row[0])
