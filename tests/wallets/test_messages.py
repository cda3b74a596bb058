"""What messages say to somebody who has made a usual mistake: by name, and what helps."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest

from points_platform.core import InvalidAuthorizationError, InvalidRequestError, WalletError
from points_platform.wallets import (
    DepositConflictError,
    EscrowNotFoundError,
    IdempotencyConflictError,
    OpenWalletRequest,
    QueueAuthorization,
    UserCreditRequest,
)
from support.world import World

NOBODY_S = "01890a5d-ac96-774b-bcce-b302099a8057"


def message(call: Callable[[], object], kind: type[WalletError]) -> str:
    with pytest.raises(kind) as refusal:
        call()
    return str(refusal.value)


def test_the_text_of_a_token_is_told_how_it_becomes_an_authorization(world: World) -> None:
    world.credit()
    request = world.refund_request(world.hold().escrow_id)
    token: Any = world.authorizer.authorize(request).token
    for text in (token, token.encode()):
        said = message(partial(world.wallets.refund_escrow, request, text), InvalidAuthorizationError)
        assert "QueueAuthorization.from_token(text) makes one of a token" in said
        assert token not in said
    envelope: Any = QueueAuthorization.from_token(token)
    assert world.wallets.refund_escrow(request, envelope).refunded_amount == request.amount


def test_what_is_no_token_is_told_what_one_looks_like() -> None:
    said = message(lambda: QueueAuthorization.from_token("abc"), InvalidAuthorizationError)
    assert said.endswith(
        "(malformed); it is no token as the queue writes them: three parts of letters, digits, - and _, with dots "
        "between, and claims of their own types"
    )
    nothing: Any = None
    for missing in (nothing, ""):
        said = message(partial(QueueAuthorization.from_token, missing), InvalidAuthorizationError)
        assert "(missing); there is none; take the one that the queue has signed" in said


@pytest.mark.parametrize("owner", ["user:", "model:", "ana", "", "platform:issuer", None])
def test_an_owner_without_a_name_is_told_what_one_looks_like(owner: Any) -> None:
    def make() -> object:
        return OpenWalletRequest(idempotency_key="k", request_id="r", reason="sign_up", owner=owner)

    expected = "owner must be user:… or model:…, with an identifier of 1 to 128 printable characters, not "
    assert message(make, InvalidRequestError) == f"{expected}{owner!r}"


def test_an_item_is_called_the_user_s_only_where_a_user_was_named(world: World) -> None:
    anybody_s = message(lambda: world.wallets.get_escrow(NOBODY_S), EscrowNotFoundError)
    assert anybody_s == f"there is no escrow item {NOBODY_S}"
    ana_s = message(lambda: world.wallets.get_escrow(NOBODY_S, "ana"), EscrowNotFoundError)
    assert ana_s == f"{anybody_s} of this user"
    refused = message(lambda: world.refund(NOBODY_S), EscrowNotFoundError)
    assert refused == ana_s


def test_a_payment_under_the_key_of_another_one_is_told_what_its_key_is_made_of(world: World) -> None:
    first = world.deposit_request("cleo", 60, reference="payment-1", idempotency_key="paid")
    world.send(first)
    other = world.deposit_request("cleo", 60, reference="payment-2", idempotency_key="paid")
    said = message(lambda: world.send(other), IdempotencyConflictError)
    assert "another payment takes a key of its own, made of its source and reference" in said
    same = world.deposit_request("cleo", 61, reference="payment-1", idempotency_key="paid again")
    said = message(lambda: world.send(same), DepositConflictError)
    assert "a reference is credited once, also under another key: look up what it was credited as" in said
    credited = world.credit_request("cleo", 5, idempotency_key="given")
    world.send(credited)
    said = message(
        lambda: world.send(world.credit_request("cleo", 6, idempotency_key="given")), IdempotencyConflictError
    )
    assert "payment" not in said


def test_a_thing_has_the_article_that_is_spoken(world: World) -> None:
    held: Any = world.hold_request()
    credited: Any = world.credit_request()
    assert message(lambda: world.wallets.credit_user(held), InvalidRequestError) == (
        "request must be a UserCreditRequest, not 'an EscrowHoldRequest'"
    )
    assert message(lambda: world.wallets.hold_in_escrow(credited), InvalidRequestError) == (
        "request must be an EscrowHoldRequest, not 'a UserCreditRequest'"
    )


@pytest.mark.parametrize("owner", ["user:ana", "model:ana", "platform:issuer", "user:"])
def test_an_id_that_begins_as_an_owner_does_is_refused_everywhere(world: World, owner: str) -> None:
    """It would be another user, user:user:ana, with a wallet of its own that nobody looks for."""
    wallets, ledger, now = world.wallets, world.ledger, datetime.now(UTC)
    credit: dict[str, Any] = {"idempotency_key": "k", "request_id": "r", "reason": "gift", "amount": 1}
    earned: dict[str, Any] = {"period": "day", "timezone": "UTC", "since": now - timedelta(days=1), "until": now}
    escrow: dict[str, Any] = {"queue_item_id": "q", "escrow_id": NOBODY_S, "amount": 1, "reason": "gift"}
    named: dict[str, list[Callable[[], object]]] = {
        "user_id": [
            lambda: UserCreditRequest(user_id=owner, **credit),
            lambda: wallets.get_user_balance(owner),
            lambda: wallets.get_escrow(NOBODY_S, owner),
            lambda: wallets.list_escrows(user_id=owner),
            lambda: world.authorizer.authorize_refund(user_id=owner, **escrow),
        ],
        "model_id": [
            lambda: world.settle_request(NOBODY_S, model_id=owner),
            lambda: world.partial_settle_request(NOBODY_S, model_id=owner),
            lambda: wallets.get_model_balance(owner),
            lambda: ledger.earnings(owner, "points", **earned),
            lambda: world.authorizer.authorize_settlement(user_id="ana", model_id=owner, **escrow),
        ],
        "recipient_id": [lambda: world.transfer_request("ana", 1, recipient_id=owner)],
        "owner": [lambda: world.open_request(f"user:{owner}"), lambda: world.open_request(f"model:{owner}")],
    }
    for field, calls in named.items():
        for call in calls:
            with pytest.raises(InvalidRequestError) as refusal:
                call()
            assert (refusal.value.details["field"], refusal.value.details["value"]) == (field, owner)
            assert str(refusal.value).startswith(f"{field} must be the id alone, as in 'ana'") or "ana" not in owner
    for allowed in ("user", "users:ana", "User:ana", "a user:ana", "user ana"):
        assert wallets.get_user_balance(allowed).available == 0
