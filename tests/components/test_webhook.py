"""What a webhook is told, by a real server that listens."""

import logging

import pytest

from components import webhook
from components.dataset.errors import UserError
from components.run import step
from tests.components.listener import listening


@pytest.fixture
def listener(monkeypatch, tmp_path):
    with listening() as (server, address):
        monkeypatch.setenv(webhook.ADDRESS, address)
        monkeypatch.setenv("TANDEM_RUN_DIR", str(tmp_path / "run-7"))
        monkeypatch.setattr(webhook, "PAUSES", (0.01, 0.01))
        yield server


def test_a_step_that_fails_says_so(listener):
    with pytest.raises(UserError), step("retrieve"):
        raise UserError("clicks.csv: no column 'clicked' — write label.column")
    (told,) = listener.told
    assert (told["event"], told["step"], told["kind"], told["run_id"]) == ("failed", "retrieve", "user", "run-7")
    assert "clicks.csv: no column 'clicked' — write label.column" in told["text"]


def test_a_run_on_a_cluster_is_named_too(listener, monkeypatch, tmp_path):
    monkeypatch.delenv("TANDEM_RUN_DIR")
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path))
    monkeypatch.setenv("TANDEM_RUN_ID", "run-8")
    with pytest.raises(UserError), step("retrieve"):
        raise UserError("no such column")
    assert listener.told[0]["run_id"] == "run-8"


def test_a_step_that_comes_to_its_end_says_nothing(listener):
    with step("retrieve"):
        pass
    assert listener.told == []


@pytest.mark.parametrize(("statuses", "posts", "taken"), [([503, 429], 3, True), ([500, 500, 500], 3, False)])
def test_a_busy_webhook_is_tried_again(listener, statuses, posts, taken):
    listener.statuses = statuses
    assert webhook.tell("hello") is taken
    assert len(listener.told) == posts


def test_a_refusal_is_final_and_the_address_stands_in_no_log(listener, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("tandem"), "propagate", True)
    listener.statuses = [403]
    assert not webhook.tell("hello")
    assert len(listener.told) == 1
    assert "Forbidden" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/hook", "no address"])
def test_a_webhook_that_is_not_there_loses_no_error(address, monkeypatch, tmp_path):
    monkeypatch.setenv(webhook.ADDRESS, address)
    monkeypatch.setenv("TANDEM_RUN_DIR", str(tmp_path))
    monkeypatch.setattr(webhook, "PAUSES", ())
    with pytest.raises(UserError, match="the real error"), step("retrieve"):
        raise UserError("the real error")


def test_without_an_address_nothing_is_told(monkeypatch):
    monkeypatch.delenv(webhook.ADDRESS, raising=False)
    assert not webhook.tell("hello")
