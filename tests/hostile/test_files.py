"""Files that pretend to be exports: refused by name with nothing imported, in little memory."""

import gzip
import io
import json
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from points_platform.cli.main import main
from points_platform.core import Database, InvalidRequestError, WalletError
from points_platform.ledger import LogHead
from points_platform.ledger.files import _transaction, export_log
from points_platform.ledger.log import chained, digest
from points_platform.wallets.rebuild import restore
from points_platform.wallets.verify import verify
from support.databases import SQLiteDatabases
from support.world import World

UNPACKED = 64 * 2**20
BOMBS: dict[str, tuple[bytes, bytes]] = {
    "a line without end": (b"", b"a"),
    "a text without end": (b'{"position":"', b"x"),
    "a number without end": (b'{"position":', b"9"),
    "white space without end": (b"{", b" "),
    "nesting without end": (b"", b"["),
    "objects without end": (b"", b'{"a":'),
    "empty lines without end": (b"", b"\n"),
    "NUL without end": (b"", b"\0"),
    "no text without end": (b"", b"\xff"),
}


def rows(database: Database) -> int:
    with database.engine.connect() as connection:
        tables = (
            "ledger_transactions",
            "ledger_entries",
            "ledger_log",
            "user_wallets",
            "model_wallets",
            "escrow_items",
        )
        return sum(connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar_one() for table in tables)


@pytest.fixture
def _traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.usefixtures("_traced")
@pytest.mark.parametrize(("beginning", "repeated"), BOMBS.values(), ids=BOMBS.keys())
def test_what_is_packed_small_does_not_fill_the_memory(
    beginning: bytes, repeated: bytes, sqlite_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bomb, chunk = tmp_path / "bomb.gz", repeated * (2**20 // len(repeated))
    with gzip.open(bomb, "wb", compresslevel=1) as file:
        file.write(beginning)
        for _ in range(UNPACKED // len(chunk)):
            file.write(chunk)
    assert bomb.stat().st_size < UNPACKED / 100
    tracemalloc.reset_peak()
    assert main(["import", str(bomb), "--database", sqlite_url]) == 1
    assert tracemalloc.get_traced_memory()[1] < UNPACKED / 2
    assert "line 1 must be" in capsys.readouterr().err
    with Database(sqlite_url) as database:
        assert rows(database) == 0


# ── a real export, changed ──


@pytest.fixture(scope="module")
def export(sqlite_databases: SQLiteDatabases) -> bytes:
    """Of each operation one, in two currencies, with texts that are hard to carry."""
    with sqlite_databases.fresh() as url, Database(url) as database:
        world = World(database)
        odd = '\u2028 \x85 \\ " \U0001f600 \u0301'
        world.credit("ana", 100, metadata={odd: [odd, 2**60, -0.0, None]})
        settled, refunded, split = world.hold(), world.hold(), world.hold(metadata={})
        world.settle(settled.escrow_id, model_id="lu'na")
        world.refund(refunded.escrow_id)
        world.partial_settle(split.escrow_id)
        world.credit("ana 用户", 5, currency="gems")
        world.ledger.seal()
        text = io.StringIO()
        export_log(database, text)
        return text.getvalue().encode()


def flipped(random: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8))):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def cut(random: Random, data: bytes) -> bytes:
    start, end = sorted(random.choices(range(len(data)), k=2))
    return random.choice((data[:end], data[start:], data[:start] + data[end:], data[:end] + data[start:]))


def inserted(random: Random, data: bytes) -> bytes:
    odd = [
        b"\n",
        b"\r\n",
        b"\0",
        b"\xff",
        b"\xed\xa0\x80",
        b" ",
        b"\xef\xbb\xbf",
        b'"',
        b"\\u0000",
        b"}",
        b"1e400",
        b"NaN",
    ]
    at = random.randrange(len(data) + 1)
    return data[:at] + random.choice(odd) + data[at:]


def other_lines(random: Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    one, other = random.choices(range(len(lines)), k=2)
    lines[one], lines[other] = lines[other], lines[one]
    del lines[random.randrange(len(lines))]
    lines.insert(random.randrange(len(lines) + 1), random.choice(lines))
    return b"".join(lines)


VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    2**53,
    2**63,
    10**400,
    1.5,
    "",
    "x",
    "\0",
    "\ud800",
    [],
    {},
    "9999-12-31T23:59:59.999999Z",
]


def other_values(random: Random, data: bytes) -> bytes:
    """Another value somewhere in a line that is JSON as before."""
    lines = data.splitlines(keepends=True)
    at = random.randrange(len(lines))
    content = json.loads(lines[at])
    places = [content, content.get("transaction", content), *content.get("entries", [])]
    place = random.choice(places)
    name = random.choice([*place])
    place[name] = random.choice(VALUES)
    text = json.dumps(content, ensure_ascii=random.random() < 0.5, separators=(",", ":"))
    lines[at] = text.encode("utf-8", "surrogatepass") + b"\n"
    return b"".join(lines)


CHANGES: list[Callable[[Random, bytes], bytes]] = [flipped, cut, inserted, other_lines, other_values]


def outcome(url: str, data: bytes) -> str:
    """The field that a refusal names, or that it was imported."""
    text = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8", errors="surrogateescape", newline="\n")
    with Database(url) as database:
        try:
            restore(database, text)
        except InvalidRequestError as refusal:
            return str(refusal.details["field"])
        return "imported"


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_export_is_refused_by_its_line_and_nothing_of_it_is_imported(
    change: Callable[[Random, bytes], bytes], export: bytes, sqlite_url: str
) -> None:
    """Lines are judged before the database is asked, so that one engine stands for both."""
    random = Random(change.__name__)
    named = set()
    for _ in range(120):
        if (changed := change(random, export)) != export:
            named.add(outcome(sqlite_url, changed))
    assert {field.rpartition(" ")[0] for field in named} == {"line"}
    with Database(sqlite_url) as database:
        assert rows(database) == 0
        assert outcome(sqlite_url, export) == "imported"
        assert list(verify(database)) == []


def test_a_changed_gzip_file_is_refused_or_is_the_same_ledger(
    export: bytes, sqlite_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bits of the header (a time, a system) mean nothing, so a file may differ and be the same."""
    random, packed, file = Random(1), gzip.compress(export, mtime=0), tmp_path / "export.jsonl.gz"
    changes = [change(random, packed) for change in (flipped, cut, inserted) for _ in range(25)]
    changes += [
        packed + packed,
        packed + b"\0" * 9,
        packed + b"x",
        zlib.compress(export),
        gzip.compress(packed),
        b"\x1f\x8b",
    ]
    for changed in changes:
        file.write_bytes(changed)
        status, told = main(["import", str(file), "--database", sqlite_url]), capsys.readouterr()
        same = False
        with suppress(OSError, EOFError, zlib.error):
            same = gzip.decompress(changed) == export
        assert (status == 0) == same, changed
        if same:
            break
        assert told.err.startswith("error: line ")
        with Database(sqlite_url) as database:
            assert rows(database) == 0


@pytest.mark.parametrize(("engine", "count"), [("sqlite", 40), ("postgresql", 4)])
def test_whoever_computes_the_chain_anew_meets_the_rules_of_the_database(
    export: bytes, engine: str, count: int, request: pytest.FixtureRequest
) -> None:
    """A chain proves that nothing was changed since its head was kept, not who wrote it: ``verify`` says the rest."""
    random = Random(3)
    databases = request.getfixturevalue(f"{engine}_databases")
    kept = LogHead(position=(last := json.loads(export.splitlines()[-1]))["count"], hash=last["hash"])
    for _ in range(count):
        with databases.fresh() as url, Database(url) as database:
            try:
                restore(database, io.StringIO(rehashed(other_values(random, export)), newline="\n"))
            except WalletError:
                assert rows(database) == 0
            else:
                assert list(verify(database, head=kept)) != [] or World(database).ledger.head() == kept


def rehashed(data: bytes) -> str:
    """The lines with the positions and hashes that they would have, as far as they are transactions."""
    head, lines = LogHead(position=0, hash="0" * 64), list[str]()
    for line in data.splitlines():
        content: dict[str, Any] = json.loads(line)
        if isinstance(content.get("transaction"), dict):
            try:
                transaction = _transaction(
                    1, content | {"transaction": content["transaction"] | {"metadata_json": None}}
                )
            except InvalidRequestError:
                pass
            else:
                transaction = replace(transaction, metadata_json=content["transaction"].get("metadata_json"))
                head = LogHead(position=head.position + 1, hash=chained(head.hash, digest(transaction)))
            content |= {"position": head.position, "hash": head.hash}
        else:
            content = {"count": head.position, "hash": head.hash}
        lines.append(json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n")
    return "".join(lines)


UNREADABLE = ["", "x", "[]", "1", "null", '{"b":1,"a":2}', '{"a": 1}', '{"a":NaN}', '{"a":1e999}', "[" * 9000]


@pytest.mark.parametrize("metadata", UNREADABLE)
def test_metadata_that_could_not_be_read_is_not_imported_whoever_wrote_it(
    export: bytes, sqlite_url: str, metadata: str
) -> None:
    first, *others = export.splitlines()
    content: dict[str, Any] = json.loads(first)
    content["transaction"]["metadata_json"] = metadata
    changed = b"\n".join([json.dumps(content).encode(), *others])
    assert outcome(sqlite_url, rehashed(changed).encode()) == "line 1"
