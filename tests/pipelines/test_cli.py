"""What a user meets at the command line: help, refusals with exit code 2, nothing written by them."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from components.dataset.catalog import load_spec
from components.dataset.errors import UserError
from components.dataset.sources import validated_tables
from pipelines.check import check_dataset
from tests.pipelines.shop import SPEC, tandem, write_shop, write_spec

PINNED = "registry.example/tandem-train-python@sha256:" + 64 * "a"


@pytest.fixture
def shop(tmp_path):
    write_shop(tmp_path)
    return tmp_path


def refused(folder: Path, *arguments: str | Path, code: int = 2) -> str:
    """The message of a command that is refused, after which nothing is registered or half-written."""
    home = folder / "home"
    done = tandem(*arguments, home=home)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout.strip()
    assert registered(home) == 0
    assert not (home / "serving").exists()
    return done.stderr


def registered(home: Path) -> int:
    """How many models MLflow knows there: a run that was refused on its way is in it, but registers nothing."""
    database = home / "mlflow.db"
    if not database.exists():
        return 0
    with closing(sqlite3.connect(database)) as connection:
        (found,) = connection.execute("SELECT count(*) FROM registered_models").fetchone()
        return int(found)


def test_help_and_version_need_nothing_heavy():
    shown = tandem("--help")
    assert shown.returncode == 0
    for command in ("run", "compile", "data", "serve", "registry"):
        assert command in shown.stdout
    assert re.fullmatch(r"tandem \d+\.\d+\.\d+", tandem("--version").stdout.strip())


def test_help_imports_no_heavy_package():
    import subprocess
    import sys

    from tests.pipelines.shop import ROOT

    code = (
        "import sys; sys.argv = ['tandem', '--help']\n"
        "from pipelines.cli import app\n"
        "try: app()\n"
        "except SystemExit: pass\n"
        "print('HEAVY', sorted({'torch', 'kfp', 'mlflow', 'feast', 'pandas', 'numpy', 'bentoml'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "HEAVY []" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--dataset", "smaple"), ["smaple", "sample"]),
        (("--dataset", "nowhere.yaml"), ["nowhere.yaml"]),
        (("--set", "align.temprature=1"), ["align.temprature", "temperature"]),
        (("--set", "align.temperature"), ["key=value"]),
        (("--set", "align.temperature=hot"), ["align.temperature", "hot"]),
        (("--set", "seed.deep=1"), ["seed"]),
        (("--backbone", "transformer"), ["backbone", "autoint"]),
        (("--seed", "-1"), ["seed"]),
        (("--config", "absent.yaml"), ["absent.yaml"]),
        (("--method", "magic"), ["method", "ctrl"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_wrong_flags_are_refused(tmp_path, arguments, said):
    message = refused(tmp_path, "run", *arguments)
    for word in said:
        assert word in message


def replaced(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return change


def written(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def spec(**changes: object) -> Callable[[Path], None]:
    return lambda folder: write_spec(folder, **changes) and None


WRONG = {
    "missing file": (lambda folder: (folder / "users.csv").unlink(), ["users.csv"]),
    "missing column": (replaced("clicks.csv", "clicked", "klicked"), ["clicks.csv", "clicked"]),
    "missing field column": (replaced("users.csv", "gender", "sex"), ["users.csv", "gender"]),
    "empty file": (written("clicks.csv", ""), ["clicks.csv", "empty"]),
    "label of one class": (
        lambda folder: (folder / "clicks.csv").write_text(
            re.sub(r",0,(phone|desktop)", r",1,\1", (folder / "clicks.csv").read_text())
        ),
        ["clicked"],
    ),
    "unknown key": (spec(colour="red"), ["shop.yaml", "colour"]),
    "unknown kind": (
        spec(fields=[*SPEC["fields"][1:], {"name": "x", "side": "user", "kind": "idd"}]),
        ["shop.yaml", "kind"],
    ),
    "no YAML": (written("shop.yaml", "name: [shop"), ["shop.yaml"]),
}


#: Data that only those who read all rows can tell.
UNREADABLE = {
    "unparsable time": (replaced("clicks.csv", ",1700000000,", ",yesterday,"), ["clicks.csv", "shown_at", "yesterday"]),
    "duplicate key": (replaced("users.csv", "c1,", "c0,"), ["users.csv", "c0"]),
    "header only": (written("clicks.csv", "customer,sku,shown_at,clicked,device\n"), ["clicks.csv", "no rows"]),
    "wrong type": (
        lambda folder: (folder / "items.jsonl").write_text(
            (folder / "items.jsonl").read_text().replace('"price": 3.0', '"price": "dear"')
        ),
        ["items.jsonl", "price", "number and string"],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_data_is_refused(shop, name):
    change, said = WRONG[name]
    change(shop)
    message = refused(shop, "run", "--dataset", shop / "shop.yaml")
    for word in said:
        assert word in message, message


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_no_step_could_read_is_refused(shop, name):
    """By the very code with which the first step, and `tandem check`, read the sources."""
    change, said = UNREADABLE[name]
    change(shop)
    with pytest.raises(UserError) as refusal:
        validated_tables(load_spec(str(shop / "shop.yaml")))
    for word in said:
        assert word in str(refusal.value)


def test_too_many_unknown_users_stop_the_run(shop):
    lines = (shop / "clicks.csv").read_text().splitlines()
    lines = [line.replace("c", "stranger", 1) if number % 2 else line for number, line in enumerate(lines)]
    (shop / "clicks.csv").write_text("\n".join(lines) + "\n")
    message = refused(shop, "run", "--dataset", shop / "shop.yaml", "--set", "validate.stop_on=warning", code=3)
    assert "users" in message


def test_compile_writes_what_the_file_name_says(tmp_path):
    assert tandem("compile", tmp_path / "out.txt").returncode == 2
    arguments = ["--method", "collaborative", "--set", "finetune.epochs=3", "--image", PINNED]
    done = tandem("compile", tmp_path / "out.yaml", *arguments)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out.yaml"]
    compiled = next(yaml.safe_load_all((tmp_path / "out.yaml").read_text()))
    parameters = compiled["root"]["inputDefinitions"]["parameters"]
    assert parameters["finetune"]["defaultValue"]["epochs"] == 3
    executors = compiled["deploymentSpec"]["executors"].values()
    assert {executor["container"]["image"] for executor in executors} == {PINNED}


def test_an_image_that_may_change_is_not_compiled_for_a_cluster(tmp_path):
    message = refused(tmp_path, "compile", tmp_path / "out.yaml", "--image", "tandem-train-python:latest")
    assert "--image" in message
    assert "--unpinned" in message
    assert not (tmp_path / "out.yaml").exists()


def test_serving_before_deploying_is_refused(tmp_path):
    assert "tandem run" in refused(tmp_path, "serve")


def test_what_is_served_is_named_as_it_was_run(tmp_path):
    for dataset in ("shop", str(write_spec(tmp_path))):
        said = refused(tmp_path, "serve", "--dataset", dataset)
        assert "feast/shop.yaml: nothing is deployed there" in said.replace("\n", "")


def test_config_file_and_flags_meet(tmp_path):
    config = tmp_path / "settings.yaml"
    config.write_text("align: {temperature: 0.2}\nfinetune: {epochs: 4}\n")
    out = tmp_path / "out.yaml"
    done = tandem("compile", out, "--config", config, "--set", "finetune.epochs=5", "--unpinned")
    assert done.returncode == 0, done.stderr
    parameters = next(yaml.safe_load_all(out.read_text()))["root"]["inputDefinitions"]["parameters"]
    assert parameters["align"]["defaultValue"]["temperature"] == 0.2
    assert parameters["finetune"]["defaultValue"]["epochs"] == 5


def test_registry_of_nothing_says_so(tmp_path):
    done = tandem("registry", "rollback", home=tmp_path)
    assert done.returncode == 2
    assert "sample" in done.stderr
    done = tandem("registry", "history", home=tmp_path / "other")
    assert (done.returncode, done.stdout) == (0, "")
    assert not (tmp_path / "other" / "mlflow.db").exists(), "looking makes no registry"


def test_check_tells_all_faults_at_once(shop):
    text = (shop / "shop.yaml").read_text().replace("column: clicked", "column: klicked")
    (shop / "shop.yaml").write_text(text + "colour: red\n")
    replaced("users.csv", "c1,", "c0,")(shop)
    done = tandem("check", shop / "shop.yaml")
    assert done.returncode == 2
    for words in ("unknown key 'colour'", "no column 'klicked'", "keys in more than one row", "3 errors, 0 warnings"):
        assert words in done.stdout
    found = json.loads(tandem("check", shop / "shop.yaml", "--json").stdout)
    assert found["errors"] == len(found["findings"]) == 3
    assert all(set(finding) == {"severity", "where", "what"} for finding in found["findings"])


def test_check_applies_the_rules_of_the_run(shop):
    """What validation and the leak lint would stop a run for; and nothing of a sound data set."""
    assert check_dataset(str(shop / "shop.yaml")).findings == ()
    lines = (shop / "clicks.csv").read_text().splitlines()
    rows = [line.split(",") for line in lines[1:91]]
    told = [[*row[:4], "phone" if row[3] == "1" else "desktop"] for row in rows]
    (shop / "clicks.csv").write_text("\n".join([lines[0], *(",".join(row) for row in told)]) + "\n")
    checked = check_dataset(str(shop / "shop.yaml"))
    found = "\n".join(str(finding) for finding in checked.findings)
    assert checked.errors
    assert "there are at least 100 rows" in found
    assert "field 'device' tells the label of every row" in found
