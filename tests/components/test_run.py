"""Where state lies, and what a step leaves behind when it is done or fails."""

import threading
import time

import pytest

from components.dataset.errors import UserError, ValidationStoppedError
from components.run import aside, home, read_json, run_dir, step, steps_behind, write_json


@pytest.fixture(autouse=True)
def _folders(tmp_path, monkeypatch):
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TANDEM_RUN_DIR", str(tmp_path / "run"))


def test_state_lies_where_the_environment_says(tmp_path, monkeypatch):
    assert (home(), run_dir()) == (tmp_path / "home", tmp_path / "run")
    monkeypatch.delenv("TANDEM_RUN_DIR")
    assert run_dir() == tmp_path / "home" / "runs" / "adhoc"
    monkeypatch.delenv("TANDEM_HOME")
    monkeypatch.chdir(tmp_path)
    assert home() == tmp_path / ".tandem"


def test_a_finished_step_tells_what_it_took(tmp_path):
    with step("first", tmp_path / "a"):
        (tmp_path / "a").mkdir()
    (record,) = steps_behind([tmp_path / "a"])
    assert (record.step, record.gpus) == ("first", 0)
    assert record.seconds >= 0
    assert abs(record.began - time.time()) < 60
    log = (tmp_path / "run" / "run.log").read_text()
    assert "first" in log
    assert "finished" in log


def test_an_artefact_carries_all_steps_behind_it_once(tmp_path):
    root, left, right, end = (tmp_path / name for name in ("root", "left", "right", "end"))
    for name, output, inputs in [
        ("retrieve", root, [tmp_path / "never written"]),
        ("encode", left, [root]),
        ("encode", right, [root]),
        ("align", end, [left, right, root]),
    ]:
        with step(name, output, inputs):
            output.mkdir()
            time.sleep(0.002)
    assert [record.step for record in steps_behind([end, left, root])] == ["retrieve", "encode", "encode", "align"]
    assert [record.step for record in steps_behind([right])] == ["retrieve", "encode"]


class MisspeltError(UserError):
    """A user's error of a more special kind."""


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (UserError("no"), "user"),
        (MisspeltError("no"), "user"),
        (ValidationStoppedError("no"), "validation"),
        (KeyError("no"), "error"),
        (RuntimeError(), "error"),
    ],
)
def test_a_failed_step_says_whose_fault_it_was(tmp_path, error, kind):
    with pytest.raises(type(error)), step("third", tmp_path / "out"):
        raise error
    failure = read_json(tmp_path / "run" / "failure.json")
    assert (failure["kind"], failure["step"]) == (kind, "third")
    assert failure["message"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("folder", [True, False])
def test_what_is_written_aside_takes_its_place_only_on_success(tmp_path, folder):
    path = tmp_path / "kept"

    def write(text, fail=False):
        with aside(path) as draft:
            if folder:
                draft.mkdir()
            (draft / "file" if folder else draft).write_text(text)
            if fail:
                raise InterruptedError

    def text():
        return (path / "file" if folder else path).read_text()

    write("one")
    with pytest.raises(InterruptedError):
        write("half", fail=True)
    assert text() == "one"
    write("two")
    assert text() == "two"
    assert [entry.name for entry in tmp_path.iterdir()] == ["kept"]


def test_many_writers_leave_one_whole_file(tmp_path):
    path = tmp_path / "shared.json"
    threads = [threading.Thread(target=write_json, args=(path, {"n": [n] * 1000})) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(read_json(path)["n"])) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["shared.json"]


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_json_has_not_are_refused(tmp_path, number):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"auc": number})
    assert list(tmp_path.iterdir()) == []
