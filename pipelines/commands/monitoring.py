"""Judge and explain what was served: `tandem monitor` and `explain`."""

from __future__ import annotations

import json
import sys
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
    hours: Annotated[float | None, typer.Option(help="Hours of the log that are judged. [default: all]")] = None,
    replay: Annotated[int, typer.Option(help="Served rows that are replayed through the offline join.", min=0)] = 1000,
    max_psi: Annotated[float | None, typer.Option(help="The most that any feature's PSI may be.")] = None,
    max_degraded: Annotated[
        float | None, typer.Option(help="The most that the share of degraded answers may be.")
    ] = None,
    max_mismatches: Annotated[
        int | None, typer.Option(help="Replayed rows of a feature that may differ offline.")
    ] = None,
    min_auc: Annotated[float | None, typer.Option(help="The least that the AUC within hours may be.")] = None,
    calibration: Annotated[
        tuple[float, float] | None, typer.Option(help="The least and the most that the calibration may be.")
    ] = None,
    min_rows: Annotated[int, typer.Option(help="Judged rows below which AUC and calibration break no limit.")] = 1000,
    min_each: Annotated[int, typer.Option(help="The same of clicks, and of rows without one.")] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    workdir: Workdir = None,
) -> None:
    """Judge what was served: AUC and calibration by hour, drift by feature, degraded answers, and skew.

    What lies beyond a limit is named, and the command then exits with 3. AUC and calibration of too few rows are named
    as such and break none.
    """
    enter(workdir)
    from pipelines.monitoring import Limits, Span, breaches, judge, show, too_few

    found = judge(dataset, log, Span(delay, recent, hours), replay)
    limits = Limits(max_psi, max_degraded, max_mismatches, min_auc, calibration, min_rows, min_each)
    beyond, wanting = breaches(found, limits), too_few(found, limits)
    print(json.dumps({**found, "beyond": beyond, "too_few": wanting})) if as_json else show(found)
    for name, counts in wanting.items():
        print(f"too few for a limit of {name}: {counts}", file=sys.stderr)
    for line in beyond:
        print(line, file=sys.stderr)
    raise typer.Exit(3 if beyond else 0)


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
