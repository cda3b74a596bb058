"""Which currencies there are: what names another one is refused, and nothing is changed."""

from typing import Any

import pytest

from points_platform.core import InvalidRequestError
from points_platform.wallets import EscrowStatus, WalletConfig, WalletService
from support.by_operation import ByOperation
from support.examples import EXAMPLES
from support.world import World

NAMED = WalletConfig(currencies=["points", "gems"])
# Whether the currency is the hold's: then it was allowed when that began.
OF_HOLD = ByOperation(
    "OF_HOLD in tests/wallets/test_currencies.py",
    {
        "credit": False,
        "deposit": False,
        "hold": False,
        "settle": True,
        "refund": True,
        "partial_settle": True,
        "spend": False,
        "transfer": False,
        "open": False,
    },
)
BEGINS = [name for name, of_hold in OF_HOLD.items() if not of_hold]
MANY = {"credit": "credit_many", "hold": "hold_many", "spend": "spend_many", "transfer": "transfer_many"}
MANY["deposit"] = "deposit_many"


@pytest.fixture
def named(world: World) -> WalletService:
    return world.service(config=NAMED)


def assert_refused(refusal: Any) -> None:
    assert isinstance(refusal, InvalidRequestError)
    assert (refusal.details["field"], refusal.details["value"]) == ("currency", "gold")
    assert refusal.details["expected"] == "one of gems, points"


@pytest.mark.parametrize("operation", BEGINS)
def test_an_operation_in_another_currency_is_refused_by_name_and_changes_nothing(
    world: World, named: WalletService, operation: str
) -> None:
    request = EXAMPLES[operation](world, currency="gold")
    before = world.snapshot()
    with pytest.raises(InvalidRequestError) as caught:
        world.send(request, named)
    assert_refused(caught.value)
    assert world.snapshot() == before
    assert not world.send(request).replayed, "its key is still free"


@pytest.mark.parametrize("operation", BEGINS)
@pytest.mark.parametrize("currency", ["gems", None])
def test_an_operation_in_one_of_them_is_carried_out(
    world: World, named: WalletService, operation: str, currency: str | None
) -> None:
    world.send(EXAMPLES[operation](world, currency=currency), named)


@pytest.mark.parametrize("operation", sorted(MANY))
def test_in_a_batch_each_is_refused_for_itself(world: World, named: WalletService, operation: str) -> None:
    requests = [EXAMPLES[operation](world, currency=currency) for currency in ("gold", "gems", None)]
    many = getattr(named, MANY[operation])
    with pytest.raises(InvalidRequestError) as caught:
        many(requests, atomic=True)
    assert_refused(caught.value)
    assert caught.value.details["index"] == 0
    answers = many(requests)
    assert_refused(answers[0])
    assert [answer.replayed for answer in answers[1:]] == [False, False]


@pytest.mark.parametrize("operation", [name for name, of_hold in OF_HOLD.items() if of_hold])
def test_a_hold_in_a_currency_that_was_taken_out_comes_to_its_end(
    world: World, named: WalletService, operation: str
) -> None:
    request = EXAMPLES[operation](world, currency="gold")
    world.send(request, named)
    assert world.wallets.get_escrow(request.escrow_id).status != EscrowStatus.HELD


def test_a_question_for_a_balance_in_another_currency_is_refused_and_all_balances_are_all(
    world: World, named: WalletService
) -> None:
    world.credit(currency="gold")
    for ask in (named.get_user_balance, named.get_model_balance):
        with pytest.raises(InvalidRequestError) as caught:
            ask("ana", "gold")
        assert_refused(caught.value)
        assert ask("ana", "gems").version == ask("ana").version == 0
    assert [balance.currency for balance in named.get_user_balances("ana")] == ["gold"]


def test_what_is_no_request_of_the_kind_wins_over_it(world: World, named: WalletService) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        named.credit_user(world.spend_request(currency="gold"))  # type: ignore[arg-type]
    assert caught.value.details["field"] == "request"


def test_the_default_currency_is_one_of_them() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        WalletConfig(currencies=["gems", "gold"])
    assert (caught.value.details["field"], caught.value.details["value"]) == ("default_currency", "points")
    assert "gems, gold" in str(caught.value)
    assert WalletConfig(currencies=["gems"], default_currency="gems").currencies == ("gems",)


class Hostile(list[str]):
    """A list that cannot be gone through."""

    def __iter__(self) -> Any:
        raise RuntimeError


@pytest.mark.parametrize(
    "given", ["points", b"points", [], {"points": 1}, 1, ["points", "Gems"], ["points", 1], [[]], Hostile(["points"])]
)
def test_what_is_no_list_of_codes_is_refused(given: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        WalletConfig(currencies=given)
    assert caught.value.details["field"] == "currencies"


def test_they_are_kept_in_order_each_once_and_not_the_callers_list() -> None:
    given = ["points", "gems", "points"]
    config = WalletConfig(currencies=given)
    given.clear()
    assert config.currencies == ("gems", "points")
    assert config == WalletConfig(currencies=frozenset({"points", "gems"}))
    assert WalletConfig().currencies is None
