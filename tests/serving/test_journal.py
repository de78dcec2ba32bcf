"""What is written aside: nothing invented, nothing lost unsaid, no more of it than allowed."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from serving.journal import FeedbackLog, Prediction, PredictionLog, tidy
from serving.logs import JsonLines
from serving.metrics import LOG_DROPPED

TYPES = pa.schema([("gender", pa.string()), ("price", pa.float64()), ("colours", pa.list_(pa.string()))])
AT = datetime(2030, 1, 2, tzinfo=UTC)


def prediction(**columns):
    read = {"gender": ["F", None], "price": [0.1 + 0.2, None], "colours": [["red"], []], **columns}
    scores = np.array([0.25, 0.5], np.float32)
    return Prediction("0" * 32, AT, "3", "hash", ["u", "u"], ["a", "b"], scores, read, TYPES, ["user_profile:stale"])


def written(log):
    return ds.dataset(log.folder, format="parquet").to_table()


def test_predictions_come_back_as_they_were(tmp_path):
    log = PredictionLog(tmp_path, share=1.0, seconds=60, megabytes=1)
    log.add(prediction())
    log.stop()
    first, second = written(log).to_pylist()
    assert (first["request_id"], first["at"], first["model_version"]) == ("0" * 32, AT, "3")
    assert (first["item_id"], first["probability"], first["degraded"]) == ("a", 0.25, ["user_profile:stale"])
    assert (first["feature.price"], first["feature.colours"]) == (0.1 + 0.2, ["red"])
    assert (second["feature.gender"], second["feature.price"], second["feature.colours"]) == (None, None, [])


def test_files_are_closed_in_time_and_versions_do_not_mix(tmp_path):
    log = PredictionLog(tmp_path, share=1.0, seconds=0.2, megabytes=1)
    log.add(prediction())
    other = prediction()
    columns = {name: values for name, values in other.columns.items() if name != "price"}
    log.add(Prediction(**{**vars(other), "columns": columns}))
    deadline = time.monotonic() + 20
    while len(list(log.folder.glob("*.parquet"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    log.stop()


def test_a_value_that_does_not_fit_drops_its_own_prediction_only(tmp_path):
    before = LOG_DROPPED._value.get()
    log = PredictionLog(tmp_path, share=1.0, seconds=60, megabytes=1)
    log.add(prediction(price=["no number", None]))
    log.add(prediction())
    log.stop()
    assert written(log).num_rows == 2
    assert LOG_DROPPED._value.get() == before + 1


def test_the_sample_has_the_share_asked_for(tmp_path):
    log = PredictionLog(tmp_path, share=0.2, seconds=60, megabytes=1)
    taken = sum(log.wants(uuid4().hex) for _ in range(5000))
    log.stop()
    assert 800 < taken < 1200


def test_feedback_is_in_the_file_at_once_and_files_rotate(tmp_path):
    log = FeedbackLog(tmp_path, megabytes=1, rows_per_file=2)
    for number in range(5):
        log.add([{"item_id": f"größe {number}"}])
    files = sorted(log.folder.iterdir())
    assert [len(path.read_text().splitlines()) for path in files] == [2, 2, 1]
    assert [json.loads(line)["item_id"] for path in files for line in path.read_text().splitlines()] == [
        f"größe {n}" for n in range(5)
    ]


def test_the_oldest_files_go(tmp_path):
    for number in range(4):
        (tmp_path / f"{number}").write_bytes(b"x" * 2**19)
    tidy(tmp_path, megabytes=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]
    (tmp_path / "4").write_bytes(b"x" * 2**22)
    tidy(tmp_path, megabytes=1)
    assert [path.name for path in tmp_path.iterdir()] == ["4"], "the newest stays, however long"


def test_a_log_line_is_one_object():
    import logging

    record = logging.makeLogRecord({"msg": "model %s", "args": ("refused",), "version": "3", "levelname": "ERROR"})
    line = json.loads(JsonLines().format(record))
    assert {key: line[key] for key in ("level", "message", "version")} == {
        "level": "error",
        "message": "model refused",
        "version": "3",
    }
