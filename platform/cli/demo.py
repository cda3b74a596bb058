"""An evening on a small platform: users ask for performances, the queue decides what becomes of their points."""

import secrets
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from ..core import Database, InsufficientBalanceError
from ..core.values import new_id
from ..events import EventBus, WalletEvent
from ..ledger import LedgerService
from ..queue import QueueAuthorizer
from ..wallets import (
    EscrowHoldRequest,
    EscrowPartialSettleRequest,
    EscrowRefundRequest,
    EscrowSettleRequest,
    TransactionReason,
    UserCreditRequest,
    WalletService,
)
from . import tables
from .terminal import console, show

USERS = ("ana", "ben", "carla", "dario", "elif", "femi")
MODELS = ("luna", "mika", "nova", "orion")
FEATURES = ("song", "dance", "poem", "magic_trick")
REQUESTS_PER_USER = 4
# What a user is given, and the least and the most that one performance costs.
BUDGETS = {"points": (500, 20, 80), "stars": (40, 2, 9)}
# How the queue decides on all of these requests but the last few, which still wait when the evening ends.
DECISIONS = ("settle",) * 14 + ("refund",) * 4 + ("split",) * 3
STATEMENT_LINES = 8
PAUSE = 0.04

ACTIVITY = {
    "wallet.credited": ("cyan", "{0.user_id} is given {0.amount} {0.currency}"),
    "wallet.escrow_held": ("yellow", "{0.user_id} asks for a {0.feature_type}: {0.amount} {0.currency} into escrow"),
    "wallet.escrow_settled": ("green", "{0.model_id} has performed: earns {0.settled_amount} {0.currency}"),
    "wallet.escrow_refunded": ("magenta", "{0.user_id} gets {0.refunded_amount} {0.currency} back ({0.reason})"),
    "wallet.escrow_partially_settled": (
        "blue",
        "{0.model_id} had to stop: earns {0.settled_amount}, {0.user_id} gets {0.refunded_amount} {0.currency} back",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Performance:
    """What the queue knows of a request that waits."""

    request: EscrowHoldRequest
    escrow_id: str
    model_id: str


def evening(database: Database, *, seed: int) -> None:
    """Let it happen, with a line for each event as it comes, then print what came of it."""
    chance = Random(seed)  # noqa: S311 - the same evening for the same seed
    platform = Platform(database)
    platform.give_points()
    waiting: deque[Performance] = deque()
    decisions = chance.sample(DECISIONS, len(DECISIONS))
    for request in platform.requests(chance):
        waiting.append(platform.hold(request, chance.choice(MODELS)))
        if len(waiting) > len(USERS) * REQUESTS_PER_USER - len(DECISIONS):
            platform.decide(decisions.pop(), waiting.popleft(), chance)
    platform.send_twice(waiting[0].request)
    platform.ask_too_much(USERS[0])
    platform.show_earnings()
    platform.show_statement(USERS[0])
    platform.show_waiting(waiting)


class Platform:
    """The host of the library: its wallets, its queue's signature, and the keys of this one evening."""

    def __init__(self, database: Database) -> None:
        self._ledger = LedgerService(database)
        self._queue = QueueAuthorizer(secrets.token_bytes(32))
        self._wallets = WalletService(self._ledger, authorizer=self._queue, events=live_activity())
        self._evening = new_id()  # a part of every key: the next evening on this database is another one

    def give_points(self) -> None:
        for user in USERS:
            for currency, (budget, _, _) in BUDGETS.items():
                self._wallets.credit_user(
                    UserCreditRequest(
                        idempotency_key=f"{self._evening}/{currency}",
                        request_id=new_id(),
                        user_id=user,
                        amount=budget,
                        currency=currency,
                        reason=TransactionReason.TOP_UP,
                    )
                )

    def requests(self, chance: Random) -> Iterator[EscrowHoldRequest]:
        """What the users ask for, in the order in which they ask; one in four pays in stars."""
        users = list(USERS) * REQUESTS_PER_USER
        chance.shuffle(users)
        for number, user in enumerate(users, 1):
            currency = "stars" if number % 4 == 0 else "points"
            _, least, most = BUDGETS[currency]
            yield EscrowHoldRequest(
                idempotency_key=f"{self._evening}/{number}",
                request_id=new_id(),
                user_id=user,
                amount=chance.randint(least, most),
                currency=currency,
                queue_item_id=f"performance-{number}",
                feature_type=chance.choice(FEATURES),
                reason=TransactionReason.PERFORMANCE_REQUEST,
            )

    def hold(self, request: EscrowHoldRequest, model_id: str) -> Performance:
        held = self._wallets.hold_in_escrow(request)
        return Performance(request=request, escrow_id=held.escrow_id, model_id=model_id)

    def decide(self, decision: str, performance: Performance, chance: Random) -> None:
        """The queue signs what is to become of the hold, and the wallets carry it out."""
        if decision == "settle":
            self._settle(performance)
        elif decision == "refund":
            self._refund(performance)
        else:
            self._split(performance, chance.randint(1, performance.request.amount - 1))

    def _settle(self, performance: Performance) -> None:
        request = EscrowSettleRequest(
            idempotency_key=performance.escrow_id,
            request_id=new_id(),
            user_id=performance.request.user_id,
            escrow_id=performance.escrow_id,
            model_id=performance.model_id,
            amount=performance.request.amount,
            queue_item_id=performance.request.queue_item_id,
            reason=TransactionReason.PERFORMANCE_COMPLETED,
        )
        self._wallets.settle_escrow(request, self._queue.authorize(request))

    def _refund(self, performance: Performance) -> None:
        request = EscrowRefundRequest(
            idempotency_key=performance.escrow_id,
            request_id=new_id(),
            user_id=performance.request.user_id,
            escrow_id=performance.escrow_id,
            amount=performance.request.amount,
            queue_item_id=performance.request.queue_item_id,
            reason=TransactionReason.QUEUE_TIMEOUT,
        )
        self._wallets.refund_escrow(request, self._queue.authorize(request))

    def _split(self, performance: Performance, refund: int) -> None:
        request = EscrowPartialSettleRequest(
            idempotency_key=performance.escrow_id,
            request_id=new_id(),
            user_id=performance.request.user_id,
            escrow_id=performance.escrow_id,
            model_id=performance.model_id,
            refund_amount=refund,
            settle_amount=performance.request.amount - refund,
            queue_item_id=performance.request.queue_item_id,
            reason=TransactionReason.PARTIAL_PERFORMANCE,
        )
        self._wallets.partial_settle_escrow(request, self._queue.authorize(request))

    def send_twice(self, request: EscrowHoldRequest) -> None:
        """An answer was lost on its way, so the app sends its request again."""
        before = self._wallets.get_user_balance(request.user_id, request.currency)
        again = self._wallets.hold_in_escrow(request)
        after = self._wallets.get_user_balance(request.user_id, request.currency)
        outcome = (
            "the same answer, and nothing moved" if again.replayed and before.version == after.version else "MOVED"
        )
        console.print(f"\n{request.user_id}'s app sends the same request again: {outcome}")

    def ask_too_much(self, user: str) -> None:
        available = self._wallets.get_user_balance(user).available
        request = EscrowHoldRequest(
            idempotency_key=f"{self._evening}/too much",
            request_id=new_id(),
            user_id=user,
            amount=available + 1,
            queue_item_id="performance-too-dear",
            feature_type=FEATURES[0],
            reason=TransactionReason.PERFORMANCE_REQUEST,
        )
        try:
            self._wallets.hold_in_escrow(request)
        except InsufficientBalanceError as error:
            console.print(f"{user} asks for more than there is: refused, {error}")

    def show_earnings(self) -> None:
        rows = (
            (model, {currency: self._wallets.get_model_balance(model, currency).earned for currency in BUDGETS})
            for model in MODELS
        )
        console.print()
        show(tables.amounts("what the creators have earned", rows, first="model"))

    def show_statement(self, user: str) -> None:
        page = self._ledger.entries(f"user:{user}", "points", newest_first=True, limit=STATEMENT_LINES)
        console.print()
        show(tables.statement(f"the last {len(page.items)} lines of user:{user} (points)", page.items))

    def show_waiting(self, waiting: deque[Performance]) -> None:
        console.print()
        items = (self._wallets.get_escrow(performance.escrow_id) for performance in waiting)
        show(tables.escrows("still waiting in the queue, so still in escrow", items))


def live_activity() -> EventBus:
    """A bus that prints each event as it comes, at a pace that can be watched where somebody watches."""
    bus = EventBus()
    for event_type in ACTIVITY:
        bus.subscribe(event_type, _print_activity)
    return bus


def _print_activity(event: WalletEvent) -> None:
    style, text = ACTIVITY[event.event_type]
    console.print(f"{event.occurred_at:%H:%M:%S}  {text.format(event)}", style=style)
    if console.is_terminal:
        time.sleep(PAUSE)
