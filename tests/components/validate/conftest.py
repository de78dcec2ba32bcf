import pytest

from tests.components.validate.making import made_sample, small_log


@pytest.fixture(scope="session")
def sample_folder(tmp_path_factory):
    return made_sample(tmp_path_factory.mktemp("data"))


@pytest.fixture
def tables(sample_folder):
    return small_log(sample_folder)


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    """No run of another test is the previous run of this one."""
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path / "home"))
