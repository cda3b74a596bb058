"""The rows that a refund leaves."""

from .rows import (
    CHANGED,
    HOLD,
    NOW,
    OTHER_HOLD,
    Case,
    Row,
    Sent,
    announced,
    answered,
    asked,
    entry,
    item,
    transaction,
    user,
)

ASKED: Row = {"escrow_id": HOLD, "amount": 30, "queue_item_id": "queue-1"}
HEADER: Row = {"escrow_id": HOLD, "queue_item_id": "queue-1", "feature_type": "song"}
AMOUNTS = {"refunded_amount": 30, "user_available_balance": 100}

CASES = [
    Case(
        name="one hold of two",
        state={
            "user_wallets": [user("ana", 70, 35, 3, updated_at=CHANGED)],
            "escrow_items": [item(HOLD, 30), item(OTHER_HOLD, 5)],
        },
        sent=[
            Sent(
                request=asked("outbid", **ASKED, metadata={"by": "ben"}),
                answer=answered(**AMOUNTS),
                event=announced(
                    "wallet.escrow_refunded",
                    "outbid",
                    metadata_json='{"by":"ben"}',
                    **HEADER,
                    authorization_id="A1",
                    **AMOUNTS,
                ),
            )
        ],
        rows={
            "user_wallets": [user("ana", 100, 5, 4)],
            "escrow_items": [
                item(HOLD, 30, status="refunded", refunded_amount=30, processed_at=NOW),
                item(OTHER_HOLD, 5),
            ],
            "ledger_transactions": [
                transaction("T1", "refund", "outbid", **HEADER, authorization_id="A1", metadata='{"by":"ben"}')
            ],
            "ledger_entries": [
                entry("user:ana", "available", 30, 70, 100, 4),
                entry("user:ana", "escrow", -30, 35, 5, 4),
            ],
        },
    ),
]
