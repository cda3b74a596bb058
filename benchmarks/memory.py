"""The resident size of one process while it holds and settles in 8 threads, from full caches on."""

import json
import math
import subprocess
import sys

from points_platform.core import Database

from .measure import resident_mb, work_through
from .report import Form, Report
from .server import Server
from .workload import Task, Traffic, opened

THREADS = 8
STEP = 1000  # holds, and as many settlements


def measure(server: Server, form: Form) -> Report:
    """After each number of operations of ``form.memory``; by the first, the cache is full."""
    opened(server, "memory")
    command = [sys.executable, "-m", "benchmarks.memory", server.url("memory"), *map(str, form.memory)]
    sizes = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    report = Report()
    for operations, mb in zip(form.memory, sizes, strict=True):
        report.add(f"module: resident size after {operations:,} operations", "MB", [mb])
    report.summary["memory_growth_mb"] = max(sizes) - sizes[0]
    return report


def _in_process(url: str, *numbers: str) -> None:
    sizes = []
    with Database(url) as database:
        traffic = Traffic(database, cache=int(numbers[0]))
        done = 0
        for number in map(int, numbers):
            while done < number:
                _step(traffic)
                done += 2 * STEP
            sizes.append(resident_mb())
    sys.stdout.write(json.dumps(sizes))


def _step(traffic: Traffic) -> None:
    """Single operations throughout: what ``ready`` would make for a settlement is held in a batch."""
    tasks: list[Task] = []

    def hold(task: Task) -> None:
        tasks.append(task._replace(escrow_id=traffic.hold(task).escrow_id))

    held = work_through(hold, traffic.ready("hold", STEP), threads=THREADS, seconds=math.inf)
    settled = work_through(traffic.settle, traffic.permitted("settle", tasks), threads=THREADS, seconds=math.inf)
    assert held.done == settled.done == STEP


if __name__ == "__main__":
    _in_process(*sys.argv[1:])
