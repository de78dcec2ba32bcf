"""The service as its callers meet it: a real process, asked over HTTP."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import psutil
import pytest

from components.dataset.bundle import Bundle
from components.dataset.training_set import TrainingSet
from components.training.checkpoints import load_model
from components.training.loop import predict
from serving.errors import refusal

ITEMS = [f"s{number}" for number in range(40)]


def test_items_come_back_in_order(service):
    answer = service.post("/rank", {"user_id": "c1", "item_ids": ITEMS, "context": {"device": "phone"}})
    assert answer.status_code == 200
    body = answer.json()
    scores = [item["probability"] for item in body["items"]]
    assert scores == sorted(scores, reverse=True)
    assert sorted(item["item_id"] for item in body["items"]) == sorted(ITEMS)
    assert all(0 < score < 1 for score in scores)
    assert (body["user_cold"], body["model_version"]) == (False, "1")
    assert len(set(scores)) > len(ITEMS) / 2


def test_top_k_is_the_head_of_the_list(service):
    whole = service.post("/rank", {"user_id": "c2", "item_ids": ITEMS}).json()["items"]
    head = service.post("/rank", {"user_id": "c2", "item_ids": ITEMS, "top_k": 5}).json()["items"]
    assert [item["item_id"] for item in head] == [item["item_id"] for item in whole[:5]]


ODD = {
    "ids of both kinds": {"user_id": 7, "item_ids": ["s1", 12, "nothing"]},
    "an id of many digits": {"user_id": 10**40, "item_ids": ["s1", -(10**30)]},
    "all of it": {"user_id": "c3", "item_ids": [*ITEMS, "s1", "none"], "context": {"device": "phone"}, "top_k": 30},
    "a stranger": {"user_id": "nobody", "item_ids": ITEMS},
    "context that the model has not": {"user_id": "c1", "item_ids": ITEMS, "context": {"moon": "full"}},
    "context of another type": {"user_id": "c1", "item_ids": ["s1"], "context": {"device": 1.5}},
    "wrong in form": {"user_id": "c1", "item_ids": []},
}


@pytest.mark.parametrize("name", ODD)
def test_both_ways_to_an_answer_give_the_same(service, name):
    """A body without a content type is read by BentoML, one with the right one by ourselves."""
    request = ODD[name]
    context = {"context": request["context"]} if "context" in request else {}
    pairs = [{"user_id": request["user_id"], "item_id": item, **context} for item in request["item_ids"]]
    for path, content in (("/rank", request), ("/predict", {"pairs": pairs})):
        answers = [service.post(path, content), service.client.post(path, content=json.dumps(content))]
        bodies = [{**answer.json(), "request_id": ""} for answer in answers]
        assert bodies[0] == bodies[1]
        assert answers[0].status_code == answers[1].status_code


def test_pairs_agree_with_the_ranking(service):
    ranked = service.post("/rank", {"user_id": "c3", "item_ids": ITEMS}).json()["items"]
    by_item = {item["item_id"]: item["probability"] for item in ranked}
    pairs = service.post("/predict", {"pairs": [{"user_id": "c3", "item_id": item} for item in ITEMS]}).json()["pairs"]
    for pair in pairs:
        assert pair["probability"] == pytest.approx(by_item[pair["item_id"]], abs=1e-6)


def test_scores_are_the_trained_models(service, shop):
    """The torch checkpoint on the test rows that retrieve joined offline, against HTTP on online features."""
    (training_set,) = shop.glob("home/runs/first/artifacts/*/retrieve/training_set")
    (trained,) = shop.glob("home/runs/first/artifacts/*/finetune-2/trained")
    data = TrainingSet.open(training_set)
    rows = data.table("test").slice(0, 150)
    expected = predict(load_model(trained), data.arrays("test").ids[:150])
    pairs = [
        {"user_id": user, "item_id": item, "context": {"device": device}}
        for user, item, device in zip(
            *(rows[name].to_pylist() for name in ("user_id", "item_id", "device")), strict=True
        )
    ]
    found = [pair["probability"] for pair in service.post("/predict", {"pairs": pairs}).json()["pairs"]]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_strangers_are_scored_as_cold_and_flagged(service):
    body = service.post("/rank", {"user_id": "nobody", "item_ids": ["s1", "nothing"]}).json()
    assert body["user_cold"] is True
    assert {item["item_id"]: item["cold"] for item in body["items"]} == {"s1": False, "nothing": True}
    pairs = [{"user_id": "nobody", "item_id": "s1"}, {"user_id": "c1", "item_id": "nothing"}]
    assert [pair["cold"] for pair in service.post("/predict", {"pairs": pairs}).json()["pairs"]] == [["user"], ["item"]]


def test_features_that_are_missing_are_named(service):
    body = service.post("/rank", {"user_id": "c1", "item_ids": ["s1", "s2"]}).json()
    assert body["degraded"] == []
    body = service.post("/rank", {"user_id": "nobody", "item_ids": ["s1", "no", "none"]}).json()
    assert body["degraded"] == [
        {"view": "item_profile", "reason": "missing", "keys": 2},
        {"view": "user_profile", "reason": "missing", "keys": 1},
    ]


def test_ids_may_be_whole_numbers(service):
    body = service.post("/rank", {"user_id": 7, "item_ids": [1, 2]}).json()
    assert sorted(item["item_id"] for item in body["items"]) == ["1", "2"]


WRONG = {
    "no items": ({"user_id": "c1", "item_ids": []}, "item_ids"),
    "too many items": ({"user_id": "c1", "item_ids": ["s1"] * 1001}, "item_ids"),
    "items missing": ({"user_id": "c1"}, "item_ids"),
    "user missing": ({"item_ids": ["s1"]}, "user_id"),
    "user a truth value": ({"user_id": True, "item_ids": ["s1"]}, "user_id"),
    "user an object": ({"user_id": {}, "item_ids": ["s1"]}, "user_id"),
    "user null": ({"user_id": None, "item_ids": ["s1"]}, "user_id"),
    "user empty": ({"user_id": "", "item_ids": ["s1"]}, "user_id"),
    "user too long": ({"user_id": "c" * 257, "item_ids": ["s1"]}, "user_id"),
    "items a string": ({"user_id": "c1", "item_ids": "s1"}, "item_ids"),
    "an item null": ({"user_id": "c1", "item_ids": ["s1", None]}, "item_ids.1"),
    "top_k nothing": ({"user_id": "c1", "item_ids": ["s1"], "top_k": 0}, "top_k"),
    "unknown field": ({"user_id": "c1", "item_ids": ["s1"], "limit": 3}, "limit"),
    "unknown context": ({"user_id": "c1", "item_ids": ["s1"], "context": {"moon": "full"}}, "moon"),
    "context of another type": ({"user_id": "c1", "item_ids": ["s1"], "context": {"device": 1.5}}, "device"),
    "context a truth value": ({"user_id": "c1", "item_ids": ["s1"], "context": {"device": True}}, "device"),
    "context too long": ({"user_id": "c1", "item_ids": ["s1"], "context": {"device": "x" * 257}}, "device"),
    "context list too long": ({"user_id": "c1", "item_ids": ["s1"], "context": {"device": ["x"] * 257}}, "device"),
    "context number too large": ({"user_id": "c1", "item_ids": ["s1"], "context": {"device": 10**400}}, "device"),
    "too much context": ({"user_id": "c1", "item_ids": ["s1"], "context": {f"f{n}": 1 for n in range(65)}}, "context"),
    "user a huge number": ({"user_id": 10**300, "item_ids": ["s1"]}, "user_id"),
    "a list": (["c1"], "body"),
    "a number": (7, "body"),
    "null": (None, "user_id"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_requests_are_refused_in_one_shape(service, name):
    content, said = WRONG[name]
    answer = service.post("/rank", content)
    assert answer.status_code in {400, 422}, answer.text
    assert set(answer.json()) == {"error", "detail"}
    assert said in answer.json()["error"]
    for word in ("pydantic", "Descriptor", "Traceback"):
        assert word not in answer.text


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (pickle.dumps({"user_id": "c1", "item_ids": ["s1"]}), "application/vnd.bentoml+pickle", 415),
        (pickle.dumps({"user_id": "c1", "item_ids": ["s1"]}), "APPLICATION/vnd.bentoml+pickle;x=y", 415),
        (b"<rank/>", "application/xml", 415),
        (b"--x\r\n\r\n--x--", "multipart/form-data; boundary=x", 415),
        (b"user_id=c1", "application/x-www-form-urlencoded", 415),
        (b'{"user_id": "c1", "item_ids": ["s1"]}', "text/plain", 415),
        (b'{"user_id": "\\ud800", "item_ids": ["s1"]}', "application/json", 400),
        (b'{"user_id": "c1", "item_ids": ["s1"], "context": {"device": NaN}}', "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b"x" * (2**20 + 1), "application/json", 413),
    ],
    ids=[
        *("half an object", "no UTF-8", "pickle", "pickle in capitals", "XML", "form of parts", "form", "text"),
        *("half a letter", "no number", "too deep", "too long"),
    ],
)
@pytest.mark.parametrize("path", ["/rank", "/predict", "/feedback"])
def test_what_is_no_json_is_refused(service, path, content, kind, status):
    answer = service.client.post(path, content=content, headers={"content-type": kind})
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error", "detail"}


def test_a_second_content_type_lets_nothing_else_in(service):
    headers = [("content-type", "multipart/form-data; boundary=x"), ("content-type", "application/json")]
    for given in (headers, headers[::-1]):
        assert service.client.post("/rank", content=b"--x\r\n\r\n--x--", headers=given).status_code == 415


def test_what_became_of_an_answer_is_recorded(service, shop):
    answer = service.post("/rank", {"user_id": "c1", "item_ids": ["s1", "s2"]}).json()
    event = {"request_id": answer["request_id"], "item_id": "s2", "clicked": True}
    assert service.post("/feedback", {"events": [event]}).json() == {"recorded": 1}
    lines = [line for path in shop.glob("home/served/shop/feedback/*") for line in path.read_text().splitlines()]
    written = [json.loads(line) for line in lines if answer["request_id"] in line]
    (found,) = [line for line in written if line["request_id"] == answer["request_id"]]
    assert (found["item_id"], found["clicked"], found["at"]) == ("s2", True, found["received"])
    for wrong in ({"events": []}, {"events": [{**event, "request_id": "x"}]}, {"events": [{**event, "clicked": 1}]}):
        assert service.post("/feedback", wrong).status_code == 400


def test_other_paths_and_methods_are_refused_in_the_same_shape(service):
    assert service.client.get("/nothing").status_code == 404
    assert service.client.put("/rank").status_code == 405
    for answer in (service.client.get("/nothing"), service.client.put("/rank")):
        assert set(answer.json()) == {"error", "detail"}


def test_the_model_says_what_it_is(service):
    body = service.client.get("/model").json()
    assert (body["name"], body["backbone"], body["arm"], body["run_id"]) == (
        "shop",
        "autoint",
        "ctrl",
        "first",
    )
    assert body["context"] == {"device": "category"}


def test_it_is_alive_and_measured(service):
    for path in ("/livez", "/readyz"):
        assert service.client.get(path).status_code == 200
    service.post("/rank", {"user_id": "c1", "item_ids": ["s1"]})
    metrics = service.client.get("/metrics").text
    assert 'endpoint="/rank",http_response_code="200"' in metrics
    assert 'tandem_answers_total{endpoint="/rank",model_version="1"}' in metrics
    assert 'tandem_model{alias="champion",model_version="1"} 1.0' in metrics
    for part in ("features", "model", "total"):
        assert f'tandem_part_seconds_count{{part="{part}"}}' in metrics
    assert "tandem_feature_service_matches 1.0" in metrics


def test_the_service_holds_neither_torch_nor_transformers(service):
    """No file of either package is mapped into any process of the service."""
    parent = psutil.Process(service.process.pid)
    processes = [parent, *parent.children(recursive=True)]
    mapped = {Path(region.path).as_posix() for process in processes for region in process.memory_maps()}
    assert any("onnxruntime" in path for path in mapped), "the probe sees what is loaded"
    assert not [path for path in mapped if "/torch/" in path or "/transformers/" in path or "/tokenizers/" in path]


def test_importing_the_service_imports_neither(shop):
    import subprocess
    import sys

    code = (
        "import sys, serving.service; print(sorted({'torch', 'transformers', 'mlflow', 'duckdb'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_the_bundle_that_is_served_is_checked(shop, tmp_path):
    """A model whose bytes have changed is refused before it answers anything."""
    import shutil

    from components.dataset.bundle import BundleError

    (stored,) = shop.glob("home/bentoml/models/tandem-shop/first")
    shutil.copytree(stored, tmp_path / "copy")
    model = tmp_path / "copy" / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match=r"model\.onnx"):
        Bundle.open(tmp_path / "copy")


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (404, b"Not Found", "not found"),
        (422, b'[{"error": "unknown context"}]', "unknown context"),
        (500, b'{"error": "secret path"}', "internal server error"),
        (429, b'{"error": "Too many requests"}', "Too many requests"),
        (503, b'{"error": "no model"}', "service unavailable"),
        (400, json.dumps({"detail": [{"loc": ["a", 1], "msg": "bad", "url": "u"}]}).encode(), "a.1: bad"),
    ],
)
def test_refusals_are_said_in_our_words(status, body, error):
    assert refusal(status, body)["error"] == error
