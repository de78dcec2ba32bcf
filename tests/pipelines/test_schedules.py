"""Schedules and runs on Kubeflow Pipelines, by the real client against a server that checks what it is sent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager

import httpx
import pytest
import yaml

from components.dataset.errors import UserError
from pipelines import schedules
from pipelines.cluster import Cluster, check_for_cluster, failing_step
from pipelines.schedules import apply, pause, plan, read_schedules, run_now, schedule_of
from pipelines.settings import parse_settings
from tests.pipelines.shop import ROOT, tandem

DAILY = {"name": "daily", "cron": "0 3 * * *", "settings": {"dataset": "sample", "method": "collaborative"}}
HOURLY = {"name": "hourly", "pipeline": "materialize", "cron": "15 * * * *"}
WEEKLY = {"name": "weekly", "cron": "0 5 * * 1", "time_zone": "Europe/Berlin", "pipeline": "materialize"}
TOKEN = "KF_PIPELINES_SA_TOKEN_PATH"
#: Of the pipelines, the tasks that the server knows.
TASKS = {"validate": "validate", "retrieve": "retrieve"}


class Server:
    def __init__(self, port, log):
        self.host, self.log = f"http://127.0.0.1:{port}", log

    def changes(self):
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []


@contextmanager
def served(folder, **more):
    log = folder / "requests.jsonl"
    command = [sys.executable, "-m", "tests.pipelines.kfp_server", str(log)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **more}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Server(int(process.stdout.readline()), log)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with served(tmp_path_factory.mktemp("kfp")) as found:
        yield found


@pytest.fixture
def server(running):
    """The server as it is when nothing has been asked of it."""
    httpx.delete(f"{running.host}/everything").raise_for_status()
    return running


@pytest.fixture
def cluster(server):
    return Cluster(server.host, None, "tandem", "runner", unpinned=True)


def written(tmp_path, *items):
    path = tmp_path / "schedules.yaml"
    path.write_text(yaml.safe_dump({"experiment": "tandem", "schedules": list(items)}))
    return read_schedules(path)


def done(cluster, asked):
    changes = plan(cluster, asked)
    apply(cluster, changes)
    return {change.name: change.action for change in changes}


def status(cluster):
    found = {}
    for one in cluster.recurring_runs():
        found.setdefault(schedule_of(one), []).append((one.status, one.trigger.cron_schedule.cron))
    return found


def test_apply_brings_the_cluster_to_the_file_and_then_changes_nothing(server, cluster, tmp_path):
    asked = written(tmp_path, DAILY, HOURLY, WEEKLY)
    assert done(cluster, asked) == dict.fromkeys(("daily", "hourly", "weekly"), "create")
    assert status(cluster)["daily"] == [("ENABLED", "0 0 3 * * *")]
    seen = len(server.changes())
    assert set(done(cluster, asked).values()) == {"unchanged"}
    assert len(server.changes()) == seen, "nothing was sent"

    changed = {**DAILY, "settings": {**DAILY["settings"], "seed": 2}}
    first = next(one.recurring_run_id for one in cluster.recurring_runs() if schedule_of(one) == "daily")
    asked = written(tmp_path, changed, {**HOURLY, "enabled": False})
    assert done(cluster, asked) == {"daily": "replace", "hourly": "disable", "weekly": "delete"}
    assert status(cluster) == {"daily": [("ENABLED", "0 0 3 * * *")], "hourly": [("DISABLED", "0 15 * * * *")]}
    (new,) = [one for one in cluster.recurring_runs() if schedule_of(one) == "daily"]
    assert new.recurring_run_id != first
    assert new.runtime_config.parameters["seed"] == 2
    assert new.no_catchup is True
    assert set(done(cluster, asked).values()) == {"unchanged"}
    assert max(count for line in server.changes() for count in line["enabled"].values()) == 1, "never doubled"


def test_catch_up_and_concurrency_are_the_files(cluster, tmp_path):
    """Also where someone has changed one of them by hand, and left the description that says whose it is."""
    asked = written(tmp_path, {**HOURLY, "catch_up": True, "concurrency": 3})
    done(cluster, asked)
    (made,) = cluster.recurring_runs()
    assert (bool(made.no_catchup), int(made.max_concurrency)) == (False, 3)
    assert done(cluster, asked) == {"hourly": "unchanged"}
    midnight = {"cron_schedule": {"cron": "0 0 0 * * *"}}
    for name, value in (("no_catchup", True), ("max_concurrency", "1"), ("trigger", midnight)):
        (ours,) = cluster.recurring_runs()
        given = {"mode": "ENABLE", "status": None, "recurring_run_id": None, "created_at": None, name: value}
        cluster.client.delete_recurring_run(ours.recurring_run_id)
        create = cluster.client._recurring_run_api.recurring_run_service_create_recurring_run
        create(recurring_run={**ours.to_dict(), **given})
        assert done(cluster, asked) == {"hourly": "replace"}, name


@pytest.mark.parametrize("after", range(1, 5), ids="requests done: {}".format)
def test_a_replacement_that_was_cut_off_is_finished_and_never_doubles_a_run(server, cluster, tmp_path, after):
    done(cluster, written(tmp_path, HOURLY))
    asked = written(tmp_path, {**HOURLY, "cron": "30 * * * *"})
    calls, call = [], cluster.call

    def cut_off(function, *given, **named):
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(function.__name__)
        return call(function, *given, **named)

    changes = plan(cluster, asked)
    cluster.call = cut_off
    try:
        apply(cluster, changes)
    except KeyboardInterrupt:
        assert after < 4
    cluster.call = call
    order = ["create", "disable", "enable", "recurring_run_service_delete"]
    assert calls == [f"{verb}_recurring_run" for verb in order[:after]]
    done(cluster, asked)
    assert status(cluster) == {"hourly": [("ENABLED", "0 30 * * * *")]}
    assert set(done(cluster, asked).values()) == {"unchanged"}
    assert max(count for line in server.changes() for count in line["enabled"].values()) == 1


def triggered(cluster):
    """A run in progress that the controller has started for the only recurring run."""
    (ours,) = cluster.recurring_runs()
    fields = ("display_name", "pipeline_spec", "runtime_config", "recurring_run_id", "experiment_id")
    content = {name: value for name, value in ours.to_dict().items() if name in fields}
    return cluster.client._run_api.run_service_create_run(run=content).run_id


def test_a_replacement_waits_for_the_run_in_progress(server, cluster, tmp_path):
    """Kubernetes would delete its Workflow with the recurring run, and the new one would not count it."""
    done(cluster, written(tmp_path, HOURLY))
    run_id = triggered(cluster)
    asked = written(tmp_path, {**HOURLY, "cron": "30 * * * *"}, WEEKLY)
    (hourly, weekly) = plan(cluster, asked)
    assert (hourly.action, weekly.action) == ("wait", "create")
    assert run_id in hourly.why
    apply(cluster, [hourly, weekly])
    assert status(cluster)["hourly"] == [("ENABLED", "0 15 * * * *")], "the old one goes on"
    assert set(status(cluster)) == {"hourly", "weekly"}
    assert cluster.follow(run_id, {}, 0.01, lambda _: None).state == "SUCCEEDED"
    assert done(cluster, asked) == {"hourly": "replace", "weekly": "unchanged"}
    assert status(cluster)["hourly"] == [("ENABLED", "0 30 * * * *")]


def test_a_deleted_recurring_run_leaves_its_runs_alone(cluster, tmp_path):
    """Also one that began between the plan and its deletion."""
    done(cluster, written(tmp_path, HOURLY))
    changes = plan(cluster, written(tmp_path))
    run_id = triggered(cluster)
    apply(cluster, changes)
    assert status(cluster) == {}
    assert cluster.follow(run_id, {}, 0.01, lambda _: None).state == "SUCCEEDED"


def test_a_token_for_the_api_is_read_from_its_file(tmp_path, monkeypatch):
    (tmp_path / "token").write_text("abc")
    with served(tmp_path, TOKEN="abc") as guarded:
        monkeypatch.delenv(TOKEN, raising=False)
        with pytest.raises(UserError, match=rf"401.*{TOKEN}"):
            Cluster(guarded.host, None, "tandem", "runner")
        monkeypatch.setenv(TOKEN, str(tmp_path / "token"))
        assert list(Cluster(guarded.host, "team", "tandem", "runner").runs()) == []
    monkeypatch.setenv(TOKEN, str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=rf"{TOKEN}.*nowhere is no file"):
        Cluster("http://127.0.0.1:9", "team", "tandem", "runner")


def test_what_is_not_ours_is_left_alone(cluster, tmp_path):
    done(cluster, written(tmp_path, HOURLY))
    (ours,) = cluster.recurring_runs()
    cluster.client._recurring_run_api.recurring_run_service_create_recurring_run(
        recurring_run={**ours.to_dict(), "description": "by hand", "mode": "ENABLE", "status": None}
        | {"recurring_run_id": None, "created_at": None}
    )
    assert done(cluster, written(tmp_path)) == {"hourly": "delete"}
    assert [one.description for one in cluster.recurring_runs()] == ["by hand"]


def test_a_paused_schedule_is_enabled_by_the_next_apply(cluster, tmp_path):
    asked = written(tmp_path, HOURLY)
    done(cluster, asked)
    assert pause(cluster, "hourly") == 1
    assert status(cluster)["hourly"][0][0] == "DISABLED"
    assert done(cluster, asked) == {"hourly": "enable"}
    assert status(cluster)["hourly"][0][0] == "ENABLED"
    with pytest.raises(UserError, match="nightly"):
        pause(cluster, "nightly")


def test_run_now_starts_no_run_beside_another(cluster, tmp_path):
    schedule = written(tmp_path, HOURLY).named("hourly")
    run_id = run_now(cluster, schedule)
    with pytest.raises(UserError, match=run_id):
        run_now(cluster, schedule)
    lines = []
    assert cluster.follow(run_id, TASKS, 0.01, lines.append).state == "SUCCEEDED"
    assert lines == ["validate: running", "validate: succeeded", "retrieve: running", "retrieve: succeeded"]
    assert run_now(cluster, schedule) != run_id


def test_runs_have_their_account(cluster, tmp_path):
    asked = written(tmp_path, DAILY)
    done(cluster, asked)
    run_id = run_now(cluster, asked.named("daily"))
    assert cluster.client.get_run(run_id).service_account == "runner"
    assert [one.service_account for one in cluster.recurring_runs()] == ["runner"]
    other = Cluster(cluster.host, None, "tandem", "another", unpinned=True)
    assert [change.action for change in plan(other, asked)] == ["replace"]


def test_an_image_without_a_digest_starts_nothing(server, cluster, tmp_path):
    asked = written(tmp_path, DAILY)
    before = server.changes()
    careful = Cluster(server.host, None, "tandem", "runner")
    with pytest.raises(UserError, match="not pinned"):
        plan(careful, asked)
    with pytest.raises(UserError, match="not pinned"):
        careful.start("daily", "training", asked.named("daily").run_settings())
    assert [change for change in server.changes()[len(before) :] if "experiments" not in change["path"]] == []


def test_a_run_that_fails_names_its_step(cluster):
    run_id = cluster.start("one", "training", parse_settings({"method": "collaborative", "seed": 13}, []))
    run = cluster.follow(run_id, TASKS, 0.01, lambda _: None)
    assert (run.state, failing_step(run, TASKS)) == ("FAILED", "retrieve; see its log")


def test_the_server_refuses_what_the_api_does_not_know(cluster):
    """The tests' own server is no yes-man."""
    with pytest.raises(UserError, match=r"400.*no field colour"):
        cluster.call(
            cluster.client._run_api.run_service_create_run,
            run={"display_name": "x", "colour": "red", "experiment_id": cluster.experiment_id},
        )


def test_nobody_there_is_said(tmp_path):
    with pytest.raises(UserError, match="--host"):
        Cluster("http://127.0.0.1:9", None, "tandem", "runner")


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ({**DAILY, "name": "Daily"}, "name"),
        ({**DAILY, "time_zone": "Mars/Olympus"}, "time_zone.*time zone"),
        ({**DAILY, "colour": "red"}, r"schedules\.0\.colour: unknown; one of: catch_up, concurrency, cron"),
        ("daily", r"schedules\.0: write a mapping of catch_up, concurrency, cron"),
        ({**DAILY, "cron": "61 3 * * *"}, "schedule 'daily': cron '61 3.*'61' is no minute"),
        ({**DAILY, "cron": "0 1 1 * *", "time_zone": "Asia/Tokyo"}, "schedule 'daily': cron .*write time_zone: UTC"),
        ({**DAILY, "settings": {"aline": {}}}, "schedule 'daily'.*aline"),
        ({**DAILY, "concurrency": 0}, "concurrency"),
        ({**DAILY, "settings": {"dataset": "shop.yaml"}}, "schedule 'daily'.*/var/lib/tandem/data/shop.yaml"),
        ({**HOURLY, "settings": {"window": "since-champion"}}, "schedule 'hourly'.*leave out window"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, item, said):
    with pytest.raises(UserError, match=said):
        written(tmp_path, item)


def test_what_a_cluster_could_not_do_is_refused():
    with pytest.raises(UserError, match="did you mean 'sample'"):
        check_for_cluster("training", parse_settings({"dataset": "smaple"}, []))
    with pytest.raises(UserError, match=r"dataset data/shop\.yaml.*/var/lib/tandem/data/shop\.yaml"):
        check_for_cluster("materialize", parse_settings({"dataset": "data/shop.yaml"}, []))
    with pytest.raises(UserError, match=r"reads the settings dataset, validate alone; leave out align, warm_start"):
        check_for_cluster("materialize", parse_settings({"warm_start": True, "align": {"nodes": 2}}, []))
    here = {"dataset": "/mnt/shop.yaml", "method": "collaborative", "validate": {"stop_on": "warning"}}
    check_for_cluster("materialize", parse_settings(here, []))
    check_for_cluster("materialize+rows", parse_settings({**here, "encode": {"block": 8}}, []))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- name: a", r"the file: write a mapping of experiment, schedules"),
        ("schedule: []", r"schedule: unknown; one of: experiment, schedules"),
        ("schedules: [", "no YAML"),
    ],
)
def test_a_file_that_is_no_file_of_schedules_is_refused(tmp_path, text, said):
    path = tmp_path / "schedules.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        read_schedules(path)


def test_two_of_one_name_are_refused(tmp_path):
    with pytest.raises(UserError, match="daily"):
        written(tmp_path, DAILY, DAILY)


def test_the_projects_own_file_can_be_read():
    assert {schedule.name for schedule in read_schedules(None).schedules} == {"nightly-training", "hourly-features"}
    assert schedules.EMBEDDED.name == "schedules.yaml"


def test_the_commands(server, tmp_path, monkeypatch):
    written(tmp_path, HOURLY)
    file = ["--file", tmp_path / "schedules.yaml", "--host", server.host]
    monkeypatch.delenv("TANDEM_TRAIN_IMAGE", raising=False)
    assert "not pinned" in tandem("schedule", "plan", *file).stderr
    monkeypatch.setenv("TANDEM_TRAIN_IMAGE", "registry.example/tandem-train-python@sha256:" + 64 * "a")
    planned = tandem("schedule", "plan", *file)
    assert planned.stdout.split() == ["create", "hourly:", "cron", "0", "15", "*", "*", "*", "*", "UTC"], planned.stderr
    assert tandem("schedule", "apply", *file).returncode == 0
    (line,) = tandem("schedule", "list", *file).stdout.splitlines()
    assert json.loads(line)["status"] == "ENABLED"
    before = server.changes()
    given = (
        ["--dataset", "shop.yaml"],
        ["--set", "validate.stop_on=warning", "--pipeline", "materialize", "--nodes", "2"],
    )
    for wrong, said in zip(given, ("/var/lib/tandem/data/shop.yaml", "leave out align, finetune"), strict=True):
        refused = tandem("submit", "--host", server.host, "--experiment", "other", *wrong)
        assert (refused.returncode, said in refused.stderr) == (2, True), refused.stderr
    assert server.changes() == before, "not even an experiment was made"
    cluster = Cluster(server.host, None, "tandem", "runner")
    run_id = triggered(cluster)
    written(tmp_path, {**HOURLY, "cron": "30 * * * *"})
    held = tandem("schedule", "apply", *file)
    assert (held.returncode, run_id in held.stdout, "not yet as the file says: hourly" in held.stderr) == (
        2,
        True,
        True,
    )
    submitted = ["submit", "--host", server.host, "--method", "collaborative", "--seconds", "0.05"]
    good = tandem(*submitted)
    assert good.returncode == 0, good.stderr
    assert "retrieve: succeeded" in good.stderr
    bad = tandem(*submitted, "--set", "seed=13")
    assert bad.returncode == 1
    assert "failed: retrieve; see its log" in bad.stderr
    assert "executor" not in bad.stderr
    assert tandem("schedule", "plan", "--file", "nowhere.yaml", "--host", server.host).returncode == 2
