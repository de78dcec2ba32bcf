"""A registered version gains rows for new users and items, by the maps that it has learnt, without training."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.dataset.bundle import GOLDEN, ITEMS, MODEL, RANKER, VOCABULARY, Bundle, write_manifest
from components.dataset.embeddings import EmbeddingSet
from components.dataset.errors import UserError
from components.dataset.layout import CANDIDATE, REQUEST, InputLayout
from components.dataset.scoring import FoldedModel
from components.dataset.vocabulary import Vocabulary
from components.models.plm import PlmSpec
from components.register.export import Ids, onnx_probabilities, random_ids, write_model
from components.register.proof import UsedPlm
from components.registry.client import Registered, fetch, version_of
from components.registry.rows import FOUND, KEYS, add_version, fetch_checkpoint, put_in_place
from components.run import aside, read_json, write_json

if TYPE_CHECKING:
    from components.models.base import CollaborativeModel
    from components.training.growth import NewRows

log = logging.getLogger("tandem.register")

#: Requests of the folded model that are compared, each with the items of every row.
REQUESTS = 8


@dataclass(frozen=True)
class Newcomers:
    """New users and items: by side their keys, and the embeddings [n, text dim] of their texts."""

    keys: Mapping[str, list[str]]
    texts: Mapping[str, Any]

    @property
    def counts(self) -> dict[str, int]:
        """How many there are, by side."""
        return {side: len(keys) for side, keys in self.keys.items()}


def add_rows(dataset: str, newcomers: Path, embeddings: list[Path], output: Path) -> dict[str, Any]:
    """Give newcomers their rows in a new version of the champion, and let it take the champion's place.

    No gate is asked: every weight stays, what is known is scored as before to the last bit, which is checked here,
    and who was unknown gets the row that training has prepared the model for. The same newcomers again make no
    second version; a version that was rolled back is not put in place again.

    Args:
        dataset: Name of an embedded data set, or path of a DatasetSpec.
        newcomers: What the newcomers step has found.
        embeddings: Folders of the encode step, of its texts.
        output: JSON file for what is returned.

    Returns:
        outcome (an Outcome), version (the one with the rows), grown_from, and `new`: rows by side.

    Raises:
        UserError: the texts were not encoded by the PLM that the maps were learnt with.
        RuntimeError: the version's files cannot be fetched, or the larger model is not faithful to it.
    """
    from components.training.checkpoints import load_model
    from components.training.growth import NewRows

    found = read_json(newcomers / FOUND)
    base = version_of(dataset, found["version"])
    with TemporaryDirectory(prefix="tandem-rows-") as folder:
        bundle = Bundle.open(fetch(base, Path(folder, "base")))
        checkpoint = fetch_checkpoint(base, bundle, Path(folder, "checkpoint"))
        maps = NewRows.load(checkpoint)
        new = _read(newcomers, EmbeddingSet.open(embeddings), maps, base)
        model, vocabulary = _grown(load_model(checkpoint).eval(), bundle.vocabulary, maps, new)
        digest = _digest(base, model, vocabulary)
        larger = Path(folder, "bundle")
        plm = UsedPlm(PlmSpec.model_validate(maps.about["plm"]), maps.about["plm_digest"])
        write_larger(bundle, base, model, vocabulary, new.counts, plm, larger)
        grown = Path(folder, "grown")
        _save(grown, model, checkpoint, maps)
        said = ", ".join(f"{count} {side}s" for side, count in new.counts.items())
        description = f"Version {base.version} with rows for {said} more, made of their texts; nothing was trained."
        version = add_version(base, digest, larger, grown, description)
    outcome = put_in_place(version, base)
    result = {"outcome": str(outcome), "version": version.version, "grown_from": base.version, "new": new.counts}
    write_json(output, result)
    log.info("%s version %s, from version %s: rows for %s: %s", base.name, version.version, base.version, said, outcome)
    return result


def _read(newcomers: Path, encoded: EmbeddingSet, maps: NewRows, base: Registered) -> Newcomers:
    import torch

    theirs, ours = maps.about["plm_digest"], encoded.meta["plm_digest"]
    if (theirs, maps.about["plm"]) != (ours, encoded.meta["spec"]):
        raise UserError(
            f"{base.name} version {base.version} has learnt its maps from texts that {maps.about['plm']['name']} "
            f"({theirs[:12]}) encoded, and these were encoded by {encoded.meta['plm']} ({ours[:12]}); give encode the "
            "version's own PLM"
        )
    matrix, table = torch.from_numpy(encoded.matrix()), pq.read_table(newcomers / KEYS)
    keys, texts = {}, {}
    for side in maps.sides:
        rows = table.filter(pc.equal(table["side"], side))
        if rows.num_rows:
            keys[side] = rows["key"].to_pylist()
            texts[side] = matrix[torch.from_numpy(rows["text_id"].to_numpy().astype(np.int64))]
    return Newcomers(keys, texts)


def _grown(
    model: CollaborativeModel, vocabulary: Vocabulary, maps: NewRows, new: Newcomers
) -> tuple[CollaborativeModel, Vocabulary]:
    from components.training.growth import grow

    for side, keys in new.keys.items():
        model, vocabulary = grow(model, vocabulary, side, keys, maps(side, new.texts[side]))
    return model.eval(), vocabulary


def _digest(base: Registered, model: CollaborativeModel, vocabulary: Vocabulary) -> str:
    """Names what a version has gained: by the version, the keys and their rows."""
    digest = hashlib.sha256(f"{base.version} {vocabulary.digest}".encode())
    digest.update(model.embedding.table.weight.detach().numpy().tobytes())
    return digest.hexdigest()[:16]


def _save(folder: Path, model: CollaborativeModel, checkpoint: Path, maps: NewRows) -> None:
    """Write the larger model's checkpoint, which the next newcomers are added to."""
    from components.training.checkpoints import CONFIG, save_model

    save_model(folder, model, read_json(checkpoint / CONFIG)["meta"], beside=maps.save)


def write_larger(
    bundle: Bundle,
    base: Registered,
    model: CollaborativeModel,
    vocabulary: Vocabulary,
    new: Mapping[str, int],
    plm: UsedPlm | None,
    output: Path,
) -> dict[str, Any]:
    """Write the bundle of a version that has gained rows.

    Args:
        bundle: The version's bundle.
        base: The version.
        model: Its model with more rows, in eval mode.
        vocabulary: Its vocabulary with more values.
        new: Rows gained, by side.
        plm: The PLM that encoded their texts.
        output: The new bundle's folder.

    Returns:
        The manifest.

    Raises:
        RuntimeError: the ONNX model is not the torch model's, or changes the score of what was known before.
        PlmFoundError: the ONNX model may hold something of the PLM.
    """
    lineage = bundle.manifest["lineage"]
    golden = bundle.golden().drop_columns(["probability"])
    with aside(output) as draft:
        draft.mkdir(parents=True)
        for name in bundle.manifest["files"]:
            if name not in {MODEL, ITEMS, RANKER, GOLDEN, VOCABULARY}:
                shutil.copyfile(bundle.path / name, draft / name)
        exported = write_model(draft, model, vocabulary, golden, plm)
        _refuse_changed(bundle, draft, model.layout, exported["folded"])
        grown = {"from": base.version, "new": dict(new)}
        said = {**lineage, "vocabulary_digest": vocabulary.digest, "rows": grown}
        return write_manifest(draft, {**bundle.manifest, **exported, "lineage": said})


def _refuse_changed(bundle: Bundle, larger: Path, layout: InputLayout, folded: bool) -> None:
    """Compare a larger model with the one before, bit for bit, on rows that both know: the golden and random ones.

    Raises:
        RuntimeError: they differ.
    """
    small = bundle.vocabulary.layout
    golden = bundle.golden()
    encoded = bundle.encode({name: golden[name] for name in golden.column_names})
    before = np.concatenate([encoded, random_ids(small)])
    after = small.columns_of(layout).taken(before)
    pairs = [(onnx_probabilities(bundle.model_path, before), onnx_probabilities(larger / MODEL, after))]
    if folded != (bundle.folded is not None):
        raise RuntimeError(f"{bundle.path}: the larger model is {'' if folded else 'not '}folded, unlike this one")
    if bundle.folded:
        pairs += zip(
            *(_of_requests(path, ids, of) for path, ids, of in ((bundle.path, before, small), (larger, after, layout))),
            strict=True,
        )
    if not all(np.array_equal(one, other) for one, other in pairs):
        worst = max(float(np.abs(one - other).max()) for one, other in pairs)
        raise RuntimeError(
            f"{bundle.path}: with more rows the model scores what it knows otherwise, by up to {worst:.2g}; "
            "nothing was registered"
        )


def _of_requests(bundle: Path, ids: Ids, layout: InputLayout) -> list[Any]:
    """The folded model's probabilities of every row's item in the requests of some rows."""
    folded = FoldedModel(bundle / ITEMS, bundle / RANKER)
    parts = folded.parts(layout.ids_of(CANDIDATE, ids))
    asked = np.linspace(0, len(ids) - 1, REQUESTS).astype(int)
    return [folded.probabilities(layout.ids_of(REQUEST, ids[place : place + 1]), parts) for place in asked]
