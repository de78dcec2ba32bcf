"""Look at and move the registered models: `tandem registry …`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from pipelines.commands.options import Workdir, enter

app = typer.Typer(help="Look at and move the registered models.", no_args_is_help=True)

Meant = Annotated[str, typer.Option(help="Data set whose models are meant.")]


@app.command()
def history(dataset: Meant = "sample", workdir: Workdir = None) -> None:
    """Print every move of the champion alias, oldest first, as JSON lines."""
    enter(workdir)
    from components.registry.client import history as moves

    for move in moves(dataset):
        print(json.dumps(move))


@app.command()
def rollback(
    dataset: Meant = "sample",
    to: Annotated[str | None, typer.Option(help="An earlier champion's version. [default: the one before]")] = None,
    workdir: Workdir = None,
) -> None:
    """Give the champion alias back to the version that held it before."""
    enter(workdir)
    from components.registry.client import rollback as roll

    print(json.dumps(roll(dataset, to)))
