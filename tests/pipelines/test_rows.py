"""Items and users that came after training: a materialisation gives them rows, and the service takes them up."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from components.dataset.bundle import Bundle
from components.dataset.errors import UserError
from components.dataset.prompts import PromptSet
from components.dataset.training_set import TrainingSet
from components.evaluate.scoring import score_champion
from components.models.plm import PlmSpec
from components.prompt_transform.newcomers import newcomers
from components.registry import client
from components.registry.mirror import mirror
from components.registry.rows import fetch_checkpoint
from components.run import read_json
from components.training.checkpoints import load_model
from components.training.growth import NewRows
from components.training.newcomers import id_field
from tests.components.encode.making import naive_vectors
from tests.components.registry.making import own_registry, said
from tests.pipelines.shop import QUICKLY, tandem, write_shop
from tests.serving.conftest import started

pytestmark = pytest.mark.slow

#: An item that only the test part shows, and one that comes after the run.
LATE = {"sku": "s899", "colours": "blue|shiny", "price": 7.5, "title": "A blue thing, number 899 größe 2"}
NEW = {"sku": "s900", "colours": "red|shiny", "price": 12.5, "title": "A red thing, number 900 größe 1"}
PAIRS = [("c1", "s1"), ("c2", "s3"), ("c1", "s900"), ("c900", "s2")]


@pytest.fixture
def shop(tmp_path):
    """A shop with a deployed champion that can make rows, and since then a new item and a new user in its files.

    It comes with what the run has printed.
    """
    spec, home = write_shop(tmp_path), tmp_path / "home"
    show_late(tmp_path)
    maps = ("--set", "finetune.map_rows=[user, item]", "--set", "finetune.hidden_items=0.3")
    done = tandem("run", "--dataset", spec, "--json", *QUICKLY, *maps, home=home)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    append_item(tmp_path, NEW)
    with (tmp_path / "users.csv").open("a") as file:
        file.write("c900,F\n")
    with own_registry(home):
        yield tmp_path, result


def append_item(folder, item):
    with (folder / "items.jsonl").open("a") as file:
        file.write(json.dumps(item, ensure_ascii=False) + "\n")


def show_late(folder):
    """Of the log's last 60 impressions every third is one of LATE."""
    append_item(folder, LATE)
    lines = (folder / "clicks.csv").read_text().splitlines()
    for place in range(len(lines) - 60, len(lines), 3):
        user, _, *rest = lines[place].split(",")
        lines[place] = ",".join([user, LATE["sku"], *rest])
    (folder / "clicks.csv").write_text("\n".join(lines) + "\n")


def scores(service):
    """Probability and cold sides of each of PAIRS."""
    asked = {"pairs": [{"user_id": user, "item_id": item} for user, item in PAIRS]}
    answer = service.post("/predict", asked)
    assert answer.status_code == 200, answer.text
    return [(pair["probability"], tuple(pair["cold"])) for pair in answer.json()["pairs"]]


def follow(shop, service, version):
    """What the process beside the service does every few seconds."""
    mirror("shop", shop / "home/serving/shop")
    deadline = time.monotonic() + 180
    while service.client.get("/model").json()["model_version"] != version:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def mapped_score(shop, folder, text):
    """What torch gives the new item for c1 with its text at hand: the map's row in the place of the item's."""
    first = client.version_of("shop", "1")
    bundle = Bundle.open(client.fetch(first, folder / "bundle"))
    checkpoint = fetch_checkpoint(first, bundle, folder / "checkpoint")
    model, maps = load_model(checkpoint).eval(), NewRows.load(checkpoint)
    gender = dict(line.split(",") for line in (shop / "users.csv").read_text().splitlines())["c1"]
    item = {"item_id": ["s900"], "colours": [["red", "shiny"]], "price": [12.5]}
    ids = torch.from_numpy(bundle.encode({"user_id": ["c1"], "gender": [gender], "device": [None], **item}))
    vector = naive_vectors(PlmSpec(), [text])
    with torch.inference_mode():
        embedded = model.embedding(ids)
        embedded[:, id_field(model.layout, "item").place] = maps("item", torch.from_numpy(vector))
        return float(torch.sigmoid(model.logits(model.interact(embedded, ids))))


def told_beforehand(result, folder):
    """The test part, and what the run's evaluation says of it with rows for its newcomers."""
    arm = result["arms"]["ctrl"]
    assert arm["with_new_rows"]["new"] == {"item": 1, "user": 0}
    assert arm["with_new_rows"]["slices"]["new_items"]["rows"] == 20
    assert arm["with_new_rows"]["slices"]["warm"] == pytest.approx(arm["slices"]["warm"], abs=1e-6)
    assert arm["with_new_rows"]["slices"]["new_items"]["logloss"] != arm["slices"]["new_items"]["logloss"]
    assert "1 new items and 0 new users of the test part have rows" in Path(result["paths"]["report"]).read_text()
    assert "arm ctrl with rows for 1 new items, 0 new users: AUC" in Path(result["paths"]["log"]).read_text()
    scores = pq.read_table(Path(result["paths"]["evaluation"]) / "scores_ctrl_with_new_rows.parquet")
    (training_set,) = (folder / "home/runs").glob("*/artifacts/*/retrieve/training_set")
    return TrainingSet.open(training_set).table("test"), scores["probability"].to_numpy()


def test_newcomers_get_rows_that_the_running_service_takes_up(shop, tmp_path):
    shop, result = shop
    rows, foretold = told_beforehand(result, shop)
    with started(shop, tmp_path / "log", poll=0.1) as service:
        strange = scores(service)
        assert [cold for _, cold in strange] == [(), (), ("item",), ("user",)]

        done = tandem("materialize", "--rows", "--dataset", shop / "shop.yaml", "--json", home=shop / "home")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1])["rows"] == {
            "new": {"user": 1, "item": 2},
            "grown_from": "1",
            "version": "2",
        }
        assert said("shop")[-1] == ("rows added", "2")
        (run,) = (shop / "home/runs").glob("materialize-*/artifacts/*")
        texts = PromptSet.open(run / "newcomers/prompts").texts().to_pydict()
        (text,) = [text for text in texts["text"] if "A red thing, number 900" in text]
        # Another woman is said in the same words as those in training: the contract is the same to the letter. And
        # the item that the test part showed has been encoded with it.
        assert read_json(run / "encode/embeddings/meta.json")["cache"]["hits"] == 2
        larger = client.fetch(client.version_of("shop", "2"), tmp_path / "larger")
        assert score_champion(larger, rows, 64).probabilities == pytest.approx(foretold, abs=1e-5)

        follow(shop, service, "2")
        known = scores(service)
        assert known[:2] == strange[:2]
        assert [cold for _, cold in known] == [()] * 4
        assert known[2][0] == pytest.approx(mapped_score(shop, tmp_path, text), abs=1e-5)

        tables, spec = run / "validate/validated", shop / "shop.yaml"
        again = newcomers(str(spec), tables, None, tmp_path / "prompts", tmp_path / "found")
        assert (again["version"], again["new"]) == ("2", {"user": 0, "item": 0})

        client.rollback("shop")
        follow(shop, service, "1")
        back = scores(service)
        assert back[:2] == strange[:2]
        # Its features are online by now: what is gone is the row alone.
        assert [cold for _, cold in back] == [(), (), ("item",), ("user",)]
        assert all(abs(known[place][0] - back[place][0]) > 1e-4 for place in (2, 3))

    spec.write_text(spec.read_text() + "prompt: {item: This is a thing}\n")
    with pytest.raises(UserError, match=r"tandem-shop version 1 was trained on other words than 'shop' gives now"):
        newcomers(str(spec), tables, None, tmp_path / "prompts", tmp_path / "found")
