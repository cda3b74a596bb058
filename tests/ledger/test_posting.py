"""The ledger's second opinion: no operation posts moves that the chart does not give it, whoever has decided so."""

from datetime import UTC, datetime
from typing import Any

import pytest

from points_platform.core import MAX_POINTS
from points_platform.ledger import Account, Bucket, LedgerTransaction, Movement, TransactionDraft, WalletState, post
from points_platform.ledger.accounts import CHART, Move, Touch

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
ANA, HELD = Account("user:ana", Bucket.AVAILABLE), Account("user:ana", Bucket.ESCROW)
PAYING = Account("user:ana", Bucket.PAYING)
BEN, BENS_ESCROW = Account("user:ben", Bucket.AVAILABLE), Account("user:ben", Bucket.ESCROW)
LUNA, SOL = Account("model:luna", Bucket.EARNED), Account("model:sol", Bucket.EARNED)
ISSUER, REVENUE = Account("platform:issuer", Bucket.ISSUED), Account("platform:revenue", Bucket.REVENUE)
Moves = tuple[Move, ...]

# By hand: what each operation of ana's, which may name the model luna, may move.
RIGHT: dict[str, list[Moves]] = {
    "credit": [(Movement(ISSUER, ANA, 30),)],
    "deposit": [(Movement(ISSUER, ANA, 30),)],
    "hold": [(Movement(ANA, HELD, 30),)],
    "settle": [(Movement(HELD, LUNA, 30),)],
    "refund": [(Movement(HELD, ANA, 30),)],
    "partial_settle": [(Movement(HELD, ANA, 10), Movement(HELD, LUNA, 20))],
    "spend": [(Movement(ANA, REVENUE, 30),)],
    "transfer": [(Movement(ANA, BEN, 30),)],
    "open": [(Touch(ANA),)],
}
operations = pytest.mark.parametrize("operation", RIGHT)

# Accounts that there cannot be: a bucket of another kind of owner, an owner of no kind, of no name, or of another name.
NOBODY = [
    *(Account("user:ana", bucket) for bucket in (Bucket.EARNED, Bucket.ISSUED, Bucket.REVENUE)),
    *(Account("model:luna", bucket) for bucket in (Bucket.AVAILABLE, Bucket.ESCROW, Bucket.ISSUED)),
    *(Account("platform:issuer", bucket) for bucket in (Bucket.REVENUE, Bucket.AVAILABLE, Bucket.PAYING)),
    *(Account("platform:revenue", bucket) for bucket in (Bucket.ISSUED, Bucket.EARNED)),
    *(Account(owner, Bucket.AVAILABLE) for owner in ("robot:ana", "ana", "", "user", "User:ana", "users:ana")),
    *(Account(owner, Bucket.ISSUED) for owner in ("platform:other", "platform:", "platform:issuer2")),
]
# Accounts that there are, and on which none of these operations, being ana's, has any business but as ``RIGHT`` says.
EVERYBODY = [ANA, HELD, PAYING, BEN, BENS_ESCROW, LUNA, SOL, ISSUER, REVENUE]


def posted(operation: str, moves: Any, **header: Any) -> LedgerTransaction:
    """With a wallet for whoever could have one, so that nothing else is missing."""
    draft = TransactionDraft(
        **{
            "transaction_id": "t",
            "owner_id": "user:ana",
            "operation": operation,
            "idempotency_key": "key",
            "request_id": "request",
            "reason": "reason",
            "currency": "points",
            "model_id": "luna",
            "moves": tuple(moves),
            **header,
        }
    )
    wallet = WalletState(balances=dict.fromkeys(Bucket, MAX_POINTS), version=7, posted_at=NOON)
    accounts = [account for move in moves for account in ends(move)]
    return post(
        draft, {account.account_id: wallet for account in accounts if "platform" not in account.account_id}, at=NOON
    )


def ends(move: Move) -> list[Account]:
    return [move.account] if isinstance(move, Touch) else [move.source, move.target]


def assert_refused(operation: str, moves: Any, **header: Any) -> None:
    with pytest.raises(ValueError, match=f"^{operation} must not make the moves"):
        posted(operation, moves, **header)


def test_every_operation_of_the_chart_is_here() -> None:
    assert set(RIGHT) == set(CHART)


@operations
def test_it_may_make_its_own_moves_and_their_entries_sum_to_zero(operation: str) -> None:
    for moves in RIGHT[operation]:
        for order in (moves, moves[::-1]):
            entries = posted(operation, order).entries
            assert sum(entry.amount for entry in entries) == 0
            assert {entry.account for entry in entries} == {account for move in moves for account in ends(move)}
            for entry in entries:
                whole = not entry.account_id.startswith("platform:")
                assert (entry.wallet_version, entry.balance_after) == ((7, MAX_POINTS) if whole else (None, None))
                assert entry.balance_before == (MAX_POINTS - entry.amount if whole else None)


@operations
def test_it_may_not_make_those_of_any_other_operation(operation: str) -> None:
    for other, ways in RIGHT.items():
        for moves in ways:
            if moves not in RIGHT[operation]:
                assert_refused(operation, moves)
            if other != operation:
                assert_refused(operation, (*RIGHT[operation][0], *moves))


@operations
def test_it_may_not_leave_one_out_nor_make_one_twice_nor_one_more(operation: str) -> None:
    for moves in RIGHT[operation]:
        assert_refused(operation, ())
        for place, move in enumerate(moves):
            assert_refused(operation, (*moves[:place], *moves[place + 1 :]))
            assert_refused(operation, (*moves, move))
            if isinstance(move, Movement):
                assert_refused(operation, (*moves, Movement(move.source, move.target, 1)))
        for account in EVERYBODY:
            assert_refused(operation, (*moves, Touch(account)))


@operations
@pytest.mark.parametrize("amount", [0, -1, -30, -MAX_POINTS])
def test_it_may_not_move_nothing_or_less(operation: str, amount: int) -> None:
    for moves in RIGHT[operation]:
        for place, move in enumerate(moves):
            if isinstance(move, Movement):
                wrong = Movement(move.source, move.target, amount)
                assert_refused(operation, (*moves[:place], wrong, *moves[place + 1 :]))
                # Backwards by a negative amount would be the same entries.
                back = Movement(move.target, move.source, amount)
                assert_refused(operation, (*moves[:place], back, *moves[place + 1 :]))


@operations
def test_it_may_not_touch_accounts_of_others_or_of_nobody(operation: str) -> None:
    right = {frozenset(map(repr, moves)) for moves in RIGHT[operation]}
    for moves in RIGHT[operation]:
        for place, move in enumerate(moves):
            for account in [*EVERYBODY, *NOBODY]:
                for wrong in others(move, account):
                    changed = (*moves[:place], wrong, *moves[place + 1 :])
                    if frozenset(map(repr, changed)) not in right:
                        assert_refused(operation, changed)


def others(move: Move, account: Account) -> list[Move]:
    """The move with that account in the place of each of its own."""
    if isinstance(move, Touch):
        return [Touch(account), Movement(move.account, account, 30), Movement(account, move.account, 30)]
    return [
        Movement(account, move.target, move.amount),
        Movement(move.source, account, move.amount),
        Movement(move.target, move.source, move.amount),
        Touch(move.source),
    ]


@operations
def test_it_may_not_be_somebody_elses(operation: str) -> None:
    for moves in RIGHT[operation]:
        for owner in ("user:ben", "user:eve", "model:luna", "platform:issuer", "ana", "user:an", ""):
            assert_refused(operation, moves, owner_id=owner)


@pytest.mark.parametrize("operation", ["settle", "partial_settle"])
@pytest.mark.parametrize("model_id", [None, "", "sol", "lun", "model:luna"])
def test_a_model_gets_only_what_names_it(operation: str, model_id: str | None) -> None:
    assert_refused(operation, RIGHT[operation][0], model_id=model_id)


def test_a_model_may_open_its_own_wallet_and_nothing_else_is_its_own() -> None:
    [entry] = posted("open", (Touch(LUNA),), owner_id="model:luna", model_id=None).entries
    assert (entry.amount, entry.balance_before, entry.balance_after, entry.wallet_version) == (
        0,
        MAX_POINTS,
        MAX_POINTS,
        7,
    )
    for owner, account in (("model:luna", SOL), ("model:luna", ANA), ("user:ana", LUNA), ("model:luna", ISSUER)):
        assert_refused("open", (Touch(account),), owner_id=owner)
    for operation, ways in RIGHT.items():
        for moves in ways:
            assert_refused(operation, moves, owner_id="model:luna")


def test_an_operation_that_is_not_in_the_chart_may_make_no_moves_at_all() -> None:
    for operation in ("lottery", "", "Credit", "credit ", "hold\0"):
        for moves in [(), *(moves for ways in RIGHT.values() for moves in ways)]:
            with pytest.raises(ValueError, match="must not make the moves"):
                posted(operation, moves)
