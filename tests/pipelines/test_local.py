"""How a run on this machine ends: told to the webhook once, by the process that runs the steps."""

import pytest
from kfp import dsl

from components.dataset.errors import UserError
from components.notify.webhook import ADDRESS
from pipelines.local import execute
from tests.components.listener import listening


@dsl.component(base_image="python", install_kfp_package=False)
def end(how: str):
    import os
    import signal

    from components.dataset.errors import UserError
    from components.run import VERDICT, run_dir, step, write_json

    with step("retrieve"):
        if how == "refused":
            raise UserError("no column 'clicked'")
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "judged":
            write_json(run_dir() / VERDICT, {"text": "# Promoted", "verdict": "promoted"})


@dsl.pipeline(name="one-step")
def pipeline(how: str) -> None:
    end(how=how)


@pytest.fixture
def ended(tmp_path, monkeypatch):
    """Lets a run end in some way; what the webhook was told of it."""
    for name in ("TANDEM_HOME", "TANDEM_RUN_DIR"):
        monkeypatch.setenv(name, str(tmp_path))  # what a run sets is taken back afterwards
    with listening() as (listener, address):
        monkeypatch.setenv(ADDRESS, address)

        def run(how, error=None):
            folder = tmp_path / "runs" / how
            if error is None:
                execute(pipeline, {"how": how}, folder, follow=False)
            else:
                with pytest.raises(error):
                    execute(pipeline, {"how": how}, folder, follow=False)
            return listener.told

        yield run


def test_a_verdict_is_told_as_it_was_left(ended):
    assert ended("judged") == [{"text": "# Promoted", "verdict": "promoted", "event": "judged"}]


def test_a_run_that_comes_to_no_verdict_tells_nothing(ended):
    assert ended("done") == []


def test_a_step_that_fails_is_told_in_its_words(ended):
    (told,) = ended("refused", UserError)
    assert (told["event"], told["step"], told["kind"], told["run_id"]) == ("failed", "retrieve", "user", "refused")
    assert told["message"] == "no column 'clicked'"


def test_a_step_that_is_killed_is_named(ended):
    (told,) = ended("killed", RuntimeError)
    assert (told["event"], told["step"], told["kind"]) == ("failed", "end", "lost")
    assert "Inner task failed: 'end'" in told["message"]
    assert "\x1b" not in told["text"]
