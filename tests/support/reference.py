"""A second, much simpler wallet: plain dicts, one thread; ids and times are those of the module's first answer."""

import copy
from collections import defaultdict
from typing import Any

LIMIT = 2**53 - 1
STATUS = {"settle": "settled", "refund": "refunded", "partial_settle": "partially_settled"}
EMPTY = {"available": 0, "escrow": 0, "earned": 0, "version": 0}
Fields = dict[str, Any]


class Refused(Exception):  # noqa: N818 - an answer, not a mistake
    def __init__(self, code: str, **details: Any) -> None:
        super().__init__(code, details)


class Reference:
    def __init__(self) -> None:
        self.wallets: dict[tuple[str, str], dict[str, int]] = defaultdict(EMPTY.copy)
        self.items: dict[str, Fields] = {}
        self.answers: dict[tuple[str, str, str], tuple[Fields, Fields]] = {}

    def copy(self) -> "Reference":
        """One that goes its own way from here. They share what is in the dicts: it is replaced, never changed."""
        other = copy.copy(self)
        other.wallets, other.items, other.answers = self.wallets.copy(), self.items.copy(), self.answers.copy()
        return other

    def send(self, operation: str, request: Any, made: Fields, authorized: bool = True) -> Fields:
        given = {name: value for name, value in vars(request).items() if name != "request_id"}
        if operation not in STATUS:
            given["currency"] = given["currency"] or "points"
        elif not authorized:
            raise Refused("invalid_authorization")
        key = given["user_id"], operation, given["idempotency_key"]
        if key in self.answers:
            before, answer = self.answers[key]
            given["currency"] = given["currency"] or before["currency"]
            if changed := tuple(name for name in given if repr(given[name]) != repr(before[name])):
                raise Refused("idempotency_conflict", key=key[2], fields=changed)
            return answer | {"replayed": True}
        rule = getattr(self, f"_{operation}", self._finish)
        answer = made | rule(f"user:{given['user_id']}", operation, given, made) | {"replayed": False}
        self.answers[key] = given, answer
        return answer

    def _credit(self, user: str, operation: str, given: Fields, made: Fields) -> Fields:
        available = self._change(user, given, available=given["amount"])["available"]
        return {"previous_balance": available - given["amount"], "new_available_balance": available}

    def _hold(self, user: str, operation: str, given: Fields, made: Fields) -> Fields:
        before, amount = self.wallets[user, given["currency"]]["available"], given["amount"]
        if before < amount:
            raise Refused("insufficient_balance", required=amount, available=before)
        escrow = self._change(user, given, available=-amount, escrow=amount)["escrow"]
        self.items[made["escrow_id"]] = given | {"status": "held", "settled_amount": 0, "refunded_amount": 0}
        return {"previous_balance": before, "new_available_balance": before - amount, "escrow_balance": escrow}

    def _finish(self, user: str, operation: str, given: Fields, made: Fields) -> Fields:
        refunded = given["amount"] if operation == "refund" else given.get("refund_amount", 0)
        settled = given["amount"] if operation == "settle" else given.get("settle_amount", 0)
        item = self.items.get(given["escrow_id"], {"user_id": None})
        if item["user_id"] != given["user_id"]:
            raise Refused("escrow_not_found", escrow_id=given["escrow_id"])
        if item["status"] != "held":
            raise Refused("escrow_already_processed", escrow_id=given["escrow_id"], status=item["status"])
        given["currency"] = given["currency"] or item["currency"]
        said = given | {"amount": settled + refunded}
        for name in ("amount", "queue_item_id", "currency"):
            if said[name] != item[name]:
                raise Refused("escrow_mismatch", field=name, expected=item[name], given=said[name])
        answer = {"settled_amount": settled, "refunded_amount": refunded}
        if settled:
            model = self._change(f"model:{given['model_id']}", given, earned=settled)
            answer["model_earned_balance"] = model["earned"]
        wallet = self._change(user, given, available=refunded, escrow=-settled - refunded)
        done = {"status": STATUS[operation], "model_id": given.get("model_id")}
        self.items[given["escrow_id"]] = item | answer | done
        return answer | ({"user_available_balance": wallet["available"]} if refunded else {})

    def _change(self, owner: str, given: Fields, **gains: int) -> dict[str, int]:
        wallet, amount = self.wallets[owner, given["currency"]], sum(gains.values())
        if (balance := wallet["available"] + wallet["escrow"] + wallet["earned"]) + amount > LIMIT:
            raise Refused("balance_limit", limit=LIMIT, balance=balance, amount=amount)
        changed = {bucket: wallet[bucket] + gain for bucket, gain in (gains | {"version": 1}).items()}
        self.wallets[owner, given["currency"]] = wallet = wallet | changed
        return wallet
