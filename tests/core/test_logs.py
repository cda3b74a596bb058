"""How the module logs: nothing that a host has put into logging can collide with a line of it, or fail what logs."""

import ast
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from points_platform.core.logs import say

PLATFORM = Path(__file__).parents[2] / "platform"
LOG = logging.getLogger("points_platform.core.test")


def test_a_line_has_its_fields_in_one_attribute_and_names_who_said_it(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, LOG.name):
        say(LOG, logging.INFO, "sold %d to %s", 3, "ana", message="theirs", name="luna", args=(1, 2), msg=None)
    (record,) = caplog.records
    assert record.getMessage() == "sold 3 to ana"
    assert vars(record)["points_platform"] == {"message": "theirs", "name": "luna", "args": [1, 2], "msg": None}
    assert (record.levelno, record.exc_info) == (logging.INFO, None)
    assert Path(record.pathname).name == Path(__file__).name


def test_a_line_that_nobody_wants_costs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Untouchable:
        def __repr__(self) -> str:
            raise AssertionError("it was looked at")

    with caplog.at_level(logging.WARNING, LOG.name):
        say(LOG, logging.INFO, "%r", Untouchable(), value=Untouchable())
    assert caplog.records == []


def test_any_json_formatter_can_write_the_fields(caplog: pytest.LogCaptureFixture) -> None:
    hostile: dict[str, Any] = {"object": object(), "bytes": b"\xff", "set": {1}, "nan": float("nan"), "text": "\ud800"}
    with caplog.at_level(logging.INFO, LOG.name):
        say(LOG, logging.INFO, "all of it", **hostile)
    told = vars(caplog.records[0])["points_platform"]
    assert json.loads(json.dumps(told, ensure_ascii=False, allow_nan=False).encode()) == told
    assert told.keys() == hostile.keys()


def test_a_logger_of_the_hosts_that_raises_fails_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(level: int) -> bool:
        raise RuntimeError("no")

    monkeypatch.setattr(LOG, "isEnabledFor", refuse)
    say(LOG, logging.WARNING, "nothing")


def test_an_interrupt_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(level: int) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(LOG, "isEnabledFor", interrupt)
    with pytest.raises(KeyboardInterrupt):
        say(LOG, logging.WARNING, "nothing")


def test_nothing_in_the_module_logs_in_another_way() -> None:
    """But for the audit line, whose failure is logged in turn."""
    found = set()
    for path in PLATFORM.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            called = node.func if isinstance(node, ast.Call) else None
            if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
                levels = {"debug", "info", "warning", "error", "exception", "critical", "log"}
                if called.value.id in {"log", "audit", "logger", "logging"} and called.attr in levels:
                    found.add((path.relative_to(PLATFORM).as_posix(), called.attr))
    assert found == {("core/logs.py", "log"), ("wallets/announce.py", "info")}
