"""Every argument of every reading method: an answer, or a refusal that names the argument, and nothing else."""

import base64
import json
import math
import threading
from collections.abc import Callable
from dataclasses import fields
from datetime import timedelta
from random import Random
from typing import Any

import pytest

from points_platform.core import Database, InvalidRequestError, WalletError
from points_platform.ledger import Account, Sealer
from points_platform.wallets import WalletConfig
from support.world import World

from .values import BAD_TEXTS, NOON, NOTHINGS, Text

SPAN = {"since": NOON, "until": NOON + timedelta(days=1)}
Read = Callable[..., Any]


def reads(world: World) -> dict[str, tuple[Read, dict[str, Any]]]:
    """Each method with arguments that are valid."""
    wallets, ledger = world.wallets, world.ledger

    def balance_as_of(account_id: Any, bucket: Any, currency: Any, version: Any) -> Any:
        return ledger.balance_as_of(Account(account_id, bucket), currency, version=version)

    account = {"account_id": "user:ana", "currency": "points"}
    return {
        "get_user_balance": (wallets.get_user_balance, {"user_id": "ana", "currency": "points"}),
        "get_model_balance": (wallets.get_model_balance, {"model_id": "luna", "currency": "points"}),
        "get_escrow": (wallets.get_escrow, {"escrow_id": "none", "user_id": "ana"}),
        "list_escrows": (
            wallets.list_escrows,
            {"user_id": "ana", "queue_item_id": "queue-1", "status": "held", "held_before": NOON, "limit": 5},
        ),
        "entries": (
            ledger.entries,
            account | SPAN | {"bucket": "available", "operation": "hold", "reason": "outbid", "escrow_id": "e"},
        ),
        "entries, narrower": (ledger.entries, account | {"queue_item_id": "q", "request_id": "r", "limit": 5}),
        "balance_as_of": (balance_as_of, account | {"bucket": "available", "version": 0}),
        "earnings": (
            ledger.earnings,
            {"model_id": "luna", "currency": "points", "period": "day", "timezone": "UTC"} | SPAN,
        ),
        "transaction": (ledger.transaction, {"transaction_id": "none"}),
        "transactions": (lambda one: ledger.transactions(["none", one]), {"one": "other"}),
        "transactions_of_escrow": (ledger.transactions_of_escrow, {"escrow_id": "none"}),
        "read_log": (ledger.read_log, {"after": 0, "limit": 5}),
        "reader": (lambda name: ledger.reader(name).read(), {"name": "me"}),
    }


def outcome(read: Read, arguments: dict[str, Any]) -> Any:
    try:
        return "answer", read(**arguments)
    except InvalidRequestError as refusal:
        shown = str(refusal)
        return "refused" if shown.isprintable() and len(shown) < 1000 else shown, refusal.details["field"]
    except WalletError as error:
        return "not found", error.code


# What an argument is called where it is refused under the name of what it is a part of.
FIELDS = {("balance_as_of", "bucket"): {"account", "bucket"}, ("transactions", "one"): {"transaction_ids"}}


def test_every_argument_of_every_read_is_refused_by_its_name_or_answered(world: World) -> None:
    before = world.snapshot()
    for name, (read, arguments) in reads(world).items():
        assert outcome(read, arguments)[0] in {"answer", "not found"}, name
        for argument, value in arguments.items():
            for wrong in [*NOTHINGS, *BAD_TEXTS]:
                kind, field = outcome(read, arguments | {argument: wrong})
                allowed = FIELDS.get((name, argument), {argument})
                answered = kind == "answer" and type(value) is type(wrong)
                assert answered or (kind == "refused" and field in allowed), (name, argument, type(wrong), kind, field)
    assert world.snapshot() == before


def test_a_text_is_its_characters_whatever_its_methods_say(world: World) -> None:
    world.credit()
    escrow_id = world.hold().escrow_id
    for name, (read, arguments) in reads(world).items():
        arguments = {key: escrow_id if key == "escrow_id" else value for key, value in arguments.items()}
        plain = outcome(read, arguments)
        hostile = {key: Text(value) if isinstance(value, str) else value for key, value in arguments.items()}
        answer = outcome(read, hostile)
        assert _timeless(answer) == _timeless(plain), name


def _timeless(answer: Any) -> Any:
    kind, value = answer
    return kind, {n: v for n, v in vars(value).items() if n != "as_of"} if hasattr(value, "as_of") else value


# ── what a service is made with ──


@pytest.mark.parametrize(
    "wrong", [0, -1, 2**31, 2**63, 10**5000, True, 1.0, "1", None], ids=lambda wrong: type(wrong).__name__
)
def test_a_lock_timeout_is_one_that_the_server_takes(url: str, wrong: Any) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        Database(url, lock_timeout_ms=wrong)
    assert refused.value.details["field"] == "lock_timeout_ms"


def test_the_longest_lock_timeout_works(url: str) -> None:
    with Database(url, lock_timeout_ms=2**31 - 1) as database:
        assert World(database).credit().new_available_balance == 100


@pytest.mark.parametrize(
    "wrong", [math.inf, math.nan, 1e300, 10**400, threading.TIMEOUT_MAX * 2, 0.0, -math.inf, "1", None]
)
def test_a_sealer_waits_no_longer_than_a_thread_can(world: World, wrong: Any) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        Sealer(world.ledger, interval=wrong)
    assert refused.value.details["field"] == "interval"


TARGETS: list[Any] = [
    *(
        "",
        "sqlite",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///a\0.db",
        "sqlite:////tmp/\ud800.db",
        "mysql://h/x",
        "\0",
    ),
    *(
        "sqlite:////nowhere/at/all.db",
        "postgresql://127.0.0.1:99999/x",
        "postgresql://127.0.0.1:abc/x",
        "://",
        "sqlite:///",
    ),
    *("postgresql://127.0.0.1:1/x", "postgresql://127.0.0.1:1/x?nothing=known", "postgresql://%ff@127.0.0.1:1/x"),
    *(
        "postgresql://127.0.0.1:1/\0",
        "postgresql://\ud800@127.0.0.1:1/x",
        "postgresql://127.0.0.1:1/x?connect_timeout=x",
    ),
    *(
        "postgresql://127.0.0.1:1/x?plugin=os",
        "sqlite:///file:x?mode=memory&uri=true",
        "sqlite:////tmp?timeout=x",
        "x" * 10**5,
    ),
    *(target for target in NOTHINGS if not isinstance(target, str)),
]


def test_a_target_is_refused_or_not_reached_and_nothing_else() -> None:
    for target in TARGETS:
        with pytest.raises(WalletError) as refused, Database(target) as database:
            database.create_schema()
        assert refused.value.code in {"invalid_request", "storage_unavailable"}, target


def test_a_service_is_refused_by_the_name_of_what_is_wrong(world: World) -> None:
    for field in fields(WalletConfig):
        for wrong in [*NOTHINGS, *BAD_TEXTS, 2**63, *(() if field.default is None else (None,))]:
            with pytest.raises(InvalidRequestError) as refused:
                WalletConfig(**{field.name: wrong})
            assert refused.value.details["field"] == field.name
    for wrong in [*NOTHINGS, *BAD_TEXTS, "wallet.unknown", None]:
        for change in (world.bus.subscribe, world.bus.unsubscribe):
            with pytest.raises(InvalidRequestError) as refused:
                change(wrong, print)
            assert refused.value.details["field"] == "event_type"
    for wrong in [*(each for each in NOTHINGS if not callable(each)), *BAD_TEXTS, None]:
        with pytest.raises(InvalidRequestError) as refused:
            world.bus.subscribe("wallet.credited", wrong)
        assert refused.value.details["field"] == "receiver"


# ── cursors ──


def mutated(random: Random, cursor: str) -> str:
    """Bytes flipped below the text or in it, cut, doubled, other values in the same form."""
    data = bytearray(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    place = random.randrange(len(data))
    flipped = data[:place] + bytes([data[place] ^ 1 << random.randrange(8)]) + data[place + 1 :]
    parts = json.loads(data)
    parts[random.randrange(len(parts))] = random.choice([None, True, -1, 2**53, 1e9, "x", "\0", [], {}, "' OR 1=1 --"])
    texts = [bytes(flipped), bytes(data[:place]), bytes(data + data[place:]), json.dumps(parts).encode()]
    encoded = base64.urlsafe_b64encode(random.choice(texts)).decode().rstrip("=")
    at = random.randrange(len(cursor))
    return random.choice([encoded, cursor[:at] + random.choice("Az_-=\n\0 é\ud800") + cursor[at + 1 :], cursor[:at]])


def test_a_mutated_cursor_is_refused_or_says_where_to_go_on(world: World) -> None:
    random, named, sizes = Random(1), set[str](), set[int]()
    world.credit()
    for _ in range(4):
        world.hold(amount=1)
    pages: list[Callable[[str | None], Any]] = [
        lambda after: world.wallets.list_escrows(user_id="ana", limit=2, after=after),
        lambda after: world.ledger.entries("user:ana", "points", limit=2, after=after),
        lambda after: world.ledger.entries("user:ana", "points", limit=2, after=after, newest_first=True),
    ]
    for read in pages:
        cursor = read(None).next
        for _ in range(300):
            try:
                page = read(mutated(random, cursor))
            except InvalidRequestError as refusal:
                named.add(refusal.details["field"])
            else:
                sizes.add(len(page.items))
    assert (named, max(sizes)) == ({"after"}, 2)
