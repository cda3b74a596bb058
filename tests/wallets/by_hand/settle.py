"""The rows that a settlement leaves."""

from .rows import (
    CHANGED,
    HOLD,
    LATER,
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
    model,
    transaction,
    user,
)

ASKED: Row = {"escrow_id": HOLD, "model_id": "luna", "amount": 30, "queue_item_id": "queue-1"}
HEADER: Row = {"escrow_id": HOLD, "queue_item_id": "queue-1", "feature_type": "song", "model_id": "luna"}
SETTLED: Row = {"status": "settled", "model_id": "luna", "settled_amount": 30, "processed_at": NOW}

CASES = [
    Case(
        name="the first one of a model makes its wallet",
        state={"user_wallets": [user("ana", 70, 30, 2, updated_at=CHANGED)], "escrow_items": [item(HOLD, 30)]},
        sent=[
            Sent(
                request=asked("performance_completed", **ASKED, metadata={}),
                answer=answered(settled_amount=30, model_earned_balance=30),
                event=announced(
                    "wallet.escrow_settled",
                    "performance_completed",
                    metadata_json="{}",
                    **HEADER,
                    authorization_id="A1",
                    settled_amount=30,
                    model_earned_balance=30,
                ),
            )
        ],
        rows={
            "user_wallets": [user("ana", 70, 0, 3)],
            "model_wallets": [model("luna", 30, 1, created_at=NOW)],
            "escrow_items": [item(HOLD, 30, **SETTLED)],
            "ledger_transactions": [
                transaction("T1", "settle", "performance_completed", **HEADER, authorization_id="A1", metadata="{}")
            ],
            "ledger_entries": [
                entry("model:luna", "earned", 30, 0, 30, 1),
                entry("user:ana", "escrow", -30, 30, 0, 3),
            ],
        },
    ),
    Case(
        name="one hold of two, in the hold's currency, to a model that has earned",
        state={
            "user_wallets": [user("ana", 70, 35, 8, currency="gems", updated_at=CHANGED)],
            "model_wallets": [
                model("luna", 500, 9, currency="gems", updated_at=LATER),
                model("luna", 3, 1, updated_at=CHANGED),
            ],
            "escrow_items": [
                item(HOLD, 30, currency="gems", metadata='{"n":1}'),
                item(OTHER_HOLD, 5, currency="gems"),
            ],
        },
        sent=[
            Sent(
                request=asked("performance_completed", **ASKED),
                answer=answered(settled_amount=30, model_earned_balance=530),
                event=announced(
                    "wallet.escrow_settled",
                    "performance_completed",
                    currency="gems",
                    **HEADER,
                    authorization_id="A1",
                    settled_amount=30,
                    model_earned_balance=530,
                ),
            )
        ],
        rows={
            "user_wallets": [user("ana", 70, 5, 9, currency="gems")],
            "model_wallets": [
                model("luna", 530, 10, currency="gems", updated_at=LATER),
                model("luna", 3, 1, updated_at=CHANGED),
            ],
            "escrow_items": [
                item(HOLD, 30, currency="gems", metadata='{"n":1}', **SETTLED),
                item(OTHER_HOLD, 5, currency="gems"),
            ],
            "ledger_transactions": [
                transaction("T1", "settle", "performance_completed", currency="gems", **HEADER, authorization_id="A1")
            ],
            "ledger_entries": [
                entry("model:luna", "earned", 30, 500, 530, 10, currency="gems", posted_at=LATER),
                entry("user:ana", "escrow", -30, 35, 5, 9, currency="gems"),
            ],
        },
    ),
]
