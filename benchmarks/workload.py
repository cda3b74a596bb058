"""Who does what: 10,000 users and 1,000 models, uniform or Zipf, and the wallet module that carries it out."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from points_platform.core import Database, WalletError
from points_platform.ledger import LedgerService
from points_platform.queue import QueueAuthorizer
from points_platform.wallets import (
    DepositRequest,
    EscrowHoldRequest,
    EscrowHoldResponse,
    EscrowPartialSettleRequest,
    EscrowRefundRequest,
    EscrowSettleRequest,
    OpenWalletRequest,
    SpendRequest,
    TransferRequest,
    UserCreditRequest,
    WalletConfig,
    WalletService,
)

from .measure import Slice, work_through
from .server import Server

USERS, MODELS = 10_000, 1_000
AMOUNT, CREDIT = 10, 1_000_000_000
SETTLED = 4  # of a hold that is split
BATCH = 1000
FASTEST = 12_000  # operations per second that are made ready for the first slice of a kind
OPENED = "opened"
SECRET = "a secret of at least 32 bytes, for benchmarks"


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """Among how many users and models operations are spread: ``zipf`` gives number k a share of about 1/k."""

    users: int = USERS
    models: int = MODELS
    zipf: bool = False

    def user(self, chance: random.Random) -> str:
        return f"user-{self._number(self.users, chance)}"

    def model(self, chance: random.Random) -> str:
        return f"model-{self._number(self.models, chance)}"

    def _number(self, count: int, chance: random.Random) -> int:
        return int(count ** chance.random()) - 1 if self.zipf else chance.randrange(count)


EVERYBODY = Crowd()
FANS = Crowd(zipf=True)
ONE_MODEL = Crowd(models=1)
ONE_USER = Crowd(users=1)


class Task(NamedTuple):
    """One operation, ready to be asked for: plain values, and the queue's signed permission where it needs one."""

    user_id: str
    model_id: str
    key: str
    escrow_id: str = ""
    authorization: Any = None

    @property
    def recipient_id(self) -> str:
        """Another user, who has a wallet too."""
        number = int(self.user_id.removeprefix("user-"))
        return f"user-{(number + USERS // 2) % USERS}"


class Traffic:
    """The wallet module on a database, and tasks for it.

    What is measured is all that a caller's thread does from plain values to the response: making and
    checking the request, verifying the token, deciding, writing, committing. Signing tokens is the
    queue's work and is done before, as are the holds that are going to be ended.
    """

    def __init__(self, database: Database, *, cache: int = 10_000) -> None:
        self.database = database
        self.queue = QueueAuthorizer(SECRET)
        self.ledger = LedgerService(database)
        config = WalletConfig(idempotency_cache_size=cache)
        self.wallets = WalletService(self.ledger, authorizer=self.queue, config=config)
        self.operations: dict[str, Callable[[Task], object]] = {
            "hold": self.hold,
            "settle": self.settle,
            "refund": self.refund,
            "partial settle": self.partial_settle,
            "credit": self.credit,
            "spend": self.spend,
            "transfer": self.transfer,
            "deposit": self.deposit,
            "open": self.open_wallet,
        }
        self._chance = random.Random()
        self._rates: dict[str, float] = {}

    def open(self, crowd: Crowd = EVERYBODY) -> "Traffic":
        """Give every user points and every model its first earnings, so that all wallets are there."""
        for start in range(0, crowd.users, BATCH):
            users = range(start, min(start + BATCH, crowd.users))
            done(self.wallets.credit_many([_credit(f"user-{user}", "first", CREDIT) for user in users]))
        tasks = [Task("user-0", f"model-{model}", self._key()) for model in range(crowd.models)]
        for start in range(0, len(tasks), BATCH):
            self.settle_many(self.permitted("settle", self.held(tasks[start : start + BATCH])))
        return self

    def ready(self, operation: str, count: int, crowd: Crowd = EVERYBODY) -> list[Task]:
        """So many tasks for that operation, its holds made and its tokens signed."""
        tasks = [Task(crowd.user(self._chance), crowd.model(self._chance), self._key()) for _ in range(count)]
        if operation not in ENDING:
            return tasks
        held = [task for start in range(0, count, BATCH) for task in self.held(tasks[start : start + BATCH])]
        return self.permitted(operation, held)

    def slice(
        self,
        operation: str,
        seconds: float,
        *,
        threads: int,
        crowd: Crowd = EVERYBODY,
        together: Callable[[], object] = lambda: None,
    ) -> Slice:
        """Single operations in so many threads, begun when ``together`` returns."""
        kind = f"{operation} {threads} {crowd}"
        tasks = self.ready(operation, int(self._rates.get(kind, FASTEST) * seconds * 1.3) + threads, crowd)
        together()
        measured = work_through(self.operations[operation], tasks, threads=threads, seconds=seconds)
        self._rates[kind] = measured.per_s + measured.failed / seconds
        return measured

    def hold(self, task: Task) -> EscrowHoldResponse:
        return self.wallets.hold_in_escrow(_hold(task))

    def settle(self, task: Task) -> object:
        return self.wallets.settle_escrow(_settle(task), task.authorization)

    def refund(self, task: Task) -> object:
        return self.wallets.refund_escrow(_refund(task), task.authorization)

    def partial_settle(self, task: Task) -> object:
        return self.wallets.partial_settle_escrow(_partial_settle(task), task.authorization)

    def credit(self, task: Task) -> object:
        return self.wallets.credit_user(_credit(task.user_id, task.key, AMOUNT))

    def spend(self, task: Task) -> object:
        return self.wallets.spend_points(_spend(task))

    def transfer(self, task: Task) -> object:
        return self.wallets.transfer_points(_transfer(task))

    def deposit(self, task: Task) -> object:
        return self.wallets.deposit_points(_deposit(task))

    def open_wallet(self, task: Task) -> object:
        return self.wallets.open_wallet(_open(task))

    def hold_many(self, tasks: Sequence[Task]) -> list[Any]:
        return done(self.wallets.hold_many([_hold(task) for task in tasks]))

    def settle_many(self, tasks: Sequence[Task]) -> list[Any]:
        return done(self.wallets.settle_many([(_settle(task), task.authorization) for task in tasks]))

    def held(self, tasks: Sequence[Task]) -> list[Task]:
        """The same tasks with a hold for each."""
        answers = self.hold_many(tasks)
        return [task._replace(escrow_id=answer.escrow_id) for task, answer in zip(tasks, answers, strict=True)]

    def permitted(self, operation: str, tasks: Sequence[Task]) -> list[Task]:
        """The same tasks with a signed token for each."""
        request_for = ENDING[operation]
        return [task._replace(authorization=self.queue.authorize(request_for(task))) for task in tasks]

    def _key(self) -> str:
        return str(self._chance.getrandbits(60))


def opened(server: Server, name: str) -> Traffic:
    """A new database of that name in which everybody has a wallet; the first one is made, the others are copies."""
    if not server.has(OPENED):
        with server.fresh(OPENED) as database:
            Traffic(database).open()
    return Traffic(server.copy(OPENED, name))


def done(answers: list[Any]) -> list[Any]:
    """The answers of a batch, none of which may be a refusal."""
    for answer in answers:
        if isinstance(answer, WalletError):
            raise answer
    return answers


def _credit(user_id: str, key: str, amount: int) -> UserCreditRequest:
    return UserCreditRequest(user_id=user_id, amount=amount, reason="top_up", idempotency_key=key, request_id=f"r{key}")


def _hold(task: Task) -> EscrowHoldRequest:
    return EscrowHoldRequest(
        user_id=task.user_id,
        amount=AMOUNT,
        reason="menu_purchase",
        queue_item_id=f"q{task.key}",
        feature_type="song",
        idempotency_key=task.key,
        request_id=f"r{task.key}",
    )


def _spend(task: Task) -> SpendRequest:
    return SpendRequest(
        user_id=task.user_id,
        amount=AMOUNT,
        order_id=f"o{task.key}",
        reason="purchase",
        idempotency_key=task.key,
        request_id=f"r{task.key}",
    )


def _transfer(task: Task) -> TransferRequest:
    return TransferRequest(
        user_id=task.user_id,
        recipient_id=task.recipient_id,
        amount=AMOUNT,
        reason="gift",
        idempotency_key=task.key,
        request_id=f"r{task.key}",
    )


def _deposit(task: Task) -> DepositRequest:
    return DepositRequest(
        user_id=task.user_id,
        amount=AMOUNT,
        source="provider",
        reference=f"p{task.key}",
        reason="payment",
        idempotency_key=task.key,
        request_id=f"r{task.key}",
    )


def _open(task: Task) -> OpenWalletRequest:
    return OpenWalletRequest(
        owner=f"user:{task.user_id}", reason="sign_up", idempotency_key=task.key, request_id=f"r{task.key}"
    )


def _settle(task: Task) -> EscrowSettleRequest:
    return EscrowSettleRequest(
        escrow_id=task.escrow_id,
        user_id=task.user_id,
        model_id=task.model_id,
        amount=AMOUNT,
        queue_item_id=f"q{task.key}",
        reason="performance_completed",
        idempotency_key=task.key,
        request_id=f"r{task.key}",
    )


def _refund(task: Task) -> EscrowRefundRequest:
    return EscrowRefundRequest(
        escrow_id=task.escrow_id,
        user_id=task.user_id,
        amount=AMOUNT,
        queue_item_id=f"q{task.key}",
        reason="queue_timeout",
        idempotency_key=task.key,
        request_id=f"r{task.key}",
    )


def _partial_settle(task: Task) -> EscrowPartialSettleRequest:
    return EscrowPartialSettleRequest(
        escrow_id=task.escrow_id,
        user_id=task.user_id,
        model_id=task.model_id,
        refund_amount=AMOUNT - SETTLED,
        settle_amount=SETTLED,
        queue_item_id=f"q{task.key}",
        reason="partial_performance",
        idempotency_key=task.key,
        request_id=f"r{task.key}",
    )


ENDING: dict[str, Callable[[Task], Any]] = {
    "settle": _settle,
    "refund": _refund,
    "partial settle": _partial_settle,
}
