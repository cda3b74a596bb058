"""Only has to type-check: calls that are awaited have the types of the methods that they carry out."""

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from points_platform import aio
from points_platform.events import EventBus
from points_platform.ledger import LedgerService
from points_platform.wallets import (
    EscrowHeld,
    EscrowHoldRequest,
    EscrowHoldResponse,
    UserBalance,
    UserCreditRequest,
    WalletCredited,
    WalletService,
)


async def typed(wallets: WalletService, ledger: LedgerService, session: AsyncSession, hold: EscrowHoldRequest) -> None:
    """The answers and the arguments are the methods' own."""
    held: EscrowHoldResponse = await aio.call(wallets.hold_in_escrow, hold)
    held = await aio.within(session, wallets.hold_in_escrow, hold)
    balance: UserBalance = await aio.call(wallets.get_user_balance, "ana", currency="points")
    balance = await aio.within(session, wallets.get_user_balance, "ana", "points")
    print(held.escrow_id, balance.total, (await aio.call(ledger.entries, "user:ana", "points", limit=5)).next)


async def refused(wallets: WalletService, session: AsyncSession, sync: Session, credit: UserCreditRequest) -> None:
    """Another operation's request, arguments that are not there, and a session that is none."""
    await aio.call(wallets.hold_in_escrow, credit)  # type: ignore[arg-type]
    await aio.call(wallets.get_user_balance)  # type: ignore[call-arg]
    await aio.call(wallets.get_user_balance, "ana", limit=5)  # type: ignore[call-arg]
    await aio.within(session, wallets.hold_in_escrow, credit)  # type: ignore[arg-type]
    await aio.within(sync, wallets.get_user_balance, "ana")  # type: ignore[arg-type]


async def of_a_hold(event: EscrowHeld) -> None: ...


def receivers(bus: EventBus) -> None:
    """A receiver on the loop is still one of its event."""
    bus.subscribe(EscrowHeld, aio.on_loop(of_a_hold))
    bus.subscribe(WalletCredited, aio.on_loop(of_a_hold))  # type: ignore[arg-type]
