"""From files alone to a deployed model: init, check and run, as one who has never seen the project types them."""

from __future__ import annotations

import json

import pytest
import yaml

from components.dataset.bundle import Bundle
from tests.components.dataset import strangers
from tests.pipelines.shop import QUICKLY, tandem


def flags(files):
    return [word for table, path in files.items() for word in (f"--{table}", path)]


def test_init_writes_once_and_says_what_to_look_at(tmp_path):
    files = strangers.web_shop(tmp_path)
    out = tmp_path / "shop.yaml"
    done = tandem("init", "shop", *flags(files), "--output", out)
    assert done.returncode == 0, done.stderr
    for words in ("look at column 'dwell_ms': LEAK", "'schema' is left out: it is constant", "Next: tandem check"):
        assert words in done.stdout
    first = out.read_text()
    out.write_text(first + "# mine\n")
    again = tandem("init", "shop", *flags(files), "--output", out)
    assert again.returncode == 2
    assert "--force" in again.stderr
    assert out.read_text().endswith("# mine\n")
    assert tandem("init", "shop", *flags(files), "--output", out, "--force").returncode == 0
    assert out.read_text() == first


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("init", "shop", "--impressions", "absent.csv"), "absent.csv: no such file"),
        (("init", "Shop!", "--impressions", "events.jsonl.gz"), "name"),
        (("init", "shop", "--impressions", "events.jsonl.gz", "--label", "click"), "--label click: no such column"),
    ],
)
def test_what_init_refuses(tmp_path, arguments, said):
    strangers.web_shop(tmp_path)
    arguments = [tmp_path / word if "." in word else word for word in arguments]
    done = tandem(*arguments, "--output", tmp_path / "out.yaml")
    assert done.returncode == 2, done.stdout
    assert said in done.stderr
    assert not (tmp_path / "out.yaml").exists()


@pytest.mark.slow
def test_a_stranger_reaches_a_deployed_model_without_an_edit(tmp_path):
    """Dates, lists, missing prices and umlauts reach prompts, both arms and the served bundle; the leak does not.

    With another backbone than the default, and the texts encoded in three shards.
    """
    home = tmp_path / "home"
    spec = tmp_path / "web-shop.yaml"
    assert tandem("init", "web-shop", *flags(strangers.web_shop(tmp_path)), "--output", spec).returncode == 0
    others = ("--backbone", "dcnv2", "--set", "shards=3")
    done = tandem("run", "--dataset", spec, "--run-id", "first", "--json", *QUICKLY, *others, home=home)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["verdict"] == "promoted"
    assert set(result["arms"]) == {"collaborative", "ctrl"}
    assert (home / "runs/first/run.log").read_text().count("texts encoded") == 3
    assert all(0.5 < arm["auc"] < 0.95 for arm in result["arms"].values()), "a leak would give the label away"
    bundle = Bundle.open(home / "bentoml/models/tandem-web-shop/first")
    names = {field.name for field in bundle.vocabulary.fields}
    assert {"customer_since", "colours", "price", "in_stock", "visitor_agent"} <= names
    assert "dwell_ms" not in names
    assert len(bundle.vocabulary.field("customer_since").edges) > 3
    report = next(home.glob("runs/first/artifacts/**/report.json"))
    examples = json.loads(report.read_text())["examples"]
    assert any("customer since is" in text for text in examples["user"])
    assert any("Schöne Lampe" in text for text in examples["item"])
    assert yaml.safe_load(spec.read_text())["name"] == "web-shop"
