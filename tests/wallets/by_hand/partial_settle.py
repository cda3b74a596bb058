"""The rows that a partial settlement leaves."""

from .rows import (
    CHANGED,
    HOLD,
    NOW,
    Case,
    Row,
    Sent,
    announced,
    answered,
    asked,
    entry,
    item,
    model,
    transaction,
    user,
)

ASKED: Row = {
    "escrow_id": HOLD,
    "model_id": "luna",
    "refund_amount": 10,
    "settle_amount": 20,
    "queue_item_id": "queue-1",
}
HEADER: Row = {"escrow_id": HOLD, "queue_item_id": "queue-1", "feature_type": "song", "model_id": "luna"}
SPLIT: Row = {"status": "partially_settled", "settled_amount": 20, "refunded_amount": 10, "processed_at": NOW}
AMOUNTS = {"refunded_amount": 10, "settled_amount": 20, "user_available_balance": 80}

CASES = [
    Case(
        name="the first one of a model makes its wallet",
        state={"user_wallets": [user("ana", 70, 30, 2, updated_at=CHANGED)], "escrow_items": [item(HOLD, 30)]},
        sent=[
            Sent(
                request=asked("partial_performance", **ASKED),
                answer=answered(**AMOUNTS, model_earned_balance=20),
                event=announced(
                    "wallet.escrow_partially_settled",
                    "partial_performance",
                    **HEADER,
                    authorization_id="A1",
                    **AMOUNTS,
                    model_earned_balance=20,
                ),
            )
        ],
        rows={
            "user_wallets": [user("ana", 80, 0, 3)],
            "model_wallets": [model("luna", 20, 1, created_at=NOW)],
            "escrow_items": [item(HOLD, 30, model_id="luna", **SPLIT)],
            "ledger_transactions": [
                transaction("T1", "partial_settle", "partial_performance", **HEADER, authorization_id="A1")
            ],
            "ledger_entries": [
                entry("model:luna", "earned", 20, 0, 20, 1),
                entry("user:ana", "available", 10, 70, 80, 3),
                entry("user:ana", "escrow", -30, 30, 0, 3),
            ],
        },
    ),
    Case(
        name="to a model that has earned",
        state={
            "user_wallets": [user("ana", 70, 30, 2, updated_at=CHANGED)],
            "model_wallets": [model("luna", 500, 9, updated_at=CHANGED), model("nova", 1, 1, updated_at=CHANGED)],
            "escrow_items": [item(HOLD, 30)],
        },
        sent=[
            Sent(
                request=asked("partial_performance", **ASKED, currency="points"),
                answer=answered(**AMOUNTS, model_earned_balance=520),
                event=announced(
                    "wallet.escrow_partially_settled",
                    "partial_performance",
                    **HEADER,
                    authorization_id="A1",
                    **AMOUNTS,
                    model_earned_balance=520,
                ),
            )
        ],
        rows={
            "user_wallets": [user("ana", 80, 0, 3)],
            "model_wallets": [model("luna", 520, 10), model("nova", 1, 1, updated_at=CHANGED)],
            "escrow_items": [item(HOLD, 30, model_id="luna", **SPLIT)],
            "ledger_transactions": [
                transaction("T1", "partial_settle", "partial_performance", **HEADER, authorization_id="A1")
            ],
            "ledger_entries": [
                entry("model:luna", "earned", 20, 500, 520, 10),
                entry("user:ana", "available", 10, 70, 80, 3),
                entry("user:ana", "escrow", -30, 30, 0, 3),
            ],
        },
    ),
]
