"""Bring, describe and examine data: `tandem data`, `init`, `check` and `certify`."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from components.dataset.errors import UserError
from pipelines.commands.options import Dataset, Workdir, enter

app = typer.Typer()


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
    dataset: Dataset = "sample",
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
    enter(workdir)
    from pipelines.certify import certify as make

    certificate, path = make(dataset, at.replace(tzinfo=UTC) if at else None, output)
    if as_json:
        print(json.dumps(certificate.to_json(), ensure_ascii=False, allow_nan=False))
    else:
        from pipelines.summary import show_certificate

        show_certificate(certificate, path)
    raise typer.Exit(0 if certificate.verdict == "holds" else 3)
