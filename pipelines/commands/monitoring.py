"""Judge and explain what was served: `tandem monitor` and `explain`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from pipelines.commands.options import Log, ServedBy, Workdir, enter

app = typer.Typer()


@app.command()
def monitor(
    dataset: ServedBy = "sample",
    log: Log = None,
    delay: Annotated[float, typer.Option(help="Hours after which an item without a click counts as one.")] = 1.0,
    recent: Annotated[float, typer.Option(help="Hours whose features are held against the training set.")] = 24.0,
    replay: Annotated[int, typer.Option(help="Served rows that are replayed through the offline join.", min=0)] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    workdir: Workdir = None,
) -> None:
    """Judge what was served: AUC and calibration by hour, drift by feature, degraded answers, and skew."""
    enter(workdir)
    from pipelines.monitoring import judge, show

    found = judge(dataset, log, delay, recent, replay)
    print(json.dumps(found)) if as_json else show(found)


@app.command()
def explain(
    request_id: Annotated[str, typer.Argument(metavar="REQUEST_ID", help="The request_id of a response.")],
    dataset: ServedBy = "sample",
    item: Annotated[str | None, typer.Option(help="One item of the request. [default: all]")] = None,
    log: Log = None,
    workdir: Workdir = None,
) -> None:
    """Rebuild a served score offline, as JSON: from the logged features and from the offline store, and feature by
    feature how far it falls without.
    """
    enter(workdir)
    from pipelines.monitoring import rebuild

    print(json.dumps(rebuild(dataset, log, request_id, item), ensure_ascii=False, indent=2))
