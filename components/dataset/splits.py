"""How the rows are divided into train, valid and test."""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from components.dataset.errors import UserError
from components.dataset.spec import EVENT_TIMESTAMP, IMPRESSION_ID, USER_KEY, DatasetSpec

PARTS = ("train", "valid", "test")


def split_table(table: pa.Table, spec: DatasetSpec) -> dict[str, pa.Table]:
    """Divide a table of impressions into train, valid and test by the rule of the spec.

    time: sorted by event_timestamp, then impression_id; cut between two moments, at the ones nearest to the ratios,
    so that no moment lies in two parts and every row of train is before every row of valid, and so on.
    random: exact ratios of the rows, by a hash of impression_id.
    hash: each user wholly in one part, by a hash of the user's key; the ratios hold for users, about.
    The two hashes are the same on every platform and do not depend on the order of the rows.

    Raises:
        UserError: a part would hold no row.
    """
    if spec.split.by == "time":
        return _by_time(table, spec.split.ratios)
    part = (
        _random_parts(table, spec.split.ratios) if spec.split.by == "random" else _user_parts(table, spec.split.ratios)
    )
    parts = {name: table.filter(pa.array(part == number)) for number, name in enumerate(PARTS)}
    empty = [name for name, rows in parts.items() if rows.num_rows == 0]
    if empty:
        raise UserError(f"split by {spec.split.by} leaves no row for {' and '.join(empty)}; give more data")
    return parts


def split_window(table: pa.Table, spec: DatasetSpec, start: datetime | None) -> dict[str, pa.Table]:
    """Divide the impressions of a window; those that are dated before its start have come late, and are learnt.

    They would else move the cut-offs back, behind which rows are learnt twice.

    Raises:
        UserError: a part would hold no row.
    """
    if start is None or spec.split.by != "time":
        return split_table(table, spec)
    moments = table[EVENT_TIMESTAMP]
    late = pc.less(moments, pa.scalar(start, moments.type))
    parts = split_table(table.filter(pc.invert(late)), spec)
    return {**parts, "train": pa.concat_tables([table.filter(late), parts["train"]])}


def held_out(table: pa.Table, key: str, share: float) -> npt.NDArray[np.bool_]:
    """Which rows [n] belong to the share of keys that is held out, by a hash of the key: the same on every platform."""
    encoded = table[key].cast(pa.string()).dictionary_encode().combine_chunks()
    chosen = np.array([_unit_hash(name) < share for name in encoded.dictionary.to_pylist()], dtype=bool)
    return np.asarray(chosen[encoded.indices.to_numpy()], dtype=bool)


def _by_time(table: pa.Table, ratios: tuple[float, float, float]) -> dict[str, pa.Table]:
    table = table.sort_by([(EVENT_TIMESTAMP, "ascending"), (IMPRESSION_ID, "ascending")])
    moments = table[EVENT_TIMESTAMP].to_numpy()
    starts = np.flatnonzero(moments[1:] != moments[:-1]) + 1
    if len(starts) < 2:
        raise UserError(
            f"split by time needs three different moments, but the rows have {len(starts) + bool(len(moments))}; "
            "write 'split: {by: random}' or 'split: {by: hash}'"
        )
    rows = len(moments)
    first = _nearest(starts[:-1], rows * ratios[0])
    second = _nearest(starts[starts > first], rows * (ratios[0] + ratios[1]))
    cuts = (0, first, second, rows)
    return {name: table.slice(cuts[i], cuts[i + 1] - cuts[i]) for i, name in enumerate(PARTS)}


def _nearest(places: npt.NDArray[np.int64], target: float) -> int:
    return int(places[np.argmin(np.abs(places - target))])


def _random_parts(table: pa.Table, ratios: tuple[float, float, float]) -> npt.NDArray[np.int64]:
    order = np.argsort(_mixed(table[IMPRESSION_ID].to_numpy()), kind="stable")
    cuts = np.rint(np.cumsum(ratios[:2]) * len(order)).astype(np.int64)
    part = np.empty(len(order), dtype=np.int64)
    part[order] = np.searchsorted(cuts, np.arange(len(order)), side="right")
    return part


def _mixed(numbers: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014): a bijection of 64-bit numbers that looks random."""
    x = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)), dtype=np.uint64)


def _user_parts(table: pa.Table, ratios: tuple[float, float, float]) -> npt.NDArray[np.int64]:
    encoded = table[USER_KEY].cast(pa.string()).dictionary_encode().combine_chunks()
    places = np.array([_unit_hash(key) for key in encoded.dictionary.to_pylist()])
    part = np.searchsorted(np.cumsum(ratios[:2]), places, side="right")
    return np.asarray(part[encoded.indices.to_numpy()], dtype=np.int64)


def _unit_hash(key: str) -> float:
    """A place in [0, 1) that depends on the key alone."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") / 2**48
