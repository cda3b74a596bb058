"""Many at once, from threads and from processes: every answer is one that some order of the requests would give."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from sqlalchemy.orm import Session

from points_platform.core import OptimisticLockError, WalletError
from points_platform.wallets import EscrowStatus, WalletConfig
from support.answers import tally
from support.workers import OPERATIONS, Processes, ready, worker_processes
from support.world import World, at_once

AS_DELIVERED = WalletConfig()


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    with worker_processes() as processes:
        yield processes


def send_at_once(world: World, *requests: Any, services: int = 1) -> list[Any]:
    """Send the requests from as many threads, through services with the delivered configuration."""
    wallets = [world.service(config=AS_DELIVERED) for _ in range(services)]
    return at_once(*(partial(world.send, request, wallets[n % services]) for n, request in enumerate(requests)))


def assert_exactly_seven_of_ten_points_fit(world: World, answers: list[Any]) -> None:
    assert tally(answers) == {"EscrowHoldResponse": 7, "InsufficientBalanceError": len(answers) - 7}
    held = [answer for answer in answers if not isinstance(answer, WalletError)]
    assert sorted(answer.escrow_balance for answer in held) == list(range(10, 71, 10))
    assert sorted(answer.new_available_balance for answer in held) == list(range(5, 66, 10))
    for answer in answers:
        assert answer in held or answer.details == {"required": 10, "available": 5, "currency": "points"}
    balance = world.wallets.get_user_balance("ana")
    assert (balance.available, balance.escrow, balance.version) == (5, 70, 8)


def assert_one_effect(world: World, answers: list[Any]) -> None:
    """All answers are equal, one of them is no replay, and nothing happened but this."""
    assert not [answer for answer in answers if isinstance(answer, Exception)], tally(answers)
    assert all(answer == answers[0] for answer in answers)
    assert [answer.replayed for answer in answers].count(False) == 1
    recorded = [row[0] for row in world.snapshot()["ledger_transactions"]]
    assert recorded.count(answers[0].transaction_id) == 1


def test_a_balance_for_seven_holds_gives_exactly_seven_to_forty_threads(world: World) -> None:
    world.credit(amount=75)
    answers = send_at_once(world, *(world.hold_request(amount=10) for _ in range(40)))
    assert_exactly_seven_of_ten_points_fit(world, answers)
    assert len(world.events) == 1 + 7


def test_a_balance_for_seven_holds_gives_exactly_seven_to_four_processes(
    world: World, url: str, processes: Processes
) -> None:
    world.credit(amount=75)
    answers = processes.send(url, [world.hold_request(amount=10) for _ in range(32)])
    assert_exactly_seven_of_ten_points_fit(world, answers)


def test_every_thread_is_served_when_the_balance_is_for_all(world: World) -> None:
    world.credit(amount=300)
    answers = send_at_once(world, *(world.hold_request(amount=10) for _ in range(30)))
    assert tally(answers) == {"EscrowHoldResponse": 30}
    assert world.wallets.get_user_balance("ana").available == 0


def test_credits_and_holds_of_several_currencies_do_not_mix(world: World) -> None:
    served = {"points": 3, "gems": 5, "tickets": 0}
    for currency, count in served.items():
        world.credit(amount=10 * count + 9, currency=currency)
    requests = {currency: [world.hold_request(amount=10, currency=currency) for _ in range(10)] for currency in served}
    answers = send_at_once(world, *(request for column in zip(*requests.values(), strict=True) for request in column))
    for number, (currency, count) in enumerate(served.items()):
        mine = answers[number :: len(served)]
        refused = {"InsufficientBalanceError": 10 - count}
        assert tally(mine) == ({"EscrowHoldResponse": count} if count else {}) | refused
        balance = world.wallets.get_user_balance("ana", currency)
        assert (balance.available, balance.escrow) == (9, 10 * count)


def assert_each_hold_ended_once(world: World, holds: list[str], answers: list[Any]) -> None:
    ends = {
        "EscrowSettleResponse": EscrowStatus.SETTLED,
        "EscrowRefundResponse": EscrowStatus.REFUNDED,
        "EscrowPartialSettleResponse": EscrowStatus.PARTIALLY_SETTLED,
    }
    for number, escrow_id in enumerate(holds):
        mine = answers[number :: len(holds)]
        refused = [answer for answer in mine if isinstance(answer, WalletError)]
        (winner,) = [answer for answer in mine if answer not in refused]
        status = world.wallets.get_escrow(escrow_id).status
        assert status is ends[type(winner).__name__]
        assert tally(refused) == {"EscrowAlreadyProcessedError": len(mine) - 1}
        assert all(answer.details == {"escrow_id": escrow_id, "status": status.value} for answer in refused)


def ends_of(world: World, holds: list[str]) -> list[Any]:
    makers = (world.settle_request, world.refund_request, world.partial_settle_request, world.refund_request)
    return [make(escrow_id) for make in makers for escrow_id in holds]


def test_settling_against_refunding_ends_each_hold_once(world: World) -> None:
    world.credit(amount=300)
    holds = [world.hold().escrow_id for _ in range(10)]
    assert_each_hold_ended_once(world, holds, send_at_once(world, *ends_of(world, holds)))


def test_settling_against_refunding_from_processes_ends_each_hold_once(
    world: World, url: str, processes: Processes
) -> None:
    world.credit(amount=300)
    holds = [world.hold().escrow_id for _ in range(8)]
    assert_each_hold_ended_once(world, holds, processes.send(url, ends_of(world, holds)))


@pytest.mark.parametrize("users", [1, 32])
def test_thirty_two_threads_settle_to_one_new_model_without_a_failure(world: World, users: int) -> None:
    requests = [ready(world, "settle", f"user-{number % users}") for number in range(32)]
    answers = send_at_once(world, *requests)
    assert tally(answers) == {"EscrowSettleResponse": 32}
    assert sorted(answer.model_earned_balance for answer in answers) == list(range(30, 961, 30))
    assert world.wallets.get_model_balance("luna").version == 32


def test_processes_settle_to_one_new_model_without_a_failure(world: World, url: str, processes: Processes) -> None:
    answers = processes.send(url, [ready(world, "settle", f"user-{number % 8}") for number in range(32)])
    assert tally(answers) == {"EscrowSettleResponse": 32}
    assert sorted(answer.model_earned_balance for answer in answers) == list(range(30, 961, 30))


def test_fifty_threads_with_one_key_have_one_effect_and_one_answer(world: World) -> None:
    for operation in OPERATIONS:
        request = ready(world, operation, f"user-of-{operation}")
        before = len(world.events)
        answers = send_at_once(world, *[request] * 50, services=5)
        assert_one_effect(world, answers)
        assert [event.event_id for event in world.events[before:]] == [answers[0].transaction_id]


def test_processes_with_one_key_have_one_effect_and_one_answer(world: World, url: str, processes: Processes) -> None:
    for operation in OPERATIONS:
        request = ready(world, operation, f"user-of-{operation}")
        assert_one_effect(world, processes.send(url, [request] * 16))


def test_one_key_with_two_requests_serves_one_of_them_and_names_the_difference_to_the_other(world: World) -> None:
    world.credit(amount=300)
    requests = [world.hold_request(amount=10 + number % 2, idempotency_key="one") for number in range(20)]
    answers = send_at_once(world, *requests, services=2)
    assert tally(answers) == {"EscrowHoldResponse": 10, "IdempotencyConflictError": 10}
    assert len({answer.escrow_id for answer in answers if not isinstance(answer, WalletError)}) == 1
    assert all(a.details == {"key": "one", "fields": ("amount",)} for a in answers if isinstance(a, WalletError))


def test_the_first_credits_of_a_wallet_all_arrive(world: World) -> None:
    answers = send_at_once(world, *(world.credit_request(amount=1 + number) for number in range(30)))
    assert tally(answers) == {"UserCreditResponse": 30}
    balance = world.wallets.get_user_balance("ana")
    assert (balance.available, balance.version) == (sum(range(1, 31)), 30)


def test_everything_at_once_on_crossing_users_and_models_never_fails(world: World) -> None:
    """Each pair of requests shares a user, a model, both in the same order or crosswise; nobody comes in vain."""
    users, models = ("ana", "ben"), ("luna", "sol")
    requests: list[Any] = []
    for user in users:
        world.credit(user, amount=10_000)
        for model in models * 2:
            options: dict[str, Any] = {"user_id": user, "model_id": model}
            requests.append(world.settle_request(world.hold(user).escrow_id, **options))
            requests.append(world.partial_settle_request(world.hold(user).escrow_id, **options))
        requests += [world.refund_request(world.hold(user).escrow_id, user_id=user) for _ in range(4)]
        requests += [world.hold_request(user), world.hold_request(user), world.credit_request(user)] * 2
    answers = send_at_once(world, *requests[::2], *reversed(requests[1::2]))
    assert not [answer for answer in answers if isinstance(answer, Exception)], tally(answers)
    earned = [world.wallets.get_model_balance(model).earned for model in models]
    assert earned == [2 * 2 * (30 + 20)] * 2


def test_callers_that_lock_in_opposite_orders_see_only_optimistic_lock_errors(world: World) -> None:
    """Transactions of the host that a deadlock undoes start over, and in the end each has had its effect once."""
    orders = [("ana", "ben"), ("ben", "ana")]
    for user in orders[0]:
        world.credit(user, amount=20)
    surfaced: list[Exception] = []

    def spend(number: int, users: tuple[str, ...]) -> None:
        requests = [world.hold_request(user, amount=10, idempotency_key=f"caller-{number}") for user in users]
        while True:
            with Session(world.database.engine) as session:
                try:
                    for request in requests:
                        world.wallets.hold_in_escrow(request, session=session)
                    session.commit()
                    return
                except OptimisticLockError as error:
                    surfaced.append(error)

    answers = at_once(*(partial(spend, number, users) for number, users in enumerate(orders)))
    assert answers == [None] * len(orders)
    assert all(error.retryable for error in surfaced if isinstance(error, OptimisticLockError))
    for user in orders[0]:
        balance = world.wallets.get_user_balance(user)
        assert (balance.available, balance.escrow) == (0, 20)
    assert len(world.events) == 2 + 2 * len(orders)
