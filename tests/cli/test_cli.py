"""The command ``points-platform``: what it prints, and that whatever goes wrong is one line and the status 1."""

import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from freezegun import freeze_time
from sqlalchemy import create_engine, inspect, text
from typer.main import get_command

from points_platform.cli import main as cli
from points_platform.cli.demo import evening
from points_platform.cli.terminal import books_line
from points_platform.core import Database
from points_platform.core.values import now
from points_platform.ledger.accounts import Bucket
from points_platform.wallets import Books, EscrowStatus, books
from support.recount import recount
from support.world import World

COMMAND = Path(sys.executable).with_name("points-platform")
VARIABLE = "POINTS_PLATFORM_DATABASE"
UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
CURSOR = re.compile(r"--after (\S+)")
ACTIVITY = re.compile(r"^\d\d:\d\d:\d\d  (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Outcome:
    status: int
    out: str
    err: str

    def succeeded(self) -> "Outcome":
        assert (self.status, self.err) == (0, "")
        return self

    def refused(self) -> str:
        """The one line that a failure is."""
        assert self.status == 1
        assert self.err.startswith("error: ")
        assert self.err.count("\n") == 1
        assert self.err.endswith("\n")
        return self.err


Command = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def no_database_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command line in this process."""

    def command(*arguments: str) -> Outcome:
        status = cli.main(arguments)
        return Outcome(status, *capsys.readouterr())

    return command


def spawn(*arguments: str, **options: Any) -> Outcome:
    """Runs the installed command."""
    environment = {**os.environ, **options.pop("env", {})}
    done = subprocess.run([COMMAND, *arguments], capture_output=True, text=True, env=environment, timeout=120)
    return Outcome(done.returncode, done.stdout, done.stderr)


def rows_of(output: str) -> list[str]:
    """The lines under a table's rule."""
    lines = [line.rstrip() for line in output.splitlines()]
    rule = next(number for number, line in enumerate(lines) if line and set(line) == {"─"})
    return [line for line in lines[rule + 1 :] if line]


# ── demo ──────────────────────────────────────────────────────────────────────────────────────────


def activity_of(output: str) -> list[str]:
    return ACTIVITY.findall(output)


def assert_a_whole_evening(output: str) -> None:
    counted = {
        " is given ": 12,
        " asks for a ": 24,
        " has performed: earns ": 14,
        "(queue_timeout)": 4,
        " had to stop: earns ": 3,
    }
    activity = activity_of(output)
    assert {what: sum(what in line for line in activity) for what in counted} == counted
    assert len(activity) == sum(counted.values())
    assert "sends the same request again: the same answer, and nothing moved" in output
    assert re.search(r"ana asks for more than there is: refused, \d+ points are required, \d+ are available", output)
    assert "what the creators have earned" in output
    assert re.search(r"^the last [1-8] lines of user:ana \(points\)", output, re.MULTILINE)
    assert output.splitlines()[-2].startswith("the books balance (points): entries sum to 0; held escrow ")
    assert output.splitlines()[-1].startswith("the books balance (stars): entries sum to 0; held escrow ")


def test_the_installed_demo_needs_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    outcome = spawn("demo", env={"TMPDIR": str(tmp_path)}).succeeded()
    assert_a_whole_evening(outcome.out)
    assert list(tmp_path.iterdir()) == []
    assert "\x1b" not in outcome.out


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database in which nothing stands."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/new.db"
    url: str = request.getfixturevalue("postgresql_url")
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    engine.dispose()
    return url


def test_an_evening_in_a_new_database_stays_there(command: Command, empty_url: str) -> None:
    out = command("demo", "--database", empty_url, "--seed", "3").succeeded().out
    assert_a_whole_evening(out)
    with Database(empty_url) as database:
        assert all(account.held > 0 and books_line(account) in out for account in books(database))
        recount(database)


@pytest.mark.parametrize("named", [True, False], ids=["named", "in the environment"])
def test_the_demo_never_writes_where_a_platform_s_ledger_is(
    command: Command, world: World, url: str, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    world.credit(amount=77)
    rows = world.snapshot()
    monkeypatch.setenv(VARIABLE, url)
    if named:
        line = command("demo", "--database", url).refused()
        assert "is in use: it has a table " in line
        assert "name a new, empty database" in line
    else:
        assert_a_whole_evening(command("demo").succeeded().out)
    assert world.snapshot() == rows


@pytest.mark.parametrize("statement", ["CREATE TABLE orders (id INTEGER)", None], ids=["a host's table", "our schema"])
def test_the_demo_leaves_a_database_alone_in_which_anything_stands(
    command: Command, empty_url: str, statement: str | None
) -> None:
    engine = create_engine(empty_url)
    if statement is None:
        with Database(empty_url) as database:
            database.create_schema()
    else:
        with engine.begin() as connection:
            connection.execute(text(statement))
    before = inspect(engine).get_table_names()
    assert "is in use: it has a table " in command("demo", "--database", empty_url).refused()
    assert inspect(engine).get_table_names() == before
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite" and statement is not None:
            assert connection.scalar(text("PRAGMA journal_mode")) == "delete"
    engine.dispose()


def test_make_demo_names_a_database_only_where_it_is_told_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "sqlite:////nowhere/at-all.db")
    dry = ["make", "--no-print-directory", "--dry-run", "--old-file=.venv/locked", "demo"]
    root = Path(__file__).resolve().parents[2]
    alone = subprocess.run(dry, cwd=root, capture_output=True, text=True, check=True).stdout
    told = subprocess.run([*dry, "DATABASE=sqlite:///x.db"], cwd=root, capture_output=True, text=True, check=True)
    assert alone.splitlines()[-1].rstrip().endswith("points-platform demo")
    assert told.stdout.splitlines()[-1].endswith("points-platform demo --database 'sqlite:///x.db'")


def test_the_earnings_of_the_demo_are_those_of_its_events(command: Command) -> None:
    out = command("demo", "--seed", "3").succeeded().out
    earned = dict.fromkeys(("points", "stars"), 0)
    for amount, rest in re.findall(r"earns (\d+)(.*)", out):
        earned["stars" if "stars" in rest else "points"] += int(amount)
    rows = [line.split() for line in out[out.index("what the creators") :].splitlines()[3:7]]
    assert [row[0] for row in rows] == ["luna", "mika", "nova", "orion"]
    assert {"points": sum(int(row[1]) for row in rows), "stars": sum(int(row[2]) for row in rows)} == earned


def test_a_seed_repeats_its_evening_and_another_does_not(command: Command) -> None:
    evenings = [activity_of(command("demo", "--seed", seed).succeeded().out) for seed in ("3", "3", "4")]
    assert evenings[0] == evenings[1] != evenings[2]


def test_the_demo_names_the_seed_that_it_chose(command: Command) -> None:
    out = command("demo").succeeded().out
    seed = re.search(r"--seed (\d+) repeats it", out)
    assert seed is not None
    assert activity_of(command("demo", "--seed", seed[1]).succeeded().out) == activity_of(out)


@pytest.mark.parametrize(
    ("tampering", "seen"),
    [
        (
            "UPDATE user_wallets SET available = available + 1 WHERE owner_id = 'user:ana' AND currency = 'points'",
            "available ",
        ),
        (
            "UPDATE model_wallets SET earned = earned + 1 WHERE owner_id = 'model:luna' AND currency = 'points'",
            "earned ",
        ),
        ("UPDATE escrow_items SET amount = amount + 1 WHERE status = 'held' AND currency = 'points'", "held escrow "),
    ],
)
def test_the_demo_fails_where_the_books_do_not_balance(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tampering: str, seen: str
) -> None:
    def tampered(database: Database, *, seed: int) -> None:
        evening(database, seed=seed)
        with database.engine.begin() as connection:
            connection.execute(text(tampering))

    monkeypatch.setattr(cli, "evening", tampered)
    outcome = command("demo", "--database", f"sqlite:///{tmp_path}/new.db", "--seed", "3")
    assert (outcome.status, outcome.err) == (1, "")
    points, stars = outcome.out.splitlines()[-2:]
    assert points.startswith("THE BOOKS DO NOT BALANCE (points)")
    assert re.search(rf"{seen}[\d,]+ != [\d,]+", points)
    assert stars.startswith("the books balance (stars)")


def test_the_line_about_the_books_shows_each_sum_that_is_off() -> None:
    even = {Bucket.AVAILABLE: 1_000, Bucket.ESCROW: 20, Bucket.EARNED: 3}
    issued = {Bucket.ISSUED: -1_023}

    def line(ledger: dict[Bucket, int], wallets: dict[Bucket, int], held: int) -> str:
        return books_line(Books(currency="points", ledger=ledger, wallets=wallets, held=held))

    assert line(even | issued, even, 20) == (
        "the books balance (points): entries sum to 0; held escrow 20 = 20 escrow balances; "
        "wallets and ledger: available 1,000 = 1,000, escrow 20 = 20, earned 3 = 3"
    )
    wrong = "THE BOOKS DO NOT BALANCE (points): "
    assert line(even, even, 20).startswith(wrong + "entries sum to 1,023; ")
    assert "held escrow 19 != 20 escrow balances" in line(even | issued, even, 19)
    assert "held escrow 5 != 0 escrow balances" in line({}, {}, 5)
    # Two buckets that are off by the same amount do not make up for each other.
    assert line(even | issued, even | {Bucket.AVAILABLE: 999, Bucket.EARNED: 4}, 20).endswith(
        "available 999 != 1,000, escrow 20 = 20, earned 4 != 3"
    )
    assert line(even | issued, even | {Bucket.EARNED: 4}, 20).startswith(wrong)
    # A bucket that not everybody uses is told where there is something in it, on either side.
    assert line({}, {Bucket.PAYING: 1}, 0).endswith("earned 0 = 0, paying 1 != 0")
    assert line({Bucket.PAYING: 2}, {}, 0).endswith("earned 0 = 0, paying 0 != 2")


# ── balance ───────────────────────────────────────────────────────────────────────────────────────


def test_balance_shows_what_is_there(command: Command, world: World, url: str) -> None:
    world.credit(amount=1_234_567)
    world.credit(amount=9, currency="stars")
    held = world.hold(amount=30)
    world.hold(amount=4_000)
    world.settle(held.escrow_id)
    table = {
        ("user:ana",): ("available escrow total", "points 1,230,537 4,000 1,234,537"),
        ("user:ana", "--currency", "stars"): ("available escrow total", "stars 9 0 9"),
        ("user:nobody",): ("available escrow total", "points 0 0 0"),
        ("model:luna",): ("earned", "points 30"),
        ("model:luna", "--currency", "stars"): ("earned", "stars 0"),
        ("model:ana",): ("earned", "points 0"),
    }
    before = world.snapshot()
    for arguments, (columns, row) in table.items():
        out = command("balance", *arguments, "--database", url).succeeded().out
        assert out.splitlines()[0].strip() == arguments[0]
        assert out.splitlines()[1].split() == ["currency", *columns.split()]
        assert [line.split() for line in rows_of(out)] == [row.split()]
    assert world.snapshot() == before


def test_the_database_comes_from_the_option_else_from_the_environment(
    command: Command, world: World, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.credit(amount=77)
    monkeypatch.setenv(VARIABLE, url)
    assert "77" in command("balance", "user:ana").succeeded().out
    monkeypatch.setenv(VARIABLE, "sqlite:////nowhere/at-all.db")
    assert "77" in command("balance", "user:ana", "--database", url).succeeded().out
    assert "/nowhere/at-all.db" in command("balance", "user:ana").refused()
    monkeypatch.setenv(VARIABLE, "")
    assert VARIABLE in command("balance", "user:ana").refused()


# ── escrows ───────────────────────────────────────────────────────────────────────────────────────


def test_escrows_shows_those_that_every_filter_lets_through(command: Command, world: World, url: str) -> None:
    world.credit(amount=10_000)
    world.credit("ben", amount=100)
    held = world.hold(amount=1_500, queue_item_id="queue-2").escrow_id
    settled, refunded, split = (world.hold().escrow_id for _ in range(3))
    world.settle(settled)
    world.refund(refunded)
    world.partial_settle(split)
    other = world.hold("ben", queue_item_id="queue-2").escrow_id
    table = {
        ("--user", "ana"): [held, settled, refunded, split],
        ("--user", "nobody"): [],
        ("--queue-item", "queue-2"): [held, other],
        ("--status", "held"): [held, other],
        ("--status", "settled"): [settled],
        ("--status", "refunded"): [refunded],
        ("--status", "partially_settled"): [split],
        ("--status", "held", "--user", "ben"): [other],
        ("--queue-item", "queue-2", "--user", "ana", "--status", "refunded"): [],
        ("--held-before", "0s"): [held, other],
        ("--held-before", "1h"): [],
        ("--held-before", "9999-12-31T23:59:59Z", "--user", "ana"): [held],
        ("--held-before", "1999-12-31T23:59:59+02:00"): [],
    }
    before = world.snapshot()
    for filters, expected in table.items():
        out = command("escrows", *filters, "--database", url).succeeded().out
        assert UUID.findall(out) == expected, filters
        assert CURSOR.search(out) is None
    assert world.snapshot() == before
    out = command("escrows", "--user", "ana", "--database", url).succeeded().out
    assert re.search(rf"{held} +ana +\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d +1,500 points\nqueue-2 +held\n", squeezed(out))
    assert re.search(rf"{split} +ana .* 30 points\nqueue-1 +luna +partially_settled +20 points\n", squeezed(out))
    assert re.search(rf"{refunded} +ana .* 30 points\nqueue-1 +refunded +0 points\n", squeezed(out))
    assert max(map(len, out.splitlines())) <= 80


def squeezed(output: str) -> str:
    return re.sub(" +\n", "\n", output)


def test_an_age_counts_back_from_now(command: Command, sqlite_url: str) -> None:
    with Database(sqlite_url, clock=now) as database, freeze_time("2026-03-01 20:00:00") as clock:
        world = World(database)
        world.credit()
        world.hold()
        for age, moment, found in (
            ("30m", "2026-03-01 20:30:00", 0),
            ("30m", "2026-03-01 20:30:01", 1),
            ("90s", "2026-03-01 20:01:31", 1),
            ("2h", "2026-03-01 21:59:59", 0),
            ("2h", "2026-03-01 22:00:01", 1),
            ("1d", "2026-03-02 20:00:00", 0),
            ("1d", "2026-03-02 20:00:01", 1),
            ("2026-03-01T21:00:00+01:00", "2026-03-05", 0),
            ("2026-03-01T21:00:01+01:00", "2026-03-05", 1),
        ):
            clock.move_to(moment)
            out = command("escrows", "--held-before", age, "--database", sqlite_url).succeeded().out
            assert len(UUID.findall(out)) == found, (age, moment)


def test_the_cursor_hint_leads_through_all_escrows(command: Command, world: World, url: str) -> None:
    world.credit()
    expected = [world.hold(amount=1).escrow_id for _ in range(7)]
    assert pages(command, "escrows", "--user", "ana", "--limit", "3", "--database", url) == [
        expected[:3],
        expected[3:6],
        expected[6:],
    ]


def pages(command: Command, *arguments: str) -> list[list[str]]:
    """The ids of each page, following the hint at its end."""
    found: list[list[str]] = []
    more: tuple[str, ...] = ()
    while True:
        out = command(*arguments, *more).succeeded().out
        found.append(UUID.findall(out))
        cursor = CURSOR.search(out)
        if cursor is None:
            return found
        more = ("--after", cursor[1])


# ── statement ─────────────────────────────────────────────────────────────────────────────────────


def test_statement_tells_what_happened(command: Command, world: World, url: str) -> None:
    credited = world.credit(amount=12_345)
    held = world.hold(amount=30)
    split = world.partial_settle(held.escrow_id)
    lines: dict[str, list[tuple[Any, ...]]] = {
        "user:ana": [
            ("credit top_up", credited, None, "+12,345", "12,345", "available"),
            ("hold performance_request", held, held, "-30", "12,315", "available"),
            ("hold performance_request", held, held, "+30", "30", "escrow"),
            ("partial_settle partial_performance", split, held, "+10", "12,325", "available"),
            ("partial_settle partial_performance", split, held, "-30", "0", "escrow"),
        ],
        "model:luna": [("partial_settle partial_performance", split, held, "+20", "20", "earned")],
        "platform:issuer": [("credit top_up", credited, None, "-12,345", "", "issued")],
        "user:nobody": [],
    }
    before = world.snapshot()
    for owner, expected in lines.items():
        out = command("statement", owner, "--oldest-first", "--database", url).succeeded().out
        assert out.splitlines()[0].strip() == f"{owner} (points)"
        assert [line.split() for line in rows_of(out)] == [
            row for line in expected for row in statement_rows(world, *line)
        ]
        assert max(map(len, out.splitlines())) <= 80
    assert world.snapshot() == before


def statement_rows(
    world: World, what: str, response: Any, held: Any, amount: str, balance: str, bucket: str
) -> list[list[str]]:
    transaction = world.ledger.transaction(response.transaction_id)
    assert transaction is not None
    when = f"{transaction.occurred_at:%Y-%m-%d %H:%M:%S}"
    rows = [[*when.split(), *what.split(), amount, balance], [transaction.transaction_id, bucket]]
    if held is not None:
        rows.append([held.escrow_id])
    return [[cell for cell in row if cell] for row in rows]


def test_statement_orders_narrows_and_pages(command: Command, world: World, url: str) -> None:
    credited = [world.credit(amount=1).transaction_id for _ in range(5)]
    stars = world.credit(amount=1, currency="stars").transaction_id
    held = world.hold(amount=2)
    ask = ("statement", "user:ana", "--database", url)
    newest = [held.transaction_id, *reversed(credited)]
    assert pages(command, *ask, "--bucket", "available", "--limit", "1000")[0][0] == held.transaction_id
    shown = [
        [i for i in page if i != held.escrow_id]
        for page in pages(command, *ask, "--bucket", "available", "--limit", "4")
    ]
    assert shown == [newest[:4], newest[4:]]
    shown = pages(command, *ask, "--bucket", "available", "--oldest-first", "--limit", "5")
    assert shown == [credited, [held.transaction_id, held.escrow_id]]
    assert pages(command, *ask, "--bucket", "escrow") == [[held.transaction_id, held.escrow_id]]
    assert pages(command, *ask, "--currency", "stars") == [[stars]]
    assert pages(command, *ask, "--newest-first") == pages(command, *ask)


# ── what is shown ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("user", ["u" * 128, "[bold]ana[/bold]", ":smile: [/]", "Zoë Δ 点"])
def test_ids_are_shown_whole_and_as_they_are(
    command: Command, sqlite_url: str, monkeypatch: pytest.MonkeyPatch, user: str
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    with Database(sqlite_url) as database:
        world = World(database)
        world.credit(user)
        escrow_id = world.hold(user, queue_item_id="q" * 128).escrow_id
    out = command("escrows", "--status", "held", "--database", sqlite_url).succeeded().out
    assert {escrow_id, "q" * 128} <= set(out.split())
    assert f" {user} " in out
    for name in ("statement", "balance"):
        out = command(name, f"user:{user}", "--database", sqlite_url).succeeded().out
        assert out.startswith(f"user:{user}")
    assert escrow_id in command("statement", f"user:{user}", "--database", sqlite_url).out


def test_a_terminal_that_lacks_a_letter_gets_an_escape(sqlite_url: str) -> None:
    outcome = spawn("balance", "user:Δ", "--database", sqlite_url, env={"PYTHONIOENCODING": "ascii"}).succeeded()
    assert "user:\\u0394" in outcome.out


def test_a_reader_that_has_gone_is_no_error(sqlite_url: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as nobody_reads:
        for arguments in (("balance", "user:ana", "--database", sqlite_url), ("demo",), ("--help",)):
            done = subprocess.run([COMMAND, *arguments], stdout=nobody_reads, stderr=subprocess.PIPE, timeout=60)
            assert done.stderr == b"", arguments


def test_every_command_that_reads_answers_as_json_too(command: Command, world: World, url: str) -> None:
    world.credit(amount=100)
    settled = world.hold(amount=30, metadata={"title": "Für Elise"})
    world.settle(settled.escrow_id, 30)
    held = world.hold(amount=5)

    def told(*arguments: str) -> Any:
        return json.loads(command(*arguments, "--json", "--database", url).succeeded().out)

    assert told("balance", "user:ana") == {
        "owner": "user:ana",
        "currency": "points",
        "available": 65,
        "escrow": 5,
        "total": 70,
    }
    assert told("balance", "user:ana", "--at", "1h")["total"] == 0
    assert told("balance", "model:luna") == {"owner": "model:luna", "currency": "points", "earned": 30}
    page = told("escrows", "--user", "ana", "--limit", "1")
    (item,) = page["items"]
    of = world.wallets.get_escrow(settled.escrow_id)
    assert (item["escrow_id"], item["status"], item["metadata"]) == (of.escrow_id, "settled", {"title": "Für Elise"})
    assert item["created_at"] == of.created_at.isoformat()
    following = told("escrows", "--user", "ana", "--limit", "1", "--after", page["next"])
    assert [each["escrow_id"] for each in following["items"]] == [held.escrow_id]
    assert following["next"] is None
    lines = told("statement", "user:ana", "--oldest-first", "--bucket", "available")["lines"]
    assert [(line["operation"], line["amount"]) for line in lines] == [("credit", 100), ("hold", -30), ("hold", -5)]
    earned = told("earnings", "luna", "--since", "0s", "--per", "month")
    assert (earned["model"], earned["periods"][-1]["earned"]) == ("luna", 30)
    assert told("rebuild") == {"rows": []}
    assert told("verify") == {"findings": []}
    refused = command("statement", "user:ana", "--csv", "--json", "--database", url).refused()
    assert "--csv or --json" in refused


def test_every_command_on_a_database_that_only_reads_has_json(command: Command) -> None:
    for name, each in get_command(cli.app).commands.items():  # type: ignore[attr-defined]
        options = {option for parameter in each.params for option in parameter.opts}
        if "--database" in options:
            assert ("--json" in options) == (name not in {"demo", "seal", "export", "import"}), name


# ── what is installed ─────────────────────────────────────────────────────────────────────────────


def test_the_version_is_the_one_that_is_installed() -> None:
    assert spawn("--version").succeeded().out == f"points-platform {metadata.version('points-platform')}\n"


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_a_line_says_what_to_install(missing: str) -> None:
    program = (
        "import sys; sys.modules[sys.argv.pop()] = None; from points_platform.cli import command; sys.exit(command())"
    )
    done = subprocess.run([sys.executable, "-c", program, missing], capture_output=True, text=True, timeout=60)
    said = "error: the command line needs its extra: pip install 'points-platform[cli]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)


def test_anything_else_that_is_missing_is_not_taken_for_the_extra() -> None:
    program = "import sys; sys.modules['sqlalchemy'] = None; from points_platform.cli import command; command()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "sqlalchemy" in done.stderr


def test_the_installed_command_is_the_one_that_looks_for_its_extra() -> None:
    (script,) = (each for each in metadata.entry_points(group="console_scripts") if each.name == "points-platform")
    assert script.value == "points_platform.cli:command"


# ── help and failures ─────────────────────────────────────────────────────────────────────────────


def test_without_arguments_it_explains_itself(command: Command) -> None:
    out = command().succeeded().out
    assert out == command("--help").succeeded().out
    for expected in ("demo", "balance", "escrows", "statement", VARIABLE, "--database"):
        assert expected in out


@pytest.mark.parametrize("name", ["demo", "balance", "escrows", "statement"])
def test_each_command_has_help_with_an_example(command: Command, name: str) -> None:
    out = command(name, "--help").succeeded().out
    assert f"Example: points-platform {name} " in out
    assert "--database" in out
    assert (VARIABLE in out) == (name != "demo")


BAD_USAGE: dict[tuple[str, ...], str] = {
    ("nonsense",): "No such command",
    ("balance",): "OWNER",
    ("balance", "user:ana"): f"set {VARIABLE}",
    ("balance", "user:ana", "--nonsense"): "--nonsense",
    ("balance", "user:ana", "--database"): "--database",
    ("balance", "user:ana", "more", "--database", "{url}"): "more",
    ("--database", "{url}", "balance", "user:ana"): "--database",
    ("balance", "ana", "--database", "{url}"): "'ana'",
    ("balance", "", "--database", "{url}"): "user:NAME or model:NAME",
    ("balance", "user:", "--database", "{url}"): "'user:'",
    ("balance", "platform:issuer", "--database", "{url}"): "'platform:issuer'",
    ("balance", "user:" + "a" * 129, "--database", "{url}"): "128",
    ("balance", "user:a\nb", "--database", "{url}"): "printable",
    ("balance", "user:ana", "--currency", "Points", "--database", "{url}"): "'Points'",
    ("escrows", "--database", "{url}"): "at least one of --user, --queue-item, --status, --held-before",
    ("escrows", "--status", "lost", "--database", "{url}"): "'lost'",
    ("escrows", "--user", "", "--database", "{url}"): "user_id",
    ("escrows", "--held-before", "1h", "--status", "settled", "--database", "{url}"): "'settled'",
    ("escrows", "--user", "ana", "--limit", "0", "--database", "{url}"): "from 1 to 1000",
    ("escrows", "--user", "ana", "--limit", "1001", "--database", "{url}"): "from 1 to 1000",
    ("escrows", "--user", "ana", "--limit", "many", "--database", "{url}"): "--limit",
    ("escrows", "--user", "ana", "--after", "nowhere", "--database", "{url}"): "'nowhere'",
    ("statement", "ana", "--database", "{url}"): "'ana'",
    ("statement", "user:ana", "--bucket", "earned", "--database", "{url}"): "'earned'",
    ("statement", "user:ana", "--limit", "-1", "--database", "{url}"): "from 1 to 1000",
    ("statement", "user:ana", "--after", "W10", "--database", "{url}"): "'W10'",
    ("demo", "--seed", "x"): "--seed",
    ("demo", "--database", "sqlite:////nowhere/at/all.db"): "unable to open database file",
    **{
        ("escrows", "--database", "{url}", "--held-before", time): repr(time)
        for time in (
            "yesterday", "2026-01-31T20:00:00", "2026-01-31", "30", "m", "30 m", "-1h", "1.5h", "1w", "٣h", "",
            "9999999999d", "999999999d", "0001-01-01T00:00:00+23:59",
        )
    },
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "expected"), BAD_USAGE.items(), ids=lambda value: " ".join(value)[:60])
def test_bad_usage_is_one_line(command: Command, sqlite_url: str, arguments: tuple[str, ...], expected: str) -> None:
    outcome = command(*(argument.format(url=sqlite_url) for argument in arguments))
    assert expected in outcome.refused()
    assert outcome.out == ""


READERS = (("balance", "user:ana"), ("escrows", "--user", "ana"), ("statement", "user:ana"))


@pytest.mark.parametrize("arguments", READERS, ids=lambda value: value[0])
def test_a_mistyped_file_is_not_created(command: Command, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    for url in (
        f"sqlite:///{tmp_path}/typo.db",
        f"sqlite:///file:{tmp_path}/typo.db?uri=true",
        f"sqlite:///{tmp_path}",
    ):
        assert "there is no database file" in command(*arguments, "--database", url).refused()
    assert list(tmp_path.iterdir()) == []


LOOKING = (
    *READERS,
    ("statement", "user:ana", "--csv"),
    ("balance", "user:ana", "--at", "0s"),
    ("earnings", "luna"),
    ("verify",),
    ("rebuild",),
    ("rebuild", "--check"),
)


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_a_command_that_only_reads_leaves_a_file_as_it_is(command: Command, sqlite_url: str, mode: str) -> None:
    file = Path(sqlite_url.removeprefix("sqlite:///"))
    with Database(sqlite_url) as database:
        World(database).credit()
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute(f"PRAGMA journal_mode = {mode}").fetchone() == (mode,)
    before = file.read_bytes()
    for arguments in LOOKING:
        command(*arguments, "--database", sqlite_url).succeeded()
        assert file.read_bytes() == before, arguments
        assert [each.name for each in file.parent.glob(f"{file.name}*")] == [file.name]
    command("seal", "--database", sqlite_url).succeeded()
    assert file.read_bytes() != before, "what writes goes on in the mode that the module needs"
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_file_named_as_a_sqlite_uri_is_found(command: Command, sqlite_url: str) -> None:
    uri = sqlite_url.replace("sqlite:///", "sqlite:///file:") + "?uri=true"
    command("balance", "user:ana", "--database", uri).succeeded()


@pytest.mark.parametrize("arguments", READERS, ids=lambda value: value[0])
def test_a_database_without_our_schema_is_refused(command: Command, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "empty.db").touch()
    assert "schema" in command(*arguments, "--database", f"sqlite:///{tmp_path}/empty.db").refused()
    (tmp_path / "text.db").write_text("not a database, but long enough to be taken for one" * 100)
    assert "not a database" in command(*arguments, "--database", f"sqlite:///{tmp_path}/text.db").refused()
    assert (tmp_path / "text.db").read_text().startswith("not a database")


def test_a_schema_of_another_release_is_refused(command: Command, url: str, database: Database) -> None:
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE points_platform_schema SET version_num = '0999', oldest_writer = '0999'"))
    for arguments in READERS:
        assert "schema version 0999" in command(*arguments, "--database", url).refused()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            "postgresql+psycopg://ana:s3cret@127.0.0.1:1/points",
            "cannot use the database postgresql+psycopg://ana:***@127",
        ),
        ("postgresql://ana:s3cret@127.0.0.1:1/points", "connection failed"),
        ("postgresql://ana:s3cret@127.0.0.1:1/points?nonsense=1", 'invalid connection option "nonsense"'),
        ("postgresql://ana@127.0.0.1:1/points?password=s3cret", "connection failed"),
        ("postgresql://ana:x@s3cret@127.0.0.1:1/points", "%40"),
        ("postgresql://ana:s3cret@127.0.0.1:port/points", "--database must be"),
        ("postgresql+psycopg2://ana:s3cret@127.0.0.1/points", "--database must be"),
        ("mysql://ana:s3cret@127.0.0.1/points", "--database must be"),
        ("s3cret", "--database must be"),
        ("sqlite://", "--database must be"),
        ("sqlite:///:memory:", "--database must be"),
        ("sqlite:///points.db?timeout=s3cret", "--database must be"),
    ],
)
def test_a_database_that_cannot_be_used_is_named_without_its_password(
    command: Command, given: str, expected: str
) -> None:
    for arguments in (*READERS, ("demo",)):
        line = command(*arguments, "--database", given).refused()
        assert expected in line
        assert "s3cret" not in line


@pytest.mark.parametrize(
    "arguments",
    [
        ("balance", "user:ana", "postgresql://ana:s3cret@host/points"),
        ("balance", "user:ana", "postgresql://ana:x@s3cret@host/points"),
        ("balance", "user:ana", "postgresql://ana@host/points?password=s3cret&sslmode=require"),
        ("balance", "postgresql://ana:s3cret@host/points"),
        ("postgresql://ana:s3cret@host/points",),
    ],
)
def test_a_url_in_the_wrong_place_is_quoted_without_its_password(command: Command, arguments: tuple[str, ...]) -> None:
    line = command(*arguments).refused()
    assert "://ana" in line
    assert "s3cret" not in line


def test_a_failure_of_the_system_is_one_line(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    assert "No such file or directory" in command("demo").refused()


def test_an_interrupt_is_one_line_and_the_status_of_a_signal(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "evening", interrupted)
    outcome = command("demo")
    assert (outcome.status, outcome.err) == (130, "interrupted\n")


def test_the_installed_command_fails_like_the_function() -> None:
    assert "No such command" in spawn("nonsense").refused()
    assert "there is no database file" in spawn("balance", "user:ana", env={VARIABLE: "sqlite:///none.db"}).refused()


def test_every_status_has_an_escrow_filter(command: Command, sqlite_url: str) -> None:
    out = command("escrows", "--help").succeeded().out
    for status in EscrowStatus:
        assert status.value in out
        command("escrows", "--status", status.value, "--database", sqlite_url).succeeded()
