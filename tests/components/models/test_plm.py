"""The PLM: found in a folder, the wheel or a hub; identified; loaded without running code or pickles."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from components.dataset.errors import UserError
from components.models import plm
from components.models.plm import PlmSpec, load_plm, load_tokenizer, locate, plm_digest, pool
from tests.components.encode.tiny import prompts, save_bert, save_llama, save_t5

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return save_bert(tmp_path_factory.mktemp("plm") / "bert")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("plm") / "llama")


# --- loading -----------------------------------------------------------------------------------------------------


def test_loads_a_local_folder(bert):
    loaded = load_plm(PlmSpec(name=str(bert)))
    assert loaded.dim == 32 and loaded.name == str(bert)
    assert not loaded.model.training
    assert loaded.digest == plm_digest(PlmSpec(name=str(bert)), bert)
    assert all(parameter.dtype == torch.float32 for parameter in loaded.model.parameters())


def test_loads_the_wheel_and_checks_its_weights(monkeypatch):
    folder = locate(PlmSpec())
    assert plm.file_sha256(folder / "model.safetensors") == plm.WHEEL_SHA256
    monkeypatch.setattr(plm, "WHEEL_SHA256", "0" * 64)
    with pytest.raises(UserError, match="not the weights of all-minilm-l6-v2"):
        locate(PlmSpec())


def test_tokens_are_those_of_transformers():
    folder = locate(PlmSpec())
    ours = load_tokenizer(PlmSpec(), folder, limit=64)
    theirs = load_plm(PlmSpec()).tokenizer
    texts = ["This is a user, gender is female.", "", "Ünïcödé 💥 (1995)", "word " * 500, *prompts(20)]
    expected = theirs(texts, truncation=True, max_length=64)["input_ids"]
    assert [encoding.ids for encoding in ours.encode_batch(texts)] == expected


def test_tokenizer_needs_no_torch():
    code = (
        "import sys; from components.models.plm import *; from components.models import plm;"
        "spec = PlmSpec(); print(len(load_tokenizer(spec, locate(spec), 5).encode('a b c d e f').ids));"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "5", done.stderr


def test_layers_and_random_weights_are_ablations(bert):
    whole, cut = load_plm(PlmSpec(name=str(bert))), load_plm(PlmSpec(name=str(bert), layers=1))
    assert len(cut.model.encoder.layer) == 1
    same = zip(cut.model.encoder.layer[0].parameters(), whole.model.encoder.layer[0].parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)
    drawn, again = (load_plm(PlmSpec(name=str(bert), random_weights=True)) for _ in range(2))
    weights = [p.model.embeddings.word_embeddings.weight for p in (whole, drawn, again)]
    assert not torch.equal(weights[0], weights[1]) and torch.equal(weights[1], weights[2])
    assert len({whole.digest, cut.digest, drawn.digest}) == 3 and drawn.digest == again.digest


def test_decoder_is_known_as_one(bert, llama):
    assert plm.is_causal(load_plm(PlmSpec(name=str(llama), pooling="last")).model)
    assert not plm.is_causal(load_plm(PlmSpec(name=str(bert))).model)


def test_settings_refuse_what_they_do_not_know():
    for wrong in ({"pooling": "max"}, {"max_length": 1}, {"nmae": "x"}, {"layers": 0}, {"name": ""}):
        with pytest.raises(ValidationError):
            PlmSpec(**wrong)


# --- digest ------------------------------------------------------------------------------------------------------


def test_digest_follows_weights_tokenizer_and_pooling(tmp_path):
    folder = save_bert(tmp_path / "bert")
    spec = PlmSpec(name=str(folder))
    first = plm_digest(spec, folder)
    assert plm_digest(spec.model_copy(update={"pooling": "cls"}), folder) != first
    assert plm_digest(spec.model_copy(update={"prefix": "query: ", "max_length": 8}), folder) == first
    (folder / "README.md").write_text("no part of the model")
    assert plm_digest(spec, folder) == first
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"][0]["content"] = "[PADDING]"
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    second = plm_digest(spec, folder)
    save_bert(folder, seed=1)
    assert len({first, second, plm_digest(spec, folder)}) == 3


# --- pooling -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_pooling_reads_tokens_and_no_padding(pooling):
    random = np.random.default_rng(0)
    states, lengths = random.normal(size=(4, 5, 3)), [5, 1, 3, 2]
    mask = np.array([[1] * n + [0] * (5 - n) for n in lengths])
    naive = {"mean": lambda s: s.mean(0), "cls": lambda s: s[0], "last": lambda s: s[-1]}[pooling]
    expected = np.stack([naive(states[i, :n]) for i, n in enumerate(lengths)])
    found = pool(torch.tensor(states), torch.tensor(mask), pooling)
    np.testing.assert_allclose(found.numpy(), expected)
    whole = pool(torch.tensor(states), None, pooling)
    np.testing.assert_allclose(whole.numpy(), np.stack([naive(s) for s in states]))


# --- faults ------------------------------------------------------------------------------------------------------


def test_no_such_model(tmp_path):
    with pytest.raises(UserError, match=r"plm\.name: no folder '/no/such/model'"):
        load_plm(PlmSpec(name="/no/such/model"))
    with pytest.raises(UserError, match=r"plm\.name: .* holds no config\.json"):
        load_plm(PlmSpec(name=str(tmp_path)))


def test_folder_of_pickled_weights_is_refused(tmp_path):
    folder = save_bert(tmp_path / "bert")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"holds no \*\.safetensors"):
        load_plm(PlmSpec(name=str(folder)))


def test_torn_weights_are_a_clear_error(tmp_path):
    folder = save_bert(tmp_path / "bert")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be loaded"):
        load_plm(PlmSpec(name=str(folder)))


def test_code_that_comes_with_a_model_is_not_run(tmp_path):
    folder = save_bert(tmp_path / "bert")
    config = json.loads((folder / "config.json").read_text())
    config.update(model_type="trojan", auto_map={"AutoConfig": "trojan.Config", "AutoModel": "trojan.Model"})
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "trojan.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_plm(PlmSpec(name=str(folder)))
    assert not (tmp_path / "ran").exists()


def test_encoder_decoder_is_refused(tmp_path):
    folder = save_t5(tmp_path / "t5")
    with pytest.raises(UserError, match="an encoder with a decoder"):
        load_plm(PlmSpec(name=str(folder)))


def test_settings_that_do_not_fit_the_model(bert, llama):
    with pytest.raises(UserError, match=r"plm\.pooling: .* sees no other token"):
        load_plm(PlmSpec(name=str(llama), pooling="cls"))
    with pytest.raises(UserError, match=r"plm\.max_length: .* at most 512"):
        load_plm(PlmSpec(name=str(bert), max_length=513))
    with pytest.raises(UserError, match=r"plm\.layers: .* has 2 layers"):
        load_plm(PlmSpec(name=str(bert), layers=3))


def test_hub_id_needs_a_pinned_revision():
    for revision in (None, "main", "v1.0", "abc"):
        with pytest.raises(UserError, match=r"plm\.revision: .* 40 hexadecimal digits"):
            locate(PlmSpec(name="some/model", revision=revision))


# --- the hub, as a real server on this machine -------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """What the hub answers for the one model 'some/model' at one commit."""

    folder = None

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.split("?")[0]
        if "some/model" not in path:
            return self.refuse("RepoNotFound")
        if COMMIT not in path:
            return self.refuse("RevisionNotFound")
        files = sorted(self.folder.iterdir())
        if "/resolve/" in path:
            return self.answer((self.folder / path.rsplit("/", 1)[1]).read_bytes())
        if "/tree/" in path:
            rows = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0" * 40} for f in files]
            return self.answer(json.dumps(rows).encode())
        siblings = [{"rfilename": f.name} for f in files]
        return self.answer(json.dumps({"id": "some/model", "sha": COMMIT, "siblings": siblings}).encode())

    def refuse(self, code):
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def answer(self, body):
        self.send_response(200)
        self.send_header("ETag", f'"{hash(body):x}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(bert):
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubOf", (Hub,), {"folder": bert}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def ask_hub(endpoint, home, **spec):
    """Locate a PLM in a process of its own, whose hub is `endpoint`: the folder, or the UserError's message."""
    code = (
        "import json, sys; from components.models.plm import *; from components.dataset.errors import UserError\n"
        "try: print(locate(PlmSpec(**json.loads(sys.argv[1]))))\n"
        "except UserError as error: print('UserError:', error)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(spec)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_hub_model_is_fetched_once_and_then_read_offline(hub, tmp_path, bert):
    spec = {"name": "some/model", "revision": COMMIT}
    assert "write plm.online: true" in ask_hub(hub, tmp_path, **spec)
    fetched = ask_hub(hub, tmp_path, **spec, online=True)
    assert fetched.endswith(COMMIT)
    local = PlmSpec(name=fetched)
    assert plm_digest(local, locate(local)) == plm_digest(local, bert)
    assert ask_hub("http://127.0.0.1:9", tmp_path, **spec) == fetched


def test_hub_faults_are_told_apart(hub, tmp_path):
    wrong = ask_hub(hub, tmp_path, name="some/model", revision="f" * 40, online=True)
    assert wrong.startswith("UserError: plm.revision: the hub has no 'some/model' at revision ffff"), wrong
    absent = ask_hub(hub, tmp_path, name="some/other", revision=COMMIT, online=True)
    assert absent.startswith("UserError: plm.name: the hub has no model 'some/other'"), absent


@pytest.mark.slow  # the hub's client tries again for a while
def test_no_network_is_a_clear_error(tmp_path):
    unreachable = ask_hub("http://127.0.0.1:9", tmp_path, name="some/model", revision=COMMIT, online=True)
    assert unreachable.startswith("UserError: plm.name: cannot reach the hub for 'some/model'"), unreachable
