"""The encode step: one embedding for each text of a shard, from the cache or from the PLM."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from components.dataset.embeddings import FORMAT
from components.dataset.errors import UserError
from components.dataset.prompts import PromptSet
from components.encode.cache import EncodingCache, advice
from components.encode.engine import Engine
from components.encode.forward import Vectors
from components.encode.int8 import prepare_int8, spread
from components.encode.machine import Plan, plan, resolve
from components.encode.settings import EncodeSettings
from components.encode.texts import Span, spans
from components.models.plm import locate, plm_digest
from components.run import aside, home, read_json, write_json

log = logging.getLogger("tandem.encode")

#: Names of a model's width in the config.json of different architectures.
WIDTHS = ("hidden_size", "n_embd", "d_model", "dim")
COUNTED = ("hits", "misses", "tokens", "seconds", "seconds_saved", "gpu_seconds", "gpu_seconds_saved")


def encode(prompts: Path, output: Path, settings: EncodeSettings, shard: int = 0, shards: int = 1) -> dict[str, Any]:
    """Encode the texts whose id modulo `shards` is `shard`, each different text once, and those in the cache never.

    Finished blocks are kept in the cache at once: a run that was killed goes on after the last of them.

    Args:
        prompts: Folder of the prompt_transform step.
        output: Folder of this shard's embeddings.
        settings: The PLM, the arithmetic, the devices and the cache.
        shard: This shard's number, from 0.
        shards: Number of shards.

    Returns:
        What meta.json says: the PLM and its digest, the settings, and the cache's hits, misses and seconds.

    Raises:
        UserError: no such PLM, device or cache; a text that is not UTF-8; no space left; int8 vectors unlike fp32.
        RuntimeError: a worker process was killed.
    """
    if not 0 <= shard < shards:
        raise UserError(f"shard {shard} of {shards}: shards are numbered from 0 to {shards - 1}")
    PromptSet.open(prompts)
    about = describe(settings)
    cache = EncodingCache.open(settings.cache or str(home() / "encodings"), about)
    try:
        with aside(output) as draft:
            draft.mkdir()
            run = _Run(settings, cache, _Writer(draft, shard))
            run.encode(prompts / "texts.parquet", shard, shards)
            said = {"spec": settings.plm.model_dump(mode="json"), "shard": shard, "shards": shards, "format": FORMAT}
            meta = {**about, **run.report(), **said}
            write_json(draft / "meta.json", meta)
    except OSError as error:
        raise UserError(f"{output}: {advice(error)}") from error
    log.info("%s", _summary(meta))
    return meta


def describe(settings: EncodeSettings) -> dict[str, Any]:
    """Everything that decides a text's vector; its digest is the cache's key.

    Raises:
        UserError: no such PLM, or a device or precision that is not there.
    """
    folder = locate(settings.plm)
    return {
        "plm": settings.plm.name,
        "revision": settings.plm.revision,
        "plm_digest": plm_digest(settings.plm, folder),
        "pooling": settings.plm.pooling,
        "max_length": settings.plm.max_length,
        "prefix": settings.plm.prefix,
        "precision": resolve(settings)[1],
    }


@dataclass
class _Writer:
    """Writes the output in files of some thousand texts."""

    folder: Path
    shard: int
    files: int = 0
    texts: int = 0
    dim: int = 0

    def add(self, ids: list[int], vectors: Vectors) -> None:
        """Write vectors [n, dim] of n text ids as the next file."""
        from safetensors.numpy import save_file

        tensors = {"embeddings": np.ascontiguousarray(vectors, np.float32), "text_ids": np.array(ids, np.int32)}
        save_file(tensors, self.folder / f"shard-{self.shard:05d}-{self.files:05d}.safetensors")
        self.files += 1
        self.texts += len(ids)
        self.dim = int(vectors.shape[1])


@dataclass
class _Run:
    """One run over a shard: what it uses, and what it counts."""

    settings: EncodeSettings
    cache: EncodingCache
    writer: _Writer
    plan: Plan | None = None
    counts: dict[str, float] = field(default_factory=lambda: dict.fromkeys(COUNTED, 0))

    def encode(self, texts: Path, shard: int, shards: int) -> None:
        """Go through the texts span by span; the PLM is started at the first one that the cache does not have."""
        engine: Engine | None = None
        with ExitStack() as stack:
            for span in spans(texts, shard, shards):
                self._look_up(span)
                if span.ids:
                    started = time.perf_counter()
                    engine = engine or stack.enter_context(self._engine(span))
                    self._fill(span, engine)
                    self.counts["seconds"] += time.perf_counter() - started

    def _look_up(self, span: Span) -> None:
        """Take what the cache has; it leaves the span."""
        for found in self.cache.find(span.ids):
            ids: list[int] = []
            rows: list[int] = []
            for row, hash_ in enumerate(found.hashes):
                owners = span.ids.pop(hash_, [])
                ids += owners
                rows += [row] * len(owners)
                self.counts["hits"] += bool(owners)
            if ids:
                self.writer.add(ids, found.vectors[rows])
                texts = len(set(rows))
                self.counts["seconds_saved"] += texts * found.seconds_each
                self.counts["gpu_seconds_saved"] += texts * found.gpu_seconds_each

    def _engine(self, span: Span) -> Engine:
        self.plan = plan(self.settings, len(span.ids))
        log.info("%d texts to encode on %s", len(span.ids), _machine(self.plan))
        if self.plan.precision != "int8":
            return Engine(self.settings.plm, self.plan)
        sample = next(span.missing(self.settings.block))[1]
        threads = self.plan.threads * self.plan.processes
        return Engine(self.settings.plm, self.plan, prepare_int8(self.settings.plm, spread(sample), threads))

    def _fill(self, span: Span, engine: Engine) -> None:
        """Encode what the cache does not have, and keep each block as soon as it is whole."""
        hashes: dict[int, list[bytes]] = {}
        progress = _Progress(len(span.ids))

        def blocks() -> Iterator[list[str]]:
            for number, (keys, texts) in enumerate(span.missing(self.settings.block)):
                hashes[number] = keys
                yield texts

        for block in engine.stream(blocks()):
            keys = hashes.pop(block.number)
            assert block.vectors is not None  # noqa: S101 - a whole block has vectors
            self.cache.add(keys, block.vectors, block.seconds, engine.plan.gpus)
            rows = [row for row, key in enumerate(keys) for _ in span.ids[key]]
            self.writer.add([number for key in keys for number in span.ids[key]], block.vectors[rows])
            self.counts["misses"] += len(keys)
            self.counts["tokens"] += block.tokens
            self.counts["gpu_seconds"] += block.seconds * engine.plan.gpus
            progress.add(len(keys))

    def report(self) -> dict[str, Any]:
        """What meta.json says of the run."""
        used = self.plan
        return {
            "texts": self.writer.texts,
            "dim": self.writer.dim or _width(locate(self.settings.plm)),
            "device": used.device if used else "",
            "processes": used.processes if used else 0,
            "cache": {name: _plain(value) for name, value in self.counts.items()},
        }


def _plain(value: float) -> float | int:
    return int(value) if value == int(value) else round(float(value), 3)


def _width(folder: Path) -> int:
    """Dimensions of a PLM's vectors, for a shard that holds no text."""
    config = read_json(folder / "config.json")
    return int(next((config[name] for name in WIDTHS if name in config), 0))


def _machine(used: Plan) -> str:
    if used.device == "cuda":
        return f"{used.processes} GPU(s) in {used.precision}"
    return f"{used.processes} process(es) of {used.threads} thread(s) in {used.precision}"


def _summary(meta: dict[str, Any]) -> str:
    cache = meta["cache"]
    return (
        f"{cache['misses']} texts encoded ({cache['tokens']} tokens) in {cache['seconds']:.1f} s, "
        f"{cache['hits']} from the cache, which saved {cache['seconds_saved']:.1f} s"
        + (f" and {cache['gpu_seconds_saved']:.1f} GPU-seconds" if cache["gpu_seconds_saved"] else "")
    )


@dataclass
class _Progress:
    """One line of log for each tenth."""

    total: int
    done: int = 0
    started: float = field(default_factory=time.perf_counter)

    def add(self, texts: int) -> None:
        """Count texts that are done."""
        before = 10 * self.done // self.total
        self.done += texts
        if 10 * self.done // self.total > before:
            speed = self.done / (time.perf_counter() - self.started)
            share = 100 * self.done // self.total
            log.info("%d of %d texts (%d %%), %.0f a second", self.done, self.total, share, speed)
