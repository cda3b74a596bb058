"""Who is told of which event, while it happens."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from points_platform.events import UserEvent

MOST_UNREAD = 100


class Live:
    """The users who are being watched. It lives on one loop, so it needs no lock."""

    def __init__(self) -> None:
        self._watchers: defaultdict[str, list[asyncio.Queue[UserEvent]]] = defaultdict(list)

    def publish(self, event: UserEvent) -> None:
        """Tell whoever watches the event's user; who does not read any more finds the rest in the statement."""
        for unread in self._watchers.get(event.user_id, ()):
            if not unread.full():
                unread.put_nowait(event)

    @contextmanager
    def of(self, user_id: str) -> Iterator[asyncio.Queue[UserEvent]]:
        """The events of a user from now on, in the order in which they come."""
        unread: asyncio.Queue[UserEvent] = asyncio.Queue(MOST_UNREAD)
        self._watchers[user_id].append(unread)
        try:
            yield unread
        finally:
            self._watchers[user_id].remove(unread)
            if not self._watchers[user_id]:
                del self._watchers[user_id]
