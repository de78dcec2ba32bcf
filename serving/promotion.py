"""Which model answers: the registry's champion, followed without a restart; a candidate for a share of the users.

A new model is loaded and checked beside the old one and takes its place between two requests. One that is broken is
refused, and the old one stays.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

from components.run import read_json
from serving.ranker import Ranker
from serving.settings import ALIASES, CANDIDATE, CHAMPION

log = logging.getLogger("tandem.serving")

#: Seconds until a version that was refused is tried again.
AGAIN = 15.0

#: Makes the ranker of a bundle's folder and its version, or says what is wrong with it by raising.
Load = Callable[[Path, str], Ranker]


class NoModelError(Exception):
    """No model has been loaded yet."""


@dataclass(frozen=True)
class Mirror:
    """The folder that `tandem follow` keeps; with `pinned`, that version whatever the aliases say."""

    folder: Path
    pinned: str | None = None

    def wanted(self) -> dict[str, Path]:
        """The bundle of each alias that points somewhere."""
        if self.pinned is not None:
            return {CHAMPION: self.folder / self.pinned}
        path = self.folder / ALIASES
        pointed: dict[str, str | None] = read_json(path) if path.is_file() else {}
        return {alias: self.folder / version for alias, version in pointed.items() if version}


@dataclass(frozen=True)
class Fixed:
    """One bundle, such as the one inside a Bento."""

    folder: Path

    def wanted(self) -> dict[str, Path]:
        """The bundle."""
        return {CHAMPION: self.folder}


@dataclass(frozen=True)
class Lineup:
    """The models that answer at one moment."""

    champion: Ranker
    candidate: Ranker | None = None
    share: float = 0.0

    def of(self, user: str) -> Ranker:
        """The model that answers a user: always the same one, as long as the line-up and the share stay."""
        if self.candidate is not None and fraction(user) < self.share:
            return self.candidate
        return self.champion


def fraction(user: str) -> float:
    """A number in [0, 1) that belongs to a user, evenly spread over users."""
    return int.from_bytes(hashlib.blake2b(user.encode(), digest_size=8, salt=b"canary").digest()) / 2**64


@dataclass
class Promotion:
    """Keeps the line-up what the source wants.

    Args:
        source: Where bundles come from.
        load: Makes and checks a ranker.
        share: Share of the users that the candidate answers.
        after: Called after each look.
    """

    source: Mirror | Fixed
    load: Load
    share: float = 0.0
    after: Callable[[], None] = lambda: None
    lineup: Lineup | None = None
    #: Versions that are wanted and were not taken, and why.
    refused: dict[str, str] = field(default_factory=dict)
    _again: dict[str, float] = field(default_factory=dict)
    _stopped: Event = field(default_factory=Event)
    _lock: Lock = field(default_factory=Lock)

    def current(self) -> Lineup:
        """The line-up; take it once for each request.

        Raises:
            NoModelError: there is none yet.
        """
        if self.lineup is None:
            raise NoModelError("no model is loaded yet")
        return self.lineup

    def start(self, seconds: float) -> None:
        """Look for changes now, and every so many seconds from now on."""
        self.look()
        self.after()
        Thread(target=self._follow, args=(seconds,), daemon=True).start()

    def stop(self) -> None:
        """End what `start` began."""
        self._stopped.set()

    def look(self) -> None:
        """Load what is wanted and not there yet, and let it take over; what cannot be loaded is refused."""
        with self._lock:
            wanted = self.source.wanted()
            # What nobody asks for any longer, as after a rollback, is no trouble; asked for again it is tried anew.
            for version in self.refused.keys() - {path.name for path in wanted.values()}:
                del self.refused[version], self._again[version]
            held = self.lineup
            champion = self._taken(wanted, CHAMPION, held.champion if held else None)
            if champion is None:
                return
            candidate = None
            if self.share > 0 and wanted.get(CANDIDATE) not in {None, wanted.get(CHAMPION)}:
                candidate = self._taken(wanted, CANDIDATE, held.candidate if held else None)
            lineup = Lineup(champion, candidate, self.share)
            if lineup != held:
                self.lineup = lineup
                log.info("models changed", extra=self.versions())

    def versions(self) -> dict[str, str]:
        """The version that answers, by alias."""
        if self.lineup is None:
            return {}
        candidate = {} if self.lineup.candidate is None else {CANDIDATE: self.lineup.candidate.version}
        return {CHAMPION: self.lineup.champion.version, **candidate}

    def describe(self) -> dict[str, Any]:
        """What is served, and what was refused.

        Raises:
            NoModelError: nothing is served.
        """
        lineup = self.current()
        candidate = None if lineup.candidate is None else lineup.candidate.describe()
        return {
            **lineup.champion.describe(),
            "candidate": candidate,
            "canary": self.share if candidate else 0.0,
            "refused": dict(self.refused),
        }

    def _taken(self, wanted: Mapping[str, Path], alias: str, held: Ranker | None) -> Ranker | None:
        """The ranker that an alias is to have: the one held, unless another one is wanted and whole."""
        path = wanted.get(alias)
        if path is None or (held is not None and held.version == path.name):
            return held
        if time.monotonic() < self._again.get(path.name, 0.0):
            return held
        try:
            ranker = self.load(path, path.name)
        except Exception as error:  # whatever is wrong with it must not touch the model that serves
            # Tried again later: a feature registry that was out of reach comes back, a bundle may be mended.
            self._again[path.name] = time.monotonic() + AGAIN
            if self.refused.get(path.name) != str(error):
                self.refused[path.name] = str(error)
                log.error("model refused", extra={"alias": alias, "version": path.name, "why": str(error)})
            return held
        self.refused.pop(path.name, None)
        return ranker

    def _follow(self, seconds: float) -> None:
        while not self._stopped.wait(seconds):
            try:
                self.look()
                self.after()
            except Exception as error:  # the folder is out of reach: the model that serves stays
                log.warning("the models cannot be looked at", extra={"why": str(error)})
