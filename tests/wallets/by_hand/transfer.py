"""The rows that a gift from one user to another leaves."""

from .rows import CHANGED, LATER, NOW, Case, Row, Sent, announced, answered, asked, entry, transaction, user

BALANCES: Row = {"previous_balance": 100, "new_available_balance": 70}
ZOE: Row = {"owner_id": "user:zoe"}

CASES = [
    Case(
        name="to a user without a wallet, whose wallet it makes",
        state={"user_wallets": [user("ana", 100, 20, 4, updated_at=CHANGED)]},
        sent=[
            Sent(
                request=asked("gift", recipient_id="ben", amount=30, metadata={"n": 1}),
                answer=answered(**BALANCES),
                event=announced(
                    "wallet.transferred", "gift", metadata_json='{"n":1}', recipient_id="ben", amount=30, **BALANCES
                ),
            )
        ],
        rows={
            "user_wallets": [user("ana", 70, 20, 5), user("ben", 30, 0, 1, created_at=NOW)],
            "ledger_transactions": [transaction("T1", "transfer", "gift", metadata='{"n":1}')],
            "ledger_entries": [
                entry("user:ana", "available", -30, 100, 70, 5),
                entry("user:ben", "available", 30, 0, 30, 1),
            ],
        },
    ),
    Case(
        name="to a user who sorts before the giver, and has a wallet",
        state={
            "user_wallets": [
                user("ana", 500, 40, 9, updated_at=LATER),
                user("zoe", 100, 0, 3, updated_at=CHANGED),
            ]
        },
        sent=[
            Sent(
                request=asked("gift", recipient_id="ana", amount=30) | {"user_id": "zoe"},
                answer=answered(**BALANCES),
                event=announced("wallet.transferred", "gift", recipient_id="ana", amount=30, **BALANCES)
                | {"user_id": "zoe"},
            )
        ],
        rows={
            "user_wallets": [user("ana", 530, 40, 10, updated_at=LATER), user("zoe", 70, 0, 4)],
            "ledger_transactions": [transaction("T1", "transfer", "gift", **ZOE)],
            "ledger_entries": [
                entry("user:ana", "available", 30, 500, 530, 10, **ZOE, posted_at=LATER),
                entry("user:zoe", "available", -30, 100, 70, 4, **ZOE),
            ],
        },
    ),
    Case(
        name="in another currency, to one who sorts before the giver and has a wallet in the usual one alone",
        state={
            "user_wallets": [
                user("ana", 500, 40, 9, updated_at=CHANGED),
                user("zoe", 30, 0, 3, currency="gems", updated_at=CHANGED),
            ]
        },
        sent=[
            Sent(
                request=asked("gift", recipient_id="ana", amount=30, currency="gems") | {"user_id": "zoe"},
                answer=answered(previous_balance=30, new_available_balance=0),
                event=announced(
                    "wallet.transferred",
                    "gift",
                    currency="gems",
                    recipient_id="ana",
                    amount=30,
                    previous_balance=30,
                    new_available_balance=0,
                )
                | {"user_id": "zoe"},
            )
        ],
        rows={
            "user_wallets": [
                user("ana", 500, 40, 9, updated_at=CHANGED),
                user("ana", 30, 0, 1, currency="gems", created_at=NOW),
                user("zoe", 0, 0, 4, currency="gems"),
            ],
            "ledger_transactions": [transaction("T1", "transfer", "gift", currency="gems", **ZOE)],
            "ledger_entries": [
                entry("user:ana", "available", 30, 0, 30, 1, currency="gems", **ZOE),
                entry("user:zoe", "available", -30, 30, 0, 4, currency="gems", **ZOE),
            ],
        },
    ),
]
