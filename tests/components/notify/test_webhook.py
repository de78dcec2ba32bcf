"""What a webhook is posted, by a real server that listens."""

import logging

import pytest

from components.notify import webhook
from components.notify.report import Failure, report
from tests.components.listener import listening


@pytest.fixture
def listener(monkeypatch):
    with listening() as (server, address):
        monkeypatch.setenv(webhook.ADDRESS, address)
        monkeypatch.setattr(webhook, "PAUSES", (0.01, 0.01))
        yield server


def test_facts_stand_beside_the_text(listener, tmp_path):
    report(tmp_path / "run-7", [Failure("retrieve", "user", "clicks.csv: no column 'größe' — write label.column")])
    (told,) = listener.told
    assert (told["event"], told["step"], told["kind"], told["run_id"]) == ("failed", "retrieve", "user", "run-7")
    assert "clicks.csv: no column 'größe' — write label.column" in told["text"]


@pytest.mark.parametrize(("statuses", "posts", "taken"), [([503, 429], 3, True), ([500, 500, 500], 3, False)])
def test_a_busy_webhook_is_tried_again(listener, statuses, posts, taken):
    listener.statuses = statuses
    assert webhook.post("hello") is taken
    assert len(listener.told) == posts


def test_a_refusal_is_final_and_the_address_stands_in_no_log(listener, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("tandem"), "propagate", True)
    listener.statuses = [403]
    assert not webhook.post("hello")
    assert len(listener.told) == 1
    assert "Forbidden" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/hook", "no address"])
def test_a_webhook_that_is_not_there_is_no_error(address, monkeypatch):
    monkeypatch.setenv(webhook.ADDRESS, address)
    monkeypatch.setattr(webhook, "PAUSES", ())
    assert not webhook.post("hello")


def test_without_an_address_nothing_is_posted(monkeypatch):
    monkeypatch.delenv(webhook.ADDRESS, raising=False)
    assert not webhook.post("hello")
