"""The auctions of a record, replayed: who earns what, that a second run moves nothing, and what is refused."""

import importlib.util
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.progress import Progress
from sqlalchemy import text

from points_platform.cli import run
from points_platform.core import Database, InsufficientBalanceError, OptimisticLockError
from support.recount import recount
from support.world import World

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples" / "auction_replay.py"
REAL_RECORD = ROOT.parent / "shared" / "data" / "auction-bids.csv"

HEADER = "auction_id,item,bidder_id,bid_cents,seconds_after_open,final_price_cents\n"
RECORD = (
    HEADER
    + """full,watch,ana,100,1,300
full,watch,ben,300,2,300
split,"lamp, small",ana,50,0,120
split,"lamp, small",ben,50,2,120
split,"lamp, small",ben,80,2,120
split,"lamp, small",ben,200,4,120
split,"lamp, small",carla,199,5,120
anomaly,vase,carla,10,1,1999
"""
)
OPERATIONS = 3 + 8 + 8  # bidders credited, bids held, holds ended
MAX_POINTS = 2**53 - 1


def example() -> ModuleType:
    specification = importlib.util.spec_from_file_location("auction_replay", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


EXAMPLE = example()


@dataclass(frozen=True)
class Outcome:
    status: int
    out: str
    err: str


Replay = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def no_database_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POINTS_PLATFORM_DATABASE", raising=False)


@pytest.fixture
def replay(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Replay:
    """Replays the record with that text (or those bytes), in this process."""

    def replay(record: str | bytes, *arguments: str) -> Outcome:
        file = tmp_path / "bids.csv"
        file.write_bytes(record.encode() if isinstance(record, str) else record)
        status = run(EXAMPLE.app, [str(file), *arguments])
        return Outcome(status, *capsys.readouterr())

    return replay


def spawn(*arguments: str | Path, **options: Any) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, SCRIPT, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


@pytest.mark.parametrize("workers", ["1", "4"])
def test_earnings_are_final_prices_and_a_second_run_moves_nothing(
    replay: Replay, world: World, url: str, workers: str
) -> None:
    first = replay(RECORD, "--database", url, "--workers", workers)
    assert (first.status, first.err) == (0, "")
    assert first.out.splitlines() == [
        "8 bids in 3 auctions",
        f"{OPERATIONS} operations have moved points, 0 were replays of earlier ones",
        "earnings 430, final prices 2,419, difference -1,989",
        "auction anomaly (vase) has earned 10 for a final price of 1,999: the price is above every bid in the record",
        "the books balance (points): entries sum to 0; held escrow 0 = 0 escrow balances; "
        "wallets and ledger: available 559 = 559, escrow 0 = 0, earned 430 = 430",
    ]
    assert {model: world.wallets.get_model_balance(model).earned for model in ("full", "split", "anomaly")} == {
        "full": 300,
        "split": 120,
        "anomaly": 10,
    }
    assert {user: world.wallets.get_user_balance(user).available for user in ("ana", "ben", "carla")} == {
        "ana": 150,
        "ben": 300 + 50 + 80 + 200 - 300 - 120,
        "carla": 199,
    }
    before = world.snapshot()
    for again in ("1", "4"):
        second = replay(RECORD, "--database", url, "--workers", again)
        assert (second.status, second.err) == (0, "")
        assert second.out == first.out.replace(
            f"{OPERATIONS} operations have moved points, 0 were",
            f"0 operations have moved points, {OPERATIONS} were",
        )
    assert world.snapshot() == before


def test_each_bid_meets_its_fate_in_the_order_of_the_record(replay: Replay, world: World, url: str) -> None:
    replay(RECORD, "--database", url)
    fates = {
        auction: [
            (item.user_id, item.amount, item.status.value, item.settled_amount, item.reason, item.feature_type)
            for item in world.wallets.list_escrows(queue_item_id=auction).items
        ]
        for auction in ("full", "split", "anomaly")
    }
    bid = ("auction_bid", "auction")
    assert fates == {
        "full": [("ana", 100, "refunded", 0, *bid), ("ben", 300, "settled", 300, *bid)],
        "split": [
            ("ana", 50, "refunded", 0, *bid),
            ("ben", 50, "refunded", 0, *bid),
            ("ben", 80, "refunded", 0, *bid),
            ("ben", 200, "partially_settled", 120, *bid),
            ("carla", 199, "refunded", 0, *bid),
        ],
        "anomaly": [("carla", 10, "settled", 10, *bid)],
    }
    # An equal bid is refunded at once; whoever outbids themselves holds both for a moment.
    available = world.ledger.entries("user:ben", "points", bucket="available").items
    assert [line.amount for line in available] == [630, -300, -50, +50, -80, -200, +80, +80]


def test_without_a_database_it_leaves_nothing(replay: Replay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    assert replay(RECORD).status == 0
    assert list(folder.iterdir()) == []


def many_bids(auctions: int, bids: int) -> str:
    """A record in which the same few bidders bid in all auctions."""
    rows = (
        f"auction-{auction},thing,bidder-{(auction + bid) % 3},{100 * (bid + 1)},{bid},{100 * bids}\n"
        for bid in range(bids)
        for auction in range(auctions)
    )
    return HEADER + "".join(rows)


def test_many_threads_on_the_same_few_wallets_lose_and_repeat_nothing(replay: Replay, world: World, url: str) -> None:
    record = many_bids(auctions=16, bids=6)
    outcomes = [replay(record, "--database", url, "--workers", "8") for _ in range(2)]
    operations = 3 + 2 * 16 * 6
    for outcome, moved in zip(outcomes, (operations, 0), strict=True):
        assert (outcome.status, outcome.err) == (0, "")
        assert f"{moved} operations have moved points, {operations - moved} were replays" in outcome.out
        assert "difference +0" in outcome.out


def test_an_interrupted_run_is_one_line_and_the_next_one_completes_it(
    replay: Replay, world: World, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = EXAMPLE.Auctioneer.close

    def interrupted(self: Any, auction: Any, leader: Any) -> Any:
        if auction.auction_id == "split":
            raise KeyboardInterrupt
        return close(self, auction, leader)

    with monkeypatch.context() as patch:
        patch.setattr(EXAMPLE.Auctioneer, "close", interrupted)
        outcome = replay(RECORD, "--database", url)
    assert (outcome.status, outcome.err) == (130, "interrupted\n")
    assert world.wallets.get_user_balance("ben").escrow == 200
    recount(world.database)
    outcome = replay(RECORD, "--database", url)
    assert outcome.status == 0
    moved, replayed = map(int, re.findall(r"^(\d+) operations have moved points, (\d+)", outcome.out, re.M)[0])
    assert moved + replayed == OPERATIONS
    assert replayed >= 3 + 4 + 5 + 4
    assert "earnings 430" in outcome.out


def test_an_interrupt_leaves_what_has_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, released = [], threading.Event()

    def work(item: int) -> list[Any]:
        begun.append(item)
        assert item == 0 or released.wait(timeout=60)
        return []

    class Interrupted(Progress):
        def track(self, sequence: Any, *_: Any, **__: Any) -> Any:
            yield next(iter(sequence))
            raise KeyboardInterrupt

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            released.set()
            super().shutdown(wait=wait)

    monkeypatch.setattr(EXAMPLE, "Progress", Interrupted)
    monkeypatch.setattr(EXAMPLE, "ThreadPoolExecutor", Pool)
    with pytest.raises(KeyboardInterrupt):
        EXAMPLE.in_threads("items", work, range(50), workers=1)
    assert begun in ([0], [0, 1])


def test_ctrl_c_ends_the_program_cleanly(tmp_path: Path, sqlite_url: str) -> None:
    record = tmp_path / "bids.csv"
    record.write_text(many_bids(auctions=200, bids=20))
    # A shell that runs tests in the background has its children ignore the signal.
    process = spawn(
        record,
        "--database",
        sqlite_url,
        "--workers",
        "2",
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    with process, Database(sqlite_url) as database:
        while not World(database).wallets.get_user_balance("bidder-0").version:
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "4,000 bids in 200 auctions\n", "interrupted\n")


def test_earnings_that_the_record_does_not_explain_fail(replay: Replay, world: World, url: str) -> None:
    world.credit("dan", 5)
    held = world.hold("dan", 5)
    world.settle(held.escrow_id, 5, user_id="dan", model_id="full")
    outcome = replay(RECORD, "--database", url)
    assert (outcome.status, outcome.err) == (1, "")
    assert "auction full (watch) has earned 305 for a final price of 300: THE RECORD DOES NOT EXPLAIN IT" in outcome.out
    assert "the books balance (points)" in outcome.out


def test_an_anomalous_price_does_not_excuse_other_earnings(replay: Replay, world: World, url: str) -> None:
    world.credit("dan", 5)
    held = world.hold("dan", 5)
    world.settle(held.escrow_id, 5, user_id="dan", model_id="anomaly")
    outcome = replay(RECORD, "--database", url)
    assert outcome.status == 1
    assert "auction anomaly (vase) has earned 15 for a final price of 1,999: THE RECORD DOES" in outcome.out


def test_books_that_do_not_balance_fail(replay: Replay, sqlite_url: str) -> None:
    assert replay(RECORD, "--database", sqlite_url).status == 0
    with Database(sqlite_url) as database, database.engine.begin() as connection:
        connection.execute(text("UPDATE user_wallets SET available = available + 1 WHERE owner_id = 'user:ana'"))
    outcome = replay(RECORD, "--database", sqlite_url)
    assert (outcome.status, outcome.err) == (1, "")
    assert "THE BOOKS DO NOT BALANCE (points)" in outcome.out


def test_another_record_of_the_same_auctions_is_refused_and_moves_nothing(
    replay: Replay, world: World, url: str
) -> None:
    replay(RECORD, "--database", url)
    before = world.snapshot()
    for old, new in (("ana,100,", "ana,101,"), ("ana,50,0,120", "ana,51,0,120")):
        outcome = replay(RECORD.replace(old, new), "--database", url)
        assert refusal(outcome).startswith("error: the database has seen another record of these auctions: ")
        assert "amount" in outcome.err
    assert world.snapshot() == before


def refusal(outcome: Outcome) -> str:
    """The one line that a failure is."""
    assert outcome.status == 1
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert outcome.err.endswith("\n")
    return outcome.err


ROW = "full,watch,ana,100,1,300\n"
MALFORMED: dict[str, tuple[str | bytes, str, str]] = {
    # what is wrong: the record, the row, the column (or what else the line says)
    "nothing at all": ("", "row 1", "auction_id, item, bidder_id, bid_cents, seconds_after_open, final_price_cents"),
    "no header": (ROW, "row 1", "auction_id"),
    "one column is missing": (HEADER.replace("bid_cents,", "") + ROW, "row 1", "no column bid_cents"),
    "no rows": (HEADER, "bids.csv", "no bids"),
    "only blank lines": (HEADER + "\n\n", "bids.csv", "no bids"),
    "a cell too few": (HEADER + ROW + "full,watch,ana,100,1\n", "row 3", "column final_price_cents"),
    "cells too few": (HEADER + ROW + "full,watch,ana\n", "row 3", "column"),
    "a cell too many": (HEADER + ROW + "full,watch,ana,100,1,300,7\n", "row 3", "more cells"),
    "after a blank line": (HEADER + "\n" + "full,watch,ana,x,1,300\n", "row 3", "column bid_cents"),
    "no auction": (HEADER + ",watch,ana,100,1,300\n", "row 2", "column auction_id"),
    "no item": (HEADER + "full,,ana,100,1,300\n", "row 2", "column item"),
    "no bidder": (HEADER + "full,watch,,100,1,300\n", "row 2", "column bidder_id"),
    "a name too long": (HEADER + f"{'a' * 101},watch,ana,100,1,300\n", "row 2", "column auction_id"),
    "a control character": (HEADER + "full,watch,a\x00na,100,1,300\n", "row 2", "column bidder_id"),
    "a line break in a name": (HEADER + 'full,watch,"a\nna",100,1,300\n', "row 3", "column bidder_id"),
    "not UTF-8": (HEADER.encode() + b"full,watch,\xff,100,1,300\n", "row 2", "column bidder_id"),
    "an open quote": (HEADER + ROW + 'full,"watch,ana,100,1,300\n', "row 3", "unexpected end of data"),
    "a stray quote": (HEADER + 'full,"wat"ch,ana,100,1,300\n', "row 2", "expected after"),
    "another price": (HEADER + ROW + "full,watch,ben,200,2,301\n", "row 3", "column final_price_cents must be 300"),
    "back in time": (HEADER + ROW + "full,watch,ben,200,0,300\n", "row 3", "column seconds_after_open"),
    "too many points": (
        HEADER + f"a,watch,ana,{MAX_POINTS},1,300\n" + "b,watch,ana,1,1,300\n",
        "row 3",
        "column bid_cents",
    ),
    **{
        f"{column} is {value[:20]!r}": (HEADER + ROW + row.format(value), "row 3", f"column {column}")
        for column, row in (
            ("bid_cents", "full,watch,ben,{},2,300\n"),
            ("seconds_after_open", "full,watch,ben,200,{},300\n"),
        )
        for value in ("", "x", "-1", "+1", "1.0", "1e3", " 1", "1_0", "٣", "NaN", str(MAX_POINTS + 1), "9" * 5000)
    },
    "a bid of nothing": (HEADER + "full,watch,ana,0,1,300\n", "row 2", "column bid_cents"),
    "a price of nothing": (HEADER + "full,watch,ana,100,1,0\n", "row 2", "column final_price_cents"),
    "no price": (HEADER + "full,watch,ana,100,1,\n", "row 2", "column final_price_cents"),
}  # fmt: skip


@pytest.mark.parametrize(("record", "row", "what"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_record_is_refused_by_row_and_column(
    replay: Replay, tmp_path: Path, record: str | bytes, row: str, what: str
) -> None:
    outcome = replay(record, "--database", f"sqlite:///{tmp_path}/points.db")
    line = refusal(outcome)
    assert "bids.csv" in line
    assert re.search(rf"{re.escape(row)}\b", line)
    assert what in line
    assert len(line) < 300
    assert outcome.out == ""
    assert not (tmp_path / "points.db").exists()


def test_forms_of_csv_that_mean_the_same_give_the_same(replay: Replay, world: World, url: str) -> None:
    replay(RECORD, "--database", url)
    before = world.snapshot()
    for record in (RECORD.encode("utf-8-sig"), RECORD.replace("\n", "\r\n"), RECORD.replace("\n", "\n\n"), RECORD[:-1]):
        assert f"0 operations have moved points, {OPERATIONS} were" in replay(record, "--database", url).out
    assert world.snapshot() == before


def test_bad_usage_is_one_line(replay: Replay, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*arguments: str) -> str:
        return refusal(Outcome(run(EXAMPLE.app, arguments), *capsys.readouterr()))

    assert "BIDS" in refused()
    assert "nowhere.csv" in refused(str(tmp_path / "nowhere.csv"))
    assert "directory" in refused(str(tmp_path)).lower()
    for workers in ("0", "33", "many", "-1", ""):
        assert "--workers" in refusal(replay(RECORD, "--workers", workers))
    assert "--database must be" in refusal(replay(RECORD, "--database", "nonsense"))
    unreachable = refusal(replay(RECORD, "--database", "postgresql://ana:s3cret@127.0.0.1:1/points"))
    assert "cannot use the database" in unreachable
    assert "s3cret" not in unreachable


def test_a_lost_race_is_sent_again_and_nothing_else_is() -> None:
    calls: list[int] = []

    def failing(times: int, error: Exception) -> Callable[[], str]:
        calls.clear()

        def send() -> str:
            calls.append(1)
            if len(calls) <= times:
                raise error
            return "answer"

        return send

    assert EXAMPLE.persistently(failing(9, OptimisticLockError(attempts=4))) == "answer"
    with pytest.raises(OptimisticLockError):
        EXAMPLE.persistently(failing(10, OptimisticLockError(attempts=4)))
    assert len(calls) == 10
    with pytest.raises(InsufficientBalanceError):
        EXAMPLE.persistently(failing(1, InsufficientBalanceError(required=2, available=1, currency="points")))
    assert len(calls) == 1


@pytest.mark.skipif(not REAL_RECORD.is_file(), reason="the record of real bids is not beside this checkout")
def test_real_auctions_earn_their_final_prices_but_for_the_anomaly(replay: Replay, world: World, url: str) -> None:
    """Fifteen auctions, and those whose final price is not their highest bid: all of them would take too long."""
    rows = [line.split(",") for line in REAL_RECORD.read_text().splitlines()[1:]]
    highest = {auction: max(int(row[3]) for row in rows if row[0] == auction) for auction in {row[0] for row in rows}}
    prices = {row[0]: int(row[5]) for row in rows}
    chosen = {*list(prices)[:15], *(auction for auction, price in prices.items() if price != highest[auction])}
    rows = [row for row in rows if row[0] in chosen]
    record = HEADER + "".join(",".join(row) + "\n" for row in rows)
    operations = len({row[2] for row in rows}) + 2 * len(rows)
    earned = sum(min(prices[auction], highest[auction]) for auction in chosen)
    for moved in (operations, 0):
        outcome = replay(record, "--database", url, "--workers", "4")
        assert (outcome.status, outcome.err) == (0, "")
        counted, sums, anomaly, books_line = outcome.out.splitlines()[1:]
        assert counted.startswith(f"{moved:,} operations have moved points, {operations - moved:,} were replays")
        assert sums.startswith(f"earnings {earned:,}, final prices {earned + 25_000:,}, ")
        assert "has earned 500 for a final price of 25,500: the price is above every bid in the record" in anomaly
        assert books_line.startswith("the books balance (points)")
        assert books_line.endswith(f"earned {earned:,} = {earned:,}")
    assert {auction for auction in chosen if world.wallets.get_model_balance(auction).earned != prices[auction]} == {
        "3016587753"
    }
