"""What callers report, put into the online store as it comes, so that the next request sees it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from os import SEEK_END
from pathlib import Path
from typing import Any

from components.dataset.spec import DatasetSpec
from components.run import read_json, write_json
from feature_repo.live import Event, push_events
from feature_repo.locks import file_lock
from serving.journal import FEEDBACK

#: Beside the feedback: how many bytes of each of its files have been pushed.
CURSOR = "pushed.json"
#: Bytes that are read of a file at once; an event has a few hundred.
AT_ONCE = 2**20


@dataclass(frozen=True)
class Pusher:
    """Pushes the feedback of a service's log folder, each event that names its user once.

    What was pushed is written down after the push: an event that is pushed again after a fall changes nothing, since
    an event of a user, an item and a moment enters once. Of several that look at one folder one waits for
    the other, and begins where that one ended.

    Args:
        store: Feast's store.
        spec: The data set, with a history or counts of its users.
        folder: The service's log folder.
    """

    store: Any
    spec: DatasetSpec
    folder: Path

    def look(self) -> int:
        """Push what has come since the last look; the number of users who were written.

        Raises:
            UserError: the data set has neither a history nor counts of its users.
            Exception: the online store cannot be written; nothing is passed over, the next look begins there.
        """
        with file_lock((self.folder / CURSOR).with_suffix(".lock")):
            return self._look()

    def _look(self) -> int:
        path = self.folder / CURSOR
        cursor: dict[str, int] = read_json(path) if path.is_file() else {}
        files = sorted((self.folder / FEEDBACK).glob("*.jsonl"))
        changed = 0
        for file in files:
            for lines, end in _read(file, cursor.get(file.name, 0)):
                events = [event for line in lines if (event := _event(line)) is not None]
                changed += push_events(self.store, self.spec, events)
                cursor = {name: place for name, place in cursor.items() if (file.parent / name).is_file()}
                cursor[file.name] = end
                write_json(path, cursor)
        return changed


def _read(file: Path, start: int) -> Iterator[tuple[list[bytes], int]]:
    """The complete lines of a file from a place on, some at a time, and the place behind them."""
    with file.open("rb") as opened:
        # One that is shorter than what was read of it has been removed to make room, and begun anew.
        start = start if start <= opened.seek(0, SEEK_END) else 0
        opened.seek(start)
        while lines := opened.readlines(AT_ONCE):
            # What follows the last line break is still being written.
            whole = [line for line in lines if line.endswith(b"\n")]
            start += sum(map(len, whole))
            if whole:
                yield whole, start


def _event(line: bytes) -> Event | None:
    """The event of a line of feedback; None where it does not say whose it is."""
    said = json.loads(line)
    if said.get("user_id") is None:
        return None
    return Event(
        user_id=said["user_id"],
        item_id=said["item_id"],
        label=int(said["clicked"]),
        event_timestamp=said["at"],
        context=said.get("context", {}),
    )
