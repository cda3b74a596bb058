"""Following the log: what is done in the session is done once for each entry, whoever crashes or follows beside."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from sqlalchemy import String, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker
from sqlmodel import Session as ModelSession

from points_platform.core import Database, InvalidRequestError, OptimisticLockError, StorageUnavailableError
from points_platform.ledger import LedgerService, LogEntry, following
from points_platform.ledger import follow as follow_log
from points_platform.wallets import WalletCredited
from support.statements import statements
from support.world import World, at_once


class HostBase(DeclarativeBase):
    """The host's own tables."""


class Noted(HostBase):
    __tablename__ = "noted"
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    transaction_id: Mapped[str] = mapped_column(String(36))


@pytest.fixture
def shop(world: World) -> World:
    """A world with five transactions that nobody has sealed, whose host notes what it has seen."""
    HostBase.metadata.create_all(world.database.engine)
    for _ in range(5):
        world.credit()
    return world


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What contention would have waited for."""
    waited: list[float] = []
    monkeypatch.setattr("points_platform.core.database.time.sleep", waited.append)
    return waited


def note(entry: LogEntry, session: Session) -> None:
    session.add(Noted(transaction_id=entry.transaction.transaction_id))


def noted(world: World) -> list[str]:
    with Session(world.database.engine) as session:
        return list(session.execute(text("SELECT transaction_id FROM noted ORDER BY number")).scalars())


def log_of(world: World) -> list[str]:
    world.ledger.seal()
    return [entry.transaction.transaction_id for entry in world.ledger.read_log(limit=1000)]


@pytest.mark.parametrize("limit", [1, 2, 5, 100])
def test_it_seals_and_hands_every_entry_over_once_in_the_order_of_the_log(shop: World, limit: int) -> None:
    assert follow_log(shop.ledger, "notes", note, limit=limit) == 5
    assert noted(shop) == log_of(shop)
    assert follow_log(shop.ledger, "notes", note, limit=limit) == 0
    shop.credit()
    assert follow_log(shop.ledger, "notes", note, limit=limit) == 1
    assert noted(shop) == log_of(shop)
    assert shop.ledger.reader("notes").position == 6
    assert follow_log(shop.ledger, "others", note) == 6, "each name has its own place"


class Dies(BaseException):
    """As the process does that is killed."""


@pytest.mark.parametrize("error", [Dies, ValueError])
def test_after_a_crash_or_an_error_in_between_each_entry_is_acted_on_once(
    shop: World, error: type[BaseException]
) -> None:
    left = 4

    def fails(entry: LogEntry, session: Session) -> None:
        nonlocal left
        left -= 1
        note(entry, session)
        session.flush()
        if not left:
            raise error

    with pytest.raises(error):
        follow_log(shop.ledger, "notes", fails, limit=2)
    assert (len(noted(shop)), shop.ledger.reader("notes").position) == (2, 2), "what is undone is the entries at hand"
    assert follow_log(shop.ledger, "notes", note) == 3
    assert noted(shop) == log_of(shop)


def test_a_crash_right_before_the_commit_undoes_the_move_with_the_rest(shop: World) -> None:
    class Dying(Session):
        def commit(self) -> None:
            self.flush()
            raise Dies

    with pytest.raises(Dies):
        follow_log(shop.ledger, "notes", note, sessions=sessionmaker(shop.database.engine, class_=Dying))
    assert (noted(shop), shop.ledger.reader("notes").position) == ([], 0)
    follow_log(shop.ledger, "notes", note)
    assert noted(shop) == log_of(shop)


def test_of_many_followers_at_once_one_acts_on_each_entry(shop: World, url: str) -> None:
    seen: list[str] = []

    def act(entry: LogEntry, session: Session) -> None:
        seen.append(entry.transaction.transaction_id)
        note(entry, session)

    with Database(url) as other:
        ledgers = [shop.ledger, LedgerService(other)] * 2
        answers = at_once(*(partial(follow_log, ledger, "notes", act, limit=2) for ledger in ledgers))
    assert sum(answer for answer in answers if isinstance(answer, int)) == 5, answers
    assert seen == noted(shop) == log_of(shop)


def test_a_second_follower_waits_before_it_acts(postgresql_url: str, pauses: list[float]) -> None:
    """The reader's row is locked first: else both would send the mail, and one of them could not take it back."""
    with Database(postgresql_url) as database, Database(postgresql_url, lock_timeout_ms=20) as other:
        world = World(database)
        world.credit()
        seen: list[str] = []

        def act(entry: LogEntry, session: Session) -> None:
            with pytest.raises(OptimisticLockError):
                follow_log(LedgerService(other), "mails", lambda *given: seen.append("the second one"))
            seen.append("the first one")

        assert follow_log(world.ledger, "mails", act) == 1
    assert seen == ["the first one"]
    assert len(pauses) == following.MEETING.attempts - 1


def test_one_that_comes_just_after_another_one_goes_on_from_there(postgresql_url: str) -> None:
    with Database(postgresql_url) as database:
        world = World(database)
        for _ in range(3):
            world.credit()
        world.ledger.seal()
        reader = world.ledger.reader("notes")
        seen: list[int] = []
        with Session(database.engine) as first:
            reader.move(2, seen=0, session=first)
            waiting = threading.Thread(target=first.commit)

            class Later(Session):
                def __init__(self, *given: Any) -> None:
                    super().__init__(database.engine)
                    if not waiting.ident:
                        waiting.start()

            assert follow_log(world.ledger, "notes", lambda entry, _: seen.append(entry.position), sessions=Later) == 1
            waiting.join(60)
    assert seen == [3]


def test_operations_in_the_same_session_are_done_once_and_announced_after_the_commit(shop: World) -> None:
    def bonus(entry: LogEntry, session: Session) -> None:
        if entry.transaction.reason == "top_up":
            key = f"bonus-{entry.transaction.transaction_id}"
            request = shop.credit_request("ben", 1, reason="bonus", idempotency_key=key)
            assert not shop.wallets.credit_user(request, session=session).replayed
            assert len(shop.events) == before

    before = len(shop.events)
    assert follow_log(shop.ledger, "bonus", bonus) == 5
    assert [event.reason for event in shop.events[before:] if isinstance(event, WalletCredited)] == ["bonus"] * 5
    before = len(shop.events)
    assert follow_log(shop.ledger, "bonus", bonus) == 5, "what it has done is in the log too"
    assert shop.wallets.get_user_balance("ben").available == 5


def test_where_there_is_nothing_new_nothing_is_written_and_no_session_made(shop: World) -> None:
    follow_log(shop.ledger, "notes", note)
    before = shop.snapshot()
    with statements(shop.database.engine) as seen:
        assert follow_log(shop.ledger, "notes", note, sessions=lambda: pytest.fail("a session")) == 0
    assert shop.snapshot() == before
    assert [each for each in seen if each.startswith(("UPDATE", "INSERT"))] == []


SESSIONS: dict[str, Any] = {
    "SQLModel": lambda engine: partial(ModelSession, engine),
    "sessionmaker": sessionmaker,
    "scoped_session": lambda engine: scoped_session(sessionmaker(engine)),
    "without autobegin": lambda engine: sessionmaker(engine, autobegin=False),
}


@pytest.mark.parametrize("make", SESSIONS.values(), ids=SESSIONS)
def test_sessions_are_the_hosts_own(shop: World, make: Callable[[Any], Callable[[], Session]]) -> None:
    sessions = make(shop.database.engine)
    assert follow_log(shop.ledger, "notes", note, sessions=sessions) == 5
    assert noted(shop) == log_of(shop)


def test_contention_is_tried_again_and_told_in_the_end(shop: World, pauses: list[float]) -> None:
    left = 3

    def contended(entry: LogEntry, session: Session) -> None:
        nonlocal left
        note(entry, session)
        left -= 1
        if left >= 0:
            raise OptimisticLockError(attempts=1)

    assert follow_log(shop.ledger, "notes", contended, limit=2) == 5
    assert noted(shop) == log_of(shop)
    left = 1000
    shop.credit()
    with pytest.raises(OptimisticLockError):
        follow_log(shop.ledger, "notes", contended)
    assert left == 1000 - 1 - following.MEETING.attempts
    assert len(noted(shop)) == 5


def test_a_commit_that_fails_is_told_in_the_modules_words_and_undoes_everything(shop: World) -> None:
    class Lost(Session):
        def commit(self) -> None:
            self.execute(text("SELECT nothing FROM nowhere"))

    with pytest.raises(StorageUnavailableError):
        follow_log(shop.ledger, "notes", note, sessions=lambda: Lost(shop.database.engine))
    assert (noted(shop), shop.ledger.reader("notes").position) == ([], 0)


async def waits(entry: LogEntry, session: Session) -> None:
    """Which nobody would await."""


def test_what_cannot_serve_is_refused_by_name_before_anything_is_sealed(shop: World) -> None:
    good: dict[str, Any] = {"log": shop.ledger, "name": "notes", "handle": note}
    wrong: list[tuple[str, Any]] = [
        ("log", shop.database),
        ("log", LedgerService),
        ("name", ""),
        ("handle", None),
        ("handle", waits),
        ("sessions", Session(shop.database.engine)),
        ("limit", 0),
        ("limit", 1001),
    ]
    for field, value in wrong:
        with pytest.raises(InvalidRequestError) as refusal:
            follow_log(**(good | {field: value}))
        assert refusal.value.details["field"] == field, value
    assert shop.ledger.head().position == 0


def test_a_session_of_another_database_or_none_at_all_is_refused(shop: World, tmp_path: Any) -> None:
    with Database(f"sqlite:///{tmp_path}/other.db") as other:
        for sessions in (sessionmaker(other.engine), Session):
            with pytest.raises((InvalidRequestError, StorageUnavailableError)):
                follow_log(shop.ledger, "notes", note, sessions=sessions)
    assert shop.ledger.reader("notes").position == 0
