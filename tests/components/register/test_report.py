import re
import shutil
from html.parser import HTMLParser

import pytest

from components.evaluate.lift import cost
from components.register.gate import judge
from components.register.report import SECTIONS, Findings, Outcome, render
from components.register.settings import GateSettings, RunInfo
from components.run import STEPS, StepRecord, read_json, write_json
from tests.components.register.making import champion, figures, lift, lines, metrics

RUN = RunInfo(
    run_id="r1",
    dataset="films",
    method="ctrl",
    backbone="wide_deep",
    seed=1,
    data_docs="/runs/r1/docs",
)


@pytest.fixture
def pieces(tmp_path, made):
    """Every piece that a report can have."""
    evaluation = tmp_path / "evaluation"
    shutil.copytree(made.evaluation, evaluation)
    write_json(evaluation / "metrics.json", metrics(champion=champion(0.02)))
    write_json(evaluation / "curves.json", {"arms": {"collaborative": lines(), "ctrl": lines()}, "champion": lines()})
    write_json(evaluation / "lift.json", {"cost": cost([StepRecord("align", 0.0, 2.0, 4)])})
    case = {"kind": "feature", "name": "job", "as": "missing", "lag": None, "fields": ["job"], "changed": 0.9}
    case |= {"auc": 0.6, "logloss": 0.6, "calibration": 1.1, "auc_loss": 0.1}
    found = {"default": "most_frequent", "value": ["x", "y"], "auc_missing": 0.6, "auc_most_frequent": 0.7}
    stale = {**case, "kind": "view", "name": "user_history", "as": "stale", "lag": "hour"}
    worse = {"rows": 100, "complete": {"auc": 0.7, "logloss": 0.5, "calibration": 1.0}, "table": [case, stale]}
    write_json(evaluation / "degradation.json", {**worse, "defaults": {"genres": found}, "notes": ["A note."]})
    severity = {name: {"passed": 3, "failed": []} for name in ("critical", "warning", "info")}
    severity["warning"]["failed"] = ["column 'job': 30 % are <empty>"]
    counts = {"rows": 340, "users": 4, "items": 3, "label_rate": 0.5, "first_timestamp": None}
    write_json(
        tmp_path / "validated" / "summary.json", {**counts, "dropped_by_label_rule": 7, "expectations": severity}
    )
    tokens = {"user": {"histogram": {"edges": [10, 11, 13], "counts": [4, 2]}}}
    said = {
        "prompt_hash": "p" * 64,
        "form": "natural",
        "granularity": "entity",
        "max_tokens": 256,
        "texts": {"user": 6},
    }
    more = {"coverage": {"job": 0.9}, "truncated": {"user": {"texts": 1}}, "left_out": ["device"], "tokens": tokens}
    more["shortened_histories"] = {"rows": 3000, "titles": 7001, "rate": 0.25}
    write_json(tmp_path / "prompts" / "report.json", {**said, **more, "examples": {"user": ["This is <a> user."]}})
    found = {"rows": 8, "loss": 6.1, "retrieval_by_text": 0.01, "verdict": "healthy", "reasons": []}
    health = {"verdict": "collapsed", "reasons": ["the text side spans 1.0 dimensions in effect"], "before": found}
    cache = {"hits": 5, "misses": 1, "seconds": 0.5, "seconds_saved": 2.5, "gpu_seconds": 0.5, "gpu_seconds_saved": 2.5}
    near = [
        {"row": "This is <b> user.", "nearest": "This is c.", "right": False},
        {"row": "d", "nearest": "d", "right": True},
    ]
    more = {"after": {**found, "loss": 4.25}, "neighbours": near, "cache": cache}
    write_json(tmp_path / "alignment" / "health.json", {**health, **more})
    write_json(tmp_path / "alignment" / "curve.json", {"history": [{"epoch": 1, "loss": 5.0, "seconds": 1.0}]})
    write_json(tmp_path / "alignment" / "config.json", {"meta": {"settings": {"tau": 0.7}}})
    record = {"step": "validate", "began": 1.0, "seconds": 2.5, "gpus": 0}
    write_json(tmp_path / "prompts" / STEPS, [record])
    folders = {
        "validation": tmp_path / "validated",
        "prompts": tmp_path / "prompts",
        "alignment": tmp_path / "alignment",
    }
    return Findings.read(made.training_set, evaluation, {**folders, "collaborative": made.model, "aligned": made.model})


def rendered(findings, manifest):
    return render(Outcome(RUN, judge(findings.metrics, GateSettings()), "3", manifest), findings)


class Anchors(HTMLParser):
    """Ids of sections and the targets of links; every tag that opens must close."""

    def __init__(self):
        super().__init__()
        self.ids, self.links, self.open, self.outside = [], [], [], []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag not in {"meta", "line", "rect", "circle", "polyline"}:
            self.open.append(tag)
        if tag == "section":
            self.ids.append(given["id"])
        if tag == "a" and given["href"].startswith("#"):
            self.links.append(given["href"].removeprefix("#"))
        self.outside += [
            value for name, value in given.items() if name in {"src", "href"} and not value.startswith("#")
        ]

    def handle_endtag(self, tag):
        if tag in {"meta", "line", "rect", "circle", "polyline"}:
            return
        assert self.open.pop() == tag


def parsed(html):
    anchors = Anchors()
    anchors.feed(html)
    assert anchors.open == []
    return anchors


def test_every_piece_has_its_section(pieces, bundle):
    html = rendered(pieces, read_json(bundle / "manifest.json"))
    anchors = parsed(html)
    assert anchors.links == anchors.ids == list(SECTIONS)
    assert "<td>This is &lt;b&gt; user.</td><td>This is c.</td>" in html and "<td>d</td><td>its own</td>" in html
    assert "better than the champion" in html
    assert "<td>view user_history stale by an hour</td>" in html
    assert ">view user_history, an hour</text>" in html
    assert "genres = x y" in html
    assert "This is &lt;a&gt; user." in html
    assert "column &#39;job&#39;: 30 % are &lt;empty&gt;" in html
    assert "Alignment took 2.0 s (8.0 GPU-seconds) of the run's 2.0 s (8.0 GPU-seconds)" in html
    assert '<td class="name">settings of align</td><td class="hash">tau 0.7</td>' in html
    assert "form natural, granularity entity, max_tokens 256" in html
    assert anchors.outside == ["file:///runs/r1/docs/index.html"]
    assert '<td>loss</td><td class="n">6.1000</td><td class="n">4.2500</td>' in html
    assert "The text side spans 1.0 dimensions in effect" in html
    assert "3,000 rows (25.0&nbsp;%) say less of their history than asked for" in html
    assert "into 256 tokens: 7,001 older titles are left out" in html
    assert "5 texts from the cache" in html
    assert "2.5 GPU-seconds, 0.5 were spent" in html


def with_new_rows(**more):
    """The content of metrics.json of a candidate that makes rows of texts."""
    grown = {"new": {"item": 1234, "user": 5}, **figures(0.7654)}
    gain = metrics()["lift"]
    return metrics(figures(0.7, with_new_rows=grown), lift={**gain, "with_new_rows": lift(0.0654)}, **more)


def test_new_rows_stand_beside_what_is_served(made, bundle, tmp_path):
    write_json(tmp_path / "metrics.json", with_new_rows(champion=champion(0.02)))
    html = rendered(Findings.read(made.training_set, tmp_path, {}), read_json(bundle / "manifest.json"))
    parsed(html)
    arms = re.findall(r"<tr[^>]*><td>([^<]+)</td>\s*<td class=\"n\">(0\.\d+)</td>", html.split('id="arms"')[1])
    names = [("collaborative", "0.6900"), ("ctrl (candidate)", "0.7000"), ("ctrl with new rows", "0.7654")]
    assert arms[:4] == [*names, ("champion", "0.6900")]
    assert "1,234 new items and 5 new users of the test part have rows made of their texts" in html
    assert "judged by the gate, as it is served on the day of training" in html
    assert "compared with new rows of its own" not in html
    assert '<th class="n">AUC ctrl with new rows</th>' in html
    assert "<td>cold (1,000), with new rows</td>" in html
    assert "+0.0654" in html


def test_a_champion_with_rows_of_its_own_is_said_to_be(made, bundle, tmp_path):
    grown = champion(0.02, compared_with_new_rows=True)
    write_json(tmp_path / "metrics.json", with_new_rows(champion=grown))
    html = rendered(Findings.read(made.training_set, tmp_path, {}), read_json(bundle / "manifest.json"))
    assert "judged by the gate but for the comparison with the champion, as it is served" in html
    assert "ctrl is compared with new rows of its own" in html.split('id="champion"')[1]


def test_nothing_comes_from_the_network(pieces, bundle):
    html = rendered(pieces, read_json(bundle / "manifest.json"))
    assert not re.search(r"<script|<link|<img|@import|url\(|https?://", html)
    assert len(html) < 300_000


def test_the_collaborative_arm_alone_shows_its_training(made, tmp_path, bundle):
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    alone = metrics(lift=None) | {"candidate": "collaborative", "arms": {"collaborative": figures()}}
    write_json(evaluation / "metrics.json", alone)
    findings = Findings.read(made.training_set, evaluation, {"collaborative": made.model})
    assert list(findings.training) == ["collaborative"]
    assert "training" in parsed(rendered(findings, read_json(bundle / "manifest.json"))).ids


def test_missing_pieces_are_left_out(made, bundle, tmp_path):
    write_json(tmp_path / "metrics.json", metrics(lift=None))
    findings = Findings.read(made.training_set, tmp_path, {})
    anchors = parsed(rendered(findings, read_json(bundle / "manifest.json")))
    assert anchors.links == anchors.ids == ["gate", "arms", "slices", "data", "lineage"]


def test_figures_that_are_not_defined_are_dashes(made, bundle, tmp_path):
    write_json(tmp_path / "metrics.json", metrics(figures(None)))
    findings = Findings.read(made.training_set, tmp_path, {})
    html = rendered(findings, read_json(bundle / "manifest.json"))
    parsed(html)
    assert "None" not in html
    assert "rejected" in html


def test_a_step_that_ran_again_is_numbered(made, tmp_path):
    write_json(tmp_path / "metrics.json", metrics(figures(None)))
    took = [("encode", 1.0), ("encode", 2.0), ("align", 3.0)]
    write_json(
        tmp_path / STEPS,
        [{"step": name, "began": began, "seconds": s, "gpus": 0} for began, (name, s) in enumerate(took)],
    )
    steps = Findings.read(made.training_set, tmp_path, {}).steps
    assert [(record.step, record.seconds) for record in steps] == [("encode", 1.0), ("encode 2", 2.0), ("align", 3.0)]
