"""Online features in any weather: the user's rows from the store, the items' from a table in this process."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import groupby
from threading import Event, Lock, Thread
from typing import Protocol

from components.dataset.moment import AHEAD
from serving.breaker import Breaker
from serving.online import Registered, Row, Stored, View
from serving.settings import ServeSettings

log = logging.getLogger("tandem.serving")

MISSING, STALE, UNREACHABLE, FUTURE = "missing", "stale", "unreachable", "future"
CLOCKS = AHEAD.total_seconds()
#: Views whose rows everyone has; who has done nothing yet has no row in those of histories and activities.
PROFILES = "_profile"
NOTHING: Row = {}
#: Items that are read anew in one go behind the requests.
CHUNK = 256


class Source(Protocol):
    """Where features come from."""

    def registered(self, refresh: bool = False) -> Registered:
        """What the feature registry says."""

    @property
    def direct(self) -> bool:
        """Whether `read_soon` works."""

    def read(self, view: View, keys: Sequence[str]) -> list[Stored | None]:
        """The values of each key in a view; any exception means that it did not answer."""

    async def read_soon(self, views: Sequence[View], keys: Sequence[str]) -> list[list[Stored | None]]:
        """What `read` gives for each of some views of one side, without a thread."""

    def give_up(self) -> None:
        """Do not wait for what `read_soon` has asked for any longer."""


@dataclass
class Gathered:
    """Features of a request's users and items by key, and how often a view had none that could be used.

    A row lacks the features of such a view altogether; a null of a row that is there is a value like others. `until`
    has the items whose rows lack nothing, and the moment by the table's clock up to which the same rows may be served
    again, as long as the table's `epoch` is this one.
    """

    users: dict[str, Row]
    items: dict[str, Row]
    degraded: Counter[tuple[str, str]] = field(default_factory=Counter)
    seconds: float = 0.0
    until: dict[str, float] = field(default_factory=dict)
    epoch: int = 0


#: A key's values by view.
Entry = dict[str, Stored | None]
#: Views to read, and the keys of each.
Plan = list[tuple[View, list[str]]]
#: Values by view and key.
Found = dict[str, dict[str, Stored | None]]


@dataclass(frozen=True)
class Held:
    """What the table holds of some items: those that may be served, and those too old unless nothing better is had.

    `until` is the moment at which one that may be served grows old.
    """

    fresh: dict[str, Entry]
    old: dict[str, Entry]
    until: dict[str, float]


@dataclass(frozen=True)
class _Asked:
    """What one request asks for: its keys, what the table holds of them, and what is left to read."""

    users: list[str]
    items: list[str]
    views: Mapping[str, list[View]]
    held: Held
    plan: Plan
    epoch: int
    began: float


class OnlineFeatures:
    """Reads features within a deadline; what is missing, stale or out of reach it leaves out, and says so.

    Args:
        source: The online store.
        settings: Deadline, breaker and item table.
        now: Unix time in seconds.
    """

    def __init__(self, source: Source, settings: ServeSettings, now: Callable[[], float] = time.time) -> None:
        self.source, self.settings, self.now = source, settings, now
        self.breaker = Breaker(settings.breaker_failures, settings.breaker_pause)
        self.items = ItemTable(settings.item_capacity, settings.item_age)
        self.registered = source.registered()
        self.wanted: frozenset[str] = frozenset()
        #: Unix time of the newest row that was read of each view whose rows have time stamps.
        self.newest: dict[str, float] = {}
        self._views: dict[str, list[View]] = {"user": [], "item": []}
        self._pool = ThreadPoolExecutor(settings.threads, thread_name_prefix="features")
        self._stopped = Event()
        self._threads = [Thread(target=work, daemon=True) for work in (self._follow_registry, self._renew_items)]

    def start(self) -> None:
        """Begin to follow the registry and to renew items behind the requests."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End what `start` began."""
        self._stopped.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def want(self, columns: Iterable[str]) -> None:
        """Read these features too, where a view has them; others of a view are not read at all."""
        wanted = self.wanted | frozenset(columns)
        if wanted != self.wanted:
            self.wanted = wanted
            self._choose_views()

    def _choose_views(self) -> None:
        """Keep of each view the features that are wanted; a view without any is not read."""
        chosen: dict[str, list[View]] = {"user": [], "item": []}
        for view in self.registered.views:
            names = tuple(name for name in view.features if name in self.wanted)
            if names:
                chosen[view.side].append(replace(view, features=names))
        self._views = chosen
        self.items.clear()

    async def gather(self, users: Iterable[str], items: Iterable[str]) -> Gathered:
        """The features of some users and items; each key is read once, and the answer is never late."""
        asked = self._asked(users, items)
        return self._gathered(asked, await self._within_deadline(asked.plan) if asked.plan else {})

    def _asked(self, users: Iterable[str], items: Iterable[str]) -> _Asked:
        people, candidates = list(dict.fromkeys(users)), list(dict.fromkeys(items))
        epoch, views = self.items.epoch, self._views
        held = self.items.held(candidates)
        keys = {"user": people, "item": [key for key in candidates if key not in held.fresh]}
        plan = [(view, keys[view.side]) for view in (*views["user"], *views["item"]) if keys[view.side]]
        return _Asked(people, candidates, views, held, plan, epoch, time.perf_counter())

    def _gathered(self, asked: _Asked, found: Found) -> Gathered:
        views, held = asked.views, asked.held
        entries = dict(held.fresh)
        until = {key: moment for key, moment in held.until.items() if key in entries}
        for key in asked.items:
            if key not in entries:
                entry = _entry(views["item"], found, key)
                self._note(entry)
                if _whole(views["item"], entry):
                    until[key] = self.items.keep(key, entry)
                entries[key] = entry if len(entry) == len(views["item"]) else held.old.get(key, entry)
        gathered = Gathered({}, {}, epoch=asked.epoch)
        for key in asked.users:
            entry = _entry(views["user"], found, key)
            self._note(entry)
            gathered.users[key], _ = self._row(views["user"], entry, gathered.degraded)
        for key in asked.items:
            gathered.items[key], left = self._row(views["item"], entries[key], gathered.degraded)
            if key in until and left > 0:
                gathered.until[key] = min(until[key], self.items.clock() + left)
        gathered.seconds = time.perf_counter() - asked.began
        return gathered

    def _note(self, entry: Entry) -> None:
        """Keep the time of what is newest; undated rows are of 1970, and what has not happened yet is no news."""
        for view, stored in entry.items():
            if stored is not None and self.newest.get(view, 0.0) < stored.at <= self.now() + CLOCKS:
                self.newest[view] = stored.at

    def data_age(self) -> dict[str, float]:
        """Seconds since the newest event that the rows read so far know of, by view."""
        now = self.now()
        return {view: max(0.0, now - at) for view, at in list(self.newest.items())}

    def _row(self, views: Sequence[View], entry: Entry, degraded: Counter[tuple[str, str]]) -> tuple[Row, float]:
        """A key's features of all views that could be read and are young enough, and the seconds that they stay so.

        The seconds are 0 where a view is left out.
        """
        usable: list[Row] = []
        left = float("inf")
        now = self.now()
        for view in views:
            stored = entry.get(view.name)
            reason = None
            if view.name not in entry:
                reason = UNREACHABLE
            elif stored is None:
                # Where nothing has happened yet training saw no row either.
                reason = MISSING if view.name.endswith(PROFILES) else None
            elif stored.at > now + CLOCKS:
                reason = FUTURE
            elif view.ttl is not None and now - stored.at > view.ttl:
                reason = STALE
            else:
                usable.append(stored.row)
                left = min(left, float("inf") if view.ttl is None else view.ttl - (now - stored.at))
            if reason is not None:
                degraded[view.name, reason] += 1
                left = 0.0
        if len(usable) > 1:
            return {name: value for row in usable for name, value in row.items()}, left
        # The same object each time: what is computed from an item's row is computed once.
        return (usable[0] if usable else NOTHING), left

    async def _within_deadline(self, plan: Plan) -> Found:
        """What the store answers in time, by view and key; views that it did not answer for are left out."""
        if not self.breaker.allows():
            return {}
        found: Found = {}
        try:
            async with asyncio.timeout(self.settings.feature_deadline):
                await self._read_soon(plan, found)
        except TimeoutError:
            self.source.give_up()
            self._failed("no answer in time")
        except Exception as error:  # each store has errors of its own
            self._failed(f"{type(error).__name__}: {error}")
        else:
            self._succeeded()
        # A copy: a read that comes too late goes on to fill what it was given.
        return dict(found)

    async def _read_soon(self, plan: Plan, found: Found) -> None:
        """Fill `found`: side by side, the users' first, on the event loop where the store can, else in a thread."""
        if not self.source.direct:
            await asyncio.get_running_loop().run_in_executor(self._pool, self._read, plan, found)
            return
        for _, planned in groupby(plan, key=lambda view_and_keys: view_and_keys[0].side):
            (*views,), (keys, *_) = zip(*planned, strict=True)
            stored = await self.source.read_soon(views, keys)
            found |= {view.name: dict(zip(keys, ones, strict=True)) for view, ones in zip(views, stored, strict=True)}

    def _read(self, plan: Plan, found: Found) -> None:
        for view, keys in plan:
            found[view.name] = dict(zip(keys, self.source.read(view, keys), strict=True))

    def _failed(self, why: str) -> None:
        was_open = self.breaker.open
        self.breaker.failed()
        if self.breaker.open and not was_open:
            log.warning("the online store is left alone for a while", extra={"why": why})

    def _succeeded(self) -> None:
        if self.breaker.open:
            log.info("the online store answers again")
        self.breaker.succeeded()

    def _follow_registry(self) -> None:
        """Take over changed definitions, and renew the items after a materialisation."""
        while not self._stopped.wait(self.settings.registry_age):
            try:
                self.look_at_registry()
            except Exception as error:  # what was read last still holds
                log.warning("the feature registry cannot be read", extra={"why": str(error)})

    def look_at_registry(self) -> None:
        """Read the feature registry again."""
        before, self.registered = self.registered, self.source.registered(refresh=True)
        if before.digest != self.registered.digest:
            self._choose_views()
        elif before.materialised != self.registered.materialised:
            self.items.expire()

    def _renew_items(self) -> None:
        while not self._stopped.wait(0.05):
            if self.breaker.open:
                continue
            try:
                self.renew(CHUNK)
            except Exception as error:  # the rows at hand are served on
                self._failed(f"{type(error).__name__}: {error}")

    def renew(self, count: int) -> int:
        """Read up to `count` of the items that were served although they were old; the number read.

        Raises:
            Exception: the store does not answer.
        """
        keys = self.items.take_old(count)
        if keys:
            views = self._views["item"]
            found: Found = {}
            self._read([(view, keys) for view in views], found)
            for key in keys:
                entry = _entry(views, found, key)
                self._note(entry)
                if _whole(views, entry):
                    self.items.keep(key, entry)
                else:
                    self.items.drop(key)
        return len(keys)


def _entry(views: Sequence[View], found: Found, key: str) -> Entry:
    """A key's values in those views that answered."""
    return {view.name: found[view.name][key] for view in views if view.name in found}


def _whole(views: Sequence[View], entry: Entry) -> bool:
    """Whether every view answered and one of them knows the item; others are not kept: anyone can make up ids."""
    return len(entry) == len(views) and any(stored is not None for stored in entry.values())


class ItemTable:
    """Items' values by key. An old one is served once more while it is read anew; one twice as old is not.

    Args:
        capacity: Items kept at most; the one asked for longest ago goes first.
        age: Seconds after which an item is old.
        clock: Seconds that only grow.
    """

    def __init__(self, capacity: int, age: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.capacity, self.age, self.clock = capacity, age, clock
        self._entries: OrderedDict[str, tuple[float, Entry]] = OrderedDict()
        self._old: set[str] = set()
        self._expired = float("-inf")
        #: Counts what makes all rows doubtful at once.
        self.epoch = 0
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def held(self, keys: Iterable[str]) -> Held:
        """What is held of some items; those that are old are noted to be read anew."""
        now = self.clock()
        held = Held({}, {}, {})
        with self._lock:
            for key in keys:
                kept = self._entries.get(key)
                if kept is None:
                    continue
                read, entry = kept
                self._entries.move_to_end(key)
                if now - read > 2 * self.age:
                    held.old[key] = entry
                    continue
                held.fresh[key] = entry
                if now - read > self.age or read <= self._expired:
                    self._old.add(key)
                else:
                    held.until[key] = read + self.age
        return held

    def keep(self, key: str, entry: Entry) -> float:
        """Keep what was read just now; the moment at which it grows old."""
        with self._lock:
            read = self.clock()
            self._entries[key] = read, entry
            self._entries.move_to_end(key)
            self._old.discard(key)
            while len(self._entries) > self.capacity:
                self._old.discard(self._entries.popitem(last=False)[0])
        return read + self.age

    def drop(self, key: str) -> None:
        """Forget an item that the store no longer has."""
        with self._lock:
            self._entries.pop(key, None)
            self._old.discard(key)

    def take_old(self, count: int) -> list[str]:
        """Up to `count` of the keys that were served although they were old."""
        with self._lock:
            return [self._old.pop() for _ in range(min(count, len(self._old)))]

    def expire(self) -> None:
        """Hold everything old, whatever its age: the store has been filled anew."""
        self._expired = self.clock()
        self.epoch += 1

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()
            self._old.clear()
        self.epoch += 1

    def oldest(self) -> float:
        """Seconds since the item read longest ago was read; 0 where there is none."""
        with self._lock:
            return max((self.clock() - read for read, _ in self._entries.values()), default=0.0)
