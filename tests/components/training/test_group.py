"""Two processes compute what one does: gradients dense and sparse, batch statistics, and negatives of all."""

import pytest
import torch
from safetensors.torch import load_file

from components.dataset.errors import UserError
from components.training import launch
from components.training.group import Group, GroupBatchNorm
from components.training.launch import processes_to_start, train_together
from components.training.settings import ProcessSettings
from tests.components.training.together import everything, refuse, write_everything

PROCESSES = 2


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What a process alone finds, and what each of two finds."""
    output = tmp_path_factory.mktemp("together") / "found"
    train_together(write_everything, PROCESSES, threads=1, output=output)
    return everything(), [load_file(f"{output}.{rank}") for rank in range(PROCESSES)]


def test_two_processes_compute_what_one_does(found):
    alone, together = found
    for each in together:
        assert set(each) == set(alone)
        for name, value in alone.items():
            torch.testing.assert_close(each[name], value, atol=1e-6, rtol=1e-5, msg=lambda text, name=name: name + text)


def test_the_comparison_would_see_a_difference(found):
    """The gradients are not zero, and those of a part of the batch are others."""
    alone, _ = found
    assert all(value.abs().max() > 1e-3 for name, value in alone.items() if "0.bias" not in name)
    part = regression_of_a_part()
    assert not torch.allclose(part["gradient.layers.3.weight"], alone["gradient.layers.3.weight"], atol=1e-2)
    assert not torch.allclose(part["buffer.layers.1.running_mean"], alone["buffer.layers.1.running_mean"], atol=1e-2)


def regression_of_a_part():
    from tests.components.training import together

    class Half(Group):
        def share(self, rows):
            return slice(0, rows // 2)

    return together.regression(Half(0, 1, torch.device("cpu")))


def test_a_message_of_a_worker_reaches_the_caller_as_it_was_raised():
    with pytest.raises(UserError, match=r"^colour: write something else$"):
        train_together(refuse, PROCESSES, threads=1, field="colour")


def test_a_process_alone_is_a_group_of_one_and_changes_nothing():
    group = Group.join()
    assert (group.rank, group.size, group.first) == (0, 1, True)
    assert group.share(7) == slice(0, 7)
    norm = torch.nn.Sequential(torch.nn.BatchNorm1d(3))
    before = torch.get_rng_state()
    group.prepare(norm, seed=1)
    assert not isinstance(norm[0], GroupBatchNorm)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("rows", [0, 1, 7, 8])
def test_shares_are_all_rows_once(rows):
    shares = [Group(rank, 3, torch.device("cpu")).share(rows) for rank in range(3)]
    assert [row for share in shares for row in range(rows)[share]] == list(range(rows))
    sizes = [share.stop - share.start for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_one_process_is_the_default_without_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert processes_to_start(ProcessSettings()) == 1
    assert processes_to_start(ProcessSettings(processes=3)) == 3


def test_one_process_for_each_gpu_is_the_default_and_more_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert processes_to_start(ProcessSettings()) == 4
    assert processes_to_start(ProcessSettings(processes=2)) == 2
    with pytest.raises(UserError, match="4 GPUs"):
        processes_to_start(ProcessSettings(processes=5))


def test_a_worker_starts_no_workers(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert processes_to_start(ProcessSettings(processes=8)) == 1


def test_a_failure_of_a_worker_is_told(monkeypatch):
    monkeypatch.setattr(launch, "RESTARTS", 0)
    with pytest.raises(RuntimeError, match=r"1 times: ModuleNotFoundError: No module named 'tests\.nowhere'"):
        train_together(missing, 1, threads=1)


def missing() -> None:
    """Not to be found by a worker: its module has another name there."""


missing.__module__ = "tests.nowhere"
