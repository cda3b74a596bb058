"""A proxy on the loopback before PostgreSQL, which counts round trips and can add a network's latency.

A round trip is counted by what ends it: the server's ReadyForQuery, for which the client waits. The proxy
works in a process of its own, so that it takes no time of the interpreter that is measured.
"""

import asyncio
import multiprocessing
import selectors
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized
from typing import Any

from psycopg.conninfo import conninfo_to_dict

from .server import Server

READY_FOR_QUERY = ord("Z")
HEADER = 5  # a type of one byte and a length of four, which counts itself


class Proxy:
    """A running proxy to one server."""

    def __init__(self, server: Server, port: int, trips: "Synchronized[int]") -> None:
        self._user = conninfo_to_dict(server.uri)["user"]
        self._port = port
        self._trips = trips

    def url(self, name: str) -> str:
        where = f"{self._user}@127.0.0.1:{self._port}"
        return f"postgresql+psycopg://{where}/{name}?sslmode=disable&gssencmode=disable"

    @property
    def trips(self) -> int:
        """How many round trips there have been."""
        return self._trips.value


@contextmanager
def proxied(server: Server, *, delay_ms: float = 0) -> Iterator[Proxy]:
    """A proxy that lets half of the delay pass before it hands on, in each direction."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    trips: Synchronized[int] = context.Value("q", 0)
    process = context.Process(target=_serve, args=(server.socket(), delay_ms / 2000, trips, theirs), daemon=True)
    process.start()
    try:
        yield Proxy(server, ours.recv(), trips)
    finally:
        process.terminate()
        process.join()


def _serve(socket: str, delay: float, trips: "Synchronized[int]", parent: Connection) -> None:
    # Unlike epoll's, the time-out of select() is finer than a millisecond.
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    listening = loop.create_server(lambda: _Client(loop, socket, delay, trips), "127.0.0.1", 0)
    server = loop.run_until_complete(listening)
    parent.send(server.sockets[0].getsockname()[1])
    loop.run_forever()


class _Side(asyncio.Protocol):
    """One end of a connection; what arrives here leaves at the other end."""

    def __init__(self, loop: asyncio.AbstractEventLoop, delay: float) -> None:
        self._loop = loop
        self._delay = delay
        self.transport: Any = None
        self.other: _Side | None = None
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self._delay:
            self._loop.call_later(self._delay, self._hand_on, data)
        else:
            self._hand_on(data)

    def connection_lost(self, error: Exception | None) -> None:
        if self.other is not None:
            self.other.transport.close()

    def _hand_on(self, data: bytes) -> None:
        if self.other is None:
            self._early.append(data)
        else:
            self.other.transport.write(data)

    def join(self, other: "_Side") -> None:
        self.other = other
        for data in self._early:
            other.transport.write(data)


class _Client(_Side):
    def __init__(self, loop: asyncio.AbstractEventLoop, socket: str, delay: float, trips: "Synchronized[int]") -> None:
        super().__init__(loop, delay)
        self._socket = socket
        self._trips = trips

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._connecting = self._loop.create_task(self._connect())

    async def _connect(self) -> None:
        upstream = _Upstream(self._loop, self._delay, self._trips)
        await self._loop.create_unix_connection(lambda: upstream, self._socket)
        upstream.join(self)
        self.join(upstream)


class _Upstream(_Side):
    """The server's end; its messages are told apart to count those that end a round trip."""

    def __init__(self, loop: asyncio.AbstractEventLoop, delay: float, trips: "Synchronized[int]") -> None:
        super().__init__(loop, delay)
        self._trips = trips
        self._unread = b""

    def data_received(self, data: bytes) -> None:
        self._unread += data
        while len(self._unread) >= HEADER:
            end = 1 + int.from_bytes(self._unread[1:HEADER], "big")
            if len(self._unread) < end:
                break
            if self._unread[0] == READY_FOR_QUERY:
                self._trips.value += 1
            self._unread = self._unread[end:]
        super().data_received(data)
