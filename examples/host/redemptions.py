"""What is written to the platform's own tables and to the points', in one transaction each.

Plain functions of a session: the web process runs them in the transaction of an ``AsyncSession``, tests in one that
is rolled back.
"""

from datetime import timedelta
from uuid import UUID, uuid5

from pydantic import BaseModel
from sqlalchemy import func
from sqlalchemy.orm import Session
from sqlmodel import col, or_, select

from points_platform.wallets import EscrowHoldRequest, QueueAuthorization, TransactionReason, WalletService

from .tables import MenuItem, Redemption

REDEMPTIONS = UUID("5e7e3f3c-53c5-4c0a-8a2e-3a7f6d0b9a11")
CLAIMED_FOR = timedelta(seconds=30)


class Order(BaseModel):
    """What a user asks for, at the price that the menu has shown."""

    item_id: str
    price: int


class NotThereError(Exception):
    """There is no such item or redemption."""


class PriceChangedError(Exception):
    """The item does not cost any more what the user has been shown."""


def redeem(
    session: Session, wallets: WalletService, order: Order, *, user_id: str, key: str, request_id: str
) -> Redemption:
    """Order something: the points wait in escrow, and the order in the queue. Under the same key it is the same order.

    Raises ``NotThereError``, ``PriceChangedError``, and what ``hold_in_escrow`` raises.
    """
    if (item := session.get(MenuItem, order.item_id)) is None:
        raise NotThereError(f"there is no {order.item_id} on the menu")
    redemption_id = str(uuid5(REDEMPTIONS, f"{user_id}/{key}"))
    hold = wallets.hold_in_escrow(
        EscrowHoldRequest(
            user_id=user_id,
            amount=order.price,
            queue_item_id=redemption_id,
            feature_type=item.feature,
            reason=TransactionReason.MENU_PURCHASE,
            idempotency_key=key,
            request_id=request_id,
            metadata={"item_id": item.item_id, "model_id": item.model_id},
        ),
        session=session,
    )
    if hold.replayed:
        return session.get_one(Redemption, redemption_id)
    if order.price != item.price:
        raise PriceChangedError(f"{item.item_id} costs {item.price} by now")
    redemption = Redemption(
        redemption_id=redemption_id,
        user_id=user_id,
        model_id=item.model_id,
        item_id=item.item_id,
        feature=item.feature,
        price=item.price,
        escrow_id=hold.escrow_id,
        ordered_at=hold.timestamp,
    )
    session.add(redemption)
    return redemption


def claim(session: Session) -> Redemption | None:
    """The next order for a worker, which has it alone for a while; ``None`` if nothing waits."""
    claimed_until = col(Redemption.claimed_until)
    redemption = session.scalars(
        select(Redemption)
        .where(Redemption.status == "held", or_(claimed_until.is_(None), claimed_until < func.now()))
        .order_by(col(Redemption.ordered_at))
        .limit(1)
        .with_for_update(skip_locked=True)
    ).first()
    if redemption is not None:
        redemption.claimed_until = session.scalars(select(func.now())).one() + CLAIMED_FOR
    return redemption


def decide(session: Session, wallets: WalletService, token: str, *, request_id: str) -> Redemption:
    """Carry out what the queue has signed. Raises ``NotThereError``, and what the operation raises."""
    authorization = QueueAuthorization.from_token(token)
    redemption = session.get(Redemption, authorization.queue_item_id, with_for_update=True)
    if redemption is None:
        raise NotThereError(f"there is no redemption {authorization.queue_item_id}")
    wallets.carry_out(authorization, idempotency_key=redemption.redemption_id, request_id=request_id, session=session)
    redemption.status = wallets.get_escrow(redemption.escrow_id, session=session).status
    return redemption
