"""Clicks told by the PLM, alone or mixed with the table: the mixture's gradient, its losses, and what is kept of it."""

import numpy as np
import pytest
import torch

from components.dataset.errors import UserError
from components.dataset.training_set import TrainingSet
from components.evaluate.scoring import scores_with_text, text_scores
from components.evaluate.settings import EvaluateSettings
from components.evaluate.step import evaluate
from components.finetune.settings import FinetuneSettings
from components.finetune.step import finetune
from components.models.registry import build_backbone
from components.reconstruct.step import reconstruct
from components.training.group import Group
from components.training.strategies import Fusion, TextLearner, checked, load_text_learner, strategy_of, text_learner
from tests.components.reconstruct.making import MODEL, inputs_of, settings_of

CPU = torch.device("cpu")
SETTINGS = FinetuneSettings(epochs=2, batch_size=128, learning_rate=5e-3, threads=1, embedding_l2=0)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Training set, prompts, and checkpoints of FLIP with the PLM frozen and its last layer trained."""
    folder = tmp_path_factory.mktemp("strategies")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TANDEM_HOME", str(folder / "home"))
        training_set, prompts, plm = inputs_of(folder)
        made = {}
        for mode in ("frozen", "last_layer"):
            made[mode] = folder / mode
            settings = settings_of(plm, plm_mode=mode, rows=256, plm_learning_rate=1e-3)
            reconstruct(training_set, prompts, made[mode], "dcn", MODEL, settings, 1)
    return training_set, prompts, made


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path / "home"))


def test_the_mixtures_gradient_is_that_of_the_formula():
    """d/da BCE(sigmoid(a z_1 + (1 - a) z_2), y) = mean((sigmoid(z) - y) (z_1 - z_2)); a begins at 0."""
    torch.manual_seed(0)
    of_id, of_plm, labels = torch.randn(50), torch.randn(50), (torch.rand(50) < 0.4).float()
    for alpha in (0.0, 0.7, -1.3):
        fusion = Fusion()
        assert fusion.alpha.item() == 0.0
        with torch.no_grad():
            fusion.alpha.fill_(alpha)
        mixed = fusion(of_id, of_plm)
        torch.testing.assert_close(mixed, alpha * of_id + (1 - alpha) * of_plm)
        torch.nn.functional.binary_cross_entropy_with_logits(mixed, labels).backward()
        expected = ((torch.sigmoid(mixed) - labels) * (of_id - of_plm)).mean()
        torch.testing.assert_close(fusion.alpha.grad, expected.detach())


def learner_of(inputs, strategy, mode="frozen"):
    training_set, prompts, made = inputs
    data = TrainingSet.open(training_set).for_model(False)
    torch.manual_seed(1)
    model = build_backbone("dcn", data.layout, MODEL)
    return data, text_learner(model, strategy, made[mode], prompts, ("train", "valid"), CPU, 8)


def test_three_losses_are_learnt_and_the_mixtures_is_told(inputs):
    data, learner = learner_of(inputs, "both")
    with torch.no_grad():
        learner.fusion.alpha.fill_(0.3)
    learner.eval()
    train, rows = data.arrays("train"), torch.arange(60)
    ids, labels = torch.from_numpy(train.ids[:60]), torch.from_numpy(train.labels[:60])
    group = Group(0, 1, CPU)
    told, learnt = learner.losses(ids, labels, rows, SETTINGS, torch.Generator(), group, 60)
    found = learner.scores(ids, "train", rows)
    every = {name: torch.nn.functional.binary_cross_entropy_with_logits(of, labels) for name, of in found.items()}
    assert set(every) == {"id", "plm", "both"}
    torch.testing.assert_close(told, every["both"])
    torch.testing.assert_close(learnt, sum(every.values()))
    torch.testing.assert_close(found["id"], learner.model(ids))
    half, _ = learner.losses(ids[:30], labels[:30], rows[:30], SETTINGS, torch.Generator(), group, 60)
    rest, _ = learner.losses(ids[30:], labels[30:], rows[30:], SETTINGS, torch.Generator(), group, 60)
    torch.testing.assert_close(half + rest, told, msg="a process's parts are the whole batch's")


def test_the_plm_has_a_rate_of_its_own(inputs):
    _, learner = learner_of(inputs, "both", "last_layer")
    groups = learner.weight_groups(SETTINGS.model_copy(update={"plm_learning_rate": 1e-6}))
    rates = {id(weight): group["lr"] for group in groups for weight in group["params"]}
    names = {name: rates.get(id(weight)) for name, weight in learner.named_parameters()}
    assert all(names[name] == SETTINGS.learning_rate for name in ("output.weight", "fusion.alpha", "model.head.weight"))
    tuned = {name: rate for name, rate in names.items() if name.startswith("reader.")}
    assert {rate for name, rate in tuned.items() if "layer.1." in name} == {1e-6}
    assert {rate for name, rate in tuned.items() if "layer.0." in name} == {None}
    assert sum(len(group["params"]) for group in groups) == len(rates), "no weight twice"


@pytest.fixture(scope="module")
def arms(inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("arms")
    training_set, prompts, made = inputs
    paths = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TANDEM_HOME", str(folder / "home"))
        for arm, strategy, mode in (
            ("flip", "id", "frozen"),
            ("flip_plm", "plm", "frozen"),
            ("flip_both", "both", "last_layer"),
        ):
            paths[arm] = folder / arm
            start = "dcn", MODEL, SETTINGS, 1, made[mode], prompts
            finetune(training_set, paths[arm], arm, *start, strategy=strategy)
    return paths


@pytest.mark.parametrize("arm", ["flip_plm", "flip_both"])
def test_what_is_kept_gives_the_trained_arms_scores(inputs, arms, arm):
    training_set, prompts, _ = inputs
    assert strategy_of(arms[arm]) == arm.removeprefix("flip_") and scores_with_text(arms[arm])
    learner = load_text_learner(arms[arm], prompts, "test", CPU)
    data = TrainingSet.open(training_set).for_model(False)
    ids = data.arrays("test").ids
    scores = learner.predict("test", ids, batch_size=17)
    np.testing.assert_allclose(scores, learner.predict("test", ids), atol=1e-6)
    np.testing.assert_allclose(scores, text_scores(arm, arms[arm], prompts, data, "test"), atol=1e-6)
    with torch.no_grad():
        found = learner.eval().scores(torch.from_numpy(ids), "test", torch.arange(len(ids)))
    assert isinstance(learner, TextLearner) and learner.strategy in found
    if arm == "flip_both":
        assert learner.fusion.alpha.item() != 0.0
        mixed = torch.sigmoid(learner.fusion(found["id"], found["plm"]))
        np.testing.assert_allclose(scores, mixed.detach().numpy(), atol=1e-6)


def test_all_strategies_are_evaluated_and_the_servable_one_is_the_candidate(inputs, arms, tmp_path):
    training_set, prompts, _ = inputs
    settings = EvaluateSettings(resamples=10, degradation=False)
    found = evaluate(training_set, arms, "flip", tmp_path / "out", settings, prompts=prompts)
    assert set(found["arms"]) == {"flip", "flip_plm", "flip_both"}
    assert all(0 < arm["auc"] < 1 for arm in found["arms"].values())
    with pytest.raises(UserError, match="cannot be served"):
        evaluate(training_set, arms, "flip_both", tmp_path / "other", settings, prompts=prompts)
    with pytest.raises(UserError, match="reads prompts"):
        evaluate(training_set, arms, "flip", tmp_path / "other", settings)


def test_what_cannot_be_is_refused_by_name(inputs, tmp_path):
    training_set, prompts, made = inputs
    start = training_set, tmp_path / "out", "arm", "dcn", MODEL
    with pytest.raises(UserError, match="write --method flip"):
        finetune(*start, SETTINGS, 1, None, prompts, strategy="plm")
    hidden = SETTINGS.model_copy(update={"hidden_users": 0.2})
    with pytest.raises(UserError, match="leave them out"):
        finetune(*start, hidden, 1, made["frozen"], prompts, strategy="both")
    with pytest.raises(UserError, match="one of id, plm, both"):
        checked("all")
    (tmp_path / "plain").mkdir()
    assert strategy_of(tmp_path / "plain") == "id"
