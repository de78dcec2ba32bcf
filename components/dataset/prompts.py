"""The artefact of prompt_transform: unique texts, and which text each row reads."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from components.dataset.errors import UserError
from components.run import aside, read_json, write_json

FORMAT = 1
TEXT_SCHEMA = pa.schema(
    [
        ("text_id", pa.int32()),
        ("side", pa.string()),  # user, item or row
        ("hash", pa.string()),
        ("text", pa.string()),
        ("spans", pa.list_(pa.struct([("field", pa.string()), ("start", pa.int32()), ("end", pa.int32())]))),
    ]
)

Index = Mapping[str, npt.NDArray[np.int32]]


def text_hash(text: str) -> str:
    """SHA-256 of a text's UTF-8 bytes: the name under which its encoding is kept."""
    return hashlib.sha256(text.encode()).hexdigest()


def write_prompt_set(
    path: Path, texts: pa.Table, index: Mapping[str, Index], report: Mapping[str, Any], meta: Mapping[str, Any]
) -> None:
    """Write the texts (columns of TEXT_SCHEMA), and per part the text ids by row: user_text and item_text, or row_text.

    Raises:
        ValueError: text_id is not 0 .. n - 1 in order, or a part's index points at no text.
    """
    texts = texts.select(TEXT_SCHEMA.names).cast(TEXT_SCHEMA)
    if not np.array_equal(texts["text_id"].to_numpy(), np.arange(texts.num_rows)):
        raise ValueError("text_id must count the texts from 0 in order")
    with aside(path) as draft:
        draft.mkdir()
        pq.write_table(texts, draft / "texts.parquet")
        for part, columns in index.items():
            _check_index(part, columns, texts.num_rows)
            table = pa.table({name: pa.array(ids, pa.int32()) for name, ids in columns.items()})
            pq.write_table(table, draft / f"index_{part}.parquet")
        write_json(draft / "report.json", dict(report))
        write_json(draft / "meta.json", {**meta, "format": FORMAT, "texts": texts.num_rows})


def _check_index(part: str, columns: Index, texts: int) -> None:
    for name, ids in columns.items():
        if len(ids) and (int(np.min(ids)) < 0 or int(np.max(ids)) >= texts):
            raise ValueError(f"index of part '{part}', column '{name}', points outside the {texts} texts")


@dataclass(frozen=True)
class PromptSet:
    """The prompts on disk; `meta` holds their settings, granularity (entity or instance), form and prompt_hash."""

    path: Path
    meta: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the prompts.

        Raises:
            UserError: there are none at this path, or they are of another format.
        """
        if not (path / "meta.json").is_file():
            raise UserError(f"{path}: no prompts; give the folder that the prompt_transform step wrote")
        meta = read_json(path / "meta.json")
        if meta.get("format") != FORMAT:
            raise UserError(f"{path}: prompt format {meta.get('format')} is not {FORMAT}; run prompt_transform again")
        return cls(path, meta)

    def texts(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The unique texts in the order of their ids, all columns of TEXT_SCHEMA or some."""
        return pq.read_table(self.path / "texts.parquet", columns=None if columns is None else list(columns))

    def index(self, part: str) -> dict[str, npt.NDArray[np.int32]]:
        """Text ids [n] by row of a part, by column: user_text and item_text, or row_text."""
        table = pq.read_table(self.path / f"index_{part}.parquet")
        return {name: table[name].to_numpy() for name in table.column_names}

    @property
    def report(self) -> dict[str, Any]:
        """Coverage, lengths and truncation of the prompts."""
        report: dict[str, Any] = read_json(self.path / "report.json")
        return report
