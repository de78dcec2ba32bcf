"""The certificate holds for the join that trains, and is refused to joins that let the future leak."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from components.dataset.errors import UserError
from components.dataset.perturb import after, another_future
from components.dataset.sources import Tables
from pipelines import certify
from pipelines.certify import as_retrieved
from tests.feature_repo import logs
from tests.pipelines.shop import tandem, write_shop

AT = logs.moment(5)


def certificate_of(spec, tables, at, join):
    with TemporaryDirectory() as folder:
        tables.write(Path(folder))
        return certify.certificate_of(spec, Path(folder), at, join)


def writes(join):
    """A join that gives its rows as one that writes them."""
    return lambda spec, validated, rows: pq.write_table(join(spec, validated), rows)


HISTORY = {"length": 3, "fields": ["genres", "price"]}


def dated(table, created):
    return table if created else table.drop_columns(["created_timestamp"])


@st.composite
def cases(draw, created=st.booleans()):
    """A spec and its tables, with or without creation times, history and activity; some row is before AT."""
    known = draw(created)
    log = draw(logs.impressions())
    first = logs.impression_table([("a", "b", 0, 1)])
    log = pa.concat_tables([first, log.set_column(0, "impression_id", pa.array(range(1, len(log) + 1), pa.int64()))])
    users, items = (dated(draw(logs.tables(name)), known) for name in ("users", "items"))
    activity = draw(st.sampled_from([{}, {"activity": {"windows": ["3s"]}}]))
    spec = logs.make_spec(created=known, history=draw(st.sampled_from([None, HISTORY])), **activity)
    return spec, Tables(log, users, items, {})


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases())
def test_no_training_row_changes_with_the_future(case):
    certificate = certificate_of(*case, AT, as_retrieved)
    assert certificate.leaks == ()
    assert certificate.verdict == "holds"
    assert certificate.rows_compared + certificate.rows_of_the_future == case[1].impressions.num_rows
    assert certificate.futures["another future"]["impressions"]["added"] >= 20


@writes
def naive(spec, validated):
    """The naive join, one row after the other."""
    log, users, items = (pq.read_table(validated / f"{name}.parquet") for name in ("impressions", "users", "items"))
    created = spec.sources.users.created is not None
    filled = [
        table if created else table.append_column("created_timestamp", table["event_timestamp"])
        for table in (users, items)
    ]
    return pa.Table.from_pylist(logs.naive_join(log, *filled, created), schema=_schema(log, users, items))


@writes
def latest(spec, validated):
    """A join without time: each row gets its user's and item's last values, which is how leaks are mostly made."""
    log, users, items = (pq.read_table(validated / f"{name}.parquet") for name in ("impressions", "users", "items"))
    joined = []
    for row in log.to_pylist():
        for key, table in (("user_id", users), ("item_id", items)):
            rows = [one for one in table.to_pylist() if one[key] == row[key]]
            last = max(rows, key=lambda one: one["event_timestamp"], default={})
            skipped = {key, "event_timestamp", "created_timestamp"}
            row |= {name: last.get(name) for name in table.column_names if name not in skipped}
        joined.append(row)
    return pa.Table.from_pylist(joined, schema=_schema(log, users, items))


def _schema(log, users, items):
    skipped = {"user_id", "item_id", "event_timestamp", "created_timestamp"}
    more = [field for table in (users, items) for field in table.schema if field.name not in skipped]
    return pa.schema([*log.schema, *more])


@settings(max_examples=20, deadline=None)
@given(cases(created=st.just(True)))
def test_the_naive_join_holds_too(case):
    assert certificate_of(*case, AT, naive).verdict == "holds"


def _stamps(event, created):
    return {"event_timestamp": logs.moment(event), "created_timestamp": logs.moment(created)}


def full_log(created=True):
    """Two users and two items with values before and after AT; with creation times, one is entered late."""
    log = logs.impression_table([("a", "b", second, second % 2) for second in range(10)])
    types = {name: [(logs.KEY_OF[name], pa.string()), *logs.TABLES[name]] for name in logs.TABLES}
    stamps = [("event_timestamp", logs.MOMENT), ("created_timestamp", logs.MOMENT)]
    users = [
        {"user_id": "a", "country_y": "x", "tags": ["p"], **_stamps(0, 0)},
        {"user_id": "a", "country_y": "late", "tags": ["q"], **_stamps(2, 8)},
    ]
    items = [{"item_id": "b", "title": "t", "price": 1.0, "genres": None, **_stamps(0, 0)}]
    tables = {
        name: dated(pa.Table.from_pylist(rows, schema=pa.schema([*types[name], *stamps])), created)
        for name, rows in (("users", users), ("items", items))
    }
    return logs.make_spec(created=created), Tables(log, tables["users"], tables["items"], {})


def test_a_join_without_time_is_caught():
    certificate = certificate_of(*full_log(), AT, latest)
    assert certificate.verdict == "leaks"
    found = {(leak.future, leak.column) for leak in certificate.leaks}
    assert ("another future", "country_y") in found
    assert ("no future", "country_y") in found
    leak = next(leak for leak in certificate.leaks if leak.column == "country_y" and leak.future == "no future")
    assert leak.rows == 5
    assert leak.examples[0] == {"impression_id": 0, "was": "late", "became": "x"}
    json.dumps(certificate.to_json(), allow_nan=False)


@writes
def backfilled(spec, validated):
    """Feast's retrieval as it comes, with the creation time left out of account: values entered later are found."""
    from components.retrieve.step import _rows
    from feature_repo.definitions import build
    from feature_repo.publish import publish
    from feature_repo.store import training_store

    definitions = build(spec, publish(spec, validated))
    impressions = validated / "impressions.parquet"
    rows = _rows(spec, definitions, impressions, pq.read_schema(impressions).names)
    with training_store(spec, definitions) as store:
        service = store.get_feature_service(definitions.service.name)
        return store.get_historical_features(rows, service, filter_by_created_timestamp=False).to_arrow()


def test_feast_without_the_filter_on_creation_times_is_caught():
    """The same store, views and rows; only the filter that the retrieve step sets is off."""
    certificate = certificate_of(*full_log(), AT, backfilled)
    assert certificate.verdict == "leaks"
    assert {"country_y", "price"} <= {leak.column for leak in certificate.leaks}
    assert certificate_of(*full_log(), AT, as_retrieved).verdict == "holds"


@writes
def with_the_next_label(spec, validated):
    """A feature that looks one event ahead."""
    as_retrieved(spec, validated, validated / "rows.parquet")
    table = pq.read_table(validated / "rows.parquet").sort_by(
        [("event_timestamp", "ascending"), ("impression_id", "ascending")]
    )
    label = table["label"].to_pylist()
    return table.append_column("ahead", pa.array([*label[1:], None], pa.int8()))


def test_a_feature_that_looks_one_event_ahead_is_caught():
    certificate = certificate_of(*full_log(created=False), AT, with_the_next_label)
    assert {leak.column for leak in certificate.leaks} == {"ahead"}


def test_the_perturbation_leaves_the_past_alone_and_nothing_else(tmp_path):
    _, tables = full_log()
    tables.write(tmp_path / "told")
    another_future(tmp_path / "told", tmp_path / "found", AT)
    (tmp_path / "told" / "summary.json").rename(tmp_path / "found" / "summary.json")
    found = Tables.open(tmp_path / "found")
    for name in ("impressions", "users", "items"):
        was, became = getattr(tables, name), getattr(found, name)
        past = was.filter(pa.array(~after(was, AT)))
        kept = became.slice(0, past.num_rows)
        assert kept.equals(past)
        rest = became.slice(past.num_rows)
        assert after(rest, AT).all()
        assert rest.num_rows >= 20
    assert min(found.impressions["event_timestamp"].to_pylist()[5:]) == AT
    late = found.users.slice(1).to_pylist()
    assert all(row["created_timestamp"] >= AT for row in late)
    assert min(row["event_timestamp"] for row in late) < AT
    flipped = found.impressions.filter(pa.array([5 <= number < 10 for number in range(found.impressions.num_rows)]))
    assert flipped.num_rows == 5


def test_tables_that_pass_through_memory_in_pieces(monkeypatch):
    monkeypatch.setattr("components.dataset.perturb.ROWS", 3)
    monkeypatch.setattr(certify, "ROWS", 2)
    whole = certificate_of(*full_log(), AT, as_retrieved)
    assert whole.verdict == "holds"
    assert whole.futures["no future"]["impressions"] == {"changed": 0, "deleted": 5, "added": 0}
    leaks = certificate_of(*full_log(), AT, latest).leaks
    assert [leak.rows for leak in leaks if leak.column == "country_y"] == [5, 5]


def test_moments_and_data_that_cannot_be_certified(tmp_path):
    with pytest.raises(UserError, match="no impression is before it"):
        certificate_of(*full_log(), logs.BASE, as_retrieved)
    write_shop(tmp_path)
    text = (tmp_path / "shop.yaml").read_text().replace("  timestamp: shown_at\n", "").replace("by: time", "by: random")
    (tmp_path / "shop.yaml").write_text(text)
    done = tandem("certify", "--dataset", tmp_path / "shop.yaml", home=tmp_path / "home")
    assert done.returncode == 2
    assert "has no 'keys.timestamp'" in done.stderr


def test_the_command_writes_a_certificate(tmp_path):
    spec = write_shop(tmp_path)
    done = tandem("certify", "--dataset", spec, "--at", "2023-11-18", home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert "the certificate holds" in done.stdout
    written = json.loads((tmp_path / "home/certificates/shop.json").read_text())
    assert (written["verdict"], written["at"], written["leaks"]) == ("holds", "2023-11-18T00:00:00+00:00", [])
    assert written["rows_compared"] == sum(1_700_000_000 + 600 * row < 1_700_265_600 for row in range(1200))
    assert {len(digest) for digest in written["columns"].values()} == {64}
    assert {"gender", "price", "label", "device"} <= set(written["columns"])
    assert any(limit.startswith("users: undated") for limit in written["limits"])
    assert not (tmp_path / "home/offline").exists()
