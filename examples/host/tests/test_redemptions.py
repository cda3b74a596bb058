"""An order and its hold are one; what the queue decides is carried out once."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func
from sqlalchemy.orm import Session
from sqlmodel import select

from examples.host.redemptions import NotThereError, Order, PriceChangedError, claim, decide, redeem
from examples.host.sales import count
from examples.host.tables import MenuItem, Redemption, Sales
from examples.host.worker import sign
from points_platform.core import IdempotencyConflictError, InsufficientBalanceError, InvalidAuthorizationError
from points_platform.events import WalletEvent
from points_platform.ledger import LedgerService, follow
from points_platform.queue import QueueAuthorizer
from points_platform.wallets import EscrowHeld, WalletService

SONG = Order(item_id="luna-song", price=120)
ANAS: dict[str, Any] = {"user_id": "ana", "key": "order-1", "request_id": "r-2"}


def balance(wallets: WalletService) -> tuple[int, int, int]:
    """What ana has available and in escrow, and what luna has earned."""
    ana = wallets.get_user_balance("ana")
    return ana.available, ana.escrow, wallets.get_model_balance("luna").earned


def orders(session: Session) -> int:
    return session.scalars(select(func.count()).select_from(Redemption)).one()


def test_an_order_holds_its_points(session: Session, wallets: WalletService, points_events: list[WalletEvent]) -> None:
    redemption = redeem(session, wallets, SONG, **ANAS)
    assert points_events == []
    session.commit()
    assert [type(event) for event in points_events] == [EscrowHeld]
    held = wallets.get_escrow(redemption.escrow_id)
    assert (held.queue_item_id, held.amount) == (redemption.redemption_id, 120)
    assert balance(wallets) == (180, 120, 0)


def test_the_same_order_again_is_the_same_order(session: Session, wallets: WalletService) -> None:
    first = redeem(session, wallets, SONG, **ANAS)
    session.commit()
    session.get_one(MenuItem, "luna-song").price = 150
    assert redeem(session, wallets, SONG, **ANAS) == first
    assert (orders(session), balance(wallets)) == (1, (180, 120, 0))


def test_another_order_under_the_same_key_is_refused(session: Session, wallets: WalletService) -> None:
    redeem(session, wallets, SONG, **ANAS)
    session.add(MenuItem(item_id="nova-song", model_id="nova", feature="song", price=120))
    with pytest.raises(IdempotencyConflictError):
        redeem(session, wallets, Order(item_id="nova-song", price=120), **ANAS)


def test_who_has_no_points_has_no_order(session: Session, wallets: WalletService) -> None:
    with pytest.raises(InsufficientBalanceError):
        redeem(session, wallets, SONG, **ANAS | {"user_id": "ben"})
    assert orders(session) == 0


def test_what_costs_more_by_now_holds_nothing(session: Session, wallets: WalletService) -> None:
    session.get_one(MenuItem, "luna-song").price = 150
    session.commit()
    with pytest.raises(PriceChangedError), session.begin_nested():
        redeem(session, wallets, SONG, **ANAS)
    assert (orders(session), balance(wallets)) == (0, (300, 0, 0))


def test_what_is_not_on_the_menu_is_not_there(session: Session, wallets: WalletService) -> None:
    with pytest.raises(NotThereError):
        redeem(session, wallets, Order(item_id="luna-opera", price=120), **ANAS)


def test_an_order_is_one_workers_until_its_time_has_run_out(session: Session, wallets: WalletService) -> None:
    redemption = redeem(session, wallets, SONG, **ANAS)
    assert claim(session) is redemption
    assert claim(session) is None
    assert redemption.claimed_until is not None
    redemption.claimed_until -= timedelta(minutes=5)
    assert claim(session) is redemption


@pytest.mark.parametrize(
    ("earned", "status", "left"),
    [(120, "settled", 180), (50, "partially_settled", 250), (0, "refunded", 300)],
)
def test_what_the_queue_decides_is_carried_out_once(
    session: Session, wallets: WalletService, points_authorizer: QueueAuthorizer, earned: int, status: str, left: int
) -> None:
    redemption = redeem(session, wallets, SONG, **ANAS)
    token = sign(points_authorizer, redemption, earned).token
    for _ in range(2):
        assert decide(session, wallets, token, request_id="r-3").status == status
        assert balance(wallets) == (left, 0, earned)
    assert claim(session) is None


def test_what_the_queue_has_not_signed_is_refused(session: Session, wallets: WalletService) -> None:
    redemption = redeem(session, wallets, SONG, **ANAS)
    forged = sign(QueueAuthorizer("a secret that is not the queue's own"), redemption, 120)
    with pytest.raises(InvalidAuthorizationError):
        decide(session, wallets, forged.token, request_id="r-3")
    assert (redemption.status, balance(wallets)) == ("held", (180, 120, 0))


def test_what_models_have_earned_counts_as_sold_once(
    session: Session, wallets: WalletService, points_authorizer: QueueAuthorizer, points_ledger: LedgerService
) -> None:
    for key, earned in (("order-1", 120), ("order-2", 50), ("order-3", 0)):
        redemption = redeem(session, wallets, SONG, **ANAS | {"key": key})
        decide(session, wallets, sign(points_authorizer, redemption, earned).token, request_id="r-3")
        session.commit()
    for _ in range(2):
        follow(points_ledger, "sales", count)
    assert session.get_one(Sales, "song").model_dump() == {"feature": "song", "sold": 2, "earned": 170}
