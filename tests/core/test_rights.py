"""A role with SELECT, INSERT and UPDATE alone does all that a platform does; what needs more says what it lacks."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.orm import Session

from points_platform.cli.demo import evening
from points_platform.core import Database, StorageUnavailableError, WalletError
from points_platform.wallets import books
from points_platform.wallets.rebuild import apply, drifts
from points_platform.wallets.verify import verify
from support.recount import recount
from support.world import World

ROLE = f"points_app_{os.getpid()}"


class Served:
    """A database, and what a role of few rights may do in it."""

    def __init__(self, url: str) -> None:
        self.owner = Database(url)
        options = {"options": f"-crole={ROLE}"}
        self.url = make_url(url).update_query_dict(options)

    def sql(self, *statements: str) -> None:
        with self.owner.engine.begin() as connection:
            for statement in statements:
                connection.execute(text(statement.format(role=ROLE)))


@pytest.fixture
def served(postgresql_url: str) -> Iterator[Served]:
    served = Served(postgresql_url)
    served.sql(
        "CREATE ROLE {role}",
        "GRANT USAGE ON SCHEMA public TO {role}",
        "GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO {role}",
    )
    yield served
    served.sql("DROP OWNED BY {role}", "DROP ROLE {role}")
    served.owner.close()


@pytest.mark.parametrize("single", [True, False], ids=["single", "stepwise"])
def test_three_rights_are_enough_to_operate_to_seal_and_to_verify(served: Served, single: bool) -> None:
    with Database(served.url, single_statement=single) as database:
        world = World(database)
        evening(database, seed=7)
        world.credit()
        world.wallets.hold_many([world.hold_request(amount=1), world.hold_request(amount=2)])
        with Session(database.engine) as session, session.begin():
            world.wallets.credit_user(world.credit_request(), session=session)
        world.ledger.seal()
        reader = world.ledger.reader("follower")
        reader.move(3, seen=0)
        assert list(verify(database)) == []
        assert all(account.balanced for account in books(database))
        with database.snapshot() as connection:
            assert list(drifts(connection)) == []
        database.create_schema()  # there is nothing to do
    recount(served.owner)


RIGHTS = [("SELECT", "user_wallets"), ("INSERT", "ledger_entries"), ("UPDATE", "escrow_items")]


@pytest.mark.parametrize(("right", "table"), RIGHTS)
@pytest.mark.parametrize("single", [True, False], ids=["single", "stepwise"])
def test_an_operation_says_which_right_on_which_table_is_missing(
    served: Served, single: bool, right: str, table: str
) -> None:
    with Database(served.url, single_statement=single) as database:
        world = World(database)
        world.credit()
        held = world.hold()
        served.sql(f"REVOKE {right} ON {table} FROM {{role}}")
        with pytest.raises(StorageUnavailableError) as refused:
            world.settle(held.escrow_id)
        lacks(refused.value, f"{right} on {table}")
        served.sql(f"GRANT {right} ON {table} TO {{role}}")
        world.settle(held.escrow_id)


def lacks(error: WalletError, *missing: str) -> None:
    assert error.details["missing"] == missing
    assert ", ".join(missing) in str(error)
    assert not error.retryable
    assert error.details["cause"] == "42501"


def test_in_a_callers_session_too(served: Served) -> None:
    with Database(served.url) as database:
        world = World(database)
        world.credit()
        served.sql("REVOKE INSERT ON ledger_transactions FROM {role}")
        with Session(database.engine) as session:
            with pytest.raises(StorageUnavailableError) as refused:
                world.wallets.credit_user(world.credit_request(), session=session)
            lacks(refused.value, "INSERT on ledger_transactions")
            assert session.scalar(text("SELECT 1")) == 1


def test_reading_and_sealing_say_it_too(served: Served) -> None:
    with Database(served.url) as database:
        world = World(database)
        world.credit()
        served.sql("REVOKE SELECT ON ledger_log, user_wallets FROM {role}")
        readings: list[tuple[Callable[[], Any], str]] = [
            (lambda: world.wallets.get_user_balance("ana"), "SELECT on user_wallets"),
            (world.ledger.seal, "SELECT on ledger_log"),
            (lambda: list(verify(database)), "SELECT on ledger_log"),
        ]
        for reading, missing in readings:
            with pytest.raises(StorageUnavailableError) as refused:
                reading()
            lacks(refused.value, missing)


def test_taking_rows_away_needs_the_right_to_delete(served: Served) -> None:
    with Database(served.url) as database:
        served.sql("INSERT INTO model_wallets VALUES ('model:luna', 'points', 1, 0, 'active', 1, now(), now())")
        with database.snapshot() as connection:
            [drift] = drifts(connection)
        with pytest.raises(StorageUnavailableError) as refused:
            apply(database, drift)
        lacks(refused.value, "DELETE on model_wallets")
        served.sql("GRANT DELETE ON model_wallets TO {role}")
        assert apply(database, drift)


def test_making_the_schema_needs_the_right_to_create(served: Served) -> None:
    with Database(served.url, schema="points") as database:
        with pytest.raises(StorageUnavailableError) as refused:
            database.create_schema()
        lacks(refused.value, f"CREATE on database {database.engine.url.database}")
        served.sql("CREATE SCHEMA points", "GRANT USAGE ON SCHEMA points TO {role}")
        with pytest.raises(StorageUnavailableError) as refused:
            database.create_schema()
        lacks(refused.value, "CREATE on schema points")
        served.sql("GRANT CREATE ON SCHEMA points TO {role}")
        database.create_schema()
        World(database).credit()


def test_a_schema_that_the_role_may_not_use_is_named(served: Served) -> None:
    with Database(served.owner.engine, schema="points") as owner:
        owner.create_schema()
    with Database(served.url, schema="points") as database, pytest.raises(StorageUnavailableError) as refused:
        World(database).credit()
    assert "USAGE on schema points" in refused.value.details["missing"]
