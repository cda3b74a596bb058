"""What each decision behind the speed has bought: the module against itself with one of them taken back."""

from functools import partial
from typing import Any

from points_platform.core import Database
from points_platform.core.clock import microseconds
from points_platform.core.statement import Row, Statement

from .measure import Contestant, interleave, ratio
from .report import Form, Report
from .server import Server
from .workload import EVERYBODY, ONE_USER, OPENED, Traffic, opened

TRIES = 4
VERSION = Statement(
    "version",
    f"SELECT version, {microseconds('statement_timestamp()')} FROM user_wallets"
    " WHERE owner_id = %(owner_id)s AND currency = 'points'",
)
POINTS_ARE_THERE = "wallet0.available >= %(wallet0_enough)s::bigint"
OF_HOLD = "hold_"  # how the names of such statements begin
KINDS = {
    "hold, 8": ("hold", 8, EVERYBODY),
    "settle, 8": ("settle", 8, EVERYBODY),
    "hold, 32, hot user": ("hold", 32, ONE_USER),
}


class ThroughSQLAlchemy(Database):
    """The same statements by SQLAlchemy's connections and results."""

    def _execute_alone(self, statement: Statement, parameters: dict[str, Any]) -> Row | None:
        parameters |= self._known_when_sent()
        with self._plain() as connection:
            row = connection.exec_driver_sql(self._home.placed(statement).sql, parameters).first()
        return None if row is None else tuple(row)[:-1]


class LastSeen(Database):
    """A hold writes where the wallet's version is the last that this process has seen, or has read after a miss."""

    def __init__(self, target: str) -> None:
        super().__init__(target)
        self._versions: dict[Any, int] = {}
        self._guarded: dict[str, Statement] = {}

    def _execute_alone(self, statement: Statement, parameters: dict[str, Any]) -> Row | None:
        if not statement.name.startswith(OF_HOLD):
            return super()._execute_alone(statement, parameters)
        owner_id, guarded = parameters["owner_id"], self._by_version(statement)
        for _ in range(TRIES):
            seen = self._versions.get(owner_id)
            if seen is not None:
                parameters["seen"] = seen
                row = super()._execute_alone(guarded, parameters)
                if row is not None:
                    self._versions[owner_id] = int(row[2])
                    return row
            current = super()._execute_alone(VERSION, {"owner_id": owner_id})
            if current is None:
                break
            self._versions[owner_id] = int(current[0])
        return None

    def _by_version(self, statement: Statement) -> Statement:
        if statement.name not in self._guarded:
            sql = statement.sql.replace(
                POINTS_ARE_THERE, f"{POINTS_ARE_THERE} AND wallet0.version = %(seen)s::bigint", 1
            )
            assert sql != statement.sql
            self._guarded[statement.name] = Statement(f"{statement.name}_by_version", sql)
        return self._guarded[statement.name]


def measure(server: Server, form: Form) -> Report:
    module = opened(server, "decided")
    others = {
        "statement by statement": Traffic(Database(_copy(server, "stepwise"), single_statement=False)),
        "through SQLAlchemy": Traffic(ThroughSQLAlchemy(_copy(server, "through"))),
        "by the version last seen": Traffic(LastSeen(_copy(server, "last_seen"))),
    }
    contestants: dict[str, Contestant] = {}
    for what, (operation, threads, crowd) in KINDS.items():
        contestants[what] = partial(module.slice, operation, threads=threads, crowd=crowd)
        for name, traffic in others.items():
            if operation == "hold" or name != "by the version last seen":
                contestants[f"{what}, {name}"] = partial(traffic.slice, operation, threads=threads, crowd=crowd)
    series = interleave(contestants, seconds=form.seconds, rounds=form.rounds)
    report = Report()
    for name, each in series.items():
        report.add_series(f"module: {name}", each)
        what, _, taken_back = name.rpartition(", ")
        if taken_back in others:
            report.add(f"gain: {what}, not {taken_back}", "times", [ratio(series[what], each)])
    return report


def _copy(server: Server, name: str) -> str:
    server.copy(OPENED, name).close()
    return server.url(name)
