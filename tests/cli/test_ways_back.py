"""For every finding the document names a way back to a clean ``verify``: here each is planted, and the way gone."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from points_platform.cli import main as cli
from points_platform.core import Database
from points_platform.ledger import verify as ledger_verify
from points_platform.ledger.findings import KINDS, LASTING
from points_platform.wallets import verify as wallets_verify
from points_platform.wallets.expected import EXPECTED
from points_platform.wallets.verify import ROW
from support.world import World

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "OPERATING.md"
# In which a round of them is gone.
ORDER = ["put back", "remove", "seal", "accept", "repair", "new head", "the others first"]
# What the evening below has been taken by the test itself.
OF_WALLS = {"trigger_missing", "constraint_missing", "index_missing"}
WALLS = "triggers, constraints and indexes"
EARLY_ID = "01890a5d-ac96-774b-bcce-b302099a8057"
LATE_ID = "ffffffff-ac96-774b-bcce-b302099a8057"


def ways() -> dict[str, list[str]]:
    """The document's table: a finding's ways back, in their order."""
    _, _, rest = DOCUMENT.read_text(encoding="utf-8").partition("| finding | what it names | the way back |\n")
    rows = [line.strip("|").split(" | ") for line in rest.split("\n\n")[0].splitlines()[1:]]
    return {kind: row[-1].strip().split(", ") for row in rows for kind in re.findall(r"`(\w+)`", row[0])}


WAYS = ways()


@dataclass
class Damaged:
    """A sealed evening without its walls, and an operator who goes by the document."""

    world: World
    url: str
    file: Path
    run: Callable[..., tuple[int, str]]
    ids: dict[str, str] = field(default_factory=dict)
    items: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        send, ids = self.world, self.ids
        ids["credit"] = send.credit("ana", 100).transaction_id
        for name in ("settled", "refunded", "split", "held", "also held"):
            held = send.hold("ana", 10)
            ids[f"hold {name}"], self.items[name] = held.transaction_id, held.escrow_id
        ids["settle"] = send.settle(self.items["settled"], 10).transaction_id
        ids["refund"] = send.refund(self.items["refunded"], 10).transaction_id
        ids["split"] = send.partial_settle(self.items["split"], 4, 6).transaction_id
        ids["deposit"] = send.deposit("cleo", 60, reference="one").transaction_id
        ids["second deposit"] = send.deposit("dora", 50, reference="two").transaction_id
        ids["gems"] = send.credit("ana", 7, currency="gems").transaction_id
        ids["last"] = send.credit("ben", 3).transaction_id
        self.head = str(send.ledger.seal().head)
        pull_down_the_walls(self.world.database)

    def tamper(self, *statements: str) -> None:
        engine = create_engine(self.url)
        with engine.begin() as connection:
            if engine.dialect.name == "sqlite":
                connection.execute(text("PRAGMA ignore_check_constraints = ON"))
            for statement in statements:
                connection.execute(text(statement.format(**self.named)))
        engine.dispose()

    @property
    def named(self) -> dict[str, str]:
        called = {name.replace(" ", "_"): f"'{id_}'" for name, id_ in self.ids.items()}
        return called | {f"item_{name.replace(' ', '_')}": f"'{id_}'" for name, id_ in self.items.items()}

    def findings(self) -> list[dict[str, Any]]:
        known = ("--known", self.file) if self.file.exists() else ()
        status, out = self.run("verify", "--head", self.head, *known, "--json", "--database", self.url)
        everything: list[dict[str, Any]] = json.loads(out)["findings"]
        assert status == (1 if everything else 0)
        return [each for each in everything if each["kind"] not in OF_WALLS and each["ids"].get("check") != WALLS]

    def go_back(self) -> list[str]:
        """Each round takes the next way of each finding that is still there; returns what was done."""
        done: list[str] = []
        for number in range(4):
            found = self.findings()
            if not found:
                return done
            steps = {step_of(each, number) for each in found}
            for step in sorted(steps, key=ORDER.index):
                done.append(step)
                self.take(step, {each["kind"] for each in found if step in WAYS[each["kind"]]})
        pytest.fail(f"no way back from {self.findings()}")

    def take(self, step: str, kinds: set[str]) -> None:
        database = ("--database", self.url)
        if step == "accept":
            options = [part for kind in sorted(kinds) for part in ("--accept", kind)]
            self.run("verify", "--known", self.file, *options, "--by", "eva", "--reason", "the test", *database)
        elif step == "repair":
            self.run("rebuild", "--apply", *(("--known", self.file) if self.file.exists() else ()), *database)
        elif step in {"seal", "new head"}:
            self.head = self.run("seal", "--print-head", *database)[1].strip() if step == "new head" else self.head
            self.run("seal", *database)
        elif step == "remove":
            self.tamper("DELETE FROM user_wallets WHERE owner_id = 'user:ben'")


def step_of(finding: dict[str, Any], number: int) -> str:
    listed = WAYS[finding["kind"]]
    return listed[min(number, len(listed) - 1)]


def pull_down_the_walls(database: Database) -> None:
    with database.engine.begin() as connection:
        if database.is_sqlite:
            for name in connection.scalars(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).all():
                connection.execute(text(f"DROP TRIGGER {name}"))
            # SQLite's own indexes cannot be dropped; a copy of the table has none.
            for table in ("ledger_transactions", "ledger_entries"):
                connection.execute(text(f"CREATE TABLE copied AS SELECT * FROM {table}"))
                connection.execute(text(f"DROP TABLE {table}"))
                connection.execute(text(f"ALTER TABLE copied RENAME TO {table}"))
            return
        for table in ("ledger_transactions", "ledger_entries", "ledger_log"):
            connection.execute(text(f"ALTER TABLE {table} DISABLE TRIGGER ALL"))
        walls = text(
            "SELECT conrelid::regclass::text, conname FROM pg_constraint JOIN pg_class c ON c.oid = conrelid"
            " WHERE c.relname LIKE 'ledger%' AND contype IN ('c', 'u')"
        )
        for table, name in connection.execute(walls).all():
            connection.execute(text(f"ALTER TABLE {table} DROP CONSTRAINT {name}"))


@pytest.fixture
def damaged(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Damaged]:
    def run(*arguments: str | Path) -> tuple[int, str]:
        status = cli.main([str(argument) for argument in arguments])
        return status, capsys.readouterr().out

    with Database(url) as database:
        yield Damaged(World(database), url, tmp_path / "known.jsonl", run)


COLUMNS = (
    "owner_id, operation, idempotency_key, request_id, reason, currency, occurred_at, escrow_id, queue_item_id,"
    " feature_type, model_id, authorization_id, metadata, details"
)
ENTRY = "owner_id, currency, account_id, bucket, amount, balance_before, balance_after, wallet_version, posted_at"


def again(name: str, *, id_: str = LATE_ID, changes: dict[str, str] | None = None) -> list[str]:
    """The transaction once more, with its entries at the end of each account's history; the wallets do not know it."""
    of = f"FROM {{table}} WHERE transaction_id = {{{name}}}"
    header = COLUMNS
    for column, value in {"idempotency_key": "'forged'", **(changes or {})}.items():
        header = header.replace(column, value)
    last = (
        "SELECT MAX(wallet_version) FROM ledger_entries l WHERE l.account_id = e.account_id AND l.currency = e.currency"
    )
    sums = (
        "SELECT SUM(amount) FROM ledger_entries l WHERE l.account_id = e.account_id AND l.currency = e.currency"
        " AND l.bucket = e.bucket"
    )
    wallets = (
        f"CASE WHEN wallet_version IS NULL THEN NULL ELSE ({sums}) END",
        f"CASE WHEN wallet_version IS NULL THEN NULL ELSE ({sums}) + amount END",
        f"CASE WHEN wallet_version IS NULL THEN NULL ELSE ({last}) + 1 END",
        "(SELECT MAX(posted_at) FROM ledger_entries)",
    )
    entries = ", ".join((*ENTRY.split(", ")[:5], *wallets))
    return [
        f"INSERT INTO ledger_transactions (transaction_id, {COLUMNS}) SELECT '{id_}', {header} "
        + of.replace("{table}", "ledger_transactions"),
        f"INSERT INTO ledger_entries (transaction_id, {ENTRY}) SELECT '{id_}', {entries} FROM ledger_entries e"
        f" WHERE transaction_id = {{{name}}}",
    ]


BEN = "account_id = 'user:ben'"
PLANTS: dict[str, list[str]] = {
    "user_wallet_differs": ["UPDATE user_wallets SET available = available + 1"],
    "user_wallet_missing": ["DELETE FROM user_wallets"],
    "user_wallet_unexplained": ["UPDATE user_wallets SET owner_id = 'user:x' || owner_id"],
    "model_wallet_differs": ["UPDATE model_wallets SET earned = 1"],
    "model_wallet_missing": ["DELETE FROM model_wallets"],
    "model_wallet_unexplained": ["UPDATE model_wallets SET owner_id = 'model:sol'"],
    "escrow_item_differs": ["UPDATE escrow_items SET reason = 'gift'"],
    "escrow_item_missing": ["DELETE FROM escrow_items"],
    "escrow_item_unexplained": ["UPDATE escrow_items SET owner_id = 'user:x' WHERE status = 'held'"],
    "deposit_claim_differs": ["UPDATE deposit_claims SET amount = 1"],
    "deposit_claim_missing": ["DELETE FROM deposit_claims"],
    "deposit_claim_unexplained": ["UPDATE deposit_claims SET source = 'x'"],
    # A refund that the points of another hold have paid for.
    "escrow_balance": [
        *again("refund", changes={"escrow_id": "{item_settled}"}),
        "UPDATE user_wallets SET available = available + 10, escrow = escrow - 10, version = version + 1"
        " WHERE owner_id = 'user:ana' AND currency = 'points'",
    ],
    "balance_gap": ["UPDATE ledger_entries SET balance_before = 5, balance_after = 8 WHERE transaction_id = {last}"],
    "balance_sum": ["UPDATE ledger_entries SET balance_after = 4 WHERE transaction_id = {last} AND " + BEN],
    "balance_limit": [
        "UPDATE ledger_entries SET balance_before = -4, balance_after = -1 WHERE transaction_id = {last} AND " + BEN
    ],
    "entry_incomplete": [
        "UPDATE ledger_entries SET balance_before = NULL, balance_after = NULL WHERE transaction_id = {last}"
    ],
    "operation_unknown": ["UPDATE ledger_transactions SET operation = 'donate' WHERE transaction_id = {last}"],
    "transaction_without_entries": ["DELETE FROM ledger_entries WHERE transaction_id = {last}"],
    "entry_without_transaction": ["DELETE FROM ledger_transactions WHERE transaction_id = {last}"],
    "transaction_unbalanced": ["UPDATE ledger_entries SET amount = -4 WHERE bucket = 'issued' AND amount = -3"],
    "illegal_movement": ["UPDATE ledger_transactions SET operation = 'refund' WHERE transaction_id = {last}"],
    "authorization": ["UPDATE ledger_transactions SET authorization_id = NULL WHERE transaction_id = {settle}"],
    "transaction_escrow": ["UPDATE ledger_transactions SET escrow_id = 'x' WHERE transaction_id = {last}"],
    "key_used_twice": [
        "UPDATE ledger_transactions SET idempotency_key = (SELECT idempotency_key FROM ledger_transactions"
        " WHERE transaction_id = {credit}) WHERE transaction_id = {gems}"
    ],
    "escrow_begun_twice": again("hold_held", changes={"reason": "'gift'"}),
    "escrow_ended_twice": again("refund", changes={"reason": "'gift'"}),
    "deposit_claimed_twice": again(
        "deposit", changes={"occurred_at": "(SELECT MAX(occurred_at) FROM ledger_transactions)"}
    ),
    "from_the_future": [
        "UPDATE ledger_transactions SET occurred_at = '2999-12-31 00:00:00.000000' WHERE transaction_id = {last}"
    ],
    "version_gap": ["UPDATE ledger_entries SET wallet_version = 3 WHERE transaction_id = {last} AND " + BEN],
    "version_used_twice": [
        *again("gems"),
        f"UPDATE ledger_entries SET wallet_version = 1 WHERE transaction_id = '{LATE_ID}' AND bucket = 'available'",
    ],
    "posted_into_the_past": [
        "UPDATE ledger_entries SET posted_at = (SELECT occurred_at FROM ledger_transactions"
        " WHERE transaction_id = {credit}) WHERE transaction_id = {split} AND account_id = 'model:luna'"
    ],
    "posted_apart": [
        "UPDATE ledger_entries SET posted_at = (SELECT occurred_at FROM ledger_transactions"
        " WHERE transaction_id = {last}) WHERE transaction_id = {refund} AND bucket = 'escrow'"
    ],
    "log_order": [
        "UPDATE ledger_entries SET wallet_version = 20 - wallet_version WHERE " + "account_id = 'model:luna'"
    ],
    "log_gap": ["DELETE FROM ledger_log WHERE position = 4"],
    "sealed_transaction_missing": [
        "DELETE FROM ledger_entries WHERE transaction_id = {hold_also_held}",
        "DELETE FROM ledger_transactions WHERE transaction_id = {hold_also_held}",
    ],
    "seal_broken": ["UPDATE ledger_transactions SET reason = 'gift' WHERE transaction_id = {last}"],
    "log_cut": ["DELETE FROM ledger_log WHERE position > 4"],
    "log_rewritten": [
        "DELETE FROM ledger_log",
        "INSERT INTO ledger_log (position, transaction_id, hash) SELECT 13, 'x', '" + "f" * 64 + "'",
        "DELETE FROM ledger_log WHERE position <> 13",
    ],
    "unreadable": ["UPDATE user_wallets SET created_at = {never} WHERE owner_id = 'user:ben'"],
    "more_findings": ["UPDATE user_wallets SET available = available + 1"],
}


def test_the_document_has_a_way_back_for_every_finding_and_for_no_other() -> None:
    assert sorted(WAYS) == sorted(KINDS)
    assert {step for listed in WAYS.values() for step in listed} == set(ORDER)
    accepted = {kind for kind, listed in WAYS.items() if "accept" in listed}
    assert accepted == LASTING
    whats = ("differs", "missing", "unexplained")
    assert {f"{ROW[table.name]}_{what}" for table in EXPECTED for what in whats} <= set(KINDS)


def test_the_document_explains_each_way() -> None:
    said = DOCUMENT.read_text(encoding="utf-8")
    assert [step for step in ORDER[:-1] if f"* **{step}**: " not in said] == []


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in OF_WALLS])
def test_the_way_back_from_a_finding_leads_to_a_clean_verify(
    damaged: Damaged, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    never = "'yesterday'" if damaged.world.database.is_sqlite else "'infinity'"
    if kind == "more_findings":
        for module in (ledger_verify, wallets_verify):
            monkeypatch.setattr(module, "MOST_FINDINGS", 2)
    damaged.ids["never"] = "x"
    damaged.tamper(*(statement.replace("{never}", never) for statement in PLANTS[kind]))
    found = damaged.findings()
    assert kind in {each["kind"] for each in found}, found
    if kind in LASTING - {"escrow_balance"}:
        alone = wallets_verify.verify(damaged.world.database, ledger_only=True)
        assert kind in {each.kind for each in alone}, "what the ledger keeps is told by the ledger alone"
    assert damaged.go_back()
    # And so it stays while everybody goes on.
    for user, currency in (("ana", "points"), ("ana", "gems"), ("ben", "points"), ("cleo", "points")):
        damaged.world.credit(user, 2, currency=currency)
    damaged.world.settle(damaged.world.hold("cleo", 1).escrow_id, 1, user_id="cleo")
    damaged.run("seal", "--database", damaged.url)
    assert damaged.findings() == []


MAKES_INDEX = "CREATE INDEX ledger_transactions_escrow[^;]*"
# How each wall is taken, and which statement of the schema's script makes it.
TAKEN = {
    ("trigger_missing", "sqlite"): ("DROP TRIGGER {trigger}", "CREATE TRIGGER {trigger} .*?END"),
    ("trigger_missing", "postgresql"): ("DROP TRIGGER {trigger} ON ledger_entries", "CREATE TRIGGER {trigger} [^;]*"),
    ("index_missing", "sqlite"): ("DROP INDEX ledger_transactions_escrow", MAKES_INDEX),
    ("index_missing", "postgresql"): ("DROP INDEX ledger_transactions_escrow", MAKES_INDEX),
    ("constraint_missing", "postgresql"): (
        "ALTER TABLE ledger_entries DROP CONSTRAINT ledger_entries_amount",
        r"CONSTRAINT ledger_entries_amount CHECK \([^)]*\)",
    ),
}
TRIGGERS = {
    "sqlite": "SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'ledger_entries'",
    "postgresql": "SELECT tgname FROM pg_trigger JOIN pg_class c ON c.oid = tgrelid WHERE c.relname = 'ledger_entries'",
}


@pytest.mark.parametrize(("kind", "dialect"), TAKEN)
def test_a_wall_is_put_back_from_the_script_of_the_schema(
    request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], kind: str, dialect: str
) -> None:
    url = request.getfixturevalue(f"{dialect}_url")
    with Database(url) as database:
        World(database).credit()
        with database.engine.begin() as connection:
            trigger = connection.scalars(text(TRIGGERS[dialect])).first()
            take, made = (part.replace("{trigger}", str(trigger)) for part in TAKEN[kind, dialect])
            connection.execute(text(take))
        assert [cli.main(["verify", "--database", url]), kind in capsys.readouterr().out] == [1, True]
        cli.main(["schema", "sql", "--dialect", dialect])
        [statement] = re.findall(made, capsys.readouterr().out, flags=re.DOTALL)
        again = statement if statement.startswith("CREATE") else f"ALTER TABLE ledger_entries ADD {statement}"
        with database.engine.begin() as connection:
            connection.exec_driver_sql(again)
        assert cli.main(["verify", "--database", url]) == 0


def test_a_table_of_sqlite_that_has_lost_a_constraint_is_made_anew(
    sqlite_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Database(sqlite_url) as database:
        World(database).credit()
        with database.engine.begin() as connection:
            for statement in (
                "CREATE TABLE copied AS SELECT * FROM ledger_entries",
                "DROP TABLE ledger_entries",
                "ALTER TABLE copied RENAME TO ledger_entries",
            ):
                connection.execute(text(statement))
    assert [cli.main(["verify", "--database", sqlite_url]), "constraint_missing" in capsys.readouterr().out] == [
        1,
        True,
    ]
    log, anew = str(tmp_path / "log.jsonl"), f"sqlite:///{tmp_path}/anew.db"
    assert cli.main(["export", log, "--database", sqlite_url]) == 0
    assert cli.main(["import", log, "--database", anew]) == 0
    assert cli.main(["verify", "--database", anew]) == 0


def test_a_hold_that_began_twice_has_the_points_of_both_until_it_ends(damaged: Damaged) -> None:
    """So what is in escrow is not stuck there; and a second repair finds nothing more to do."""
    damaged.tamper(*PLANTS["escrow_begun_twice"])
    assert damaged.go_back() == ["accept", "repair"]
    item = damaged.items["held"]
    assert damaged.world.wallets.get_escrow(item).amount == 20
    repair = ("rebuild", "--apply", "--known", damaged.file, "--database", damaged.url)
    assert damaged.run(*repair) == (0, "nothing to repair\n")
    damaged.world.settle(item, 20)
    assert damaged.run(*repair) == (0, "nothing to repair\n")
    assert damaged.findings() == []


def test_a_reference_that_was_claimed_twice_is_the_first_deposit_s(damaged: Damaged) -> None:
    damaged.tamper(*PLANTS["deposit_claimed_twice"])
    assert damaged.go_back() == ["accept", "repair"]
    with damaged.world.database.engine.connect() as connection:
        claimed = text("SELECT transaction_id FROM deposit_claims WHERE reference = 'one'")
        assert connection.scalars(claimed).all() == [damaged.ids["deposit"]]
    assert damaged.world.wallets.get_user_balance("cleo").available == 120
