"""Lists that are read in pages, item by item."""

from typing import Any

import pytest

from points_platform.core import InvalidRequestError, every
from support.answers import told
from support.statements import statements
from support.world import World


@pytest.mark.parametrize("limit", [1, 2, 3, 1000])
def test_every_item_comes_once_in_the_order_of_the_pages(world: World, limit: int) -> None:
    world.credit(amount=100)
    held = [world.hold(amount=1).escrow_id for _ in range(3)]
    assert [item.escrow_id for item in every(world.wallets.list_escrows, user_id="ana", limit=limit)] == held
    lines = list(every(world.ledger.entries, "user:ana", "points", bucket="escrow", newest_first=True, limit=limit))
    assert [line.escrow_id for line in lines] == held[::-1]


def test_pages_are_as_large_as_may_be_and_begin_where_one_says(world: World) -> None:
    world.credit(amount=100)
    held = [world.hold(amount=1).escrow_id for _ in range(3)]
    with statements(world.database.engine) as seen:
        assert len(list(every(world.wallets.list_escrows, user_id="ana"))) == 3
    assert len([each for each in seen if each.startswith("SELECT")]) == 1
    first = world.wallets.list_escrows(user_id="ana", limit=1)
    rest = every(world.wallets.list_escrows, user_id="ana", after=first.next)
    assert [item.escrow_id for item in rest] == held[1:]


def test_a_later_page_is_of_its_own_moment_and_what_is_not_taken_is_not_read(world: World) -> None:
    world.credit(amount=100)
    items = every(world.wallets.list_escrows, user_id="ana", limit=1)
    assert list(items) == []
    held = [world.hold(amount=1).escrow_id for _ in range(2)]
    items = every(world.wallets.list_escrows, user_id="ana", limit=1)
    with statements(world.database.engine) as seen:
        assert next(items).escrow_id == held[0]
    assert seen == []
    held.append(world.hold(amount=1).escrow_id)
    assert [item.escrow_id for item in items] == held[1:]


def test_what_the_method_raises_is_raised_at_once(world: World) -> None:
    with pytest.raises(InvalidRequestError) as refusal:
        every(world.ledger.entries, "ana", "points")
    assert refusal.value.details["field"] == "account_id"


def test_what_answers_no_page_is_refused_by_name(world: World) -> None:
    def ask(**options: Any) -> Any:
        return [1]

    for read in (None, "entries", [1], ask):
        with pytest.raises(InvalidRequestError) as refusal:
            every(read)  # type: ignore[arg-type]
        assert refusal.value.details["field"] == "read"
        assert refusal.value.details["value"] == told(f"a {type(read).__name__}")
