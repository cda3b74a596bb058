"""Files that pretend to be exports: refused by name with nothing imported, in little memory."""

import gzip
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from points_platform.cli.main import main
from points_platform.core import Database

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
