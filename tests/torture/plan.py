"""What each client does, as a pure function of the seed: a seed and a place name a step for ever, in any process.

Where a hold's escrow item is needed, the step names the hold by its place; whoever does not know the answer of
that hold sends it again.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

from .operations import BATCHES, BEGINS, ENDS, OPERATIONS, request_of

STREAM = 0
SINGLE = {"credit": 9, "deposit": 7, "hold": 24, "finish": 25, "spend": 6, "transfer": 9, "open": 3}
KINDS = SINGLE | {"resend": 9, "mutate": 6, "many": 6, "session": 5, "read": 10}
HOW_OFTEN = {"settle": 5, "refund": 3, "partial_settle": 2}
FLAWS = {None: 88, "token": 4, "expired": 2, "other_action": 2, "amount": 2, "user": 2}
UNAUTHORIZED = ("token", "expired", "other_action")
# What is said differently under a key that is used already.
MUTATED: dict[str, Callable[[Any], Any]] = {
    "amount": lambda amount: amount - 1 or 2,
    "settle_amount": lambda amount: amount - 1 or 2,
    "metadata": lambda metadata: {"note": "changed"},
    "reason": lambda reason: "another_reason",
    "queue_item_id": lambda queue_item_id: "another-queue-item",
    "model_id": lambda model_id: "another-model",
    "recipient_id": lambda recipient_id: "another-recipient",
    "order_id": lambda order_id: "another-order",
    "reference": lambda reference: "another-reference",
}
# What a deposit says that others have claimed, or will: the same, or something else.
CLAIMS = {None: 50, "amount": 20, "user": 20, "source": 10}
# How far back a step looks for a hold to end, a deposit to repeat, or a step to send again.
WINDOW = 60
HOT_USERS, HOT_MODELS, CROWD_USERS, CROWD_MODELS = 3, 2, 200, 20
RICH = "rich-user"
LIMIT = 2**53 - 1
READS = ("user_balance", "user_balance", "model_balance", "escrow", "escrows", "statement", "earnings")


@dataclass(frozen=True)
class Place:
    """Where a step stands: in the client's own stream, or in a burst, in which several clients meet."""

    client: str
    series: int
    number: int

    def __str__(self) -> str:
        return f"{self.client}/{self.series}/{self.number}"


@dataclass(frozen=True, kw_only=True)
class Intent:
    """One operation to be sent. ``hold`` is the place of the hold that it ends or reads, ``flaw`` what is wrong."""

    key: str
    operation: str
    user: str = ""
    model: str = ""
    recipient: str = ""
    amount: int = 0
    refunded: int = 0
    queue_item: str = ""
    order: str | None = None
    source: str = ""
    reference: str = ""
    metadata: str | None = None
    hold: Place | None = None
    flaw: str | None = None
    mutation: str | None = None

    def request(self, escrow_id: str | None = None, *, request_id: str = "request") -> Any:
        """The request; for the end of a hold with the id that the hold was answered with."""
        made = request_of(self.operation, self.said() | {"escrow_id": escrow_id, "request_id": request_id})
        return made if self.mutation is None else mutated(made, self.mutation)

    def said(self) -> dict[str, Any]:
        """What there is to say, in any request."""
        return {
            "idempotency_key": self.key,
            "user_id": self.user,
            "owner": f"user:{self.user}" if self.user else f"model:{self.model}",
            "recipient_id": self.recipient,
            "model_id": self.model,
            "reason": f"torture_{self.operation}",
            "amount": self.amount,
            "refund_amount": self.refunded,
            "settle_amount": self.amount - self.refunded,
            "queue_item_id": self.queue_item,
            "feature_type": "song",
            "order_id": self.order,
            "source": self.source,
            "reference": self.reference,
            "metadata": None if self.metadata is None else {"note": self.metadata},
        }


def mutated(request: Any, field: str) -> Any:
    """The request with something else in that field."""
    return replace(request, **{field: MUTATED[field](getattr(request, field))})


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a client does next: ``one`` operation, ``many`` in a batch or in a caller's ``session``, or a ``read``."""

    place: Place
    kind: str
    intents: tuple[Intent, ...]
    atomic: bool = False
    commits: bool = True
    resent: bool = False


class Plan:
    """All steps of all clients."""

    def __init__(self, seed: str, clients: Sequence[str]) -> None:
        self._seed = seed
        self.clients = tuple(clients)
        self._kind_at = lru_cache(maxsize=65_536)(self._draw_kind)

    def step(self, place: Place) -> Step:
        """The step at a place."""
        kind = self._kind_at(place)
        random = self._random(place, "step")
        if kind in SINGLE:
            return Step(place=place, kind="one", intents=(self._intent(place),))
        if kind == "many":
            return self._many(place, random)
        if kind == "session":
            intents = tuple(self._intent(place, part, random) for part in range(random.randint(1, 3)))
            return Step(place=place, kind="session", intents=intents, commits=random.random() < 0.8)
        if kind == "read":
            return Step(place=place, kind="read", intents=(self._read(place, random),))
        return self._again(place, random, mutated=kind == "mutate")

    def stream(self, client: str, start: int = 0) -> Iterator[Step]:
        """The client's own steps, for ever."""
        number = start
        while True:
            yield self.step(Place(client, STREAM, number))
            number += 1

    def members(self, burst: int) -> list[str]:
        """Who takes part in a burst."""
        random = self._random(burst)
        return random.sample(self.clients, min(len(self.clients), random.randint(3, 5)))

    def burst(self, client: str, burst: int) -> list[Step]:
        """The client's steps in a burst, on wallets that only this burst uses."""
        count = self._random(client, burst).randint(3, 5)
        return [self.step(Place(client, burst, number)) for number in range(count)]

    def _draw_kind(self, place: Place) -> str:
        random = self._random(place)
        if place.series != STREAM and place.number == 0:
            return random.choice(("credit", "credit", "deposit", "hold"))
        kind: str = _choice(random, KINDS)
        return kind

    def _intent(self, place: Place, part: int | None = None, random: random.Random | None = None) -> Intent:
        """The one operation of a step, or one part of several."""
        key = str(place) if part is None else f"{place}/{part}"
        operation = self._kind_at(place)
        random = random or self._random(place, "intent")
        if part is not None:
            operation = random.choice(list(SINGLE))
        hold = self._earlier(place, random, ("hold",)) if operation == "finish" else None
        if operation == "finish" and hold is not None:
            return self._end(key, self._intent(hold), hold, random)
        return self._begin(key, operation if operation in BEGINS else "hold", place, random)

    def _begin(self, key: str, operation: str, place: Place, random: random.Random) -> Intent:
        """What needs no hold."""
        user, model = self._wallets(place, random)
        if operation == "open" and random.random() < 0.4:
            return Intent(key=key, operation=operation, model=model)
        intent = Intent(
            key=key,
            operation=operation,
            user=user,
            amount=self._amount(operation, random),
            metadata=f"{key} ü\n'\"" if random.random() < 0.2 else None,
        )
        if operation == "hold":
            return replace(intent, queue_item=f"queue-{random.randrange(50)}")
        if operation == "spend":
            return replace(intent, order=f"order-{random.randrange(50)}" if random.random() < 0.6 else None)
        if operation == "transfer":
            return replace(intent, recipient=self._recipient(user, place, random))
        if operation == "deposit":
            return self._deposit(intent, place, random)
        if operation == "credit" and intent.amount > LIMIT // 2 and not place.series:
            return replace(intent, user=RICH)  # so that no other user is without room for ever
        return intent

    def _amount(self, operation: str, random: random.Random) -> int:
        if random.random() < (0.06 if operation == "credit" else 0.01):
            return LIMIT - random.randrange(2000)  # of which there is room for one, and which nobody has to give
        return random.randint(50, 300) if operation == "credit" else random.randint(1, 60)

    def _recipient(self, user: str, place: Place, random: random.Random) -> str:
        """Another user, who in a burst or among the hot ones will pay this one as well; or one who has no room."""
        if random.random() < 0.1 and not place.series:
            return RICH
        while (recipient := self._wallets(place, random)[0]) == user:
            pass
        return recipient

    def _deposit(self, intent: Intent, place: Place, random: random.Random) -> Intent:
        """What nobody else has claimed, but for parts of the same batch; or what an earlier deposit has, perhaps.

        Of a reference all know who was to have how much, so that each repeats it truly, or with one difference.
        """
        reference = intent.key
        if random.random() < 0.4:
            earlier = self._earlier(place, random, ("deposit",)) if reference == str(place) else f"{place}/0"
            reference = str(earlier or reference)
        known = self._random(reference, "claim")
        user, amount = self._wallets(place, known)[0], self._amount("credit", known)
        if amount > LIMIT // 2 and not place.series:
            user = RICH
        difference = _choice(random, CLAIMS)
        return replace(
            intent,
            user=self._recipient(user, place, random) if difference == "user" else user,
            amount=amount - 1 if difference == "amount" else amount,
            source="card" if difference == "source" else "bank",
            reference=reference,
        )

    def _end(self, key: str, held: Intent, hold: Place, random: random.Random) -> Intent:
        operation = _choice(random, HOW_OFTEN) if held.amount > 1 else "settle"
        flaw = _choice(random, FLAWS)
        return Intent(
            key=key,
            operation=operation,
            user="somebody-else" if flaw == "user" else held.user,
            model=self._wallets(hold, random)[1],
            amount=held.amount + (1 if flaw == "amount" and held.amount < LIMIT else 0),
            refunded=random.randint(1, held.amount - 1) if operation == "partial_settle" else 0,
            queue_item=held.queue_item,
            hold=hold,
            flaw=flaw,
        )

    def _many(self, place: Place, random: random.Random) -> Step:
        kind = random.choice(BATCHES)
        count = random.randint(2, 4 if place.series else 20)
        if kind in ENDS:
            holds = {self._earlier(place, random, ("hold",)) for _ in range(count)} - {None}
            ends = [
                self._end(f"{place}/{part}", self._intent(hold), hold, random)
                for part, hold in enumerate(sorted(filter(None, holds), key=str))
            ]
            intents = [replace(end, operation=kind, refunded=0) for end in ends]
        else:
            intents = [self._begin(f"{place}/{part}", kind, place, random) for part in range(count)]
        if not intents:
            intents = [self._begin(f"{place}/0", "credit", place, random)]
        return Step(place=place, kind="many", intents=tuple(intents), atomic=random.random() < 0.4)

    def _read(self, place: Place, random: random.Random) -> Intent:
        user, model = self._wallets(place, random)
        what = random.choice(READS)
        lists_from_there = what == "escrows" and random.random() < 0.5
        hold = self._earlier(place, random, ("hold",)) if what == "escrow" or lists_from_there else None
        if what == "escrow" and hold is None:
            what = "user_balance"
        return Intent(key=str(place), operation=what, user=user, model=model, hold=hold)

    def _again(self, place: Place, random: random.Random, *, mutated: bool) -> Step:
        """A step that was sent before, by this client or another one; or its key with another payload."""
        target = self._earlier(place, random, tuple(SINGLE) if mutated else (*SINGLE, "many"))
        if target is None:
            return Step(place=place, kind="one", intents=(self._begin(str(place), "credit", place, random),))
        step = replace(self.step(target), resent=True)
        if mutated:
            [intent] = step.intents
            had = [field.name for field in fields(OPERATIONS[intent.operation].request) if field.name in MUTATED]
            step = replace(step, intents=(replace(intent, mutation=random.choice(had)),))
        return step

    def _earlier(self, place: Place, random: random.Random, kinds: tuple[str, ...]) -> Place | None:
        """The place of an earlier step of one of these kinds, of this client or (one time in four) of another."""
        client = place.client
        if random.random() < (0.5 if place.series else 0.25):
            client = random.choice(self.members(place.series) if place.series else self.clients)
        numbers = range(max(0, place.number - WINDOW), place.number)
        if client != place.client and place.series:
            numbers = range(3)
        earlier = [Place(client, place.series, number) for number in numbers]
        found = [each for each in earlier if self._kind_at(each) in kinds]
        return random.choice(found[-12:]) if found else None

    def _wallets(self, place: Place, random: random.Random) -> tuple[str, str]:
        if place.series:
            return f"burst-{place.series}-user-{random.randrange(2)}", f"burst-{place.series}-model"
        if random.random() < 0.5:
            return f"hot-user-{random.randrange(HOT_USERS)}", f"hot-model-{random.randrange(HOT_MODELS)}"
        return f"user-{random.randrange(CROWD_USERS)}", f"model-{random.randrange(CROWD_MODELS)}"

    def _random(self, *what: object) -> random.Random:
        return random.Random(f"{self._seed} {' '.join(map(str, what))}")


def _choice(random: random.Random, weights: dict[Any, int]) -> Any:
    return random.choices(list(weights), list(weights.values()))[0]
