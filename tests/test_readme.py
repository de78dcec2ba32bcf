"""What README tells a new user to type exists and does what it says."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from components.dataset.spec import parse_spec
from pipelines.settings import parse_settings
from tests.pipelines.shop import help_of

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
LINES = [line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines()]
YAML = [yaml.safe_load(block) for kind, block in BLOCKS if kind == "yaml"]
TARGETS = sorted(set(re.findall(r"make ([a-z-]+)", README)))
COMMANDS = sorted({line.split("#")[0].strip() for line in LINES if line.startswith("tandem ")})


def test_the_two_commands_come_first():
    first = next(block for kind, block in BLOCKS if kind == "bash")
    assert [line.split("#")[0].strip() for line in first.strip().splitlines()] == ["make demo", "make test"]


@pytest.mark.parametrize("target", TARGETS)
def test_make_knows_every_target(target):
    done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("target", ["demo", "test", "lint", "serve"])
def test_every_target_is_explained_by_help(target):
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.search(rf"^\s*make {target}\s+\S", shown, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_flag_is_known(command):
    """Each word of the commands that README names is one that the command line has."""
    words = shlex.split(command)[1:]
    flags = [word for word in words if word.startswith("--")]
    names = []
    for word in words:
        if word.startswith("-") or not word.isalpha():
            break
        names.append(word)
    shown = help_of(*names[:2] if names[:1] in (["registry"], ["schedule"]) else names[:1])
    for flag in flags:
        assert flag in shown, f"{command}: {flag}"


def test_the_spec_that_readme_shows_is_valid():
    (content,) = [content for content in YAML if "sources" in content]
    assert parse_spec(content, "README.md").name == "shop"


def test_the_settings_that_readme_shows_are_valid():
    (content,) = [content for content in YAML if "gate" in content]
    assert parse_settings(content, []).gate.min_auc == content["gate"]["min_auc"]


@pytest.mark.parametrize("folder", re.findall(r"^\| `([^`]+)/` \|", README, re.MULTILINE))
def test_every_folder_that_readme_names_is_there(folder):
    assert (ROOT / folder).is_dir()


def test_the_settings_of_the_service_that_readme_shows_are_its_own():
    from serving.settings import ServeSettings

    table = README[README.index("| setting | default |") : README.index("`/metrics` is for Prometheus")]
    names = {name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"\w+", row)}
    assert {"api_key", "canary", "feature_deadline"} <= names <= set(ServeSettings.model_fields)
