"""The prompt_transform step: every user and item, or every impression, in words."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from components.dataset.prompts import write_prompt_set
from components.dataset.spec import LABEL, DatasetSpec
from components.dataset.splits import PARTS
from components.dataset.training_set import TrainingSet
from components.prompt_transform.collect import Collected, Collector
from components.prompt_transform.lengths import Counts, Tokens, distribution
from components.prompt_transform.lint import refuse_leaks, said_fields
from components.prompt_transform.render import Renderer, column_of
from components.prompt_transform.settings import PromptSettings
from components.prompt_transform.words import unspoken_codes

log = logging.getLogger("tandem.prompt_transform")

#: Part of the prompt hash: raise it when the same spec and settings would give other words.
WORDING = 1
#: Rows rendered at once: bounds the memory whatever the number of impressions.
ROWS = 131_072
EXAMPLES = 3


def prompt_transform(training_set: Path, output: Path, settings: PromptSettings) -> dict[str, Any]:
    """Write the different texts of a training set, each row's texts, and a report on them.

    Args:
        training_set: Folder of the retrieve step.
        output: Folder of the prompts.
        settings: Form, granularity and lengths.

    Returns:
        The report: rows, texts, coverage by field, tokens, what was cut, examples, and the prompt hash.

    Raises:
        UserError: a field would leak the label, a value is not UTF-8, or there is no such PLM to count tokens with.
    """
    data = TrainingSet.open(training_set)
    tokens = Tokens.of(settings.plm) if settings.plm else None
    renderer = Renderer(data.spec, settings, tokens)
    names = data.columns(PARTS[0])
    columns = renderer.columns(names)
    said = [field.name for field in said_fields(data.spec) if field.name in names]
    refuse_leaks(data.spec, data.table("train", [*said, LABEL]))
    collectors, tally = _collect(data, renderer, columns)
    sides: dict[str, Collected] = {}
    for side, collector in collectors.items():
        sides[side] = collector.finish(sum(other.table.num_rows for other in sides.values()))
    report = _report(renderer, tally, sides)
    meta = {"settings": settings.model_dump(mode="json"), "prompt_hash": report["prompt_hash"]}
    meta |= {"granularity": settings.granularity, "form": settings.form}
    texts = pa.concat_tables([side.table for side in sides.values()])
    index = {part: {f"{name}_text": side.index[part] for name, side in sides.items()} for part in PARTS}
    write_prompt_set(output, texts, index, report, meta)
    log.info("%d texts for %d rows, prompt %s", texts.num_rows, tally.rows, report["prompt_hash"][:12])
    return report


class Tally:
    """What is counted over all rows while they are rendered."""

    def __init__(self, renderer: Renderer) -> None:
        self.renderer = renderer
        self.rows = 0
        self.parts: dict[str, int] = dict.fromkeys(PARTS, 0)
        self.there: dict[str, int] = {}
        self.unspoken: dict[str, set[str]] = {}
        self.shortened: dict[str, int] | None = None

    def add(self, part: str, table: pa.Table) -> None:
        """Count the values of some rows; an empty list is no value."""
        self.rows += table.num_rows
        self.parts[part] += table.num_rows
        for name in table.column_names:
            column = column_of(table, name)
            self.there[name] = self.there.get(name, 0) + int(pc.sum(_present(column)).as_py() or 0)
        for field in (field for side in self.renderer.sides for field in self.renderer.fields(side)):
            found = unspoken_codes(field, column_of(table, field.table_column))
            self.unspoken.setdefault(field.name, set()).update(found)

    def drop(self, titles: Counts | None) -> None:
        """Count the titles [n] that did not fit into the texts of some rows; None where no history is said."""
        if titles is not None:
            before = self.shortened or {"rows": 0, "titles": 0}
            found = {"rows": int((titles > 0).sum()), "titles": int(titles.sum())}
            self.shortened = {name: before[name] + found[name] for name in found}

    @property
    def history(self) -> dict[str, Any] | None:
        """The rows whose history gave way to the rest of the text, their share, and the titles that it lost."""
        if self.shortened is None:
            return None
        return {**self.shortened, "rate": round(self.shortened["rows"] / max(self.rows, 1), 4)}

    @property
    def coverage(self) -> dict[str, float]:
        """Share of the rows that have a value, by column."""
        return {name: round(count / max(self.rows, 1), 4) for name, count in self.there.items()}


def _present(column: pa.Array) -> pa.Array:
    return pc.greater(pc.list_value_length(column), 0) if pa.types.is_list(column.type) else column.is_valid()


def _collect(data: TrainingSet, renderer: Renderer, columns: list[str]) -> tuple[dict[str, Collector], Tally]:
    collectors = {side: Collector(side) for side in renderer.sides}
    tally = Tally(renderer)
    for part in PARTS:
        for table in data.batches(part, columns or [LABEL], ROWS):
            tally.add(part, table.select(columns))
            for side, chunk in renderer.chunks(table):
                collectors[side].add(part, chunk)
                tally.drop(chunk.dropped)
    return collectors, tally


def _report(renderer: Renderer, tally: Tally, sides: dict[str, Collected]) -> dict[str, Any]:
    settings = renderer.settings
    said = {field.name for side in renderer.sides for field in renderer.fields(side)}
    return {
        "prompt_hash": prompt_hash(renderer.spec, settings),
        "form": settings.form,
        "granularity": settings.granularity,
        "max_tokens": settings.max_tokens,
        "tokenizer": settings.plm.name if settings.plm else None,
        "rows": tally.parts,
        "texts": {name: side.table.num_rows for name, side in sides.items()},
        "coverage": tally.coverage,
        "left_out": [f.name for f in renderer.spec.fields if f.in_prompt and f.name not in said],
        "unspoken_codes": {name: sorted(values)[:10] for name, values in tally.unspoken.items() if values},
        "tokens": {name: distribution(side.tokens) for name, side in sides.items() if side.tokens is not None},
        "truncated": {name: _truncated(side) for name, side in sides.items() if side.tokens is not None},
        "shortened_histories": tally.history,
        "examples": {name: side.table["text"][:EXAMPLES].to_pylist() for name, side in sides.items()},
    }


def _truncated(side: Collected) -> dict[str, Any]:
    cut = side.lost.get("", 0)
    fields = {name: count for name, count in side.lost.items() if name and count}
    return {"texts": cut, "rate": round(cut / max(side.table.num_rows, 1), 4), "fields": fields}


def prompt_hash(spec: DatasetSpec, settings: PromptSettings) -> str:
    """SHA-256 of everything that decides the words of a prompt: the settings and the spec's part in it."""
    said = [field for field in spec.fields if field.in_prompt]
    keys = {"name", "side", "kind", "words", "codes", "max_values"}
    content = {
        "wording": WORDING,
        "settings": settings.model_dump(mode="json", exclude={"plm"}),
        "tokenizer": [settings.plm.name, settings.plm.revision] if settings.plm else None,
        "fields": [field.model_dump(mode="json", include=keys) for field in said],
        "prompt": spec.prompt.model_dump(mode="json"),
        "history": spec.history.model_dump(mode="json", include={"title", "words"}) if spec.history else None,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
