import hashlib

import numpy as np
import pyarrow as pa
import pytest

from components.dataset.errors import UserError
from components.dataset.prompts import PromptSet, text_hash, write_prompt_set

TEXTS = ["This is a user, age is 25.", "This is an item, title is 機上."]


def texts(ids=(0, 1)):
    spans = [[{"field": "age", "start": 23, "end": 25}], []]
    columns = {"text_id": list(ids), "side": ["user", "item"], "hash": [text_hash(t) for t in TEXTS], "text": TEXTS}
    return pa.table({**columns, "spans": spans})


def index(*ids):
    return {"user_text": np.zeros(len(ids), np.int32), "item_text": np.array(ids, np.int32)}


def test_written_and_opened_again(tmp_path):
    write_prompt_set(tmp_path / "p", texts(), {"train": index(1, 1), "test": index()}, {"a": 1}, {"form": "sentence"})
    opened = PromptSet.open(tmp_path / "p")
    assert opened.meta["form"] == "sentence" and opened.meta["texts"] == 2
    assert opened.report == {"a": 1}
    assert opened.texts().to_pylist() == texts().to_pylist()
    assert opened.texts(["text"])["text"].to_pylist() == TEXTS
    assert opened.index("train")["item_text"].tolist() == [1, 1]
    assert opened.index("train")["user_text"].dtype == np.int32
    assert opened.index("test")["user_text"].tolist() == []


def test_hash_is_of_the_utf8_text():
    assert text_hash("é") == hashlib.sha256(b"\xc3\xa9").hexdigest()


def test_ids_out_of_order_and_index_out_of_range_are_refused(tmp_path):
    with pytest.raises(ValueError, match="text_id must count"):
        write_prompt_set(tmp_path / "p", texts((1, 0)), {}, {}, {})
    with pytest.raises(ValueError, match="part 'train', column 'item_text', points outside the 2 texts"):
        write_prompt_set(tmp_path / "p", texts(), {"train": index(2)}, {}, {})
    assert list(tmp_path.iterdir()) == []


def test_no_prompts_and_another_format(tmp_path):
    with pytest.raises(UserError, match="no prompts; give the folder that the prompt_transform step wrote"):
        PromptSet.open(tmp_path)
    (tmp_path / "meta.json").write_text('{"format": 7}')
    with pytest.raises(UserError, match="prompt format 7 is not 1"):
        PromptSet.open(tmp_path)
