"""A model that reads the user's history and the day, over HTTP: what is pushed changes the next answer as it should."""

from __future__ import annotations

import json
import re
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from components.dataset.catalog import load_spec
from components.dataset.events import LABELS, MOMENTS
from components.dataset.moment import request_context
from components.dataset.spec import EVENT_TIMESTAMP
from components.dataset.training_set import TrainingSet
from components.monitor.logs import of_request
from components.monitor.skew import skew
from components.training.checkpoints import load_model
from components.training.loop import predict
from tests.pipelines.shop import QUICKLY, tandem, write_shop, write_spec
from tests.serving.conftest import Service, started

ITEMS = [f"s{number}" for number in range(12)]
HISTORY = {"length": 5, "fields": ["colours"], "behaviour": ["device"]}
SMALL = ("pretrain.epochs=2", "model.encoder_layers=1", "model.queries=2", "finetune.batch_size=32")


@pytest.fixture(scope="module")
def sequences(made_once) -> Path:
    """A shop with a history, whose deployed model was pre-trained on it."""

    def fill(folder: Path) -> None:
        write_shop(folder)
        settings = [*QUICKLY, *(word for assignment in SMALL for word in ("--set", assignment))]
        # Of the moment the day, which hardly ever changes between an answer and what it is compared with.
        dataset = write_spec(folder, history=HISTORY, moment=["weekday"])
        done = tandem(
            "run", "--dataset", dataset, "--method", "srp4ctr", "--run-id", "first", *settings, home=folder / "home"
        )
        assert done.returncode == 0, done.stderr

    return made_once("deployed-sequences", fill)


def online(folder: Path, user: str) -> dict[str, list[object]]:
    """The user's row in the online store, as columns of one row."""
    from feature_repo.store import online_rows, open_store

    spec = load_spec(str(folder / "shop.yaml"))
    return online_rows(open_store(spec), spec, "user", [user])


def by_torch(folder: Path, user: str) -> np.ndarray:
    """What the trained checkpoint makes of the user's online row and the items' offline ones."""
    (training_set,) = folder.glob("home/runs/first/artifacts/*/retrieve/training_set")
    (trained,) = folder.glob("home/runs/first/artifacts/*/finetune-2/trained")
    data = TrainingSet.open(training_set)
    items = {row["item_id"]: row for row in data.table("train").to_pylist()}
    known = {name: values[0] for name, values in online(folder, user).items()}
    now = datetime.now(UTC)
    known |= {name: values[0] for name, values in request_context({EVENT_TIMESTAMP: [now]}).items()}
    rows = [{**items[item], **known, "device": "phone", EVENT_TIMESTAMP: now} for item in ITEMS]
    ids = data.vocabulary.encode({name: [row.get(name) for row in rows] for name in data.vocabulary.columns})
    return predict(load_model(trained), ids)


def asked(service: Service, user: str) -> tuple[str, np.ndarray]:
    """The id of a ranking and its items' probabilities, in the order of ITEMS."""
    answer = service.post("/rank", {"user_id": user, "item_ids": ITEMS, "context": {"device": "phone"}}).json()
    assert answer["degraded"] == []
    scores = {item["item_id"]: item["probability"] for item in answer["items"]}
    return answer["request_id"], np.array([scores[item] for item in ITEMS])


def see_age_of_histories(service: Service, moment: datetime) -> None:
    """Wait until operators are told that the newest event of any history is of this moment."""
    told = re.compile(r'tandem_data_age_seconds\{[^}]*view="user_history"[^}]*\} (\S+)')
    deadline = time.monotonic() + 30
    while True:
        found = told.search(service.client.get("/metrics").text)
        if found and abs(float(found[1]) - (datetime.now(UTC) - moment).total_seconds()) < 60:
            return
        assert time.monotonic() < deadline, found or service.log.read_text()
        time.sleep(0.2)


def test_what_is_reported_to_the_service_is_read_by_the_next_request(sequences, tmp_path, monkeypatch):
    monkeypatch.setenv("TANDEM_HOME", str(sequences / "home"))
    with started(sequences, tmp_path / "log", "--push") as service:
        request_id, before = asked(service, "c2")
        moment = datetime.now(UTC) - timedelta(seconds=6000)
        event = {"request_id": request_id, "item_id": "s5", "user_id": "c2", "at": moment.isoformat()}
        said = service.post("/feedback", {"events": [{**event, "context": {"device": "desktop"}}]})
        assert said.json() == {"recorded": 1}
        deadline = time.monotonic() + 120
        while (online(sequences, "c2")["history_product_id"][0] or ["none"])[-1] != "s5":
            assert time.monotonic() < deadline, service.log.read_text()
            time.sleep(0.2)
        _, after = asked(service, "c2")
    np.testing.assert_allclose(after, by_torch(sequences, "c2"), atol=1e-5)
    # A barely trained model says little of one event more, but more than rounding does.
    assert np.abs(after - before).max() > 2e-5


def test_an_event_that_is_pushed_is_read_by_the_next_request(sequences, tmp_path, monkeypatch):
    monkeypatch.setenv("TANDEM_HOME", str(sequences / "home"))
    before = online(sequences, "c1")
    # In the middle of a bucket of gaps, so that seconds do not matter.
    moment = datetime.now(UTC) - timedelta(seconds=6000)
    event = {"user_id": "c1", "item_id": "s3", "label": 1, "event_timestamp": moment.isoformat()}
    (tmp_path / "events.jsonl").write_text(json.dumps({**event, "context": {"device": "desktop"}}) + "\n")
    with started(sequences, tmp_path / "log", log_share=1, log_seconds=0.5) as service:
        request_id, first = asked(service, "c1")
        np.testing.assert_allclose(first, by_torch(sequences, "c1"), atol=1e-5)
        done = tandem("push", tmp_path / "events.jsonl", "--dataset", sequences / "shop.yaml", home=sequences / "home")
        assert (done.returncode, done.stdout) == (0, "1 users written\n"), done.stderr
        _, second = asked(service, "c1")
        see_age_of_histories(service, moment)
    after = online(sequences, "c1")
    (seen,), (labels,), (moments,) = (after[name] for name in ("history_product_id", LABELS, MOMENTS))
    assert (seen[-1], labels[-1], moments[-1]) == ("s3", 1, round(moment.timestamp() * 1e6))
    assert list(seen[:-1]) == list(before["history_product_id"][0])[-4:]
    np.testing.assert_allclose(second, by_torch(sequences, "c1"), atol=1e-5)
    assert np.abs(second - first).max() > 2e-5
    served = of_request(sequences / "home/served/shop", request_id)
    told = skew(load_spec(str(sequences / "shop.yaml")), served)["features"]["request_weekday"]
    assert (told["compared"], told["mismatches"]) == (len(ITEMS), 0), "offline the day is the same"
