"""Several processes compute what one does: gradients dense and sparse, batch statistics, and negatives of all."""

import platform
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from components.dataset.errors import UserError
from components.training import launch, shared
from components.training.group import Group, GroupBatchNorm
from components.training.launch import processes_to_start, train_together
from components.training.settings import LoopSettings
from tests.components.training.together import LENGTHS, everything, message, refuse, write_all

PROCESSES = 3
#: Whether the processor allows it that they share memory; if not they send each other messages through gloo.
SHARED = platform.machine() in ("x86_64", "AMD64")


@contextmanager
def nothing_left(folder):
    """A folder of its own for temporary files, of this process and its children, which is empty in the end."""
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setattr(tempfile, "tempdir", None)
        yield
    assert not list(folder.iterdir())


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What each of several processes has found, in one folder; none of them leaves a temporary file."""
    folder = tmp_path_factory.mktemp("together")
    with nothing_left(folder / "temporary"):
        train_together(write_all, PROCESSES, threads=1, output=folder, shared=SHARED)
    return folder


@pytest.fixture(scope="module")
def alone():
    """What a process alone finds."""
    return everything(Group.join())


def read(folder, name):
    return [load_file(folder / f"{name}.{rank}") for rank in range(PROCESSES)]


@pytest.mark.parametrize("way", ["shared", "gloo"] if SHARED else ["gloo"])
def test_several_processes_compute_what_one_does(alone, together, way):
    for each in read(together, way):
        assert set(each) == set(alone)
        for name, value in alone.items():
            torch.testing.assert_close(each[name], value, atol=1e-6, rtol=1e-5, msg=lambda text, name=name: name + text)


def test_the_comparison_would_see_a_difference(alone):
    """The gradients are not zero, and those of a part of the batch are others."""
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


@pytest.mark.skipif(not SHARED, reason="this processor may reorder writes")
def test_sums_and_gathers_through_shared_memory_are_exact(together):
    found = read(together, "messages")
    for length in LENGTHS:
        for kind in (torch.float32, torch.float64, torch.int64):
            said = torch.stack([message(rank, length, kind) for rank in range(PROCESSES)])
            for each in found:
                assert torch.equal(each[f"gather.{length}.{kind}"], said)
                assert torch.equal(each[f"sum.{length}.{kind}"], said.sum(0))
    total = sum(message(rank, 13, torch.float32) for rank in range(PROCESSES))
    for rank, each in enumerate(found):
        own = message(rank, 13, torch.float32)
        assert torch.equal(each["table"], torch.stack([own, total, own], dim=1))


def test_memory_is_looked_for_on_a_disk_where_containers_have_little(monkeypatch, tmp_path):
    places = []

    def refuse_the_first(handle, start, size):
        places.append(Path(f"/proc/self/fd/{handle}").readlink())
        if len(places) == 1:
            raise OSError("no space left on device")

    monkeypatch.setattr(shared.os, "posix_fallocate", refuse_the_first)
    monkeypatch.setattr(shared.tempfile, "gettempdir", lambda: str(tmp_path))
    path = Path(shared._reserved(4096))
    assert path.parent == tmp_path
    assert not places[0].exists()


def test_a_message_of_a_worker_reaches_the_caller_as_it_was_raised():
    with pytest.raises(UserError, match=r"^colour: write something else$"):
        train_together(refuse, 2, threads=1, field="colour")


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
    assert processes_to_start(LoopSettings()) == 1
    assert processes_to_start(LoopSettings(processes=3)) == 3


def test_one_process_for_each_gpu_is_the_default_and_more_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert processes_to_start(LoopSettings()) == 4
    assert processes_to_start(LoopSettings(processes=2)) == 2
    with pytest.raises(UserError, match="4 GPUs"):
        processes_to_start(LoopSettings(processes=5))


def test_a_worker_starts_no_workers(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert processes_to_start(LoopSettings(processes=8)) == 1


def test_a_failure_of_a_worker_is_told_and_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(launch, "RESTARTS", 0)
    told = pytest.raises(RuntimeError, match=r"1 times: ModuleNotFoundError: No module named 'tests\.nowhere'")
    with nothing_left(tmp_path / "temporary"), told:
        train_together(missing, 1, threads=1)


def missing() -> None:
    """Not to be found by a worker: its module has another name there."""


missing.__module__ = "tests.nowhere"
