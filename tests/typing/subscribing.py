"""Only has to type-check: which receivers the bus takes for which events, and which it must not."""

from typing import Any

from points_platform.events import EventBus, UserEvent, WalletEvent
from points_platform.wallets import EscrowHeld, EscrowSettled, WalletCredited


def of_a_hold(event: EscrowHeld) -> None: ...


def of_a_credit(event: WalletCredited) -> str:
    return event.event_id


def of_a_users(event: UserEvent) -> None: ...


def of_any(event: WalletEvent) -> None: ...


def of_whatever(event: Any) -> None: ...


class Feed:
    """Whose methods are receivers too."""

    def hold(self, event: EscrowHeld) -> None: ...

    def __call__(self, event: WalletEvent) -> None: ...


def taken(bus: EventBus, feed: Feed, events: list[WalletEvent], holds: list[EscrowHeld]) -> None:
    """A receiver of the event's class, or of one that it is of."""
    bus.subscribe(EscrowHeld, of_a_hold)
    bus.subscribe(EscrowHeld, of_a_users)
    bus.subscribe(EscrowHeld, of_any)
    bus.subscribe(EscrowHeld, of_whatever)
    bus.subscribe(EscrowHeld, feed.hold)
    bus.subscribe(EscrowHeld, feed)
    bus.subscribe(EscrowHeld, holds.append)
    bus.subscribe(EscrowHeld, lambda event: print(event.escrow_id, event.escrow_balance))
    bus.subscribe(WalletCredited, of_a_credit)
    bus.subscribe(UserEvent, of_a_users)
    bus.subscribe(WalletEvent, of_any)
    bus.subscribe(WalletEvent, events.append)
    bus.subscribe("wallet.escrow_held", of_a_hold)
    bus.subscribe("wallet.escrow_held", of_any)
    bus.unsubscribe(EscrowHeld, of_a_hold)
    bus.unsubscribe("wallet.escrow_held", of_a_hold)
    bus.unsubscribe(WalletEvent, of_any)


def refused(bus: EventBus, feed: Feed, holds: list[EscrowHeld]) -> None:
    """A receiver of another event's class, or of some of the events only, and what is no event."""
    bus.subscribe(EscrowHeld, of_a_credit)  # type: ignore[arg-type]
    bus.subscribe(EscrowSettled, of_a_hold)  # type: ignore[arg-type]
    bus.subscribe(WalletCredited, feed.hold)  # type: ignore[arg-type]
    bus.subscribe(WalletCredited, holds.append)  # type: ignore[arg-type]
    bus.subscribe(WalletEvent, of_a_hold)  # type: ignore[arg-type]
    bus.subscribe(WalletEvent, of_a_users)  # type: ignore[arg-type]
    bus.subscribe(WalletEvent, holds.append)  # type: ignore[arg-type]
    bus.subscribe(WalletCredited, lambda event: print(event.escrow_id))  # type: ignore[attr-defined]
    bus.subscribe(str, print)  # type: ignore[type-var]
    bus.subscribe(EscrowHeld, "print")  # type: ignore[call-overload]
    bus.unsubscribe(EscrowHeld, of_a_credit)  # type: ignore[arg-type]
