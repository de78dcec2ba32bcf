"""A registry for each module of this room's tests, and a data set for each test."""

import pytest

from tests.components.registry.making import new_dataset, own_registry


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    with own_registry(tmp_path_factory.mktemp("home")) as folder:
        yield folder


@pytest.fixture
def dataset():
    return new_dataset()
