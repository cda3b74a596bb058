"""A proxy on the loopback before PostgreSQL that loses answers, delays, stalls and half-closes.

What is cut is cut *after* the server has begun to answer: what was sent has happened, and nobody hears of it.
"""

import asyncio
import json
import random
from pathlib import Path
from typing import Any

from .journal import clock

# Of a connection's messages, how many until something happens to it.
MISCHIEF = {"none": 3, "drop_answer": 4, "delay": 2, "stall": 1, "half_close": 1}
STALL = 2.0
DELAY = 0.03
CHUNK = 1 << 16


def serve(socket: str, folder: Path, seed: str) -> None:
    """Serve until the process is ended. The port is in the file ``port`` of the folder as soon as it listens."""
    asyncio.run(_serve(socket, folder, random.Random(f"{seed} proxy")))


async def _serve(socket: str, folder: Path, chance: random.Random) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _Connection(socket, folder, chance).carry(reader, writer)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    partial = folder / "port.partial"
    partial.write_text(str(server.sockets[0].getsockname()[1]))
    partial.rename(folder / "port")
    async with server:
        await server.serve_forever()


class _Connection:
    """One client's connection, and the mischief that is in store for it."""

    def __init__(self, socket: str, folder: Path, chance: random.Random) -> None:
        self._socket = socket
        self._folder = folder
        self._chance = chance
        self._mischief = chance.choices(list(MISCHIEF), list(MISCHIEF.values()))[0]
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
        while data := await self._read(reader):
            writer.write(data)
            await writer.drain()

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await self._read(reader):
            self._left -= 1
            if self._left <= 0 and not await self._pass(writer):
                return
            writer.write(data)
            await writer.drain()

    async def _pass(self, writer: asyncio.StreamWriter) -> bool:
        """Do the mischief whose time has come; whether the answer still goes on to the client."""
        if self._mischief == "none" or (self._folder / "calm").exists():
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

    async def _read(self, reader: asyncio.StreamReader) -> bytes:
        try:
            return await reader.read(CHUNK)
        except OSError:
            return b""

    def _note(self) -> None:
        line: dict[str, Any] = {"at": clock(), "fault": f"proxy_{self._mischief}"}
        with (self._folder / "faults_proxy.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
