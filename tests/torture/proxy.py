"""A proxy on the loopback before PostgreSQL that loses answers, delays, stalls and half-closes.

What is cut is cut *after* the server has begun to answer: what was sent has happened, and nobody hears of it.
"""

import asyncio
import json
import os
import random
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

from .journal import CALM, clock

# What is in store for a connection, by weight.
MISCHIEF = {"none": 3, "drop_answer": 4, "delay": 2, "stall": 1, "half_close": 1}
STALL = 2.0
DELAY = 0.03
CHUNK = 1 << 16


def serve(socket: str, folder: Path, seed: str) -> None:
    """Serve until the process is ended. The port is in the file ``port`` of the folder as soon as it listens."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the coordinator ends it
    asyncio.run(_serve(socket, folder, random.Random(f"{seed} proxy")))


async def _serve(socket: str, folder: Path, chance: random.Random) -> None:
    parent = os.getppid()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _Connection(socket, folder, chance).carry(reader, writer)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    partial = folder / "port.partial"
    partial.write_text(str(server.sockets[0].getsockname()[1]))
    partial.rename(folder / "port")
    while os.getppid() == parent:
        await asyncio.sleep(1)


class _Connection:
    """One client's connection, and the mischief that is in store for it."""

    def __init__(self, socket: str, folder: Path, chance: random.Random) -> None:
        self._socket = socket
        self._folder = folder
        self._chance = chance
        self._mischief = chance.choices(list(MISCHIEF), list(MISCHIEF.values()))[0]
        # So many more answers go through before it.
        self._left = chance.randint(8, 200)

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_unix_connection(self._socket)
        except OSError:
            writer.transport.abort()
            return
        there = asyncio.create_task(self._requests(reader, server_writer))
        back = asyncio.create_task(self._answers(server_reader, writer))
        try:
            await asyncio.wait({there, back}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (there, back):
                task.cancel()
            writer.transport.abort()
            server_writer.transport.abort()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(CHUNK):
                writer.write(data)
                await writer.drain()

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(CHUNK):
                self._left -= 1
                if self._left <= 0 and not await self._pass(writer):
                    return
                writer.write(data)
                await writer.drain()

    async def _pass(self, writer: asyncio.StreamWriter) -> bool:
        """Do the mischief whose time has come; whether the answer still goes on to the client."""
        if self._mischief == "none" or (self._folder / CALM).exists():
            return True
        self._note()
        if self._mischief == "drop_answer":
            return False
        if self._mischief == "half_close":
            writer.write_eof()
            await asyncio.sleep(self._chance.uniform(0, STALL))
            return False
        longest = DELAY if self._mischief == "delay" else STALL
        self._left = self._chance.randint(1, 20 if self._mischief == "delay" else 200)
        await asyncio.sleep(self._chance.uniform(0, longest))
        return True

    def _note(self) -> None:
        line: dict[str, Any] = {"at": clock(), "fault": f"proxy_{self._mischief}"}
        with (self._folder / "faults_proxy.log").open("a") as file:
            file.write(json.dumps(line) + "\n")
