"""Export and import: the same ledger on either engine, and a file of which every byte is believed only when proved."""

import io
import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from sqlalchemy import insert, select

from points_platform.core import (
    Base,
    Database,
    InvalidRequestError,
    LedgerDamagedError,
    OptimisticLockError,
    WalletError,
)
from points_platform.ledger import LedgerService, LogHead, files
from points_platform.ledger.files import export_log
from points_platform.ledger.log import chained, digest
from points_platform.ledger.models import LOG
from points_platform.wallets.models import USER_WALLETS
from points_platform.wallets.rebuild import drifts, restore
from points_platform.wallets.verify import verify
from support.world import World

VIEWS = ("user_wallets", "model_wallets", "escrow_items", "deposit_claims")
TABLES = [table for table in Base.metadata.sorted_tables if table.name != "ledger_log_readers"]
METADATA = {"title": 'Für \u2028\x85 \0 "Elise" 🎤', "n": 2**60, "deep": {"list": [1.5, None, True]}}
Rows = dict[str, list[tuple[Any, ...]]]


def play(world: World) -> None:
    """Each operation, in two currencies; seventeen transactions, sealed."""
    world.credit("ana", 100, metadata=METADATA)
    world.credit("ben", 50)
    settled, refunded, split = world.hold("ana"), world.hold("ana", 10), world.hold("ben", 20, metadata={})
    world.hold("ana", 5)
    world.settle(settled.escrow_id)
    world.refund(refunded.escrow_id, 10)
    world.partial_settle(split.escrow_id, 7, 13, user_id="ben")
    world.credit("ana", 20, currency="gems")
    world.hold("ana", 5, currency="gems")
    world.deposit("ben", 40, reference='Nº "1" 🎤', metadata=METADATA)
    world.spend("ana", 15, order_id="order-1")
    world.spend("ben", 15)
    world.transfer("ben", 10, recipient_id="cleo")
    world.open("model:sol", currency="gems")
    world.transfer("cleo", 4, recipient_id="ana")
    world.ledger.seal()


@pytest.fixture(scope="module")
def original(request: pytest.FixtureRequest) -> Iterator[Database]:
    """A database that tests only read."""
    with request.getfixturevalue("sqlite_databases").fresh() as url, Database(url) as database:
        play(World(database))
        yield database


@pytest.fixture(scope="module")
def file(original: Database) -> str:
    return exported(original)


def exported(database: Database) -> str:
    text = io.StringIO()
    head = export_log(database, text)
    assert head == LedgerService(database).head()
    return text.getvalue()


def lines_of(text: str) -> list[str]:
    """With their ends; metadata may hold what ``splitlines`` takes for one."""
    return io.StringIO(text, newline="\n").readlines()


def imported(database: Database, text: str, **options: Any) -> LogHead:
    return restore(database, io.StringIO(text, newline="\n"), **options)


def rows_of(database: Database) -> Rows:
    """Every row as the columns give it, which is the same on both engines."""
    with database.engine.connect() as connection:
        return {
            table.name: sorted(map(tuple, connection.execute(select(table))), key=repr)  # either order of keys
            for table in TABLES
        }


def refusal_of(database: Database, text: str) -> tuple[str, Any]:
    with pytest.raises(InvalidRequestError) as refused:
        imported(database, text)
    return refused.value.details["field"], refused.value.details["expected"]


# ── there and back ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("source", "target"), [("sqlite", "postgresql"), ("postgresql", "sqlite")])
def test_an_export_becomes_the_same_ledger_wallets_and_items_on_the_other_engine(
    request: pytest.FixtureRequest, source: str, target: str
) -> None:
    urls = (request.getfixturevalue(f"{engine}_url") for engine in (source, target))
    first, second = map(Database, urls)
    with first, second:
        play(World(first))
        text = exported(first)
        seen: list[int] = []
        head = imported(second, text, progress=seen.append)
        assert head == LedgerService(first).head() == LedgerService(second).head()
        assert seen == [head.position]
        assert rows_of(second) == rows_of(first)
        assert list(verify(second, head=head)) == []
        assert exported(second) == text
        World(second).credit("ana", 1, idempotency_key="after the import")
        assert LedgerService(second).seal().head.position == head.position + 1
        assert list(verify(second, head=head)) == []


def test_a_file_has_a_line_for_each_transaction_in_order_and_last_the_count_and_the_head(
    original: Database, file: str
) -> None:
    *lines, last = file.split("\n")[:-1]
    log = LedgerService(original).read_log(limit=100)
    for line, entry in zip(lines, log, strict=True):
        content = json.loads(line)
        assert list(content) == ["position", "hash", "transaction", "entries"]
        assert (content["position"], content["hash"]) == (entry.position, entry.hash)
        assert content["transaction"]["transaction_id"] == entry.transaction.transaction_id
        assert [each["amount"] for each in content["entries"]] == [each.amount for each in entry.transaction.entries]
    assert json.loads(last) == {"count": len(log), "hash": log[-1].hash}
    assert exported(original) == file


def test_what_is_not_sealed_is_not_exported(world: World) -> None:
    play(world)
    text = exported(world.database)
    world.credit("ana", 1)
    assert exported(world.database) == text


def test_an_empty_ledger_is_a_file_of_one_line_and_comes_back_empty(sqlite_url: str, postgresql_url: str) -> None:
    with Database(sqlite_url) as first, Database(postgresql_url) as second:
        text = exported(first)
        assert json.loads(text) == {"count": 0, "hash": "0" * 64}
        assert text.count("\n") == 1
        before = rows_of(second)
        assert imported(second, text) == LogHead(position=0, hash="0" * 64)
        assert rows_of(second) == before == rows_of(first)


def test_a_log_that_has_lost_a_position_is_not_exported(file: str, database: Database) -> None:
    imported(database, file)
    with database.engine.begin() as connection:
        connection.execute(insert(LOG).values(position=99, transaction_id="nothing", hash="f" * 64))
    with pytest.raises(LedgerDamagedError):
        exported(database)


# ── damaged files ─────────────────────────────────────────────────────────────────────────────────


def dumped(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n"


def values_in_place_of(name: str, value: Any) -> list[Any]:
    """Values that are not the one there: others of its type, and some of other types that look like it."""
    if isinstance(value, int):
        return [value + 1, -value - 1, str(value), float(value), True, None, [value], 2**63, -(2**63) - 1, 10**400]
    if value is None:
        return ["", "x", 0, False, [], {}]
    others = [value + "x", value[:-1], value.upper(), value + "\0", "", None, 0, True, [value], {"x": value}]
    if name in {"occurred_at", "posted_at"}:
        others += ["yesterday", value[:-1], value[:-1] + "+00:00", value.replace("Z", "+01:00"), value[:10], "9" * 40]
    return [other for other in others if other != value] + ["\ud800"]


def entry_of(number: int, content: dict[str, Any]) -> Any:
    return content["entries"][number]


def changed_fields(line: str) -> Iterator[tuple[str, str]]:
    content = json.loads(line)
    places: list[tuple[str, Callable[[Any], Any]]] = [
        ("", lambda c: c),
        ("transaction.", lambda c: c["transaction"]),
        *((f"entries.{n}.", partial(entry_of, n)) for n in range(len(content["entries"]))),
    ]
    for prefix, at in places:
        for name, value in list(at(content).items()):
            if isinstance(value, dict | list):
                continue
            for other in values_in_place_of(name, value):

                def change(c: Any, at: Any = at, name: str = name, other: Any = other) -> None:
                    at(c)[name] = other

                yield (
                    f"{prefix}{name} = {other!r:.40}",
                    json.dumps(changed(content, change), ensure_ascii=other == "\ud800", separators=(",", ":")) + "\n",
                )

            def without(c: Any, at: Any = at, name: str = name) -> None:
                del at(c)[name]

            yield f"no {prefix}{name}", dumped(changed(content, without))


def changed(content: Any, change: Callable[[Any], None]) -> Any:
    copy = json.loads(json.dumps(content))
    change(copy)
    return copy


def other_forms(line: str) -> Iterator[tuple[str, str]]:
    """The same line in other words, and what is no line at all."""
    content = json.loads(line)
    header, entries = content["transaction"], content["entries"]
    yield "spaces", json.dumps(content, ensure_ascii=False) + "\n"
    yield "a space at its end", line[:-1] + " \n"
    yield "a space before", " " + line
    yield "a carriage return", line[:-1] + "\r\n"
    yield "a byte order mark", "\ufeff" + line
    yield "an escape that means the same", line.replace("a", "\\u0061", 1)
    yield "a name twice", line.replace('{"position":', '{"position":0,"position":', 1)
    yield "a field more", dumped(content | {"note": 1})
    yield "a field more in the header", dumped(content | {"transaction": header | {"note": 1}})
    yield "another order of fields", dumped(dict(reversed(content.items())))
    yield "another order of entries", dumped(content | {"entries": entries[::-1]})
    yield "an entry less", dumped(content | {"entries": entries[1:]})
    yield "an entry twice", dumped(content | {"entries": [*entries, entries[0]]})
    yield "no entries", dumped(content | {"entries": []})
    yield "entries that are none", dumped(content | {"entries": [1]})
    yield "entries that are an object", dumped(content | {"entries": {"0": entries[0]}})
    yield "a header that is a list", dumped(content | {"transaction": list(header.values())})
    yield "a count in it", dumped(content | {"count": 6})
    yield "a list", dumped([content])
    yield "a number", "5\n"
    yield "null", "null\n"
    yield "NaN", "NaN\n"
    yield "nothing", "\n"
    yield "not JSON", "position=6\n"
    yield "half a line", line[: len(line) // 2] + "\n"
    yield "half a line without an end", line[: len(line) // 2]
    yield "deep nesting", "[" * 100_000 + "\n"
    yield "a deep object", '{"position":' * 100_000 + "\n"
    yield "a number without end", '{"position":' + "9" * 5000 + "}\n"
    yield "NUL", "\0" * 50 + "\n"


def damaged_files(file: str) -> Iterator[tuple[str, str, int]]:
    """What was done to a file, the file, and the line that must be named."""
    lines = lines_of(file)
    count = len(lines)
    join = "".join
    yield "nothing in it", "", 1
    yield "the first line lost", join(lines[1:]), 1
    yield "a line lost", join(lines[:5] + lines[6:]), 6
    yield "the last transaction lost", join(lines[:-2] + lines[-1:]), count - 1
    yield "a line doubled", join(lines[:6] + lines[5:]), 7
    yield "two lines swapped", join([*lines[:5], lines[6], lines[5], *lines[7:]]), 6
    yield "the count lost", join(lines[:-1]), count
    yield "cut in its middle", join(lines[:5]), 6
    yield "cut within a line", file[: len(join(lines[:5])) + 40], 6
    yield "cut by one character", file[:-1], count
    yield "a line after the count", file + lines[0], count + 1
    yield "the count twice", file + lines[-1], count + 1
    yield "an empty line after the count", file + "\n", count + 1
    yield "the count at once", lines[-1], 1
    last = json.loads(lines[-1])
    for what, change in {
        "one less": {"count": count - 2},
        "one more": {"count": count},
        "a text": {"count": str(count - 1)},
        "a fraction": {"count": float(count - 1)},
        "true": {"count": True},
        "huge": {"count": 10**400},
        "with another hash": {"hash": "0" * 64},
        "with something more": {"note": 1},
    }.items():
        yield f"a count that is {what}", join([*lines[:-1], dumped(last | change)]), count
    yield "a count with spaces", join([*lines[:-1], json.dumps(last) + "\n"]), count
    yield "a count without its hash", join([*lines[:-1], dumped({"count": count - 1})]), count
    for number in (1, 6, count - 1):
        for what, line in other_forms(lines[number - 1]):
            yield f"line {number}: {what}", join([*lines[: number - 1], line, *lines[number:]]), number
    for number in (3, 7, 9, 12):
        for what, line in changed_fields(lines[number - 1]):
            yield f"line {number}: {what}", join([*lines[: number - 1], line, *lines[number:]]), number


def outcome(database: Database, text: str) -> str:
    try:
        imported(database, text)
    except InvalidRequestError as refused:
        return str(refused.details["field"])
    except Exception as error:
        return repr(error)
    return "imported"


def test_whatever_is_damaged_in_a_file_its_line_is_named_and_nothing_of_it_is_written(
    file: str, sqlite_url: str
) -> None:
    """Lines are judged before the database is asked, so that one engine stands for both."""
    with Database(sqlite_url) as database:
        empty = rows_of(database)
        wrong: dict[str, tuple[str, int]] = {}
        for what, text, line in damaged_files(file):
            assert text != file, what
            if (found := outcome(database, text)) != f"line {line}":
                wrong[what] = found, line
        assert wrong == {}
        assert rows_of(database) == empty
        imported(database, file)


def test_a_chain_that_was_computed_anew_brings_no_row_that_the_tables_refuse(file: str, database: Database) -> None:
    """Whoever can compute hashes can write any file, but the walls of the database stand."""
    content = json.loads(file.split("\n")[0])
    for entry in content["entries"]:
        if entry["bucket"] == "available":
            entry |= {"balance_before": 5, "balance_after": 105, "wallet_version": 0}
    transaction = files._transaction(1, content)
    content["hash"] = chained("0" * 64, digest(transaction))
    before = rows_of(database)
    with pytest.raises(WalletError):
        imported(database, dumped(content) + dumped({"count": 1, "hash": content["hash"]}))
    assert rows_of(database) == before


# ── interrupted, and into what is not empty ───────────────────────────────────────────────────────


class Interrupted(Exception):  # noqa: N818 - a stand-in for whatever stops a process
    pass


def interrupted_at(position: int) -> Callable[[int], None]:
    def progress(reached: int) -> None:
        if reached >= position:
            raise Interrupted

    return progress


@pytest.fixture
def in_batches_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BATCH", 2)


@pytest.mark.usefixtures("in_batches_of_two")
@pytest.mark.parametrize("position", [2, 6, 16, 17])
def test_an_interrupted_import_goes_on_with_the_same_file(
    original: Database, file: str, database: Database, position: int
) -> None:
    with pytest.raises(Interrupted):
        imported(database, file, progress=interrupted_at(position))
    assert LedgerService(database).head().position == position
    seen: list[int] = []
    head = imported(database, file, progress=seen.append)
    assert seen == [*range(position + 2, 17, 2), *([17] if position < 17 else [])]
    assert head == LedgerService(original).head()
    assert rows_of(database) == rows_of(original)
    assert list(verify(database, head=head)) == []
    assert exported(database) == file
    assert imported(database, file) == head, "and once more changes nothing"
    assert rows_of(database) == rows_of(original)


@pytest.mark.usefixtures("in_batches_of_two")
def test_the_batch_of_a_damaged_line_is_not_written_and_the_right_file_goes_on(
    original: Database, file: str, database: Database
) -> None:
    lines = lines_of(file)
    lines[8] = lines[8].replace("performance", "Performance").replace("top_up", "gift")
    assert refusal_of(database, "".join(lines))[0] == "line 9"
    position = LedgerService(database).head().position
    assert position in {6, 8}
    rows = rows_of(database)
    for table in ("ledger_transactions", "ledger_entries", "ledger_log"):
        assert set(rows[table]) <= set(rows_of(original)[table])
    assert [rows[table] for table in VIEWS] == [[]] * 4
    imported(database, file)
    assert rows_of(database) == rows_of(original)


def test_contention_is_not_taken_for_another_ledger(file: str, postgresql_url: str) -> None:
    with Database(postgresql_url, lock_timeout_ms=20) as database, database.engine.begin() as connection:
        connection.exec_driver_sql("LOCK TABLE ledger_log IN EXCLUSIVE MODE")
        with pytest.raises(OptimisticLockError):
            imported(database, file)


@pytest.mark.usefixtures("in_batches_of_two")
def test_an_interrupted_import_goes_on_with_no_other_file(file: str, database: Database, sqlite_url: str) -> None:
    with Database(f"{sqlite_url}-other") as other:
        other.create_schema()
        play(World(other))
        other_file = exported(other)
    with pytest.raises(Interrupted):
        imported(database, file, progress=interrupted_at(4))
    rows = rows_of(database)
    lines = lines_of(file)
    shorter = "".join(lines[:3]) + dumped({"count": 3, "hash": json.loads(lines[2])["hash"]})
    for text in (other_file, shorter, dumped({"count": 0, "hash": "0" * 64})):
        assert refusal_of(database, text)[0] == "database"
    assert refusal_of(database, "".join(["{}\n", *lines[1:]]))[0] == "line 1"
    assert rows_of(database) == rows


def test_a_ledger_that_is_not_sealed_is_no_place_for_another(file: str, world: World) -> None:
    world.credit("ana", 1)
    rows = rows_of(world.database)
    assert refusal_of(world.database, file)[0] == "database"
    world.ledger.seal()
    sealed = rows_of(world.database)
    assert refusal_of(world.database, file)[0] == "database"
    assert sealed | {"ledger_log": []} == rows
    assert rows_of(world.database) == sealed


@pytest.mark.usefixtures("in_batches_of_two")
def test_a_database_with_a_wallet_in_it_is_refused_before_anything_is_written(
    original: Database, file: str, database: Database
) -> None:
    with original.engine.connect() as connection:
        row = connection.execute(select(USER_WALLETS)).first()
    assert row is not None
    with database.engine.begin() as connection:
        connection.execute(insert(USER_WALLETS).values(dict(zip(USER_WALLETS.c.keys(), row, strict=True))))
    rows = rows_of(database)
    assert refusal_of(database, file)[0] == "database"
    assert rows_of(database) == rows


@pytest.mark.usefixtures("in_batches_of_two")
def test_a_database_in_use_is_not_carried_on_by_the_file_of_one_that_went_further(
    file: str, database: Database, sqlite_url: str
) -> None:
    """Its log is a part of the file's, as that of an interrupted import is, but it has wallets."""
    imported(database, file)
    with Database(f"{sqlite_url}-further") as further:
        further.create_schema()
        imported(further, file)
        world = World(further)
        for number in range(6):
            world.credit("ana", 1, idempotency_key=f"further {number}")
        world.ledger.seal()
        longer = exported(further)
    rows = rows_of(database)
    assert refusal_of(database, longer)[0] == "database"
    assert rows_of(database) == rows
    with database.snapshot() as connection:
        assert list(drifts(connection)) == []
