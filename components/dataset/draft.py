"""The YAML file of a proposed DatasetSpec, with a comment on every guess."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from components.dataset.guess import THINGS, TITLES, Label, spoken, tokens
from components.dataset.propose import Field, Proposal
from components.dataset.spec import Kind, parse_spec
from components.dataset.survey import Survey

#: Events of a history.
HISTORY = 20
#: Columns of a comment.
WIDTH = 110


def written(proposal: Proposal, path: Path) -> str:
    """The proposal as the text of the YAML file `path`.

    Raises:
        UserError: the name is none for a data set.
    """
    parts = (
        _head(proposal, path),
        _sources(proposal, path.parent),
        _keys(proposal),
        _label_line(proposal.label),
        _fields_of(proposal),
        _split(proposal),
        _prompt(proposal),
    )
    text = "\n\n".join("\n".join(part) for part in parts) + "\n"
    parse_spec(yaml.safe_load(text), str(path))
    return text


def _head(proposal: Proposal, path: Path) -> Iterator[str]:
    yield "# Proposed by `tandem init` from the files alone: every line is a guess, and yours to correct."
    yield f"# Look for LEAK and DOUBT, then: tandem check {path.name}, and tandem run --dataset {path.name}"
    for warning in proposal.warnings:
        yield from _comment(f"- {warning}")
    yield f"name: {proposal.name}"


def _sources(proposal: Proposal, folder: Path) -> Iterator[str]:
    yield "sources:"
    for table, found in proposal.surveys.items():
        yield f"  # {found.rows:,} rows"
        yield f"  {table}: {_flow(_source(proposal, table, found, folder))}"


def _keys(proposal: Proposal) -> Iterator[str]:
    keys = {side: key.column for side, key in proposal.keys.items()}
    for side, key in proposal.keys.items():
        yield from _comment(f"{side}: {key.why}")
    if proposal.moment is None:
        yield "# No column holds moments, so there is neither a split by time nor a history."
    else:
        column, moment = proposal.moment
        keys |= {"timestamp": column} | ({"timestamp_unit": moment.unit} if moment.unit else {})
        yield from _comment(f"timestamp: {moment.words}, in UTC where no zone is named")
    yield f"keys: {_flow(keys)}"


def _label_line(label: Label) -> Iterator[str]:
    yield from _comment(label.why)
    yield f"label: {_flow({'column': label.column, 'positive': label.positive, 'negative': label.negative})}"


def _source(proposal: Proposal, table: str, found: Survey, folder: Path) -> dict[str, Any]:
    side = table.removesuffix("s")
    content = {"path": _relative(found.source.path, folder)}
    content |= found.source.model_dump(exclude={"path"}, exclude_defaults=True)
    if side in proposal.keys:
        key = proposal.keys[side]
        content |= {"key": key.in_table} if key.in_table not in {None, key.column} else {}
        content |= {"timestamp": proposal.dated[side][0]} if side in proposal.dated else {}
    return content


def _relative(path: str, folder: Path) -> str:
    """The path as seen from the YAML file's folder, where it lies below; else the whole of it."""
    if "://" in path:
        return path
    whole = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links
    base = Path(os.path.abspath(folder))  # noqa: PTH100
    return str(whole.relative_to(base)) if whole.is_relative_to(base) else str(whole)


def _fields_of(proposal: Proposal) -> Iterator[str]:
    yield "fields:"
    for side, title in (("user", "users"), ("item", "items"), ("context", "known of the impression beforehand")):
        yield f"  # --- {title}"
        if side != "context":
            yield f"  - {_flow({'name': f'{side}_id', 'side': side, 'kind': 'id'})}"
        for field in proposal.fields:
            if field.side == side:
                yield from _field(field)


def _split(proposal: Proposal) -> Iterator[str]:
    if proposal.moment is None:
        yield "# Without time stamps, rows are drawn at random."
        yield "split: {by: random, ratios: [0.8, 0.1, 0.1]}"
        return
    yield "# The last tenth of the rows is the test part, the tenth before it decides when training stops."
    yield "split: {by: time, ratios: [0.8, 0.1, 0.1]}"
    yield ""
    yield from _history(proposal)


def _prompt(proposal: Proposal) -> Iterator[str]:
    thing = _thing(proposal)
    yield "# The words that open a sentence about a user, and about an item."
    yield f"prompt: {_flow({'user': 'This is a user', 'item': f'This is {_article(thing)} {thing}'})}"


def _field(field: Field) -> Iterator[str]:
    column = {} if field.name == field.seen.name else {"column": field.seen.name}
    if field.guess.kind is None:
        yield from _comment(f"left out: '{field.seen.name}' {field.guess.why}", "  ")
        return
    for note in (field.leak, field.guess.warning and f"DOUBT: {field.guess.warning}"):
        if note:
            yield from _comment(note, "  ")
    yield from _comment(field.guess.why, "  ")
    after = {"known_after_impression": True} if field.leak else {}
    words = _words(field)
    content = {"name": field.name, "side": field.side, "kind": str(field.guess.kind), **column, **words}
    yield f"  - {_flow(content | field.guess.more | after)}"


def _words(field: Field) -> dict[str, str]:
    """The field's name in a prompt, where the field's own is not how one would say it."""
    said = " ".join(word for word in spoken(field.seen.name).split() if word != field.side)
    return {"words": said} if said not in {"", field.name.replace("_", " ")} else {}


def _history(proposal: Proposal) -> Iterator[str]:
    items = [field for field in proposal.fields if field.side == "item" and field.guess.kind and not field.leak]
    named = [f for f in items if set(tokens(f.name)) & set(TITLES) and f.guess.kind in {Kind.TEXT, Kind.CATEGORY}]
    few = [f for f in items if f.guess.kind is Kind.CATEGORY and f not in named and (f.seen.different or 10**6) <= 1000]
    content: dict[str, Any] = {"length": HISTORY, "fields": [field.name for field in few[:2]]}
    yield f"# The user's last {HISTORY} items before each impression, with what the model reads of each."
    yield f"history: {_flow(content | ({'title': named[0].name} if named else {}))}"


def _thing(proposal: Proposal) -> str:
    """What an item is called, by its key's name: movie, product."""
    words = (word.removesuffix("id") for word in tokens(proposal.keys["item"].column))
    return next((word for word in words if word in THINGS), "item")


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _comment(text: str, indent: str = "") -> Iterator[str]:
    for line in textwrap.wrap(" ".join(text.split()), WIDTH, break_long_words=False, break_on_hyphens=False):
        yield f"{indent}# {line}"


def _flow(content: Mapping[str, Any]) -> str:
    """A mapping on one line."""
    dumped = yaml.safe_dump(dict(content), default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6)
    return str(dumped).strip()
