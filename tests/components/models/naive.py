"""Each backbone once more: one row at a time, in float64 numpy, straight from the formulas of its paper."""

from itertools import combinations
from math import erf

import numpy as np

from components.dataset.layout import MASK


def weights_of(model):
    return {name: value.double().numpy() for name, value in model.state_dict().items()}


def rows_of(layout, ids, table):
    """The row of each field: the mean over the ids that are not padding."""
    rows = []
    for slots in layout.fields:
        filled = [i for i in ids[slots.start : slots.stop] if i != 0]
        rows.append(sum(table[i] for i in filled) / max(len(filled), 1) if filled else np.zeros(table.shape[1]))
    return np.stack(rows)


def relu(x):
    return np.maximum(x, 0.0)


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def mlp(w, x, prefix="deep"):
    layer = 0
    while f"{prefix}.{layer}.weight" in w:
        x = w[f"{prefix}.{layer}.weight"] @ x + w[f"{prefix}.{layer}.bias"]
        norm = f"{prefix}.{layer + 1}"
        x = (x - w[f"{norm}.running_mean"]) / np.sqrt(w[f"{norm}.running_var"] + 1e-5)
        x = relu(x * w[f"{norm}.weight"] + w[f"{norm}.bias"])
        layer += 4  # linear, norm, ReLU, dropout
    return x


def first_order(model, w, ids, name):
    return rows_of(model.layout, ids, w[f"{name}.table.weight"])[:, 0]


def wide_deep(model, w, e, ids):
    return np.concatenate([first_order(model, w, ids, "wide"), mlp(w, e.ravel())])


def deepfm(model, w, e, ids):
    products = sum(e[i] * e[j] for i, j in combinations(range(len(e)), 2))
    return np.concatenate([first_order(model, w, ids, "first_order"), products, mlp(w, e.ravel())])


def dcn(model, w, e, ids):
    x0 = x = e.ravel()
    for layer in range(model.config.cross_layers):
        x = np.outer(x0, x) @ w[f"cross.{layer}.weight.weight"][0] + w[f"cross.{layer}.bias"] + x
    return np.concatenate([x, mlp(w, x0)])


def dcnv2(model, w, e, ids):
    x0 = x = e.ravel()
    for layer in range(model.config.cross_layers):
        if model.config.cross_rank == 0:
            x = x0 * (w[f"cross.{layer}.matrix.weight"] @ x + w[f"cross.{layer}.matrix.bias"]) + x
            continue
        gates = softmax(w[f"cross.{layer}.gate.weight"] @ x)
        mixed = np.zeros_like(x)
        for expert, gate in enumerate(gates):
            down, core, up = (w[f"cross.{layer}.{part}"][expert] for part in ("down", "core", "up"))
            inner = np.tanh(core.T @ np.tanh(down.T @ x))
            mixed += gate * (x0 * (up.T @ inner + w[f"cross.{layer}.bias"]))
        x = mixed + x
    return np.concatenate([x, mlp(w, x0)])


def pnn(model, w, e, ids):
    signals = [e.ravel()]
    if model.config.product in {"inner", "both"}:
        signals.append(np.array([e[i] @ e[j] for i, j in combinations(range(len(e)), 2)]))
    if model.config.product in {"outer", "both"}:
        signals.append(sum(np.outer(a, b) for a in e for b in e).ravel())
    return mlp(w, np.concatenate(signals))


def autoint(model, w, e, ids):
    return np.concatenate([interacted(model, w, e), mlp(w, e.ravel())])


def interacted(model, w, e):
    x, heads = e, model.config.heads
    for layer in range(model.config.layers):
        query, key, value, residual = np.split(w[f"attention.{layer}.project.weight"], 4)
        size = len(query) // heads
        out = np.zeros((len(x), len(query)))
        for m in range(len(x)):
            for head in range(heads):
                part = slice(head * size, (head + 1) * size)
                scores = np.array([(query[part] @ x[m]) @ (key[part] @ x[k]) for k in range(len(x))])
                out[m, part] = sum(a * (value[part] @ x[k]) for k, a in enumerate(softmax(scores)))
            out[m] = relu(out[m] + residual @ x[m])
        x = out
    return x.ravel()


def fibinet(model, w, e, ids):
    z = e.mean(1)
    importance = relu(w["senet.excite.weight"] @ relu(w["senet.squeeze.weight"] @ z))
    products = []
    for rows in (e, e * importance[:, None]):
        for place, (i, j) in enumerate(combinations(range(len(e)), 2)):
            which = {"all": 0, "each": i, "interaction": place}[model.config.bilinear]
            products.append((rows[i] @ w["bilinear.weight"][which]) * rows[j])
    return np.concatenate([first_order(model, w, ids, "first_order"), mlp(w, np.concatenate(products))])


def xdeepfm(model, w, e, ids):
    current, pooled = e, []
    for layer, maps in enumerate(model.config.cin):
        weight = w[f"cin.compress.{layer}.weight"].reshape(maps, len(current), len(e))
        following = np.zeros((maps, e.shape[1]))
        for h in range(maps):
            for i in range(len(current)):
                for j in range(len(e)):
                    following[h] += weight[h, i, j] * current[i] * e[j]
        current = following
        pooled.append(current.sum(1))
    return np.concatenate([first_order(model, w, ids, "first_order"), *pooled, mlp(w, e.ravel())])


def events_of(model, w, ids):
    """The rows of a history's events, oldest first, each attribute after the other; empty slots are left out."""
    table, seen = w["embedding.table.weight"], model.layout.history
    places = [place for place in range(seen[0].width) if ids[seen[0].start + place] != 0]
    return [np.concatenate([table[ids[slots.start + place]] for slots in seen]) for place in places]


def mean_history(model, w, e, ids):
    events = events_of(model, w, ids)
    width = len(model.layout.history) * e.shape[1]
    return mlp(w, np.concatenate([e.ravel(), np.mean(events, axis=0) if events else np.zeros(width)]))


def din(model, w, e, ids):
    shown, interest = e[-1], np.zeros(len(model.layout.history) * e.shape[1])
    for event in events_of(model, w, ids):
        item = event[: len(shown)]
        x = np.concatenate([event, shown, item - shown, item * shown])
        x = w["unit.first.weight"] @ x + w["unit.first.bias"]
        for layer in range(len(model.config.activation)):
            x = np.where(x > 0, x, w[f"unit.rest.{2 * layer}.weight"][0] * x)
            x = w[f"unit.rest.{2 * layer + 1}.weight"] @ x + w[f"unit.rest.{2 * layer + 1}.bias"]
        interest += x[0] * event
    return mlp(w, np.concatenate([e.ravel(), interest]))


def layer_norm(w, name, x):
    return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]


def attended(query, keys, values, heads):
    """Scaled dot-product attention of one query."""
    size, out = len(query) // heads, np.zeros_like(query)
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        shares = softmax(np.array([query[part] @ key[part] for key in keys]) / np.sqrt(size))
        out[part] = sum(share * value[part] for share, value in zip(shares, values, strict=True))
    return out


def bst(model, w, e, ids):
    length, width = model.layout.history[0].width, model.config.attention_dim
    events = events_of(model, w, ids)
    candidate = np.concatenate([e[-1], np.zeros((len(model.layout.history) - 1) * e.shape[1])])
    tokens = [w["token.weight"] @ row for row in [*events, candidate]]
    for number in range(model.config.sequence_layers):
        name = f"layers.{number}"
        parts = [np.split(w[f"{name}.project.weight"] @ token, 3) for token in tokens]
        queries, keys, values = zip(*parts, strict=True)
        following = []
        for token, query in zip(tokens, queries, strict=True):
            heard = w[f"{name}.output.weight"] @ attended(query, keys, values, model.config.heads)
            s = layer_norm(w, f"{name}.norms.0", token + heard)
            inner = w[f"{name}.inner.weight"] @ s + w[f"{name}.inner.bias"]
            outer = w[f"{name}.outer.weight"] @ np.where(inner > 0, inner, 0.01 * inner) + w[f"{name}.outer.bias"]
            following.append(layer_norm(w, f"{name}.norms.1", s + outer))
        tokens = following
    empty = np.zeros((length - len(events)) * width)
    return mlp(w, np.concatenate([e.ravel(), empty, *(w["scale.weight"] * token for token in tokens)]))


def linear(w, name, x):
    return w[f"{name}.weight"] @ x + w[f"{name}.bias"]


def gelu(x):
    return x * 0.5 * (1 + np.array([erf(value / np.sqrt(2)) for value in x]))


def asked(w, name, x, keys, values, heads):
    """An attention block and a feed-forward block with one query."""
    heard = linear(
        w, f"{name}.attention.output", attended(linear(w, f"{name}.attention.query", x), keys, values, heads)
    )
    s = layer_norm(w, f"{name}.attention.norm", x + heard)
    inner = gelu(linear(w, f"{name}.feed_forward.inner", s))
    return layer_norm(w, f"{name}.feed_forward.norm", s + linear(w, f"{name}.feed_forward.outer", inner))


def srp4ctr(model, w, e, ids):
    table, seen, heads = w["encoder.table.weight"], model.layout.history, model.config.heads
    length = seen[0].width
    tokens = [w["encoder.start"]]
    for place in range(length):
        if ids[seen[0].start + place] != 0:
            rows = sum(table[ids[slots.start + place]] for slots in seen)
            tokens.append(rows + w["encoder.position.weight"][length - 1 - place])
    tokens = [layer_norm(w, "encoder.norm", token) for token in tokens]
    # The item's id is the first attribute; the others are behaviour, hidden from the candidate.
    hidden = sum(table[slots.offset + MASK] for slots in seen[1:])
    shown = table[ids[model.layout.fields[-1].start]] + hidden + w["encoder.position.weight"][0]
    stream, kind = layer_norm(w, "encoder.norm", shown), model.config.cross_attention
    for number in range(model.config.encoder_layers):
        name, item = f"encoder.layers.{number}", f"item_layers.{number}"
        seeing = [*tokens, stream] if kind == "full" else tokens
        keys, values = ([linear(w, f"{name}.{of}", token) for token in seeing] for of in ("key", "value"))
        tokens = [asked(w, name, token, keys, values, heads) for token in tokens]
        if kind == "sink":
            keys, values = ([w[f"{item}.sink"][i].ravel(), *given] for i, given in enumerate((keys, values)))
        if kind != "none":
            stream = asked(w, item, stream, keys, values, heads)
    streams = [] if kind == "none" else [stream]
    if model.config.queries:
        keys, values = ([linear(w, f"querying.layer.{of}", token) for token in tokens] for of in ("key", "value"))
        streams += [asked(w, "querying.layer", query, keys, values, heads) for query in w["querying.queries"]]
    return mlp(w, np.concatenate([e.ravel(), w["scale.weight"] * np.concatenate([*streams, []])]))


def autoint_history(model, w, e, ids):
    """AutoInt's own formulas over the fields' rows and, behind them, what the candidate finds in its history."""
    table, seen, heads = w["embedding.table.weight"], model.layout.history, model.config.heads
    shown = model.layout.fields[-1]
    (label,) = (slots for slots in seen if slots.name == "history_label")
    kinds = ([], [])  # liked, disliked
    for place in range(seen[0].width):
        if (item := ids[seen[0].start + place]) != 0:
            row = sum(table[ids[s.start + place]] for s in seen if s.name not in ("history_gap", "history_hour"))
            kinds[int(ids[label.start + place] != label.offset + 4)].append((row, item))
    found = []
    for events in kinds:
        query = w["history.query.weight"] @ e[-1]
        # One more event that everyone has: its key and value are zero.
        keys, values = ([w[f"history.{of}.weight"] @ row for row, _ in events] for of in ("key", "value"))
        nothing = np.zeros_like(query)
        found.append(attended(query, [*keys, nothing], [*values, nothing], heads))
    cosines = []
    if model.config.text_rows:
        text = lambda item: w["texts.vectors"][item - shown.offset + 1]  # noqa: E731
        candidate = text(ids[shown.start])
        found.append(linear(w, "text_row", candidate))
        near = [[candidate @ text(item) for _, item in events] for events in kinds]
        for events, values, sharpness in zip(kinds, near, w["alike.sharpness"], strict=True):
            rows = [linear(w, "text_row", text(item)) for _, item in events]
            shares = softmax(np.array(values) * sharpness) if values else []
            found.append(sum((share * row for share, row in zip(shares, rows, strict=True)), np.zeros_like(query)))
        cosines = [max(values, default=0.0) for values in near]
        cosines += [np.mean(values) if values else 0.0 for values in near]
    rows = np.stack([*e, *found])
    return np.concatenate([interacted(model, w, rows), mlp(w, np.concatenate([rows.ravel(), cosines]))])


WITHOUT_HISTORY = (wide_deep, deepfm, dcn, dcnv2, pnn, autoint, fibinet, xdeepfm)
BY_NAME = {f.__name__: f for f in (*WITHOUT_HISTORY, mean_history, din, bst, srp4ctr, autoint_history)}


def representation(name, model, ids):
    """The representation [width] of one row of ids [W]."""
    w = weights_of(model)
    e = rows_of(model.layout, ids, w["embedding.table.weight"])
    return BY_NAME[name](model, w, e, ids)
