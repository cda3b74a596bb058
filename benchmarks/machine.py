"""What a run was made on."""

import os
import platform
import sqlite3
from importlib.metadata import version
from typing import Any

from .server import SETTINGS, Server

PACKAGES = ("psycopg", "sqlalchemy", "sqlmodel", "pyjwt", "uuid-utils")


def machine(server: Server) -> dict[str, Any]:
    with open("/proc/cpuinfo") as cpuinfo:
        models = [line.split(":", 1)[1].strip() for line in cpuinfo if line.startswith("model name")]
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cores": os.cpu_count(),
        "processor": models[0] if models else platform.machine(),
        "memory_gb": round(memory_gb, 1),
        "system": platform.release(),
        "python": platform.python_version(),
        "postgresql": server.version(),
        "sqlite": sqlite3.sqlite_version,
        **{package: version(package) for package in PACKAGES},
        **SETTINGS,
    }
