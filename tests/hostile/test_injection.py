"""Texts that are SQL, JSON, a path or a format to somebody: stored as they are, and nothing else touched."""

from collections.abc import Callable
from typing import Any

import pytest

from points_platform.cli.main import main
from points_platform.core import Database, InvalidRequestError
from points_platform.core.values import encode_cursor
from points_platform.wallets import EscrowHoldRequest, UserCreditRequest
from points_platform.wallets.facts import request_of
from points_platform.wallets.verify import verify
from support.world import World

PAYLOADS = [
    *(
        "' OR '1'='1",
        "'; DROP TABLE user_wallets; --",
        '"; DELETE FROM escrow_items; --',
        "ana'--",
        "ana' /*",
        "*/ ana",
    ),
    *(
        "1; UPDATE user_wallets SET available = 9e9",
        "') ON CONFLICT DO NOTHING --",
        "' UNION SELECT version --",
        "''",
        "'",
    ),
    *(
        "$$; DROP TABLE ledger_log; $$",
        "$1",
        "$tag$ana$tag$",
        "E'\\x27'",
        "\\'; SELECT pg_sleep(9); --",
        "\\",
        "\\\\",
        "\\u0027",
    ),
    *(
        "%s",
        "%(user_id)s",
        "%%",
        "%",
        "_",
        "a%",
        "%ana%",
        ":user_id",
        ":1",
        "?",
        "{0}",
        "{user_id}",
        "${user_id}",
        "{{7*7}}",
    ),
    *(
        "$[0]",
        "$.a",
        "$[#-1]",
        '","9999","',
        '"],["ana"',
        "[]",
        "{}",
        "null",
        "true",
        '{"$ref":"x"}',
        "\\u0000",
        "#>>",
        "->>'a'",
    ),
    *(
        # What begins as an owner of the ledger is no id (wallets/test_messages).
        "User:ana",
        "users:ana",
        " user:ana",
        "queue:user:ana",
        ":",
        "ana:points",
        "ana points",
        " ana",
        "ana ",
        "ANA",
        "\u0430na",
    ),
    *(
        "\uff41\uff4e\uff41",
        "ana\u0301",
        "\u00b4",
        "\u2019 OR 1=1",
        "❤'❤",
        "😀'--",
        "=cmd|' /C calc'!A0",
        "[red]ana[/red]",
        "--help",
        "-x",
        "@file",
    ),
    *(
        "NULL",
        "DEFAULT",
        "current_user",
        "pg_sleep(9)",
        "randomblob(99)",
        "../../etc/passwd",
        "x" * 128,
        "'" * 128,
        "\\" * 128,
    ),
]


def play(world: World, text: str, how: str) -> dict[str, Any]:
    """Everything that a text can be, in one life of a hold; returns what was asked for and what was said."""
    metadata = {text: [text, {text: text}], "n": 1}
    named: dict[str, Any] = {"user_id": text, "request_id": text, "metadata": metadata}
    credit = world.credit_request(**named, idempotency_key=f"{text[:120]} credit")
    hold = world.hold_request(**named, queue_item_id=text, idempotency_key=f"{text[:120]} hold")
    many = how == "many"
    credited = world.wallets.credit_many([credit])[0] if many else world.send(credit)
    held: Any = world.wallets.hold_many([hold])[0] if many else world.send(hold)
    end = world.partial_settle_request(held.escrow_id, **named, model_id=text, queue_item_id=text, idempotency_key=text)
    ended = world.send(end)
    return {"requests": [credit, hold, end], "responses": [credited, held, ended], "metadata": metadata}


def check(world: World, text: str, played: dict[str, Any]) -> None:
    """It is found by exactly this text, and is what it was."""
    _, held, ended = played["responses"]
    (item,) = world.wallets.list_escrows(user_id=text).items
    assert world.wallets.list_escrows(queue_item_id=text).items == (item,)
    assert (item.user_id, item.model_id, item.queue_item_id, item.metadata) == (text, text, text, played["metadata"])
    assert world.wallets.get_escrow(held.escrow_id, text) == item
    balance, earned = world.wallets.get_user_balance(text), world.wallets.get_model_balance(text)
    assert (balance.available, balance.escrow, earned.earned) == (80, 0, 20)
    for request, response in zip(played["requests"], played["responses"], strict=True):
        transaction = world.ledger.transaction(response.transaction_id)
        assert transaction is not None
        recorded = request_of(transaction)
        assert recorded.metadata == played["metadata"]
        names = ("idempotency_key", "request_id", "user_id", "queue_item_id", "model_id")
        assert [getattr(recorded, n, None) for n in names] == [getattr(request, n, None) for n in names]
    lines = world.ledger.entries(f"user:{text}", "points", queue_item_id=text, request_id=text).items
    assert {line.transaction_id for line in lines} == {held.transaction_id, ended.transaction_id}
    (line,) = world.ledger.entries(f"model:{text}", "points").items
    assert (line.account_id, line.idempotency_key, line.amount) == (f"model:{text}", text, 20)


@pytest.mark.parametrize("how", ["one", "many", "stepwise"])
def test_a_text_is_stored_as_it_is_and_touches_nothing_else(how: str, url: str) -> None:
    assert len(set(PAYLOADS)) == len(PAYLOADS)
    with Database(url, single_statement=how != "stepwise") as database:
        world = World(database)
        world.credit("ana")
        world.hold("ana")
        world.credit("b", 10)
        bystanders = [request.user_id for request in (world.hold_request("ana"), world.hold_request("b"))]
        before = {user: _all_of(world, user) for user in bystanders}
        # Many rows travel as one parameter, so there is most to break out of.
        texts = PAYLOADS if how == "many" else PAYLOADS[:: 3 if how == "one" else -3]
        played = {text: play(world, text, how) for text in texts}
        for text, done in played.items():
            check(world, text, done)
        assert {user: _all_of(world, user) for user in bystanders} == before
        rows = world.snapshot()
        assert len(rows["user_wallets"]) == len(texts) + 2
        world.ledger.seal()
        assert list(verify(database)) == []


def _all_of(world: World, user: str) -> Any:
    balance = vars(world.wallets.get_user_balance(user)) | {"as_of": None}
    items = world.wallets.list_escrows(user_id=user).items
    return balance, items, world.ledger.entries(f"user:{user}", "points").items


def test_a_text_finds_nothing_that_is_not_its_own(world: World) -> None:
    world.credit("ana")
    escrow_id = world.hold("ana").escrow_id
    world.settle(escrow_id)
    before = world.snapshot()
    for text in PAYLOADS:
        assert world.wallets.get_user_balance(text).version == 0
        assert world.wallets.get_model_balance(text).version == 0
        assert world.wallets.list_escrows(user_id=text).items == ()
        assert world.wallets.list_escrows(queue_item_id=text).items == ()
        assert world.ledger.transaction(text) is None
        assert world.ledger.transactions([text, f"{text[:99]}x"]) == []
        assert world.ledger.transactions_of_escrow(text) == []
        assert world.ledger.entries("user:ana", "points", request_id=text).items == ()
        assert world.ledger.entries(f"user:{text}", "points").items == ()
        assert world.ledger.reader(text).position == 0
        # A cursor of the right form may come from anywhere, and only says where to go on.
        page = world.wallets.list_escrows(user_id="ana", after=encode_cursor(text))
        assert [item.escrow_id for item in page.items] == [each for each in [escrow_id] if each > text]
    assert world.snapshot() == before


LIKE_CODES = {"null", "true", "current_user"}
CODES = [
    ("credit", "reason"),
    ("credit", "currency"),
    ("hold", "feature_type"),
    ("hold", "reason"),
    ("hold", "currency"),
]


@pytest.mark.parametrize(("operation", "field"), CODES)
def test_a_code_is_no_place_for_such_a_text(world: World, operation: str, field: str) -> None:
    made: Any = {"credit": world.credit_request, "hold": world.hold_request}[operation]
    for text in set(PAYLOADS) - LIKE_CODES:
        with pytest.raises(InvalidRequestError) as refused:
            made(**{field: text})
        assert refused.value.details["field"] == field


def test_no_such_text_is_a_code_or_a_cursor(world: World) -> None:
    asking: list[Callable[[str], object]] = [
        lambda text: world.wallets.get_user_balance("ana", text),
        lambda text: world.ledger.entries("user:ana", text),
        lambda text: world.ledger.entries("user:ana", "points", bucket=text),
        lambda text: world.wallets.list_escrows(status=text),
        lambda text: world.wallets.list_escrows(user_id="ana", after=text),
    ]
    for text in set(PAYLOADS) - LIKE_CODES:
        for ask in asking:
            with pytest.raises(InvalidRequestError):
                ask(text)


def test_a_readers_name_is_stored_as_it_is(world: World) -> None:
    world.credit()
    world.ledger.seal()
    for text in PAYLOADS:
        world.ledger.reader(text).move(1, seen=0)
    assert sorted(row[0] for row in world.snapshot()["ledger_log_readers"]) == sorted(PAYLOADS)
    assert world.ledger.reader("somebody else").position == 0


def test_a_text_on_the_command_line_is_only_a_text(world: World, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    played = {text: play(world, text, "one") for text in PAYLOADS[1::8]}
    before = world.snapshot()
    for text, done in played.items():
        escrow_id = done["responses"][1].escrow_id
        commands = [
            ["balance", f"user:{text}"],
            ["escrows", f"--user={text}", f"--queue-item={text}"],
            ["statement", f"model:{text}", "--csv", f"--request={text}"],
        ]
        shown = []
        for command in commands:
            assert main([*command, "--database", url]) == 0, (text, command)
            shown.append(capsys.readouterr().out)
        assert f"user:{text}" in shown[0]
        assert escrow_id in shown[1]
        assert shown[2].count("\n") == 2
        for wrong in (["statement", "user:ana", f"--after={text}"], ["verify", f"--head={text}"]):
            assert main([*wrong, "--database", url]) in {1, 2}
            capsys.readouterr()
    assert world.snapshot() == before


def test_requests_are_what_was_given() -> None:
    """So that nothing above is compared with what the request has made of it."""
    for text in PAYLOADS:
        common: dict[str, Any] = {
            "idempotency_key": text,
            "request_id": text,
            "user_id": text,
            "amount": 1,
            "metadata": {text: text},
        }
        assert vars(UserCreditRequest(**common, reason="r")) == common | {"reason": "r", "currency": None}
        held = EscrowHoldRequest(**common, reason="r", queue_item_id=text, feature_type="f")
        assert (held.queue_item_id, held.metadata) == (text, {text: text})
