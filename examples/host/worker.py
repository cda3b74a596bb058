"""The worker process: takes what waits in the queue, performs it, and signs what is to become of the points.

    HOST_QUEUE_KEY=queue.pem HOST_URL=http://127.0.0.1:8000 python -m examples.host.worker

It has the private key, and neither the database nor a wallet: all it can do is decide.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable

import httpx2

from points_platform.queue import AuthorizationKey, QueueAuthorizer
from points_platform.wallets import QueueAuthorization, TransactionReason

from .tables import Redemption

IDLE_SECONDS = 0.1
# How much of each performance takes place; here nobody sings, so it is written down.
TAKES_PLACE = {"song": 1.0, "dance": 0.5, "poem": 0.0}


def perform(redemption: Redemption) -> int:
    """How many points of its price a performance was worth."""
    return int(redemption.price * TAKES_PLACE[redemption.feature])


def sign(queue: QueueAuthorizer, redemption: Redemption, earned: int) -> QueueAuthorization:
    """The permission to give the model what it has earned, and the user the rest."""
    if earned == redemption.price:
        return queue.authorize_settlement(
            queue_item_id=redemption.redemption_id,
            escrow_id=redemption.escrow_id,
            user_id=redemption.user_id,
            model_id=redemption.model_id,
            amount=earned,
            reason=TransactionReason.PERFORMANCE_COMPLETED,
        )
    if earned == 0:
        return queue.authorize_refund(
            queue_item_id=redemption.redemption_id,
            escrow_id=redemption.escrow_id,
            user_id=redemption.user_id,
            amount=redemption.price,
            reason=TransactionReason.PERFORMANCE_ABANDONED,
        )
    return queue.authorize_partial_settlement(
        queue_item_id=redemption.redemption_id,
        escrow_id=redemption.escrow_id,
        user_id=redemption.user_id,
        model_id=redemption.model_id,
        settle_amount=earned,
        refund_amount=redemption.price - earned,
        reason=TransactionReason.PARTIAL_PERFORMANCE,
    )


def work(web: httpx2.Client, queue: QueueAuthorizer, performed: Callable[[Redemption], int] = perform) -> bool:
    """Perform the next order and have its decision carried out; false if none waits.

    If the answer is lost the order comes again when its claim has run out, and the same decision moves nothing twice.
    """
    claimed = web.post("/queue/claim").raise_for_status().json()
    if claimed is None:
        return False
    redemption = Redemption.model_validate(claimed)
    authorization = sign(queue, redemption, performed(redemption))
    web.post("/queue/decisions", json={"token": authorization.token}).raise_for_status()
    return True


def main() -> None:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    queue = QueueAuthorizer(AuthorizationKey.from_file(os.environ["HOST_QUEUE_KEY"]))
    with httpx2.Client(base_url=os.environ["HOST_URL"]) as web:
        while not stop.is_set():
            try:
                if work(web, queue):
                    continue
            except httpx2.HTTPError as error:
                print(f"the worker: {error}", file=sys.stderr)
            stop.wait(IDLE_SECONDS)


if __name__ == "__main__":
    main()
