"""A small training set of films, with every kind of field, gaps, codes and a history."""

import numpy as np
import pyarrow as pa

from components.dataset.spec import parse_spec
from components.dataset.training_set import write_training_set

FIELDS = [
    {"name": "user_id", "side": "user", "kind": "id"},
    {"name": "gender", "side": "user", "kind": "category", "codes": {"F": "female", "M": "male"}},
    {"name": "age", "side": "user", "kind": "number"},
    {"name": "job", "side": "user", "kind": "category", "words": "occupation"},
    {"name": "movie", "side": "item", "kind": "id"},
    {"name": "title", "side": "item", "kind": "text"},
    {"name": "genres", "side": "item", "kind": "multi", "words": "genre", "max_values": 2, "codes": {"C": "Comedy"}},
    {"name": "device", "side": "context", "kind": "category"},
]


def spec_of(fields=FIELDS, history=True, **changes):
    content = {
        "name": "films",
        "sources": {name: {"path": f"{name}.csv"} for name in ("impressions", "users", "items")},
        "keys": {"user": "uid", "item": "mid", "timestamp": "ts"},
        "label": {"column": "rating", "positive": "> 3", "negative": "< 3"},
        "fields": fields,
        "prompt": {"user": "This is a user", "item": "This is a movie"},
        **({"history": {"title": "title", "words": "who has recently watched"}} if history else {}),
        **changes,
    }
    return parse_spec(content, "films.yaml")


def row(user=0, item=0, label=0, **values):
    """A row's values; what is not given is missing."""
    names = ("gender", "age", "job", "title", "genres", "device", "liked_title")
    return {"user_id": str(user), "item_id": str(item), "label": label, **dict.fromkeys(names), **values}


DOCTOR = {"gender": "F", "age": 18.0, "job": "doctor"}
TERMINATOR = {"title": "The Terminator", "genres": ["Sci-Fi"]}


def table_of(rows):
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    lists = pa.list_(pa.string())
    types = {"age": pa.float64(), "label": pa.int8(), "genres": lists, "liked_title": lists}
    return pa.table({name: pa.array(values, types.get(name, pa.string())) for name, values in columns.items()})


def write(folder, rows, spec=None, valid=None, test=None):
    """A training set of these rows; the other parts hold the first row unless they are given."""
    parts = {"train": rows, "valid": valid or rows[:1], "test": test or rows[:1]}
    tables = {}
    for part, of in parts.items():
        numbers = pa.array(range(len(of)), pa.int64())
        stamps = numbers.cast(pa.timestamp("us", "UTC"))
        tables[part] = table_of(of).append_column("impression_id", numbers).append_column("event_timestamp", stamps)
    write_training_set(folder, spec or spec_of(), tables, {})
    return folder


def random_rows(count, seed=0):
    random = np.random.default_rng(seed)

    def maybe(value):
        return None if random.random() < 0.25 else value

    def words(low, high):
        return [
            str(w) for w in random.choice(["Heat", "Alien", "Ünï 機", "A, B", "It is 'x'"], random.integers(low, high))
        ]

    return [
        row(
            user=int(random.integers(9)),
            label=int(random.integers(2)),
            gender=maybe(str(random.choice(["F", "M", "X"]))),
            age=maybe(float(random.choice([18, 25.5, 1e7]))),
            job=maybe(str(random.choice(["doctor", "tab\tand\nbreak", "painter"]))),
            title=maybe(" ".join(words(1, 3))),
            genres=maybe([str(g) for g in random.choice(["C", "Drama", "War"], random.integers(0, 4))]),
            device=maybe("phone"),
            liked_title=maybe([*words(0, 5), *([""] if random.random() < 0.3 else [])]),
        )
        for _ in range(count)
    ]
