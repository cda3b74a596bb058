"""The commands that keep the ledger: what they print and write, their statuses, and that failing is one line."""

import csv
import gzip
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from sqlalchemy import create_engine, text

from points_platform.cli import main as cli
from points_platform.cli import tables
from points_platform.core import Database
from points_platform.ledger import LedgerService
from points_platform.wallets.verify import verify
from support.world import World

VARIABLE = "POINTS_PLATFORM_DATABASE"


@dataclass(frozen=True)
class Outcome:
    status: int
    out: str
    err: str

    def succeeded(self) -> str:
        assert (self.status, self.err) == (0, "")
        return self.out

    def refused(self, status: int = 1) -> str:
        """The one line that a failure is."""
        assert self.status == status
        assert self.err.startswith("error: ")
        assert (self.err.count("\n"), self.err[-1]) == (1, "\n")
        return self.err


Command = Callable[..., Outcome]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a command line in this process."""
    monkeypatch.delenv(VARIABLE, raising=False)

    def command(*arguments: str | Path) -> Outcome:
        status = cli.main([str(argument) for argument in arguments])
        return Outcome(status, *capsys.readouterr())

    return command


@pytest.fixture
def played(url: str, database: Database) -> World:
    """Each operation once, not sealed."""
    return play(database)


def play(database: Database) -> World:
    world = World(database)
    world.credit("ana", 100, metadata={"title": 'Für \u2028 Elise, "allegro"\n'})
    world.settle(world.hold().escrow_id)
    world.refund(world.hold().escrow_id)
    world.partial_settle(world.hold().escrow_id)
    world.hold("ana", 5)
    return world


def tamper(database: Database, *statements: str) -> None:
    """On a connection of its own, around the triggers, which are back afterwards."""
    engine = create_engine(database.engine.url)
    with engine.begin() as connection:
        triggers: list[Any] = []
        if database.is_sqlite:
            triggers = list(connection.execute(text("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")))
        else:
            connection.execute(text("SET LOCAL session_replication_role = replica"))
        for name, _ in triggers:
            connection.execute(text(f"DROP TRIGGER {name}"))
        for statement in statements:
            connection.execute(text(statement))
        for _, created in triggers:
            connection.execute(text(created))
    engine.dispose()


def key_files(folder: Path, name: str, key: Any = None) -> tuple[Path, Path]:
    key = key or Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.pem", folder / f"{name}.public.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


# ── seal ──────────────────────────────────────────────────────────────────────────────────────────


def test_seal_says_what_it_did_and_print_head_prints_the_head_alone(command: Command, url: str, played: World) -> None:
    first = command("seal", "--database", url).succeeded()
    head = played.ledger.head()
    assert first == f"8 transactions sealed; the head is {head}\n"
    assert command("seal", "--database", url).succeeded() == f"0 transactions sealed; the head is {head}\n"
    assert command("seal", "--print-head", "--database", url).succeeded() == f"{head}\n"
    assert head.position == 8
    played.credit("ana", 1)
    assert command("seal", "--print-head", "--database", url).succeeded() == f"{played.ledger.head()}\n"
    assert played.ledger.head().position == 9


def test_seal_says_what_waits_for_a_predecessor(command: Command, url: str, played: World) -> None:
    tamper(
        played.database,
        "DELETE FROM ledger_entries WHERE wallet_version = 2",
        "DELETE FROM ledger_transactions WHERE transaction_id NOT IN (SELECT transaction_id FROM ledger_entries)",
    )
    assert ", 6 wait for a predecessor; " in command("seal", "--database", url).succeeded()


def test_a_signed_head_is_believed_with_its_key_alone(
    command: Command, url: str, played: World, tmp_path: Path
) -> None:
    private, public = key_files(tmp_path, "ours")
    _, other = key_files(tmp_path, "other")
    signed = command("seal", "--sign-with", private, "--database", url).succeeded().strip()
    assert str(played.ledger.head()) not in signed
    for key in (public, private):
        assert "nothing found" in command("verify", "--head", signed, "--signed-by", key, "--database", url).succeeded()
    head, payload, signature = signed.split(".")
    plain = str(played.ledger.head())
    for given, key in (
        (signed, other),
        (f"{head}.{payload}.{signature[::-1]}", public),
        (f"{head}.{payload}.", public),
        (plain, public),
        ("", public),
    ):
        refusal = command("verify", "--head", given, "--signed-by", key, "--database", url).refused(2)
        assert "is not signed by" in refusal
    assert "--signed-by" in command("verify", "--head", signed, "--database", url).refused(2)


def test_a_signed_head_still_finds_what_was_cut_off(command: Command, url: str, played: World, tmp_path: Path) -> None:
    private, public = key_files(tmp_path, "ours")
    signed = command("seal", "--sign-with", private, "--database", url).succeeded().strip()
    tamper(played.database, "DELETE FROM ledger_log WHERE position = 8")
    outcome = command("verify", "--head", signed, "--signed-by", public, "--database", url)
    assert (outcome.status, outcome.err) == (1, "")
    assert outcome.out.startswith("log_cut position=8: expected ")


def test_a_head_that_was_written_down_in_capitals_is_the_same(command: Command, url: str, played: World) -> None:
    head = str(played.ledger.seal().head)
    for given in (head.upper(), f" {head}\n"):
        assert "nothing found" in command("verify", "--head", given, "--database", url).succeeded()


@pytest.mark.parametrize("which", ["missing", "garbage", "public", "rsa", "folder", "empty", "short"])
def test_seal_signs_with_an_ed25519_private_key_only(
    command: Command, sqlite_url: str, tmp_path: Path, which: str
) -> None:
    keys = {
        "missing": tmp_path / "missing.pem",
        "public": key_files(tmp_path, "ours")[1],
        "folder": tmp_path,
        "rsa": key_files(tmp_path, "rsa", rsa.generate_private_key(public_exponent=65537, key_size=2048))[0],
    }
    for name, content in {"garbage": b"-----BEGIN NONSENSE", "empty": b"", "short": b"x"}.items():
        keys[name] = tmp_path / f"{name}.pem"
        keys[name].write_bytes(content)
    outcome = command("seal", "--sign-with", keys[which], "--database", sqlite_url)
    outcome.refused()
    assert outcome.out == ""


# ── verify ────────────────────────────────────────────────────────────────────────────────────────


def test_verify_of_what_was_only_played_finds_nothing(command: Command, url: str, played: World) -> None:
    assert command("verify", "--database", url).succeeded() == "nothing found: everything is as the ledger says\n"
    head = played.ledger.seal().head
    for options in ((), ("--since", "3"), ("--since", "8"), ("--head", str(head))):
        assert json.loads(command("verify", *options, "--json", "--database", url).succeeded()) == {"findings": []}


def test_verify_names_each_finding_in_a_line_and_in_json(command: Command, url: str, played: World) -> None:
    head = played.ledger.seal().head
    tamper(
        played.database,
        "UPDATE ledger_transactions SET reason = 'gift' WHERE operation = 'refund'",
        "UPDATE user_wallets SET available = 36",
        "DELETE FROM ledger_log WHERE position = 8",
        "DELETE FROM model_wallets",
    )
    lines = command("verify", "--head", str(head), "--database", url)
    assert (lines.status, lines.err) == (1, "")
    outcome = command("verify", "--head", str(head), "--json", "--database", url)
    assert (outcome.status, outcome.err) == (1, "")
    findings = json.loads(outcome.out)["findings"]
    expected = list(verify(played.database, head=head))
    assert [each["kind"] for each in findings] == [each.kind for each in expected]
    assert sorted({each["kind"] for each in findings}) == [
        "log_cut",
        "model_wallet_missing",
        "seal_broken",
        "user_wallet_differs",
    ]
    by_kind = {each["kind"]: each for each in findings}
    assert all(set(each) == {"kind", "ids", "expected", "found"} for each in findings)
    assert by_kind["user_wallet_differs"]["ids"] == {"owner_id": "user:ana", "currency": "points"}
    assert by_kind["user_wallet_differs"]["found"]["available"] == 36
    assert by_kind["user_wallet_differs"]["expected"]["available"] == 45
    assert (by_kind["model_wallet_missing"]["found"], by_kind["log_cut"]["found"]) == (None, None)
    assert by_kind["log_cut"] == {"kind": "log_cut", "ids": {"position": 8}, "expected": head.hash, "found": None}
    *named, last = lines.out.splitlines()
    assert last == "4 findings"
    assert [line.split(" ")[0] for line in named] == [each["kind"] for each in findings]
    assert all(": expected " in line and ", found " in line for line in named)
    position = by_kind["seal_broken"]["ids"]["position"]
    options = ("--since", str(position), "--json", "--database", url)
    assert "seal_broken" not in {each["kind"] for each in json.loads(command("verify", *options).out)["findings"]}


WRONG_OPTIONS = [
    ("--since", "-1"),
    ("--since", "x"),
    ("--since", "1.5"),
    ("--since", "99999999999999999999999999"),
    ("--head", "8"),
    ("--head", f"8:{'f' * 63}"),
    ("--head", f"-1:{'f' * 64}"),
    ("--head", f"x:{'f' * 64}"),
    ("--head", f"²:{'f' * 64}"),
    ("--head", f"8:{'g' * 64}"),
    ("--head", f"{'9' * 30}:{'f' * 64}"),
    ("--head", f"8:{'f' * 64}", "--signed-by", "missing.pem"),
    ("--unknown",),
    ("extra",),
]


@pytest.mark.parametrize("options", WRONG_OPTIONS, ids=lambda options: "-".join(options)[:30])
def test_verify_that_cannot_run_ends_with_2(command: Command, sqlite_url: str, options: tuple[str, ...]) -> None:
    outcome = command("verify", *options, "--database", sqlite_url)
    outcome.refused(2)
    assert outcome.out == ""


def test_verify_of_a_file_that_is_damaged_itself_ends_with_2(command: Command, sqlite_url: str, tmp_path: Path) -> None:
    with Database(sqlite_url) as database:
        play(database).ledger.seal()
    file = Path(sqlite_url.removeprefix("sqlite:///"))
    content = file.read_bytes()
    damaged = tmp_path / "damaged.db"
    damaged.write_bytes(content[:4096] + b"\xa5" * (len(content) - 4096))
    command("verify", "--database", f"sqlite:///{damaged}").refused(2)
    damaged.write_bytes(b"no database " * 1000)
    command("verify", "--database", f"sqlite:///{damaged}").refused(2)
    damaged.write_bytes(b"")
    command("verify", "--database", f"sqlite:///{damaged}").refused(2)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE ledger_entries SET balance_after = 'many' WHERE wallet_version = 2",
        "UPDATE ledger_entries SET posted_at = 'yesterday' WHERE wallet_version = 2",
        "UPDATE ledger_transactions SET occurred_at = 'yesterday'",
        "UPDATE ledger_transactions SET reason = x'ff00'",
        "UPDATE user_wallets SET available = 'many'",
        "UPDATE user_wallets SET created_at = 'yesterday'",
    ],
)
def test_values_of_another_kind_are_findings_or_a_line_but_no_traceback(
    command: Command, sqlite_url: str, damage: str
) -> None:
    """Only SQLite lets such values in."""
    with Database(sqlite_url) as database:
        play(database).ledger.seal()
        tamper(database, "PRAGMA ignore_check_constraints = ON", damage)
    for options in ((), ("--json",)):
        outcome = command("verify", *options, "--database", sqlite_url)
        assert outcome.status in {1, 2}
        assert outcome.err.count("\n") <= 1


# ── rebuild ───────────────────────────────────────────────────────────────────────────────────────


def test_rebuild_plans_checks_and_applies(command: Command, url: str, played: World) -> None:
    rows = played.snapshot()
    check, plan, repair = (("rebuild", *way, "--database", url) for way in (("--check",), (), ("--apply",)))
    assert command(*check).succeeded() == "every row is what the ledger says\n"
    assert command(*plan).succeeded() == command(*repair).succeeded() == "nothing to repair\n"
    tamper(
        played.database,
        "UPDATE user_wallets SET available = 36",
        "DELETE FROM model_wallets",
        "DELETE FROM escrow_items WHERE status = 'held'",
        "INSERT INTO user_wallets"
        " SELECT 'user:eva', currency, 1, 0, 0, state, version, created_at, updated_at FROM user_wallets",
    )
    damaged = played.snapshot()
    outcome = command(*check)
    assert (outcome.status, outcome.out, outcome.err) == (1, "rows differ from the ledger\n", "")
    *lines, last = command(*plan).succeeded().splitlines()
    assert last == "4 rows to repair, with --apply"
    assert sorted(line.split(": ")[0].rpartition(" ")[0] for line in lines if "escrow_items" not in line) == [
        "delete user_wallets owner_id=user:eva",
        "insert model_wallets owner_id=model:luna",
        "update user_wallets owner_id=user:ana",
    ]
    assert "update user_wallets owner_id=user:ana currency=points: available 36 -> 45" in lines
    assert played.snapshot() == damaged, "a plan changes nothing"
    *lines, last = command(*repair).succeeded().splitlines()
    assert last == "4 rows repaired"
    assert all(line.startswith("repaired ") for line in lines)
    assert len(lines) == 4
    assert played.snapshot() == rows
    assert command(*check).succeeded() == "every row is what the ledger says\n"


def test_to_ask_and_to_repair_at_once_is_refused(command: Command, url: str, played: World) -> None:
    tamper(played.database, "UPDATE user_wallets SET available = 36")
    damaged = played.snapshot()
    outcome = command("rebuild", "--check", "--apply", "--database", url)
    assert (outcome.status, outcome.out) == (2, "")
    assert played.snapshot() == damaged


def test_to_differ_and_not_to_run_are_told_apart(command: Command, url: str, played: World, tmp_path: Path) -> None:
    check = ("rebuild", "--check", "--database")
    assert command(*check, url).status == 0
    tamper(played.database, "UPDATE user_wallets SET available = 36")
    assert command(*check, url).status == 1
    (tmp_path / "text.db").write_bytes(b"no database " * 1000)
    for other in (f"sqlite:///{tmp_path}/none.db", f"sqlite:///{tmp_path}/text.db", "nonsense"):
        command(*check, other).refused(2)
    command("rebuild", "--check", "--nonsense", "--database", url).refused(2)


def test_what_rebuild_finds_and_does_is_told_as_json(command: Command, url: str, played: World) -> None:
    tamper(played.database, "UPDATE user_wallets SET available = 36")
    for way, status in ((("--check",), 1), ((), 0)):
        outcome = command("rebuild", *way, "--json", "--database", url)
        assert outcome.status == status
        (row,) = json.loads(outcome.out)["rows"]
        assert (row["table"], row["key"]) == ("user_wallets", {"owner_id": "user:ana", "currency": "points"})
        assert (row["expected"]["available"], row["found"]["available"]) == (45, 36)
    done = json.loads(command("rebuild", "--apply", "--json", "--database", url).succeeded())
    assert [row["table"] for row in done["repaired"]] == ["user_wallets"]
    assert done["left"] == []
    assert json.loads(command("rebuild", "--check", "--json", "--database", url).succeeded()) == {"rows": []}


def test_nothing_is_repaired_from_a_damaged_ledger(command: Command, url: str, played: World) -> None:
    """It would carry what was done to the ledger into the wallets."""
    tamper(
        played.database,
        "UPDATE ledger_entries SET amount = amount + 1, balance_after = balance_after + 1 WHERE bucket = 'earned'",
        "UPDATE user_wallets SET available = 36",
    )
    damaged = played.snapshot()
    outcome = command("rebuild", "--apply", "--database", url)
    assert (outcome.status, outcome.out) == (1, "")
    assert "the ledger itself has findings" in outcome.err
    assert played.snapshot() == damaged


def test_more_rows_than_fit_at_once_are_all_repaired(
    command: Command, url: str, played: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = played.snapshot()
    tamper(played.database, "DELETE FROM escrow_items", "DELETE FROM user_wallets", "DELETE FROM model_wallets")
    monkeypatch.setattr("points_platform.wallets.rebuild.drifts.__kwdefaults__", {"since": 0, "limit": 1})
    command("rebuild", "--apply", "--database", url).succeeded()
    assert played.snapshot() == rows


# ── export and import ─────────────────────────────────────────────────────────────────────────────


def test_an_export_is_refused_while_a_transaction_waits_for_one_that_is_missing(
    command: Command, url: str, played: World, tmp_path: Path
) -> None:
    """What waits is not in the log, and a copy made from the file would lack its points."""
    first = "SELECT transaction_id FROM ledger_entries WHERE account_id = 'user:ana' AND wallet_version = 1"
    tamper(
        played.database,
        f"DELETE FROM ledger_transactions WHERE transaction_id IN ({first})",
        "DELETE FROM ledger_entries WHERE account_id = 'user:ana' AND wallet_version = 1",
    )
    outcome = command("export", str(tmp_path / "ledger.jsonl"), "--database", url)
    assert outcome.status == 1
    assert "wait for one that is missing" in outcome.err
    assert list(tmp_path.glob("*ledger*")) == []


def test_an_export_is_sealed_first_and_comes_back_whole(
    command: Command, url: str, played: World, tmp_path: Path
) -> None:
    plain, packed = tmp_path / "ledger.jsonl", tmp_path / "ledger.jsonl.gz"
    out = command("export", plain, "--database", url).succeeded()
    head = played.ledger.head()
    assert out == f"8 transactions in {plain}; the head is {head}\n"
    command("export", packed, "--database", url).succeeded()
    assert gzip.decompress(packed.read_bytes()) == plain.read_bytes()
    last = json.loads(plain.read_text(encoding="utf-8").split("\n")[-2])
    assert last == {"count": 8, "hash": head.hash}
    again = tmp_path / "another-name.jsonl.gz"
    command("export", again, "--database", url).succeeded()
    assert again.read_bytes() == packed.read_bytes()
    for number, file in enumerate((plain, packed)):
        target = f"sqlite:///{tmp_path}/copy-{number}.db"
        expected = f"8 transactions are there; the head is {head}\n"
        assert command("import", file, "--database", target).succeeded() == expected
        assert command("import", file, "--database", target).succeeded() == expected
        command("verify", "--head", str(head), "--database", target).succeeded()
        back = tmp_path / f"back-{number}.jsonl"
        command("export", back, "--database", target).succeeded()
        assert back.read_bytes() == plain.read_bytes()
    assert sorted(each.name for each in tmp_path.iterdir() if each.name.startswith(".")) == []


def test_an_export_that_fails_leaves_the_file_that_was_there_and_nothing_else(
    command: Command, url: str, played: World, tmp_path: Path
) -> None:
    file, folder = tmp_path / "ledger.jsonl.gz", tmp_path / "folder"
    command("export", file, "--database", url).succeeded()
    folder.mkdir()
    before = file.read_bytes()
    command("export", folder, "--database", url).refused()
    command("export", tmp_path / "nowhere" / "ledger.jsonl", "--database", url).refused()
    tamper(played.database, "DELETE FROM ledger_log WHERE position = 5")
    played.ledger.seal()
    for target in (file, tmp_path / "new.jsonl"):
        assert "position 5 of the log" in command("export", target, "--force", "--database", url).refused()
    assert file.read_bytes() == before
    assert sorted(each.name for each in tmp_path.iterdir()) == ["folder", "ledger.jsonl.gz"]


def test_an_export_never_writes_over_a_file_unless_it_is_told_to(
    command: Command, url: str, played: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, link = tmp_path / "ledger.jsonl", tmp_path / "link.jsonl"
    file.write_text("the only copy")
    link.symlink_to(tmp_path / "nowhere")
    for there in (file, link):
        assert "--force replaces it" in command("export", there, "--database", url).refused()
    assert "is a folder" in command("export", tmp_path, "--force", "--database", url).refused()
    assert file.read_text() == "the only copy"
    assert played.ledger.head().position == 0, "refused before anything is sealed"

    def meanwhile(*_: Any, **__: Any) -> Any:
        (tmp_path / "new.jsonl").write_text("somebody else's")
        return played.ledger.head()

    with monkeypatch.context() as patched:
        patched.setattr("points_platform.cli.ledger.export_log", meanwhile)
        assert "--force" in command("export", tmp_path / "new.jsonl", "--database", url).refused()
    assert (tmp_path / "new.jsonl").read_text() == "somebody else's"
    command("export", file, "--force", "--database", url).succeeded()
    assert file.read_text().startswith('{"position":1,')


@pytest.fixture
def exported(command: Command, tmp_path: Path) -> bytes:
    source, file = f"sqlite:///{tmp_path}/source.db", tmp_path / "exported.jsonl"
    with Database(source) as database:
        database.create_schema()
        play(database)
    command("export", file, "--database", source).succeeded()
    return file.read_bytes()


def test_an_import_of_a_damaged_file_names_the_line(command: Command, exported: bytes, tmp_path: Path) -> None:
    lines = exported.split(b"\n")
    packed = gzip.compress(exported)
    files = {
        "no letter.jsonl": (b"\n".join([*lines[:6], b"\xff" + lines[6], *lines[7:]]), 7),
        "an amount.jsonl": (b"\n".join([*lines[:3], lines[3].replace(b"30", b"31"), *lines[4:]]), 4),
        "cut.jsonl": (b"\n".join(lines[:5]) + b"\n", 6),
        "empty.jsonl": (b"", 1),
        "empty.jsonl.gz": (b"", 1),
        "plain.jsonl.gz": (exported, 1),
        "packed.jsonl": (packed, 1),
    }
    named: dict[str, tuple[str, str]] = {}
    for name, (content, line) in files.items():
        file, target = tmp_path / name, tmp_path / f"{name}.db"
        file.write_bytes(content)
        refusal = command("import", file, "--database", f"sqlite:///{target}").refused()
        named[name] = refusal.split(" must be ")[0], f"error: line {line}"
        with Database(f"sqlite:///{target}") as database:
            assert LedgerService(database).head().position == 0
            assert len(World(database).snapshot()["ledger_transactions"]) == 0
    assert {name: pair for name, pair in named.items() if pair[0] != pair[1]} == {}


def test_a_lone_surrogate_in_a_file_is_one_line_too(command: Command, exported: bytes, tmp_path: Path) -> None:
    file = tmp_path / "surrogate.jsonl"
    file.write_bytes(exported.replace(b"top_up", b"\\ud800"))
    assert "error: line 1 must be " in command("import", file, "--database", f"sqlite:///{tmp_path}/x.db").refused()


def test_an_import_of_a_cut_gzip_file_is_refused(command: Command, exported: bytes, tmp_path: Path) -> None:
    """Where exactly cannot be said: what is cut is the compressed stream."""
    packed = gzip.compress(exported)
    for size in (5, 20, len(packed) // 2, len(packed) - 9, len(packed) - 8, len(packed) - 1):
        file = tmp_path / "cut.jsonl.gz"
        file.write_bytes(packed[:size])
        assert "error: line " in command("import", file, "--database", f"sqlite:///{tmp_path}/{size}.db").refused()
    for at in (12, len(packed) // 2, len(packed) - 6):
        file.write_bytes(packed[:at] + bytes([packed[at] ^ 0x55]) + packed[at + 1 :])
        assert "error: line " in command("import", file, "--database", f"sqlite:///{tmp_path}/at{at}.db").refused()


def test_an_import_goes_into_no_ledger_that_is_there(
    command: Command, exported: bytes, tmp_path: Path, url: str, database: Database
) -> None:
    world = World(database)
    world.credit("ana", 1)
    rows = world.snapshot()
    file = tmp_path / "exported.jsonl"
    said = command("import", file, "--database", url).refused()
    assert "database must be a new one" in said
    assert "not 'one in use: its ledger has transactions of its own'" in said
    assert world.snapshot() == rows
    world.ledger.seal()
    rows = world.snapshot()
    said = command("import", file, "--database", url).refused()
    assert "not 'one in use: its log is another one, with 1 transactions'" in said
    assert world.snapshot() == rows


# ── statements as CSV ─────────────────────────────────────────────────────────────────────────────


def test_a_statement_as_csv_has_every_line_oldest_first(
    command: Command, url: str, played: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "MAX_PAGE", 3)
    out = command("statement", "user:ana", "--csv", "--database", url).succeeded()
    lines = played.ledger.entries("user:ana", "points", limit=100).items
    rows = list(csv.DictReader(io.StringIO(out)))
    assert len(lines) == 14
    assert [list(row) for row in rows] == [list(rows[0])] * len(lines)
    for row, line in zip(rows, lines, strict=True):
        assert (int(row["amount"]), int(row["balance_after"])) == (line.amount, line.balance_after)
        for name in ("transaction_id", "operation", "reason", "bucket", "idempotency_key"):
            assert row[name] == getattr(line, name)
        assert row["escrow_id"] == (line.escrow_id or "")
        assert row["posted_at"] == line.posted_at.isoformat()
    only = csv.DictReader(
        io.StringIO(command("statement", "model:luna", "--bucket", "earned", "--csv", "--database", url).succeeded())
    )
    assert [row["amount"] for row in only] == ["30", "20"]


def test_no_cell_of_a_csv_is_a_formula(command: Command, url: str, database: Database) -> None:
    """Keys and queue items come from outside, and a spreadsheet would compute them."""
    world = World(database)
    world.credit(idempotency_key="=1+1", request_id="+1")
    world.hold(amount=30, queue_item_id='@SUM(1;"x")', idempotency_key="-2", request_id="\uff1d1")
    rows = list(csv.DictReader(io.StringIO(command("statement", "user:ana", "--csv", "--database", url).succeeded())))
    assert [row["idempotency_key"] for row in rows] == ["'=1+1", "'-2", "'-2"]
    assert [row["request_id"] for row in rows] == ["'+1", "'\uff1d1", "'\uff1d1"]
    assert [row["queue_item_id"] for row in rows] == ["", """'@SUM(1;"x")""", """'@SUM(1;"x")"""]
    assert sorted(row["amount"] for row in rows[1:]) == ["-30", "30"], "an amount is a number"
    told = json.loads(command("statement", "user:ana", "--json", "--oldest-first", "--database", url).succeeded())
    assert [line["idempotency_key"] for line in told["lines"]] == ["=1+1", "-2", "-2"], "JSON has it as it is"


@pytest.mark.parametrize("text", ["\tx", "\rx", "\nx", "=x", "+x", "-x", "@x", "\uff0bx", "\uff0dx", "\uff20x"])
def test_every_beginning_of_a_formula_is_made_harmless(
    played: World, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    line = played.ledger.entries("user:ana", "points").items[0]
    tables.write_csv([replace(line, reason=text)])
    _, _, row = capsys.readouterr().out.partition("\n")
    assert re.search(f""",100,.*,"?'{re.escape(text)}"?,""", row)


def test_a_statement_as_csv_of_nobody_is_its_header_alone(command: Command, sqlite_url: str) -> None:
    out = command("statement", "user:nobody", "--csv", "--database", sqlite_url).succeeded()
    assert list(csv.DictReader(io.StringIO(out))) == []
    assert out.startswith("account_id,bucket,amount,")
    assert "error: account_id" in command("statement", "nobody", "--csv", "--database", sqlite_url).refused()


# ── typing errors ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("seal",), 1),
        (("seal", "--print-head"), 1),
        (("verify",), 2),
        (("verify", "--json"), 2),
        (("rebuild",), 1),
        (("rebuild", "--check"), 2),
        (("rebuild", "--apply"), 1),
        (("export", "ledger.jsonl"), 1),
        (("statement", "user:ana", "--csv"), 1),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else str(value),
)
def test_a_typing_error_makes_no_database_and_no_file(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], status: int
) -> None:
    monkeypatch.chdir(tmp_path)
    for url in (f"sqlite:///{tmp_path}/typo.db", "nonsense", "sqlite://", "mysql://x/y"):
        outcome = command(*arguments, "--database", url)
        outcome.refused(status)
        assert outcome.out == ""
    command(*arguments).refused(status)
    assert list(tmp_path.iterdir()) == []


def test_an_import_names_its_database_and_its_file(
    command: Command, tmp_path: Path, exported: bytes, sqlite_url: str
) -> None:
    assert "which database?" in command("import", tmp_path / "exported.jsonl").refused()
    command("import", "--database", sqlite_url).refused()
    command("export", "--database", sqlite_url).refused()
    command("import", tmp_path / "missing.jsonl", "--database", f"sqlite:///{tmp_path}/target.db").refused()
    command("import", tmp_path, "--database", f"sqlite:///{tmp_path}/target.db").refused()
    (tmp_path / "folder.gz").mkdir()
    command("import", tmp_path / "folder.gz", "--database", f"sqlite:///{tmp_path}/target.db").refused()


# ── history ───────────────────────────────────────────────────────────────────────────────────────


def test_a_statement_is_narrowed_by_each_filter(command: Command, url: str, played: World) -> None:
    held = played.wallets.list_escrows(user_id="ana").items[0].escrow_id
    filters = {
        ("--operation", "credit"): 1,
        ("--reason", "queue_timeout"): 2,
        ("--escrow-item", held): 3,
        ("--queue-item", "queue-2"): 0,
        ("--request", "request-1"): 14,
        ("--since", "1h"): 14,
        ("--until", "1h"): 0,
        ("--operation", "hold", "--bucket", "escrow"): 4,
    }
    for given, lines in filters.items():
        out = command("statement", "user:ana", *given, "--csv", "--database", url).succeeded()
        assert len(list(csv.DictReader(io.StringIO(out)))) == lines, given


def test_a_balance_as_of_a_time_is_that_of_then(command: Command, url: str, played: World) -> None:
    first = played.ledger.entries("user:ana", "points").items[0].posted_at.isoformat()
    assert " 100 " in command("balance", "user:ana", "--at", first, "--database", url).succeeded()
    assert " 0 " in command("balance", "user:ana", "--at", "1h", "--database", url).succeeded()
    assert " 45 " in command("balance", "user:ana", "--at", "0s", "--database", url).succeeded()
    assert " 50 " in command("balance", "model:luna", "--at", "0s", "--database", url).succeeded()
    assert "future" in command("balance", "user:ana", "--at", "2999-01-01T00:00:00Z", "--database", url).refused()


def test_earnings_are_given_per_period_of_a_zone(command: Command, url: str, played: World) -> None:
    for per, rows in (("day", (3, 4)), ("month", (1, 2))):
        out = command(
            "earnings", "luna", "--per", per, "--since", "2d", "--timezone", "Europe/Vienna", "--database", url
        ).succeeded()
        earned = [line.split()[1] for line in out.splitlines() if line[:2] == "20"]
        assert len(earned) in rows
        assert (earned[-1], set(earned[:-1]) <= {"0"}) == ("50", True)
    for wrong in (("--per", "hour"), ("--timezone", "Mars"), ("--since", "yesterday")):
        command("earnings", "luna", *wrong, "--database", url).refused()
