"""The peers of tests.benchmarks.train, each run by the Python of its own virtual environment: no import of ours.

    python train_peers.py deepctr|fuxictr FOLDER BATCH EPOCHS

Reads FOLDER/arrays.npz (train_ids [n, F], train_labels, test_ids, sizes [F]), trains AutoInt as it is set in the
benchmark, writes the test rows' probabilities to FOLDER/<name>.npy and prints its seconds as one line of JSON.
"""

import json
import sys
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

EMBEDDING, LAYERS, HEADS, HIDDEN, DROPOUT, RATE = 32, 3, 2, (256, 128, 64), 0.1, 1e-3


def deepctr(arrays, batch, epochs):
    """DeepCTR-Torch's own model and its own `fit`."""
    from deepctr_torch.inputs import SparseFeat
    from deepctr_torch.models import AutoInt

    columns = [SparseFeat(f"f{i}", int(size), EMBEDDING) for i, size in enumerate(arrays["sizes"])]
    named = {part: {f"f{i}": arrays[part][:, i] for i in range(len(columns))} for part in ("train_ids", "test_ids")}
    model = AutoInt(
        [], columns, LAYERS, HEADS, dnn_hidden_units=HIDDEN, dnn_use_bn=True, dnn_dropout=DROPOUT, init_std=0.01
    )
    model.compile(torch.optim.Adam(model.parameters(), lr=RATE), "binary_crossentropy")

    def train():
        model.fit(named["train_ids"], arrays["train_labels"], batch_size=batch, epochs=epochs, verbose=0)

    return train, lambda: model.predict(named["test_ids"], 8192)[:, 0]


def fuxictr(arrays, batch, epochs):
    """FuxiCTR's layers put together as its AutoInt is, and its own training step."""
    from fuxictr.features import FeatureMap
    from fuxictr.pytorch import layers
    from fuxictr.pytorch.models import BaseModel
    from torch.utils.data import DataLoader, TensorDataset

    names = [f"f{i}" for i in range(len(arrays["sizes"]))]
    known = FeatureMap("benchmark", ".")
    known.features = OrderedDict(
        (name, {"source": "", "type": "categorical", "vocab_size": int(size)})
        for name, size in zip(names, arrays["sizes"], strict=True)
    )
    known.num_fields, known.labels = len(names), ["label"]
    known.total_features, known.input_length = int(arrays["sizes"].sum()), len(names)

    class SelfAttention(torch.nn.Module):
        """As in the AutoInt of FuxiCTR's repository: the wheel has the product, not the layer."""

        def __init__(self):
            super().__init__()
            self.query, self.key, self.value = (torch.nn.Linear(EMBEDDING, EMBEDDING, bias=False) for _ in range(3))
            self.product = layers.ScaledDotProductAttention()

        def forward(self, rows):
            parts = (part(rows) for part in (self.query, self.key, self.value))
            by_head = [part.view(len(rows), -1, HEADS, EMBEDDING // HEADS).transpose(1, 2) for part in parts]
            output, _ = self.product(*by_head)
            return (output.transpose(1, 2).contiguous().view(len(rows), -1, EMBEDDING) + rows).relu()

    class AutoInt(BaseModel):
        def __init__(self):
            super().__init__(known, model_id="AutoInt", gpu=-1, model_root="./", metrics=["AUC"], verbose=0)
            self.embedding_layer = layers.FeatureEmbedding(known, EMBEDDING)
            self.attention = torch.nn.Sequential(*(SelfAttention() for _ in range(LAYERS)))
            self.fc = torch.nn.Linear(len(names) * EMBEDDING, 1)
            self.dnn = layers.MLP_Block(
                input_dim=len(names) * EMBEDDING,
                output_dim=1,
                hidden_units=list(HIDDEN),
                dropout_rates=DROPOUT,
                batch_norm=True,
            )
            self.compile("adam", "binary_crossentropy", RATE)
            self.reset_parameters()

        def forward(self, inputs):
            rows = self.embedding_layer(self.get_inputs(inputs))
            logits = self.fc(self.attention(rows).flatten(1)) + self.dnn(rows.flatten(1))
            return {"y_pred": self.output_activation(logits)}

    model = AutoInt()

    def batches(ids, labels, size, shuffle):
        # A dictionary of columns, as FuxiCTR's own loaders give.
        for x, y in DataLoader(TensorDataset(torch.from_numpy(ids), torch.from_numpy(labels)), size, shuffle=shuffle):
            yield {**{name: x[:, i] for i, name in enumerate(names)}, "label": y}

    def train():
        model.train()
        model._max_gradient_norm = 10.0
        for _ in range(epochs):
            for one in batches(arrays["train_ids"], arrays["train_labels"], batch, True):
                model.train_step(one)

    def predict():
        model.eval()
        with torch.no_grad():
            labels = np.zeros(len(arrays["test_ids"]), np.float32)
            parts = [model(one)["y_pred"][:, 0] for one in batches(arrays["test_ids"], labels, 8192, False)]
        return torch.cat(parts).numpy()

    return train, predict


def main():
    name, folder, batch, epochs = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    torch.manual_seed(1)
    arrays = dict(np.load(folder / "arrays.npz"))
    train, predict = {"deepctr": deepctr, "fuxictr": fuxictr}[name](arrays, batch, epochs)
    began, spent = time.perf_counter(), time.process_time()
    train()
    found = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - spent}
    np.save(folder / f"{name}.npy", predict())
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    peak = next(int(words[1]) for words in lines if words[0] == "VmHWM:") * 1024 / 1e9
    print(json.dumps({**found, "peak_gb": peak}))


if __name__ == "__main__":
    main()
