"""Layouts, ids and models with weights everywhere, for the tests of the backbones."""

from dataclasses import replace

import numpy as np
import torch

from components.dataset.layout import FieldSlots, InputLayout
from components.models.config import BackboneConfig
from components.models.registry import build_backbone

SMALL = BackboneConfig(
    embedding_dim=6, hidden=(10, 7), dropout=0.2, layers=2, heads=2, attention_dim=4, cin=(5, 3), activation=(5, 3),
    sequence_layers=2,
)  # fmt: skip


def layout_of(*widths, history=0, sizes=9):
    """One field for each width, above 1 a multi field; the last is the item's. Each history event has its id and a
    label."""
    fields, start, offset = [], 0, 1
    for place, width in enumerate(widths):
        side, kind = "item" if place == len(widths) - 1 else "user", "category" if width == 1 else "multi"
        fields.append(FieldSlots(f"field{place}", side, kind, start, width, offset, sizes))
        start, offset = start + width, offset + sizes
    last = fields[-1]
    seen = FieldSlots("history", "user", last.kind, start, history, last.offset, sizes)
    label = FieldSlots("history_label", "user", "category", start + history, history, offset, 5)
    return InputLayout(tuple(fields), (seen, label) if history else ())


def sided(*sides):
    """One field for each (side, width), in this order."""
    layout = layout_of(*(width for _, width in sides))
    fields = (replace(field, side=side) for field, (side, _) in zip(layout.fields, sides, strict=True))
    return InputLayout(tuple(fields))


#: Users', items' and the context's fields in between each other.
SIDED = sided(("user", 1), ("item", 3), ("context", 1), ("item", 1), ("user", 2))
MIXED = layout_of(1, 3, 1, 1, 2, history=4)
PLAIN = layout_of(1, 1, 1, history=3)


def ids_of(layout, rows=11, seed=3):
    """Random ids that fit; multi fields padded after a random number of values, histories before their events."""
    random = np.random.default_rng(seed)
    ids = np.zeros((rows, layout.width), dtype=np.int64)
    for slots in (*layout.fields, *layout.history):
        drawn = random.integers(slots.offset, slots.offset + slots.size, (rows, slots.width))
        filled = random.integers(1, slots.width + 1, (rows, 1))
        there = np.arange(slots.width) < filled
        if slots in layout.history:
            # The rows take turns from no event to as many as fit, alike for all attributes.
            there = np.arange(slots.width)[::-1] < np.arange(rows)[:, None] % (slots.width + 1)
        ids[:, slots.start : slots.stop] = np.where(there, drawn, 0)
    return torch.from_numpy(ids)


def model_of(name, layout=MIXED, config=SMALL, seed=0):
    """A backbone in eval mode: no weight and no statistic of its batch norm has its initial value."""
    torch.manual_seed(seed)
    model = build_backbone(name, layout, config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
        for name_, buffer in model.named_buffers():
            if name_.endswith(("running_mean", "running_var")):
                buffer.uniform_(0.5, 1.5)
            if name_.endswith("vectors"):
                buffer[1:].normal_(std=0.5)
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding):
                module.weight[0] = 0.0
    return model.eval()
