"""A small log with its prompts, and a tiny untrained BERT to read them."""

import pyarrow as pa

from components.models.config import BackboneConfig
from components.models.plm import PlmSpec
from components.prompt_transform.settings import PromptSettings
from components.prompt_transform.step import prompt_transform
from components.reconstruct.settings import ReconstructSettings
from tests.components.encode.tiny import save_bert
from tests.components.evaluate.logs import spec_of, table, training_set

MODEL = BackboneConfig(embedding_dim=8, hidden=(16,), layers=1, queries=2, encoder_layers=1, dropout=0.0)


def inputs_of(folder, rows=600, history=None):
    """The folders of training set and prompts, and the PLM; `history` as in a DatasetSpec.

    One that keeps likes and dislikes apart is given labels: of the user's events every other one was a dislike.
    """
    shown, changes = table(rows=rows), {} if history is None else {"history": history}
    if history and history["events"] == "per_label":
        labels = [[place % 2 for place in range(len(seen))] for seen in shown["history_item_id"].to_pylist()]
        shown = shown.append_column("history_label", pa.array(labels, type=pa.list_(pa.int8())))
    training_set(folder / "training_set", spec_of(**changes), shown)
    prompt_transform(folder / "training_set", folder / "prompts", PromptSettings(plm=None))
    return folder / "training_set", folder / "prompts", PlmSpec(name=str(save_bert(folder / "bert")))


def settings_of(plm, **changes):
    quick = {"batch_size": 128, "health_rows": 48, "cache_megabytes": 64, "learning_rate": 5e-3}
    return ReconstructSettings(**{**quick, "plm": plm, **changes})
