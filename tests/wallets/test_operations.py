"""What each operation does to every row, and what it answers."""

from support.world import World


def test_credit_creates_the_wallet_with_its_first_entry(world: World) -> None:
    response = world.credit(amount=100)
    assert (response.previous_balance, response.new_available_balance, response.replayed) == (0, 100, False)
    balance = world.wallets.get_user_balance("ana")
    assert (balance.available, balance.escrow, balance.total, balance.version) == (100, 0, 100, 1)
