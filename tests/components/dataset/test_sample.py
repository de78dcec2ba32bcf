"""The sample: deterministic, with known probabilities, new users and items in the test part, and words that tell."""

import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml

from components.dataset import sample
from components.dataset.catalog import load_spec
from components.dataset.errors import UserError
from components.dataset.sources import validated_tables
from components.dataset.spec import IMPRESSION_ID, LABEL

FILES = ("impressions", "users", "items", "truth")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return sample.ensure(tmp_path_factory.mktemp("data") / "sample")


@pytest.fixture(scope="module")
def tables(folder):
    return {name: pq.read_table(folder / f"{name}.parquet") for name in FILES}


@pytest.fixture(scope="module")
def labels(tables):
    return tables["impressions"]["clicked"].to_numpy()


def auc(labels, scores):
    """Share of (positive, negative) pairs in the right order, by ranks; the scores have no ties."""
    ranks = np.argsort(np.argsort(scores)) + 1
    positives = labels.sum()
    pairs = positives * (len(labels) - positives)
    return (ranks[labels == 1].sum() - positives * (positives + 1) / 2) / pairs


def parts(column):
    rows = len(column)
    return column.slice(0, int(0.8 * rows)), column.slice(int(0.9 * rows))


def test_sizes(tables):
    rows = {name: table.num_rows for name, table in tables.items()}
    assert rows == {"impressions": 60_000, "users": 2_500, "items": 1_200, "truth": 60_000}


def test_click_rate_is_near_0_3(labels):
    assert 0.27 < labels.mean() < 0.33


def test_labels_follow_the_known_probabilities(folder, labels):
    probabilities = sample.bayes_probabilities(folder)
    assert abs(labels.mean() - probabilities.mean()) < 4 * np.sqrt(
        (probabilities * (1 - probabilities)).mean() / 60_000
    )
    for low in np.arange(0, 1, 0.1):
        chosen = (probabilities >= low) & (probabilities < low + 0.1)
        assert abs(labels[chosen].mean() - probabilities[chosen].mean()) < 0.04


def test_the_best_auc_on_the_test_part_leaves_room(folder, labels):
    best = auc(labels[54_000:], sample.bayes_probabilities(folder)[54_000:])
    assert 0.80 < best < 0.86


def test_the_test_part_holds_new_users_and_items(tables):
    new = {}
    for key in ("user", "item"):
        train, test = parts(tables["impressions"][key])
        new[key] = pc.invert(pc.is_in(test, pc.unique(train))).to_numpy()
        assert 0.08 < new[key].mean() < 0.2
    assert 0.15 < (new["user"] | new["item"]).mean() < 0.25


def test_impressions_come_in_order_and_after_both_arrivals(tables):
    impressions = tables["impressions"]
    moments = impressions["shown_at"].to_numpy()
    assert (np.diff(moments) >= np.timedelta64(0)).all()
    for key, table, arrival in (("user", "users", "joined_at"), ("item", "items", "listed_at")):
        place = pc.index_in(impressions[key], tables[table][key].combine_chunks())
        assert place.null_count == 0
        assert (tables[table][arrival].take(place).to_numpy() <= moments).all()


def test_item_popularity_has_a_long_tail(tables):
    counts = np.sort(tables["impressions"]["item"].value_counts().field("counts").to_numpy())[::-1]
    assert counts[: len(counts) // 10].sum() > 0.4 * counts.sum()
    assert np.median(counts) < 30


def test_late_words_appear_on_late_items_only(tables):
    topics = yaml.safe_load((sample.Path(sample.__file__).with_name("sample_topics.yaml")).read_text())["topics"]
    late = [word for words in topics.values() for word in words["late"]]
    days = (tables["items"]["listed_at"].to_numpy() - sample.FIRST_DAY) / np.timedelta64(1, "D")
    said = np.array([any(word in text for word in late) for text in tables["items"]["description"].to_pylist()])
    assert not said[days < sample.LATE_WORDS_FROM].any()
    assert said[days >= sample.LATE_WORDS_FROM].mean() > 0.9


def test_words_tell_more_of_the_clicks_than_the_category(folder, tables, labels):
    """Naive oracle: click rate of (occupation, topic by words) against (occupation, category), on the test part."""
    topics = yaml.safe_load((sample.Path(sample.__file__).with_name("sample_topics.yaml")).read_text())["topics"]
    descriptions = tables["items"]["description"].to_pylist()
    said = np.array([[sum(w in d for w in (*t["early"], *t["late"])) for t in topics.values()] for d in descriptions])
    impressions = tables["impressions"]
    item = pc.index_in(impressions["item"], tables["items"]["item"].combine_chunks()).to_numpy()
    user = pc.index_in(impressions["user"], tables["users"]["user"].combine_chunks())
    occupation = tables["users"]["occupation"].take(user).combine_chunks().dictionary_encode().indices.to_numpy()
    category = tables["items"]["category"].combine_chunks().dictionary_encode().indices.to_numpy()[item]
    by_words, by_category = (rate_auc(occupation * 100 + told, labels) for told in (said.argmax(1)[item], category))
    assert by_words > by_category + 0.05


def rate_auc(groups, labels):
    train = slice(0, 48_000)
    size = groups.max() + 1
    clicks = np.bincount(groups[train], labels[train], size) + 3
    rates = clicks / (np.bincount(groups[train], minlength=size) + 10)
    jitter = np.random.default_rng(0).random(6_000) * 1e-9
    return auc(labels[54_000:], rates[groups[54_000:]] + jitter)


def test_the_same_data_each_time(folder, tables, tmp_path):
    sample.write_sample(tmp_path / "again")
    for name in FILES:
        assert pq.read_table(tmp_path / "again" / f"{name}.parquet").equals(tables[name])


def test_a_complete_sample_is_left_alone(folder):
    before = (folder / "impressions.parquet").stat()
    sample.ensure(folder)
    assert (folder / "impressions.parquet").stat() == before


@pytest.mark.parametrize("damage", ["truth.parquet", "sample.json", "version"])
def test_an_incomplete_or_old_sample_is_made_anew(folder, tables, tmp_path, damage):
    copy = tmp_path / "sample"
    sample.write_sample(copy)
    if damage == "version":
        (copy / "sample.json").write_text(json.dumps({"version": sample.VERSION - 1, "rows": {}}))
        (copy / "truth.parquet").unlink()
    else:
        (copy / damage).unlink()
    sample.ensure(copy)
    assert pq.read_table(copy / "truth.parquet").equals(tables["truth"])


def test_processes_at_once_agree_on_one_sample(tmp_path):
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        first, second = pool.map(sample.ensure, [tmp_path / "sample"] * 2)
    assert first == second
    assert sorted(path.stem for path in first.glob("*.parquet")) == sorted(FILES)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["sample"]


def test_truth_belongs_to_the_impression_ids_and_is_no_input(folder, tables, monkeypatch):
    monkeypatch.setenv("TANDEM_DATA", str(folder.parent))
    spec = load_spec("sample")
    validated = validated_tables(spec).impressions
    assert validated[IMPRESSION_ID].to_pylist() == tables["truth"]["impression_id"].to_pylist()
    assert (validated[LABEL].to_numpy() == tables["impressions"]["clicked"].to_numpy()).all()
    assert "probability" not in validated.column_names
    assert not any("truth" in str(source) for source in spec.sources.model_dump().values())


def test_no_truth_is_named(tmp_path):
    with pytest.raises(UserError, match=r"truth\.parquet.*tandem data sample"):
        sample.bayes_probabilities(tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written.*TANDEM_DATA"):
        sample.ensure(tmp_path / "file" / "sample")
