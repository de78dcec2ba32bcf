"""The artefact of encode: one embedding per text, in shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from components.dataset.errors import UserError
from components.run import aside, read_json, write_json

FORMAT = 2
SAME = ("plm", "plm_digest", "pooling", "dim", "shards")
CACHE = ("hits", "misses", "tokens", "seconds", "seconds_saved", "gpu_seconds", "gpu_seconds_saved")

Matrix = npt.NDArray[np.float32]


def write_embeddings(
    path: Path,
    embeddings: Matrix,
    text_ids: npt.NDArray[np.int32],
    meta: Mapping[str, Any],
    shard: int = 0,
    shards: int = 1,
) -> None:
    """Write a folder with one shard: embeddings float32 [n, d] of the texts named by text_ids int32 [n].

    Args:
        path: The folder; it takes the place of one that is there.
        embeddings: One row per text.
        text_ids: The row's text.
        meta: plm, plm_digest, pooling, dim, and cache: the counts and seconds of CACHE.
        shard: Number of the shard, from 0; part of the file's name.
        shards: Number of shards that hold all texts together.
    """
    from safetensors.numpy import save_file

    if embeddings.ndim != 2 or len(embeddings) != len(text_ids):
        raise ValueError(f"embeddings of shape {embeddings.shape} do not fit {len(text_ids)} text ids")
    tensors = {"embeddings": np.ascontiguousarray(embeddings, np.float32), "text_ids": text_ids.astype(np.int32)}
    with aside(path) as draft:
        draft.mkdir()
        save_file(tensors, draft / f"shard-{shard:05d}.safetensors")
        place = {"shard": shard, "shards": shards, "texts": len(text_ids)}
        write_json(draft / "meta.json", {**meta, **place, "dim": int(embeddings.shape[1]), "format": FORMAT})


@dataclass(frozen=True)
class EmbeddingSet:
    """The shards of one encoding, from one folder or from one folder per shard.

    `meta` is the first shard's, with the cache's figures and the texts summed; `given` are the shards' numbers.
    """

    files: tuple[Path, ...]
    meta: dict[str, Any]
    given: tuple[int, ...]

    @classmethod
    def open(cls, paths: Path | Sequence[Path]) -> Self:
        """Open the shards together.

        Raises:
            UserError: a folder holds no embeddings, or the shards come from different encodings.
        """
        folders = [paths] if isinstance(paths, Path) else list(paths)
        for folder in folders:
            if not (folder / "meta.json").is_file():
                raise UserError(f"{folder}: no embeddings; give the folders that the encode step wrote")
        metas = [read_json(folder / "meta.json") for folder in folders]
        files = [file for folder in folders for file in sorted(folder.glob("shard-*.safetensors"))]
        return cls(tuple(files), _merged(metas, folders), tuple(int(meta["shard"]) for meta in metas))

    def matrix(self) -> Matrix:
        """Embeddings float32 [texts, dim]; row i belongs to text i.

        Raises:
            UserError: a text has no embedding or more than one: a shard or a file of one is missing, or given twice.
        """
        from safetensors.numpy import load_file

        shards = [load_file(file) for file in self.files]
        ids = np.concatenate([np.empty(0, np.int32), *(shard["text_ids"] for shard in shards)])
        # Without the count, the last texts could be missing and nobody would know.
        whole = sorted(self.given) == list(range(int(self.meta["shards"]))) and len(ids) == self.meta["texts"]
        if not whole or not np.array_equal(np.sort(ids), np.arange(len(ids))):
            raise UserError(
                f"shards {', '.join(map(str, self.given))} of {self.meta['shards']} with {len(ids)} of "
                f"{self.meta['texts']} texts do not hold each text once; give every shard of one encode run, each once"
            )
        matrix = np.empty((len(ids), int(self.meta["dim"])), dtype=np.float32)
        while shards:
            shard = shards.pop()
            matrix[shard["text_ids"]] = shard["embeddings"]
        return matrix


def _merged(metas: Sequence[dict[str, Any]], folders: Sequence[Path]) -> dict[str, Any]:
    if not metas:
        raise UserError("no embeddings given; give the folders that the encode step wrote")
    for meta, folder in zip(metas, folders, strict=True):
        if meta.get("format") != FORMAT:
            raise UserError(f"{folder}: embedding format {meta.get('format')} is not {FORMAT}; run encode again")
        differing = [key for key in SAME if meta.get(key) != metas[0].get(key)]
        if differing:
            raise UserError(f"{folder}: {', '.join(differing)} differs from {folders[0]}; encode all shards alike")
    caches = [meta.get("cache", {}) for meta in metas]
    cache = {key: sum(cache.get(key, 0) for cache in caches) for key in CACHE}
    return {**metas[0], "texts": sum(meta["texts"] for meta in metas), "cache": cache}
