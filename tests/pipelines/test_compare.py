"""`tandem compare`: same rows and seeds for every arm, honest tests, nothing trained twice."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from components.dataset.errors import UserError
from components.dataset.training_set import TrainingSet
from pipelines.arms import Arm, pick_arms, pick_backbones, read_arms
from pipelines.compare import Request, carry_out, compare
from pipelines.findings import over_seeds, spread, table
from pipelines.settings import RunSettings, assigned
from pipelines.trials import Store, Task, plan_trial
from tests.pipelines.shop import QUICK, QUICKLY, tandem, write_shop, write_spec

ARMS = """
short:
  description: Fewer steps of both stages
  method: ctrl
  settings: {align: {similarity: cosine}, finetune: {epochs: 1}}
mapped:
  description: Rows from texts
  method: collaborative
  settings: {finetune: {map_rows: [item], hidden_items: 0.2}}
"""

LOOKING_BACK = """
texts:
  method: collaborative
  backbone: autoint_history
  settings: {model: {text_rows: 6}, finetune: {hidden_users: 0.3}}
texts_aligned:
  method: ctrl
  backbone: autoint_history
  settings:
    model: {text_rows: 6}
    align: {similarity: cosine, temperature: 0.1, liked_texts: true}
    finetune: {auxiliary: {weight: 0.1, rows: 100, similarity: cosine, liked_texts: true}}
"""
#: What each of the shop's items brings along.
ITEM_COLUMNS = {"item_id", "product_id", "colours", "price"}


def by_command(folder: Path, *arguments: str) -> tuple[dict, list[str]]:
    """The JSON that the command prints, and the lines about what was trained for it."""
    (folder / "arms.yaml").write_text(ARMS)
    common = ["--dataset", folder / "shop.yaml", "--arms", "short,collaborative", "--arms-file", folder / "arms.yaml"]
    done = tandem("compare", *common, "--jobs", "1", "--json", *QUICKLY, *arguments, home=folder / "home")
    assert done.returncode == 0, done.stderr
    made = [line for line in done.stderr.splitlines() if line.startswith("[")]
    return json.loads(done.stdout.splitlines()[-1]), made


def compared(folder: Path, *more: str, arms: tuple[str, ...] = ("short", "collaborative"), **changes: object):
    """The same without a process of its own."""
    request = Request(
        dataset=str(folder / "shop.yaml"),
        arms=tuple(pick_arms(arms, folder / "arms.yaml")),
        backbones=("autoint",),
        common=assigned({}, [*QUICK, *more]),
        jobs=1,
        **{"seeds": (1,), **changes},
    )
    made: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TANDEM_HOME", str(folder / "home"))
        return compare(request, made.append).to_json(), made


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop")
    write_shop(folder)
    found, made = by_command(folder, "--seeds", "2")
    return folder, found, made


def test_figures_are_those_of_the_scores(shop):
    folder, found, made = shop
    assert len(made) == 6  # two seeds: a training of each arm, and a stage 1
    assert list(found["arms"]) == ["collaborative", "short"]
    store = folder / "home" / "comparisons"
    data = TrainingSet.open(next((store / "training_sets").iterdir()))
    test = data.table("test")
    recomputed = set()
    for path in (store / "trained").glob("*/scores_test.parquet"):
        scores = pq.read_table(path)
        assert scores["impression_id"].equals(test["impression_id"])
        recomputed.add(round(roc_auc_score(test["label"], scores["probability"]), 9))
    told = [auc for arm in found["arms"].values() for auc in arm["auc"]["by_seed"].values()]
    assert {round(auc, 9) for auc in told} == recomputed and len(recomputed) == 4
    for arm in found["arms"].values():
        aucs = list(arm["auc"]["by_seed"].values())
        assert arm["auc"]["mean"] == pytest.approx(np.mean(aucs))
        assert arm["auc"]["sd"] == pytest.approx(np.std(aucs, ddof=1))


def test_lift_is_paired_and_selection_reads_no_test_row(shop):
    _, found, _ = shop
    arm, base = found["arms"]["short"], found["arms"]["collaborative"]
    lift = arm["lift"]["overall"]
    differences = [arm["auc"]["by_seed"][seed] - base["auc"]["by_seed"][seed] for seed in ("1", "2")]
    assert lift["auc"]["difference"] == pytest.approx(np.mean(differences))
    aucs = ([one["auc"]["by_seed"][seed] for seed in ("1", "2")] for one in (arm, base))
    assert lift["auc"]["p"] == pytest.approx(stats.ttest_rel(*aucs).pvalue)
    for seed, difference in zip(("1", "2"), differences, strict=True):
        assert lift["by_seed"][seed]["auc_difference"] == pytest.approx(difference)
        assert lift["by_seed"][seed]["delong"]["low"] < difference < lift["by_seed"][seed]["delong"]["high"]
    assert (arm["epochs"], arm["settings"]["finetune"]["epochs"]) == ({"1": 1, "2": 1}, 1)
    assert base["settings"]["finetune"]["epochs"] == 4
    assert arm["encoding_seconds"] > 0 and base["encoding_seconds"] is None
    markdown = Path(found["paths"]["table"]).read_text()
    assert f"{arm['auc']['mean']:.4f} ± {arm['auc']['sd']:.4f}" in markdown
    assert Path(found["paths"]["plot"]).read_text().startswith("<svg")
    assert json.loads(Path(found["paths"]["json"]).read_text())["arms"] == found["arms"]


def test_an_unsound_alignment_is_named_beside_the_table(shop):
    folder, found, _ = shop
    store = folder / "home" / "comparisons"
    told = {
        json.loads((path / "config.json").read_text())["meta"]["seed"]: path for path in (store / "aligned").iterdir()
    }
    verdicts = {str(seed): json.loads((told[seed] / "health.json").read_text())["verdict"] for seed in sorted(told)}
    assert found["arms"]["short"]["alignment"] == verdicts
    assert found["arms"]["collaborative"]["alignment"] == {"1": None, "2": None}
    arms = {name: {**arm, "alignment": {"1": "healthy", "2": "collapsed"}} for name, arm in found["arms"].items()}
    said = table({**found, "arms": arms})
    assert "Alignment of short: collapsed (seed 2); health.json" in said
    sound = {name: {**arm, "alignment": {"1": "healthy", "2": None}} for name, arm in found["arms"].items()}
    assert "Alignment of" not in table({**found, "arms": sound})


def test_it_goes_on_where_it_was_stopped(shop):
    folder, found, _ = shop
    trained = folder / "home" / "comparisons" / "trained"
    kept = sorted(trained.iterdir())
    lost = kept.pop()
    before = {path: (path / "model.safetensors").stat().st_mtime_ns for path in kept}
    again = json.loads((lost / "config.json").read_text())["meta"]
    for file in lost.iterdir():
        file.unlink()
    lost.rmdir()
    resumed, made = compared(folder, seeds=(1, 2))
    assert [line.split(": ")[0] for line in made] == [f"[1/1] train autoint, {again['arm']}, seed {again['seed']}"]
    assert {path: (path / "model.safetensors").stat().st_mtime_ns for path in kept} == before
    assert {name: arm["auc"] for name, arm in resumed["arms"].items()} == {
        name: arm["auc"] for name, arm in found["arms"].items()
    }


def test_searching_on_the_valid_part_leaves_the_test_part_alone(shop):
    folder, _, _ = shop
    trained = folder / "home" / "comparisons" / "trained"
    there = set(trained.iterdir())
    found, _ = compared(folder, "model.dropout=0.3", part="valid")
    new = set(trained.iterdir()) - there
    assert {file.name for path in new for file in path.glob("scores_*")} == {"scores_valid.parquet"}
    arm = found["arms"]["short"]
    assert (found["part"], found["rows"]) == ("valid", 180)
    assert arm["auc"]["by_seed"]["1"] == pytest.approx(arm["valid_auc"]["by_seed"]["1"])
    assert arm["auc"]["sd"] is None and arm["lift"]["overall"]["auc"] is None


def test_items_can_be_held_out_of_training(shop):
    folder, _, _ = shop
    found, _ = compared(folder, arms=("collaborative", "mapped"), hold_out_items=0.3)
    assert 0.1 < found["slice_rows"]["new_items"] / found["rows"] < 0.6
    assert found["arms"]["mapped"]["lift"]["new_items"]["by_seed"]["1"]["auc_difference"] is not None
    assert "30% of the items held out" in Path(found["paths"]["table"]).read_text()


@pytest.fixture(scope="module")
def looked_back(tmp_path_factory):
    """The shop with a history: arms with a backbone of their own beside AutoInt; folder, findings, what was made."""
    folder = tmp_path_factory.mktemp("history")
    write_shop(folder)
    history = {"length": 4, "events": "per_label", "behaviour": ["device"], "title": "title"}
    write_spec(folder, history=history)
    (folder / "arms.yaml").write_text(LOOKING_BACK)
    found, made = compared(folder, arms=("collaborative", "texts", "texts_aligned"))
    return folder, found, made


def test_an_arm_may_bring_its_own_backbone(looked_back):
    _, found, made = looked_back
    assert [line.split("] ")[1].split(",")[0] for line in made] == [
        "train autoint",
        "train autoint_history",
        "align autoint_history",
        "train autoint_history",
    ]
    arms = found["arms"]
    assert [arm["backbone"] for arm in arms.values()] == ["autoint", "autoint_history", "autoint_history"]
    assert {arm["base"] for arm in arms.values()} == {"collaborative"}
    for name in ("texts", "texts_aligned"):
        difference = arms[name]["auc"]["by_seed"]["1"] - arms["collaborative"]["auc"]["by_seed"]["1"]
        assert arms[name]["lift"]["overall"]["by_seed"]["1"]["auc_difference"] == pytest.approx(difference)
        assert arms[name]["encoding_seconds"] > 0


def test_what_holds_texts_is_served_without_the_plm(looked_back, tmp_path):
    """The bundle of the arm with everything: same probabilities whole and folded, and nothing of the PLM in it."""
    from components.dataset.bundle import ITEMS, RANKER, Bundle
    from components.models.plm import WHEEL, PlmSpec
    from components.register.export import Source, write_bundle
    from components.register.proof import UsedPlm, held_tensors
    from components.register.settings import RunInfo
    from components.training.checkpoints import load_model
    from serving.scorer import Scorer

    store = looked_back[0] / "home" / "comparisons"
    meta = {path: json.loads((path / "config.json").read_text())["meta"] for path in (store / "trained").iterdir()}
    (trained,) = (path for path, told in meta.items() if told["arm"] == "texts_aligned")
    vectors = load_model(trained).texts.vectors
    assert vectors[4:].norm(dim=1).numpy() == pytest.approx(1.0)
    (data,) = (store / "training_sets").iterdir()
    source = Source(data, tmp_path / "evaluation", trained, UsedPlm(PlmSpec(name=WHEEL), None), "p" * 64)
    run = RunInfo(run_id="made", dataset="shop", method="ctrl", backbone="autoint_history", seed=1)
    manifest = write_bundle(source, tmp_path / "bundle", run)
    proof = manifest["proof"]
    assert proof["plm_free"] and proof["plm"]["compared"] and manifest["folded"]
    for file in (ITEMS, RANKER):
        assert [*vectors.shape] in [tensor["shape"] for tensor in proof["folded"][file]["tensors"]]
    # The PLM's own vectors are wider than anything that is served.
    assert max(max(held.shape, default=0) for held in held_tensors(tmp_path / "bundle" / ITEMS)) < 384
    scorer = Scorer(Bundle.open(tmp_path / "bundle"))  # compares the golden rows, whole and folded
    rows = Bundle.open(tmp_path / "bundle").golden().to_pylist()
    keys = [row["item_id"] for row in rows]
    ranked, _ = scorer.rank(rows[0], keys, dict(zip(keys, rows, strict=True)))
    whole = scorer.probabilities({name: [rows[0][name] if name not in ITEM_COLUMNS else row[name] for row in rows]
                                  for name in scorer.bundle.vocabulary.columns})  # fmt: skip
    np.testing.assert_allclose(ranked, whole, atol=1e-5)
    assert ranked.std() > 0


# --- places ------------------------------------------------------------------------------------------------------


def planned(**changes):
    return plan_trial(
        Store(Path("/nowhere")), "arm", "autoint", RunSettings(**{"method": "ctrl", **changes}), Path("/data/a")
    )


def test_what_decides_a_result_names_its_folder():
    plain = planned()
    assert planned(finetune={"threads": 3, "processes": 2}).trained == plain.trained
    assert planned(align={"processes": 2, "nodes": 2}).aligned == plain.aligned
    assert planned(encode={"processes": 3}).embeddings == plain.embeddings
    later = planned(finetune={"epochs": 3})
    assert later.aligned == plain.aligned and later.trained != plain.trained
    for change in ({"seed": 2}, {"backbone": "dcn"}, {"model": {"dropout": 0.5}}, {"align": {"temperature": 0.1}}):
        other = planned(**change)
        assert other.embeddings == plain.embeddings
        assert other.aligned != plain.aligned and other.trained != plain.trained, change
    drawn = planned(encode={"plm": {"random_weights": True}})
    assert drawn.prompts == plain.prompts and drawn.embeddings != plain.embeddings and drawn.trained != plain.trained
    assert planned(prompt={"form": "field-value"}).prompts != plain.prompts
    srp4ctr = planned(method="srp4ctr")
    no_queries = planned(method="srp4ctr", model={"queries": 0})
    assert no_queries.pretrained == srp4ctr.pretrained and no_queries.trained != srp4ctr.trained
    assert planned(method="srp4ctr", model={"heads": 4}).pretrained != srp4ctr.pretrained
    both = planned(method="srp4ctr+ctrl")
    assert both.pretrained == srp4ctr.pretrained and both.start == both.aligned
    assert both.aligned != planned(backbone="srp4ctr").aligned and both.trained != srp4ctr.trained
    alone = planned(method="collaborative", align={"temperature": 0.1})
    assert alone.aligned is None and alone.trained == planned(method="collaborative").trained != plain.trained


# --- arms --------------------------------------------------------------------------------------------------------


def test_every_built_in_arm_is_a_run():
    names = list(read_arms(Path("pipelines/arms.yaml")))
    assert {"collaborative", "ctrl", "cosine", "random_plm"} <= set(names)
    settings = {arm.name: arm.over({"seed": 4}) for arm in pick_arms(names)}
    assert all(one.seed == 4 for one in settings.values())
    assert settings["random_plm"].encode.plm.random_weights
    assert settings["cosine"].align.similarity == "cosine"
    assert (settings["history"].backbone, settings["cosine"].backbone) == ("autoint_history", "autoint")


def test_an_arm_lies_over_the_common_settings():
    arm = Arm(name="warm", settings={"align": {"temperature": 0.1}})
    run = arm.over({"align": {"temperature": 0.5, "epochs": 2}, "finetune": {"epochs": 3}})
    assert (run.align.temperature, run.align.epochs, run.finetune.epochs) == (0.1, 2, 3)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a: {settings: {align: {temprature: 1}}}", ["a", "temprature", "temperature"]),
        ("a: {settings: {seed: 3}}", ["a", "seed", "same for all arms"]),
        ("a: {settings: {warm_start: true}}", ["arm 'a'", "warm_start", "remove it"]),
        ("a: {method: magic}", ["arms.yaml", "method"]),
        ("a: {backbone: magic}", ["arms.yaml", "backbone"]),
        ("a: {colour: red}", ["arms.yaml", "colour"]),
        ("[a, b]", ["arms.yaml", "by name"]),
        ("a: [", ["arms.yaml", "YAML"]),
        ("b: {}", ["no arm 'a'", "collaborative"]),
    ],
)
def test_wrong_arms_are_refused(tmp_path, content, said):
    (tmp_path / "arms.yaml").write_text(content)
    with pytest.raises(UserError) as refusal:
        for arm in pick_arms(["a"], tmp_path / "arms.yaml"):
            arm.over({})
    for word in said:
        assert word in str(refusal.value)


def test_unknown_and_doubled_names_are_refused(tmp_path):
    with pytest.raises(UserError, match="did you mean 'cosine'"):
        pick_arms(["cosin"])
    with pytest.raises(UserError, match="twice"):
        pick_arms(["ctrl", "ctrl"])
    with pytest.raises(UserError, match="--arms names none; write one or more of collaborative, ctrl"):
        pick_arms([])
    with pytest.raises(UserError, match="no such file"):
        pick_arms(["ctrl"], tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], "--backbones names none"),
        (["dcn", "dcn"], "--backbones: dcn is named twice"),
        (["autoimt"], "--backbones: no backbone 'autoimt'; did you mean 'autoint'"),
    ],
)
def test_wrong_backbones_are_refused_by_the_flags_name(names, said):
    assert pick_backbones(["dcn", "autoint"]) == ("dcn", "autoint")
    with pytest.raises(UserError, match=said):
        pick_backbones(names)


@pytest.mark.parametrize(
    ("setting", "said"),
    [("seed=3", "--seeds"), ("backbone=dcn", "--backbones"), ("method=ctrl", "--arms"), ("window=all", "whole log")],
)
def test_what_a_comparison_would_not_heed_is_refused(tmp_path, setting, said):
    (tmp_path / "arms.yaml").write_text("{}")
    with pytest.raises(UserError, match=f"--set or --config: {setting.split('=')[0]}: .*{said}"):
        compared(tmp_path, setting, arms=("collaborative",))
    assert not (tmp_path / "home").exists()


# --- tests over seeds --------------------------------------------------------------------------------------------


def test_paired_test_is_that_of_scipy():
    one, other = np.random.default_rng(1).normal(size=(2, 6))
    found = over_seeds(list(one - other))
    theirs = stats.ttest_rel(one, other)
    assert found["p"] == pytest.approx(theirs.pvalue)
    interval = theirs.confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high))
    assert over_seeds([0.1]) is None and over_seeds([0.1, None]) is None
    assert over_seeds([0.1, 0.1])["p"] == 0.0 and over_seeds([0.0, 0.0])["p"] == 1.0


def test_spread_of_a_metric_that_a_seed_lacks_is_not_made_up():
    assert spread([1, 2], [0.5, None]) == {"mean": None, "sd": None, "by_seed": {"1": 0.5, "2": None}}
    assert spread([1, 2], [0.5, 0.7])["sd"] == pytest.approx(0.1 * math.sqrt(2))


# --- tasks -------------------------------------------------------------------------------------------------------


def write(path: Path, *needed: Path) -> None:
    assert all(one.exists() for one in needed)
    path.write_text("made")


def fail() -> None:
    raise UserError("epochs must be more")


def test_tasks_wait_for_what_they_need_and_a_failure_is_named(tmp_path):
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    told: list[str] = []
    tasks = [
        Task("second", second, first, partial(write, second, first)),
        Task("first", first, None, partial(write, first)),
        Task("bad", third, second, fail),
        Task("never", tmp_path / "never", third, partial(write, third)),
    ]
    with pytest.raises(UserError, match="bad: epochs must be more"):
        carry_out(tasks, 2, told.append)
    assert [line.split(":")[0] for line in told] == ["[1/4] first", "[2/4] second"]
    assert not third.exists()


KILLED = """
import time
from functools import partial
from pathlib import Path
from pipelines.compare import carry_out
from pipelines.trials import Task
carry_out([Task("long", Path("never"), None, partial(time.sleep, 600))], 1, print)
"""


def test_a_comparison_that_is_killed_leaves_no_training_behind():
    started = subprocess.Popen([sys.executable, "-c", KILLED])
    deadline = time.monotonic() + 120
    try:
        while not (workers := _asleep(started.pid)):
            assert started.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        started.kill()
        started.wait()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive


def _asleep(pid: int) -> list[psutil.Process]:
    """Workers that have begun their task: its module is loaded, and they rest."""
    children = psutil.Process(pid).children()
    return [one for one in children if any("libtorch" in held.path for held in one.memory_maps())]
