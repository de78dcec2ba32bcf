"""Runs that follow each other: each learns the rows since the last, from where the champion stands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from components.dataset.errors import UserError
from components.dataset.training_set import TrainingSet
from components.dataset.window import Window
from components.registry.continuation import window_of
from components.retrieve.step import retrieve
from components.training.checkpoints import load_model
from pipelines.settings import parse_settings
from tests.pipelines.conftest import WARM
from tests.pipelines.shop import CUT, QUICK, QUICKLY, tandem

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def output_of(folder, run_id, task, name):
    """An artefact of a run's task."""
    (found,) = (folder / "home/runs" / run_id).glob(f"artifacts/*/{task}/*{name}")
    return found


def encoded(folder, run_id):
    """What the encode step says of itself."""
    (found,) = (folder / "home/runs" / run_id).glob("artifacts/*/*/encode/embeddings/meta.json")
    return json.loads(found.read_text())


def rows_of(folder, run_id):
    data = TrainingSet.open(output_of(folder, run_id, "retrieve", "training_set"))
    tables = {part: data.table(part, ["impression_id"])["impression_id"].to_pylist() for part in data.meta["rows"]}
    return data, tables


def test_the_first_run_learns_its_window_and_nothing_later(followed):
    folder, first = followed.folder, followed.first
    data, tables = rows_of(folder, "first")
    assert sorted(row for part in tables.values() for row in part) == list(range(900))
    assert first["verdict"] == "promoted"
    assert data.meta["window"]["end"] == CUT.isoformat()


def test_the_second_begins_where_the_first_stopped_learning(followed):
    """No row is learnt twice, none is left out, and no model is judged on a row that it was trained on."""
    folder = followed.folder
    first, earlier = rows_of(folder, "first")
    later = rows_of(folder, "second")[1]
    assert first.meta["window"]["learnt_until"] == first.meta["cut_offs"]["valid"]
    every = sorted(row for part in later.values() for row in part)
    assert every == list(range(earlier["valid"][0], 1200))
    assert not set(earlier["train"]) & set(every)
    assert not set(later["test"]) & {*earlier["train"], *earlier["valid"]}


def test_the_vocabulary_grows_and_known_ids_keep_their_codes(followed):
    folder = followed.folder
    before, after = (rows_of(folder, name)[0].vocabulary for name in ("first", "second"))
    for old, new in zip(before.fields, after.fields, strict=True):
        assert new.values[: len(old.values)] == old.values
        assert new.edges == old.edges


def test_each_arm_goes_on_from_its_own_line(followed):
    """The collaborative arm from the one that has met no language model, the candidate from the champion."""
    folder = followed.folder
    named = {"collaborative": "finetune", "candidate": "finetune-2"}
    kept = output_of(folder, "second", "retrieve", "champion")
    for arm, task in named.items():
        before = load_model(output_of(folder, "first", task, "trained"))
        fetched = load_model(kept / arm)
        assert all((value == fetched.state_dict()[name]).all() for name, value in before.state_dict().items())
    for task in ("align", "finetune"):
        name = "checkpoint" if task == "align" else "trained"
        meta = json.loads((output_of(folder, "second", task, name) / "config.json").read_text())["meta"]
        assert meta["champion"] == {"name": "tandem-shop", "version": "1", "run_id": "first"}


def test_the_champion_is_scored_on_the_new_rows(followed):
    folder, second = followed.folder, followed.second
    metrics = json.loads((Path(second["paths"]["evaluation"]) / "metrics.json").read_text())
    assert metrics["champion"]["run_id"] == "first"
    assert metrics["champion"]["compatible"]
    assert metrics["rows"] == len(rows_of(folder, "second")[1]["test"])
    assert metrics["champion"]["rows"] == metrics["rows"]


def test_only_new_texts_are_encoded(followed):
    """All users and items of the shop have been seen: what is said of them is encoded already."""
    folder = followed.folder
    cache = encoded(folder, "second")["cache"]
    assert cache["misses"] == 0
    assert cache["hits"] > 0


def test_the_plan_said_what_the_run_then_did(followed):
    folder, first = followed.folder, followed.first
    plan = followed.plan
    meta = rows_of(folder, "second")[0].meta
    assert plan["stops"] is None
    assert plan["rows"] == {**meta["rows"], "total": sum(meta["rows"].values())}
    assert plan["window"]["start"] == meta["window"]["start"]
    cache = encoded(folder, "second")["cache"]
    assert plan["texts"] == {
        "total": cache["hits"] + cache["misses"], "hits": cache["hits"], "misses": cache["misses"], "exact": True
    }  # fmt: skip
    champion = json.loads((Path(first["paths"]["evaluation"]) / "metrics.json").read_text())["arms"]["ctrl"]
    assert (plan["champion"]["version"], plan["champion"]["run_id"], plan["warm_start"]) == ("1", "first", "1")
    assert plan["champion"]["metrics"]["auc"] == pytest.approx(champion["auc"])
    assert plan["cached_steps"] == []


def test_the_plan_rests_on_what_the_first_run_took(followed):
    folder = followed.folder
    estimate = followed.plan["estimate"]
    before, after = (sum(rows_of(folder, name)[0].meta["rows"].values()) for name in ("first", "second"))
    ledger = json.loads((output_of(folder, "first", "evaluate", "evaluation") / "lift.json").read_text())["cost"][
        "steps"
    ]
    assert estimate["runs"] == ["first"]
    for step in ("retrieve", "prompt_transform", "align", "finetune-collaborative", "finetune-ctrl"):
        assert estimate["steps"][step]["seconds"] == pytest.approx(ledger[step] * after / before)
    assert estimate["steps"]["validate"]["seconds"] == pytest.approx(ledger["validate"])
    assert estimate["steps"]["encode"]["seconds"] == 0, "no text is new"
    assert estimate["minutes"] == pytest.approx(sum(one["seconds"] for one in estimate["steps"].values()) / 60)
    assert estimate["gpu_minutes"] == 0


def test_a_plan_without_new_rows_says_so_in_words(followed):
    folder = followed.folder
    done = tandem("plan", "--dataset", folder / "shop.yaml", *QUICKLY, *WARM, home=folder / "home")
    assert done.returncode == 0, done.stderr
    assert "would stop at once: nothing new" in done.stdout


def test_without_a_new_row_nothing_is_trained(followed, tmp_path, monkeypatch):
    """The step that would make the rows refuses, as an error of the user's: the run ends with exit code 2."""
    folder = followed.folder
    monkeypatch.setenv("TANDEM_HOME", str(folder / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    dataset, validated = str(folder / "shop.yaml"), output_of(folder, "second", "validate", "validated")
    with pytest.raises(UserError, match="nothing new"):
        retrieve(dataset, validated, tmp_path / "rows", window_of(dataset, "since-last-success"))
    assert not (tmp_path / "rows").exists()


def test_the_same_window_gives_the_same_model(followed, tmp_path, monkeypatch):
    """The second run's window by its own ends, from the same champion: the same rows, the same weights."""
    from components.finetune.settings import FinetuneSettings
    from components.finetune.step import finetune

    folder = followed.folder
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path / "home"))
    data, tables = rows_of(folder, "second")
    champion = output_of(folder, "second", "retrieve", "champion")
    window = Window.parse(f"{data.meta['window']['start']}/{data.meta['window']['end']}")
    validated = output_of(folder, "second", "validate", "validated")
    meta = retrieve(str(folder / "shop.yaml"), validated, tmp_path / "rows", window, champion / "vocabulary.json")
    again = TrainingSet.open(tmp_path / "rows")
    assert {part: again.table(part)["impression_id"].to_pylist() for part in tables} == tables
    assert (meta["window"], again.vocabulary) == (data.meta["window"], data.vocabulary)
    settings = parse_settings({}, list(QUICK))
    arguments = "collaborative", "autoint", settings.model, FinetuneSettings(**settings.finetune.model_dump()), 1, None
    finetune(tmp_path / "rows", tmp_path / "trained", *arguments, champion=champion)
    one, other = (
        load_model(path) for path in (tmp_path / "trained", output_of(folder, "second", "finetune", "trained"))
    )
    assert all((value == other.state_dict()[name]).all() for name, value in one.state_dict().items())
