"""The training set: what retrieve writes, and every later step reads."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from components.dataset.errors import UserError
from components.dataset.layout import InputLayout
from components.dataset.spec import ITEM_KEY, LABEL, USER_KEY, DatasetSpec, Kind, read_spec
from components.dataset.splits import PARTS
from components.dataset.vocabulary import Vocabulary
from components.run import aside, read_json, write_json

FORMAT = 1


@dataclass(frozen=True)
class SplitArrays:
    """One part as arrays of n rows, ready for a device.

    ids: int32 [n, layout.width], labels: float32 [n]; user_codes and item_codes: int64 [n], each user and item
    numbered over all parts; user_counts and item_counts: int32 [n], impressions of that user or item in the train
    part, at least 1 where the vocabulary knows it from a model that training began with: a new one's count is 0.
    """

    ids: npt.NDArray[np.int32]
    labels: npt.NDArray[np.float32]
    user_codes: npt.NDArray[np.int64]
    item_codes: npt.NDArray[np.int64]
    user_counts: npt.NDArray[np.int32]
    item_counts: npt.NDArray[np.int32]


#: A part's rows: a table, or the path of the Parquet file, or folder of files in the order of their names.
Part = Any


def write_training_set(
    path: Path,
    spec: DatasetSpec,
    parts: Mapping[str, Part],
    meta: Mapping[str, Any],
    known: Vocabulary | None = None,
) -> None:
    """Write the parts with the vocabulary of their train part; rows and digests are added to `meta`.

    Args:
        path: The folder; takes the place of an older one.
        spec: The data set.
        parts: The rows of train, valid and test; files are moved.
        meta: What is to be known of their making.
        known: The vocabulary of the model that training begins with, which is kept and grown; or none.

    Raises:
        UserError: a part is missing or holds no row, or the known vocabulary is of other fields.
    """
    with aside(path) as draft:
        draft.mkdir()
        rows = {name: _write_part(parts[name], draft / f"{name}.parquet") if name in parts else 0 for name in PARTS}
        empty = [name for name in PARTS if rows[name] == 0]
        if empty:
            raise UserError(f"no rows in the part {' and '.join(empty)}; change 'split' of the spec or give more data")
        vocabulary = Vocabulary.fit(spec, _Columns(draft / "train.parquet"))
        if known is not None:
            vocabulary = vocabulary.grown_from(known)
        digests = {"spec_digest": spec.digest, "vocabulary_digest": vocabulary.digest}
        (draft / "spec.yaml").write_text(spec.to_yaml(), encoding="utf-8")
        vocabulary.save(draft / "vocabulary.json")
        write_json(draft / "meta.json", {**meta, **digests, "format": FORMAT, "rows": rows})


def _write_part(part: Part, path: Path) -> int:
    if isinstance(part, pa.Table):
        pq.write_table(part, path, coerce_timestamps="us")
    else:
        shutil.move(part, path)
    rows: int = ds.dataset(path).count_rows()
    return rows


class _Columns:
    """A part whose columns are read when they are asked for, one at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.column_names: list[str] = ds.dataset(path).schema.names

    def __getitem__(self, name: str) -> Any:
        return alike(pq.read_table(self.path, columns=[name]))[name]


def alike(table: pa.Table) -> pa.Table:
    """The table as if Arrow had written it: writers of Parquet differ in their names for what a list holds, and in
    which columns they say to be without nulls.
    """
    kinds = [pa.list_(kind.value_type) if pa.types.is_list(kind) else kind for kind in table.schema.types]
    return table.cast(pa.schema(list(zip(table.column_names, kinds, strict=True))))


@dataclass(frozen=True)
class TrainingSet:
    """A training set on disk; tables and arrays are read when asked for."""

    path: Path
    spec: DatasetSpec
    meta: dict[str, Any]
    vocabulary: Vocabulary

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a training set.

        Raises:
            UserError: there is none at this path, or it is of another format.
        """
        if not (path / "meta.json").is_file():
            raise UserError(f"{path}: no training set; give the folder that the retrieve step wrote")
        meta = read_json(path / "meta.json")
        if meta.get("format") != FORMAT:
            raise UserError(f"{path}: training set format {meta.get('format')} is not {FORMAT}; run retrieve again")
        return cls(path, read_spec(path / "spec.yaml"), meta, Vocabulary.load(path / "vocabulary.json"))

    def for_model(self, reads_history: bool) -> Self:
        """The training set as a model sees it: without the history's columns where it does not read them."""
        return self if reads_history else replace(self, vocabulary=self.vocabulary.without_history())

    @property
    def layout(self) -> InputLayout:
        """Columns and ids of the model's input."""
        return self.vocabulary.layout

    def table(self, part: str, columns: list[str] | None = None) -> pa.Table:
        """The raw rows of 'train', 'valid' or 'test', all columns or some."""
        return alike(pq.read_table(self.path / f"{part}.parquet", columns=columns))

    def columns(self, part: str) -> list[str]:
        """The names of a part's columns."""
        return list(ds.dataset(self.path / f"{part}.parquet").schema.names)

    def batches(self, part: str, columns: list[str], rows: int) -> Iterator[pa.Table]:
        """Some columns of a part's rows, at most `rows` of them at a time, in their order."""
        data = ds.dataset(self.path / f"{part}.parquet")
        for batch in data.to_batches(columns=columns, batch_size=rows, use_threads=False, batch_readahead=0):
            if batch.num_rows:
                yield alike(pa.table(batch))

    def arrays(self, part: str) -> SplitArrays:
        """The rows of a part as the model's arrays."""
        table = self.table(part, [*self.vocabulary.columns, LABEL])
        ids = self.vocabulary.encode({name: table[name] for name in self.vocabulary.columns})
        labels = table[LABEL].to_numpy().astype(np.float32)
        users, items = self._numbered[USER_KEY], self._numbered[ITEM_KEY]
        return SplitArrays(
            ids=ids.astype(np.int32),
            labels=labels,
            user_codes=users.codes[part],
            item_codes=items.codes[part],
            user_counts=users.counts[users.codes[part]],
            item_counts=items.counts[items.codes[part]],
        )

    @cached_property
    def _numbered(self) -> dict[str, _Numbered]:
        parts = {name: self.table(name, [USER_KEY, ITEM_KEY]) for name in PARTS}
        known = {field.column: field.values for field in self.vocabulary.fields if field.kind is Kind.ID}
        return {
            key: _number({name: table[key] for name, table in parts.items()}, known.get(key, ()))
            for key in (USER_KEY, ITEM_KEY)
        }


@dataclass(frozen=True)
class _Numbered:
    """The keys of each part as numbers, and each number's impressions in the train part."""

    codes: dict[str, npt.NDArray[np.int64]]
    counts: npt.NDArray[np.int32]


def _number(keys: Mapping[str, Any], known: Sequence[str]) -> _Numbered:
    columns = [column.cast(pa.string()) for column in keys.values()]
    together = pa.chunked_array([chunk for column in columns for chunk in column.chunks], type=pa.string())
    encoded = together.dictionary_encode().combine_chunks()
    codes = encoded.indices.to_numpy().astype(np.int64)
    ends = np.cumsum([len(column) for column in columns])[:-1]
    by_part = dict(zip(keys, np.split(codes, ends), strict=True))
    counts = np.bincount(by_part["train"], minlength=len(encoded.dictionary))
    there = pc.is_in(encoded.dictionary, value_set=pa.array(known, pa.string())).to_numpy(zero_copy_only=False)
    counts = np.maximum(counts, there)
    return _Numbered(by_part, counts.astype(np.int32))
