"""The command `tandem`. Heavy packages are imported only by the commands that need them."""

from __future__ import annotations

import json
import os
import sys
import traceback
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from components.dataset.errors import UserError, ValidationStoppedError
from pipelines.schedule_cli import ACCOUNT, Account, Host, Namespace, Unpinned
from pipelines.schedule_cli import app as schedule_app

if TYPE_CHECKING:
    from pipelines.settings import RunSettings

app = typer.Typer(
    name="tandem",
    help="Train click-through-rate models that have learnt from a language model, and serve them without it.\n\n"
    "Begin with: tandem run --dataset sample",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class PipelineName(StrEnum):
    """What can be compiled."""

    TRAINING = "training"
    MATERIALIZE = "materialize"


class MethodName(StrEnum):
    """What the collaborative model learns from before it learns from clicks."""

    COLLABORATIVE = "collaborative"
    CTRL = "ctrl"
    FLIP = "flip"
    SRP4CTR = "srp4ctr"
    SRP4CTR_CTRL = "srp4ctr+ctrl"


class PartName(StrEnum):
    """A part of the rows that no training reads."""

    VALID = "valid"
    TEST = "test"


Workdir = Annotated[
    Path | None,
    typer.Option(help="Folder of all state: runs, registry, online store, caches. [default: $TANDEM_HOME or .tandem]"),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A setting, such as align.temperature=0.1; may be repeated."),
]
Every = Annotated[float, typer.Option(help="Seconds between looks at the registry.", min=0.1)]
Config = Annotated[Path | None, typer.Option(help="YAML file of settings, with the keys that --set takes.")]
Backbone = Annotated[
    str | None,
    typer.Option(
        help="autoint, dcn, dcnv2, deepfm, fibinet, pnn, wide_deep or xdeepfm; with history autoint_history, bst, din, "
        "mean_history or srp4ctr. [default: autoint; srp4ctr for its method]"
    ),
]


Window = Annotated[
    str | None,
    typer.Option(help="Impressions it learns from: since-last-success, since-champion, or START/END. [default: all]"),
]
Nodes = Annotated[
    int | None,
    typer.Option(
        help="Machines on which align and finetune train together, as Kubeflow TrainJobs. [default: 1]", min=1
    ),
]
WarmStart = Annotated[bool | None, typer.Option(help="Begin with the champion's weights. [default: no]")]


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"tandem {version('tandem-ctr')}")
        raise typer.Exit


@app.callback()
def _root(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """The options that stand before a command."""


def _enter(workdir: Path | None) -> None:
    if workdir is not None:
        os.environ["TANDEM_HOME"] = str(workdir.absolute())


def _settings(config: Path | None, assignments: list[str] | None, **flags: Any) -> RunSettings:
    from pipelines.settings import parse_settings

    given = {name: value for name, value in flags.items() if value is not None}
    nodes = given.pop("nodes", None)
    together = [f"{step}.nodes={nodes}" for step in ("align", "finetune") if nodes]
    return parse_settings(_config(config) | given, [*together, *(assignments or [])])


def _config(config: Path | None) -> dict[str, Any]:
    import yaml

    content: dict[str, Any] = {}
    if config is not None:
        if not config.is_file():
            raise UserError(f"--config {config}: no such file")
        content = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
        if not isinstance(content, dict):
            raise UserError(f"--config {config}: write a mapping of settings, such as 'align: {{temperature: 0.1}}'")
    return content


@app.command()
def run(
    dataset: Annotated[str, typer.Option(help="Embedded data set or path of a DatasetSpec (YAML).")] = "sample",
    method: Annotated[MethodName, typer.Option(help="What the candidate is trained with.")] = MethodName.CTRL,
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
    _enter(workdir)
    chosen = {"method": method.value, "backbone": backbone, "seed": seed, "window": window, "warm_start": warm_start}
    settings = _settings(config, assignments, dataset=dataset, run_id=run_id, **chosen)
    from pipelines.local import run_locally

    result = run_locally(settings)
    if as_json:
        print(json.dumps(result.to_json(), allow_nan=False))
    else:
        from pipelines.summary import show

        show(result)


@app.command()
def plan(
    dataset: Annotated[str, typer.Option(help="Embedded data set or path of a DatasetSpec (YAML).")] = "sample",
    method: Annotated[MethodName, typer.Option(help="What the candidate is trained with.")] = MethodName.CTRL,
    backbone: Backbone = None,
    window: Window = None,
    warm_start: WarmStart = None,
    assignments: Assignments = None,
    config: Config = None,
    workdir: Workdir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as one JSON object on one line.")] = False,
) -> None:
    """Say what the next run would do, before it does it: its rows, texts to encode, time, and the champion to beat."""
    _enter(workdir)
    chosen = {"method": method.value, "backbone": backbone, "window": window, "warm_start": warm_start}
    settings = _settings(config, assignments, dataset=dataset, **chosen)
    from pipelines.plan import plan as make

    found = make(settings)
    if as_json:
        print(json.dumps(found.to_json(), ensure_ascii=False, allow_nan=False))
        return
    from pipelines.summary import show_plan

    show_plan(found)


@app.command()
def compare(
    dataset: Annotated[str, typer.Option(help="Embedded data set or path of a DatasetSpec (YAML).")] = "sample",
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
    _enter(workdir)
    from pipelines.arms import pick_arms
    from pipelines.compare import Request, compare
    from pipelines.settings import assigned

    request = Request(
        dataset=dataset,
        arms=tuple(pick_arms(_names(arms), arms_file)),
        backbones=tuple(_names(backbones)),
        seeds=tuple(range(1, seeds + 1)),
        common=assigned(_config(config), assignments or []),
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


@app.command(name="compile")
def compile_pipeline(
    output: Annotated[Path, typer.Argument(metavar="OUT.yaml", help="File to write.")],
    pipeline: Annotated[PipelineName, typer.Option(help="Which pipeline.")] = PipelineName.TRAINING,
    dataset: Annotated[str, typer.Option(help="Default of the pipeline's parameter 'dataset'.")] = "sample",
    method: Annotated[MethodName, typer.Option(help="What the candidate is trained with.")] = MethodName.CTRL,
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
    settings = _settings(config, assignments, dataset=dataset, **chosen)
    from kfp import compiler

    from components.image import TRAIN_IMAGE
    from components.run import aside
    from pipelines.materialize import materialize_pipeline
    from pipelines.policy import check_pinned
    from pipelines.training import training_pipeline

    if not unpinned:
        check_pinned(TRAIN_IMAGE)
    made = (
        training_pipeline(settings)
        if pipeline is PipelineName.TRAINING
        else materialize_pipeline(settings.dataset, settings.checks)
    )
    with aside(output.absolute()) as draft:
        written = draft.with_suffix(".yaml")
        compiler.Compiler().compile(made, str(written))
        written.replace(draft)
    print(output)


@app.command()
def submit(
    dataset: Annotated[str, typer.Option(help="Embedded data set or path of a DatasetSpec (YAML).")] = "sample",
    pipeline: Annotated[PipelineName, typer.Option(help="Which pipeline.")] = PipelineName.TRAINING,
    method: Annotated[MethodName, typer.Option(help="What the candidate is trained with.")] = MethodName.CTRL,
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
    settings = _settings(config, assignments, dataset=dataset, **chosen)
    from pipelines.cluster import Cluster, failing_step

    cluster = Cluster(host, namespace, experiment, account, unpinned)
    run_id = cluster.start(f"{pipeline.value} {settings.dataset}", pipeline.value, settings)
    print(run_id, flush=True)
    if follow:
        run = cluster.follow(run_id, seconds, lambda line: print(line, file=sys.stderr))
        if run.state != "SUCCEEDED":
            raise RuntimeError(f"run {run_id} {run.state.lower()}: {failing_step(run)}")


@app.command()
def materialize(
    dataset: Annotated[str, typer.Option(help="Embedded data set or path of a DatasetSpec (YAML).")] = "sample",
    end: Annotated[str, typer.Option(help="Moment as of which values are taken; now if not given or later.")] = "",
    full: Annotated[bool, typer.Option("--full", help="Write every key, and not only what has changed.")] = False,
    workdir: Workdir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object on one line.")] = False,
) -> None:
    """Bring the online features up to the sources, and print how old the data are.

    Only what has changed is written; what was interrupted is finished; what was written is read back.
    """
    _enter(workdir)
    from pipelines.local import materialize_locally

    report = materialize_locally(dataset, end, full)
    if as_json:
        print(json.dumps(report, allow_nan=False))
    else:
        from pipelines.summary import show_views

        show_views(report)


Served = Annotated[
    Path | None, typer.Option("--log", help="The service's log folder. [default: served/<data set> of the workdir]")
]


@app.command()
def push(
    events: Annotated[
        Path | None, typer.Argument(metavar="EVENTS.jsonl", help="JSON lines, '-' for standard input.", allow_dash=True)
    ] = None,
    dataset: Annotated[str, typer.Option(help="Embedded data set or path of a DatasetSpec (YAML).")] = "sample",
    follow: Annotated[bool, typer.Option("--follow", help="Push what callers of the service report, as it comes.")] = (
        False
    ),
    log: Served = None,
    every: Annotated[float, typer.Option(help="With --follow: seconds between looks at the log.", min=0.05)] = 0.5,
    beside: Annotated[int | None, typer.Option(hidden=True)] = None,
    workdir: Workdir = None,
) -> None:
    """Put events that have just happened into the online histories of their users.

    A line: {"user_id": "u1", "item_id": "i1", "label": 1, "event_timestamp": "2026-05-31T18:30:00Z", "context": {}}
    """
    _enter(workdir)
    if follow:
        from pipelines.service import push_feedback

        push_feedback(dataset, log, every, beside)
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


@app.command()
def data(
    name: Annotated[str, typer.Argument(help="ml-1m, ml-100k or sample.")],
    archive: Annotated[Path | None, typer.Option("--from", help="ZIP at hand; downloaded where none is given.")] = None,
) -> None:
    """Bring a public data set into place, for `tandem run --dataset movielens-1m` and the like."""
    from components.dataset import sample
    from components.dataset.movielens import import_movielens
    from components.run import data_home

    if name == "sample":
        print(sample.ensure(data_home() / "sample"))
        return
    from pipelines.summary import download_bar

    with download_bar(name) as advance:
        print(import_movielens(name, archive, data_home() / name, advance))


@app.command()
def init(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the data set, such as shop.")],
    impressions: Annotated[str, typer.Option(help="The log: CSV, Parquet or JSON lines, packed or not.")],
    users: Annotated[str | None, typer.Option(help="Table of the users, if there is one.")] = None,
    items: Annotated[str | None, typer.Option(help="Table of the items, if there is one.")] = None,
    user: Annotated[str | None, typer.Option(help="Column of the user's key. [default: guessed]")] = None,
    item: Annotated[str | None, typer.Option(help="Column of the item's key. [default: guessed]")] = None,
    label: Annotated[str | None, typer.Option(help="Column of the label. [default: guessed]")] = None,
    timestamp: Annotated[str | None, typer.Option(help="Column of the moment. [default: guessed]")] = None,
    output: Annotated[Path | None, typer.Option(help="File to write. [default: NAME.yaml]")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file if it is there.")] = False,
) -> None:
    """Look at your files and propose a DatasetSpec, each guess explained; warn of leaking and useless columns."""
    from components.dataset.draft import written
    from components.dataset.propose import Chosen, propose
    from components.run import aside

    path = output or Path(f"{name}.yaml")
    if path.exists() and not force:
        raise UserError(f"{path}: exists; write --force to overwrite it, or --output FILE")
    proposal = propose(name, impressions, users, items, Chosen(user, item, label, timestamp))
    text = written(proposal, path)
    with aside(path.absolute()) as draft:
        draft.write_text(text, encoding="utf-8")
    for warning in proposal.warnings:
        print(f"look at {warning}")
    print(f"{path}: written. Next: tandem check {path}, then tandem run --dataset {path}")


@app.command()
def check(
    dataset: Annotated[str, typer.Argument(metavar="FILE.yaml", help="DatasetSpec, or name of an embedded data set.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as one JSON object.")] = False,
) -> None:
    """Say everything that is wrong with a DatasetSpec and its files at once, with what to write instead.

    Exit code 0: it can be run, whatever the warnings. 2: it cannot.
    """
    from pipelines.check import check_dataset

    checked = check_dataset(dataset)
    if as_json:
        findings = [vars(finding) for finding in checked.findings]
        print(json.dumps({"dataset": dataset, "errors": checked.errors, "findings": findings}, ensure_ascii=False))
    else:
        for finding in checked.findings:
            print(finding)
        warnings = len(checked.findings) - checked.errors
        print(f"{dataset}: {checked.errors} errors, {warnings} warnings" if checked.findings else f"{dataset}: sound")
    raise typer.Exit(2 if checked.errors else 0)


@app.command()
def certify(
    dataset: Annotated[str, typer.Option(help="Embedded data set or path of a DatasetSpec (YAML).")] = "sample",
    at: Annotated[
        datetime | None, typer.Option(help="Moment in UTC that divides past and future. [default: the end of train]")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="File of the certificate (JSON).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the certificate as one JSON object.")] = False,
    workdir: Workdir = None,
) -> None:
    """Change, delete and add everything from a moment on, and show that no training row before it changes.

    Exit code 0: the certificate holds. 3: a row before the moment changed, which is a leak. 2: the input is wrong.
    """
    _enter(workdir)
    from pipelines.certify import certify as make

    certificate, path = make(dataset, at.replace(tzinfo=UTC) if at else None, output)
    if as_json:
        print(json.dumps(certificate.to_json(), ensure_ascii=False, allow_nan=False))
    else:
        from pipelines.summary import show_certificate

        show_certificate(certificate, path)
    raise typer.Exit(0 if certificate.verdict == "holds" else 3)


@app.command()
def serve(
    dataset: Annotated[str | None, typer.Option(help="Data set whose model is served. [default: the latest]")] = None,
    workdir: Workdir = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 3000,
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
    _enter(workdir)
    from pipelines.service import start

    start(dataset, host, port, assignments or [], every, push)


@app.command()
def follow(
    dataset: Annotated[str, typer.Option(help="Data set whose models are followed.")],
    to: Annotated[Path, typer.Option(help="Folder of the models; a service's TANDEM_SERVE_MODELS.")],
    version: Annotated[str | None, typer.Option(help="A version that is wanted whatever the aliases say.")] = None,
    every: Every = 10.0,
    beside: Annotated[int | None, typer.Option(hidden=True)] = None,
    workdir: Workdir = None,
) -> None:
    """Keep a folder what the registry's aliases say, for a service that knows no MLflow: on a cluster, a sidecar."""
    _enter(workdir)
    from pipelines.service import follow

    follow(dataset, to, every, version, beside)


app.add_typer(schedule_app, name="schedule")


@app.command()
def monitor(
    dataset: Annotated[str, typer.Option(help="Data set whose service is meant.")] = "sample",
    log: Served = None,
    delay: Annotated[float, typer.Option(help="Hours after which an item without a click counts as one.")] = 1.0,
    recent: Annotated[float, typer.Option(help="Hours whose features are held against the training set.")] = 24.0,
    replay: Annotated[int, typer.Option(help="Served rows that are replayed through the offline join.", min=0)] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    workdir: Workdir = None,
) -> None:
    """Judge what was served: AUC and calibration by hour, drift by feature, degraded answers, and skew."""
    _enter(workdir)
    from pipelines.monitoring import judge, show

    found = judge(dataset, log, delay, recent, replay)
    print(json.dumps(found)) if as_json else show(found)


@app.command()
def explain(
    request_id: Annotated[str, typer.Argument(metavar="REQUEST_ID", help="The request_id of a response.")],
    dataset: Annotated[str, typer.Option(help="Data set whose service is meant.")] = "sample",
    item: Annotated[str | None, typer.Option(help="One item of the request. [default: all]")] = None,
    log: Served = None,
    workdir: Workdir = None,
) -> None:
    """Rebuild a served score offline, as JSON: from the logged features and from the offline store, and feature by
    feature how far it falls without.
    """
    _enter(workdir)
    from pipelines.monitoring import rebuild

    print(json.dumps(rebuild(dataset, log, request_id, item), ensure_ascii=False, indent=2))


registry = typer.Typer(help="Look at and move the registered models.", no_args_is_help=True)
app.add_typer(registry, name="registry")


@registry.command()
def history(
    dataset: Annotated[str, typer.Option(help="Data set whose models are meant.")] = "sample", workdir: Workdir = None
) -> None:
    """Print every move of the champion alias, oldest first, as JSON lines."""
    _enter(workdir)
    from components.registry.client import history as moves

    for move in moves(dataset):
        print(json.dumps(move))


@registry.command()
def rollback(
    dataset: Annotated[str, typer.Option(help="Data set whose models are meant.")] = "sample", workdir: Workdir = None
) -> None:
    """Give the champion alias back to the version that held it before."""
    _enter(workdir)
    from components.registry.client import rollback as roll

    print(json.dumps(roll(dataset)))


def main() -> None:
    """Run the command line and leave with the exit code that fits."""
    try:
        app()
    except UserError as error:
        _leave(f"error: {error}", 2)
    except ValidationStoppedError as error:
        _leave(f"validation stopped the run: {error}", 3)
    except Exception as error:  # the last resort: a message, and the traceback for those who want it
        if os.environ.get("TANDEM_DEBUG"):
            traceback.print_exc()
        _leave(f"failed: {error} (set TANDEM_DEBUG=1 for the traceback)", 1)


def _leave(message: str, code: int) -> None:
    print(message, file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
