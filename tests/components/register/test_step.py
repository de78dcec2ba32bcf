import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from components.dataset.bundle import Bundle
from components.dataset.errors import UserError
from components.register.gate import Verdict, judge
from components.register.registration import Kept, Registration
from components.register.report import Findings
from components.register.settings import GateSettings, RunInfo
from components.register.step import register, run_name
from components.registry import aliases, client
from components.registry.connection import connect
from components.registry.rows import add_version as add_version_with_rows
from components.registry.rows import put_in_place
from components.registry.tracking import PARENT_TAG
from components.run import VERDICT, read_json, write_json
from components.training.checkpoints import load_model
from components.training.strategies import ABOUT
from tests.components.register.making import champion, figures, metrics
from tests.components.registry.making import add_version, new_dataset, pointed, promote, said

pytestmark = pytest.mark.usefixtures("home")
GATE = GateSettings()


@pytest.fixture
def dataset():
    return new_dataset()


def run_info(run_id):
    return RunInfo(run_id=run_id, dataset="films", method="ctrl", backbone="wide_deep", seed=1)


def registered(dataset, bundle, made, run_id, content, settings=GATE):
    """What the step does once the bundle is written."""
    judgement = judge(content, settings)
    kept = Kept(made.training_set / "vocabulary.json", {"collaborative": made.model})
    lineage = {"spec_digest": "s", "window": {"end": "2026-05-02", "learnt_until": "2026-05-01"}}
    registration = Registration.begin(dataset, run_info(run_id), judgement, bundle, kept, lineage)
    registration.log(Findings.read(made.training_set, made.evaluation, {}), settings, {})
    judgement = registration.claim(judgement, content)
    registration.conclude(judgement, "# Card", time.time())
    return judgement, registration


def version_of(dataset, version):
    return connect().get_model_version(client.model_name(dataset), version)


def fetched(mlflow, run, path):
    return Path(mlflow.download_artifacts(run.info.run_id, path))


def test_the_first_candidate_becomes_champion(dataset, bundle, made):
    judgement, _ = registered(dataset, bundle, made, "a", metrics())
    assert judgement.verdict is Verdict.PROMOTED
    assert pointed(dataset) == ("1", None)
    tags = version_of(dataset, "1").tags
    assert (tags["tandem.verdict"], tags["tandem.run_id"], tags["tandem.spec_digest"]) == ("promoted", "a", "s")
    with client.champion_of(dataset) as fetched:
        assert Bundle.open(fetched).manifest["run_id"] == "made"


def test_a_better_one_replaces_it(dataset, bundle, made):
    registered(dataset, bundle, made, "a", metrics())
    judgement, _ = registered(dataset, bundle, made, "b", metrics(champion=champion(0.02, run_id="a")))
    assert judgement.verdict is Verdict.PROMOTED
    assert pointed(dataset) == ("2", "1")


def test_one_as_good_is_a_candidate_only(dataset, bundle, made):
    registered(dataset, bundle, made, "a", metrics())
    judgement, _ = registered(dataset, bundle, made, "b", metrics(champion=champion(0.0, 0.0, 0.0, run_id="a")))
    assert judgement.verdict is Verdict.KEPT
    assert pointed(dataset) == ("1", None)
    assert aliases.alias_version(connect(), client.model_name(dataset), "candidate") == "2"
    assert version_of(dataset, "2").tags["tandem.verdict"] == "kept"
    registered(dataset, bundle, made, "c", metrics(champion=champion(0.02, run_id="a")))
    assert pointed(dataset) == ("3", "1")
    assert aliases.alias_version(connect(), client.model_name(dataset), "candidate") is None


def test_a_rejected_one_is_no_version_but_its_run_is_there(dataset, bundle, made):
    judgement, registration = registered(dataset, bundle, made, "a", metrics(figures(0.5)))
    assert judgement.verdict is Verdict.REJECTED
    assert registration.version is None
    assert aliases.search_versions(connect(), client.model_name(dataset)) == []
    run = connect().get_run(registration.parent.info.run_id)
    assert run.data.tags["tandem.verdict"] == "rejected"
    assert "AUC is 0.5000" in run.data.tags["tandem.reasons"]


def test_a_champion_that_came_meanwhile_keeps_the_candidate_back(dataset, bundle, made):
    registered(dataset, bundle, made, "a", metrics())
    promote(dataset, add_version(dataset, "meanwhile"), "1")
    judgement, _ = registered(dataset, bundle, made, "b", metrics(champion=champion(0.02, run_id="a")))
    assert judgement.verdict is Verdict.KEPT
    assert judgement.reasons[0].startswith("the champion is now version 2, with which this candidate was not compared")
    assert pointed(dataset) == ("2", "1")
    assert version_of(dataset, "3").tags["tandem.verdict"] == "kept"


def test_a_champion_that_gained_rows_meanwhile_is_the_one_compared_with(dataset, bundle, made, tmp_path):
    """Nothing was trained for it: every weight that the candidate was compared with is still there."""
    registered(dataset, bundle, made, "a", metrics())
    base = client.champion(dataset)
    put_in_place(add_version_with_rows(base, "d", bundle, made.model, "more"), base)
    judgement, _ = registered(dataset, bundle, made, "b", metrics(champion=champion(0.02, run_id="a")))
    assert judgement.verdict is Verdict.PROMOTED
    assert pointed(dataset) == ("3", "2")


def test_a_champion_that_evaluation_did_not_see(dataset, bundle, made):
    promote(dataset, add_version(dataset, "a"), None)
    judgement, _ = registered(dataset, bundle, made, "b", metrics(champion=None))
    assert judgement.verdict is Verdict.KEPT
    assert pointed(dataset) == ("1", None)


def test_a_champion_without_a_name_is_the_one_there_is(dataset, bundle, made):
    promote(dataset, add_version(dataset, "a"), None)
    unread = {"name": None, "run_id": None, "compatible": False, "reason": "its bundle cannot be read", "lift": None}
    judgement, _ = registered(dataset, bundle, made, "b", metrics(champion=unread))
    assert judgement.verdict is Verdict.PROMOTED
    assert pointed(dataset) == ("2", "1")


def test_the_whole_step_twice_is_one_version(made, tmp_path, home, monkeypatch):
    monkeypatch.setenv("TANDEM_RUN_DIR", str(tmp_path / "run"))

    def once(name):
        paths = [tmp_path / name / part for part in ("bundle", "report.html", "card.md")]
        pieces = {"collaborative": made.model, "aligned": made.model}
        result = register(made.training_set, made.evaluation, made.model, *paths, GATE, run_info("whole"), pieces)
        return result, *paths

    (first, bundle, report, card), (second, *_) = once("first"), once("second")
    assert first == second
    assert (first.verdict, first.model_version) == ("promoted", "1")
    assert pointed("shop") == ("1", None)
    assert said("shop") == [("promoted", "1")]
    assert len(aliases.search_versions(connect(), "tandem-shop")) == 1
    assert Bundle.open(bundle).manifest["run_id"] == "whole"
    assert card.read_text().startswith("# Promoted: ctrl on shop")
    assert report.read_text().startswith("<!DOCTYPE html>")
    told = read_json(tmp_path / "run" / VERDICT)
    assert (told["verdict"], told["model_version"], told["run_id"]) == ("promoted", "1", "whole")
    assert told["text"] == card.read_text()
    mlflow = connect()
    version = mlflow.get_model_version("tandem-shop", "1")
    assert version.description == card.read_text()
    run = mlflow.get_run(version.run_id)
    assert run.data.metrics["ctrl.slices.cold.auc"] == 0.7
    assert run.data.metrics["lift_over_collaborative.auc_difference"] == 0.01
    assert run.data.params["gate.min_auc"] == "0.55"
    names = {file.path for file in mlflow.list_artifacts(run.info.run_id)}
    assert names == {"bundle", "checkpoints", "evaluation", "gate_card.md", "report.html"}
    assert load_model(fetched(mlflow, run, "checkpoints/collaborative")).layout == load_model(made.model).layout
    files = {file.path for file in mlflow.list_artifacts(run.info.run_id, "bundle")}
    assert files == {f"bundle/{file.name}" for file in bundle.iterdir()}
    children = mlflow.search_runs([run.info.experiment_id], f"tags.`{PARENT_TAG}` = '{version.run_id}'")
    (own,) = (child for child in children if child.info.run_name == "register")
    written = min(file.stat().st_mtime for file in bundle.iterdir())
    assert own.info.start_time / 1000 <= written, "the bundle is most of the step's time"


def test_the_backends_run_and_the_settings_are_on_record(made, tmp_path, home, monkeypatch):
    """What a run learnt with can be searched for in MLflow, and the run be found in Kubeflow."""
    trained = tmp_path / "aligned"
    shutil.copytree(made.model, trained)
    config = read_json(trained / "config.json")
    config["meta"]["settings"] = {"learning_rate": 0.25, "auxiliary": {"weight": 0.0}}
    write_json(trained / "config.json", config)
    monkeypatch.setenv("TANDEM_RUN_ID", "of-kubeflow")
    paths = [tmp_path / part for part in ("bundle", "report.html", "card.md")]
    info = run_info("recorded")
    register(made.training_set, made.evaluation, made.model, *paths, GATE, info, {"aligned": trained})
    mlflow = connect()
    (version,) = aliases.search_versions(mlflow, "tandem-shop", {"tandem.run_id": "recorded"})
    params = mlflow.get_run(version.run_id).data.params
    assert (params["finetune.learning_rate"], params["finetune.auxiliary.weight"]) == ("0.25", "0.0")
    assert params["lineage.pipeline_run"] == version.tags["tandem.pipeline_run"] == "of-kubeflow"
    assert Bundle.open(paths[0]).manifest["lineage"]["pipeline_run"] == "of-kubeflow"
    assert "learning_rate 0.25, auxiliary weight 0" in paths[1].read_text()


@pytest.mark.parametrize("strategy", ["plm", "both"])
def test_what_scores_with_the_plm_is_refused_with_the_reason(made, tmp_path, strategy):
    model = shutil.copytree(made.model, tmp_path / "model")
    (model / ABOUT).write_text(json.dumps({"strategy": strategy}))
    outputs = tmp_path / "bundle", tmp_path / "report.html", tmp_path / "card.md"
    before = connect().search_model_versions()
    with pytest.raises(UserError, match=f"strategy {strategy} scores with the PLM.*only the collaborative half"):
        register(made.training_set, made.evaluation, model, *outputs, GATE, run_info("with-plm"))
    assert not any(path.exists() for path in outputs)
    assert len(connect().search_model_versions()) == len(before)


def test_a_run_without_a_name_gets_one_from_what_it_made(made, monkeypatch):
    found = run_name(run_info(""), made.training_set, made.model)
    assert found == run_name(run_info(""), made.training_set, made.model)
    assert found.startswith("content-")
    assert run_name(run_info("a"), made.training_set, made.model) == "a"
    monkeypatch.setenv("MLFLOW_RUN_ID", "injected")
    assert run_name(run_info(""), made.training_set, made.model) == "injected"


class Killed(BaseException):
    """What no handler of ours sees, as none sees SIGKILL."""


@pytest.mark.parametrize(
    "write",
    [
        "create_model_version",  # before there is a version
        "log_batch",  # with a version whose verdict is pending
        "set_tag",  # after the claim, before any verdict is said
        "update_model_version",
        "set_registered_model_alias",  # in the log, and no alias has moved
        "delete_registered_model_alias",  # the place is claimed, and who was kept back before still stands for it
    ],
)
def test_killed_at_any_write_the_same_run_again_finishes(dataset, bundle, made, monkeypatch, write):
    registered(dataset, bundle, made, "a", metrics())
    better = metrics(champion=champion(0.02, run_id="a"))
    connect().set_registered_model_alias(client.model_name(dataset), aliases.CANDIDATE, "1")

    def kill(*args, **kwargs):
        raise Killed(write)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, write, kill)
        with pytest.raises(Killed):
            registered(dataset, bundle, made, "b", better)
    judgement, _ = registered(dataset, bundle, made, "b", better)
    assert judgement.verdict is Verdict.PROMOTED
    assert pointed(dataset) == ("2", "1")
    assert said(dataset) == [("promoted", "1"), ("promoted", "2")]
    assert aliases.alias_version(connect(), client.model_name(dataset), aliases.CANDIDATE) is None
    versions = aliases.search_versions(connect(), client.model_name(dataset))
    assert {version.version: version.tags["tandem.verdict"] for version in versions} == {1: "promoted", 2: "promoted"}


def test_who_is_kept_back_while_a_run_promotes_stays_candidate(dataset, bundle, made, monkeypatch):
    registered(dataset, bundle, made, "a", metrics())
    said_of = MlflowClient.update_model_version

    def meanwhile(self, name, *args, **kwargs):  # after the claim: another run, which was slower, has been kept back
        self.set_registered_model_alias(name, aliases.CANDIDATE, "1")
        return said_of(self, name, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "update_model_version", meanwhile)
    judgement, _ = registered(dataset, bundle, made, "b", metrics(champion=champion(0.02, run_id="a")))
    assert judgement.verdict is Verdict.PROMOTED
    assert aliases.alias_version(connect(), client.model_name(dataset), aliases.CANDIDATE) == "1"


CHALLENGER = """
import json, sys
from pathlib import Path
from tests.components.register.test_step import registered
from tests.components.register.conftest import Made
from components.register.gate import Verdict
dataset, run_id, meetings, content, *folders = sys.argv[1:]
made = Made(*map(Path, folders))
Path(meetings, run_id).touch()
while len(list(Path(meetings).iterdir())) < 2:
    pass
judgement, registration = registered(dataset, made.bundle, made, run_id, json.loads(content))
print(judgement.verdict, registration.version.version)
"""


def test_of_two_runs_that_promote_at_once_one_wins(dataset, bundle, made, tmp_path):
    registered(dataset, bundle, made, "a", metrics())
    content = json.dumps(metrics(champion=champion(0.02, run_id="a")))
    folders = [str(folder) for folder in (made.training_set, made.model, made.evaluation, made.bundle)]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", CHALLENGER, dataset, run_id, str(tmp_path), content, *folders],
            stdout=subprocess.PIPE,
            text=True,
        )
        for run_id in ("left", "right")
    ]
    told = [process.communicate(timeout=120)[0].split() for process in started]
    assert [process.returncode for process in started] == [0, 0]
    (kept, loser), (promoted, winner) = sorted(told)
    assert (kept, promoted, {loser, winner}) == ("kept", "promoted", {"2", "3"})
    assert pointed(dataset) == (winner, "1")
    assert aliases.alias_version(connect(), client.model_name(dataset), "candidate") == loser
    assert said(dataset) == [("promoted", "1"), ("promoted", winner)]
