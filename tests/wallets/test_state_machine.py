"""Random requests, right, wrong and repeated, answered by the module as by a much simpler reference."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import fields, replace
from functools import partial
from io import StringIO
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy.orm import Session

from points_platform.core import Base, Database, OptimisticLockError, WalletError
from points_platform.ledger.files import export_log
from points_platform.wallets import EscrowStatus, WalletConfig
from points_platform.wallets.rebuild import drifts, restore
from points_platform.wallets.verify import verify
from support.databases import PostgreSQLDatabases, SQLiteDatabases
from support.recount import recount
from support.reference import STATUS, Reference, Refused
from support.world import Snapshot, World
from torture.operations import OPERATIONS, request_of

MAX_POINTS = 2**53 - 1
FORTUNE = MAX_POINTS - 50
USERS = ("ana", "ben", "eva")
MADE_BY_THE_MODULE = ("transaction_id", "timestamp", "escrow_id")
OPERATION = {known.request: name for name, known in OPERATIONS.items()}

owners = st.sampled_from(["user:ana", "user:ben", "user:fay", "model:luna", "model:kim"])
orders, references = st.sampled_from([None, "order-1"]), st.sampled_from(["r-1", "r-2", "r-3"])
users, queue = st.sampled_from(USERS), st.sampled_from(["queue-1", "queue-2"])
currencies = st.sampled_from([None, "points", "gems"])
amounts = st.integers(1, 60) | st.integers(1, 60) | st.sampled_from([MAX_POINTS - 40, MAX_POINTS])
keys = st.sampled_from([None] * 6 + ["a", "b"])
metadata = st.sampled_from([None, {"n": 1}])
ways = st.sampled_from(["own", "uncached", "joined"])
ends = st.fixed_dictionaries(
    {
        "operation": st.sampled_from(sorted(STATUS)),
        "model_id": st.sampled_from(["luna", "sol"]),
        "key": keys,
        "named": st.booleans(),
        "part": st.integers(1, 5),
    }
)

# What a settlement or refund may say of its hold that is not so, and what a repetition may say differently.
UNTRUE = {
    "user_id": "zoe",
    "queue_item_id": "queue-3",
    "currency": "gold",
    "escrow_id": "01890a5d-ac96-774b-bcce-b302099a8057",
}
DIFFERENT = UNTRUE | {
    "request_id": "request-2",
    "reason": "another_reason",
    "metadata": {"n": True},  # in Python equal to {"n": 1}, as JSON not
    "amount": 61,
    "refund_amount": 61,
    "settle_amount": 61,
    "model_id": "mira",
    "feature_type": "dance",
    "recipient_id": "mira",
    "order_id": "order-2",
    "source": "card",
    "reference": "another",
    "owner": "user:zoe",
}


class WalletMachine(RuleBasedStateMachine):
    """Every example has a database of its own; after each step all its rows are compared and recounted."""

    databases: ClassVar[SQLiteDatabases | PostgreSQLDatabases]

    def __init__(self) -> None:
        super().__init__()
        self.resources = ExitStack()
        url = self.resources.enter_context(self.databases.fresh())
        self.database = self.resources.enter_context(Database(url))
        self.world = World(self.database, config=WalletConfig(retry_backoff_ms=0))
        self.uncached = self.world.service(config=WalletConfig(idempotency_cache_size=0))
        self.reference = Reference()
        self.sent: list[Any] = []
        self.done: list[Any] = []
        self.holds: list[Any] = []
        self.rows = self.world.snapshot()

    def teardown(self) -> None:
        with self.resources:
            for (owner, currency), wallet in self.reference.wallets.items():
                kind, owner_id = owner.split(":")
                read = getattr(self.world.wallets, f"get_{kind}_balance")
                balance = vars(read(owner_id, currency))
                assert {name: balance.get(name, 0) for name in wallet} == wallet
            for user_id in USERS:
                listed = self.world.wallets.list_escrows(user_id=user_id, limit=1000).items
                mine = {id_: item for id_, item in self.reference.items.items() if item["user_id"] == user_id}
                assert {item.escrow_id: item.status for item in listed} == {
                    escrow_id: EscrowStatus(item["status"]) for escrow_id, item in mine.items()
                }
            self.verified_and_carried_to_another_database()

    def verified_and_carried_to_another_database(self) -> None:
        head = self.world.ledger.seal().head
        assert list(verify(self.database, head=head)) == []
        with self.database.snapshot() as connection:
            assert list(drifts(connection)) == []
        file, again = StringIO(newline="\n"), StringIO(newline="\n")
        assert export_log(self.database, file) == head
        file.seek(0)
        with self.databases.fresh() as url, Database(url) as other:
            assert restore(other, file) == head
            assert World(other).snapshot() == self.world.snapshot()
            export_log(other, again)
        assert again.getvalue() == file.getvalue()

    # ── what is asked for ──

    @initialize()
    def an_evening_begins(self) -> None:
        """Points to spend in two currencies, some holds, and one user with nearly all the points that fit."""
        for user, amount, currency in (("ana", 500, None), ("ana", 200, "gems"), ("ben", 300, None)):
            self.send(self.world.credit_request(user, amount, currency=currency), "own")
        self.send(self.world.credit_request("eva", MAX_POINTS - 40), "own")
        holds = (
            ("ana", 30, None),
            ("ana", 1, "gems"),
            ("ana", 9, None),
            ("ben", 2, None),
            ("ben", 60, None),
            ("eva", FORTUNE, None),
        )
        for user, amount, currency in holds:
            self.hold(user=user, amount=amount, currency=currency, queue_item_id="queue-1", key=None, way="own")
        self.what_chance_may_leave_out()

    def what_chance_may_leave_out(self) -> None:
        settle: Any = self.world.settle_request(self.holds[0][0])
        wrong: dict[str, Any] = {"amount": 31, "queue_item_id": "queue-3", "currency": "gold"}
        while wrong:  # of several mismatches the first is named
            self.send(replace(settle, **wrong), "own")
            del wrong[next(iter(wrong))]
        credit: Any = self.world.credit_request(amount=1, metadata={"n": 1})
        for differing in ({"request_id": "request-2"}, {"metadata": {"n": True}}):
            self.send(replace(credit, **differing), "own")
        self.transfer(user="ana", recipient="eva", amount=50, currency=None, key=None, metadata=None, way="own")
        for user, amount, currency in (("ana", 10, None), ("ana", 10, None), ("ben", 11, "gems"), ("ana", 10, "gems")):
            about: dict[str, Any] = {"source": "bank", "reference": "r-1", "metadata": None}
            self.deposit(user=user, amount=amount, currency=currency, key=None, way="own", **about)

    @rule(user=users, amount=amounts, currency=currencies, key=keys, metadata=metadata, way=ways)
    def credit(self, user: str, amount: int, way: str, key: str | None, **options: Any) -> None:
        self.send(self.world.credit_request(user, amount, idempotency_key=key, **options), way)

    @rule(user=users, amount=amounts, currency=currencies, queue_item_id=queue, key=keys, metadata=metadata, way=ways)
    def hold(self, user: str, amount: int, way: str, key: str | None, **options: Any) -> None:
        request = self.world.hold_request(user, amount, idempotency_key=key, **options)
        answer = self.send(request, way)
        if answer is not None and not answer.replayed:
            self.holds.append((answer.escrow_id, request))

    @rule(user=users, amount=amounts, currency=currencies, order_id=orders, key=keys, metadata=metadata, way=ways)
    def spend(self, user: str, amount: int, way: str, key: str | None, **options: Any) -> None:
        self.send(self.asked("spend", key, user_id=user, amount=amount, **options), way)

    @rule(user=users, recipient=users, amount=amounts, currency=currencies, key=keys, metadata=metadata, way=ways)
    def transfer(self, user: str, recipient: str, amount: int, way: str, key: str | None, **options: Any) -> None:
        recipient_id = "fay" if recipient == user else recipient  # who has no wallet before somebody pays
        self.send(self.asked("transfer", key, user_id=user, recipient_id=recipient_id, amount=amount, **options), way)

    @rule(owner=owners, currency=currencies, key=keys, metadata=metadata, way=ways)
    def open(self, owner: str, way: str, key: str | None, **options: Any) -> None:
        self.send(self.asked("open", key, owner=owner, **options), way)

    @rule(
        user=users,
        amount=st.sampled_from([10, 10, 11]),
        source=st.sampled_from(["bank", "bank", "card"]),
        reference=references,
        currency=currencies,
        key=keys,
        metadata=metadata,
        way=ways,
    )
    def deposit(self, user: str, amount: int, way: str, key: str | None, **options: Any) -> None:
        self.send(self.asked("deposit", key, user_id=user, amount=amount, **options), way)

    def asked(self, operation: str, key: str | None, **said: Any) -> Any:
        keys = {"idempotency_key": key or self.world.key(), "request_id": "request-1", "reason": "because"}
        return request_of(operation, keys | said)

    @rule(data=st.data(), end=ends, way=ways)
    def settle(self, data: st.DataObject, end: dict[str, Any], way: str) -> None:
        self.send(self.end_of_a_hold(data, **end | {"operation": "settle"}), way)

    @rule(data=st.data(), end=ends, way=ways)
    def refund(self, data: st.DataObject, end: dict[str, Any], way: str) -> None:
        self.send(self.end_of_a_hold(data, **end | {"operation": "refund"}), way)

    @rule(data=st.data(), end=ends, way=ways)
    def partial_settle(self, data: st.DataObject, end: dict[str, Any], way: str) -> None:
        self.send(self.end_of_a_hold(data, **end | {"operation": "partial_settle"}), way)

    @rule(data=st.data(), end=ends, way=ways, name=st.sampled_from([*UNTRUE, "amount"]), signed=st.booleans())
    def finish_untruly(self, data: st.DataObject, end: dict[str, Any], way: str, name: str, signed: bool) -> None:
        """Something in the request is not so; the queue has signed that too, or only what is so."""
        honest = self.end_of_a_hold(data, **end)
        if name == "amount" and not hasattr(honest, "amount"):
            name = "settle_amount"
        untrue = replace(honest, **{name: UNTRUE.get(name) or getattr(honest, name) % MAX_POINTS + 1})
        # A currency is no part of what the queue permits.
        options = {} if signed or name == "currency" else {"authorization": self.world.authorize(honest)}
        self.send(untrue, way, **options)

    @rule(data=st.data(), way=ways)
    def repeat(self, data: st.DataObject, way: str) -> None:
        self.send(self.one_sent(data), way)

    @rule(data=st.data(), way=ways)
    def repeat_with_a_difference(self, data: st.DataObject, way: str) -> None:
        request = self.one_sent(data)
        name = data.draw(st.sampled_from([field.name for field in fields(request) if field.name in DIFFERENT]))
        self.send(replace(request, **{name: DIFFERENT[name]}), way)

    @rule(data=st.data(), fresh_key=st.booleans(), way=ways)
    def undo_and_send_again(self, data: st.DataObject, fresh_key: bool, way: str) -> None:
        """What happens in a caller's transaction that rolls back has not happened, and its key is free."""
        request = self.one_sent(data)
        if fresh_key:
            request = replace(request, idempotency_key=self.world.key())
        with Session(self.database.engine) as session:
            self.answer(partial(self.world.send, request, session=session))
            session.rollback()
        assert self.world.snapshot() == self.rows
        self.send(request, way)

    def one_sent(self, data: st.DataObject) -> Any:
        """A request with an effect or any request, of any operation."""
        sent = data.draw(st.sampled_from([self.done, self.sent]))
        kind = data.draw(st.sampled_from(sorted({type(request).__name__ for request in sent})))
        return data.draw(st.sampled_from([request for request in sent if type(request).__name__ == kind]))

    def end_of_a_hold(
        self, data: st.DataObject, operation: str, model_id: str, key: str | None, named: bool, part: int
    ) -> Any:
        escrow_id, hold = data.draw(st.sampled_from(self.holds))
        options = {"user_id": hold.user_id, "queue_item_id": hold.queue_item_id, "idempotency_key": key}
        if named:
            options["currency"] = hold.currency or "points"
        if operation == "refund":
            return self.world.refund_request(escrow_id, hold.amount, **options)
        options["model_id"] = model_id
        if operation == "settle":
            return self.world.settle_request(escrow_id, hold.amount, **options)
        return self.world.partial_settle_request(escrow_id, part, max(1, hold.amount - part), **options)

    # ── what is answered ──

    def send(self, request: Any, way: str, **options: Any) -> Any:
        """Send the request and compare the answer; returns the response, ``None`` for a refusal."""
        answer = self.answer(partial(self.carry_out, request, way, **options))
        made = {name: getattr(answer, name) for name in MADE_BY_THE_MODULE if hasattr(answer, name)}
        operation = OPERATION[type(request)]
        self.sent.append(request)
        try:
            expected = self.reference.send(operation, request, made, authorized="authorization" not in options)
        except Refused as refusal:
            code, details = refusal.args
            assert isinstance(answer, WalletError), f"{answer} instead of {code}"
            assert answer.code == code
            # All that is told, and no more: not, for example, the balance of whom somebody wants to pay.
            assert answer.details == details or code == "invalid_authorization"
            return None
        assert not isinstance(answer, WalletError), f"{answer} instead of {expected}"
        assert vars(answer) == {name: expected[name] for name in vars(answer)}
        if not answer.replayed:
            self.done.append(request)
        return answer

    def answer(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except OptimisticLockError:
            raise
        except WalletError as refusal:
            return refusal

    def carry_out(self, request: Any, way: str, **options: Any) -> Any:
        if way != "joined":
            return self.world.send(request, self.uncached if way == "uncached" else None, **options)
        with Session(self.database.engine) as session, session.begin():
            return self.world.send(request, session=session, **options)

    # ── what is so after each step ──

    @invariant()
    def rows_events_and_reference_agree(self) -> None:
        recount(self.database)
        before, self.rows = self.rows, self.world.snapshot()
        for table in ("ledger_transactions", "ledger_entries"):
            assert set(before[table]) <= set(self.rows[table]), "invariant 8: a row of the ledger has changed"
        self.wallets_are_those_of_the_reference()
        self.items_are_those_of_the_reference()
        self.every_transaction_was_announced_once()

    def wallets_are_those_of_the_reference(self) -> None:
        tables = ("user_wallets", "model_wallets")
        rows = {(row["owner_id"], row["currency"]): row for table in tables for row in rows_of(self.rows, table)}
        expected = {key: wallet for key, wallet in self.reference.wallets.items() if wallet["version"]}
        assert set(rows) == set(expected)
        for key, wallet in expected.items():
            assert {name: rows[key].get(name, 0) for name in wallet} == wallet

    def items_are_those_of_the_reference(self) -> None:
        rows = {row["escrow_id"]: row for row in rows_of(self.rows, "escrow_items")}
        assert set(rows) == set(self.reference.items)
        for escrow_id, item in self.reference.items.items():
            compared = set(item) & set(rows[escrow_id]) - {"metadata"}  # which the table has as text
            assert {name: rows[escrow_id][name] for name in compared} == {name: item[name] for name in compared}
            assert rows[escrow_id]["owner_id"] == f"user:{item['user_id']}"

    def every_transaction_was_announced_once(self) -> None:
        announced = [event.event_id for event in self.world.events]
        assert len(announced) == len(set(announced)), "invariant 10"
        assert set(announced) == {answer["transaction_id"] for _, answer in self.reference.answers.values()}
        assert set(announced) == {row["transaction_id"] for row in rows_of(self.rows, "ledger_transactions")}


def rows_of(snapshot: Snapshot, table: str) -> list[dict[str, Any]]:
    names = [column.name for column in Base.metadata.tables[table].columns]
    return [dict(zip(names, row, strict=True)) for row in snapshot[table]]


@pytest.mark.parametrize(("engine", "examples"), [("sqlite", 20), ("postgresql", 10)])
def test_whatever_is_asked_the_module_answers_as_the_reference_does(
    request: pytest.FixtureRequest, engine: str, examples: int
) -> None:
    class OnOneEngine(WalletMachine):
        databases = request.getfixturevalue(f"{engine}_databases")

    bounds = settings(
        max_examples=examples,
        stateful_step_count=40,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate, Phase.shrink],
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(OnOneEngine, settings=bounds)
