"""From raw feature columns to click probabilities: the bundle's own vocabulary, then one ONNX Runtime call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from components.dataset.bundle import Bundle, BundleError
from components.dataset.layout import CANDIDATE, REQUEST, UNKNOWN
from components.dataset.scoring import SIZES, FoldedModel, WholeModel, crossing, quickest
from components.dataset.spec import ITEM_KEY, Kind
from components.run import read_json
from serving.parts import PartTable

TOLERANCE = 1e-5
#: The evaluation's file in the bundle that says what to put in where a feature is missing.
DEGRADATION = "degradation.json"
#: Enough for 80,000 items of AutoInt as it is set by default.
PART_BYTES = 256 * 2**20

#: Rows by which it is found out what a call takes.
MEASURED = 64

Probabilities = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]
Row = Mapping[str, Any]
#: Items' parts, each [n, ...], and their own ids [n, items' width] last; and whether each item is cold, [n].
Parts = tuple[list[npt.NDArray[Any]], Flags]


class Scorer:
    """The collaborative model of a bundle, whole for pairs and, where it is folded, in two for one user's items.

    A call of the folded model does more before it comes to the items: below `folds_from` of them, as measured on this
    machine when the model is loaded, the whole one is quicker.

    Args:
        bundle: What is served.
        part_bytes: Bytes for the parts of items that are kept.

    Raises:
        BundleError: the model does not give the golden rows the probabilities that are stored with them.
    """

    def __init__(self, bundle: Bundle, part_bytes: int = PART_BYTES) -> None:
        self.bundle = bundle
        self.defaults = read_defaults(bundle)
        self.whole = WholeModel(bundle.model_path)
        self.request = bundle.vocabulary.of(REQUEST)
        self.items = bundle.vocabulary.of(CANDIDATE)
        self.folded = FoldedModel(*bundle.folded) if bundle.folded else None
        self.table = PartTable(self._parts, part_bytes) if self.folded else None
        columns = bundle.vocabulary.layout.part
        self._columns = {"request": columns(REQUEST), "item": columns(CANDIDATE)}
        self.folds_from = 1
        self._check_golden()
        self._measure()

    def _check_golden(self) -> None:
        golden = self.bundle.golden()
        columns = {name: golden.column(name) for name in golden.column_names if name != "probability"}
        expected = golden.column("probability").to_numpy()
        found = [self.probabilities(columns)]
        if self.folded:
            found.append(self._folded_golden(golden.to_pylist()))
        worst = float(np.abs(np.stack(found) - expected).max(initial=0.0))
        if not worst <= TOLERANCE:
            raise BundleError(
                f"{self.bundle.path}: golden rows are off by {worst:.2g}; the model is not what was tested"
            )

    def _folded_golden(self, rows: Sequence[Row]) -> Probabilities:
        return np.concatenate([self.rank(row, [row[ITEM_KEY]], {row[ITEM_KEY]: row})[0] for row in rows])

    def _measure(self) -> None:
        """Find out on golden rows what calls take here, and from how many items on the folded one is the quicker."""
        golden = self.bundle.golden()
        rows = self.bundle.encode({name: golden.column(name) for name in self.bundle.vocabulary.columns})
        ids = rows.take(np.arange(SIZES[-1]) % len(rows), axis=0)

        def whole(count: int) -> Probabilities:
            return self.whole.probabilities(ids[:count])

        self._row_seconds = quickest(whole, MEASURED, rounds=2) / MEASURED
        if self.folded is None:
            return
        folded = self.folded
        request, parts = self._columns["request"].taken(ids[:1]), folded.parts(self._columns["item"].taken(ids))

        def cut(count: int) -> Probabilities:
            return folded.probabilities(request, [part[:count] for part in parts])

        self.folds_from = crossing(whole, cut)
        self._item_seconds = quickest(cut, MEASURED, rounds=2) / MEASURED

    def seconds(self, count: int, folds: bool) -> float:
        """About how long the call for so many rows takes, or, where it `folds`, for so many items of one request."""
        return count * (self._item_seconds if folds and self.folded else self._row_seconds)

    def probabilities(self, columns: Mapping[str, Any], options: Any = None) -> Probabilities:
        """Click probabilities [n] of n rows of raw feature columns.

        Raises:
            Exception: the call was stopped by its `options`, as `stoppable` makes them.
        """
        return self.whole.probabilities(self.bundle.encode(columns), options)

    def rank(
        self,
        request: Row,
        keys: Sequence[str],
        rows: Mapping[str, Row],
        until: Mapping[str, float] | None = None,
        epoch: int = 0,
        options: Any = None,
    ) -> tuple[Probabilities, Flags]:
        """Click probabilities [n] of n items in one request, and whether the model has never seen each.

        Args:
            request: The user's key and raw features, and the context's.
            keys: The items' keys.
            rows: The items' raw features by key. Here and in the request a feature that is absent, which a null is not,
                takes the model's default. A row that is the same object as before is not computed again.
            until: Moments up to which rows hold, by key, so that `known` need not be told them.
            epoch: When these were true.
            options: Of the calls, by which they can be stopped.
        """
        if self.table is None:
            columns = {name: [self._value(request, name)] * len(keys) for name in self.bundle.vocabulary.columns}
            columns |= self._item_columns(keys, [rows[key] for key in keys])
            return self.probabilities(columns, options), np.array(self.cold("item", keys))
        return self.meet(request, self.table.parts(keys, rows, until, epoch, options), options)

    def known(self, keys: Sequence[str], now: float, epoch: int) -> Parts | None:
        """The parts of items whose rows need not be asked for again; None if one of them must be, or there are none."""
        return None if self.table is None else self.table.ready(keys, now, epoch)

    def row(self, key: str) -> Row:
        """The row of an item among those whose parts are `known`."""
        assert self.table is not None  # noqa: S101 - the caller's condition, for the type checker
        return self.table.row(key)

    def meet(self, request: Row, parts: Parts, options: Any = None) -> tuple[Probabilities, Flags]:
        """What `rank` gives, for items' parts that are at hand."""
        assert self.folded is not None  # noqa: S101 - only a folded model has parts
        ids = self.request.encode({name: [self._value(request, name)] for name in self.request.columns})
        (*made, rows), cold = parts
        if len(cold) < self.folds_from:
            whole = self._columns["request"].spread(ids) + self._columns["item"].spread(rows)
            return self.whole.probabilities(whole, options), cold
        return self.folded.probabilities(ids, made, options), cold

    def cold(self, side: str, keys: Sequence[str]) -> list[bool]:
        """Whether each key of a side is one that the model never saw; False where it reads no key."""
        name = next((field.name for field in self.bundle.spec.model_fields_of(side) if field.kind is Kind.ID), None)
        if name is None:
            return [False] * len(keys)
        codes = self.bundle.vocabulary.field(name).encode(list(keys))
        return [bool(code == UNKNOWN) for code in codes]

    def _item_columns(self, keys: Sequence[str], rows: Sequence[Row]) -> dict[str, list[Any]]:
        names = [name for name in self.items.columns if name != ITEM_KEY]
        return {ITEM_KEY: list(keys)} | {name: [self._value(row, name) for row in rows] for name in names}

    def _value(self, row: Row, name: str) -> Any:
        return row[name] if name in row else self.defaults.get(name)

    def _parts(self, keys: Sequence[str], rows: Sequence[Row], options: Any) -> list[npt.NDArray[Any]]:
        """Parts of items for the ranker, each [n, ...], their ids, and whether the model has never seen them [n]."""
        assert self.folded is not None  # noqa: S101  (there is a table only then)
        ids = self.items.encode(self._item_columns(keys, rows))
        return [*self.folded.parts(ids, options), ids, np.array(self.cold("item", keys))]


def read_defaults(bundle: Bundle) -> dict[str, Any]:
    """What the evaluation found best for each field where its value is missing; null where nothing is better."""
    if DEGRADATION not in bundle.manifest["files"]:
        return {}
    defaults = read_json(bundle.path / DEGRADATION)["defaults"]
    return {name: found["value"] for name, found in defaults.items() if found["default"] == "most_frequent"}
