"""Bring the cluster's recurring runs to what a file says: `tandem schedule …`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from components.dataset.errors import UserError
from pipelines.commands.options import ACCOUNT, Account, Host, Namespace, Unpinned

if TYPE_CHECKING:
    from pipelines.cluster import Cluster
    from pipelines.schedules import Change, Schedules

app = typer.Typer(help="Bring the cluster's recurring runs to what schedules.yaml says.", no_args_is_help=True)

File = Annotated[Path | None, typer.Option("--file", help="YAML file. [default: the project's own schedules.yaml]")]
Name = Annotated[str, typer.Argument(help="The schedule's name.")]


def _open(
    file: Path | None, host: str | None, namespace: str | None, account: str = ACCOUNT, unpinned: bool = False
) -> tuple[Cluster, Schedules]:
    from pipelines.cluster import Cluster
    from pipelines.schedules import read_schedules

    schedules = read_schedules(file)
    return Cluster(host, namespace, schedules.experiment, account, unpinned), schedules


def _print(changes: list[Change]) -> None:
    for change in changes:
        print(f"{change.action:<10} {change.name}: {change.why}")


@app.command()
def plan(
    file: File = None,
    host: Host = None,
    namespace: Namespace = None,
    account: Account = ACCOUNT,
    unpinned: Unpinned = False,
) -> None:
    """Print what `apply` would do: create, replace, enable, disable, delete, nothing, or wait for a run in progress."""
    from pipelines.schedules import plan as planned

    _print(planned(*_open(file, host, namespace, account, unpinned)))


@app.command()
def apply(
    file: File = None,
    host: Host = None,
    namespace: Namespace = None,
    account: Account = ACCOUNT,
    unpinned: Unpinned = False,
) -> None:
    """Create, replace and delete recurring runs until they are what the file says. To repeat it changes nothing.

    A schedule whose run is in progress is not replaced; that is an error (exit code 2), and the others are applied.
    The controller's cron is in UTC: after a change of clocks in a schedule's time zone, apply again.
    """
    from pipelines.schedules import WAIT
    from pipelines.schedules import apply as applied
    from pipelines.schedules import plan as planned

    cluster, schedules = _open(file, host, namespace, account, unpinned)
    changes = planned(cluster, schedules)
    applied(cluster, changes)
    _print(changes)
    waiting = [change.name for change in changes if change.action == WAIT]
    if waiting:
        raise UserError(f"not yet as the file says: {', '.join(waiting)}; apply again after the runs in progress")


@app.command(name="list")
def list_(file: File = None, host: Host = None, namespace: Namespace = None) -> None:
    """Print the cluster's recurring runs that come from a schedule, as JSON lines."""
    from pipelines.schedules import describe

    describe(_open(file, host, namespace)[0], lambda line: print(json.dumps(line)))


@app.command()
def pause(name: Name, file: File = None, host: Host = None, namespace: Namespace = None) -> None:
    """Let a schedule start no run until the next `apply`; for longer write `enabled: false` in the file."""
    from pipelines.schedules import pause as paused

    paused(_open(file, host, namespace)[0], name)
    print(f"paused {name}")


@app.command(name="run-now")
def run_now(
    name: Name,
    file: File = None,
    host: Host = None,
    namespace: Namespace = None,
    account: Account = ACCOUNT,
    unpinned: Unpinned = False,
) -> None:
    """Start one run of a schedule at once, unless as many of its runs as may be are in progress."""
    from pipelines.schedules import run_now as started

    cluster, schedules = _open(file, host, namespace, account, unpinned)
    print(started(cluster, schedules.named(name)))
