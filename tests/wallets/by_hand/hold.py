"""The rows that a hold leaves."""

from .rows import CHANGED, HOLD, NOW, Case, Row, Sent, announced, answered, asked, entry, item, transaction, user

WHAT_FOR: Row = {"queue_item_id": "queue-2", "feature_type": "dance"}

CASES = [
    Case(
        name="beside another one",
        state={
            "user_wallets": [user("ana", 100, 20, 4, updated_at=CHANGED), user("ben", 9, 0, 1, updated_at=CHANGED)],
            "escrow_items": [item(HOLD, 20)],
        },
        sent=[
            Sent(
                request=asked("menu_purchase", amount=30, **WHAT_FOR, metadata={"n": [1]}),
                answer=answered(escrow_id="E1", previous_balance=100, new_available_balance=70, escrow_balance=50),
                event=announced(
                    "wallet.escrow_held",
                    "menu_purchase",
                    metadata_json='{"n":[1]}',
                    escrow_id="E1",
                    **WHAT_FOR,
                    amount=30,
                    previous_balance=100,
                    new_available_balance=70,
                    escrow_balance=50,
                ),
            )
        ],
        rows={
            "user_wallets": [user("ana", 70, 50, 5), user("ben", 9, 0, 1, updated_at=CHANGED)],
            "escrow_items": [
                item(HOLD, 20),
                item("E1", 30, **WHAT_FOR, reason="menu_purchase", metadata='{"n":[1]}', created_at=NOW),
            ],
            "ledger_transactions": [
                transaction("T1", "hold", "menu_purchase", escrow_id="E1", **WHAT_FOR, metadata='{"n":[1]}')
            ],
            "ledger_entries": [
                entry("user:ana", "available", -30, 100, 70, 5),
                entry("user:ana", "escrow", 30, 20, 50, 5),
            ],
        },
    ),
    Case(
        name="of all that there is, in another currency",
        state={"user_wallets": [user("ana", 30, 0, 1, currency="gems", updated_at=CHANGED)]},
        sent=[
            Sent(
                request=asked("auction_bid", amount=30, **WHAT_FOR, currency="gems"),
                answer=answered(escrow_id="E1", previous_balance=30, new_available_balance=0, escrow_balance=30),
                event=announced(
                    "wallet.escrow_held",
                    "auction_bid",
                    currency="gems",
                    escrow_id="E1",
                    **WHAT_FOR,
                    amount=30,
                    previous_balance=30,
                    new_available_balance=0,
                    escrow_balance=30,
                ),
            )
        ],
        rows={
            "user_wallets": [user("ana", 0, 30, 2, currency="gems")],
            "escrow_items": [
                item("E1", 30, **WHAT_FOR, currency="gems", reason="auction_bid", created_at=NOW),
            ],
            "ledger_transactions": [
                transaction("T1", "hold", "auction_bid", currency="gems", escrow_id="E1", **WHAT_FOR)
            ],
            "ledger_entries": [
                entry("user:ana", "available", -30, 30, 0, 2, currency="gems"),
                entry("user:ana", "escrow", 30, 0, 30, 2, currency="gems"),
            ],
        },
    ),
]
