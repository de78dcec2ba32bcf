"""The training loop: repeatable, stops early, keeps the best weights, and names a loss that is no number."""

import math

import numpy as np
import pytest
import torch

from components.dataset.training_set import SplitArrays
from components.models.config import BackboneConfig
from components.models.registry import build_backbone
from components.training import learner, loop
from components.training.batches import Batches
from components.training.group import Group
from components.training.loop import TrainingError, fit, predict
from components.training.metrics import auc
from components.training.seeds import seed_everything
from components.training.settings import LoopSettings
from tests.components.models.making import layout_of

LAYOUT = layout_of(1, 1, 2, sizes=12)
CONFIG = BackboneConfig(embedding_dim=4, hidden=(8,), layers=1, dropout=0.0)


def arrays(rows, seed):
    """Rows whose label follows from the first two fields, with some noise."""
    random = np.random.default_rng(seed)
    slots = LAYOUT.fields
    ids = np.zeros((rows, LAYOUT.width), np.int32)
    for field in slots:
        ids[:, field.start : field.stop] = random.integers(
            field.offset + 3, field.offset + field.size, (rows, field.width)
        )
    taste = (ids[:, 0] + ids[:, 1]) % 2
    labels = np.where(random.random(rows) < 0.9, taste, 1 - taste).astype(np.float32)
    zeros = np.zeros(rows, np.int64)
    return SplitArrays(ids, labels, zeros, zeros, zeros.astype(np.int32), zeros.astype(np.int32))


TRAIN, VALID = arrays(1500, 1), arrays(400, 2)


def trained(seed=3, backbone="autoint", train=TRAIN, **changes):
    settings = LoopSettings(**{"epochs": 6, "batch_size": 64, "learning_rate": 0.02, "patience": 6, **changes})
    seed_everything(seed)
    model = build_backbone(backbone, LAYOUT, CONFIG)
    return model, fit(model, train, VALID, settings, seed)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_it_learns_an_interaction_that_no_single_field_shows():
    model, result = trained(epochs=25, patience=25)
    assert result.best_auc > 0.8
    assert auc(VALID.labels, predict(model, VALID.ids)) == pytest.approx(result.best_auc, abs=1e-9)


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    one, other, third = (weights(trained(seed)[0]) for seed in (3, 3, 4))
    assert same(one, other)
    assert not same(one, third)


def test_the_best_epochs_weights_remain():
    model, result = trained(epochs=8, learning_rate=0.3)
    aucs = [line.valid_auc for line in result.history]
    assert result.best_epoch == 1 + int(np.argmax(aucs))
    assert auc(VALID.labels, predict(model, VALID.ids)) == pytest.approx(max(aucs), abs=1e-9)


def test_it_stops_after_patience_epochs_without_a_better_one(monkeypatch):
    seen = iter([0.6, 0.7, 0.65, 0.66, 0.9])
    monkeypatch.setattr(loop, "auc", lambda *_: next(seen))
    _, result = trained(epochs=20, patience=2)
    assert [line.valid_auc for line in result.history] == [0.6, 0.7, 0.65, 0.66]
    assert result.best_epoch == 2


def test_a_plateau_lowers_the_rate_and_goes_back_to_the_best_weights(monkeypatch):
    seen = iter([0.7, 0.6, 0.6, 0.8])
    monkeypatch.setattr(loop, "auc", lambda *_: next(seen))
    _, result = trained(epochs=4, patience=4, plateau_factor=0.5)
    assert [line.learning_rate for line in result.history] == pytest.approx([0.02, 0.02, 0.01, 0.005])


def test_one_dense_step_is_adams():
    """One step on one batch, against Adam's first step written out: lr * g / (|g| + eps)."""
    few = SplitArrays(*(getattr(TRAIN, name)[:64] for name in TRAIN.__dataclass_fields__))
    seed_everything(0)
    config = BackboneConfig(embedding_dim=4, hidden=(8,), batch_norm=False, dropout=0.0)
    model = build_backbone("wide_deep", LAYOUT, config)
    before = weights(model)
    ids, labels = torch.from_numpy(few.ids), torch.from_numpy(few.labels)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(model(ids), labels)
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
    settings = LoopSettings(epochs=1, batch_size=64, learning_rate=0.01, embedding_l2=0.0)
    fit(model, few, VALID, settings, 0)
    for name, value in model.named_parameters():
        gradient = gradients[name]
        expected = before[name] - 0.01 * gradient / (gradient.abs() + 1e-8)
        # Gradients that are rounding errors have no sign that could be compared.
        sure = (gradient.abs() > 1e-6) | (gradient == 0)
        assert sure.float().mean() > 0.5
        torch.testing.assert_close(value[sure], expected[sure], atol=2e-4, rtol=0)


def test_l2_shrinks_the_rows_that_are_read():
    plain, _ = trained(embedding_l2=0.0, epochs=3)
    shrunk, _ = trained(embedding_l2=1.0, epochs=3)
    assert shrunk.embedding.table.weight.norm() < 0.5 * plain.embedding.table.weight.norm()


def test_rows_that_no_batch_reads_stay_as_they_were_in_a_sparse_table(monkeypatch):
    monkeypatch.setattr("components.models.embedding.SPARSE_FROM", 1)
    seed_everything(3)
    before = build_backbone("autoint", LAYOUT, CONFIG).embedding.table.weight.detach().clone()
    read = np.unique(TRAIN.ids)
    unread = np.setdiff1d(np.arange(len(before)), read)
    model, result = trained(epochs=2)
    after = model.embedding.table.weight.detach()
    assert torch.equal(after[unread], before[unread])
    assert not torch.equal(after[read], before[read])
    assert result.history[-1].train_loss < math.log(2)


def test_sparse_and_dense_tables_learn_alike(monkeypatch):
    _, dense = trained(epochs=20, patience=20)
    monkeypatch.setattr("components.models.embedding.SPARSE_FROM", 1)
    _, sparse = trained(epochs=20, patience=20)
    assert sparse.best_auc == pytest.approx(dense.best_auc, abs=0.05)


def test_a_loss_that_is_no_number_stops_the_training(monkeypatch):
    monkeypatch.setattr(
        learner.functional, "binary_cross_entropy_with_logits", lambda logits, _: logits.sum() * math.nan
    )
    with pytest.raises(TrainingError, match=r"finetune\.learning_rate"):
        trained()


def test_a_validation_part_of_one_class_is_named():
    settings = LoopSettings(epochs=1)
    one = SplitArrays(
        VALID.ids, np.ones_like(VALID.labels), *(getattr(VALID, name) for name in list(VALID.__dataclass_fields__)[2:])
    )
    with pytest.raises(TrainingError, match=r"split\.ratios"):
        fit(build_backbone("dcn", LAYOUT, CONFIG), TRAIN, one, settings, 0)


@pytest.mark.parametrize(("rows", "size", "sizes"), [(10, 4, [4, 4]), (8, 4, [4, 4]), (3, 8, [3]), (9, 8, [8])])
def test_an_epoch_reads_full_batches_of_different_rows(rows, size, sizes):
    """Every full batch; fewer rows than a batch are one batch, and no batch is of one row."""
    few = SplitArrays(*(getattr(TRAIN, name)[:rows] for name in TRAIN.__dataclass_fields__))
    batches = Batches(few, Group(0, 1, torch.device("cpu")))
    batches.ids = torch.arange(rows).unsqueeze(1)
    drawn = [ids for ids, *_ in batches.shuffled(size, torch.Generator().manual_seed(0))]
    assert [len(ids) for ids in drawn] == sizes
    assert len(torch.cat(drawn).unique()) == sum(sizes)


def test_predictions_do_not_depend_on_the_batch():
    model, _ = trained(epochs=1)
    whole = predict(model, VALID.ids)
    np.testing.assert_allclose(predict(model, VALID.ids, 7), whole, atol=1e-6)
    assert predict(model, VALID.ids[:0]).shape == (0,)
    assert not model.training
