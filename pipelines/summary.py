"""What `tandem run` and `tandem materialize` print when they are done, and the bar of a download."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from components.register import panels
from components.run import home
from pipelines.certify import Certificate
from pipelines.local import RunResult
from pipelines.plan import Plan

COLUMNS = {"auc": "AUC", "logloss": "log loss", "gauc": "GAUC"}
SLICES = {"cold": "cold-start AUC", "warm": "warm AUC"}


def show(result: RunResult) -> None:
    """Print the arms, the gate card (verdict, reasons, checks), and where to look further."""
    console = Console()
    console.print(_arms(result))
    bayes = result.metrics.get("bayes_auc")
    if bayes is not None:
        console.print(f"The best possible AUC on these rows (known probabilities) is {bayes:.4f}.")
    console.print()
    console.print(Markdown(Path(result.paths["gate_card"]).read_text(encoding="utf-8")))
    console.print("\nLook further", style="bold")
    for what, where in _pointers(result):
        console.print(f"  {what:<11}{where}", highlight=False, soft_wrap=True)


def _arms(result: RunResult) -> Table:
    table = Table(title=f"Arms on the test part of {result.metrics['dataset']}")
    table.add_column("arm")
    for title in (*COLUMNS.values(), *SLICES.values()):
        table.add_column(title, justify="right")
    for arm, metrics in panels.arms(result.metrics).items():
        slices = [metrics["slices"].get(name, {}).get("auc") for name in SLICES]
        table.add_row(arm, *(_number(value) for value in (*(metrics[name] for name in COLUMNS), *slices)))
    return table


def show_views(report: dict[str, Any]) -> None:
    """Print for each view how many keys have values, how many were written now, and how old the newest event is."""
    table = Table(title="Online features")
    table.add_column("view")
    for title in ("keys", "written", "newest event", "age of the data"):
        table.add_column(title, justify="right")
    for name, view in report.items():
        age = "undated" if view["newest"] is None else str(timedelta(seconds=round(view["age_seconds"])))
        newest = "-" if view["newest"] is None else view["newest"][:19]
        table.add_row(name, f"{view['keys']:,.0f}", f"{view['written']:,.0f}", newest, age)
    Console().print(table)


def show_rows(added: dict[str, Any]) -> None:
    """Print how many users and items were new to the champion, and the version that has their rows."""
    new, before, now = added["new"], added["grown_from"], added["version"]
    told = f"new to version {before}: {new['user']:,} users, {new['item']:,} items; champion is version {now}"
    Console().print(told, highlight=False)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _pointers(result: RunResult) -> list[tuple[str, Any]]:
    return [
        ("report", result.paths["report"]),
        ("Data Docs", result.paths["data_docs"]),
        ("gate card", result.paths["gate_card"]),
        ("log", result.paths["log"]),
        ("MLflow UI", _mlflow()),
        ("service", f"make serve, or tandem serve --workdir {home()}"),
    ]


def _mlflow() -> str:
    """Where to look at MLflow. An address that the environment gives may hold a password, which is not shown."""
    given = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    server = urlsplit(given)
    if server.scheme in {"http", "https"}:
        return server._replace(netloc=server.netloc.rpartition("@")[2]).geturl()
    store = '"$MLFLOW_TRACKING_URI"' if given else f"sqlite:///{home() / 'mlflow.db'}"
    return f"{Path(sys.executable).parent}/mlflow ui --backend-store-uri {store}"


def show_plan(plan: Plan) -> None:
    """Print what the next run would do."""
    console = Console()
    print_ = partial(console.print, highlight=False, markup=False, soft_wrap=True)
    ends = (plan.window["start"] or "the beginning", plan.window["end"] or "now")
    print_(f"{plan.dataset}: window {plan.window['asked']}, from {ends[0]} to {ends[1]}")
    if plan.stops:
        print_(f"The run would stop at once: {plan.stops}.")
        return
    parts = ", ".join(f"{name} {count:,}" for name, count in plan.rows.items() if name != "total")
    print_(f"Rows    {plan.rows['total']:,} ({parts})")
    if plan.texts:
        bounds = ("", "", "") if plan.texts["exact"] else ("at most ", "at least ", "at most ")
        words = (
            f"{bound}{plan.texts[name]:,}" for bound, name in zip(bounds, ("total", "hits", "misses"), strict=True)
        )
        print_("Texts   {}: {} in the encoding cache, {} to encode".format(*words))
    console.print(_costs(plan.estimate) if plan.estimate else "Time    unknown: no earlier run of this method")
    champion = plan.champion
    if champion is None:
        print_("Champion  none yet: the gate's floors decide alone")
    else:
        figures = ", ".join(f"{COLUMNS[name]} {value:.4f}" for name, value in champion["metrics"].items())
        print_(f"Champion  version {champion['version']} ({champion['arm']}, run {champion['run_id']}): {figures}")
        print_("          to be scored again on this window's test rows; these figures are of its own")
    print_(f"Start   {f'from version {plan.warm_start}' if plan.warm_start else 'anew'}")
    print_(f"Kubeflow's cache would give: {', '.join(plan.cached_steps) or 'nothing; each step looks at what is new'}")


def _costs(estimate: dict[str, Any]) -> Table:
    table = Table(title=f"Estimated from {len(estimate['runs'])} earlier runs, the newest {estimate['runs'][0]}")
    table.add_column("step")
    for title in ("seconds", "GPU-seconds"):
        table.add_column(title, justify="right")
    for name, cost in estimate["steps"].items():
        table.add_row(name, *(f"{cost[key]:,.1f}" for key in ("seconds", "gpu_seconds")))
    table.add_section()
    table.add_row("in minutes", f"{estimate['minutes']:,.1f}", f"{estimate['gpu_minutes']:,.1f}")
    return table


def show_certificate(certificate: Certificate, path: Path) -> None:
    """Print what was changed, what was compared, and the verdict."""
    console = Console()
    table = Table(title=f"Rows of {certificate.dataset} changed from {certificate.at} on")
    for title in ("future", "table", "changed", "deleted", "added"):
        table.add_column(title, justify="left" if title in {"future", "table"} else "right")
    for future, tables in certificate.futures.items():
        for name, counts in tables.items():
            table.add_row(future, name, *(f"{counts[what]:,}" for what in ("changed", "deleted", "added")))
    console.print(table)
    columns = ", ".join(certificate.columns)
    console.print(f"{certificate.rows_compared:,} training rows before were compared in {columns}.", highlight=False)
    for leak in certificate.leaks:
        console.print(f"LEAK: with {leak.future}, '{leak.column}' changed in {leak.rows:,} rows", highlight=False)
        for example in leak.examples:
            console.print(f"  {example}", highlight=False, markup=False)
    for limit in certificate.limits:
        console.print(f"Not vouched for: {limit}.", highlight=False, markup=False)
    words = {"holds": "none of them changed: the certificate holds", "leaks": "the future leaks into the past"}
    console.print(f"Verdict: {words[certificate.verdict]}. {path}", highlight=False, markup=False, soft_wrap=True)


@contextmanager
def download_bar(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """A progress bar on stderr; yields a function of (bytes so far, bytes in all or None)."""
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(name, total=None, visible=False)

        def advance(done: int, total: int | None) -> None:
            progress.update(task, completed=done, total=total, visible=True)

        yield advance
