"""What several commands have in common: options, and how they become settings."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from components.dataset.errors import UserError

if TYPE_CHECKING:
    from pipelines.settings import RunSettings


class PipelineName(StrEnum):
    """What can be compiled."""

    TRAINING = "training"
    MATERIALIZE = "materialize"
    MATERIALIZE_ROWS = "materialize+rows"


class MethodName(StrEnum):
    """What the collaborative model learns from before it learns from clicks."""

    COLLABORATIVE = "collaborative"
    CTRL = "ctrl"
    FLIP = "flip"
    SRP4CTR = "srp4ctr"
    SRP4CTR_CTRL = "srp4ctr+ctrl"


Workdir = Annotated[
    Path | None,
    typer.Option(help="Folder of all state: runs, registry, online store, caches. [default: $TANDEM_HOME or .tandem]"),
]

# What is run.
Dataset = Annotated[str, typer.Option(help="Embedded data set or path of a DatasetSpec (YAML).")]
Pipeline = Annotated[PipelineName, typer.Option(help="Which pipeline.")]
Method = Annotated[MethodName, typer.Option(help="What the candidate is trained with.")]
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
WarmStart = Annotated[bool | None, typer.Option(help="Begin with the champion's weights. [default: no]")]
Nodes = Annotated[
    int | None,
    typer.Option(
        help="Machines on which align and finetune train together, as Kubeflow TrainJobs. [default: 1]", min=1
    ),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A setting, such as align.temperature=0.1; may be repeated."),
]
Config = Annotated[Path | None, typer.Option(help="YAML file of settings, with the keys that --set takes.")]

# Where Kubeflow is.
Host = Annotated[
    str | None, typer.Option(help="Address of the Kubeflow Pipelines API. [default: $KF_PIPELINES_ENDPOINT]")
]
Namespace = Annotated[str | None, typer.Option(help="Profile namespace, on a multi-user installation.")]
Account = Annotated[str, typer.Option("--service-account", help="The account of the runs.")]
Unpinned = Annotated[bool, typer.Option(help="Take an image without a digest; its tag must never move.")]
#: What infra/kustomize makes for the runs.
ACCOUNT = "tandem-pipeline"

# Where what was served and reported is.
ServedBy = Annotated[str, typer.Option(help="Data set whose service is meant.")]
Log = Annotated[
    Path | None, typer.Option("--log", help="The service's log folder. [default: served/<data set> of the workdir]")
]
Every = Annotated[float, typer.Option(help="Seconds between looks at the registry.", min=0.1)]
#: The process beside which another one runs, and with which it ends.
Beside = Annotated[int | None, typer.Option(hidden=True)]


def enter(workdir: Path | None) -> None:
    """Let all state of this process and its children lie in a folder."""
    if workdir is not None:
        os.environ["TANDEM_HOME"] = str(workdir.absolute())


def settings_of(config: Path | None, assignments: list[str] | None, **flags: Any) -> RunSettings:
    """The settings of a run: --set goes before a flag, a flag before the file.

    Raises:
        UserError: a setting is unknown or impossible.
    """
    from pipelines.settings import parse_settings

    given = {name: value for name, value in flags.items() if value is not None}
    nodes = given.pop("nodes", None)
    together = [f"{step}.nodes={nodes}" for step in ("align", "finetune") if nodes]
    return parse_settings(content_of(config) | given, [*together, *(assignments or [])])


def content_of(config: Path | None) -> dict[str, Any]:
    """What the file of --config says.

    Raises:
        UserError: it is missing, or no mapping.
    """
    import yaml

    content: dict[str, Any] = {}
    if config is not None:
        if not config.is_file():
            raise UserError(f"--config {config}: no such file")
        content = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
        if not isinstance(content, dict):
            raise UserError(f"--config {config}: write a mapping of settings, such as 'align: {{temperature: 0.1}}'")
    return content
