"""What a hold and a settlement cost on a ledger that has grown: the same 1,000 users with more behind them."""

from functools import partial

from sqlalchemy import text

from points_platform.core import Database
from points_platform.wallets.rebuild import fill_empty

from .measure import Contestant, interleave, ratio
from .report import Form, Report
from .server import Server
from .synthetic import fill
from .workload import Crowd, Traffic

CROWD = Crowd(users=1000, models=100)
THREADS = 8
ROUNDS = 2  # for each of the others': the difference looked for is small
BOTH = ("hold", "settle")


def measure(server: Server, form: Form) -> Report:
    ledgers = {size: Traffic(_filled(server, size)) for size in form.growth}
    contestants: dict[str, Contestant] = {}
    for operation in BOTH:
        for size, traffic in ledgers.items():
            contestants[f"{operation} {size}"] = partial(traffic.slice, operation, threads=THREADS, crowd=CROWD)
    series = interleave(contestants, seconds=form.seconds, rounds=ROUNDS * form.rounds)
    report = Report()
    for operation in BOTH:
        for size in form.growth:
            name = f"module: {operation}, {THREADS}, on {size:,} transactions"
            report.add_series(name, series[f"{operation} {size}"])
        smallest = series[f"{operation} {form.growth[0]}"]
        report.summary[f"growth_{operation}"] = ratio(smallest, series[f"{operation} {form.growth[1]}"])
        for size in form.growth[2:]:
            report.summary[f"growth_{operation}_{size // 1_000_000}m"] = ratio(smallest, series[f"{operation} {size}"])
    return report


def _filled(server: Server, transactions: int) -> Database:
    """A ledger of about so many transactions, as settled as one that has grown slowly."""
    database = server.fresh(f"growth_{transactions}")
    cycles = transactions // (2 * CROWD.users)
    with database.engine.begin() as connection:
        fill(connection, users=CROWD.users, models=CROWD.models, cycles=cycles)
    with database.engine.begin() as connection:
        fill_empty(connection)
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM (ANALYZE)"))
        connection.execute(text("CHECKPOINT"))
    return database
