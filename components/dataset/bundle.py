"""The served artefact: a folder that register writes and the service reads. No torch, no registry."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from components.dataset.errors import UserError
from components.dataset.events import Column
from components.dataset.profile import PROFILES, FeatureProfile
from components.dataset.spec import DatasetSpec, read_spec
from components.dataset.vocabulary import Vocabulary
from components.run import read_json, write_json

FORMAT = 1
MODEL = "model.onnx"
#: The same model cut in two, where its backbone allows it: called once per item, and once per request.
ITEMS, RANKER = "items.onnx", "ranker.onnx"
VOCABULARY = "vocabulary.json"
SPEC = "spec.yaml"
GOLDEN = "golden.parquet"
MANIFEST = "manifest.json"
#: Beside the checkpoint that a bundle was made from: the maps of new ids' rows, of which the lineage has the digest.
ROW_MAPS = "row_maps.safetensors"
FILES = (MODEL, VOCABULARY, SPEC, GOLDEN)
#: What a manifest says besides format, spec_digest, width and files, which `write_manifest` finds for itself.
SAID = ("name", "backbone", "arm", "run_id", "feature_service", "feature_service_hash", "proof", "lineage")


class BundleError(Exception):
    """The folder is no bundle that may be served: a file is missing, changed, or of an unknown format."""


def write_manifest(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Complete a bundle: with every other file of the folder in place, write the manifest that vouches for them.

    Args:
        path: Folder that holds FILES, and other files that belong to the bundle.
        content: A value for each key of SAID; more keys are kept.

    Returns:
        The manifest.

    Raises:
        BundleError: a file of FILES or a key of SAID is missing.
    """
    absent = [name for name in FILES if not (path / name).is_file()]
    unsaid = [key for key in SAID if key not in content]
    if absent or unsaid:
        raise BundleError(f"{path}: bundle lacks {', '.join(absent + unsaid)}")
    names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    manifest = {
        **content,
        "format": FORMAT,
        "spec_digest": read_spec(path / SPEC).digest,
        "width": Vocabulary.load(path / VOCABULARY).layout.width,
        "files": {name: file_digest(path / name) for name in names if name != MANIFEST},
    }
    write_json(path / MANIFEST, manifest)
    return manifest


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files are those that its manifest names."""

    path: Path
    manifest: dict[str, Any]
    spec: DatasetSpec
    vocabulary: Vocabulary

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a bundle and verify each of its files.

        Raises:
            BundleError: a file is missing or changed, or the format is unknown.
        """
        manifest = _read_manifest(path)
        _verify(path, manifest["files"], (*FILES, *((ITEMS, RANKER) if manifest.get("folded") else ())))
        try:
            spec, vocabulary = read_spec(path / SPEC), Vocabulary.load(path / VOCABULARY)
        except UserError as error:
            raise BundleError(str(error)) from None
        if (spec.digest, vocabulary.layout.width) != (manifest.get("spec_digest"), manifest.get("width")):
            raise BundleError(f"{path}: {SPEC} or {VOCABULARY} does not fit the manifest's spec_digest and width")
        return cls(path, manifest, spec, vocabulary)

    @property
    def model_path(self) -> Path:
        """The ONNX model: input `ids` int64 [n, width], output `probability` float32 [n]."""
        return self.path / MODEL

    @property
    def folded(self) -> tuple[Path, Path] | None:
        """The model cut in two: ITEMS gives parts of items, RANKER their probabilities in a request; None if whole."""
        return (self.path / ITEMS, self.path / RANKER) if self.manifest.get("folded") else None

    def encode(self, columns: Mapping[str, Column]) -> npt.NDArray[np.int64]:
        """The model's input [n, width] for n rows of raw feature columns by name."""
        return self.vocabulary.encode(columns)

    def golden(self) -> pa.Table:
        """Rows of raw feature columns, each with the `probability` that the model must give."""
        return pq.read_table(self.path / GOLDEN)

    def profiles(self) -> dict[str, FeatureProfile]:
        """How each raw feature column was spread in training; none where the bundle was written without them."""
        if PROFILES not in self.manifest["files"]:
            return {}
        return {name: FeatureProfile.from_json(content) for name, content in read_json(self.path / PROFILES).items()}


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = read_json(path / MANIFEST)
    except FileNotFoundError:
        raise BundleError(f"{path}: no {MANIFEST}; the bundle was never completed or is no bundle") from None
    except ValueError as error:
        raise BundleError(f"{path / MANIFEST}: not valid JSON: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        given = manifest.get("format") if isinstance(manifest, dict) else None
        raise BundleError(f"{path}: bundle format {given} is unknown; this version reads format {FORMAT}")
    if not isinstance(manifest.get("files"), dict):
        raise BundleError(f"{path / MANIFEST}: 'files' is missing")
    return manifest


def _verify(path: Path, files: Mapping[str, str], needed: Iterable[str]) -> None:
    unlisted = [name for name in needed if name not in files]
    absent = [name for name in files if not (path / name).is_file()]
    if unlisted or absent:
        raise BundleError(f"{path}: bundle lacks {', '.join(unlisted + absent)}")
    changed = [name for name, digest in files.items() if file_digest(path / name) != digest]
    if changed:
        raise BundleError(f"{path}: {', '.join(changed)} changed since the bundle was written (sha256 differs)")


def file_digest(path: Path) -> str:
    """SHA-256 over a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
