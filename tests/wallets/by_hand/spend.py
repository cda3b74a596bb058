"""The rows that a purchase from the platform leaves."""

from .rows import CHANGED, Case, Row, Sent, announced, answered, asked, entry, platform_entry, transaction, user

BALANCES: Row = {"previous_balance": 100, "new_available_balance": 70}

CASES = [
    Case(
        name="for an order, which is a detail",
        state={"user_wallets": [user("ana", 100, 20, 4, updated_at=CHANGED)]},
        sent=[
            Sent(
                request=asked("purchase", amount=30, order_id='order "7"', metadata={"n": 1}),
                answer=answered(**BALANCES),
                event=announced(
                    "wallet.spent", "purchase", metadata_json='{"n":1}', amount=30, order_id='order "7"', **BALANCES
                ),
            )
        ],
        rows={
            "user_wallets": [user("ana", 70, 20, 5)],
            "ledger_transactions": [
                transaction("T1", "spend", "purchase", details='{"order_id":"order \\"7\\""}', metadata='{"n":1}')
            ],
            "ledger_entries": [
                platform_entry("platform:revenue", "revenue", 30),
                entry("user:ana", "available", -30, 100, 70, 5),
            ],
        },
    ),
    Case(
        name="for no order, so without details; all that there is, in another currency",
        state={
            "user_wallets": [
                user("ana", 100, 0, 4, updated_at=CHANGED),
                user("ana", 30, 0, 1, currency="gems", updated_at=CHANGED),
            ]
        },
        sent=[
            Sent(
                request=asked("purchase", amount=30, currency="gems"),
                answer=answered(previous_balance=30, new_available_balance=0),
                event=announced(
                    "wallet.spent",
                    "purchase",
                    currency="gems",
                    amount=30,
                    order_id=None,
                    previous_balance=30,
                    new_available_balance=0,
                ),
            )
        ],
        rows={
            "user_wallets": [
                user("ana", 100, 0, 4, updated_at=CHANGED),
                user("ana", 0, 0, 2, currency="gems"),
            ],
            "ledger_transactions": [transaction("T1", "spend", "purchase", currency="gems")],
            "ledger_entries": [
                platform_entry("platform:revenue", "revenue", 30, currency="gems"),
                entry("user:ana", "available", -30, 30, 0, 2, currency="gems"),
            ],
        },
    ),
]
