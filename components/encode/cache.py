"""The encoding cache: what a PLM made of a text is kept under the digests of both, and never computed again.

A store is a folder on any fsspec path. Under the key of a PLM and its settings lie blocks: safetensors files of up
to some thousand texts, each named after the SHA-256 of its bytes, that of the text hashes at its end, and their number.
A block is written whole or not at all and never changed, so writers need no lock; a block whose bytes do not fit its
name is torn, and is removed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import re
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from components.dataset.errors import UserError
from components.encode.forward import Vectors
from components.run import aside

log = logging.getLogger("tandem.encode")

HASH_BYTES = 32
#: Blocks whose hashes are asked for at once: object stores answer many requests as fast as one.
AT_ONCE = 64
NAME_DIGITS = 40
BLOCK = re.compile(r"^[0-9a-f]{40}-[0-9a-f]{16}-[1-9][0-9]*\.safetensors$")


@dataclass(frozen=True)
class Found:
    """Texts of one block that were asked for: hashes [n], vectors [n, dim], and what a text of it once cost."""

    hashes: list[bytes]
    vectors: Vectors
    seconds_each: float
    gpu_seconds_each: float


def cache_key(parts: Mapping[str, Any]) -> str:
    """The folder's name: a digest of the PLM's digest and of every setting that changes a vector."""
    return hashlib.sha256(json.dumps(dict(parts), sort_keys=True).encode()).hexdigest()[:NAME_DIGITS]


@dataclass(frozen=True)
class EncodingCache:
    """The encodings of one PLM under one setting."""

    url: str
    fs: Any
    folder: str

    @classmethod
    def open(cls, url: str, about: Mapping[str, Any]) -> Self:
        """Open the store at `url` for the PLM and settings that `about` tells.

        Raises:
            UserError: the store cannot be reached, or a package for its protocol is missing.
        """
        cache = cls.at(url, about)
        card = f"{cache.folder}/about.json"
        with _store_errors(url):
            if not cache.fs.exists(card):
                cache._put(card, json.dumps(dict(about), indent=2).encode())
        return cache

    @classmethod
    def at(cls, url: str, about: Mapping[str, Any]) -> Self:
        """The store for the PLM and settings that `about` tells, whether it is there or not; nothing is written.

        Raises:
            UserError: a package for its protocol is missing.
        """
        import fsspec

        try:
            fs, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise UserError(f"encode.cache: '{url}' cannot be opened: {error}") from None
        return cls(url, fs, f"{root.rstrip('/')}/{cache_key(about)}")

    def known(self, hashes: Collection[bytes]) -> set[bytes]:
        """Those of some texts that the store has; their vectors are not read."""
        with _store_errors(self.url):
            if not self.fs.exists(self.folder):
                return set()
        wanted, found = set(hashes), set()
        blocks = self._blocks()
        for start in range(0, len(blocks), AT_ONCE):
            for content in self._hash_lists(blocks[start : start + AT_ONCE]):
                found |= wanted & {content[i : i + HASH_BYTES] for i in range(0, len(content), HASH_BYTES)}
        return found

    def find(self, wanted: Container[bytes]) -> Iterator[Found]:
        """Encodings of the wanted texts, block by block; torn blocks are dropped on the way.

        `wanted` may shrink between the blocks: a text that two blocks hold is then found once.
        """
        blocks = self._blocks()
        for start in range(0, len(blocks), AT_ONCE):
            group = blocks[start : start + AT_ONCE]
            for block, content in zip(group, self._hash_lists(group), strict=True):
                hashes = [content[i : i + HASH_BYTES] for i in range(0, len(content), HASH_BYTES)]
                rows = [row for row, text in enumerate(hashes) if text in wanted]
                found = self._found(block, rows) if rows else None
                if found is not None:
                    yield found

    def add(self, hashes: Sequence[bytes], vectors: Vectors, seconds: float, gpus: int) -> None:
        """Keep the vectors [n, dim] of n texts, which took some seconds on the CPU or on a number of GPUs.

        Raises:
            UserError: there is no space left, or the store does not let us write.
        """
        from safetensors.numpy import save

        tensors: dict[str, Any] = {
            "hashes": np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, HASH_BYTES),
            "vectors": np.ascontiguousarray(vectors, np.float32),
        }
        content = save(tensors, {"seconds": f"{seconds:.6f}", "gpu_seconds": f"{seconds * gpus:.6f}"})
        with _store_errors(self.url):
            self._put(f"{self.folder}/{_name(content, len(hashes))}", content)

    def _blocks(self) -> list[str]:
        with _store_errors(self.url):
            self.fs.invalidate_cache(self.folder)
            return sorted(name for name in self.fs.ls(self.folder, detail=False) if BLOCK.match(_base(name)))

    def _hash_lists(self, blocks: list[str]) -> Iterator[bytes]:
        """The hashes at the end of each block; those of a block that is gone or too short hold no text."""
        starts = [-HASH_BYTES * _texts(block) for block in blocks]
        with _store_errors(self.url):
            contents = self.fs.cat_ranges(blocks, starts, [None] * len(blocks), on_error="return")
        for block, content in zip(blocks, contents, strict=True):
            whole = isinstance(content, bytes) and _short_digest(content) == _base(block).split("-")[1]
            if not whole and not isinstance(content, FileNotFoundError):
                self._drop(block)
            yield content if whole else b""

    def _found(self, block: str, rows: list[int]) -> Found | None:
        from safetensors.numpy import load

        try:
            content = self.fs.cat_file(block)
        except FileNotFoundError:
            return None
        if _name(content, _texts(block)) != _base(block):
            self._drop(block)
            return None
        tensors, notes = load(content), _notes(content)
        texts = int(tensors["hashes"].shape[0])
        hashes = [tensors["hashes"][row].tobytes() for row in rows]
        each = [float(notes[name]) / texts for name in ("seconds", "gpu_seconds")]
        return Found(hashes, tensors["vectors"][rows], *each)

    def _drop(self, block: str) -> None:
        log.warning("%s is torn or corrupt: removed, its texts are encoded again", block)
        try:
            self.fs.rm_file(block)
        except FileNotFoundError:
            log.debug("%s was removed by another process", block)

    def _put(self, path: str, content: bytes) -> None:
        """Write whole or not at all: object stores do; a local file is written aside and renamed."""
        from fsspec.implementations.local import LocalFileSystem

        if not isinstance(self.fs, LocalFileSystem):
            self.fs.pipe_file(path, content)
            return
        with aside(Path(path)) as draft:
            draft.write_bytes(content)


def _name(content: bytes, texts: int) -> str:
    """A block's name: digests of the whole and of the hashes at its end, which are read alone, and how many."""
    whole = hashlib.sha256(content).hexdigest()[:NAME_DIGITS]
    return f"{whole}-{_short_digest(content[-HASH_BYTES * texts :])}-{texts}.safetensors"


def _short_digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _base(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _texts(block: str) -> int:
    """Number of texts, from a block's name."""
    return int(_base(block).removesuffix(".safetensors").rpartition("-")[2])


def _notes(content: bytes) -> dict[str, str]:
    """The metadata in the header of safetensors bytes."""
    size = int.from_bytes(content[:8], "little")
    notes: dict[str, str] = json.loads(content[8 : 8 + size])["__metadata__"]
    return notes


@contextmanager
def _store_errors(url: str) -> Iterator[None]:
    """Say of an error of the store what the user can do about it."""
    try:
        yield
    except OSError as error:
        raise UserError(f"encode.cache: {url}: {advice(error)}") from error


def advice(error: OSError) -> str:
    """What went wrong in a store or on a disk, and what to do."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return "no space left; free some, or name another place; what is finished is kept"
    if isinstance(error, PermissionError):
        return "not allowed; check the rights to it"
    return f"cannot be reached ({error})"
