import pytest
import yaml

from components.dataset import catalog
from components.dataset.catalog import dataset_names, load_spec
from components.dataset.errors import UserError
from tests.components.dataset.making import content


@pytest.fixture
def embedded(tmp_path, monkeypatch):
    (tmp_path / "embedded").mkdir()
    for name in ("films", "songs"):
        (tmp_path / "embedded" / f"{name}.yaml").write_text(yaml.safe_dump(content("in")))
    monkeypatch.setattr(catalog, "EMBEDDED", tmp_path / "embedded")
    monkeypatch.setenv("TANDEM_DATA", str(tmp_path / "data"))
    return tmp_path


def test_embedded_data_sets_lie_in_the_feature_repo():
    assert catalog.EMBEDDED.parts[-2:] == ("feature_repo", "datasets")
    for name in dataset_names():
        assert load_spec(name).name == name


def test_an_embedded_data_set_reads_from_the_data_directory(embedded):
    assert dataset_names() == ["films", "songs"]
    assert load_spec("films").sources.users.path == str(embedded / "data" / "in" / "users.csv")


def test_a_file_reads_from_its_own_folder(embedded, monkeypatch):
    (embedded / "own").mkdir()
    (embedded / "own" / "mine.yaml").write_text(yaml.safe_dump(content("..")))
    monkeypatch.chdir(embedded)
    assert load_spec("own/mine.yaml").sources.items.path == str(embedded / "own" / ".." / "items.csv")


def test_unknown_names(embedded):
    with pytest.raises(UserError, match=r"no data set 'filmz'; did you mean 'films'\? write one of films, songs or"):
        load_spec("filmz")
    with pytest.raises(UserError, match="no data set 'xyz'; write one of films, songs"):
        load_spec("xyz")
    with pytest.raises(UserError, match=r"gone\.yaml: no such file; write a DatasetSpec there"):
        load_spec("gone.yaml")
