"""What the documents tell a host to write runs, every example of it."""

import ast
import asyncio
import inspect
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from points_platform import testing, wallets
from points_platform.core import Database, InvalidAuthorizationError, OptimisticLockError, WalletError
from points_platform.events import EventBus
from points_platform.ledger import LedgerService
from points_platform.queue import AuthorizationKey, AuthorizationVerifier, KeyFile, QueueAuthorizer
from points_platform.wallets import EscrowHeld, EscrowHoldRequest, WalletConfig, WalletService
from support.documents import example, examples, said
from support.world import World

# Each example by its first words, and the test that runs it.
EXECUTED = {
    "from points_platform.core import Database": "test_readme.test_the_program_prints_what_the_readme_shows",
    "import hashlib": "test_readme.test_the_seal_recomputed_by_hand_is_the_head",
    "balance = wallets": "test_documents.test_the_examples_of_reading_run",
    "def tell(": "test_documents.test_the_example_of_wiring_events_runs",
    "def note(": "test_documents.test_the_example_of_following_the_log_runs",
    "queue = QueueAuthorizer(": "test_the_two_sides_have_a_key_each",
    "# 1. Whoever verifies": "test_keys_are_exchanged_in_three_steps",
    "def place(": "test_an_order_and_its_hold_survive_a_repeat",
    "from points_platform import aio": "test_the_example_for_those_who_await_runs",
    "from alembic import op": "test_a_hosts_alembic_makes_the_tables_and_sees_nothing_to_do",
    "from points_platform import migrations": "test_a_hosts_alembic_makes_the_tables_and_sees_nothing_to_do",
    "@app.exception_handler": "test_one_handler_answers_every_error_in_fastapi",
    "import pytest\nfrom shop": "test_the_fixtures_serve_a_hosts_tests",
    "from shop import place": "test_the_fixtures_serve_a_hosts_tests",
    "class AsJson": "test_the_audit_lines_come_as_json_whatever_the_other_loggers_say",
    "config = WalletConfig(": "test_the_example_of_configuring_runs",
}


class HostBase(DeclarativeBase):
    """The tables of the host in the examples."""


class Order(HostBase):
    __tablename__ = "orders"
    id: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[str]
    escrow_id: Mapped[str]


@pytest.fixture
def shop(world: World) -> World:
    HostBase.metadata.create_all(world.database.engine)
    world.credit(amount=500)
    return world


def orders(world: World) -> list[str]:
    with Session(world.database.engine) as session:
        return list(session.scalars(select(Order.id).order_by(Order.id)))


def test_every_example_is_run_by_a_test() -> None:
    tests = {f"{Path(__file__).stem}.{name}" for name in globals()} | {
        f"{name}.{node.name}"
        for name in ("test_readme", "test_documents")
        for node in ast.parse(Path(__file__).with_name(f"{name}.py").read_text()).body
        if isinstance(node, ast.FunctionDef)
    }
    assert {name if "." in name else f"{Path(__file__).stem}.{name}" for name in EXECUTED.values()} <= tests
    for block in examples():
        assert sum(block.startswith(begins) for begins in EXECUTED) == 1, block


def test_an_order_and_its_hold_survive_a_repeat(shop: World) -> None:
    names: dict[str, Any] = {"Session": Session, "Order": Order, "EscrowHoldRequest": EscrowHoldRequest}
    names |= {"wallets": shop.wallets, "database": shop.database, "request": shop.hold_request(amount=120)}
    run = compile(example("def place("), "the example", "exec")
    exec(run, names)
    exec(run, names)
    names["wallets"] = shop.service()  # another process, which remembers nothing
    exec(run, names)
    assert (orders(shop), shop.wallets.get_user_balance("ana").escrow) == (["order-9"], 120)
    assert len(shop.events) == 2

    with Session(shop.database.engine) as session, session.begin():
        for _ in range(2):
            names["place"](session, "order-10", shop.hold_request(idempotency_key="order-10"))
    names["request"] = shop.hold_request(amount=9999)
    with pytest.raises(wallets.InsufficientBalanceError):
        exec(run, names)
    assert orders(shop) == ["order-10", "order-9"]


def test_the_two_sides_have_a_key_each(world: World, tmp_path: Path) -> None:
    points_platform = Path(sys.executable).with_name("points-platform")
    subprocess.run([points_platform, "keygen", tmp_path / "queue.pem"], check=True, capture_output=True)
    text = example("queue = QueueAuthorizer(").replace("/run/secrets", str(tmp_path))
    text = text.replace("/run/keys/queue.jwks", f"{tmp_path}/queue.pub.pem")
    kinds = (AuthorizationKey, AuthorizationVerifier, KeyFile, QueueAuthorizer, WalletService)
    names: dict[str, Any] = {kind.__name__: kind for kind in kinds} | {"ledger": world.ledger}
    exec(text, names)
    world.credit()
    request = world.settle_request(world.hold().escrow_id)
    assert names["wallets"].settle_escrow(request, names["queue"].authorize(request)).settled_amount == 30


def test_keys_are_exchanged_in_three_steps(world: World) -> None:
    old, new = (AuthorizationKey.secret(f"the {which} secret of at least 32 bytes") for which in ("old", "new"))
    signer, verifier = QueueAuthorizer(old), AuthorizationVerifier(old)
    service = WalletService(world.ledger, authorizer=verifier)
    world.credit(amount=1000)
    names = {"verifier": verifier, "signer": signer}
    names |= {"old_public_key": old, "new_public_key": new, "new_key": new}  # type: ignore[dict-item]

    def settles() -> None:
        request = world.settle_request(world.hold().escrow_id)
        service.settle_escrow(request, signer.authorize(request))

    late = world.settle_request(world.hold().escrow_id)
    of_before = signer.authorize(late)
    settles()
    for step in example("# 1. Whoever verifies").splitlines():
        exec(step, dict(names))
        settles()
    with pytest.raises(InvalidAuthorizationError):
        service.settle_escrow(late, of_before)


def test_the_example_for_those_who_await_runs(postgresql_url: str) -> None:
    with Database(postgresql_url) as database:
        shop = World(database)
        HostBase.metadata.create_all(database.engine)
        shop.credit(amount=500)
        code = compile(example("from points_platform import aio"), "it", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        told: list[EscrowHeld] = []
        names: dict[str, Any] = {"AsyncSession": AsyncSession, "Order": Order, "EscrowHeld": EscrowHeld}
        names |= {"wallets": shop.wallets, "request": shop.hold_request(), "events": shop.bus, "receiver": told.append}

        async def main() -> None:
            names["async_engine"] = create_async_engine(postgresql_url)
            for _ in range(2):
                running = eval(code, names)
                if inspect.isawaitable(running):
                    await running
            await names["aio"].call(shop.wallets.hold_in_escrow, shop.hold_request(amount=1))
            while not told:
                await asyncio.sleep(0)
            await names["async_engine"].dispose()

        asyncio.run(asyncio.wait_for(main(), 60))
        assert (names["balance"].available, names["held"].replayed, orders(shop)) == (470, True, ["order-9"])


def test_a_hosts_alembic_makes_the_tables_and_sees_nothing_to_do(url: str, tmp_path: Path) -> None:
    versions = tmp_path / "migrations" / "versions"
    versions.mkdir(parents=True)
    (versions / "v1.py").write_text(example("from alembic import op").replace('"9ab0"', "None"))
    configure = example("from points_platform import migrations")
    (tmp_path / "migrations" / "env.py").write_text(
        "from alembic import context\nfrom sqlalchemy import MetaData, create_engine\n"
        f"class Base:\n    metadata = MetaData()\nengine = create_engine({url!r})\n"
        f"with engine.connect() as connection:\n    {configure.replace(chr(10), chr(10) + '    ')}\n"
        "    with context.begin_transaction():\n        context.run_migrations()\nengine.dispose()\n"
    )
    config = Config()
    config.set_main_option("script_location", str(tmp_path / "migrations"))
    command.upgrade(config, "head")
    command.check(config)
    with Database(url) as database:
        assert World(database).credit().new_available_balance == 100


def test_one_handler_answers_every_error_in_fastapi(world: World) -> None:
    app = FastAPI()
    exec(example("@app.exception_handler"), {**globals(), "app": app, "Request": Request, "JSONResponse": JSONResponse})

    @app.post("/spend")
    def spend() -> None:
        world.spend(amount=100)

    @app.post("/busy")
    def busy() -> None:
        raise OptimisticLockError(attempts=4)

    assert WalletError.__name__ in example("@app.exception_handler")
    with TestClient(app) as client:
        refused, later = client.post("/spend"), client.post("/busy")
    assert (refused.status_code, refused.json()["code"]) == (402, "insufficient_balance")
    assert refused.json()["details"] == {"required": 100, "available": 0, "currency": "points"}
    assert "Retry-After" not in refused.headers
    assert (later.status_code, later.headers["Retry-After"]) == (503, "1")


SHOP = """
import os

from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from points_platform.core import Database
from points_platform.wallets import EscrowHoldRequest, UserCreditRequest

engine = create_engine(os.environ["SHOP_DATABASE"])
Database(engine)


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[str] = mapped_column(primary_key=True)


Base.metadata.create_all(engine)


def top_up(wallets, user_id, amount):
    keys = {"idempotency_key": "top-up", "request_id": "r-1"}
    wallets.credit_user(UserCreditRequest(user_id=user_id, amount=amount, reason="top_up", **keys))


def place(session, wallets, order_id, *, user_id, price):
    keys = {"idempotency_key": order_id, "request_id": "r-2", "queue_item_id": order_id, "feature_type": "song"}
    request = EscrowHoldRequest(user_id=user_id, amount=price, reason="performance_request", **keys)
    if not wallets.hold_in_escrow(request, session=session).replayed:
        session.add(Order(id=order_id))
"""

# The same test twice: the second one would find what the first has left.
MORE = """

test_nothing_is_left_of_it = test_an_order_holds_its_price


def test_the_fixtures_are_one(points_sessions, points_session, points_database, points_connection, points_ledger):
    assert points_session.connection() is points_connection
    assert points_database.connection is points_connection
    assert points_ledger.database is points_database
    with points_sessions() as session:
        assert session.connection() is points_connection


def test_what_the_platform_overrides_counts(points_config, points_clock, points_schema, points_authorizer):
    assert (points_config.default_currency, points_clock, points_schema) == ("gems", None, None)
    assert points_authorizer is not None
"""
OVERRIDES = """

from points_platform.wallets import WalletConfig


@pytest.fixture
def points_config():
    return WalletConfig(default_currency="gems")
"""


def outcome_of(folder: Path, url: str, conftest: str, test: str) -> str:
    """The outcome of a host's tests, in a process of their own."""
    (folder / "shop.py").write_text(SHOP)
    (folder / "conftest.py").write_text(conftest)
    (folder / "test_shop.py").write_text(test)
    options = ["-q", "-p", "no:cacheprovider", "-W", "error", "--rootdir", str(folder), str(folder)]
    environment = os.environ | {"SHOP_DATABASE": url, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *options], cwd=folder, env=environment, capture_output=True, text=True
    )
    return ran.stdout + ran.stderr


def test_the_fixtures_serve_a_hosts_tests(world: World, tmp_path: Path) -> None:
    url = world.database.engine.url.render_as_string(hide_password=False)
    before = world.snapshot()
    conftest = example("import pytest\nfrom shop") + OVERRIDES
    outcome = outcome_of(tmp_path, url, conftest, example("from shop import place") + MORE)
    assert "4 passed" in outcome, outcome
    assert world.snapshot() == before
    HostBase.metadata.create_all(world.database.engine)
    assert orders(world) == []


def test_without_a_word_the_fixtures_bring_a_database_of_their_own(tmp_path: Path) -> None:
    test = example("from shop import place").replace("points_session.commit()", "points_session.rollback()")
    test = test.replace(
        "    place(points_session",
        "    Base.metadata.create_all(points_session.connection())\n    place(points_session",
    ).replace("from shop import place, top_up", "from shop import Base, place, top_up")
    test = test.replace("== 120", "== 0").replace("-1] is EscrowHeld", "-1] is not EscrowHeld")
    outcome = outcome_of(
        tmp_path, f"sqlite:///{tmp_path}/shop.db", 'pytest_plugins = ["points_platform.testing"]\n', test
    )
    assert "1 passed" in outcome, outcome


def test_the_table_of_fixtures_names_them_all() -> None:
    _, _, table = said().partition("| fixture | what it is | by default |\n")
    named = {name.strip("` ") for line in table.split("\n\n")[0].splitlines() for name in line.split("|")[1].split(",")}
    assert {name for name in named if name.startswith("points_")} == {
        name for name in testing.__all__ if name.startswith("points_")
    }


@pytest.fixture
def _loggers() -> Iterator[None]:
    audit = logging.getLogger("points_platform.audit")
    level, handlers = audit.level, audit.handlers[:]
    yield
    audit.setLevel(level)
    audit.handlers[:] = handlers


@pytest.mark.usefixtures("_loggers")
def test_the_audit_lines_come_as_json_whatever_the_other_loggers_say(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    exec(example("class AsJson"), {"json": json, "logging": logging})
    credited = world.credit()
    (line,) = capsys.readouterr().err.splitlines()
    told = json.loads(line)
    assert (told["transaction_id"], told["message"]) == (credited.transaction_id, f"credit {credited.transaction_id}")


def test_the_example_of_configuring_runs(world: World) -> None:
    names: dict[str, Any] = {"WalletConfig": WalletConfig, "WalletService": WalletService, "bus": EventBus()}
    names |= {"ledger": LedgerService(world.database), "queue": world.authorizer}
    exec(example("config = WalletConfig("), names)
    with pytest.raises(wallets.InvalidRequestError):
        names["wallets"].credit_user(world.credit_request(currency="gold"))
    assert names["wallets"].credit_user(world.credit_request(currency="gems")).new_available_balance == 100
