"""The floor: PostgreSQL's own pgbench, one prepared statement per operation, the least that leaves the same rows.

The same rows in the same tables, with the same constraints, indexes and triggers, as a hold and a settlement
of the wallet module's; ``check_same_rows`` compares them. It is less than an operation: no permission, no
look for the idempotency key or what the hold says, no answer, and a client written in C. What pgbench
settles is what it has held just before.
"""

import re
import tempfile
from pathlib import Path

from sqlalchemy import text

from points_platform.core import Database

from .measure import Slice
from .server import Server
from .workload import AMOUNT, EVERYBODY, Crowd, Traffic

LEAST = 40  # transactions of each client, also to learn how fast it is

# Number :g is the :n-th of this client; user and model follow from it, so that a settlement knows them again.
_NUMBER = """
\\set n :n + 1
\\set g :start + :n * :clients + :client_id
"""
_UNIFORM = """
\\set u abs(hash(:g)) % :users
\\set m abs(hash(:g, 1)) % :models
"""
_ZIPF = """
\\set u int(exp(ln(:users) * (abs(hash(:g)) % 1000000) / 1000000.0)) - 1
\\set m int(exp(ln(:models) * (abs(hash(:g, 1)) % 1000000) / 1000000.0)) - 1
"""
_KEY = "\\set k abs(hash(:g, 2)) % 1000000000000000000\n"
_ESCROW = "'01990000-0000-7000-8000-' || lpad(to_hex(:g::bigint), 12, '0')"
# With a colon in it pgbench would take the text for a variable's name.
_USER, _MODEL = "E'user\\x3auser-'", "E'model\\x3amodel-'"
_RECORD = """recorded AS (
    INSERT INTO ledger_transactions (transaction_id, owner_id, operation, idempotency_key, request_id, reason, currency,
        escrow_id, queue_item_id, feature_type, model_id, authorization_id, occurred_at)
    SELECT '01990000-0000-700{number}-8000-' || lpad(to_hex(:g::bigint), 12, '0'), {user} || :u::int,
        '{operation}', :k::bigint::text, 'r' || :k::bigint, '{reason}', 'points',
        item.escrow_id, item.queue_item_id, item.feature_type, {settled}, now()
    FROM {source}
    RETURNING transaction_id, owner_id
)
INSERT INTO ledger_entries (transaction_id, owner_id, currency, account_id, bucket, amount, balance_after,
    wallet_version, posted_at, balance_before)
SELECT transaction_id, owner_id, 'points', entry.*, balance_after - amount
FROM recorded, {source}, LATERAL (VALUES
    {entries}
) AS entry (account_id, bucket, amount, balance_after, wallet_version, posted_at);
"""
_AVAILABLE = f"(owner_id, 'available', -{AMOUNT}, user_wallet.available, user_wallet.version, user_wallet.updated_at)"
_ESCROWED = "(owner_id, 'escrow', {}, user_wallet.escrow, user_wallet.version, user_wallet.updated_at)"
_EARNED = (
    f"({_MODEL} || :m::int, 'earned', {AMOUNT}, model_wallet.earned, model_wallet.version, model_wallet.updated_at)"
)
_HOLD = f"""
WITH user_wallet AS (
    UPDATE user_wallets
    SET available = available - {AMOUNT}, escrow = escrow + {AMOUNT}, version = version + 1,
        updated_at = greatest(updated_at, now())
    WHERE owner_id = {_USER} || :u::int AND currency = 'points'
    RETURNING owner_id AS owner, available, escrow, version, updated_at
), item AS (
    INSERT INTO escrow_items (escrow_id, owner_id, currency, amount, status, queue_item_id, feature_type, reason,
        settled_amount, refunded_amount, created_at)
    SELECT {_ESCROW}, owner, 'points', {AMOUNT}, 'held', 'q' || :k::bigint, 'song', 'menu_purchase', 0, 0, now()
    FROM user_wallet
    RETURNING escrow_id, queue_item_id, feature_type
), """ + _RECORD.format(
    user=_USER,
    number=1,
    operation="hold",
    reason="menu_purchase",
    settled="NULL, NULL",
    source="item, user_wallet",
    entries=f"{_AVAILABLE},\n    {_ESCROWED.format(AMOUNT)}",
)
_SETTLE = f"""
WITH item AS (
    UPDATE escrow_items
    SET status = 'settled', model_id = 'model-' || :m::int, settled_amount = {AMOUNT}, processed_at = now()
    WHERE escrow_id = {_ESCROW} AND owner_id = {_USER} || :u::int AND status = 'held'
    RETURNING escrow_id, queue_item_id, feature_type
), user_wallet AS (
    UPDATE user_wallets
    SET escrow = escrow - {AMOUNT}, version = version + 1, updated_at = greatest(updated_at, now())
    FROM item
    WHERE owner_id = {_USER} || :u::int AND currency = 'points'
    RETURNING escrow, version, updated_at
), model_wallet AS (
    UPDATE model_wallets
    SET earned = earned + {AMOUNT}, version = model_wallets.version + 1,
        updated_at = greatest(model_wallets.updated_at, now())
    FROM user_wallet
    WHERE owner_id = {_MODEL} || :m::int AND currency = 'points'
    RETURNING earned, model_wallets.version, model_wallets.updated_at
), """ + _RECORD.format(
    user=_USER,
    number=2,
    operation="settle",
    reason="performance_completed",
    settled="'model-' || :m::int, 'authorization-' || :k::bigint",
    source="item, user_wallet, model_wallet",
    entries=f"{_ESCROWED.format(-AMOUNT)},\n    {_EARNED}",
)
STATEMENTS = {"hold": _HOLD, "settle": _SETTLE}


class Floor:
    """pgbench on a database of its own, which has the module's schema."""

    def __init__(self, server: Server, traffic: Traffic) -> None:
        self._server = server
        self._name = str(traffic.database.engine.url.database)
        self.traffic = traffic
        self._next = 0
        self._rates: dict[str, float] = {}
        self._held: dict[tuple[int, bool, int], tuple[int, int]] = {}
        self._done = 0
        self._begun = self._recorded()

    def slice(self, operation: str, seconds: float, *, clients: int, crowd: Crowd = EVERYBODY) -> Slice:
        """So many clients, each as many transactions as should take twice that long, by the slice before.

        Twice, since its sessions are new each time, and what that costs at the beginning should weigh
        little. Where what was held before is too little to settle, more is held first.
        """
        kind = f"{operation} {clients} {crowd}"
        each = max(LEAST, round(self._rates.get(kind, 0) * 2 * seconds / clients))
        measured = self._run(operation, each, clients, crowd)
        self._rates[kind] = measured.per_s
        return measured

    def check_complete(self) -> None:
        """Raise unless each of pgbench's transactions has left its own in the ledger."""
        left = self._recorded() - self._begun
        if left != self._done:
            raise RuntimeError(f"pgbench did {self._done} operations, and {left} are in the ledger")

    def _run(self, operation: str, each: int, clients: int, crowd: Crowd) -> Slice:
        place = (clients, crowd.zipf, crowd.users)
        if operation == "hold":
            start = self._next
            self._next += each * clients
            self._held[place] = (start, each)
        else:
            if self._held.get(place, (0, 0))[1] < each:
                self._run("hold", each, clients, crowd)
            start, _ = self._held.pop(place)
        return self._pgbench(operation, start, each, clients, crowd)

    def _pgbench(self, operation: str, start: int, each: int, clients: int, crowd: Crowd) -> Slice:
        spread = _ZIPF if crowd.zipf else _UNIFORM
        values = {
            "default_seed": 1,
            "n": -1,
            "start": start,
            "clients": clients,
            "users": crowd.users,
            "models": crowd.models,
        }
        with tempfile.TemporaryDirectory() as folder:
            script = Path(folder, f"{operation}.sql")
            script.write_text(_NUMBER + spread + _KEY + STATEMENTS[operation])
            printed = self._server.tool(
                "pgbench",
                self._name,
                *("-n", "-M", "prepared", "-c", str(clients), "-j", str(min(clients, 2)), "-t", str(each)),
                *(f"-D{name}={value}" for name, value in values.items()),
                *("-f", str(script)),
            )
        done = int(_found(r"actually processed: (\d+)/", printed))
        self._done += done
        return Slice(done=done, end=done / float(_found(r"tps = ([\d.]+) \(without", printed)))

    def _recorded(self) -> int:
        with self.traffic.database.read() as connection:
            return int(connection.execute(text("SELECT count(*) FROM ledger_transactions")).scalar_one())


def _found(pattern: str, printed: str) -> str:
    found = re.search(pattern, printed)
    if found is None:
        raise RuntimeError(f"pgbench printed\n{printed}")
    return found[1]


# Different for every operation: of these it is compared whether they are there.
_OWN = re.compile(r"^(transaction|escrow|queue_item|request|authorization)_id$|_key$|_at$")
_TABLES = ("user_wallets", "model_wallets", "escrow_items", "ledger_transactions", "ledger_entries")


def check_same_rows(server: Server) -> None:
    """Raise unless a hold and a settlement of pgbench's leave what the module's leave, column by column."""
    crowd = Crowd(users=1, models=1)
    floor = Floor(server, Traffic(server.fresh("same_rows_floor")).open(crowd))
    module = Traffic(server.fresh("same_rows_module")).open(crowd)
    held = module.held(module.ready("hold", 1, crowd))
    floor._run("hold", 1, 1, crowd)
    _check_same(floor.traffic.database, module.database)
    module.settle(module.permitted("settle", held)[0])
    floor._run("settle", 1, 1, crowd)
    _check_same(floor.traffic.database, module.database)
    for database in (floor.traffic.database, module.database):
        database.close()


def _check_same(one: Database, other: Database) -> None:
    for table in _TABLES:
        rows = [_rows(database, table) for database in (one, other)]
        if rows[0] != rows[1]:
            raise RuntimeError(f"pgbench and the module leave different rows in {table}: {rows[0]} and {rows[1]}")


def _rows(database: Database, table: str) -> list[str]:
    with database.read() as connection:
        rows = [row._asdict() for row in connection.execute(text(f"SELECT * FROM {table}"))]
    shown = (
        {name: value is not None if _OWN.search(name) else value for name, value in sorted(row.items())} for row in rows
    )
    return sorted(map(str, shown))
