"""`tandem push --follow` as it stands beside a service on a cluster: it waits for what is not there yet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import yaml

from tests.pipelines.shop import ROOT, SPEC, tandem


def until(found, log, seconds=120):
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def test_it_waits_for_a_champion_and_for_one_with_a_history(tmp_path):
    models, alive, log = tmp_path / "models", tmp_path / "alive", tmp_path / "log"
    command = [sys.executable, "-m", "pipelines.cli", "push", "--follow", "--models", models, "--log", tmp_path]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TANDEM_HOME": str(tmp_path / "home")}
    with log.open("w") as file:
        pushing = subprocess.Popen(
            [*command, "--alive", alive, "--every", "0.05"], env=environment, stdout=file, stderr=file
        )
    try:
        until(alive.exists, log)
        (models / "1").mkdir(parents=True)
        (models / "1" / "spec.yaml").write_text(yaml.safe_dump(SPEC))
        (models / "aliases.json").write_text(json.dumps({"champion": "1", "candidate": None}))
        until(lambda: "has no history" in log.read_text(), log)
        alive.unlink()
        until(alive.exists, log)
        assert pushing.poll() is None
        assert log.read_text().count("has no history") == 1
    finally:
        pushing.terminate()
        pushing.wait(30)


def test_a_data_set_that_is_named_must_have_a_history(tmp_path):
    (tmp_path / "shop.yaml").write_text(yaml.safe_dump(SPEC))
    (tmp_path / "feedback").mkdir()
    event = {"item_id": "s1", "clicked": True, "at": "2026-01-01T00:00:00Z", "user_id": "c1"}
    (tmp_path / "feedback" / "one.jsonl").write_text(json.dumps(event) + "\n")
    done = tandem("push", "--follow", "--dataset", tmp_path / "shop.yaml", "--log", tmp_path, home=tmp_path / "home")
    assert done.returncode == 2
    assert "no history" in done.stderr
