"""A small log with known causes, its training set, and a linear model of it as plain arrays and as a bundle."""

import datetime as dt

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from onnx import TensorProto, helper, numpy_helper

from components.dataset.bundle import SAID, write_manifest
from components.dataset.spec import parse_spec
from components.dataset.training_set import TrainingSet, write_training_set

START = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)
USERS, ITEMS, ROWS, LENGTH = 60, 40, 3000, 3
GENRES = ("drama", "comedy", "action")
AGES = ("young", "old")


def spec_of(**changes):
    fields = [
        {"name": "user_id", "side": "user", "kind": "id"},
        {"name": "age", "side": "user", "kind": "category", "slice": True},
        {"name": "item_id", "side": "item", "kind": "id"},
        {"name": "genres", "side": "item", "kind": "multi", "max_values": 2, "slice": True},
        {"name": "price", "side": "item", "kind": "number", "buckets": 4, "slice": True},
        {"name": "title", "side": "item", "kind": "text"},
        {"name": "device", "side": "context", "kind": "category"},
    ]
    content = {
        "name": "films",
        "sources": {name: {"path": f"{name}.parquet"} for name in ("impressions", "users", "items")},
        "keys": {"user": "user_id", "item": "item_id", "timestamp": "at"},
        "label": {"column": "label"},
        "fields": fields,
        "history": {"length": LENGTH},
    }
    return parse_spec(content | changes, "films.yaml")


def table(seed=1, rows=ROWS):
    """Rows in the order of time, one every 10 minutes; users and items keep arriving."""
    random = np.random.default_rng(seed)
    grown = np.linspace(0.5, 1, rows)
    user = (random.random(rows) * USERS * grown).astype(int)
    item = (random.random(rows) ** 2 * ITEMS * grown).astype(int)
    age, genre, price = user % 2, item % 3, 5 + item % 7
    logits = 2 * (age == genre % 2) - 0.6 * (price - 7) - 1 + random.normal(0, 0.3, USERS)[user]
    label = (random.random(rows) < 1 / (1 + np.exp(-logits))).astype(np.int8)
    return pa.table(
        {
            "impression_id": pa.array(np.arange(rows)),
            "user_id": [f"u{code}" for code in user],
            "item_id": [f"i{code}" for code in item],
            "event_timestamp": pa.array([START + dt.timedelta(minutes=10 * n) for n in range(rows)]),
            "label": label,
            "age": [AGES[code] for code in age],
            "genres": [[GENRES[code], "film"] for code in genre],
            "price": pa.array(price.astype(float), mask=item % 10 == 9),
            "title": [f"film {code}" for code in item],
            "device": random.choice(["phone", "desk"], rows),
            "history_item_id": pa.array(histories(user, item, label), type=pa.list_(pa.string())),
        }
    )


def histories(user, item, label):
    """The last items that the user clicked on before each row."""
    clicked, found = {}, []
    for who, what, liked in zip(user, item, label, strict=True):
        found.append(list(clicked.get(who, [])[-LENGTH:]))
        if liked:
            clicked.setdefault(who, []).append(f"i{what}")
    return found


def training_set(folder, spec=None, rows=None):
    """Write and open the training set of a log, split by time."""
    rows = table() if rows is None else rows
    first, second = int(0.8 * len(rows)), int(0.9 * len(rows))
    parts = {"train": rows[:first], "valid": rows[first:second], "test": rows[second:]}
    write_training_set(folder, spec or spec_of(), parts, {})
    return TrainingSet.open(folder)


def weights_of(data):
    """One weight per global id, float32 [vocabulary_size]: smoothed log odds of the id's train rows, halved."""
    train = data.arrays("train")
    size = data.layout.vocabulary_size
    shown, clicked = np.ones(size), np.full(size, train.labels.mean())
    np.add.at(shown, train.ids.ravel(), 1)
    np.add.at(clicked, train.ids.ravel(), train.labels.repeat(train.ids.shape[1]))
    share = clicked / shown
    weights = np.log(share / (1 - share)) / 2
    weights[0] = 0
    return weights.astype(np.float32)


def linear(weights):
    """A scorer: sigmoid of the sum of the ids' weights."""
    return lambda ids: 1 / (1 + np.exp(-weights[ids].sum(axis=1, dtype=np.float64)))


def write_bundle(folder, data, weights):
    """The same linear model as a bundle that a service could run."""
    folder.mkdir()
    nodes = [
        helper.make_node("Gather", ["weights", "ids"], ["gathered"]),
        helper.make_node("ReduceSum", ["gathered", "axes"], ["logit"], keepdims=0),
        helper.make_node("Sigmoid", ["logit"], ["probability"]),
    ]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", data.layout.width])
    probability = helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["n"])
    constants = [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(np.array([1]), "axes")]
    graph = helper.make_graph(nodes, "linear", [ids], [probability], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    (folder / "spec.yaml").write_text(data.spec.to_yaml(), encoding="utf-8")
    data.vocabulary.save(folder / "vocabulary.json")
    pq.write_table(data.table("test")[:5], folder / "golden.parquet")
    write_manifest(folder, dict.fromkeys(SAID, "x") | {"name": "films", "proof": {}, "lineage": {}})
    return folder
