"""The platform end to end, in processes of its own on a PostgreSQL of its own: ``make host-demo``.

It ends by itself, with 0 if everything is as it must be.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import httpx2
from alembic.command import check as check_nothing_to_do
from alembic.command import upgrade
from alembic.config import Config
from alembic.util import CommandError
from sqlmodel import Session, create_engine

from points_platform.queue import QueueAuthorizer

from .server import fresh_database
from .tables import MenuItem, Redemption
from .worker import sign

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(sys.executable).parent
MENU = (("song", 120), ("dance", 80), ("poem", 50))
BOUGHT = 300
SECONDS = 20  # the longest that an answer may take, or the end of a process
ALL_SECONDS = 90  # the longest that all of it may take
DECIDED = {"wallet.escrow_settled", "wallet.escrow_partially_settled", "wallet.escrow_refunded"}


class WrongError(Exception):
    """Something is not as it must be."""


def check(what: str, found: object, expected: object) -> None:
    """Raises ``WrongError`` where they differ. An ``assert`` would be gone under ``python -O``."""
    if found != expected:
        raise WrongError(f"{what}: {found}, not {expected}")


# ── processes ─────────────────────────────────────────────────────────────────────────────────────


def command(*words: str, **environment: str) -> None:
    """Run one of the command lines to its end. Raises ``WrongError`` where it fails."""
    ran = subprocess.run(  # noqa: S603 - the example's own
        [PROGRAMS / words[0], *words[1:]], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )
    if ran.returncode != 0:
        raise WrongError(f"{' '.join(words)}\n{ran.stdout}{ran.stderr}")


@contextmanager
def process(*words: str, sockets: tuple[int, ...] = (), **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs meanwhile. A group of its own: what Ctrl-C means to it, this process says."""
    running = subprocess.Popen(  # noqa: S603 - the example's own
        [PROGRAMS / words[0], *words[1:]], cwd=ROOT, env=os.environ | environment, pass_fds=sockets, process_group=0
    )
    try:
        yield running
        check(f"{words[0]} has ended, with status", running.poll(), None)
    finally:
        running.terminate()
        try:
            running.wait(SECONDS)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


@contextmanager
def web_process(**environment: str) -> Iterator[str]:
    """The URL of a web process on a free port of this machine's loopback."""
    with ExitStack() as stack:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            number = listening.fileno()
            words = ("uvicorn", "--factory", "examples.host.web:app", "--fd", str(number), "--log-level", "warning")
            stack.enter_context(process(*words, "--timeout-graceful-shutdown", "1", sockets=(number,), **environment))
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        yield url


# ── what users and models do ──────────────────────────────────────────────────────────────────────


def not_failed(answer: httpx2.Response) -> None:
    """What is refused has its answer; a failure is none. Raises ``WrongError``."""
    if answer.is_server_error:
        raise WrongError(f"{answer.request.method} {answer.url} failed with {answer.status_code}")


@contextmanager
def watching(web: httpx2.Client, user_id: str) -> Iterator[Iterator[dict[str, Any]]]:
    """A page that is open: the events of a user as they come, and signs of life where none comes."""
    with web.stream("GET", f"/users/{user_id}/events") as answer:
        lines = answer.iter_lines()
        check("the page is told", next(lines), ": watching")
        yield (json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: "))


def until(events: Iterator[dict[str, Any]], event_types: set[str]) -> dict[str, dict[str, Any]]:
    """The events by their types, when one of each has come."""
    seen: dict[str, dict[str, Any]] = {}
    while not event_types <= seen.keys():
        event = next(events)
        seen[event["event_type"]] = event
    return seen


def redeem(web: httpx2.Client, item: str, price: int, *, user: str = "ana") -> httpx2.Response:
    order = {"item_id": item, "price": price}
    return web.post(f"/users/{user}/redemptions", json=order, headers={"Idempotency-Key": f"order-{item}"})


def an_evening(web: httpx2.Client, events: Iterator[dict[str, Any]]) -> None:
    """Ana buys points, and redeems them for everything that is on the menu."""
    payment = {"reference": "card-7", "user_id": "ana", "points": BOUGHT}
    paid = [web.post("/payments", json=payment).json() for _ in range(2)]
    check("announced twice, paid", [answer["replayed"] for answer in paid], [False, True])
    print(f"ana pays for {BOUGHT} points; the provider says so twice, and it counts once")

    orders = [redeem(web, item, price).json() for item, price in MENU]
    check("the same order again", redeem(web, *MENU[0]).json()["redemption_id"], orders[0]["redemption_id"])
    print("ana redeems", ", ".join(f"a {item} for {price}" for item, price in MENU), "and sends the first order again")

    refused = redeem(web, *MENU[0], user="ben")
    check("what ben is told", (refused.status_code, refused.json()["code"]), (402, "insufficient_balance"))
    print(f"ben, who has nothing, is told {refused.status_code}: {refused.json()['message']}")

    told = until(events, {"wallet.deposited", "wallet.escrow_held", *DECIDED})
    split = told["wallet.escrow_partially_settled"]
    check("the dance broke off", (split["settled_amount"], split["refunded_amount"]), (40, 40))
    check("all of the song is the model's", told["wallet.escrow_settled"]["settled_amount"], 120)
    check("all of the poem came back", told["wallet.escrow_refunded"]["refunded_amount"], 50)
    print("the worker performs and decides; ana's page is told of each:", ", ".join(sorted(DECIDED)))


def what_came_of_it(web: httpx2.Client) -> None:
    """Balances, statement and earnings, as the platform shows them."""
    wallet = web.get("/users/ana/wallet").json()
    balance = {name: wallet["balance"][name] for name in ("available", "escrow", "total")}
    check("ana's balance", balance, {"available": BOUGHT - 160, "escrow": 0, "total": BOUGHT - 160})
    statuses = {redemption["feature"]: redemption["status"] for redemption in wallet["redemptions"]}
    check("ana's redemptions", statuses, {"song": "settled", "dance": "partially_settled", "poem": "refunded"})
    statement = web.get("/users/ana/statement").json()["items"]
    moved = [entry["amount"] for line in statement for entry in line["entries"]]
    check("ana's statement", (len(statement), sum(moved)), (1 + 2 * len(MENU), BOUGHT - 160))
    now = datetime.now(UTC)
    days = {"since": (now - timedelta(days=1)).isoformat(), "until": (now + timedelta(days=1)).isoformat()}
    earnings = web.get("/models/luna/earnings", params=days | {"timezone": "Europe/Vienna"}).json()
    check("luna's earnings", sum(day["earned"] for day in earnings), 160)
    print(f"ana has {balance['available']} left, luna has earned 160; {len(statement)} lines of a statement say why")


def forged(web: httpx2.Client) -> None:
    """Somebody signs for himself with another key."""
    redemption = Redemption.model_validate(web.get("/users/ana/wallet").json()["redemptions"][0])
    somebody = QueueAuthorizer("somebody's own secret of at least 32 bytes")
    token = sign(somebody, redemption, redemption.price).token
    refused = web.post("/queue/decisions", json={"token": token})
    check("a forged decision", (refused.status_code, refused.json()["details"]["cause"]), (403, "unknown_key"))
    print(f"a decision that somebody else has signed is refused: {refused.status_code}, {refused.json()['code']}")


def prepare(database: str) -> None:
    """The tables, by Alembic, which then finds nothing to do; and a menu."""
    os.environ["HOST_DATABASE"] = database
    alembic = Config(ROOT / "examples" / "host" / "alembic.ini", stdout=StringIO())
    upgrade(alembic, "head")
    check_nothing_to_do(alembic)
    engine = create_engine(database)
    with Session(engine) as session:
        session.add_all(MenuItem(item_id=item, model_id="luna", feature=item, price=price) for item, price in MENU)
        session.commit()
    engine.dispose()
    print("Alembic has made the platform's tables and the points', and sees nothing else to do")


def demo() -> None:
    with tempfile.TemporaryDirectory(prefix="points-host-keys-") as keys, fresh_database() as database:
        private, public = Path(keys, "queue.pem"), Path(keys, "queue.pub.pem")
        prepare(database)
        command("points-platform", "keygen", str(private))
        with (
            web_process(HOST_QUEUE_KEYS=str(public)) as url,
            httpx2.Client(base_url=url, timeout=SECONDS, event_hooks={"response": [not_failed]}) as web,
            process("python", "-m", "examples.host.worker", HOST_URL=url, HOST_QUEUE_KEY=str(private)),
        ):
            with watching(web, "ana") as events:
                an_evening(web, events)
            what_came_of_it(web)
            forged(web)
            command("python", "-m", "examples.host.sales")
            sold = {sales["feature"]: sales["earned"] for sales in web.get("/sales").json()}
            check("what was sold", sold, {"song": 120, "dance": 40})
            print("counted from the log, each settlement once:", sold)
        command("points-platform", "verify", "--database", database)
        print("the log is sealed, and verify finds nothing")


def too_long(*_: object) -> None:
    raise WrongError(f"it took longer than {ALL_SECONDS} s")


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, ALL_SECONDS)
    try:
        demo()
    except (WrongError, CommandError, httpx2.HTTPError) as error:
        print(f"WRONG: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; all of its processes have ended", file=sys.stderr)
        return 130
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
