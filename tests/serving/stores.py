"""An online store in memory that can be made slow, broken, and older than it is."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence

from serving.online import Registered, Stored, View

USERS = View("user_profile", "user", ("gender", "city"), None, None)
HISTORY = View("user_history", "user", ("history_item_id",), None, None)
ITEMS = View("item_profile", "item", ("price", "title"), 100.0, None)
NOW = 1_000_000.0


class MemoryStore:
    """Rows by view and key; `reads` counts what was asked for."""

    def __init__(self) -> None:
        self.rows = {
            "user_profile": {"u1": Stored({"gender": "F", "city": None}, 0.0)},
            "user_history": {},
            "item_profile": {f"i{n}": Stored({"price": float(n), "title": "x"}, NOW - n) for n in range(200)},
        }
        self.reads: Counter[tuple[str, str]] = Counter()
        self.seconds, self.broken, self.given_up = 0.0, False, 0
        self.state = Registered((USERS, HISTORY, ITEMS), "one", None)

    #: As Redis: it may be read without a thread.
    direct = True

    def registered(self, refresh: bool = False) -> Registered:
        return self.state

    def read(self, view: View, keys: Sequence[str]) -> list[Stored | None]:
        self.reads.update((view.name, key) for key in keys)
        time.sleep(self.seconds)
        return self._found(view, keys)

    async def read_soon(self, views: Sequence[View], keys: Sequence[str]) -> list[list[Stored | None]]:
        self.reads.update((view.name, key) for view in views for key in keys)
        await asyncio.sleep(self.seconds)
        return [self._found(view, keys) for view in views]

    def give_up(self) -> None:
        self.given_up += 1

    def _found(self, view: View, keys: Sequence[str]) -> list[Stored | None]:
        if self.broken:
            raise ConnectionError("refused")
        rows = [self.rows[view.name].get(key) for key in keys]
        return [row and Stored({name: row.row[name] for name in view.features}, row.at) for row in rows]
