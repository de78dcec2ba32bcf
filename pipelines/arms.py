"""The arms of a comparison: named sets of settings, some of them built in."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from components.dataset.errors import UserError
from pipelines.settings import BACKBONES, Backbone, Method, RunSettings, validated

BUILT_IN = Path(__file__).with_name("arms.yaml")
#: What the comparison itself decides, alike for every arm.
COMMON = ("dataset", "backbone", "seed", "run_id", "method", "evaluate", "validate", "gate", "shards")
#: Settings of a run that a comparison takes from its flags and arms, or has no use for, and what to write instead.
NOT_SET = {
    "dataset": "write --dataset",
    "backbone": "write --backbones",
    "seed": "write --seeds",
    "method": "each arm says its own; write --arms",
    "window": "a comparison reads the whole log; remove it",
    "warm_start": "a comparison trains every arm anew; remove it",
}


class Arm(BaseModel):
    """One variant in a comparison: whether it is aligned first, and what it sets otherwise than the run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][\w.+-]*$", description="What stands in the tables.")
    description: str = Field(default="", description="One line for the reader of a table.")
    method: Method = Field(default="ctrl", description="collaborative: clicks alone; the others: stage 1 first.")
    backbone: Backbone | None = Field(default=None, description="Its own, in the place of the comparison's.")
    settings: dict[str, Any] = Field(default_factory=dict, description="Settings by section, as --config takes them.")

    def over(self, common: dict[str, Any]) -> RunSettings:
        """The arm's run: its own settings laid over those that all arms share.

        Raises:
            UserError: a setting is unknown or impossible, or belongs to the comparison and not to an arm.
        """
        taken = sorted(set(self.settings) & set(COMMON))
        if taken:
            raise UserError(f"arm '{self.name}': {', '.join(taken)} is the same for all arms; give it to the command")
        refuse_not_set(self.settings, self.name)
        try:
            own = {"method": self.method} | ({"backbone": self.backbone} if self.backbone else {})
            return validated(_laid_over(common, self.settings) | own)
        except UserError as error:
            raise UserError(f"arm '{self.name}': {error}") from None


def _laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Both mappings in one, section by section; what stands above counts."""
    content = copy.deepcopy(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(content.get(key), dict)
        content[key] = _laid_over(content[key], value) if both else copy.deepcopy(value)
    return content


def refuse_not_set(settings: Mapping[str, Any], arm: str | None = None) -> None:
    """Refuse settings that would decide nothing in a comparison; of an arm where one is named.

    Raises:
        UserError: there is one.
    """
    where = f"arm '{arm}'" if arm else "--set or --config"
    for name, instead in NOT_SET.items():
        if name in settings:
            raise UserError(f"{where}: {name}: {instead}")


def pick_arms(names: Sequence[str], file: Path | None = None) -> list[Arm]:
    """The arms of these names, in this order, from the file and from those that are built in.

    Raises:
        UserError: there is none, a name is unknown or given twice, or the file does not describe arms.
    """
    known = read_arms(BUILT_IN) | (read_arms(file) if file is not None else {})
    return [known[name] for name in _picked("--arms", "arm", names, known, ", or give --arms-file")]


def pick_backbones(names: Sequence[str]) -> tuple[str, ...]:
    """The backbones of a comparison as they were named.

    Raises:
        UserError: there is none, or a name is unknown or given twice.
    """
    return tuple(_picked("--backbones", "backbone", names, BACKBONES))


def _picked(flag: str, what: str, names: Sequence[str], known: Iterable[str], more: str = "") -> Sequence[str]:
    """The names that a flag was given, all of them known and each there once."""
    every = list(known)
    if not names:
        raise UserError(f"{flag} names none; write one or more of {', '.join(every)}{more}")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{flag}: {', '.join(twice)} is named twice")
    for name in names:
        if name not in every:
            near = difflib.get_close_matches(name, every, n=1)
            guess = f"did you mean '{near[0]}'? " if near else ""
            raise UserError(f"{flag}: no {what} '{name}'; {guess}write one of {', '.join(every)}{more}")
    return names


def read_arms(path: Path) -> dict[str, Arm]:
    """The arms of a YAML file, by name.

    Raises:
        UserError: the file is missing, is no YAML, or does not describe arms.
    """
    if not path.is_file():
        raise UserError(f"--arms-file {path}: no such file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not all(isinstance(arm, dict) for arm in content.values()):
        raise UserError(
            f"{path}: write arms by name, such as 'cosine: {{settings: {{align: {{similarity: cosine}}}}}}'"
        )
    try:
        return {str(name): Arm(name=str(name), **arm) for name, arm in content.items()}
    except (ValidationError, TypeError) as error:
        raise UserError(f"{path}: {_explain(error)}") from None


def _explain(error: ValidationError | TypeError) -> str:
    if isinstance(error, TypeError):
        return "an arm's keys are description, method, backbone and settings"
    return "; ".join(f"'{'.'.join(map(str, one['loc']))}': {one['msg']}" for one in error.errors())
