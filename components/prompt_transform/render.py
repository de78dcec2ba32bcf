"""Rows of a training set to texts: per user and per item, or per impression."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from components.dataset.events import LIKED_PREFIX
from components.dataset.spec import DatasetSpec, FieldSpec
from components.prompt_transform.collect import Chunk, first_rows
from components.prompt_transform.forms import FORMS, HISTORY, Clause, Sentences, follow, sentence
from components.prompt_transform.history import JOIN, History
from components.prompt_transform.lengths import Counts, Tokens
from components.prompt_transform.settings import PromptSettings
from components.prompt_transform.words import Strings, words_of

#: Opens the sentence about the impression itself, in the natural form.
CONTEXT = "In this impression"


@dataclass(frozen=True)
class Renderer:
    """Writes the texts of one data set under one setting."""

    spec: DatasetSpec
    settings: PromptSettings
    tokens: Tokens | None

    @property
    def sides(self) -> tuple[str, ...]:
        """What a text stands for."""
        return ("user", "item") if self.settings.granularity == "entity" else ("row",)

    def fields(self, side: str) -> list[FieldSpec]:
        """The fields that the texts of a side say."""
        sides = {"row": ("user", "item", "context")}.get(side, (side,))
        return [field for of in sides for field in self.spec.of_side(of) if field.in_prompt]

    def history_column(self, names: list[str]) -> str | None:
        """The column with the titles of a user's history, where the prompts hold one."""
        history = self.spec.history
        if self.settings.granularity == "entity" or self.settings.history_items == 0 or history is None:
            return None
        column = LIKED_PREFIX + (history.title or "")
        return column if column in names else None

    def columns(self, names: list[str]) -> list[str]:
        """The columns that the texts are made from."""
        history = self.history_column(names)
        said = [field.table_column for side in self.sides for field in self.fields(side)]
        return list(dict.fromkeys([*said, *([history] if history else [])]))

    def chunks(self, table: pa.Table) -> Iterator[tuple[str, Chunk]]:
        """The texts of some rows, by side."""
        for side in self.sides:
            if side == "row":
                yield side, self._rows(table)
            else:
                yield side, self.entities(side, table)

    def entities(self, side: str, table: pa.Table) -> Chunk:
        """The texts of some rows' users or items alone."""
        sentences = self._sentence(side, table)
        codes, first = first_rows(sentences.texts)
        return self._cut(sentences.take(first), codes)

    def _rows(self, table: pa.Table) -> Chunk:
        """Texts of impressions, with as much of the history as fits; old titles are dropped first."""
        sides = ["user", "item"] + (["context"] if any(f.side == "context" for f in self.fields("row")) else [])
        said = {side: self._sentence(side, table) for side in sides}
        estimate = self.tokens.together([sentences.texts for sentences in said.values()]) if self.tokens else None
        name, dropped = self.history_column(table.column_names), None
        if name is not None:
            words, estimate, dropped = self._history(History.of(column_of(table, name)), estimate)
            said["user"] = self._sentence("user", table, words)
        sentences = reduce(follow, said.values())
        codes, first = first_rows(sentences.texts)
        chunk = self._cut(sentences.take(first), codes, None if estimate is None else estimate[first])
        return replace(chunk, dropped=dropped)

    def _history(self, history: History, estimate: Counts | None) -> tuple[Strings, Counts | None, Counts | None]:
        """The history's words [n] and, with `estimate` for the rest of the text, the whole's tokens and what gave way.

        The last are the titles [n] that did not fit.
        """
        asked = keep = np.minimum(history.counts, self.settings.history_items)
        if self.tokens is None or estimate is None:
            return history.words(keep), None, None
        titles = self.tokens.each([f"{JOIN.strip()} {title}" for title in history.titles.to_pylist()])
        opening = int(self.tokens.each([f", {self._before_history()}"])[0]) - 1
        tokens = estimate + history.tokens(keep, titles) + opening * (keep > 0)
        keep = history.shortened(keep, np.maximum(tokens - self.settings.max_tokens, 0), titles)
        whole = estimate + history.tokens(keep, titles) + opening * (keep > 0)
        return history.words(keep), whole, asked - keep

    def _before_history(self) -> str:
        form = FORMS[self.settings.form]
        words = self.spec.history.words if self.spec.history else ""
        return f"{words} " if form.openers else form.before(HISTORY)

    def _sentence(self, side: str, table: pa.Table, history: Strings | None = None) -> Sentences:
        form = FORMS[self.settings.form]
        opener = {"user": self.spec.prompt.user, "item": self.spec.prompt.item, "context": CONTEXT}[side]
        clauses = [
            Clause(f.name, form.before(f.spoken), words_of(f, column_of(table, f.table_column)), form.between(side))
            for f in self.spec.of_side(side)
            if f.in_prompt
        ]
        if history is not None:
            clauses.append(Clause(HISTORY, self._before_history(), history, ", "))
        return sentence(form, opener, clauses, table.num_rows)

    def _cut(self, unique: Sentences, codes: Counts, estimate: Counts | None = None) -> Chunk:
        """The texts, those that are too long cut at their last whole token.

        Args:
            unique: Different texts [u].
            codes: The text of each row [n].
            estimate: Tokens [u] summed over a text's pieces, used where a sample shows that sums are exact.
        """
        if self.tokens is None:
            return Chunk(unique, codes)
        texts = unique.texts.to_pylist()
        counts = self.tokens.count(texts, estimate)
        long = np.flatnonzero(counts > self.settings.max_tokens)
        limits = np.array([len(text) for text in texts], dtype=np.int32)
        limits[long] = self.tokens.ends([texts[row] for row in long], self.settings.max_tokens)
        cut = unique.cut(limits) if len(long) else unique
        return Chunk(cut, codes, np.minimum(counts, self.settings.max_tokens), _lost(unique, cut, long))


def _lost(whole: Sentences, cut: Sentences, long: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.bool_]]:
    """By field, the texts in which its value was cut or lost; under '' the texts that were cut at all."""
    short = np.zeros(len(whole.texts), dtype=bool)
    short[long] = True
    return {"": short} | {name: whole.ends[name] != cut.ends[name] for name in whole.ends}


def column_of(table: pa.Table, name: str) -> pa.Array:
    """A column as one array."""
    column = table[name].combine_chunks()
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
