"""Train here: `tandem run`, `plan` and `compare`."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.options import (
    Assignments,
    Backbone,
    Config,
    Dataset,
    Method,
    MethodName,
    WarmStart,
    Window,
    Workdir,
    content_of,
    enter,
    settings_of,
)

app = typer.Typer()


class PartName(StrEnum):
    """A part of the rows that no training reads."""

    VALID = "valid"
    TEST = "test"


@app.command()
def run(
    dataset: Dataset = "sample",
    method: Method = MethodName.CTRL,
    backbone: Backbone = None,
    seed: Annotated[int, typer.Option(help="Seed of initialisation, shuffling and sampling.")] = 1,
    window: Window = None,
    warm_start: WarmStart = None,
    assignments: Assignments = None,
    config: Config = None,
    workdir: Workdir = None,
    run_id: Annotated[str | None, typer.Option(help="Name of the run. [default: the time and four digits]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object on one line.")] = False,
) -> None:
    """Run the training pipeline here: validate, retrieve, align, train, evaluate, gate, register and deploy.

    Exit code 0: done, whatever the gate's verdict. 2: the input is wrong. 3: validation stopped the run. 1: a fault.
    """
    enter(workdir)
    chosen = {"method": method.value, "backbone": backbone, "seed": seed, "window": window, "warm_start": warm_start}
    settings = settings_of(config, assignments, dataset=dataset, run_id=run_id, **chosen)
    from pipelines.local import run_locally

    result = run_locally(settings)
    if as_json:
        print(json.dumps(result.to_json(), allow_nan=False))
    else:
        from pipelines.summary import show

        show(result)


@app.command()
def plan(
    dataset: Dataset = "sample",
    method: Method = MethodName.CTRL,
    backbone: Backbone = None,
    window: Window = None,
    warm_start: WarmStart = None,
    assignments: Assignments = None,
    config: Config = None,
    workdir: Workdir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as one JSON object on one line.")] = False,
) -> None:
    """Say what the next run would do, before it does it: its rows, texts to encode, time, and the champion to beat."""
    enter(workdir)
    chosen = {"method": method.value, "backbone": backbone, "window": window, "warm_start": warm_start}
    settings = settings_of(config, assignments, dataset=dataset, **chosen)
    from pipelines.plan import plan as make

    found = make(settings)
    if as_json:
        print(json.dumps(found.to_json(), ensure_ascii=False, allow_nan=False))
        return
    from pipelines.summary import show_plan

    show_plan(found)


@app.command()
def compare(
    dataset: Dataset = "sample",
    arms: Annotated[str, typer.Option(help="Names of arms, such as collaborative,ctrl,cosine.")] = "collaborative,ctrl",
    arms_file: Annotated[Path | None, typer.Option(help="YAML file of arms of your own, by name.")] = None,
    seeds: Annotated[int, typer.Option(help="Number of seeds: 1, 2, and so on.", min=1, max=1000)] = 5,
    backbones: Annotated[str, typer.Option(help="One or more backbones, such as autoint,dcn.")] = "autoint",
    part: Annotated[
        PartName, typer.Option(help="Where arms are measured: valid to search, test once.")
    ] = PartName.TEST,
    hold_out_items: Annotated[
        float, typer.Option(help="Share of the items kept out of the train part: new ones.", min=0, max=0.9)
    ] = 0.0,
    jobs: Annotated[int, typer.Option(help="Trainings at once, one thread each; 0: one per core.", min=0)] = 0,
    assignments: Assignments = None,
    config: Config = None,
    workdir: Workdir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object on one line.")] = False,
) -> None:
    """Train arms on the same rows and seeds, and print by how much and how surely they differ.

    What is finished is kept: a comparison that was stopped goes on where it was, and a new one trains only what is new.
    """
    enter(workdir)
    from pipelines.arms import pick_arms, pick_backbones
    from pipelines.compare import Request, compare
    from pipelines.settings import assigned

    request = Request(
        dataset=dataset,
        arms=tuple(pick_arms(_names(arms), arms_file)),
        backbones=pick_backbones(_names(backbones)),
        seeds=tuple(range(1, seeds + 1)),
        common=assigned(content_of(config), assignments or []),
        part=part.value,
        jobs=jobs,
        hold_out_items=hold_out_items,
    )
    comparison = compare(request, lambda line: print(line, file=sys.stderr))
    if as_json:
        print(json.dumps(comparison.to_json(), allow_nan=False))
        return
    print(comparison.markdown)
    for name, path in comparison.paths.items():
        print(f"{name:<6}{path}")


def _names(words: str) -> list[str]:
    """The names in a list such as 'a,b'."""
    return [word.strip() for word in words.split(",") if word.strip()]
