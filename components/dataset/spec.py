"""The DatasetSpec: the one description of a data set, from which everything else is derived.

Feast entities, views and services, the Great Expectations suite, the prompt, the vocabulary, the model's input
width and the serving schema all follow from it. A user brings their own data by writing one YAML file.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, Self, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from components.dataset.errors import UserError

NAME_PATTERN = r"^[a-z][a-z0-9_]*$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
#: Text in which a blank or a tab counts.
Verbatim = Annotated[str, StringConstraints(strip_whitespace=False, min_length=1)]

#: Columns of the validated tables that are not fields.
USER_KEY = "user_id"
ITEM_KEY = "item_id"
IMPRESSION_ID = "impression_id"
EVENT_TIMESTAMP = "event_timestamp"
CREATED_TIMESTAMP = "created_timestamp"
LABEL = "label"
RESERVED = frozenset({IMPRESSION_ID, EVENT_TIMESTAMP, CREATED_TIMESTAMP, LABEL})
#: What every event of a history has beside its item and the fields that the spec names.
EVENT_ATTRIBUTES = frozenset({LABEL, "timestamp", "gap", "hour"})

#: What a moment says, as `moment` asks for it, has this before its name.
MOMENT_PREFIX = "request_"

#: What is counted of a user or an item over each window.
ACTIVITY_MEASURES = ("impressions", "positives", "positive_rate")

Side = Literal["user", "item", "context"]


class Kind(StrEnum):
    """What a field's values are, and so how they are encoded for the model."""

    ID = "id"  # the key of the user or the item itself
    CATEGORY = "category"  # one of a set of values
    MULTI = "multi"  # several of a set of values (genres)
    NUMBER = "number"  # in bins that are learnt from the train part
    DATE = "date"  # a day; in bins like a number, in words in a prompt
    TEXT = "text"  # words for the prompt; no input of the collaborative model


class _Faulty(Protocol):
    """What can say what is wrong with it."""

    def faults(self) -> Iterator[str]: ...


FaultyT = TypeVar("FaultyT", bound=_Faulty)


class _Model(BaseModel):
    # Codes are numbers more often than not, and YAML reads them as numbers.
    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True, coerce_numbers_to_str=True)


#: Context of a validation that takes a spec as it is, so that its sources can be looked at all the same.
LENIENT = {"lenient": True}


def _refused(model: FaultyT, info: ValidationInfo) -> FaultyT:
    """The model, if nothing is wrong with it; all that is wrong is told at once, a line each."""
    faults = [] if info.context == LENIENT else list(model.faults())
    if faults:
        raise ValueError("\n".join(faults))
    return model


class Source(_Model):
    """One table on disk or on any fsspec path."""

    path: str = Field(min_length=1, description="File or URI; relative paths start at the YAML file's folder.")
    format: Literal["parquet", "csv", "jsonl"] | None = Field(
        default=None, description="Taken from the file's ending where it is not given."
    )
    delimiter: Annotated[Verbatim, Field(max_length=1)] = Field(
        default=",", description="Column separator of a CSV file."
    )
    decimal: Literal[".", ","] = Field(default=".", description="Decimal mark of numbers that are written as text.")
    key: str | None = Field(
        default=None, description="Column with the key of a user or item table, if not named as in the impressions."
    )
    timestamp_format: str | None = Field(
        default=None, description="Of time stamps that are neither ISO 8601 nor numbers: '%d.%m.%Y %H:%M:%S'."
    )
    created: str | None = Field(default=None, description="Column that says when the row became known.")
    timestamp: str | None = Field(default=None, description="Column from which on the row's values hold.")
    ttl_days: float | None = Field(
        default=None, gt=0, le=36500, description="Days that they hold, in training and online; for ever if not given."
    )


class Sources(_Model):
    """The impressions, and the user and item tables where there are any."""

    impressions: Source
    users: Source | None = None
    items: Source | None = None


class Keys(_Model):
    """The columns that name the user, the item and the moment of an impression."""

    user: str
    item: str
    timestamp: str | None = Field(default=None, description="Without it: no time split and no history.")
    timestamp_unit: Literal["s", "ms", "us"] = Field(default="s", description="Unit of an integer time stamp.")


class FieldSpec(_Model):
    """One field: where it comes from, what kind of values it has, and its words in a prompt."""

    name: Name
    side: Side = Field(description="user, item, or context (a column of the impressions known beforehand).")
    kind: Kind
    column: str | None = Field(default=None, description="Column in the source; the field's name if not given.")
    words: str | None = Field(default=None, description="The field's name in a prompt.")
    codes: dict[str, str] = Field(default_factory=dict, description="Words for the values that are codes.")
    separator: Verbatim = Field(default="|", description="Between the values of a multi field.")
    max_values: int = Field(default=8, ge=1, le=256, description="Values kept of a multi field.")
    buckets: int = Field(default=16, ge=2, le=1024, description="Bins of a number or date, at most.")
    scale: Literal["quantile", "linear", "log"] = Field(
        default="quantile", description="Bins of equal count, or of equal width on a linear or logarithmic scale."
    )
    format: str | None = Field(default=None, description="Of dates that are not ISO 8601: '%d.%m.%Y'.")
    min_count: int = Field(default=1, ge=1, description="Values seen less often in the train part are unknown.")
    model: bool | None = Field(default=None, description="Input of the model? Default: all kinds but text.")
    prompt: bool | None = Field(default=None, description="Part of the prompt? Default: all kinds but id.")
    slice: bool = Field(default=False, description="Report the metrics by this field's values.")
    known_after_impression: bool = Field(default=False, description="Never an input; the leak lint refuses it.")

    @model_validator(mode="after")
    def _check(self, info: ValidationInfo) -> Self:
        return _refused(self, info)

    def faults(self) -> Iterator[str]:
        """What is wrong with the field, each with what to write."""
        if self.name in RESERVED:
            yield f"field name '{self.name}' is reserved; choose another name and set 'column: {self.name}'"
        if self.kind is Kind.ID and self.side == "context":
            yield f"field '{self.name}': kind 'id' is the user's or item's key; write side: user or item"
        if self.kind is Kind.ID and self.column is not None:
            yield f"field '{self.name}': kind 'id' reads the key named under 'keys'; remove 'column'"
        key = {"user": USER_KEY, "item": ITEM_KEY}
        if self.name in key.values() and (self.kind is not Kind.ID or key.get(self.side) != self.name):
            yield f"field name '{self.name}' belongs to the key itself; write kind: id or another name"
        if self.kind is Kind.TEXT and self.model:
            yield f"field '{self.name}': a text field is no model input; remove 'model: true'"
        if self.format is not None and self.kind is not Kind.DATE:
            yield f"field '{self.name}': 'format' is of dates; write kind: date, or remove it"
        if self.known_after_impression and (self.model or self.prompt):
            yield (
                f"field '{self.name}' is known only after the impression and must not be an input; "
                "remove 'model: true' and 'prompt: true'"
            )

    @property
    def source_column(self) -> str:
        """Column in the user's own file."""
        return self.column or self.name

    @property
    def table_column(self) -> str:
        """Column in the validated tables: the key for an id field, else the field's name."""
        if self.kind is Kind.ID:
            return USER_KEY if self.side == "user" else ITEM_KEY
        return self.name

    @property
    def in_model(self) -> bool:
        """Whether the collaborative model reads this field."""
        return (self.kind is not Kind.TEXT if self.model is None else self.model) and not self.known_after_impression

    @property
    def in_prompt(self) -> bool:
        """Whether the prompt says this field."""
        return (self.kind is not Kind.ID if self.prompt is None else self.prompt) and not self.known_after_impression

    @property
    def spoken(self) -> str:
        """The field's name in words."""
        return self.words or self.name.replace("_", " ")


class LabelSpec(_Model):
    """The label's column and the rules by which a row is positive, negative or dropped."""

    column: str
    positive: str = Field(default="== 1", description="Rule such as '> 3' or '== click'.")
    negative: str = Field(default="== 0", description="Rows that meet neither rule are dropped.")

    @field_validator("positive", "negative")
    @classmethod
    def _check(cls, rule: str) -> str:
        parse_rule(rule)
        return rule


class SplitSpec(_Model):
    """How rows are divided into train, valid and test."""

    by: Literal["time", "random", "hash"] = "time"
    ratios: tuple[float, float, float] = (0.8, 0.1, 0.1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if min(self.ratios) <= 0 or abs(sum(self.ratios) - 1) > 1e-6:
            raise ValueError(f"split.ratios must be three positive numbers that sum to 1, not {list(self.ratios)}")
        return self


class HistorySpec(_Model):
    """The user's recent impressions as of each impression.

    An event always keeps its item's id, its label, and its moment, from which the time gap and the hour of the day
    follow. It has one slot for each attribute: of a multi field the first value.
    """

    length: int = Field(default=20, ge=1, le=1000, description="Most recent events that are kept.")
    events: Literal["all", "positive", "per_label"] = Field(
        default="all",
        description="All impressions, those with label 1, or 'length' of each label: what is rare is not crowded out.",
    )
    fields: tuple[str, ...] = Field(default=(), description="Item fields kept per event.")
    behaviour: tuple[str, ...] = Field(
        default=(), description="Context fields kept per event, those known after the impression too."
    )
    title: str | None = Field(
        default=None, description="Item field that names an item in the prompt, which tells of positive events only."
    )
    words: str = Field(default="who has recently viewed", description="Words before the history in the prompt.")

    @property
    def slots(self) -> int:
        """Events that the input has room for."""
        return 2 * self.length if self.events == "per_label" else self.length


class ActivitySpec(_Model):
    """Counts over windows before each impression: of the user's impressions, and of the item's.

    For each side and window three numbers are inputs of the model: `user_impressions_1h`, `user_positives_1h` (those
    with label 1) and `user_positive_rate_1h` (their ratio). They are missing before the first event that is known.
    """

    windows: tuple[Annotated[str, Field(pattern=r"^[1-9][0-9]{0,4}[smhd]$")], ...] = Field(
        min_length=1, max_length=8, description="Lengths such as 30m, 1h, 7d."
    )
    sides: tuple[Literal["user", "item"], ...] = Field(default=("user", "item"), min_length=1)
    buckets: int = Field(default=16, ge=2, le=1024, description="Quantile bins of each number.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, values in (("windows", self.windows), ("sides", self.sides)):
            if len(set(values)) < len(values):
                raise ValueError(f"activity.{name} holds a value twice: {', '.join(values)}; keep one of them")
        return self


class PromptSpec(_Model):
    """The words that open the user's and the item's sentence."""

    user: str = "This is a user"
    item: str = "This is an item"


def identifier_of(name: str) -> str:
    """The name of a data set with underscores only, as Feast and MLflow want it."""
    return name.replace("-", "_")


class DatasetSpec(_Model):
    """The single description of a data set."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$")]
    description: str = ""
    sources: Sources
    keys: Keys
    label: LabelSpec
    fields: tuple[FieldSpec, ...] = Field(min_length=1)
    split: SplitSpec = SplitSpec()
    history: HistorySpec | None = None
    activity: ActivitySpec | None = None
    moment: tuple[Literal["hour", "weekday"], ...] = Field(
        default=(),
        description="Request-time context: what the moment of a request says by itself (UTC; weekday 0 is Monday).",
    )
    prompt: PromptSpec = PromptSpec()
    max_unknown_share: float = Field(
        default=0.5, ge=0, le=1, description="Share of impressions of users or items absent from their table."
    )

    @model_validator(mode="after")
    def _check(self, info: ValidationInfo) -> Self:
        return _refused(self, info)

    def faults(self) -> Iterator[str]:
        """What is wrong with the whole, each with what to write."""
        names = [field.name for field in (*self.fields, *self.activity_fields(), *self.moment_fields())]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            yield f"field named twice: {', '.join(twice)}; rename one and name its 'column'"
        if not self.model_fields_of():
            yield "no field is an input of the model; add at least one that is not text"
        timed = self.split.by == "time" or self.history is not None or self.activity is not None or bool(self.moment)
        if self.keys.timestamp is None and timed:
            yield (
                "without 'keys.timestamp' there is no time split, no history, no activity and no moment; "
                "write 'split: {by: random}' or 'split: {by: hash}' and remove 'history', 'activity' and 'moment'"
            )
        yield from self._faults_of_tables()
        yield from self._faults_of_history()
        yield from self._faults_of_time()
        for field in self.of_side("context"):
            if field.source_column == self.label.column and not field.known_after_impression:
                yield (
                    f"field '{field.name}' reads the label's column '{self.label.column}'; remove it, or write "
                    "known_after_impression: true and use it in 'history.behaviour' only"
                )

    def _faults_of_time(self) -> Iterator[str]:
        if self.sources.impressions.timestamp not in {None, self.keys.timestamp}:
            yield "an impression's moment is named under 'keys.timestamp'; remove it from the source"
        if self.sources.impressions.key is not None:
            yield "the keys of the impressions are named under 'keys'; remove 'sources.impressions.key'"
        tables = {"users": self.sources.users, "items": self.sources.items}
        for name, source in {"impressions": self.sources.impressions, **tables}.items():
            if source is not None and source.ttl_days is not None and (name not in tables or source.timestamp is None):
                yield (
                    f"'sources.{name}.ttl_days' is for user and item tables with a 'timestamp', from which on the days "
                    "count; add it, or remove 'ttl_days'"
                )
        dated = [name for name, source in tables.items() if source is not None and source.timestamp is not None]
        if dated and self.keys.timestamp is None:
            yield (
                f"'sources.{dated[0]}.timestamp' needs the moment of each impression; "
                "write 'keys.timestamp', or keep one row per key and remove it"
            )

    def _faults_of_tables(self) -> Iterator[str]:
        for side, table in (("user", self.sources.users), ("item", self.sources.items)):
            orphans = [f.name for f in self.of_side(side) if f.kind is not Kind.ID] if table is None else []
            if orphans:
                yield (
                    f"fields {', '.join(orphans)} are of side '{side}' but 'sources.{side}s' is missing; "
                    f"add the table, or write side: context for columns of the impressions"
                )

    def _faults_of_history(self) -> Iterator[str]:
        if self.history is None:
            return
        title = [self.history.title] if self.history.title else []
        for side, named in (("item", [*self.history.fields, *title]), ("context", self.history.behaviour)):
            unknown = set(named) - {field.name for field in self.of_side(side)}
            if unknown:
                yield f"history names unknown {side} fields: {', '.join(sorted(unknown))}; correct or remove them"
        kept = (*self.history.fields, *self.history.behaviour)
        for name in sorted(set(kept) & EVENT_ATTRIBUTES):
            yield f"history has a '{name}' of its own for each event; name your field otherwise and set 'column'"
        words = [f.name for f in self.fields if f.name in self.history.behaviour and f.kind is Kind.TEXT]
        if words:
            yield f"history.behaviour names text fields: {', '.join(words)}; remove them"

    def of_side(self, side: str) -> tuple[FieldSpec, ...]:
        """Fields of one side, in the spec's order."""
        return tuple(field for field in self.fields if field.side == side)

    def model_fields_of(self, side: str | None = None) -> tuple[FieldSpec, ...]:
        """Inputs of the collaborative model, the activity's and the moment's last; of one side where it is given."""
        fields = (*self.fields, *self.activity_fields(), *self.moment_fields())
        return tuple(f for f in fields if f.in_model and (side is None or f.side == side))

    def activity_fields(self, side: str | None = None) -> tuple[FieldSpec, ...]:
        """The numbers that `activity` adds, of all sides or one; no column of the user's own tables is behind them."""
        if self.activity is None:
            return ()
        return tuple(
            FieldSpec(name=f"{of}_{measure}_{window}", side=of, kind=Kind.NUMBER, buckets=self.activity.buckets)
            for of in self.activity.sides
            if side in {None, of}
            for window in self.activity.windows
            for measure in ACTIVITY_MEASURES
        )

    def moment_fields(self) -> tuple[FieldSpec, ...]:
        """The categories that `moment` adds to the context: computed, with no column of the log behind them."""
        parts = dict.fromkeys(self.moment)
        return tuple(FieldSpec(name=MOMENT_PREFIX + part, side="context", kind=Kind.CATEGORY) for part in parts)

    def field(self, name: str) -> FieldSpec:
        """The field of this name.

        Raises:
            KeyError: no field has this name.
        """
        for field in self.fields:
            if field.name == name:
                return field
        raise KeyError(name)

    @property
    def identifier(self) -> str:
        """The name with underscores only, as Feast and MLflow want it."""
        return identifier_of(self.name)

    @property
    def digest(self) -> str:
        """SHA-256 over the canonical JSON of the spec without the places where its sources lie."""
        content = self.model_dump(mode="json", exclude={"sources", "description"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def to_yaml(self) -> str:
        """The spec as YAML, every default written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


RULE = re.compile(r"^(>=|<=|==|!=|>|<)\s*(\S.*)$")


def parse_rule(rule: str) -> tuple[str, float | str]:
    """Operator and operand of a label rule such as '> 3'.

    Raises:
        ValueError: the rule is not of that form.
    """
    match = RULE.match(rule.strip())
    if match is None:
        raise ValueError(f"label rule '{rule}' is not understood; write an operator and a value, such as '> 3'")
    operator, operand = match.groups()
    try:
        return operator, float(operand)
    except ValueError:
        if operator not in {"==", "!="}:
            raise ValueError(f"label rule '{rule}' compares with a word; only == and != do that") from None
        return operator, operand


def parse_spec(content: dict[str, Any], origin: str) -> DatasetSpec:
    """Validate the content of a DatasetSpec; `origin` is the file named in messages.

    Raises:
        UserError: with one line for each thing that is wrong.
    """
    try:
        return DatasetSpec.model_validate(content)
    except ValidationError as error:
        raise UserError("\n".join(f"{origin}: {line}" for fault in error.errors() for line in explain(fault))) from None


def explain(fault: Any) -> list[str]:
    """A fault that pydantic found, in lines that say what to write."""
    where = ".".join(str(part) for part in fault["loc"]) or "spec"
    if fault["type"] == "extra_forbidden":
        return [f"unknown key '{where}'; remove it or correct its spelling"]
    if fault["type"] == "missing":
        return [f"key '{where}' is missing; add it"]
    if fault["type"] == "string_pattern_mismatch" and fault["loc"][-1] == "name":
        return [f"{where}: '{fault['input']}' is no name; write lower-case letters, digits and _, a letter first"]
    if fault["type"] == "string_pattern_mismatch" and "windows" in fault["loc"]:
        return [f"{where}: '{fault['input']}' is no window; write a number and its unit, such as 30s, 15m, 1h or 7d"]
    return [f"{where}: {line}" for line in str(fault["msg"]).removeprefix("Value error, ").splitlines()]


def read_spec(path: Path, root: Path | None = None) -> DatasetSpec:
    """Read a DatasetSpec from a YAML file; relative source paths are taken from `root`, else from the file's folder.

    Raises:
        UserError: the file is missing, is no YAML, or does not describe a data set.
    """
    return anchored(parse_spec(read_mapping(path), str(path)), root or path.resolve().parent)


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        UserError: the file is missing, is no YAML or holds something else.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; write a DatasetSpec there or give the name of an embedded data set")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: a DatasetSpec is a YAML mapping that starts with 'name:'")
    return content


def anchored(spec: DatasetSpec, folder: Path) -> DatasetSpec:
    """The spec with every relative source path made absolute from `folder`."""

    def anchor(source: Source | None) -> Source | None:
        return source and source.model_copy(update={"path": place_of(source.path, folder)})

    moved = {name: anchor(getattr(spec.sources, name)) for name in ("impressions", "users", "items")}
    return spec.model_copy(update={"sources": spec.sources.model_copy(update=moved)})


def place_of(path: str, folder: Path) -> str:
    """A source's path: a URI or an absolute path as it is, a relative one from `folder`."""
    return path if "://" in path or Path(path).is_absolute() else str(folder / path)
