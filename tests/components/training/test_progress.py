"""Checkpoints of a training: due by the clock, whole or not there, and read back bit by bit."""

import pytest
import torch

from components.training import progress as module
from components.training.group import Group
from components.training.optimizer import LazyAdam
from components.training.progress import Progress, load_optimizer, optimizer_state
from components.training.settings import LoopSettings

ALONE = Group(0, 1, torch.device("cpu"))


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path))
    return tmp_path


def progress(minutes=1.0, **parts):
    return Progress("finetune", {"seed": 1, "settings": LoopSettings(), **parts}, minutes, ALONE)


def test_what_is_kept_is_found_again_by_the_same_training_only():
    tensors = {"a": torch.randn(3), "b": torch.arange(4)}
    progress().keep({**tensors, "view_of_a": tensors["a"][:2]}, {"epoch": 3, "loss": 0.1})
    drawn = torch.rand(5)
    found, state = progress().find()
    assert state == {"epoch": 3, "loss": 0.1}
    assert all(torch.equal(found[name], value) for name, value in tensors.items())
    assert torch.equal(torch.rand(5), drawn), "the random state was put back"
    assert progress(seed=2).find() is None
    assert progress(settings=LoopSettings(epochs=3)).find() is None
    progress().clear()
    assert progress().find() is None


def test_a_checkpoint_that_cannot_be_read_is_no_checkpoint(home):
    kept = progress()
    kept.keep({"a": torch.randn(300)}, {})
    kept.path.write_bytes(kept.path.read_bytes()[:-100])
    assert progress().find() is None
    assert [path.name for path in kept.path.parent.iterdir()] == [kept.path.name], "no draft is left"


def test_it_is_due_after_its_minutes_and_asked_seldom(monkeypatch):
    now, asked = [0.0], []
    monkeypatch.setattr(module.time, "monotonic", lambda: asked.append(now[0]) or now[0])
    watched = progress(minutes=10)
    due = []
    for step in range(1, 3001):
        now[0] += 0.5
        if watched.due():
            due.append(step)
            watched.keep({}, {})
    assert len(due) == 2
    assert due[0] == pytest.approx(1200, abs=2)
    assert due[1] == pytest.approx(2400, abs=4)
    assert len(asked) < 80


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_an_optimizer_goes_on_as_if_nothing_had_been(kind):
    def made():
        torch.manual_seed(0)
        table = torch.nn.Embedding(6, 3, sparse=kind == "sparse")
        return table, LazyAdam(list(table.parameters()), lr=0.1, weight_decay=0.01)

    def step(table, optimizer, ids):
        optimizer.zero_grad()
        table(torch.tensor(ids)).square().sum().backward()
        optimizer.step()

    whole, first = made()
    for ids in ([1, 2], [2, 3], [1, 5]):
        step(whole, first, ids)
        first.param_groups[0]["lr"] *= 0.5
    part, second = made()
    for ids in ([1, 2], [2, 3]):
        step(part, second, ids)
        second.param_groups[0]["lr"] *= 0.5
    tensors, state = optimizer_state(second, "o")
    again, third = made()
    again.load_state_dict(part.state_dict())
    load_optimizer(third, "o", {**tensors, "other.0.step": torch.zeros(1)}, state)
    step(again, third, [1, 5])
    assert torch.equal(again.weight, whole.weight)
    assert not torch.equal(again.weight, part.weight)
