"""Rows that travel as one JSON parameter: each value arrives as it was given, on both engines."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import BigInteger, Column, Connection, MetaData, String, Table, event, func, select, text
from sqlalchemy.exc import DBAPIError

from points_platform.core import Database
from points_platform.core import rows as core_rows
from points_platform.core.models import UtcDateTime
from points_platform.core.rows import CHUNK, insert_rows, parameters, update_rows

NOTES = Table(
    "notes",
    MetaData(),
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("owner", String(300), key="owner_id"),
    Column("note", String),
    Column("amount", BigInteger),
    Column("at", UtcDateTime()),
)
ID, OWNER, NOTE, AMOUNT, AT = COLUMNS = tuple(NOTES.c)
NOON = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
HOSTILE = [
    "",
    " leading and trailing ",
    'it\'s "quoted" `so`',
    "back\\slash \\' \\n \\u0041 \\N",
    "100% %s %(rows)s %% :rows $1 ?",
    "'; DROP TABLE notes; --",
    "line\nbreak\ttab\rreturn\x01\x1f\x7f",
    "żółw 🐢 \u2028\u2029 \u202e \ufeff \uffff \U0010ffff",
    "null",
    "true",
    "007",
    "1e5",
    "9007199254740993",
    "[1,2]",
    '{"nul":"\\u0000","n":1.0}',
    "2026-03-01 12:00:00+00:00",
    "$[0]",
]
NUMBERS = [0, 1, -1, 2**53 - 1, 2**53 + 1, -(2**53) - 1, 2**63 - 1, -(2**63)]
TIMES = [
    NOON,
    NOON.replace(microsecond=1),
    NOON.replace(microsecond=100_000),
    NOON.replace(microsecond=999_999),
    datetime(1, 1, 1, tzinfo=UTC),
    datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
    datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
]


@pytest.fixture
def connection(database: Database) -> Iterator[Connection]:
    with database.engine.begin() as connection:
        NOTES.create(connection)
        yield connection


def row(number: int, owner: str | None = "ana", note: str | None = None, amount: int | None = 0, at: Any = NOON) -> Any:
    return number, owner, note, amount, at


def stored(connection: Connection) -> list[Any]:
    return [tuple(found) for found in connection.execute(select(NOTES).order_by(ID))]


def test_every_value_arrives_as_it_was_given(connection: Connection) -> None:
    rows = [row(number, note, note) for number, note in enumerate(HOSTILE)]
    rows += [row(100 + number, amount=amount) for number, amount in enumerate(NUMBERS)]
    rows += [row(200 + number, at=at) for number, at in enumerate(TIMES)]
    rows += [row(300, None, None, None, None), row(-(2**63)), row(2**63 - 1)]
    insert_rows(connection, COLUMNS, rows)
    assert stored(connection) == sorted(rows, key=lambda row: row[0])


def test_what_arrives_is_what_one_value_at_a_time_would_have_left(connection: Connection) -> None:
    """Byte for byte, also where the driver would hide a difference: a time in SQLite is a text that is compared."""
    raw = text("SELECT owner, note, amount, CAST(at AS VARCHAR) FROM notes ORDER BY id")
    values = [*HOSTILE[: len(TIMES)], *HOSTILE]
    rows = [row(n, note, note, NUMBERS[n % len(NUMBERS)], TIMES[n % len(TIMES)]) for n, note in enumerate(values)]
    rows.append(row(len(rows), None, None, None, None))
    insert_rows(connection, COLUMNS, rows)
    at_once = connection.execute(raw).all()
    connection.execute(NOTES.delete())
    names = [column.key for column in COLUMNS]
    connection.execute(NOTES.insert(), [dict(zip(names, values, strict=True)) for values in rows])
    assert connection.execute(raw).all() == at_once


# What a driver takes as text; a lone surrogate is none.
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.lists(
        st.tuples(
            texts | st.none(),
            texts | st.none(),
            st.integers(-(2**63), 2**63 - 1) | st.none(),
            st.datetimes(timezones=st.just(UTC)) | st.none(),
        ),
        max_size=8,
    )
)
def test_whatever_is_inserted_and_set_is_what_is_read(connection: Connection, values: list[Any]) -> None:
    with connection.begin_nested() as savepoint:
        rows = [(number, *value) for number, value in enumerate(values)]
        insert_rows(connection, COLUMNS, rows)
        assert stored(connection) == rows
        turned = [(number, *value) for number, value in enumerate(reversed(values))]
        assert update_rows(connection, (ID,), (OWNER, NOTE, AMOUNT, AT), turned) == len(rows)
        assert stored(connection) == turned
        savepoint.rollback()


@pytest.mark.parametrize("place", [1, 2])
def test_a_nul_is_never_stored_as_something_else(connection: Connection, place: int) -> None:
    """PostgreSQL cannot have it in a text; a request cannot have it, and metadata only as an escape."""
    values = list(row(1, "before", "before"))
    values[place] = "before\0after"
    try:
        with connection.begin_nested():
            insert_rows(connection, COLUMNS, [values])
    except (ValueError, DBAPIError):
        assert stored(connection) == []
    else:
        assert stored(connection) == [tuple(values)]


def test_columns_go_by_the_order_that_is_given_and_names_by_the_columns_keys(connection: Connection) -> None:
    insert_rows(connection, (OWNER, AT, ID), [["ana", NOON, 1], ["ben", NOON, 2]])
    assert stored(connection) == [row(1, "ana", None, None), row(2, "ben", None, None)]
    keys = (OWNER, ID)
    assert update_rows(connection, keys, (AMOUNT, OWNER), [("ana", 1, 7, "eva"), ("ben", 1, 8, "zoe")]) == 1
    assert stored(connection) == [row(1, "eva", None, 7), row(2, "ben", None, None)]


def test_an_update_changes_the_rows_with_all_its_keys_and_counts_them(connection: Connection) -> None:
    rows = [row(1, "ana", "held", 10), row(2, "ana", "done", 10), row(3, "ana", "held", 11), row(4, None, "held", 10)]
    insert_rows(connection, COLUMNS, rows)
    later = NOON + timedelta(microseconds=1)
    asked = [(1, "ana", 10), (2, "ana", 10), (3, "ana", 10), (4, None, 10), (5, "ana", 10), (1, "ben", 10)]
    changes = [(*key, "held", "changed", later) for key in asked]
    assert update_rows(connection, (ID, OWNER, AMOUNT, NOTE), (NOTE, AT), changes) == 1
    assert stored(connection) == [row(1, "ana", "changed", 10, later), *rows[1:]]


def test_a_key_that_is_a_time_matches_to_the_microsecond(connection: Connection) -> None:
    insert_rows(connection, COLUMNS, [row(number, at=at) for number, at in enumerate(TIMES)])
    for number, at in enumerate(TIMES):
        assert update_rows(connection, (AT,), (AMOUNT,), [(at, number + 1)]) == 1
    assert [found[3] for found in stored(connection)] == list(range(1, len(TIMES) + 1))


def test_a_time_from_another_zone_is_not_quietly_another_time(connection: Connection) -> None:
    """``parameters`` wants UTC; the tables hold nothing else, so a time read back from them is in UTC."""
    insert_rows(connection, COLUMNS, [row(1, at=NOON)])
    (found,) = stored(connection)
    assert found[4].tzinfo is UTC
    insert_rows(connection, COLUMNS, [row(2, at=found[4].astimezone(timezone(timedelta(hours=3))).astimezone(UTC))])
    assert stored(connection)[1][4] == NOON


def test_more_rows_than_a_statement_takes_go_in_several_and_all_arrive(connection: Connection) -> None:
    statements: list[str] = []
    event.listen(connection, "before_cursor_execute", lambda c, cursor, sql, *others: statements.append(sql))
    for count in (0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 500):
        connection.execute(NOTES.delete())
        statements.clear()
        rows = [row(number, f"user-{number}", HOSTILE[number % len(HOSTILE)], number) for number in range(count)]
        insert_rows(connection, COLUMNS, rows)
        assert len(statements) == -(-count // CHUNK)
        assert stored(connection) == rows
        statements.clear()
        changes = [(number, number, f"{number}!") for number in range(count + 5)]
        assert update_rows(connection, (ID, AMOUNT), (NOTE,), changes) == count
        assert len(statements) == -(-(count + 5) // CHUNK)
        assert connection.scalar(select(func.count()).where(ID.cast(String) + "!" == NOTE)) == count


def test_no_rows_are_no_statement_and_no_change(connection: Connection) -> None:
    insert_rows(connection, COLUMNS, [row(1)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Connection, "execute", lambda *arguments: pytest.fail("something was sent"))
        insert_rows(connection, COLUMNS, [])
        assert update_rows(connection, (ID,), (NOTE,), []) == 0
    assert stored(connection) == [row(1)]


def test_a_row_that_cannot_be_inserted_takes_all_others_with_it(connection: Connection) -> None:
    insert_rows(connection, COLUMNS, [row(7)])
    with pytest.raises(DBAPIError), connection.begin_nested():
        insert_rows(connection, COLUMNS, [row(number) for number in (5, 6, 7, 8)])
    assert stored(connection) == [row(7)]


def test_given_rows_are_a_table_under_other_names_with_the_columns_types(connection: Connection) -> None:
    asked = core_rows.given(connection.dialect.name, (ID, OWNER, AT, NOTE), ("number", "owner"))
    assert [column.key for column in asked.c] == ["number", "owner", "at", "note"]
    rows = [[number, owner, NOON, None] for number, owner in enumerate(["10", "9", "ÿ", "z", '"'])]
    found = connection.execute(select(asked).order_by(asked.c.number.desc()), parameters(connection, rows)).all()
    assert [tuple(each[:2]) for each in found] == [(number, owner) for number, owner, *_ in reversed(rows)]
    sums = select(func.sum(asked.c.number), func.count(asked.c.note))
    assert tuple(connection.execute(sums, parameters(connection, rows)).one()) == (10, 0)


def test_joining_given_rows_finds_each_as_often_as_it_was_given(connection: Connection) -> None:
    insert_rows(connection, COLUMNS, [row(1, "ana"), row(2, "ben"), row(3, None)])
    asked = core_rows.given(connection.dialect.name, (ID, OWNER), ("id", "owner"))
    joined = select(ID).join_from(NOTES, asked, (asked.c.id == ID) & (asked.c.owner == OWNER)).order_by(ID)
    wanted = [(1, "ana"), (1, "ana"), (2, "ana"), (2, "ben"), (3, None), (4, "ana")]
    assert connection.scalars(joined, parameters(connection, wanted)).all() == [1, 1, 2]
