"""BERT's encoder in torch alone, for a PLM that only reads.

transformers takes seconds to import, in every worker of every run; most encoders of sentences are BERTs, and this is
all of one that a forward pass needs. The vectors equal those of transformers (a test holds them together). Query, key
and value are one matrix product, and without padding no mask is made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from components.models.plm import PlmSpec
from components.run import read_json

#: What config.json must say for this code to be the model.
EXPECTED = {"model_type": ("bert",), "hidden_act": ("gelu",), "position_embedding_type": ("absolute", None)}


class Bert(torch.nn.Module):
    """Devlin et al. 2019, in evaluation mode: token ids to states after the last layer."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        config = read_json(folder / "config.json")
        self.heads = int(config["num_attention_heads"])
        self.layers = int(config["num_hidden_layers"])
        self.eps = float(config["layer_norm_eps"])
        for name, tensor in _arranged(_weights(folder), self.layers).items():
            self.register_buffer(name, tensor)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """States [batch, tokens, dim] of ids [batch, tokens] and mask (None: nothing is padded)."""
        states = functional.embedding(input_ids, self.part("word")) + self.part("position")[: input_ids.shape[1]]
        states = self._norm("embedding_norm", states)
        mask = None if attention_mask is None else attention_mask[:, None, None, :].bool()
        for layer in range(self.layers):
            states = self._norm(f"{layer}_attention_norm", states + self._attention(layer, states, mask))
            inner = functional.gelu(self._linear(f"{layer}_up", states))
            states = self._norm(f"{layer}_output_norm", states + self._linear(f"{layer}_down", inner))
        return states

    def part(self, name: str) -> Tensor:
        """A tensor by name."""
        return self.get_buffer(name)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return functional.linear(x, self.part(f"{name}_weight"), self.part(f"{name}_bias"))

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], self.part(f"{name}_weight"), self.part(f"{name}_bias"), self.eps)

    def _attention(self, layer: int, x: Tensor, mask: Tensor | None) -> Tensor:
        batch, tokens, dim = x.shape
        joint = self._linear(f"{layer}_qkv", x).view(batch, tokens, 3, self.heads, dim // self.heads)
        query, key, value = joint.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self._linear(f"{layer}_mix", mixed.transpose(1, 2).reshape(batch, tokens, dim))


def is_plain_bert(spec: PlmSpec, folder: Path) -> bool:
    """Whether the model in the folder is a BERT as it was published, which `Bert` can run."""
    config: dict[str, Any] = read_json(folder / "config.json")
    known = all(config.get(name) in values for name, values in EXPECTED.items())
    plain = not spec.random_weights and spec.layers is None and not config.get("is_decoder", False)
    fits = spec.max_length <= int(config.get("max_position_embeddings", 0))
    return known and plain and fits and (folder / "model.safetensors").is_file()


def _weights(folder: Path) -> dict[str, Tensor]:
    """The encoder's tensors in float32 without the prefix that models with a head put before their names."""
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    # Old checkpoints call the two parts of a layer norm gamma and beta.
    renamed = {name.replace(".gamma", ".weight").replace(".beta", ".bias"): tensor for name, tensor in tensors.items()}
    return {name.removeprefix("bert."): tensor.float() for name, tensor in renamed.items()}


def _arranged(tensors: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The tensors under this module's names. One segment only: its embedding is added to every position's."""
    embeddings = "embeddings."
    segment = tensors[embeddings + "token_type_embeddings.weight"][0]
    arranged = {
        "word": tensors[embeddings + "word_embeddings.weight"],
        "position": tensors[embeddings + "position_embeddings.weight"] + segment,
    }
    for kind in ("weight", "bias"):
        arranged[f"embedding_norm_{kind}"] = tensors[f"{embeddings}LayerNorm.{kind}"]
        for layer in range(layers):
            root = f"encoder.layer.{layer}."
            joint = [tensors[f"{root}attention.self.{name}.{kind}"] for name in ("query", "key", "value")]
            arranged[f"{layer}_qkv_{kind}"] = torch.cat(joint)
            for ours, theirs in LAYER.items():
                arranged[f"{layer}_{ours}_{kind}"] = tensors[f"{root}{theirs}.{kind}"]
    return arranged


LAYER = {
    "mix": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "output_norm": "output.LayerNorm",
}
