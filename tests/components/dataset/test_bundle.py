import json
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from components.dataset.bundle import FILES, SAID, Bundle, BundleError, write_manifest
from components.dataset.vocabulary import Vocabulary
from tests.components.dataset.making import rows, spec_of

CONTENT = {**dict.fromkeys(SAID, "x"), "proof": {"plm_free": True}, "lineage": {}}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"weights")
    (tmp_path / "spec.yaml").write_text(spec_of().to_yaml(), encoding="utf-8")
    Vocabulary.fit(spec_of(), rows()).save(tmp_path / "vocabulary.json")
    pq.write_table(rows(2), tmp_path / "golden.parquet")
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra" / "curve.json").write_text("{}")
    return tmp_path


def test_written_and_opened_again(folder):
    manifest = write_manifest(folder, CONTENT)
    bundle = Bundle.open(folder)
    assert bundle.manifest == manifest
    assert manifest["format"] == 1
    assert manifest["spec_digest"] == spec_of().digest
    assert set(manifest["files"]) == {*FILES, "extra/curve.json"}
    table = bundle.golden()
    ids = bundle.encode({name: table[name] for name in table.column_names})
    assert ids.shape == (2, manifest["width"])
    assert bundle.model_path.read_bytes() == b"weights"


def test_a_manifest_written_again_is_the_same(folder):
    assert write_manifest(folder, CONTENT) == write_manifest(folder, CONTENT)


@pytest.mark.parametrize("name", [*FILES, "extra/curve.json"])
def test_a_changed_file_is_named(folder, name):
    write_manifest(folder, CONTENT)
    with (folder / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(BundleError, match=f"{name} changed"):
        Bundle.open(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder, name):
    write_manifest(folder, CONTENT)
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"lacks {name}"):
        Bundle.open(folder)
    with pytest.raises(BundleError, match=f"lacks {name}"):
        write_manifest(folder, CONTENT)


def edit(folder, **changes):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, **changes}))


@pytest.mark.parametrize("number", [0, 2, "1", None])
def test_unknown_formats_are_refused(folder, number):
    write_manifest(folder, CONTENT)
    edit(folder, format=number)
    with pytest.raises(BundleError, match="is unknown; this version reads format 1"):
        Bundle.open(folder)


def test_a_manifest_that_vouches_for_too_little_is_refused(folder):
    files = write_manifest(folder, CONTENT)["files"]
    edit(folder, files={name: digest for name, digest in files.items() if name != "model.onnx"})
    with pytest.raises(BundleError, match=r"lacks model\.onnx"):
        Bundle.open(folder)


def test_a_manifest_of_another_width_is_refused(folder):
    write_manifest(folder, CONTENT)
    edit(folder, width=3)
    with pytest.raises(BundleError, match="does not fit the manifest's spec_digest and width"):
        Bundle.open(folder)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_broken_manifest(folder, text):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(BundleError):
        Bundle.open(folder)


def test_no_manifest(folder):
    with pytest.raises(BundleError, match="never completed or is no bundle"):
        Bundle.open(folder)


def test_a_manifest_that_says_too_little(folder):
    with pytest.raises(BundleError, match="lacks arm"):
        write_manifest(folder, {key: value for key, value in CONTENT.items() if key != "arm"})


def test_serving_needs_neither_torch_nor_registry():
    code = (
        "import sys, components.dataset.bundle; print([m for m in ('torch', 'mlflow', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
