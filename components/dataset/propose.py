"""What a DatasetSpec must say of some files, found out from the files alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.dataset.columns import ColumnError, dates, lists, numbers
from components.dataset.errors import UserError
from components.dataset.guess import (
    AFTER,
    KEY_WORDS,
    Guess,
    Label,
    Moment,
    identifier,
    key_score,
    kind_of,
    label_of,
    label_score,
    may_be_key,
    moment_of,
    overlap,
    time_score,
    tokens,
)
from components.dataset.labels import labels
from components.dataset.signs import LEAK, association, only_for_positives
from components.dataset.spec import RESERVED, Kind, LabelSpec, Source
from components.dataset.survey import Seen, Survey, survey

#: From this AUC on, a text, or a column by whose name it is known after the impression, is taken for a leak.
SUSPECT = 0.65
#: Shares of the values of one column that another must know to be its key.
FITTING = 0.3
#: Fewer different moments are no course of time.
MOMENTS = 10
TAKEN = "taken as known only after the impression"

Side = Literal["user", "item"]


@dataclass(frozen=True)
class Chosen:
    """Columns that the user names, where guessing is not wanted or fails."""

    user: str | None = None
    item: str | None = None
    label: str | None = None
    timestamp: str | None = None


@dataclass(frozen=True)
class Key:
    """The column that names the user or the item in the impressions, and in their own table."""

    column: str
    in_table: str | None
    why: str


@dataclass(frozen=True)
class Field:
    """One proposed field; without a kind, a column that is left out."""

    name: str
    side: str
    seen: Seen
    guess: Guess
    leak: str = ""


@dataclass(frozen=True)
class Proposal:
    """Everything that was found out, ready to be written."""

    name: str
    surveys: Mapping[str, Survey]
    keys: Mapping[str, Key]
    label: Label
    moment: tuple[str, Moment] | None
    dated: Mapping[str, tuple[str, Moment]]
    fields: tuple[Field, ...]

    @property
    def warnings(self) -> list[str]:
        """What the user should look at: leaks, columns that are of no use, and doubtful guesses."""
        found = [f"column '{field.seen.name}': {field.leak}" for field in self.fields if field.leak]
        for field in self.fields:
            if field.guess.kind is None:
                found.append(f"column '{field.seen.name}' is left out: it {field.guess.why}")
            elif field.guess.warning:
                found.append(f"column '{field.seen.name}': {field.guess.warning}")
        if self.moment is not None and self.moment[1].doubt:
            found.append(f"column '{self.moment[0]}': {self.moment[1].doubt}")
        for side, key in self.keys.items():
            for table, column in (("impressions", key.column), (f"{side}s", key.in_table)):
                empty = self.surveys[table].columns[column].empty if column is not None else 0
                if empty:
                    found.append(f"column '{column}' of the {table} is empty in {empty:,} rows: fill or drop them")
        if self.moment is None:
            found += [
                f"column '{seen.name}' would divide the rows by time, but is empty in {seen.empty:,}: fill or drop them"
                " and propose again"
                for seen in self.surveys["impressions"].columns.values()
                if seen.empty and time_score(seen.name) > 0 and _many(seen) and moment_of(seen) is not None
            ]
        return found


def propose(name: str, impressions: str, users: str | None, items: str | None, chosen: Chosen) -> Proposal:
    """Look at the files and guess what a DatasetSpec must say of them.

    Raises:
        UserError: a file cannot be read, or a key or the label cannot be told; it says which flag to give.
    """
    paths = {"impressions": impressions, "users": users, "items": items}
    surveys = {table: survey(path) for table, path in paths.items() if path is not None}
    log = surveys["impressions"]
    for flag, column in vars(chosen).items():
        if column is not None and column not in log.columns:
            raise UserError(f"--{flag} {column}: no such column; those of {impressions} are {', '.join(log.columns)}")
    keys = {"user": _key(log, surveys.get("users"), "user", chosen.user, taken=chosen.item)}
    keys["item"] = _key(log, surveys.get("items"), "item", chosen.item, taken=keys["user"].column)
    taken = {key.column for key in keys.values()}
    moment = _moment(log, chosen.timestamp, taken)
    label = _label(log, chosen.label, taken | ({moment[0]} if moment else set()))
    dated: dict[str, tuple[str, Moment]] = {}
    for side, key in keys.items():
        found = _dated(surveys[f"{side}s"], key.in_table, moment) if f"{side}s" in surveys else None
        if found is not None:
            dated[side] = found
            surveys[f"{side}s"] = _of_form(surveys[f"{side}s"], found[1])
    if moment is not None:
        surveys["impressions"] = _of_form(log, moment[1])
    proposal = Proposal(name, surveys, keys, label, moment, dated, ())
    return replace(proposal, fields=tuple(_fields(proposal)))


def _of_form(table: Survey, moment: Moment) -> Survey:
    given = {"timestamp_format": moment.form} if moment.form else {}
    return replace(table, source=table.source.model_copy(update=given))


# --- keys, label, moment -----------------------------------------------------------------------------------------


def _key(log: Survey, table: Survey | None, side: Side, named: str | None, taken: str | None) -> Key:
    """The best pair of columns of the impressions and of the side's own table, by names and by common values."""
    candidates = [log.columns[named]] if named else [seen for seen in log.columns.values() if may_be_key(seen)]
    candidates = [seen for seen in candidates if seen.name != taken]
    scored = [found for seen in candidates for found in _scored(seen, table, side)]
    score, key = max(scored, key=lambda pair: pair[0], default=(0.0, None))
    if key is None or (score < 2 and named is None):
        raise UserError(
            f"{log.source.path}: no column is known for the {side}'s key; say which: --{side} COLUMN "
            f"(the columns are {', '.join(log.columns)})"
        )
    if table is not None and key.in_table is None:
        raise UserError(f"{table.source.path}: no column holds the values of '{key.column}'; is it the {side}s' table?")
    return key


def _scored(seen: Seen, table: Survey | None, side: Side) -> Iterator[tuple[float, Key]]:
    by_name = key_score(seen.name, side)
    many = "more than a million" if seen.different is None else f"{seen.different:,}"
    why = f"{many} different values in {seen.rows:,} rows"
    if table is None:
        yield by_name, Key(seen.name, None, why)
        return
    fitting = False
    for other in table.columns.values():
        share = overlap(seen, other) if may_be_key(other) else 0.0
        if share < FITTING:
            continue
        fitting = True
        own = key_score(other.name, side) > 0 or set(tokens(other.name)) <= KEY_WORDS
        unique = other.different is None or other.different >= 0.99 * (other.rows - other.empty)
        score = by_name + share + (other.name == seen.name) + own + unique
        yield score, Key(seen.name, other.name, f"{why}; {share:.0%} of them are in '{other.name}' of the {side}s")
    if not fitting:
        yield by_name - 0.5, Key(seen.name, None, why)


def _label(log: Survey, named: str | None, taken: set[str]) -> Label:
    decimal = log.source.decimal
    if named is not None:
        found = label_of(log.columns[named], decimal)
        if found is None:
            values = ", ".join(log.columns[named].known.unique().to_pylist()[:5])
            raise UserError(f"--label {named}: its values ({values}, ...) give no rule; it needs two values or a scale")
        return found
    candidates = [seen for name, seen in log.columns.items() if name not in taken and label_score(name) > 0]
    for seen in sorted(candidates, key=lambda seen: -label_score(seen.name)):
        found = label_of(seen, decimal)
        if found is not None:
            return found
    two = [seen for name, seen in log.columns.items() if name not in taken and label_of(seen, decimal)]
    two = [seen for seen in two if seen.different == 2]
    found = label_of(two[0], decimal) if len(two) == 1 else None
    if found is not None:
        return replace(found, why=f"the only column of two values; {found.why}")
    raise UserError(
        f"{log.source.path}: no column is known for the label (clicks, ratings, kinds of events); say which: "
        f"--label COLUMN (the columns are {', '.join(log.columns)})"
    )


def _moment(log: Survey, named: str | None, taken: set[str]) -> tuple[str, Moment] | None:
    names = [named] if named else [name for name in log.columns if name not in taken and time_score(name) > 0]
    found = [(name, moment_of(log.columns[name])) for name in names]
    fitting = [(name, moment) for name, moment in found if moment is not None and _divides(log.columns[name])]
    if named is not None and not fitting:
        raise UserError(f"--timestamp {named}: its values are no moments, some are missing, or they hardly differ")
    # Of several, the one that tells the rows apart best: days are coarser than seconds.
    return max(fitting, key=lambda one: (_fineness(log.columns[one[0]]), time_score(one[0])), default=None)


def _divides(seen: Seen) -> bool:
    """Whether a split by time finds something to cut between."""
    return not seen.empty and _many(seen)


def _many(seen: Seen) -> bool:
    return seen.different is None or seen.different >= MOMENTS


def _fineness(seen: Seen) -> int:
    return len(str(len(seen.known.unique())))


def _dated(table: Survey, key: str | None, moment: tuple[str, Moment] | None) -> tuple[str, Moment] | None:
    """The column that dates the rows of a table whose keys come back."""
    seen = table.columns[str(key)]
    if moment is None or seen.different is None or seen.different >= seen.rows - seen.empty:
        return None
    found = _moment(table, None, {str(key)})
    return found if found and found[1].unit in {None, moment[1].unit} else None


# --- fields ------------------------------------------------------------------------------------------------------


def _fields(proposal: Proposal) -> Iterator[Field]:
    taken: set[str] = {"user_id", "item_id", *RESERVED}
    truth = _labels(proposal)
    for side, table in (("user", "users"), ("item", "items"), ("context", "impressions")):
        if table not in proposal.surveys:
            continue
        skipped = _spoken_for(proposal, side)
        for number, seen in enumerate(proposal.surveys[table].columns.values()):
            if seen.name in skipped:
                continue
            name = _free(identifier(seen.name, number), side, taken)
            taken.add(name)
            guess = _of_one_unit(kind_of(seen, proposal.surveys[table].source), proposal.moment)
            leak = _leak(proposal, side, seen, guess, truth) if guess.kind is not None else ""
            yield Field(name, side, seen, guess, leak)


def _spoken_for(proposal: Proposal, side: str) -> set[str]:
    """Columns that are keys, label or time stamps."""
    if side == "context":
        moment = {proposal.moment[0]} if proposal.moment else set()
        return {proposal.label.column, *moment, *(key.column for key in proposal.keys.values())}
    dated = {proposal.dated[side][0]} if side in proposal.dated else set()
    return {str(proposal.keys[side].in_table), *dated}


def _free(name: str, side: str, taken: set[str]) -> str:
    if name in taken:
        name = f"{side}_{name}"
    number = 2
    while name in taken:
        name, number = f"{name.rstrip('0123456789_')}_{number}", number + 1
    return name


def _of_one_unit(guess: Guess, moment: tuple[str, Moment] | None) -> Guess:
    """A date in numbers is read in the unit of the impressions' time stamps."""
    unit = (moment[1].unit if moment else None) or "s"
    if guess.unit in {None, unit}:
        return guess
    return Guess(None, f"holds moments in {guess.unit}, where the spec reads {unit}; convert them")


def _labels(proposal: Proposal) -> Any:
    """The label of each row of the impressions' sample: 1, 0, or null where it is dropped; None if there is none."""
    log = proposal.surveys["impressions"]
    rule = LabelSpec(column=proposal.label.column, positive=proposal.label.positive, negative=proposal.label.negative)
    try:
        return labels(log.columns[rule.column].sample, rule, log.source.decimal)
    except ColumnError:
        return None


def _leak(proposal: Proposal, side: str, seen: Seen, guess: Guess, truth: Any) -> str:
    """Why the column is taken as known only after the impression, if so."""
    after = set(tokens(seen.name)) & AFTER
    strength = only = None
    if truth is not None and guess.kind is not None:
        kept = pc.is_valid(truth)
        column = _beside(proposal, side, seen)
        if column is not None:
            table = "impressions" if side == "context" else f"{side}s"
            typed = _typed(column.filter(kept), guess, proposal.surveys[table].source)
            told = truth.filter(kept).to_numpy().astype(np.int8)
            strength, only = association(typed, told, guess.kind), only_for_positives(typed, told)
    if strength is not None and strength >= LEAK:
        return f"LEAK: it alone tells the label with AUC {strength:.3f}; {TAKEN}"
    if only is not None:
        return f"LEAK: it is filled in {only:.1%} of the rows, (nearly) all of them positive; {TAKEN}"
    if side == "context" and strength is not None and strength >= SUSPECT and guess.kind is Kind.TEXT:
        return f"LEAK: whether it is there tells the label with AUC {strength:.2f}; {TAKEN}"
    if side == "context" and after and (guess.kind is Kind.TEXT or (strength is not None and strength >= SUSPECT)):
        beside = f" and it tells the label with AUC {strength:.2f}" if strength is not None else ""
        return f"LEAK by its name ('{min(after)}'){beside}; {TAKEN}"
    return ""


def _beside(proposal: Proposal, side: str, seen: Seen) -> Any:
    """The column's value for each row of the impressions' sample; None where too few of the keys were sampled."""
    if side == "context":
        return seen.sample
    key = proposal.keys["user" if side == "user" else "item"]
    held = proposal.surveys[f"{side}s"].columns[str(key.in_table)].sample
    place = pc.index_in(proposal.surveys["impressions"].columns[key.column].sample, held)
    return seen.sample.take(place) if place.null_count < 0.5 * len(place) else None


def _typed(column: Any, guess: Guess, source: Source) -> Any:
    chunked = pa.chunked_array([column])
    if guess.kind is Kind.NUMBER:
        return numbers(chunked, source.decimal)
    if guess.kind is Kind.MULTI:
        return lists(chunked, guess.more.get("separator", "|"))
    return dates(chunked, "s", guess.more.get("format")) if guess.more.get("format") else chunked
