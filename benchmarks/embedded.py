"""The same on SQLite, in a file of its own: WAL and ``synchronous=FULL``, as the module sets them."""

import tempfile
from functools import partial
from pathlib import Path

from points_platform.core import Database

from .batches import Batches
from .measure import Contestant, interleave
from .operations import OTHERS
from .report import Form, Report
from .server import Server
from .workload import Traffic

BATCH = 1000
OPERATIONS = {"hold": (1, 8), "settle": (1, 8)} | dict.fromkeys(OTHERS, (1,))


def measure(server: Server, form: Form) -> Report:
    """The server takes no part in it."""
    with tempfile.TemporaryDirectory() as folder, Database(f"sqlite:///{Path(folder, 'points.db')}") as database:
        database.create_schema()
        traffic = Traffic(database).open()
        batches = Batches(traffic)
        contestants: dict[str, Contestant] = {}
        for operation, numbers in OPERATIONS.items():
            for threads in numbers:
                contestants[f"module: {operation}, {threads}"] = partial(traffic.slice, operation, threads=threads)
        for operation in ("hold", "settle"):
            contestants[f"module: {operation}, batches of {BATCH:,}"] = partial(
                batches.slice, operation, size=BATCH, threads=1
            )
        report = Report()
        for name, series in interleave(contestants, seconds=form.seconds / 2, rounds=form.rounds).items():
            report.add_series(name, series)
    return report
