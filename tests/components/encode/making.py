"""Prompts on disk, and the vectors that plain transformers gives their texts."""

import numpy as np
import pyarrow as pa
import torch

from components.dataset.prompts import TEXT_SCHEMA, text_hash, write_prompt_set
from components.models.plm import load_plm, load_tokenizer, locate


def write_prompts(folder, texts):
    """A prompt set of these texts, in this order, duplicates too."""
    table = pa.table(
        {
            "text_id": pa.array(range(len(texts)), pa.int32()),
            "side": pa.array(["item"] * len(texts), pa.string()),
            "hash": pa.array([text_hash(text) for text in texts], pa.string()),
            "text": pa.array(texts, pa.string()),
            "spans": pa.array([[]] * len(texts), TEXT_SCHEMA.field("spans").type),
        }
    )
    write_prompt_set(folder, table, {}, {}, {"granularity": "entity", "form": "natural", "prompt_hash": "0"})
    return folder


def naive_vectors(spec, texts):
    """One text at a time through transformers, pooled by hand."""
    plm = load_plm(spec)
    tokenizer = load_tokenizer(spec, locate(spec), spec.max_length)
    vectors = []
    for text in texts:
        ids = tokenizer.encode(spec.prefix + text).ids
        with torch.inference_mode():
            states = plm.model(input_ids=torch.tensor([ids])).last_hidden_state[0].numpy()
        vectors.append({"mean": states.mean(0), "cls": states[0], "last": states[-1]}[spec.pooling])
    return np.stack(vectors)
