"""The service's own log, judged and rebuilt by the commands that operators have."""

from __future__ import annotations

import json
import time

import pyarrow.dataset as ds
import pytest

from components.dataset.errors import UserError
from components.monitor.logs import of_request
from tests.pipelines.shop import tandem


@pytest.fixture(scope="module")
def answers(service, shop):
    """Answers that are in the log by now, the first of them with a click."""
    found = [
        service.post(
            "/rank", {"user_id": f"c{n}", "item_ids": ["s1", "s2", "s3"], "context": {"device": "phone"}}
        ).json()
        for n in range(20)
    ]
    clicked = {"request_id": found[0]["request_id"], "item_id": found[0]["items"][0]["item_id"]}
    assert service.post("/feedback", {"events": [clicked]}).status_code == 200
    deadline = time.monotonic() + 60
    while not {answer["request_id"] for answer in found} <= logged(shop):
        assert time.monotonic() < deadline
        time.sleep(0.3)
    return found


def logged(shop):
    folder = shop / "home/served/shop/predictions"
    files = list(folder.glob("*.parquet"))
    return set(ds.dataset(files).to_table(["request_id"])["request_id"].to_pylist()) if files else set()


def test_a_score_is_rebuilt(answers, shop):
    done = tandem("explain", answers[0]["request_id"], "--dataset", shop / "shop.yaml", home=shop / "home")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["model_version"] == "1"
    assert told["furthest"] < 1e-6
    assert told["skew"] == {}
    for item, served in zip(told["items"], answers[0]["items"], strict=True):
        assert item["item_id"] == served["item_id"]
        assert item["served"] == pytest.approx(served["probability"], abs=1e-7)
        assert item["offline"] == pytest.approx(item["served"], abs=1e-6)
        assert set(item["without"]) == {"gender", "colours", "price", "device"}
        assert any(item["without"].values())


def test_a_request_that_was_not_logged_is_said_to_be_so(answers, shop):
    with pytest.raises(UserError, match="is not in the log"):
        of_request(shop / "home/served/shop", "f" * 32)


def test_a_limit_that_is_broken_fails_the_command(answers, shop):
    arguments = ["--dataset", "shop", "--log", shop / "home/served/shop", "--hours", "1", "--replay", "0", "--json"]
    # A click or two say next to nothing.
    arguments += ["--delay", "0", "--calibration", "0.99", "1.01"]
    calm = tandem("monitor", *arguments, "--max-degraded", "1", home=shop / "home")
    told = json.loads(calm.stdout)
    assert (calm.returncode, told["beyond"], set(told["too_few"])) == (0, [], {"calibration"}), calm.stderr
    assert "too few for a limit of calibration" in calm.stderr
    few = ["--min-rows", "1", "--min-each", "1"]
    moved = tandem("monitor", *arguments, "--max-psi", "0.25", *few, home=shop / "home")
    assert moved.returncode == 3, moved.stderr
    for begin in ("PSI of device is", "calibration is"):
        (line,) = (line for line in json.loads(moved.stdout)["beyond"] if line.startswith(begin))
        assert line in moved.stderr


def test_what_was_served_is_judged(answers, shop):
    arguments = ["--dataset", shop / "shop.yaml", "--delay", "0", "--json"]
    done = tandem("monitor", *arguments, home=shop / "home")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert sum(hour["clicks"] for hour in told["hours"]) >= 1
    assert told["model_version"] == "1"
    assert {"gender", "colours", "price", "device"} <= set(told["psi"])
    assert told["psi"]["device"] > 0.25, "phones alone were asked with; training had others too"
    assert sum(hour["judged"] for hour in told["hours"]) >= 60
    for name in ("gender", "colours", "price"):
        line = told["skew"]["features"][name]
        assert line["mismatches"] == 0, line
        assert line["compared"] >= 60
