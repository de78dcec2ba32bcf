"""The dashboard and the alert rules name only what the running service tells Prometheus."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from tests.pipelines.shop import ROOT

FOLDER = ROOT / "infra" / "monitoring"
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())
RULES = [rule for group in yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]
PANELS = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel["targets"]]
EXPRESSIONS = [*PANELS, *((rule["alert"], rule["expr"]) for rule in RULES)]
NAME = re.compile(r"tandem_\w+")
LABELS = re.compile(r"(tandem_\w+)\{([^}]*)\}")
#: Told only where a view's rows have time stamps, which the shop's have not: test_history sees that it is.
DATED = "tandem_data_age_seconds"
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@pytest.fixture(scope="module")
def told(service):
    """Every metric by name, with its labels' names, after answers of all kinds."""
    answer = service.post("/rank", {"user_id": "nobody", "item_ids": ["s1", "nothing"]}).json()
    service.post("/predict", {"pairs": [{"user_id": "c1", "item_id": "s1"}]})
    service.post("/feedback", {"events": [{"request_id": answer["request_id"], "item_id": "s1"}]})
    lines = [line for line in service.client.get("/metrics").text.splitlines() if line.startswith("tandem_")]
    found: dict[str, set[str]] = {}
    for line in lines:
        labels = LABELS.match(line)
        found.setdefault(NAME.match(line).group(), set()).update(LABEL.findall(labels[2]) if labels else [])
    return found


@pytest.mark.parametrize(("place", "expression"), EXPRESSIONS)
def test_what_is_drawn_and_watched_is_told(told, place, expression):
    names = set(NAME.findall(expression))
    assert names
    assert names - {DATED} <= set(told), place
    for name, selected in LABELS.findall(expression):
        for label in LABEL.findall(selected):
            assert name == DATED or label in told[name], f"{place}: {name} has no {label}"


def test_every_metric_is_drawn_or_watched(told):
    used = {name for _, expression in EXPRESSIONS for name in NAME.findall(expression)} - {DATED}
    bare = {re.sub(r"_(total|bucket|sum|count|created)$", "", name) for name in used}
    assert {re.sub(r"_(total|bucket|sum|count|created)$", "", name) for name in told} == bare


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_alert_says_what_to_do(rule):
    assert rule["labels"]["severity"] in {"warning", "critical"}
    assert set(rule["annotations"]) == {"summary", "action"}
    assert rule["for"]
