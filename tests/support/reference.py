"""A second, much simpler wallet: plain dicts, one thread; ids and times are those of the module's first answer."""

import copy
from collections import defaultdict
from typing import Any

LIMIT = 2**53 - 1
STATUS = {"settle": "settled", "refund": "refunded", "partial_settle": "partially_settled"}
EMPTY = {"available": 0, "escrow": 0, "earned": 0, "version": 0}
Fields = dict[str, Any]
Key = tuple[str, str, str]


class Refused(Exception):  # noqa: N818 - an answer, not a mistake
    def __init__(self, code: str, **details: Any) -> None:
        super().__init__(code, details)


class Reference:
    def __init__(self) -> None:
        self.wallets: dict[tuple[str, str], dict[str, int]] = defaultdict(EMPTY.copy)
        self.items: dict[str, Fields] = {}
        self.answers: dict[Key, tuple[Fields, Fields]] = {}
        self.claims: dict[tuple[str, str], tuple[Fields, Fields]] = {}

    def copy(self) -> "Reference":
        """One that goes its own way from here. They share what is in the dicts: it is replaced, never changed."""
        other = copy.copy(self)
        other.wallets, other.items = self.wallets.copy(), self.items.copy()
        other.answers, other.claims = self.answers.copy(), self.claims.copy()
        return other

    def send(self, operation: str, request: Any, made: Fields, authorized: bool = True) -> Fields:
        given = {name: value for name, value in vars(request).items() if name != "request_id"}
        if operation not in STATUS:
            given["currency"] = given["currency"] or "points"
        elif not authorized:
            raise Refused("invalid_authorization")
        owner = owner_of(request)
        key = owner, operation, given["idempotency_key"]
        if key in self.answers:
            before, answer = self.answers[key]
            given["currency"] = given["currency"] or before["currency"]
            if changed := tuple(name for name in given if repr(given[name]) != repr(before[name])):
                raise Refused("idempotency_conflict", key=key[2], fields=changed)
            return answer | {"replayed": True}
        claim = claim_of(operation, request)
        if claim in self.claims:
            before, answer = self.claims[claim]
            if changed := tuple(name for name in ("user_id", "amount", "currency") if given[name] != before[name]):
                raise Refused("deposit_conflict", source=claim[0], reference=claim[1], fields=changed)
            return answer | {"replayed": True}  # and the key stays unused
        assert hasattr(self, f"_{operation}"), f"the reference model has no rule for {operation}"
        told: Fields = getattr(self, f"_{operation}")(owner, given, made)
        answer = made | told | {"replayed": False}
        self.answers[key] = given, answer
        if claim is not None:
            self.claims[claim] = given, answer
        return answer

    def _credit(self, user: str, given: Fields, made: Fields) -> Fields:
        available = self._change(user, given, available=given["amount"])["available"]
        return {"previous_balance": available - given["amount"], "new_available_balance": available}

    _deposit = _credit

    def _hold(self, user: str, given: Fields, made: Fields) -> Fields:
        before = self._enough(user, given)
        escrow = self._change(user, given, available=-given["amount"], escrow=given["amount"])["escrow"]
        self.items[made["escrow_id"]] = given | {"status": "held", "settled_amount": 0, "refunded_amount": 0}
        return before | {"escrow_balance": escrow}

    def _spend(self, user: str, given: Fields, made: Fields) -> Fields:
        before = self._enough(user, given)
        self._change(user, given, available=-given["amount"])
        return before

    def _transfer(self, user: str, given: Fields, made: Fields) -> Fields:
        before = self._enough(user, given)
        try:
            self._change(f"user:{given['recipient_id']}", given, available=given["amount"])
        except Refused:  # nothing may be said of the taker's balance
            raise Refused("balance_limit", limit=LIMIT, amount=given["amount"], currency=given["currency"]) from None
        self._change(user, given, available=-given["amount"])
        return before

    def _open(self, owner: str, given: Fields, made: Fields) -> Fields:
        self._change(owner, given)
        return {}

    def _settle(self, user: str, given: Fields, made: Fields) -> Fields:
        return self._finish(STATUS["settle"], user, given, settled=given["amount"])

    def _refund(self, user: str, given: Fields, made: Fields) -> Fields:
        return self._finish(STATUS["refund"], user, given, refunded=given["amount"])

    def _partial_settle(self, user: str, given: Fields, made: Fields) -> Fields:
        amounts = {"settled": given["settle_amount"], "refunded": given["refund_amount"]}
        return self._finish(STATUS["partial_settle"], user, given, **amounts)

    def _finish(self, status: str, user: str, given: Fields, settled: int = 0, refunded: int = 0) -> Fields:
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
        self.items[given["escrow_id"]] = item | answer | {"status": status, "model_id": given.get("model_id")}
        return answer | ({"user_available_balance": wallet["available"]} if refunded else {})

    def _enough(self, user: str, given: Fields) -> Fields:
        """What a payer is told of the available points; refuses if they are too few."""
        before, amount = self.wallets[user, given["currency"]]["available"], given["amount"]
        if before < amount:
            raise Refused("insufficient_balance", required=amount, available=before, currency=given["currency"])
        return {"previous_balance": before, "new_available_balance": before - amount}

    def _change(self, owner: str, given: Fields, **gains: int) -> dict[str, int]:
        """The wallet a version further; without gains it is touched."""
        wallet, amount = self.wallets[owner, given["currency"]], sum(gains.values())
        if (balance := wallet["available"] + wallet["escrow"] + wallet["earned"]) + amount > LIMIT:
            raise Refused("balance_limit", limit=LIMIT, balance=balance, amount=amount, currency=given["currency"])
        changed = {bucket: wallet[bucket] + gain for bucket, gain in (gains | {"version": 1}).items()}
        self.wallets[owner, given["currency"]] = wallet = wallet | changed
        return wallet


def owner_of(request: Any) -> str:
    """Whose operation it is, and so whose key."""
    return str(request.owner) if hasattr(request, "owner") else f"user:{request.user_id}"


def claim_of(operation: str, request: Any) -> tuple[str, str] | None:
    """What may be credited once only."""
    return (request.source, request.reference) if operation == "deposit" else None
