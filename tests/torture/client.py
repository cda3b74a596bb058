"""A client: carries out the plan's steps through the module, and writes down what it asks and what it hears."""

import math
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import jwt
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from points_platform.core import Database, EscrowNotFoundError, WalletError
from points_platform.core.values import Page, encode_cursor, new_id
from points_platform.ledger import LedgerService
from points_platform.queue import AuthorizationKey, QueueAuthorizer
from points_platform.wallets import WalletService

from .journal import Journal, Line, acknowledged_by, clock, fields_of, refusal_of
from .operations import ENDS, OPERATIONS, request_of
from .plan import STREAM, Intent, Place, Plan, Step

KEY = AuthorizationKey.of("the secret of the queue in the torture")
NO_ITEM = ""
# Seconds to wait, so that a database that is out of reach does not use up the steps.
AFTER_FAILURE = 0.02
A_DAY = 86_400
PAGE = 10
# How many pages of a list are read one after the other.
PAGES = 2
DAYS: Line = {"period": "day", "timezone": "Asia/Kathmandu"}


def wallets_on(database: Database, **options: Any) -> WalletService:
    """The wallets of a database, as everybody here calls them."""
    return WalletService(LedgerService(database), authorizer=QueueAuthorizer(KEY), **options)


@dataclass(frozen=True)
class Part:
    """One operation of a call, as it is sent: with its authorization where it needs one."""

    intent: Intent
    request: Any
    permission: tuple[Any, ...] = ()

    def described(self) -> Line:
        """What the journal has of it."""
        request = self.request if isinstance(self.request, dict) else fields_of(self.request)
        names = ("operation", "key", "flaw", "mutation")
        return {name: getattr(self.intent, name) for name in names} | {
            "request": request,
            "authorization": _id_of(self.permission[0]) if self.permission else None,
        }


@dataclass(frozen=True)
class Listed:
    """A list, or a page of one, as it was read; ``next`` where there was more."""

    items: list[Line]
    next: str | None = None

    @classmethod
    def of(cls, page: Page[Any]) -> "Listed":
        return cls(list(map(fields_of, page.items)), page.next)


@dataclass
class Memory:
    """What a client has been told since its process began."""

    escrow_ids: dict[str, str]
    acknowledged: set[str]


class Client:
    """One thread of a worker process, with a journal of its own."""

    def __init__(
        self,
        name: str,
        plan: Plan,
        journal: Journal,
        database: Database,
        wallets: WalletService,
        incarnation: int = 0,
        isolation_level: str | None = None,
    ) -> None:
        self.name = name
        self.journal = journal
        self._plan = plan
        self._database = database
        self._wallets = wallets
        self._ledger = LedgerService(database)
        self._of_sessions = {"isolation_level": isolation_level} if isolation_level else {}
        self._queue = QueueAuthorizer(KEY)
        # Its tokens name the queue's key.
        self._stranger = QueueAuthorizer(AuthorizationKey.of("a secret that is not the queue's", kid=KEY.kid))
        self._memory = Memory({}, set())
        self._incarnation = incarnation
        self._calls = 0
        # When it last had an answer of something that is new.
        self.succeeded = -math.inf

    def carry_out(self, step: Step) -> None:
        """Send what the step says; where the hold it speaks of is not known to have an answer, nothing."""
        if step.kind == "read":
            self._read(step)
            return
        requests: list[tuple[Intent, Any]] = []
        for intent in step.intents:
            if intent.mutation is not None and not self._is_acknowledged(step, intent):
                return
            escrow_id = None if intent.hold is None else self._escrow_id(intent.hold)
            if escrow_id == NO_ITEM:
                # The same key will stand for the end of the real item, if the hold is carried out one day.
                intent, escrow_id = replace(intent, key=f"{intent.key}/nothing"), new_id()
            if intent.hold is None or escrow_id is not None:
                requests.append((intent, intent.request(escrow_id)))
        if requests:
            self._send(step, requests)

    def _is_acknowledged(self, step: Step, mutated: Intent) -> bool:
        """Whether the key stands for its own request; sends that one if this process does not know."""
        if mutated.key not in self._memory.acknowledged:
            self.carry_out(replace(step, intents=(replace(mutated, mutation=None),)))
        return mutated.key in self._memory.acknowledged

    def recover(self, last: Line) -> None:
        """Send again, exactly, what a former life of this client has sent and heard nothing of."""
        if last["form"] in ("one", "many"):
            parts = [(_intent_of(part), request_of(part["operation"], part["request"])) for part in last["parts"]]
            place = Place(self.name, last["series"], last["number"])
            intents = tuple(intent for intent, _ in parts)
            step = Step(place=place, kind=last["form"], intents=intents, atomic=last["atomic"], resent=True)
            self._send(step, parts)

    def _send(self, step: Step, requests: Sequence[tuple[Intent, Any]]) -> Line:
        """Send the requests, each with the id of this call, by which the ledger tells whose call has had an effect."""
        call = self._next_call()
        parts = [self._part(intent, replace(request, request_id=call)) for intent, request in requests]
        send = {"one": self._one, "many": self._many, "session": self._session}[step.kind]
        answer = self._call(call, step, parts, partial(send, step, parts))
        outcomes = answer.get("outcomes") or []
        for part, outcome in zip(parts, outcomes, strict=False):
            if "transaction_id" in outcome and answer.get("committed", True):
                if part.intent.operation != "deposit" or not outcome["replayed"]:
                    # A deposit may be a replay of another key's, and leaves its own unused.
                    self._memory.acknowledged.add(part.intent.key)
                if part.intent.operation == "hold":
                    self._memory.escrow_ids[part.intent.key] = outcome["escrow_id"]
        return answer

    def _next_call(self) -> str:
        self._calls += 1
        return f"{self.name}-{self._incarnation}-{self._calls}"

    def _part(self, intent: Intent, request: Any) -> Part:
        permission = (self._authorization(intent, request),) if intent.operation in ENDS else ()
        return Part(intent, request, permission)

    def _call(self, call: str, step: Step, parts: Sequence[Part], send: Callable[[], Line]) -> Line:
        self.journal.write(
            call=call,
            form=step.kind,
            series=step.place.series,
            number=step.place.number,
            atomic=step.atomic,
            resent=step.resent,
            parts=[part.described() for part in parts],
        )
        current.client, current.call = self, call
        try:
            answer = send()
        except WalletError as error:
            answer = {"error": refusal_of(error)}
        except Exception:
            answer = {"unexpected": traceback.format_exc()}
        self.journal.write(answer=call, **answer)
        if any(not outcome["replayed"] for outcome in acknowledged_by(answer)):
            self.succeeded = clock()
        if answer.get("error", {}).get("code") == "storage_unavailable":
            time.sleep(AFTER_FAILURE)
        return answer

    def _one(self, step: Step, parts: Sequence[Part]) -> Line:
        [part] = parts
        return {"outcomes": [fields_of(self._send_one(part))]}

    def _send_one(self, part: Part, **options: Any) -> Any:
        return getattr(self._wallets, OPERATIONS[part.intent.operation].method)(
            part.request, *part.permission, **options
        )

    def _many(self, step: Step, parts: Sequence[Part]) -> Line:
        send = getattr(self._wallets, f"{parts[0].intent.operation}_many")
        asked = [(part.request, *part.permission) if part.permission else part.request for part in parts]
        return {"outcomes": [_outcome_of(answer) for answer in send(asked, atomic=step.atomic)]}

    def _session(self, step: Step, parts: Sequence[Part]) -> Line:
        """What a host does in a transaction of its own; ``committed`` is ``None`` where nobody knows."""
        answer: Line = {"outcomes": [], "committed": False}
        try:
            with Session(self._database.engine) as session:
                session.connection(execution_options=self._of_sessions)
                for part in parts:
                    outcome = self._try_in(session, part)
                    answer["outcomes"].append(outcome)
                    if outcome.get("retryable"):
                        return answer
                if step.commits:
                    answer["committed"] = None
                    session.commit()
                    answer["committed"] = True
        except SQLAlchemyError as error:
            answer["host_error"] = str(error)
        return answer

    def _try_in(self, session: Session, part: Part) -> Line:
        try:
            return fields_of(self._send_one(part, session=session))
        except WalletError as error:
            return refusal_of(error)

    def _read(self, step: Step) -> None:
        [intent] = step.intents
        request = self._asked(intent)
        read = getattr(self, f"_{intent.operation}", None) or getattr(self._wallets, f"get_{intent.operation}")
        for _ in range(PAGES):
            if request is not None:
                part = Part(intent, request)
                answer = self._call(self._next_call(), step, [part], partial(_answer_of, read, request))
                request = _of_next_page(request, answer)

    def _asked(self, intent: Intent) -> Line | None:
        """The arguments of a read; nothing where the hold it speaks of is not known to have an answer."""
        escrow_id = None if intent.hold is None else self._escrow_id(intent.hold)
        time = datetime.now(UTC)
        asked: dict[str, Line | None] = {
            "user_balance": {"user_id": intent.user},
            "model_balance": {"model_id": intent.model},
            "escrow": None if escrow_id is None else {"escrow_id": escrow_id or new_id()},
            "escrows": {"user_id": intent.user, "after": encode_cursor(escrow_id) if escrow_id else None},
            "statement": {"user_id": intent.user, "after": None},
            # Of days enough for any clock that is wrong by minutes.
            "earnings": {"model_id": intent.model, "since": time - timedelta(2), "until": time + timedelta(2)},
        }
        return asked[intent.operation]

    def _escrows(self, **request: Any) -> Listed:
        return Listed.of(self._wallets.list_escrows(status="held", limit=PAGE, **request))

    def _statement(self, user_id: str, after: str | None) -> Listed:
        asked: dict[str, Any] = {"bucket": "available", "newest_first": True, "limit": PAGE, "after": after}
        return Listed.of(self._ledger.entries(f"user:{user_id}", "points", **asked))

    def _earnings(self, **request: Any) -> Listed:
        return Listed(list(map(fields_of, self._ledger.earnings(currency="points", **DAYS, **request))))

    def _escrow_id(self, hold: Place) -> str | None:
        """The item that a hold has made; its request is sent again if this process has not heard of it.

        ``NO_ITEM`` if it was refused, ``None`` where its fate is not known.
        """
        [intent] = self._plan.step(hold).intents
        if intent.key in self._memory.escrow_ids:
            return self._memory.escrow_ids[intent.key]
        step = replace(self._plan.step(hold), resent=True)
        answer = self._send(step, [(intent, intent.request())])
        if "outcomes" in answer:
            return self._memory.escrow_ids[intent.key]
        return None if "unexpected" in answer or answer["error"]["retryable"] else NO_ITEM

    def _authorization(self, intent: Intent, request: Any) -> Any:
        """The queue's permission for exactly this request, or what the intent says is wrong about it."""
        if intent.flaw == "token":
            return self._stranger.authorize(request)
        if intent.flaw == "other_action":
            return self._queue.authorize(replace(request, escrow_id=new_id()))
        genuine = self._queue.authorize(request)
        if intent.flaw != "expired":
            return genuine
        claims = _claims(genuine)
        past = {name: claims[name] - A_DAY for name in ("iat", "nbf", "exp")}
        token = jwt.encode(claims | past, KEY.signing, KEY.algorithm, headers={"kid": KEY.kid})
        envelope = {name: getattr(genuine, name) - timedelta(seconds=A_DAY) for name in ("issued_at", "expires_at")}
        return replace(genuine, token=token, **envelope)


def _claims(authorization: Any) -> Line:
    claims: Line = jwt.decode(authorization.token, options={"verify_signature": False})
    return claims


def _id_of(authorization: Any) -> str:
    return str(_claims(authorization)["jti"])


def _outcome_of(answer: Any) -> Line:
    return refusal_of(answer) if isinstance(answer, WalletError) else fields_of(answer)


def _answer_of(read: Callable[..., Any], request: Line) -> Line:
    try:
        return {"outcomes": [fields_of(read(**request))]}
    except EscrowNotFoundError as error:
        return {"outcomes": [refusal_of(error)]}


def _of_next_page(request: Line, answer: Line) -> Line | None:
    after = [outcome["next"] for outcome in answer.get("outcomes", []) if outcome.get("next")]
    return request | {"after": after[0]} if after else None


def _intent_of(part: Line) -> Intent:
    names = ("operation", "key", "flaw", "mutation")
    return Intent(user=part["request"].get("user_id", ""), **{name: part[name] for name in names})


class _Current(threading.local):
    """Which client's call runs in this thread: events arrive in the thread that publishes them."""

    client: Client | None = None
    call = ""


current = _Current()


def note(event: Any) -> None:
    """The receiver that puts events into the journal of whose call it is."""
    if current.client is not None:
        fields = fields_of(event) | {"event_type": event.event_type}  # of the class, not of the instance
        current.client.journal.write(event=fields, during=current.call)


def unfinished(journal: list[Line]) -> Line | None:
    """The last call of a journal, if it was never answered."""
    calls = [line for line in journal if "call" in line]
    answered = {line["answer"] for line in journal if "answer" in line}
    return calls[-1] if calls and calls[-1]["call"] not in answered else None


def next_number(journal: list[Line]) -> int:
    """Where the client's stream goes on."""
    own = (line for line in journal if "call" in line and line["series"] == STREAM and not line["resent"])
    return 1 + max((line["number"] for line in own), default=-1)
