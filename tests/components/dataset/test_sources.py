import datetime as dt
import json

import pyarrow as pa
import pytest

from components.dataset.errors import UserError
from components.dataset.sources import Tables, check_sources, validated_tables
from tests.components.dataset.making import (
    FIELDS,
    IMPRESSIONS,
    ITEMS,
    USERS,
    content,
    spec_of,
    write_parquet,
    write_sources,
)

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def after(seconds):
    return EPOCH + dt.timedelta(seconds=seconds)


def message(folder, **changes):
    with pytest.raises(UserError) as caught:
        validated_tables(spec_of(folder, **changes))
    return str(caught.value)


def test_validated_tables(tmp_path):
    write_sources(tmp_path)
    tables = validated_tables(spec_of(tmp_path))
    assert tables.impressions.to_pydict() == {
        "impression_id": [0, 1, 2, 4],
        "user_id": ["1", "2", "1", "2"],
        "item_id": ["10", "10", "20", "30"],
        "event_timestamp": [after(100), after(200), after(300), after(500)],
        "label": [1, 0, 1, 0],
        "device": ["phone", "desktop", "phone", "phone"],
    }
    assert tables.users.to_pydict() == {
        "user_id": ["1", "2", "3"],
        "event_timestamp": [EPOCH] * 3,
        "age": [25.0, None, 41.0],
        "job": ["doctor", "painter", None],
    }
    assert tables.items.to_pydict() == {
        "item_id": ["10", "20", "30"],
        "event_timestamp": [EPOCH] * 3,
        "genres": [["Action", "Drama"], ["Comedy"], None],
        "title": ["Heat", 'Airplane, the "film" 機上', "Alien"],
    }
    assert [str(tables.impressions.schema.field(n).type) for n in ("impression_id", "label", "event_timestamp")] == [
        "int64",
        "int8",
        "timestamp[us, tz=UTC]",
    ]


def test_summary(tmp_path):
    write_sources(tmp_path, IMPRESSIONS + "9,10,600,1,phone\n")
    summary = validated_tables(spec_of(tmp_path)).summary
    assert json.loads(json.dumps(summary)) == {
        "rows_read": 6,
        "dropped_by_label_rule": 1,
        "rows": 5,
        "positives": 2,
        "label_rate": 0.4,
        "users": 3,
        "items": 3,
        "first_timestamp": "1970-01-01T00:01:40+00:00",
        "last_timestamp": "1970-01-01T00:10:00+00:00",
        "unknown_users": 1,
        "unknown_users_share": 0.2,
        "user_rows": 3,
        "unknown_items": 0,
        "unknown_items_share": 0.0,
        "item_rows": 3,
    }


def test_written_and_opened_again(tmp_path):
    write_sources(tmp_path)
    tables = validated_tables(spec_of(tmp_path))
    tables.write(tmp_path / "out")
    assert Tables.open(tmp_path / "out") == tables
    alone = Tables(tables.impressions, None, None, tables.summary)
    alone.write(tmp_path / "out")
    assert Tables.open(tmp_path / "out") == alone
    with pytest.raises(UserError, match="no validated tables; give the folder that the validate step wrote"):
        Tables.open(tmp_path)


def test_formats_and_types_of_keys_do_not_matter(tmp_path):
    write_sources(tmp_path)
    expected = validated_tables(spec_of(tmp_path))
    columns = {
        "uid": pa.array([1.0, 2.0, 1.0, 3.0, 2.0]),
        "mid": pa.array([10, 10, 20, 20, 30], pa.int32()),
        "ts": pa.array([100, 200, 300, 400, 500], pa.timestamp("s")),
        "rating": [5, 1, 4, 3, 2],
        "device": ["phone", "desktop", "phone", None, "phone"],
    }
    write_parquet(tmp_path / "log.parquet", **columns)
    rows = [{**row, "uid": int(row["uid"]), "ts": row["ts"].isoformat()} for row in pa.table(columns).to_pylist()]
    (tmp_path / "log.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    for name in ("log.parquet", "log.jsonl"):
        sources = {**content(tmp_path)["sources"], "impressions": {"path": str(tmp_path / name)}}
        assert validated_tables(spec_of(tmp_path, sources=sources)) == expected


def test_without_tables_and_time_stamps(tmp_path):
    write_sources(tmp_path)
    spec = spec_of(
        sources={"impressions": {"path": str(tmp_path / "impressions.csv")}},
        keys={"user": "uid", "item": "mid"},
        fields=[field for field in FIELDS if field["kind"] == "id" or field["side"] == "context"],
        split={"by": "random"},
    )
    check_sources(spec)
    tables = validated_tables(spec)
    assert (tables.users, tables.items) == (None, None)
    assert tables.impressions.column_names == ["impression_id", "user_id", "item_id", "label", "device"]
    assert "unknown_users" not in tables.summary and "first_timestamp" not in tables.summary


def test_tables_with_time_stamps_of_their_own_keep_their_history(tmp_path):
    users = "uid,age,job,since,entered\n1,25,doctor,2024-01-01,2024-01-02\n1,26,doctor,2025-01-01,2025-01-02\n"
    users += "2,,x,2024-01-01,2024-01-02\n3,,x,2024-01-01,2024-01-02\n"
    write_sources(tmp_path, users=users)
    sources = content(tmp_path)["sources"]
    sources["users"] |= {"timestamp": "since", "created": "entered"}
    tables = validated_tables(spec_of(tmp_path, sources=sources))
    assert tables.users.column_names == ["user_id", "event_timestamp", "created_timestamp", "age", "job"]
    assert tables.users["user_id"].to_pylist() == ["1", "1", "2", "3"]
    assert tables.users["event_timestamp"].to_pylist()[1] == dt.datetime(2025, 1, 1, tzinfo=dt.UTC)
    assert tables.users["created_timestamp"].to_pylist()[1] == dt.datetime(2025, 1, 2, tzinfo=dt.UTC)

    write_sources(tmp_path, users=users + "1,27,doctor,2025-01-01,2025-01-02\n")
    found = message(tmp_path, sources=sources)
    assert (
        "users.csv: column 'uid' has keys in more than one row (1 of them), such as '1' (2 rows); "
        "keep one row per user and moment" in found
    )


def test_check_sources_names_every_missing_file_and_column(tmp_path):
    write_sources(tmp_path, users="uid,alter\n1,2\n")
    (tmp_path / "items.csv").unlink()
    with pytest.raises(UserError) as caught:
        check_sources(spec_of(tmp_path))
    assert str(caught.value).splitlines() == [
        f"{tmp_path}/users.csv: no column 'age', 'job'; the columns are uid, alter",
        f"{tmp_path}/items.csv: no such file; correct 'path' under 'sources'",
    ]
    assert message(tmp_path) == str(caught.value)


def test_tables_without_rows(tmp_path):
    write_sources(tmp_path, impressions="uid,mid,ts,rating,device\n", items="mid,genres,title\n")
    assert message(tmp_path).splitlines() == [
        f"{tmp_path}/impressions.csv: holds no rows; give a file with data",
        f"{tmp_path}/items.csv: holds no rows; give a file with data",
    ]


def test_faults_of_several_files_are_told_at_once(tmp_path):
    write_sources(
        tmp_path,
        impressions=IMPRESSIONS.replace("300", "soon"),
        users=USERS.replace("41", "old"),
        items=ITEMS.replace("30,", ","),
    )
    assert message(tmp_path).splitlines() == [
        f"{tmp_path}/impressions.csv: column 'ts' holds 'soon' in row 3, which is no moment; "
        "write it as 2024-05-31T18:30:00Z or seconds since 1970, "
        "or name its form: 'timestamp_format' of the source, 'format' of a date",
        f"{tmp_path}/users.csv: column 'age' holds 'old' in row 3, which is no number; "
        "correct it, leave it empty, or write kind: category",
        f"{tmp_path}/items.csv: column 'mid' is empty in row 3 (1 in all); fill or drop them",
    ]


@pytest.mark.parametrize(
    ("row", "column"), [(",10,600,5,phone", "uid"), ("1,,600,5,phone", "mid"), ("1,10,,5,phone", "ts")]
)
def test_impressions_without_key_or_moment(tmp_path, row, column):
    write_sources(tmp_path, impressions=IMPRESSIONS + row + "\n" + row + "\n")
    assert f"column '{column}' is empty in row 6 (2 in all); fill or drop them" in message(tmp_path)


def test_keys_more_than_once(tmp_path):
    write_sources(tmp_path, users=USERS + "2,30,x\n2,31,x\n3,,\n", items=ITEMS + "10,x,y\n")
    assert message(tmp_path).splitlines() == [
        f"{tmp_path}/users.csv: column 'uid' has keys in more than one row (2 of them), such as '2' (3 rows), "
        "'3' (2 rows); keep one row per user, or name the column that dates the rows under 'sources.users.timestamp'",
        f"{tmp_path}/items.csv: column 'mid' has keys in more than one row (1 of them), such as '10' (2 rows); "
        "keep one row per item, or name the column that dates the rows under 'sources.items.timestamp'",
    ]


def test_labels(tmp_path):
    write_sources(tmp_path, impressions=IMPRESSIONS.replace(",4,", ",four,"))
    assert (
        "label column 'rating' holds 'four' in row 3, which is no number, but 'label.positive: > 3' compares numbers"
        in message(tmp_path)
    )
    write_sources(tmp_path)
    label = {"column": "rating", "positive": "> 9", "negative": "< 3"}
    assert "label column 'rating' holds values such as '5', '1', '4', '3', '2': no row is positive" in message(
        tmp_path, label=label
    )
    label = {"column": "rating", "positive": "> 9", "negative": "> 9.5"}
    assert "all rows are dropped under 'positive: > 9' and 'negative: > 9.5'" in message(tmp_path, label=label)


def test_too_many_unknown_users_and_items(tmp_path):
    write_sources(tmp_path, users="uid,age,job\n7,1,x\n", items="mid,genres,title\n10,a,b\n")
    found = message(tmp_path, max_unknown_share=0.4).splitlines()
    assert found == [
        f"{tmp_path}/impressions.csv: 100.0% of the rows name users that {tmp_path}/users.csv does not hold, such as "
        "'1', '2'; more than 'max_unknown_share: 0.4' allows: complete the table or raise the share",
        f"{tmp_path}/impressions.csv: 50.0% of the rows name items that {tmp_path}/items.csv does not hold, such as "
        "'20', '30'; more than 'max_unknown_share: 0.4' allows: complete the table or raise the share",
    ]
    assert validated_tables(spec_of(tmp_path, max_unknown_share=1.0)).summary["unknown_items_share"] == 0.5


def test_the_unit_of_integer_time_stamps(tmp_path):
    write_sources(tmp_path, impressions=IMPRESSIONS.replace(",100,", ",1700000000000,"))
    assert (
        "holds 1700000000000 in row 1, no moment between 1678 and 2262 in unit 's'; write 'keys.timestamp_unit: ms'"
        in (message(tmp_path))
    )
    keys = {"user": "uid", "item": "mid", "timestamp": "ts", "timestamp_unit": "ms"}
    tables = validated_tables(spec_of(tmp_path, keys=keys))
    assert tables.impressions["event_timestamp"][0].as_py() == dt.datetime(2023, 11, 14, 22, 13, 20, tzinfo=dt.UTC)


def test_lists_where_one_value_is_wanted(tmp_path):
    write_sources(tmp_path)
    write_parquet(tmp_path / "users.parquet", uid=["1", "2", "3"], age=[1, 2, 3], job=[["a"], ["b"], None])
    sources = {**content(tmp_path)["sources"], "users": {"path": str(tmp_path / "users.parquet")}}
    assert "column 'job' is of type list<" in message(tmp_path, sources=sources)
    assert "not one value per row; write kind: multi" in message(tmp_path, sources=sources)


def test_the_impressions_may_name_when_they_became_known(tmp_path):
    write_sources(tmp_path, impressions=IMPRESSIONS)
    sources = content(tmp_path)["sources"]
    sources["impressions"]["created"] = "ts"
    impressions = validated_tables(spec_of(tmp_path, sources=sources)).impressions
    assert impressions["created_timestamp"].equals(impressions["event_timestamp"])
