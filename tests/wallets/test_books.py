"""The books: balanced as long as nobody else writes, and telling when somebody did."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import insert, text

from points_platform.core import MAX_POINTS, Database
from points_platform.ledger import Bucket
from points_platform.ledger.models import ENTRIES
from points_platform.wallets import Books, books
from points_platform.wallets.models import MODEL_WALLETS, USER_WALLETS
from support.world import World

NOON = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)


def play(world: World, currency: str) -> None:
    """100 points: 70 in the end available, 5 in escrow, 25 earned."""
    world.credit(amount=100, currency=currency)
    world.settle(world.hold(amount=5, currency=currency).escrow_id, 5)
    world.refund(world.hold(amount=30, currency=currency).escrow_id, 30)
    world.partial_settle(world.hold(amount=30, currency=currency).escrow_id, 10, 20)
    world.hold(amount=5, currency=currency)


def test_an_empty_database_has_no_books(world: World) -> None:
    assert books(world.database) == []


def test_the_books_add_up_per_currency(world: World) -> None:
    for currency in ("points", "gems"):
        play(world, currency)
    ana = {Bucket.AVAILABLE: 70, Bucket.ESCROW: 5, Bucket.EARNED: 25}
    gems, points = books(world.database)
    assert points == Books(
        currency="points", ledger={**ana, Bucket.ISSUED: -100}, wallets={**ana, Bucket.PAYING: 0}, held=5
    )
    assert (points.entries, points.issued, points.balanced) == (0, 100, True)
    assert (gems.currency, gems.ledger, gems.balanced) == ("gems", points.ledger, True)
    world.credit("ben", 1)
    assert [(book.currency, book.issued, book.balanced) for book in books(world.database)] == [
        ("gems", 100, True),
        ("points", 101, True),
    ]


def test_what_was_paid_to_the_platform_is_in_no_wallet_and_yet_in_the_books(world: World) -> None:
    world.deposit(amount=100)
    world.spend(amount=30)
    world.transfer(amount=20)
    world.open("model:luna", currency="gems")
    gems, points = books(world.database)
    assert points.ledger == {Bucket.AVAILABLE: 70, Bucket.REVENUE: 30, Bucket.ISSUED: -100}
    assert (points.wallets[Bucket.AVAILABLE], points.issued, points.entries, points.balanced) == (70, 100, 0, True)
    assert (gems.ledger, gems.issued, gems.balanced) == ({Bucket.EARNED: 0}, 0, True)


FORGED_ENTRY = (
    "INSERT INTO ledger_entries (transaction_id, account_id, bucket, owner_id, currency, amount, posted_at) "
    "SELECT currency, '{account}', '{bucket}', owner_id, currency, {amount}, posted_at FROM ledger_entries "
    "WHERE {{mine}} AND amount = -100"
)
TAMPERED = {
    "points available from nowhere": ["UPDATE user_wallets SET available = available + 1 WHERE {mine}"],
    "points available are gone": ["UPDATE user_wallets SET available = available - 1 WHERE {mine}"],
    "points that are being paid from nowhere": ["UPDATE model_wallets SET paying = paying + 1 WHERE {mine}"],
    "revenue from nowhere": [FORGED_ENTRY.format(account="platform:revenue", bucket="revenue", amount=1)],
    "escrow from nowhere": ["UPDATE user_wallets SET escrow = escrow + 1 WHERE {mine}"],
    "escrow made available": ["UPDATE user_wallets SET escrow = escrow - 1, available = available + 1 WHERE {mine}"],
    "earned from nowhere": ["UPDATE model_wallets SET earned = earned + 1 WHERE {mine}"],
    "taken from a user, given to a model": [
        "UPDATE user_wallets SET available = available - 1 WHERE {mine}",
        "UPDATE model_wallets SET earned = earned + 1 WHERE {mine}",
    ],
    "no user wallet": ["DELETE FROM user_wallets WHERE {mine}"],
    "no model wallet": ["DELETE FROM model_wallets WHERE {mine}"],
    "no escrow items": ["DELETE FROM escrow_items WHERE {mine}"],
    "a larger hold": ["UPDATE escrow_items SET amount = amount + 1 WHERE {mine} AND status = 'held'"],
    "a hold that ended by itself": [
        "UPDATE escrow_items SET status = 'refunded', refunded_amount = amount, processed_at = created_at "
        "WHERE {mine} AND status = 'held'"
    ],
    "a hold that is held again": [
        "UPDATE escrow_items SET status = 'held', settled_amount = 0, refunded_amount = 0, processed_at = NULL "
        "WHERE {mine} AND status = 'settled'"
    ],
    "an entry without its counterpart": [
        FORGED_ENTRY.format(account="platform:issuer", bucket="issued", amount=-1),
    ],
    "an entry and a wallet without a counterpart": [
        FORGED_ENTRY.format(account="platform:issuer", bucket="issued", amount=-1),
        "UPDATE user_wallets SET available = available + 1 WHERE {mine}",
    ],
    "entries that no wallet has": [
        FORGED_ENTRY.format(account="platform:issuer", bucket="issued", amount=-1),
        FORGED_ENTRY.format(account="user:ana", bucket="available", amount=1),
    ],
}


def test_books_that_somebody_tampered_with_do_not_balance(database: Database) -> None:
    """Each case has a currency of its own."""
    world = World(database)
    cases = {f"case_{number}": name for number, name in enumerate(TAMPERED)}
    for currency in (*cases, "untouched"):
        play(world, currency)
    assert all(book.balanced for book in books(database))
    with database.engine.begin() as connection:
        for currency, name in cases.items():
            for statement in TAMPERED[name]:
                done = connection.execute(text(statement.format(mine=f"currency = '{currency}'")))
                assert done.rowcount > 0, name
    assert [cases.get(book.currency, "untouched") for book in books(database) if book.balanced] == ["untouched"]


def test_wallets_and_holds_without_any_ledger_do_not_balance(database: Database) -> None:
    with database.engine.begin() as connection:
        connection.execute(
            insert(MODEL_WALLETS).values(
                owner_id="model:luna",
                currency="points",
                earned=1,
                paying=0,
                version=1,
                created_at=NOON,
                updated_at=NOON,
            )
        )
    (book,) = books(database)
    assert (book.balanced, book.entries, book.issued, book.ledger) == (False, 0, 0, {})


def test_sums_beyond_64_bits_are_exact(database: Database) -> None:
    users = 1100
    assert users * MAX_POINTS > 2**63

    def entry(number: int, **given: Any) -> dict[str, Any]:
        common = {"transaction_id": f"t{number}", "owner_id": f"user:{number}", "currency": "points", "posted_at": NOON}
        empty = dict.fromkeys(("balance_before", "balance_after", "wallet_version"))
        return common | empty | given

    with database.engine.begin() as connection:
        connection.execute(
            insert(USER_WALLETS),
            [
                {
                    "owner_id": f"user:{number}",
                    "currency": "points",
                    "available": MAX_POINTS,
                    "escrow": 0,
                    "paying": 0,
                    "version": 1,
                    "created_at": NOON,
                    "updated_at": NOON,
                }
                for number in range(users)
            ],
        )
        for account, bucket, amount in (
            ("platform:issuer", "issued", -MAX_POINTS),
            ("user:{}", "available", MAX_POINTS),
        ):
            entries = [entry(n, account_id=account.format(n), bucket=bucket, amount=amount) for n in range(users)]
            connection.execute(insert(ENTRIES), entries)
    (book,) = books(database)
    assert (book.issued, book.wallets[Bucket.AVAILABLE], book.entries, book.balanced) == (
        users * MAX_POINTS,
        users * MAX_POINTS,
        0,
        True,
    )
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE user_wallets SET available = available - 1 WHERE owner_id = 'user:7'"))
    (book,) = books(database)
    assert (book.wallets[Bucket.AVAILABLE], book.balanced) == (users * MAX_POINTS - 1, False)
