"""What the document on embedding lists is what the classes have, and its examples run."""

import dataclasses
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from points_platform import events, wallets
from points_platform.core import every
from points_platform.events import EventBus
from points_platform.events.models import WalletEvent
from points_platform.ledger import Account, Bucket, LogEntry, follow
from points_platform.wallets import EscrowHeld, WalletConfig, WalletService
from points_platform.wallets.config import LIMITS
from points_platform.wallets.operation import Request, Response
from points_platform.wallets.operations import OPERATIONS
from support.documents import DOCUMENTS, ROOT
from support.world import World

CODES = {"default_currency": "a code", "currencies": "codes"}
DOCUMENT = (ROOT / "docs" / "EMBEDDING.md").read_text(encoding="utf-8")


def anchors(document: Path) -> set[str]:
    """What a link to a part of the document may be called."""
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_link_between_documents_leads_somewhere() -> None:
    links = [
        (document, *target.partition("#")[::2])
        for document in [*DOCUMENTS, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
        for target in re.findall(r"\]\(([^)]+)\)", document.read_text(encoding="utf-8"))
        if "://" not in target
    ]
    assert len(links) > 10
    for document, file, anchor in links:
        there = (document.parent / file).resolve() if file else document
        assert there.exists(), (document.name, file)
        assert not anchor or anchor in anchors(there), (document.name, file, anchor)


def table(first: str) -> list[list[str]]:
    """The rows of the table whose header begins with these cells."""
    _, header, rest = DOCUMENT.partition(f"\n| {first}")
    assert header, first
    lines = rest.split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def said(cell: str) -> dict[str, bool]:
    """The fields of a cell, and whether each may be left out."""
    return {name: bool(optional) for name, optional in re.findall(r"`(\w+)(\??)`", cell)}


def own(cls: Any, base: Any) -> dict[str, bool]:
    common = {field.name for field in dataclasses.fields(base)}
    of = (field for field in dataclasses.fields(cls) if field.name not in common)
    return {field.name: field.default is not dataclasses.MISSING for field in of}


def test_the_fields_of_requests_and_answers_are_those_of_the_classes() -> None:
    listed = {
        next(iter(said(row[0]))): (said(row[1]), said(row[2])) for row in table("request | fields beside these |")
    }
    assert listed == {
        operation.request.__name__: (own(operation.request, Request), own(operation.response, Response))
        for operation in OPERATIONS
    }
    intro = DOCUMENT.partition("## Requests and answers\n")[2].partition("\n|")[0]
    for cls in (Request, Response):
        assert [field.name for field in dataclasses.fields(cls) if f"`{field.name}`" not in intro] == []


def test_the_classes_names_and_fields_of_events_are_those_of_the_classes() -> None:
    listed = {tuple(re.findall(r"`([\w.]+)`", row[0] + row[1])): said(row[2]) for row in table("event | its name |")}
    assert listed == {
        (operation.event.__name__, field.default): own(operation.event, WalletEvent)
        for operation in OPERATIONS
        for field in dataclasses.fields(operation.event)
        if field.name == "event_type"
    }
    assert {name for _, name in listed} == set(events.EVENT_TYPES)
    assert all(hasattr(wallets, name) for name, _ in listed)
    intro = DOCUMENT.partition("Every event has")[2].partition("\n\n")[0]
    common = {field.name.removesuffix("_json") for field in dataclasses.fields(WalletEvent)}
    assert set(re.findall(r"`(\w+)`", intro)) == common


def test_the_settings_are_those_of_the_class_with_their_defaults_and_limits() -> None:
    listed = {row[0].strip("`"): (row[1], row[2]) for row in table("`WalletConfig` | default |")}
    assert listed == {
        field.name: (str(field.default), f"0 to {LIMITS[field.name]}" if field.name in LIMITS else CODES[field.name])
        for field in dataclasses.fields(WalletConfig)
    }


def test_the_examples_of_reading_run(world: World) -> None:
    (example,) = re.findall(r"```python\n(balance = .*?)```", DOCUMENT, re.DOTALL)
    world.credit(amount=100)
    hold = world.hold()
    now = datetime.now(UTC)
    names: dict[str, Any] = {"wallets": world.wallets, "ledger": world.ledger, "hold": hold, "now": now}
    names |= {"every": every, "Account": Account, "Bucket": Bucket, "yesterday": now - timedelta(days=1)}
    exec(example, names)
    assert (names["balance"].available, names["earned"], names["then"]) == (70, 0, 0)
    assert ([balance.available for balance in names["balances"]], names["held"]) == ([70], [30])
    assert names["item"].escrow_id == hold.escrow_id
    assert [line.amount for line in names["lines"]] == [100, -30, 30]
    assert [line.amounts["available"] for line in names["page"].items] == [-30, 100]
    assert len(names["days"]) in {2, 3}


class HostBase(DeclarativeBase):
    """The tables of the host in the examples."""


class Told(HostBase):
    __tablename__ = "told"
    number: Mapped[int] = mapped_column(primary_key=True)
    user: Mapped[str]
    what: Mapped[str]


def test_the_example_of_following_the_log_runs(world: World) -> None:
    (example,) = re.findall(r"```python\n(def note\(.*?)```", DOCUMENT, re.DOTALL)
    HostBase.metadata.create_all(world.database.engine)
    world.credit(amount=100)
    world.hold()
    names: dict[str, Any] = {"ledger": world.ledger, "follow": follow, "LogEntry": LogEntry}
    exec(example, names | {"Session": Session, "Told": Told}, names)
    with Session(world.database.engine) as session:
        told = session.scalars(select(Told).order_by(Told.number)).all()
    assert (names["count"], [(each.user, each.what) for each in told]) == (
        2,
        [("user:ana", "credit"), ("user:ana", "hold")],
    )


def test_the_example_of_wiring_events_runs(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"```python\n(def tell\(.*?)```", DOCUMENT, re.DOTALL)
    names: dict[str, Any] = {"EventBus": EventBus, "EscrowHeld": EscrowHeld, "WalletService": WalletService}
    exec(example, names | {"ledger": world.ledger, "queue": world.authorizer}, names)
    world.credit(amount=100)
    names["wallets"].hold_in_escrow(world.hold_request())
    assert capsys.readouterr().out == "ana waits for a song\n"


def test_a_deposit_is_a_replay_as_the_document_says(world: World) -> None:
    first = world.deposit("cleo", 60, reference="payment-1", idempotency_key="one")
    again = world.deposit("cleo", 60, reference="payment-1", idempotency_key="two", reason="gift", metadata={"a": 1})
    assert again == first
    assert again.replayed
    assert world.wallets.get_user_balance("cleo").available == 60
    other = world.deposit("cleo", 5, reference="payment-2", idempotency_key="two")
    assert not other.replayed, "a replay by its reference leaves its key free"
    for changed in ({"user_id": "ben"}, {"amount": 61}, {"currency": "gems"}):
        fields: dict[str, Any] = {"user_id": "cleo", "amount": 60, **changed}
        with pytest.raises(wallets.DepositConflictError) as refusal:
            world.deposit(fields.pop("user_id"), fields.pop("amount"), reference="payment-1", **fields)
        assert refusal.value.details["fields"] == tuple(changed)
    with pytest.raises(wallets.IdempotencyConflictError):
        world.deposit("cleo", 60, reference="payment-3", idempotency_key="one")
