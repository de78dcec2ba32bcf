"""Everything that is wrong with a DatasetSpec and its sources, at once."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ValidationError

from components.dataset.catalog import locate
from components.dataset.errors import UserError
from components.dataset.files import columns_of
from components.dataset.signs import warnings
from components.dataset.sources import Tables, validated_tables
from components.dataset.spec import (
    EVENT_TIMESTAMP,
    IMPRESSION_ID,
    LENIENT,
    USER_KEY,
    DatasetSpec,
    Source,
    anchored,
    explain,
    place_of,
    read_mapping,
)
from components.dataset.splits import split_table

Place = tuple[int | str, ...]
#: Stands in for a name that is at fault or missing, so that the rest can be looked at.
UNNAMED = "unnamed"


@dataclass(frozen=True)
class Finding:
    """One thing to mend: `where` is a file, with the line of a YAML file; `what` names the key or column.

    With an error the data set cannot be run; with a warning it can.
    """

    severity: Literal["error", "warning"]
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.where}: {self.what}"


@dataclass(frozen=True)
class Checked:
    """What was found, and the spec and its tables where nothing is wrong with them."""

    findings: tuple[Finding, ...]
    spec: DatasetSpec | None = None
    tables: Tables | None = None

    @property
    def errors(self) -> int:
        """Number of errors."""
        return sum(finding.severity == "error" for finding in self.findings)


def check(ref: str) -> Checked:
    """Look at a data set's YAML file and, as far as that can be understood, at all rows of its sources.

    Raises:
        UserError: there is no data set of this name.
    """
    path, root = locate(ref)
    try:
        content = read_mapping(path)
    except UserError as error:
        return Checked((Finding("error", str(path), str(error).removeprefix(f"{path}: ")),))
    faults, spec = _faults(content)
    lines = _lines(path)
    placed = sorted((_line(lines, place) or 0, what) for place, what in faults)
    found = [Finding("error", _where(path, line), what) for line, what in placed]
    if spec is None:
        return Checked((*found, *_of_files(content, root)))
    spec = anchored(spec, root)
    try:
        tables = validated_tables(spec)
    except UserError as error:
        return Checked((*found, *_of_sources(spec, str(error).splitlines())))
    if found:
        return Checked(tuple(found))
    found = [*_of_split(spec, tables, str(path)), *(Finding("warning", str(path), w) for w in warnings(spec, tables))]
    return Checked(
        tuple(replace(one, where=_where(path, _named(lines, content, one.what))) for one in found), spec, tables
    )


def _of_split(spec: DatasetSpec, tables: Tables, where: str) -> list[Finding]:
    try:
        deciding = [
            name for name in (IMPRESSION_ID, USER_KEY, EVENT_TIMESTAMP) if name in tables.impressions.column_names
        ]
        split_table(tables.impressions.select(deciding), spec)
    except UserError as error:
        return [Finding("error", where, str(error))]
    return []


def _of_sources(spec: DatasetSpec, lines: Sequence[str]) -> Iterator[Finding]:
    sources = (spec.sources.impressions, spec.sources.users, spec.sources.items)
    paths = [source.path for source in sources if source is not None]
    for line in lines:
        where = next((path for path in paths if line.startswith(f"{path}: ")), paths[0])
        yield Finding("error", where, line.removeprefix(f"{where}: "))


def _of_files(content: dict[str, Any], root: Path) -> Iterator[Finding]:
    """The sources that cannot be opened, of a spec that is too broken to say which columns it wants."""
    sources = content.get("sources")
    for described in sources.values() if isinstance(sources, dict) else ():
        try:
            source = Source.model_validate(described)
            columns_of(source.model_copy(update={"path": place_of(source.path, root)}))
        except ValidationError:
            continue
        except UserError as error:
            where, _, what = str(error).partition(": ")
            yield Finding("error", where, what)


def _faults(content: dict[str, Any]) -> tuple[list[tuple[Place, str]], DatasetSpec | None]:
    """Every fault of a spec with its place, and the spec without what cannot be read, if enough is left.

    pydantic looks at the whole only when every part is sound. So what is unsound is taken out, and the rest is looked
    at again; what is then said of the parts that were taken out would be no news.
    """
    content = copy.deepcopy(content)
    found: dict[tuple[Place, str], None] = {}
    pruned: set[str] = set()
    while True:
        errors = _errors(content)
        for error in errors:
            known = any(re.search(rf"\b{re.escape(name)}\b", str(error["msg"])) for name in pruned)
            known |= error["type"] == "missing" and str(error["loc"][-1]) in pruned
            if not known and not (pruned and "no field is an input" in str(error["msg"])):
                found |= {(tuple(error["loc"]), line): None for line in explain(error)}
        if not _pruned(content, [tuple(error["loc"]) for error in errors], pruned):
            break
    try:
        return list(found), DatasetSpec.model_validate(content, context=LENIENT)
    except ValidationError:
        return list(found), None


def _errors(content: dict[str, Any]) -> list[Any]:
    try:
        DatasetSpec.model_validate(content)
    except ValidationError as error:
        return list(error.errors())
    return []


def _pruned(content: dict[str, Any], places: Sequence[Place], names: set[str]) -> bool:
    """Take out what is at fault, and add its name; whether anything was there.

    A field goes as a whole, so does a list for one of its items, and a mapping for a key that it cannot be without. A
    stand-in takes the place of the data set's name.
    """
    numbers = {place[1] for place in places if place[:1] == ("fields",) and len(place) > 1}
    for number in sorted((number for number in numbers if isinstance(number, int)), reverse=True):
        field = content["fields"].pop(number)
        names.add(str(field.get("name")) if isinstance(field, dict) else str(field))
    taken = bool(numbers)
    if ("name",) in places:
        content["name"] = UNNAMED
        taken = True
    for place in places:
        if place != ("name",) and (place[:1] != ("fields",) or len(place) == 1):
            taken |= _taken(content, [str(key) for key in takewhile(lambda key: isinstance(key, str), place)], names)
    return taken


def _taken(content: dict[str, Any], keys: list[str], names: set[str]) -> bool:
    """Take the value at these keys out of nested mappings, or what holds it if it was taken out before."""
    while keys:
        holder: Any = content
        for key in keys[:-1]:
            holder = holder.get(key) if isinstance(holder, dict) else None
        if isinstance(holder, dict) and keys[-1] in holder:
            del holder[keys[-1]]
            names.add(keys[-1])
            return True
        if keys[-1] not in names:
            return False
        keys = keys[:-1]
    return False


def _lines(path: Path) -> dict[Place, int]:
    """The line of each key and list item of a YAML file, by its place."""
    lines: dict[Place, int] = {}

    def walk(node: yaml.Node, place: Place) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                lines[(*place, key.value)] = key.start_mark.line + 1
                walk(value, (*place, key.value))
        elif isinstance(node, yaml.SequenceNode):
            for number, value in enumerate(node.value):
                lines[(*place, number)] = value.start_mark.line + 1
                walk(value, (*place, number))

    node = yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
    assert node is not None  # noqa: S101 - the file has been read before, and holds a mapping
    walk(node, ())
    return lines


def _line(lines: dict[Place, int], place: Place) -> int | None:
    """The line of the nearest thing that is there."""
    while place and place not in lines:
        place = place[:-1]
    return lines.get(place)


def _where(path: Path, line: int | None) -> str:
    return f"{path}:{line}" if line else str(path)


def _named(lines: dict[Place, int], content: dict[str, Any], what: str) -> int | None:
    """The line of the field that a message begins with, or of the key 'split'."""
    named = re.match(r"field '(\w+)'", what)
    names = [field["name"] for field in content["fields"]]
    return _line(lines, ("fields", names.index(named[1])) if named else ("split",))
