"""Small logs full of what goes wrong in real ones, and the naive joins that ours must equal."""

import random
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from components.dataset.spec import parse_spec

BASE = datetime(2020, 1, 1, tzinfo=UTC)
MOMENT = pa.timestamp("us", tz="UTC")
#: Users and items of the log; the last has no row in its table.
KEYS = ("a", "b", "ç")
TABLES = {
    "users": [("country_y", pa.string()), ("tags", pa.list_(pa.string()))],
    "items": [("title", pa.string()), ("price", pa.float64()), ("genres", pa.list_(pa.string()))],
}
KEY_OF = {"users": "user_id", "items": "item_id"}


def moment(second):
    return BASE + timedelta(seconds=second)


def make_spec(created=True, timed=True, history=None, ttl=None, **changes):
    table = ({"timestamp": "t"} if timed else {}) | ({"created": "c"} if created else {})
    table |= {"ttl_days": ttl / timedelta(days=1)} if ttl else {}
    content = {
        "name": "test-log",
        "sources": {
            "impressions": {"path": "i.parquet"},
            "users": {"path": "u.parquet", **table},
            "items": {"path": "m.parquet", **table},
        },
        "keys": {"user": "user", "item": "item"} | ({"timestamp": "t"} if timed else {}),
        "label": {"column": "click"},
        "split": {"by": "time" if timed else "random"},
        "fields": [
            {"name": "user_id", "side": "user", "kind": "id"},
            {"name": "item_id", "side": "item", "kind": "id"},
            {"name": "country_y", "side": "user", "kind": "category"},
            {"name": "tags", "side": "user", "kind": "multi"},
            {"name": "title", "side": "item", "kind": "text"},
            {"name": "price", "side": "item", "kind": "number"},
            {"name": "genres", "side": "item", "kind": "multi"},
            {"name": "page", "side": "context", "kind": "category"},
        ],
    }
    return parse_spec(content | ({"history": history} if history else {}) | changes, "test")


CHOICES = {
    pa.string(): ["x", "y", "zoë", None],
    pa.float64(): [0.1, -2.0, 3.5, None],
    pa.list_(pa.string()): [["p"], ["q", "p"], [], None],
}
VALUES = {kind: st.sampled_from(values) for kind, values in CHOICES.items()}


@st.composite
def tables(draw, name, span=10):
    """Rows of one table: late ones, ones from the future, backfilled ones, and exact repetitions."""
    fields = TABLES[name]
    row = st.tuples(
        st.sampled_from(KEYS[:2]), st.integers(0, span), st.integers(-3, span), *(VALUES[kind] for _, kind in fields)
    )
    rows = draw(st.lists(row, min_size=1, max_size=14))
    columns = {KEY_OF[name]: [row[0] for row in rows], "event_timestamp": [moment(row[1]) for row in rows]}
    columns["created_timestamp"] = [moment(row[1] + row[2]) for row in rows]
    columns |= {field: [row[3 + place] for row in rows] for place, (field, _) in enumerate(fields)}
    types = [(KEY_OF[name], pa.string()), ("event_timestamp", MOMENT), ("created_timestamp", MOMENT), *fields]
    return pa.table(columns, schema=pa.schema(types))


@st.composite
def impressions(draw, span=10):
    """Impressions with ties in time, several of one user and second, and repetitions."""
    row = st.tuples(st.sampled_from(KEYS), st.sampled_from(KEYS), st.integers(0, span), st.integers(0, 1))
    return impression_table(draw(st.lists(row, min_size=3, max_size=25)))


def impression_table(rows):
    return pa.table(
        {
            "impression_id": pa.array(range(len(rows)), pa.int64()),
            "user_id": pa.array([row[0] for row in rows], pa.string()),
            "item_id": pa.array([row[1] for row in rows], pa.string()),
            "event_timestamp": pa.array([moment(row[2]) for row in rows], MOMENT),
            "label": pa.array([row[3] for row in rows], pa.int8()),
            "page": pa.array([f"page{row[3]}" for row in rows], pa.string()),
        }
    )


def write(folder, spec, log, users, items):
    """Write validated tables as the validate step does."""
    folder.mkdir(parents=True, exist_ok=True)
    if spec.keys.timestamp is None:
        log = log.drop_columns(["event_timestamp"])
    pq.write_table(log, folder / "impressions.parquet")
    for name, table in (("users", users), ("items", items)):
        if getattr(spec.sources, name).created is None:
            table = table.drop_columns(["created_timestamp"])
        pq.write_table(table, folder / f"{name}.parquet")
    return folder


def as_of(rows, key, value, now, known_only, ttl=None):
    """The naive point-in-time join of one row: the latest value that held, and was known, at `now`."""
    best = None
    for row in rows:
        if row[key] != value or row["event_timestamp"] > now or (known_only and row["created_timestamp"] > now):
            continue
        rank = (row["event_timestamp"], row["created_timestamp"] if known_only else BASE)
        if best is None or rank >= best[0]:  # of equal rows the last in the file
            best = (rank, row)
    if best is None or (ttl and best[1]["event_timestamp"] + ttl < now):
        return None
    return best[1]


def naive_context(log):
    """Hour and weekday of each impression in the calendar of Python, as the training set's categories."""
    moments = log["event_timestamp"].to_pylist()
    return [(str(moment.hour), str(moment.weekday())) for moment in moments]


def naive_join(log, users, items, created, ttl=None):
    """Every impression with its features, one after the other."""
    joined = []
    for row in log.to_pylist():
        now = row["event_timestamp"]
        for name, table in (("users", users), ("items", items)):
            key = KEY_OF[name]
            found = as_of(table.to_pylist(), key, row[key], now, created, ttl)
            row |= {field: found and found[field] for field, _ in TABLES[name]}
        joined.append(row)
    return joined


def naive_history(spec, log, items, created):
    """Each impression's history: the user's last events before it that were known by then, one after the other."""
    rows = log.to_pylist()
    histories = []
    for row in rows:
        before = [
            event
            for event in rows
            if event["user_id"] == row["user_id"] and known_from(event) <= row["event_timestamp"]
        ]
        before.sort(key=lambda event: (known_from(event), event["event_timestamp"], event["impression_id"]))
        liked = [event for event in before if event["label"]]
        events = liked if spec.history.events == "positive" else before
        newest = events[-spec.history.length :]
        if spec.history.events == "per_label":
            disliked = [event for event in before if not event["label"]][-spec.history.length :]
            newest = [event for event in before if event in disliked or event in liked[-spec.history.length :]]
        of_item = {e["impression_id"]: naive_item(items, e, created) for e in before}
        histories.append(
            {
                "history": [naive_event(event, of_item[event["impression_id"]]) for event in newest],
                "liked_title": [of_item[e["impression_id"]]["title"] or "" for e in liked[-spec.history.length :]],
            }
        )
    return histories


def naive_activity(log, key, seconds):
    """Each impression's impressions, positives and rate before it, of its user or item, for each window in seconds.

    None for all three before anything is known of the user or item.
    """
    rows = log.to_pylist()
    found = []
    for row in rows:
        now = row["event_timestamp"]
        known = [
            event
            for event in rows
            if event[key] == row[key]
            and max(event["event_timestamp"], event.get("created_timestamp", BASE)) <= now
            # What happens at a moment is known only after it; what is entered at a moment is known at it.
            and event["event_timestamp"] < now
        ]
        numbers = []
        for width in seconds:
            inside = [event["label"] for event in known if event["event_timestamp"] > now - timedelta(seconds=width)]
            rate = sum(inside) / len(inside) if inside else None
            numbers += [len(inside), sum(inside), rate] if known else [None, None, None]
        found.append(numbers)
    return found


def known_from(event):
    """An event is seen by what comes later than itself, and once it is known."""
    return max(event["event_timestamp"] + timedelta(microseconds=1), event.get("created_timestamp", BASE))


def naive_item(items, event, created):
    item = as_of(items.to_pylist(), "item_id", event["item_id"], event["event_timestamp"], created)
    return item or {"title": None, "genres": None, "price": None}


def naive_event(event, item):
    """Item, first genre, price, page, label and moment of an event."""
    moment = (event["event_timestamp"] - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    return (event["item_id"], (item["genres"] or [""])[0], item["price"], event["page"], event["label"], moment)


def one_row_tables():
    """User 'a' and item 'a', known from the beginning."""
    columns = {"event_timestamp": [BASE], "created_timestamp": [BASE]}
    types = [("event_timestamp", MOMENT), ("created_timestamp", MOMENT)]
    users = {"user_id": ["a"], **columns, "country_y": ["x"], "tags": [["p", "q"]]}
    items = {"item_id": ["a"], **columns, "title": ["A film"], "price": [0.1], "genres": [["q"]]}
    return tuple(
        pa.table(content, schema=pa.schema([(KEY_OF[name], pa.string()), *types, *TABLES[name]]))
        for name, content in (("users", users), ("items", items))
    )


def materialised(store, spec, **options):
    """Materialise, and count each view's keys."""
    from feature_repo.materialise import materialise  # Feast takes ten seconds to import: only where it is used

    return {name: view.keys for name, view in materialise(store, spec, **options).items()}


def crowd(seed, users=30, rows=600, delay=None):
    """Impressions, users and items of a log that is as bad as those above and large enough to hold all of it at once.

    A fifth of the users and items has no row in its table. With `delay` an impression becomes known up to so many
    seconds after it happened, or two before.
    """
    chance = random.Random(seed)
    keys = [f"u{number}ç" for number in range(users)]
    log = impression_table(
        [(chance.choice(keys), chance.choice(keys), chance.randint(0, 20), chance.randint(0, 1)) for _ in range(rows)]
    )
    if delay is not None:
        known = [stamp + timedelta(seconds=chance.randint(-2, delay)) for stamp in log["event_timestamp"].to_pylist()]
        log = log.append_column("created_timestamp", pa.array(known, MOMENT))
    return log, *(_crowd_table(chance, name, keys[: users * 4 // 5]) for name in TABLES)


def _crowd_table(chance, name, keys):
    rows = []
    for _ in range(6 * len(keys)):
        second = chance.randint(0, 20)
        times = {"event_timestamp": moment(second), "created_timestamp": moment(second + chance.randint(-3, 10))}
        values = {field: chance.choice(CHOICES[kind]) for field, kind in TABLES[name]}
        rows.append({KEY_OF[name]: chance.choice(keys), **times, **values})
    types = [(KEY_OF[name], pa.string()), ("event_timestamp", MOMENT), ("created_timestamp", MOMENT), *TABLES[name]]
    return pa.Table.from_pylist(rows, schema=pa.schema(types))
