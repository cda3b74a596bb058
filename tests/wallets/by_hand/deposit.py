"""The rows that a deposit leaves: those of a credit, its source and reference as details, and the claim on them."""

from .rows import (
    CHANGED,
    NOW,
    Case,
    Row,
    Sent,
    announced,
    answered,
    asked,
    claim,
    entry,
    platform_entry,
    transaction,
    user,
)

PAID: Row = {"amount": 100, "source": "bank", "reference": "payment-1"}
DETAILS = '{"reference":"payment-1","source":"bank"}'
BALANCES = {"previous_balance": 0, "new_available_balance": 100}
FIRST = Sent(
    request=asked("payment", **PAID),
    answer=answered(**BALANCES),
    event=announced("wallet.deposited", "payment", **PAID, **BALANCES),
)
AFTER_FIRST: dict[str, list[Row]] = {
    "user_wallets": [user("ana", 100, 0, 1, created_at=NOW)],
    "deposit_claims": [claim("bank", "payment-1", "T1", 100)],
    "ledger_transactions": [transaction("T1", "deposit", "payment", details=DETAILS)],
    "ledger_entries": [
        platform_entry("platform:issuer", "issued", -100),
        entry("user:ana", "available", 100, 0, 100, 1),
    ],
}

CASES = [
    Case(name="a first one makes the wallet and the claim", sent=[FIRST], rows=AFTER_FIRST),
    Case(
        name="under another key it is the first one's answer, and that key stays unused",
        sent=[
            FIRST,
            Sent(
                request=asked("payment", **PAID)
                | {"idempotency_key": "key-2", "request_id": "request-2", "reason": "bonus"},
                answer=answered(**BALANCES),
                event=None,
                replayed=True,
            ),
        ],
        rows=AFTER_FIRST,
    ),
    Case(
        name="beside a claim on the same reference of another source",
        state={
            "user_wallets": [user("ana", 70, 30, 5, updated_at=CHANGED)],
            "deposit_claims": [claim("shop", "payment-1", "some transaction", 100, owner_id="user:ben")],
        },
        sent=[
            Sent(
                request=asked("payment", **PAID),
                answer=answered(previous_balance=70, new_available_balance=170),
                event=announced("wallet.deposited", "payment", **PAID, previous_balance=70, new_available_balance=170),
            )
        ],
        rows={
            "user_wallets": [user("ana", 170, 30, 6)],
            "deposit_claims": [
                claim("shop", "payment-1", "some transaction", 100, owner_id="user:ben"),
                claim("bank", "payment-1", "T1", 100),
            ],
            "ledger_transactions": [transaction("T1", "deposit", "payment", details=DETAILS)],
            "ledger_entries": [
                platform_entry("platform:issuer", "issued", -100),
                entry("user:ana", "available", 100, 70, 170, 6),
            ],
        },
    ),
]
