"""Serve, and keep what is served up to date: `tandem serve` and `follow`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.options import Assignments, Beside, Every, Workdir, enter

app = typer.Typer()


@app.command()
def serve(
    dataset: Annotated[str | None, typer.Option(help="Data set whose model is served. [default: the latest]")] = None,
    workdir: Workdir = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 3000,
    workers: Annotated[int, typer.Option(help="Processes that answer, each on a core.", min=1, max=64)] = 1,
    assignments: Assignments = None,
    every: Every = 10.0,
    push: Annotated[bool, typer.Option("--push", help="Let what callers report enter online histories at once.")] = (
        False
    ),
) -> None:
    """Serve the champion, and follow the registry: POST /rank, /predict, GET /model, /readyz, /livez, /metrics.

    A setting may also be an environment variable: canary=0.1 is TANDEM_SERVE_CANARY=0.1. The key of the API is
    better not said on a command line: TANDEM_SERVE_API_KEY.
    """
    enter(workdir)
    from pipelines.service import start

    start(dataset, host, port, workers, assignments or [], every, push)


@app.command()
def follow(
    dataset: Annotated[str, typer.Option(help="Data set whose models are followed.")],
    to: Annotated[Path, typer.Option(help="Folder of the models; a service's TANDEM_SERVE_MODELS.")],
    version: Annotated[str | None, typer.Option(help="A version that is wanted whatever the aliases say.")] = None,
    every: Every = 10.0,
    beside: Beside = None,
    workdir: Workdir = None,
) -> None:
    """Keep a folder what the registry's aliases say, for a service that knows no MLflow: on a cluster, a sidecar."""
    enter(workdir)
    from pipelines.service import follow

    follow(dataset, to, every, version, beside)
