"""The rows that a credit leaves."""

from .rows import LATER, MADE, NOW, Case, Sent, announced, answered, asked, entry, platform_entry, transaction, user

BALANCES = {"previous_balance": 0, "new_available_balance": 100}
METADATA = '{"song":"Für Elise","tip":1.5}'

CASES = [
    Case(
        name="a first one makes the wallet",
        sent=[
            Sent(
                request=asked("top_up", amount=100, metadata={"tip": 1.5, "song": "Für Elise"}),
                answer=answered(**BALANCES),
                event=announced("wallet.credited", "top_up", amount=100, metadata_json=METADATA, **BALANCES),
            )
        ],
        rows={
            "user_wallets": [user("ana", 100, 0, 1, created_at=NOW)],
            "ledger_transactions": [transaction("T1", "credit", "top_up", metadata=METADATA)],
            "ledger_entries": [
                platform_entry("platform:issuer", "issued", -100),
                entry("user:ana", "available", 100, 0, 100, 1),
            ],
        },
    ),
    Case(
        name="in another currency, by a clock that is behind",
        state={
            "user_wallets": [
                user("ana", 70, 30, 5, updated_at=MADE),
                user("ana", 5, 0, 2, currency="gems", updated_at=LATER),
                user("ben", 1, 0, 1, currency="gems", updated_at=MADE),
            ]
        },
        sent=[
            Sent(
                request=asked("bonus", amount=7, currency="gems"),
                answer=answered(previous_balance=5, new_available_balance=12),
                event=announced(
                    "wallet.credited",
                    "bonus",
                    currency="gems",
                    amount=7,
                    previous_balance=5,
                    new_available_balance=12,
                ),
            )
        ],
        rows={
            "user_wallets": [
                user("ana", 70, 30, 5, updated_at=MADE),
                user("ana", 12, 0, 3, currency="gems", updated_at=LATER),
                user("ben", 1, 0, 1, currency="gems", updated_at=MADE),
            ],
            "ledger_transactions": [transaction("T1", "credit", "bonus", currency="gems")],
            "ledger_entries": [
                platform_entry("platform:issuer", "issued", -7, currency="gems"),
                entry("user:ana", "available", 7, 5, 12, 3, currency="gems", posted_at=LATER),
            ],
        },
    ),
]
