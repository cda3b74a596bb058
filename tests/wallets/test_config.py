"""The configuration of the wallets: defaults, bounds, and bad values refused by name."""

from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from points_platform.core import InvalidRequestError
from points_platform.core.failures import Stale
from points_platform.ledger import LedgerService
from points_platform.wallets import WalletConfig, WalletService
from support.answers import told
from support.world import World

NUMBERS = ("max_retry_attempts", "retry_backoff_ms", "idempotency_cache_size", "idempotency_cache_ttl_s")


def test_the_defaults() -> None:
    config = WalletConfig()
    assert (config.max_retry_attempts, config.retry_backoff_ms, config.default_currency) == (3, 100, "points")
    assert (config.idempotency_cache_size, config.idempotency_cache_ttl_s) == (10_000, 300)
    assert (config.retry.attempts, config.retry.backoff) == (3, 0.1)


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_whole_and_not_negative(name: str) -> None:
    values: list[Any] = [-1, 1.0, 0.5, True, False, None, "3", [3], float("nan"), float("inf"), -(10**400)]
    for value in values:
        with pytest.raises(InvalidRequestError) as caught:
            WalletConfig(**{name: value})
        assert caught.value.details["field"] == name
        assert caught.value.details["value"] == told(value)


@pytest.mark.parametrize("name", NUMBERS)
def test_zero_is_allowed(name: str) -> None:
    assert getattr(WalletConfig(**{name: 0}), name) == 0  # type: ignore[arg-type]


def test_the_default_currency_is_a_code() -> None:
    assert WalletConfig(default_currency="c" * 32).default_currency == "c" * 32
    for value in (None, "", "Points", "1p", "p-p", "c" * 33, "points\n", 1, True, b"points", "\ud800"):
        with pytest.raises(InvalidRequestError) as caught:
            WalletConfig(default_currency=value)  # type: ignore[arg-type]
        assert caught.value.details["field"] == "default_currency"


def test_it_is_frozen_keyword_only_and_knows_its_fields() -> None:
    config = WalletConfig()
    with pytest.raises(FrozenInstanceError):
        config.retry_backoff_ms = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        WalletConfig(3)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        WalletConfig(max_retries=3)  # type: ignore[call-arg]


@pytest.mark.parametrize("name", ["retry_backoff_ms", "idempotency_cache_ttl_s"])
def test_a_number_too_large_to_be_a_time_is_refused_before_it_can_fail_after_a_commit(world: World, name: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        world.service(config=WalletConfig(**{name: 10**400})).credit_user(world.credit_request())  # type: ignore[arg-type]
    assert caught.value.details["field"] == name
    assert world.events == []
    assert not world.snapshot()["ledger_transactions"]


def test_the_pause_has_a_limit_however_many_retries_there_are() -> None:
    WalletConfig(max_retry_attempts=5000, retry_backoff_ms=0).retry.pause(5000)


@pytest.mark.parametrize("retries", [0, 1, 5])
def test_retries_are_counted_after_the_first_attempt(stepwise: World, retries: int) -> None:
    attempts = []

    class Contended(LedgerService):
        def record(self, *given: Any) -> None:
            attempts.append(given)
            if len(attempts) <= retries:
                raise Stale
            super().record(*given)

    config = WalletConfig(max_retry_attempts=retries, retry_backoff_ms=0)
    wallets = WalletService(Contended(stepwise.database), authorizer=stepwise.authorizer, config=config)
    assert wallets.credit_user(stepwise.credit_request(amount=7)).new_available_balance == 7
    assert len(attempts) == retries + 1


def test_the_default_currency_is_that_of_credits_holds_and_balances_without_one(world: World) -> None:
    gems = world.service(config=WalletConfig(default_currency="gems"))
    gems.credit_user(world.credit_request(amount=50))
    gems.hold_in_escrow(world.hold_request(amount=20))
    balance = gems.get_user_balance("ana")
    assert (balance.currency, balance.available, balance.escrow) == ("gems", 30, 20)
    assert gems.get_model_balance("luna").currency == "gems"
    assert world.wallets.get_user_balance("ana").total == 0
    assert world.wallets.get_user_balance("ana", "gems").total == 50


@pytest.mark.parametrize("off", [{"idempotency_cache_size": 0}, {"idempotency_cache_ttl_s": 0}])
def test_without_the_cache_the_ledger_answers_a_repeated_request(world: World, off: dict[str, int]) -> None:
    wallets = world.service(config=WalletConfig(**off))  # type: ignore[arg-type]
    request = world.credit_request()
    first, second = wallets.credit_user(request), wallets.credit_user(request)
    assert (first, first.replayed, second.replayed) == (second, False, True)
