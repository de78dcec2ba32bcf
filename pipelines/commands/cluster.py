"""Hand a pipeline to Kubeflow: `tandem compile` and `submit`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from components.dataset.errors import UserError
from pipelines.commands.options import (
    ACCOUNT,
    Account,
    Assignments,
    Backbone,
    Config,
    Dataset,
    Host,
    Method,
    MethodName,
    Namespace,
    Nodes,
    Pipeline,
    PipelineName,
    Unpinned,
    WarmStart,
    Window,
    settings_of,
)

app = typer.Typer()


@app.command(name="compile")
def compile_pipeline(
    output: Annotated[Path, typer.Argument(metavar="OUT.yaml", help="File to write.")],
    pipeline: Pipeline = PipelineName.TRAINING,
    dataset: Annotated[str, typer.Option(help="Default of the pipeline's parameter 'dataset'.")] = "sample",
    method: Method = MethodName.CTRL,
    backbone: Backbone = None,
    window: Window = None,
    warm_start: WarmStart = None,
    nodes: Nodes = None,
    assignments: Assignments = None,
    config: Config = None,
    image: Annotated[
        str | None, typer.Option(help="Image of the steps, NAME@sha256:DIGEST. [default: $TANDEM_TRAIN_IMAGE]")
    ] = None,
    unpinned: Annotated[bool, typer.Option(help="Take an image without a digest; not for a cluster.")] = False,
) -> None:
    """Compile a pipeline to Kubeflow's IR YAML; settings become the defaults of its parameters."""
    if image is not None:
        os.environ["TANDEM_TRAIN_IMAGE"] = image  # components read it when they are defined
    if output.suffix not in {".yaml", ".yml"}:
        raise UserError(f"{output}: the compiled pipeline is YAML; write a name that ends in .yaml")
    chosen = {"method": method.value, "backbone": backbone, "window": window, "warm_start": warm_start, "nodes": nodes}
    settings = settings_of(config, assignments, dataset=dataset, **chosen)
    from kfp import compiler

    from components.image import TRAIN_IMAGE
    from components.run import aside
    from pipelines.cluster import pipeline_of
    from pipelines.policy import check_pinned

    if not unpinned:
        check_pinned(TRAIN_IMAGE)
    made = pipeline_of(pipeline.value, settings)
    with aside(output.absolute()) as draft:
        written = draft.with_suffix(".yaml")
        compiler.Compiler().compile(made, str(written))
        written.replace(draft)
    print(output)


@app.command()
def submit(
    dataset: Dataset = "sample",
    pipeline: Pipeline = PipelineName.TRAINING,
    method: Method = MethodName.CTRL,
    backbone: Backbone = None,
    window: Window = None,
    warm_start: WarmStart = None,
    nodes: Nodes = None,
    assignments: Assignments = None,
    config: Config = None,
    experiment: Annotated[str, typer.Option(help="Experiment that the run belongs to.")] = "tandem",
    host: Host = None,
    namespace: Namespace = None,
    account: Account = ACCOUNT,
    unpinned: Unpinned = False,
    follow: Annotated[bool, typer.Option(help="Wait for the run's end, and print its tasks as they go.")] = True,
    seconds: Annotated[float, typer.Option(help="Between two looks at the run.", min=0.01)] = 10.0,
) -> None:
    """Start one run on Kubeflow Pipelines, print its id, and follow it; a run that fails is a fault (exit code 1)."""
    chosen = {"method": method.value, "backbone": backbone, "window": window, "warm_start": warm_start, "nodes": nodes}
    settings = settings_of(config, assignments, dataset=dataset, **chosen)
    from components.image import TRAIN_IMAGE
    from pipelines.cluster import Cluster, failing_step, steps_of
    from pipelines.exit_handler import task_names
    from pipelines.policy import check_pinned

    # All that is known beforehand is said before anything is made there.
    tasks = dict(task_names(steps_of(pipeline.value, settings)))
    if not unpinned:
        check_pinned(TRAIN_IMAGE)
    cluster = Cluster(host, namespace, experiment, account, unpinned)
    run_id = cluster.start(f"{pipeline.value} {settings.dataset}", pipeline.value, settings)
    print(run_id, flush=True)
    if follow:
        run = cluster.follow(run_id, tasks, seconds, lambda line: print(line, file=sys.stderr))
        if run.state != "SUCCEEDED":
            raise RuntimeError(f"run {run_id} {run.state.lower()}: {failing_step(run, tasks)}")
