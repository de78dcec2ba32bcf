"""Bring the online features up to date: `tandem materialize` and `push`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from components.dataset.errors import UserError
from pipelines.commands.options import Beside, Dataset, Log, Workdir, enter

app = typer.Typer()


@app.command()
def materialize(
    dataset: Dataset = "sample",
    end: Annotated[str, typer.Option(help="Moment as of which values are taken; now if not given or later.")] = "",
    full: Annotated[bool, typer.Option("--full", help="Write every key, and not only what has changed.")] = False,
    rows: Annotated[
        bool, typer.Option("--rows", help="Give users and items that training never showed rows in the champion.")
    ] = False,
    workdir: Workdir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object on one line.")] = False,
) -> None:
    """Bring the online features up to the sources, and print how old the data are.

    Only what has changed is written; what was interrupted is finished; what was written is read back. With --rows a
    champion with a map of rows (finetune.map_rows) gains a row for each user and item that is new to it, made of its
    text: a new version, which a running service takes up.
    """
    enter(workdir)
    from pipelines.local import materialize_locally

    report, added = materialize_locally(dataset, end, full, rows)
    if as_json:
        print(json.dumps(report | ({"rows": added} if added else {}), allow_nan=False))
        return
    from pipelines.summary import show_rows, show_views

    show_views(report)
    if added:
        show_rows(added)


@app.command()
def push(
    events: Annotated[
        Path | None, typer.Argument(metavar="EVENTS.jsonl", help="JSON lines, '-' for standard input.", allow_dash=True)
    ] = None,
    dataset: Dataset = "sample",
    follow: Annotated[bool, typer.Option("--follow", help="Push what callers of the service report, as it comes.")] = (
        False
    ),
    log: Log = None,
    models: Annotated[
        Path | None,
        typer.Option(help="With --follow: folder that 'tandem follow' keeps; its champion says which data set it is."),
    ] = None,
    every: Annotated[float, typer.Option(help="With --follow: seconds between looks at the log.", min=0.05)] = 0.5,
    alive: Annotated[
        Path | None, typer.Option(help="With --follow: file that is touched after each look, for a probe.")
    ] = None,
    beside: Beside = None,
    workdir: Workdir = None,
) -> None:
    """Put events that have just happened into the online histories of their users.

    A line: {"user_id": "u1", "item_id": "i1", "label": 1, "event_timestamp": "2026-05-31T18:30:00Z", "context": {}}
    """
    enter(workdir)
    if follow:
        from pipelines.service import push_feedback

        push_feedback(dataset, models, log, every, beside, alive)
        return
    from components.dataset.catalog import load_spec
    from feature_repo.live import push_events, read_events
    from feature_repo.store import open_store

    if events is None:
        raise UserError("push: name a file of events, '-' for standard input, or --follow")
    if str(events) != "-" and not events.is_file():
        raise UserError(f"{events}: no such file")
    spec = load_spec(dataset)
    lines = sys.stdin if str(events) == "-" else events.read_text(encoding="utf-8").splitlines()
    print(f"{push_events(open_store(spec), spec, read_events(lines))} users written")
