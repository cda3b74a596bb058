"""The rows that opening a wallet leaves: a touch, an entry of 0, with a version of its own."""

from .rows import CHANGED, LATER, NOW, Case, Row, Sent, announced, answered, asked, entry, model, transaction, user


def opened(owner: str, **other: str) -> Sent:
    """Owners say who they are in one field; nobody else is named."""
    request = asked("sign_up", owner=owner, **other)
    event = announced("wallet.opened", "sign_up", owner=owner, **other)
    del request["user_id"], event["user_id"]
    return Sent(request=request, answer=answered(), event=event)


LUNA: Row = {"owner_id": "model:luna"}

CASES = [
    Case(
        name="a user's, who has none",
        sent=[opened("user:ana")],
        rows={
            "user_wallets": [user("ana", 0, 0, 1, created_at=NOW)],
            "ledger_transactions": [transaction("T1", "open", "sign_up")],
            "ledger_entries": [entry("user:ana", "available", 0, 0, 0, 1)],
        },
    ),
    Case(
        name="a user's, who has one: touched",
        state={"user_wallets": [user("ana", 70, 30, 5, updated_at=CHANGED)]},
        sent=[opened("user:ana")],
        rows={
            "user_wallets": [user("ana", 70, 30, 6)],
            "ledger_transactions": [transaction("T1", "open", "sign_up")],
            "ledger_entries": [entry("user:ana", "available", 0, 70, 70, 6)],
        },
    ),
    Case(
        name="a model's, which has none in that currency",
        state={"model_wallets": [model("luna", 8, 2, updated_at=CHANGED)]},
        sent=[opened("model:luna", currency="gems")],
        rows={
            "model_wallets": [
                model("luna", 8, 2, updated_at=CHANGED),
                model("luna", 0, 1, currency="gems", created_at=NOW),
            ],
            "ledger_transactions": [transaction("T1", "open", "sign_up", currency="gems", **LUNA)],
            "ledger_entries": [entry("model:luna", "earned", 0, 0, 0, 1, currency="gems", **LUNA)],
        },
    ),
    Case(
        name="a model's, which has one: touched, by a clock that is behind",
        state={"model_wallets": [model("luna", 500, 9, updated_at=LATER)]},
        sent=[opened("model:luna")],
        rows={
            "model_wallets": [model("luna", 500, 10, updated_at=LATER)],
            "ledger_transactions": [transaction("T1", "open", "sign_up", **LUNA)],
            "ledger_entries": [entry("model:luna", "earned", 0, 500, 500, 10, **LUNA, posted_at=LATER)],
        },
    ),
]
