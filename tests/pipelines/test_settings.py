"""Settings of several steps that do not go together are refused before anything is made."""

import pytest

from components.dataset.errors import UserError
from pipelines.settings import parse_settings

TRAINED = ["align.plm_mode=last_layer"]
INSTANCE = ["prompt.granularity=instance"]


@pytest.mark.parametrize(
    ("assignments", "said"),
    [
        ([*TRAINED, "encode.plm.layers=2"], r"last_layer .* not encode\.plm in layers; write them alike"),
        ([*TRAINED, "align.plm.pooling=cls", "align.plm.name=/x"], r"not encode\.plm in name, pooling"),
        ([*TRAINED, "finetune.auxiliary.weight=0.1"], "write auxiliary.weight 0, or plm_mode frozen"),
        ([*INSTANCE, "finetune.map_rows=[user, item]"], r"finetune\.map_rows: .* write prompt\.granularity entity"),
        ([*INSTANCE, "align.liked_texts=true"], r"align\.liked_texts: .* write prompt\.granularity entity"),
        ([*INSTANCE, "model.text_rows=8", "backbone=autoint_history"], r"model\.text_rows: .*granularity entity"),
        (["model.text_rows=8"], r"model\.text_rows: backbone autoint has no rows .* write backbone autoint_history"),
    ],
)
def test_texts_that_a_step_could_not_use_are_refused(assignments, said):
    with pytest.raises(UserError, match=said):
        parse_settings({}, assignments)


@pytest.mark.parametrize(
    "assignments",
    [
        [*TRAINED, "encode.plm.layers=2", "align.plm.layers=2"],
        [*TRAINED, "encode.plm.layers=2", "method=collaborative"],
        ["finetune.auxiliary.weight=0.1", "encode.plm.layers=2"],
    ],
)
def test_what_no_step_would_read_is_nobodys_fault(assignments):
    assert parse_settings({}, assignments).dataset == "sample"


@pytest.mark.parametrize(
    ("assignments", "said"),
    [
        (["align.rows=1"], "one row has no negatives; write at least 2"),
        (["finetune.processes=4", "finetune.batch_size=3"], "batch_size: 4 processes share 3 rows; write at least 4"),
        (["align.processes=2", "align.nodes=2", "align.batch_size=3"], "4 processes share 3 rows"),
    ],
)
def test_batches_in_which_somebody_would_have_no_row_are_refused(assignments, said):
    with pytest.raises(UserError, match=said):
        parse_settings({}, assignments)
