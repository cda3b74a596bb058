"""Where the tables are: in a schema of their own, by the search path, and never in another tenant's."""

import io
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from points_platform.cli.demo import evening
from points_platform.core import Database, InvalidRequestError, SchemaVersionError, WalletError
from points_platform.ledger.files import export_log
from points_platform.wallets import books
from points_platform.wallets.rebuild import apply, drifts, restore
from points_platform.wallets.verify import verify
from support.recount import recount_on
from support.world import World

SCHEMA = "Points-7"


@contextmanager
def kept_in(url: str, schema: str = SCHEMA, **options: Any) -> Iterator[World]:
    """A platform in a schema of its own, beside one that has the first schema of the search path."""
    with Database(url, schema=schema, **options) as database:
        database.create_schema()
        yield World(database)
        with database.engine.begin() as connection:
            connection.execute(text(f'SET LOCAL search_path = "{schema}"'))
            recount_on(connection)


def rows_in(database: Database, schema: str) -> int:
    names = ("user_wallets", "model_wallets", "escrow_items", "ledger_transactions", "ledger_entries", "ledger_log")
    with database.engine.connect() as connection:
        return sum(connection.scalar(text(f'SELECT count(*) FROM "{schema}".{name}')) or 0 for name in names)


@pytest.mark.parametrize("single", [True, False], ids=["single", "stepwise"])
def test_everything_is_kept_in_the_schema_and_nothing_beside_it_is_touched(postgresql_url: str, single: bool) -> None:
    with Database(postgresql_url) as beside, kept_in(postgresql_url, single_statement=single) as world:
        assert world.database.schema == SCHEMA
        play(world)
        look_at_everything(world)
        assert rows_in(beside, "public") == 0
        assert rows_in(beside, SCHEMA) > 100


def play(world: World) -> None:
    """Each operation, alone and with others, in a session, refused and repeated; then the keeping of the ledger."""
    evening(world.database, seed=7)
    request = world.credit_request()
    assert not world.send(request).replayed
    assert world.send(request, world.service()).replayed
    world.deposit(), world.spend(amount=5), world.transfer(amount=5), world.open("model:luna")
    for end in (world.settle, world.refund, world.partial_settle):
        end(world.hold().escrow_id)
    with pytest.raises(WalletError, match="are required"):
        world.hold(amount=10**6)
    answers = world.wallets.hold_many([world.hold_request(amount=1), world.hold_request(amount=10**6)])
    assert [isinstance(answer, WalletError) for answer in answers] == [False, True]
    with Session(world.database.engine) as session, session.begin():
        world.wallets.hold_in_escrow(world.hold_request(amount=1), session=session)
        world.wallets.credit_many([world.credit_request("ben"), world.credit_request("cleo")], session=session)
    assert world.ledger.seal().waiting == 0


def look_at_everything(world: World) -> None:
    database, now = world.database, datetime.now(UTC)
    assert list(verify(database)) == []
    assert all(account.balanced for account in books(database))
    assert len(world.ledger.entries("user:ana", "points", newest_first=True, limit=5).items) == 5
    last = world.ledger.entries("user:ana", "points").items[0]
    assert world.ledger.transaction(last.transaction_id) is not None
    assert world.ledger.balance_as_of(last.account, "points", at=now) >= 0  # type: ignore[arg-type]
    span: dict[str, Any] = {"since": now - timedelta(days=1), "until": now}
    assert world.ledger.earnings("luna", "points", period="day", timezone="UTC", **span)
    assert world.wallets.list_escrows(user_id="ana").items
    reader = world.ledger.reader("follower")
    reader.move(len(reader.read()), seen=0)
    assert reader.position > 0
    with database.engine.begin() as connection:
        connection.execute(text(f'UPDATE "{database.schema}".user_wallets SET available = available + 1'))
        connection.execute(text(f'DELETE FROM "{database.schema}".model_wallets'))
    with database.snapshot() as connection:
        drifted = list(drifts(connection))
    assert drifted
    assert all(apply(database, drift) for drift in drifted)
    assert list(verify(database)) == []


def test_a_ledger_is_carried_from_one_schema_into_another(postgresql_url: str) -> None:
    with kept_in(postgresql_url, "one") as world, kept_in(postgresql_url, "other") as copy:
        play(world)
        file = io.StringIO()
        head = export_log(world.database, file)
        file.seek(0)
        assert restore(copy.database, file) == head
        assert list(verify(copy.database, head=head)) == []


def test_ledgers_in_two_schemas_and_beside_them_over_one_engine_never_mix(postgresql_url: str) -> None:
    """Each connection of the pool serves all of them, and remembers what it has prepared."""
    engine = create_engine(postgresql_url, pool_size=2, max_overflow=0)  # verifying takes two
    databases = [Database(engine, schema=schema) for schema in ("one", "other", None)]
    for database in databases:
        database.create_schema()
    worlds = [World(database) for database in databases]
    for amount, world in enumerate(worlds, 100):
        world.credit(amount=amount, idempotency_key="the same")
        world._numbers = itertools.count(amount * 1000)  # a key of another one's would be looked up again, and right
    for world in worlds * 2:
        world.settle(world.hold(amount=7).escrow_id, amount=7)
        world.wallets.credit_many([world.credit_request(amount=1)])
    found = [(w.wallets.get_user_balance("ana").available, w.wallets.get_model_balance("luna").earned) for w in worlds]
    assert found == [(88, 14), (89, 14), (90, 14)]
    assert [list(verify(database)) for database in databases] == [[]] * 3
    engine.dispose()


def test_a_hosts_session_keeps_its_search_path_its_settings_and_its_own_tables(postgresql_url: str) -> None:
    with kept_in(postgresql_url) as world, Session(world.database.engine) as session:
        session.execute(text("CREATE SCHEMA host"))
        session.execute(text("CREATE TABLE host.user_wallets (id integer)"))
        session.execute(text("SET LOCAL search_path = host"))

        def state() -> list[Any]:
            names = ("search_path", "lock_timeout", "plan_cache_mode")
            settings = [session.scalar(text(f"SHOW {name}")) for name in names]
            return [*settings, session.scalar(text("SELECT count(*) FROM user_wallets"))]

        before = state()
        world.wallets.credit_user(world.credit_request(), session=session)
        assert state() == before
        with pytest.raises(WalletError, match="are required"):
            world.wallets.hold_in_escrow(world.hold_request(amount=10**6), session=session)
        assert state() == before
        assert not session.connection().get_execution_options().get("schema_translate_map")
        world.wallets.hold_in_escrow(world.hold_request(), session=session)
        assert [event.event_type for event in world.events] == []
        session.commit()
        assert [event.event_type for event in world.events] == ["wallet.credited", "wallet.escrow_held"]


@pytest.mark.parametrize("table", ["ledger_transactions", "ledger_entries", "ledger_log"])
def test_the_ledger_is_append_only_in_the_schema_too(postgresql_url: str, table: str) -> None:
    with kept_in(postgresql_url) as world:
        world.credit()
        world.ledger.seal()
        for change in ("DELETE FROM {}", "UPDATE {} SET transaction_id = ''", "TRUNCATE {}"):
            with pytest.raises(DBAPIError, match="append-only"), world.database.engine.begin() as connection:
                connection.execute(text(change.format(f'"{SCHEMA}".{table}')))


def test_the_schema_is_made_where_it_is_missing_and_taken_where_it_is_there(postgresql_url: str) -> None:
    with Database(postgresql_url, schema="points") as database:
        with pytest.raises(SchemaVersionError, match=r"create_schema\(\)"):
            World(database).credit()
        with database.engine.begin() as connection:
            connection.execute(text("CREATE SCHEMA points"))
            connection.execute(text("CREATE TABLE points.escrow_items (id integer)"))
        with pytest.raises(InvalidRequestError, match="a table escrow_items that is not the module's"):
            database.create_schema()
        with database.engine.begin() as connection:
            connection.execute(text("DROP TABLE points.escrow_items"))
        database.create_schema()
        database.create_schema()
        World(database).credit()


@pytest.mark.parametrize("schema", ["", "a b", 'a"b', "a.b", "pg_points", "x" * 64, "ä", "7", 5, b"points", True])
def test_what_is_no_name_of_a_schema_is_refused(postgresql_url: str, schema: Any) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        Database(postgresql_url, schema=schema)
    assert refused.value.details["field"] == "schema"


def test_sqlite_has_no_schemas(sqlite_url: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        Database(sqlite_url, schema="points")
    assert (refused.value.details["field"], refused.value.details["value"]) == ("schema", "points")


# ── somebody else's translation ──

TRANSLATED: dict[str, Any] = {"schema_translate_map": {None: "tenant_b"}}


def test_an_engine_that_translates_schemas_is_refused(url: str) -> None:
    plain = create_engine(url)
    for engine in (create_engine(url, execution_options=TRANSLATED), plain.execution_options(**TRANSLATED)):
        with pytest.raises(InvalidRequestError, match="schema_translate_map") as refused:
            Database(engine)
        assert refused.value.details["field"] == "target"
        engine.dispose()
    World(Database(plain)).credit()
    plain.dispose()


def test_an_engine_that_translates_schemas_later_is_refused_in_use(url: str) -> None:
    engine = create_engine(url)
    world = World(Database(engine, single_statement=False))
    world.credit()
    engine.update_execution_options(**TRANSLATED)
    for call in (world.credit, lambda: world.wallets.get_user_balance("ana")):
        with pytest.raises(InvalidRequestError, match="schema_translate_map"):
            call()
    engine.dispose()


def test_a_session_that_translates_schemas_is_refused_and_can_go_on(world: World) -> None:
    before = world.snapshot()
    options = world.database.engine.execution_options(**TRANSLATED)
    for of_engine in (True, False):
        with Session(options if of_engine else world.database.engine) as session:
            if not of_engine:
                session.connection(execution_options=TRANSLATED)
            with pytest.raises(InvalidRequestError, match="schema_translate_map") as refused:
                world.wallets.credit_user(world.credit_request(), session=session)
            assert refused.value.details["field"] == "session"
            assert session.scalar(text("SELECT 1")) == 1
    assert world.snapshot() == before


# ── the search path ──


@pytest.fixture
def tenants(postgresql_url: str) -> Iterator[str]:
    """A database whose tables are in ``public``, with an empty ``tenant_b``."""
    with Database(postgresql_url) as database:
        with database.engine.begin() as connection:
            connection.execute(text("CREATE SCHEMA tenant_b"))
        World(database).credit(amount=100, idempotency_key="the tenant's")
        before = World(database).snapshot()
        yield postgresql_url
        assert World(database).snapshot() == before, "another tenant's points have moved"


def with_path(url: str, path: str) -> str:
    options = {"options": f"-csearch_path={path}"}
    return make_url(url).update_query_dict(options).render_as_string(hide_password=False)


def calls(world: World) -> list[Callable[[], object]]:
    return [
        world.credit,
        lambda: world.wallets.credit_many([world.credit_request()]),
        lambda: world.wallets.get_user_balance("ana"),
        world.ledger.seal,
        world.database.create_schema,
    ]


@pytest.mark.parametrize("single", [True, False], ids=["single", "stepwise"])
def test_tables_behind_the_first_schema_of_the_search_path_are_refused_by_name(tenants: str, single: bool) -> None:
    with Database(with_path(tenants, "tenant_b,public"), single_statement=single) as database:
        for call in calls(World(database)):
            with pytest.raises(InvalidRequestError, match='schema="public"') as refused:
                call()
            assert refused.value.details["field"] == "database"
            assert "tenant_b" in refused.value.details["value"]


def test_with_the_schema_said_the_search_path_does_not_matter(tenants: str) -> None:
    with Database(with_path(tenants, "tenant_b,public"), schema="tenant_b") as database:
        database.create_schema()
        World(database).credit(amount=7)
    with Database(with_path(tenants, "public"), schema="tenant_b") as database:
        assert World(database).wallets.get_user_balance("ana").available == 7
    with Database(with_path(tenants, "tenant_b,public"), schema="public") as database:
        assert World(database).wallets.get_user_balance("ana").available == 100
    with Database(with_path(tenants, "nowhere,tenant_b,public")) as database:
        assert World(database).wallets.get_user_balance("ana").available == 7


@pytest.mark.parametrize("other", ["tenant_b", "tenant_b, public"])
@pytest.mark.parametrize("made", [True, False], ids=["with tables", "without"])
def test_a_session_on_another_search_path_is_refused(tenants: str, other: str, made: bool) -> None:
    """Also where that tenant has tables of its own: what a process remembers is of one ledger."""
    if made:
        with Database(tenants, schema="tenant_b") as database:
            database.create_schema()
    with Database(tenants) as database, Session(database.engine) as session:
        world = World(database)
        assert world.wallets.get_user_balance("ana").available == 100
        session.execute(text(f"SET LOCAL search_path = {other}"))
        with pytest.raises(WalletError) as refused:
            world.wallets.credit_user(world.credit_request(), session=session)
        assert not refused.value.retryable
        if made or "public" in other:
            assert isinstance(refused.value, InvalidRequestError)
            assert "schema" in str(refused.value)
        session.execute(text("SET LOCAL search_path = public"))


@pytest.mark.parametrize("single", [True, False], ids=["single", "stepwise"])
@pytest.mark.parametrize("made", [True, False], ids=["with tables", "without"])
def test_an_engine_whose_connections_change_their_search_path_writes_to_one_ledger(
    tenants: str, single: bool, made: bool
) -> None:
    if made:
        with Database(tenants, schema="tenant_b") as database:
            database.create_schema()
            World(database).credit(amount=50, idempotency_key="another's")
    engine = create_engine(tenants)
    world = World(Database(engine, single_statement=single))
    assert world.wallets.get_user_balance("ana").available == 100
    lead_to(engine, "tenant_b, public")
    for call in (
        world.credit,
        lambda: world.spend(amount=5),
        lambda: world.wallets.credit_many([world.credit_request()]),
    ):
        with pytest.raises(InvalidRequestError, match="schema"):
            call()
    engine.dispose()
    if made:
        with Database(tenants, schema="tenant_b") as database:
            assert World(database).wallets.get_user_balance("ana").version == 1


def lead_to(engine: Engine, path: str) -> None:
    def lead(connection: Any, *others: Any) -> None:
        connection.execute(f"SET search_path = {path}")
        connection.commit()

    event.listen(engine, "checkout", lead)
