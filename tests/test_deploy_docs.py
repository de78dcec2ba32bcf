"""What docs/deploy.md tells a platform engineer to type, and the files and names that it leans on, exist."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from pipelines.policy import EXIT_SECRETS, SECRETS
from tests.pipelines.shop import help_of

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
LINES = [line for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]
SPANS = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL))
COMMANDS = sorted({text.split(" #")[0].strip() for text in (*LINES, *SPANS) if text.startswith("tandem ")})
TARGETS = sorted(set(re.findall(r"\bmake ([a-z-]+)", TEXT)))
FILES = sorted(set(re.findall(r"\b(?:infra|pipelines|docs)/[\w./-]*\w", TEXT)))
ENTRIES = set(re.findall(r"`(tandem/[a-z0-9-]+)`", TEXT))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_flag_is_known(command):
    words = shlex.split(command)[1:]
    names = words[:2] if words[0] in {"registry", "schedule"} else words[:1]
    shown = help_of(*names)
    for flag in (word for word in words if word.startswith("--")):
        assert flag in shown, f"{command}: {flag}"


@pytest.mark.parametrize("target", TARGETS)
def test_make_knows_every_target(target):
    done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", FILES)
def test_every_file_that_is_named_is_there(path):
    assert (ROOT / path).exists()


def test_every_secret_that_is_fetched_is_explained():
    asked = set()
    for path in (ROOT / "infra" / "kustomize").rglob("*.yaml"):
        for found in yaml.safe_load_all(path.read_text()):
            if found and found.get("kind") == "ExternalSecret":
                asked |= {part["extract"]["key"] for part in found["spec"]["dataFrom"]}
    assert asked == ENTRIES
    for keys in (SECRETS | EXIT_SECRETS).values():
        assert all(key in TEXT for key in keys)


KINDS = {"deployment", "statefulset", "service", "job", "cronjob"}


def objects():
    """Kind, namespace and name of whatever the cluster files make."""
    found = set()
    for path in (ROOT / "infra").rglob("*.yaml"):
        for made in yaml.safe_load_all(path.read_text()):
            if made and made.get("metadata"):
                metadata = made["metadata"]
                found.add((made["kind"].lower(), metadata.get("namespace"), metadata["name"]))
    return found


def test_every_object_that_a_command_waits_for_or_calls_is_made():
    """Kubeflow's own namespace is not ours to make."""
    named, started = set(), set()
    for line in LINES:
        space = re.search(r"kubectl -n (\S+) ", line)
        if space and space[1] != "kubeflow":
            named |= {(kind, space[1], name) for kind, name in re.findall(r"\b(\w+)/([\w-]+)", line) if kind in KINDS}
            started |= {("job", space[1], name) for name in re.findall(r"create job ([\w-]+) --from=", line)}
    named -= started
    assert {kind for kind, *_ in named} == KINDS
    assert not named - {(kind, space or here, name) for kind, here, name in objects() for space in (here, "tandem")}


def test_the_kustomizations_and_the_job_that_are_applied_are_there():
    for line in LINES:
        for path in re.findall(r"(?:apply -k|kustomize) (infra/\S+)", line):
            assert (ROOT / path / "kustomization.yaml").is_file(), line
    (job,) = (line for line in LINES if "kubectl set image" in line)
    file, container = re.search(r"-f (\S+) (\w+)=", job).groups()
    containers = yaml.safe_load((ROOT / file).read_text())["spec"]["template"]["spec"]["containers"]
    assert [one["name"] for one in containers] == [container]
