"""Every argument of every reading method: an answer, or a refusal that names the argument, and nothing else."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from points_platform.core import InvalidRequestError, WalletError
from points_platform.ledger import Account
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
