"""What `tandem run` prints when it is done."""

from __future__ import annotations

import pytest

from pipelines.local import RunResult
from pipelines.summary import show
from tests.components.register.making import figures, metrics

CARD = (
    "# Rejected: ctrl on shop\n\n- AUC is 0.5100; asked: >= 0.55\n\n| check | value |\n|---|---:|\n| AUC | 0.5100 |\n"
)


@pytest.fixture
def result(tmp_path, monkeypatch) -> RunResult:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path))
    names = ("run", "log", "evaluation", "report", "gate_card", "data_docs")
    paths = {name: str(tmp_path / name) for name in names}
    (tmp_path / "gate_card").write_text(CARD)
    content = metrics(bayes_auc=0.83)
    content["arms"]["ctrl"]["slices"]["cold"]["auc"] = None
    return RunResult("one", "/somewhere/shop.yaml", content, "rejected", ["AUC"], None, paths)


def test_arms_card_and_pointers_are_printed(result, capsys):
    show(result)
    printed = capsys.readouterr().out
    assert "Arms on the test part of shop" in printed
    for words in ("collaborative", "ctrl", "0.6900", "0.7000", "cold-start AUC", "0.8300", "known probabilities"):
        assert words in printed
    assert "Rejected: ctrl on shop" in printed
    assert "asked: >= 0.55" in printed
    assert "|---|" not in printed, "the card is laid out"
    for path in ("report", "data_docs", "gate_card", "log"):
        assert result.paths[path] in printed
    assert "mlflow ui --backend-store-uri sqlite:///" in printed
    assert "make serve" in printed


def test_new_rows_have_a_line_of_their_own(result, capsys):
    result.metrics["arms"]["ctrl"]["with_new_rows"] = {"new": {"item": 3}, **figures(0.7654)}
    show(result)
    table = capsys.readouterr().out.split("Rejected")[0]
    names = ("collaborative", "ctrl ", "ctrl with new rows")
    lines = [next(line for line in table.splitlines() if name in line) for name in names]
    assert [("0.7654" in line, "0.6900" in line) for line in lines] == [(False, True), (False, False), (True, False)]


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://me:secret@tracking.example.org:5000/mlflow", "http://tracking.example.org:5000/mlflow"),
        ("postgresql+psycopg2://me:secret@db.example.org/mlflow", '"$MLFLOW_TRACKING_URI"'),
    ],
)
def test_the_registry_of_the_environment_is_pointed_at(result, monkeypatch, capsys, address, shown):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    show(result)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "MLflow UI" in line]
    assert line.endswith(shown)
    assert "secret" not in line
