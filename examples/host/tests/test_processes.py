"""What the processes say to each other, and how they end."""

import asyncio
import json
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import httpx2
import pytest

from examples.host import demo
from examples.host.live import MOST_UNREAD, Live
from examples.host.tables import Redemption
from examples.host.worker import work
from points_platform.queue import QueueAuthorizer
from points_platform.wallets import EscrowHeld, QueueAuthorization, QueuePartialSettlementAuthorization

ORDER = Redemption(
    redemption_id="item-1",
    user_id="ana",
    model_id="luna",
    item_id="dance",
    feature="dance",
    price=80,
    escrow_id="01890a5d-ac96-774b-bcce-b302099a8057",
    ordered_at=datetime(2026, 3, 1, tzinfo=UTC),
)


# ── the page that is open ──


def test_users_are_told_of_their_own_events_in_order() -> None:
    async def watch() -> list[str]:
        live = Live()
        with live.of("ana") as anas, live.of("ben") as bens:
            for number in range(MOST_UNREAD + 1):
                live.publish(held("ana", number))
            live.publish(held("ben", 0))
            assert (anas.qsize(), bens.qsize()) == (MOST_UNREAD, 1)
            told = [anas.get_nowait().event_id for _ in range(3)]
        live.publish(held("ana", 0))
        return told

    assert asyncio.run(watch()) == ["0", "1", "2"]


def held(user_id: str, number: int) -> EscrowHeld:
    return EscrowHeld(
        event_id=str(number),
        occurred_at=datetime(2026, 3, 1, tzinfo=UTC),
        transaction_id=str(number),
        idempotency_key="k-1",
        request_id="r-1",
        currency="points",
        reason="menu_purchase",
        metadata_json=None,
        user_id=user_id,
        escrow_id=ORDER.escrow_id,
        queue_item_id="item-1",
        feature_type="dance",
        amount=80,
        previous_balance=80,
        new_available_balance=0,
        escrow_balance=80,
    )


# ── the worker ──


def test_the_worker_decides_on_what_it_has_claimed() -> None:
    decided: list[QueueAuthorization] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/queue/claim":
            return httpx2.Response(200, content=ORDER.model_dump_json() if not decided else "null")
        decided.append(QueueAuthorization.from_token(json.loads(request.content)["token"]))
        return httpx2.Response(200)

    queue = QueueAuthorizer("the secret of the platform's own tests")
    with httpx2.Client(base_url="http://host", transport=httpx2.MockTransport(answer)) as client:
        assert work(client, queue)
        assert not work(client, queue)
    (authorization,) = decided
    assert isinstance(authorization, QueuePartialSettlementAuthorization)
    assert (authorization.settle_amount, authorization.refund_amount) == (40, 40)


# ── the demo ──


@pytest.fixture
def handlers() -> Iterator[None]:
    """What the demo does on signals is put back after the test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_demo_that_does_not_end_is_ended(handlers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "ALL_SECONDS", 0.01)
    monkeypatch.setattr(demo, "demo", signal.pause)
    assert demo.main() == 1


def test_what_is_wrong_ends_the_demo_with_a_status(handlers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for outcome, status in ((demo.WrongError, 1), (httpx2.ReadTimeout("silence"), 1), (KeyboardInterrupt, 130)):
        monkeypatch.setattr(demo, "demo", raising(outcome))
        assert demo.main() == status


def raising(outcome: type[BaseException] | BaseException) -> Callable[[], None]:
    def run() -> None:
        raise outcome

    return run


@pytest.mark.parametrize("ended_by", [KeyboardInterrupt, SystemExit, demo.WrongError])
def test_whatever_ends_the_demo_its_processes_end_with_it(ended_by: type[BaseException]) -> None:
    with pytest.raises(ended_by), demo.process("python", "-c", "import signal; signal.pause()") as running:
        raise ended_by
    assert running.returncode == -signal.SIGTERM


def test_a_process_that_has_ended_by_itself_is_noticed() -> None:
    with pytest.raises(demo.WrongError), demo.process("python", "-c", "") as running:
        running.wait()


def test_a_command_that_fails_says_why() -> None:
    with pytest.raises(demo.WrongError, match="which database"):
        demo.command("points-platform", "verify", POINTS_PLATFORM_DATABASE="")
