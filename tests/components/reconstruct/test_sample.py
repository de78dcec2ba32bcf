"""The point of FLIP on the sample: what is hidden on one side is told better with the other side's help."""

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from components.dataset import sample
from components.dataset.catalog import load_spec
from components.dataset.training_set import write_training_set
from components.models.config import BackboneConfig
from components.models.plm import PlmSpec
from components.prompt_transform.settings import PromptSettings
from components.prompt_transform.step import prompt_transform
from components.reconstruct.settings import ReconstructSettings
from components.reconstruct.step import reconstruct

USERS, ITEMS = 1000, 100
#: The wheel's PLM up to its second layer, which is quick, and knows words.
SETTINGS = ReconstructSettings(
    epochs=8, batch_size=64, learning_rate=3e-3, health_rows=512, plm=PlmSpec(layers=1, pooling="cls")
)


def part_of_the_sample(folder):
    """Impressions of some users and some items, in the order of time."""
    sample.ensure(folder / "sample")
    shown, users, items = (
        pq.read_table(folder / "sample" / f"{name}.parquet") for name in ("impressions", "users", "items")
    )
    users, items = users.slice(0, USERS).drop(["joined_at"]), items.slice(0, ITEMS).drop(["listed_at"])
    rows = shown.join(users, "user", join_type="inner").join(items, "item", join_type="inner").sort_by("shown_at")
    names = {"user": "user_id", "item": "item_id", "shown_at": "event_timestamp", "clicked": "label"}
    rows = rows.rename_columns([names.get(name, name) for name in rows.column_names])
    rows = rows.set_column(rows.column_names.index("tags"), "tags", pc.split_pattern(rows["tags"], "|"))
    return rows.append_column("impression_id", pa.array(range(rows.num_rows)))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    rows = part_of_the_sample(folder)
    first, second = int(0.7 * len(rows)), int(0.9 * len(rows))
    parts = {"train": rows[:first], "valid": rows[first:second], "test": rows[second:]}
    write_training_set(folder / "training_set", load_spec("sample"), parts, {})
    prompt_transform(folder / "training_set", folder / "prompts", PromptSettings(plm=None))
    return folder / "training_set", folder / "prompts"


@pytest.fixture(scope="module")
def healths(inputs, tmp_path_factory):
    """The health reports of FLIP, and of FLIP whose tasks see their own modality alone."""
    folder = tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TANDEM_HOME", str(folder))
        model = BackboneConfig(embedding_dim=16, hidden=(32,), layers=1, dropout=0.0)
        return [
            reconstruct(*inputs, folder / name, "autoint", model, SETTINGS.model_copy(update={"cross_modal": both}), 1)
            for name, both in (("both", True), ("alone", False))
        ]


@pytest.mark.parametrize("task", ["mlm", "mtm"])
def test_each_reconstruction_beats_that_from_its_own_modality(healths, task):
    both, alone = (health["after"][task] for health in healths)
    assert both < 0.9 * alone
    assert all(health["after"][task] < 0.9 * health["before"][task] for health in healths)
