"""Old damage that was accepted, told from what is new; and rows that are put right beside it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from points_platform.cli import main as cli
from points_platform.core import Database
from points_platform.core.values import now
from points_platform.wallets.verify import verify
from support.world import World


@dataclass(frozen=True)
class Outcome:
    status: int
    out: str
    err: str


Command = Callable[..., Outcome]
NOBODY_CREDITED = "UPDATE user_wallets SET available = available + 7 WHERE owner_id = 'user:ana'"


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], url: str) -> Command:
    def command(*arguments: str | Path) -> Outcome:
        status = cli.main([*(str(argument) for argument in arguments), "--database", url])
        return Outcome(status, *capsys.readouterr())

    return command


@pytest.fixture
def known(tmp_path: Path) -> Path:
    return tmp_path / "known.jsonl"


@pytest.fixture
def used(database: Database) -> World:
    """A balance was changed by hand and then used, so that the ledger has it for ever."""
    world = World(database)
    world.credit("ana", 100)
    execute(world, NOBODY_CREDITED)
    world.hold("ana", 10)
    return world


def execute(world: World, *statements: str) -> None:
    with world.database.engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


ACCEPT = ("--accept", "balance_gap", "--by", "eva", "--reason", "by hand, ticket 7")


def test_a_balance_changed_by_hand_and_then_used_is_put_right_and_stays_so(
    command: Command, used: World, known: Path
) -> None:
    refused = command("rebuild", "--apply")
    assert (refused.status, "the ledger itself has findings" in refused.err) == (1, True)
    accepted = command("verify", "--known", known, *ACCEPT)
    assert accepted.status == 1, "the wallet is not right yet"
    kinds = [line.split(" ")[0] for line in accepted.out.splitlines()]
    assert kinds == ["user_wallet_differs", "1"]
    repaired = command("rebuild", "--apply", "--known", known)
    assert (repaired.status, repaired.out.splitlines()[-1]) == (0, "1 rows repaired")
    assert used.wallets.get_user_balance("ana").available == 90
    clean = command("verify", "--known", known)
    assert (clean.status, clean.out) == (
        0,
        "nothing found, beside 1 that are known: everything else is as the ledger says\n",
    )
    used.hold("ana", 10)
    used.credit("ana", 1)
    assert command("verify", "--known", known).status == 0, "what follows begins with the sum, which is no gap"
    assert command("verify").status == 1


def test_what_was_accepted_says_who_why_and_when(command: Command, used: World, known: Path) -> None:
    before = now()
    command("verify", "--known", known, *ACCEPT)
    (line,) = map(json.loads, known.read_text().splitlines())
    (finding,) = [each for each in verify(used.database) if each.kind == "balance_gap"]
    assert (line["by"], line["reason"]) == ("eva", "by hand, ticket 7")
    assert before <= datetime.fromisoformat(line["at"]) <= now() + timedelta(seconds=1)
    assert {name: line[name] for name in ("kind", "ids", "expected", "found")} == vars(finding)
    answer = json.loads(command("verify", "--known", known, "--json").out)
    assert [each["kind"] for each in answer["findings"]] == ["user_wallet_differs"]
    assert answer["known"] == [line | {"at": answer["known"][0]["at"]}]
    again = command("verify", "--known", known, *ACCEPT)
    assert (again.status, len(known.read_text().splitlines())) == (1, 1), "what is known is not written again"


def test_new_damage_of_the_same_kind_and_of_the_same_place_is_told(command: Command, used: World, known: Path) -> None:
    command("verify", "--known", known, *ACCEPT)
    command("rebuild", "--apply", "--known", known)
    execute(used, NOBODY_CREDITED.replace("7", "9"))
    used.hold("ana", 10)
    assert "balance_gap" in command("verify", "--known", known).out
    assert command("rebuild", "--apply", "--known", known).status == 1
    command("verify", "--known", known, *ACCEPT)
    assert command("rebuild", "--apply", "--known", known).status == 0
    assert command("verify", "--known", known).status == 0
    lines = known.read_text().splitlines()
    assert len(lines) == 2
    other = json.loads(lines[0]) | {"found": 1}
    known.write_text(json.dumps(other) + "\n" + lines[1] + "\n")
    assert "balance_gap" in command("verify", "--known", known).out, "known is what says the very same"


def test_one_of_several_is_accepted_by_an_id_of_its_own(command: Command, used: World, known: Path) -> None:
    execute(used, NOBODY_CREDITED)
    used.hold("ana", 10)
    first, second = (each.ids["transaction_id"] for each in verify(used.database) if each.kind == "balance_gap")
    options = ("--accept", f"balance_gap={second}", *ACCEPT[2:])
    out = command("verify", "--known", known, *options).out
    assert first in out
    assert [json.loads(line)["ids"]["transaction_id"] for line in known.read_text().splitlines()] == [second]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--accept", "balance_gap"), "--known FILE"),
        (("--known", "{known}", "--accept", "balance_gap"), "--by NAME"),
        (("--known", "{known}", "--accept", "balance_gap", "--by", "eva"), "--reason TEXT"),
        (("--known", "{known}", "--by", "eva", "--reason", "why"), "are for --accept"),
        (("--known", "{known}", "--accept", "user_wallet_differs", *ACCEPT[2:]), "can be put right"),
        (("--known", "{known}", "--accept", "nonsense", *ACCEPT[2:]), "nonsense cannot be accepted"),
        (("--known", "{known}", "--accept", "balance_gap=x", *ACCEPT[2:]), "there is no finding balance_gap=x"),
        (("--known", "{known}", "--accept", "seal_broken", *ACCEPT[2:]), "there is no finding seal_broken"),
        (("--known", "{known}", "--accept", "balance_gap", "--by", "e\nva", "--reason", "why"), "by must be"),
        (("--known", "{known}", "--accept", "balance_gap", "--by", "eva", "--reason", "w\nhy"), "reason must be"),
        (
            (
                "--known",
                "{known}",
            ),
            "No such file",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_accepted_is_one_line_and_nothing_is_written(
    command: Command, used: World, known: Path, options: tuple[str, ...], said: str
) -> None:
    outcome = command("verify", *(option.format(known=known) for option in options))
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert said in outcome.err
    assert not known.exists()


@pytest.mark.parametrize(
    "line",
    [
        "no JSON",
        "[]",
        "5",
        "{}",
        '{"kind": "seal_broken"}',
        '{"kind": "user_wallet_differs", "ids": {}, "expected": 1, "found": 2, "by": "e", "reason": "w", "at": "AT"}',
        '{"kind": "seal_broken", "ids": [], "expected": 1, "found": 2, "by": "e", "reason": "w", "at": "AT"}',
        '{"kind": ["seal_broken"], "ids": {}, "expected": 1, "found": 2, "by": "e", "reason": "w", "at": "AT"}',
        '{"kind": "seal_broken", "ids": {}, "expected": 1, "found": 2, "by": "", "reason": "w", "at": "AT"}',
        '{"kind": "seal_broken", "ids": {}, "expected": 1, "found": 2, "by": "e", "reason": "w", "at": "yesterday"}',
        '{"kind": "seal_broken", "ids": {}, "expected": 1, "found": 2, "by": "e", "reason": "w", "at": "AT", "x": 1}',
        "\\xff",
    ],
)
def test_a_file_that_is_none_is_named_with_its_line(command: Command, used: World, known: Path, line: str) -> None:
    command("verify", "--known", known, *ACCEPT)
    content = line.replace("AT", "2026-01-31T20:00:00Z").encode().replace(b"\\xff", b"\xff")
    known.write_bytes(known.read_bytes() + content + b"\n")
    outcome = command("verify", "--known", known)
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert "is no file of known findings" in outcome.err
    assert "line 2" in outcome.err or content == b"\xff"
    assert outcome.out == ""


def test_a_row_that_the_ledger_cannot_explain_within_the_rules_is_named_and_left_and_others_are_repaired(
    command: Command, used: World, known: Path
) -> None:
    """Here the ledger lacks a credit, so that the sum is below zero, and the table does not take it."""
    used.credit("ben", 5)
    for table in ("ledger_entries", "ledger_transactions"):
        off = "DROP TRIGGER {0}_no_delete" if used.database.is_sqlite else "ALTER TABLE {0} DISABLE TRIGGER ALL"
        execute(used, off.format(table))
    first = "FROM ledger_entries WHERE account_id = 'user:ana' AND wallet_version = 1"
    execute(used, f"DELETE FROM ledger_transactions WHERE transaction_id IN (SELECT transaction_id {first})")
    execute(
        used, "DELETE FROM ledger_entries WHERE transaction_id NOT IN (SELECT transaction_id FROM ledger_transactions)"
    )
    execute(used, "UPDATE user_wallets SET available = 6 WHERE owner_id = 'user:ben'")
    kinds = {each.kind for each in verify(used.database, ledger_only=True)}
    options = [part for kind in kinds for part in ("--accept", kind)]
    command("verify", "--known", known, *options, *ACCEPT[2:])
    outcome = command("rebuild", "--apply", "--known", known)
    assert outcome.status == 1
    repaired, left, last = outcome.out.splitlines()
    assert repaired.startswith("repaired user_wallets owner_id=user:ben")
    assert left.startswith("cannot be put right: user_wallets owner_id=user:ana")
    assert last == "1 rows repaired"
    found = command("rebuild", "--apply", "--known", known, "--json")
    assert [row["key"]["owner_id"] for row in json.loads(found.out)["left"]] == ["user:ana"]
