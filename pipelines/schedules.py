"""Schedules as data: what schedules.yaml asks for, what the cluster has, and how the one is made of the other.

A recurring run cannot be changed in place (kubeflow/pipelines#3789), so a change is a new one in the old one's stead.
At no moment are two recurring runs of one schedule enabled: the new one is made disabled, the old one disabled, the new
one enabled, the old one deleted. Wherever that is cut off, the next `apply` brings it to its end. While a run of the
old one is in progress, the change waits: the controller counts the runs of each recurring run by itself, and the new
one's first would start beside it.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from components.dataset.errors import UserError
from pipelines.cluster import ENDED, Cluster, PipelineKind, check_for_cluster, compiled, parameters
from pipelines.cron import to_utc
from pipelines.settings import RunSettings, parse_settings

EMBEDDED = Path(__file__).with_name("schedules.yaml")
#: Begins the description of every recurring run that is ours; schedule and digest follow.
MARK = "tandem schedule"
ENABLED, DISABLED = "ENABLED", "DISABLED"
#: The action of a change that is not made now.
WAIT = "wait"


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError("is no time zone; write a name such as Europe/Berlin or UTC") from None
    return name


class Schedule(BaseModel):
    """One recurring run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z][a-z0-9-]{0,62}$", description="Small letters, digits and hyphens.")
    pipeline: PipelineKind = Field(default="training", description="training, materialize or materialize+rows.")
    cron: str = Field(description="Minute, hour, day of the month, month, day of the week.")
    time_zone: Annotated[str, BeforeValidator(_zone)] = Field(default="UTC", description="In which cron is meant.")
    settings: dict[str, Any] = Field(default_factory=dict, description="Of the run, as in --config.")
    catch_up: bool = Field(default=False, description="Make up for each run that was missed.")
    concurrency: int = Field(default=1, ge=1, le=10, description="Runs of this schedule at one time.")
    enabled: bool = Field(default=True, description="Whether it runs at all.")

    def run_settings(self) -> RunSettings:
        """The settings of each run.

        Raises:
            UserError: a setting is unknown or impossible, or nothing for a cluster.
        """
        try:
            settings = parse_settings(json.loads(json.dumps(self.settings)), [])
            check_for_cluster(self.pipeline, settings)
            return settings
        except UserError as error:
            raise UserError(f"schedule '{self.name}': {error}") from None

    def in_utc(self, moment: datetime) -> str:
        """Its cron as the controller reads it, with the zone's offset at a moment.

        Raises:
            UserError: it is none, or what it says of days cannot be said in UTC.
        """
        try:
            return to_utc(self.cron, self.time_zone, moment)
        except UserError as error:
            raise UserError(f"schedule '{self.name}': {error}") from None


class Schedules(BaseModel):
    """The content of schedules.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    experiment: str = Field(default="tandem", min_length=1, description="The experiment that the runs belong to.")
    schedules: tuple[Schedule, ...] = ()

    def named(self, name: str) -> Schedule:
        """A schedule.

        Raises:
            UserError: there is none of this name.
        """
        for schedule in self.schedules:
            if schedule.name == name:
                return schedule
        raise UserError(f"no schedule '{name}'; one of: {', '.join(one.name for one in self.schedules)}")


def read_schedules(path: Path | None) -> Schedules:
    """Read a file of schedules, or the one that comes with the project.

    Raises:
        UserError: it is missing, no YAML, or says what cannot be.
    """
    file = path or EMBEDDED
    if not file.is_file():
        raise UserError(f"--file {file}: no such file")
    try:
        found = Schedules.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")) or {})
    except yaml.YAMLError as error:
        raise UserError(f"{file}: no YAML: {error}") from None
    except ValidationError as error:
        raise UserError(f"{file}: {'; '.join(map(_explain, error.errors()))}") from None
    names = [schedule.name for schedule in found.schedules]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise UserError(f"{file}: two schedules are named {', '.join(sorted(twice))}")
    for schedule in found.schedules:
        schedule.run_settings()
        schedule.in_utc(datetime.now(UTC))
    return found


def _explain(problem: Any) -> str:
    """What is wrong in the file, where, and what may stand there."""
    *where, last = problem["loc"] or ("the file",)
    place, said = ".".join(map(str, (*where, last))), str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        keys = Schedule.model_fields if where else Schedules.model_fields
        return f"{place}: unknown; one of: {', '.join(sorted(keys))}"
    if problem["type"] == "model_type":
        keys = Schedule.model_fields if problem["loc"] else Schedules.model_fields
        return f"{place}: write a mapping of {', '.join(sorted(keys))}"
    return f"{place}: {said}"


@dataclass(frozen=True)
class Wanted:
    """A schedule as the API is to have it; the digest tells whether it has."""

    schedule: Schedule
    cron: str
    package: str
    digest: str

    @classmethod
    def of(cls, schedule: Schedule, moment: datetime, account: str, unpinned: bool = False) -> Wanted:
        """What a schedule asks for at a moment: its compiled pipeline, parameters, account, and cron in UTC.

        Raises:
            UserError: the image is not pinned by digest.
        """
        settings = schedule.run_settings()
        cron = schedule.in_utc(moment)
        with compiled(schedule.pipeline, settings, unpinned) as package:
            text = package.read_text(encoding="utf-8")
        # As data: the compiler's comments name the parameters in whatever order.
        documents = list(yaml.safe_load_all(text))
        content = [documents, parameters(schedule.pipeline, settings), cron, schedule.catch_up, schedule.concurrency]
        content.append(account)
        return cls(schedule, cron, text, hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16])

    @property
    def description(self) -> str:
        """What marks the recurring run as ours and as this one."""
        return f"{MARK} {self.schedule.name} {self.digest}"

    def matches(self, recurring: Any) -> bool:
        """Whether a recurring run is what is asked for; whether it is enabled is another question.

        The cron, catch-up and concurrency are compared themselves: someone may have written a description by hand.
        """
        trigger = recurring.trigger.cron_schedule if recurring.trigger else None
        return bool(
            recurring.description == self.description
            and trigger is not None
            and trigger.cron == self.cron
            and bool(recurring.no_catchup) is not self.schedule.catch_up
            and int(recurring.max_concurrency or 1) == self.schedule.concurrency
        )


@dataclass(frozen=True)
class Change:
    """What `apply` does about one schedule: create, replace, enable, disable, delete, or nothing (unchanged, wait)."""

    name: str
    action: str
    why: str
    wanted: Wanted | None
    kept: Any | None
    others: tuple[Any, ...]


def schedule_of(recurring: Any) -> str | None:
    """The schedule that a recurring run of ours belongs to."""
    said = (recurring.description or "").removeprefix(MARK).split()
    return said[0] if (recurring.description or "").startswith(f"{MARK} ") and len(said) == 2 else None


def plan(cluster: Cluster, schedules: Schedules, moment: datetime | None = None) -> list[Change]:
    """What has to be done so that the cluster has these schedules, and no other of ours in the experiment."""
    present: dict[str, list[Any]] = {}
    for recurring in cluster.recurring_runs():
        name = schedule_of(recurring)
        if name is not None:
            present.setdefault(name, []).append(recurring)
    now = moment or datetime.now(UTC)
    wanted = [Wanted.of(one, now, cluster.account, cluster.unpinned) for one in schedules.schedules]
    changes = [_change(one, present.pop(one.schedule.name, [])) for one in wanted]
    if any(change.others for change in changes):
        running = {run.recurring_run_id: run.run_id for run in _in_progress(cluster) if run.recurring_run_id}
        changes = [_after(running, change) for change in changes]
    gone = (Change(name, "delete", "not in the file", None, None, tuple(found)) for name, found in present.items())
    return [*changes, *gone]


def _change(wanted: Wanted, present: list[Any]) -> Change:
    name, enabled = wanted.schedule.name, wanted.schedule.enabled
    fitting = sorted((one for one in present if wanted.matches(one)), key=lambda one: one.status != ENABLED)
    kept = fitting[0] if fitting else None
    others = tuple(one for one in present if one is not kept)
    if kept is None:
        action, why = ("replace", _difference(wanted, present[0])) if present else ("create", f"cron {wanted.cron} UTC")
    elif others:
        action, why = "replace", "a change that was cut off"
    elif (kept.status == ENABLED) is not enabled:
        action, why = ("enable", "it was paused") if enabled else ("disable", "enabled: false")
    else:
        action, why = "unchanged", f"cron {wanted.cron} UTC"
    return Change(name, action, why, wanted, kept, others)


def _after(running: Mapping[str, str], change: Change) -> Change:
    """The change, or that it waits for a run in progress of what it would take away.

    Args:
        running: A run in progress of each recurring run that has one.
        change: As it would be without.
    """
    found = [running[one.recurring_run_id] for one in change.others if one.recurring_run_id in running]
    return replace(change, action=WAIT, why=f"run {found[0]} is in progress; apply again after it") if found else change


def _difference(wanted: Wanted, old: Any) -> str:
    cron = old.trigger.cron_schedule.cron if old.trigger and old.trigger.cron_schedule else "none"
    if cron != wanted.cron:
        return f"cron {cron} becomes {wanted.cron} UTC"
    return "pipeline, parameters, account, catch-up or concurrency changed"


def apply(cluster: Cluster, changes: list[Change]) -> None:
    """Do what was planned; what is as it should be, or has to wait, is left alone."""
    client = cluster.client
    for change in changes:
        if change.action == WAIT:
            continue
        wanted = change.wanted
        kept: Any = _create(cluster, wanted) if wanted is not None and change.kept is None else change.kept
        for other in change.others:
            if other.status == ENABLED:
                cluster.call(client.disable_recurring_run, other.recurring_run_id)
        if wanted is not None and (kept.status == ENABLED) is not wanted.schedule.enabled:
            switch = client.enable_recurring_run if wanted.schedule.enabled else client.disable_recurring_run
            cluster.call(switch, kept.recurring_run_id)
        for other in change.others:
            cluster.delete_recurring_run(other.recurring_run_id)


def _create(cluster: Cluster, wanted: Wanted) -> Any:
    """A recurring run as asked for, disabled."""
    schedule = wanted.schedule
    with tempfile.TemporaryDirectory(prefix="tandem-") as folder:
        package = Path(folder) / "pipeline.yaml"
        package.write_text(wanted.package, encoding="utf-8")
        return cluster.call(
            cluster.client.create_recurring_run,
            cluster.experiment_id,
            schedule.name,
            description=wanted.description,
            cron_expression=wanted.cron,
            max_concurrency=schedule.concurrency,
            no_catchup=not schedule.catch_up,
            params=parameters(schedule.pipeline, schedule.run_settings()),
            pipeline_package_path=str(package),
            enabled=False,
            service_account=cluster.account,
        )


def pause(cluster: Cluster, name: str) -> int:
    """Disable a schedule's recurring runs until the next `apply`; how many there were.

    Raises:
        UserError: the cluster has none of this name.
    """
    found = [one for one in cluster.recurring_runs() if schedule_of(one) == name]
    if not found:
        raise UserError(f"the cluster has no schedule '{name}'; see tandem schedule list")
    for one in found:
        cluster.call(cluster.client.disable_recurring_run, one.recurring_run_id)
    return len(found)


def run_now(cluster: Cluster, schedule: Schedule) -> str:
    """Start one run of a schedule at once; its id.

    Raises:
        UserError: as many of its runs as may be are in progress.
    """
    ours = {one.recurring_run_id for one in cluster.recurring_runs() if schedule_of(one) == schedule.name}
    label = f"{schedule.name} now"
    busy = [run for run in _in_progress(cluster) if run.recurring_run_id in ours or run.display_name == label]
    if len(busy) >= schedule.concurrency:
        raise UserError(f"schedule '{schedule.name}': run {busy[0].run_id} is in progress; wait for its end")
    return cluster.start(label, schedule.pipeline, schedule.run_settings())


def _in_progress(cluster: Cluster) -> Iterator[Any]:
    return (run for run in cluster.runs() if run.state not in ENDED)


def describe(cluster: Cluster, tell: Callable[[dict[str, Any]], None]) -> None:
    """Tell of each of our recurring runs."""
    for one in cluster.recurring_runs():
        name = schedule_of(one)
        if name is not None:
            cron = one.trigger.cron_schedule.cron if one.trigger and one.trigger.cron_schedule else None
            tell({"name": name, "status": one.status, "cron": cron, "recurring_run_id": one.recurring_run_id})
