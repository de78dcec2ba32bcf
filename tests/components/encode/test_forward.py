"""The forward pass: BERT equals that of transformers, and want of memory is met by halving."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from components.dataset.errors import UserError
from components.encode.forward import Encoder, TorchForward, is_short_of_memory, load_model, padded
from components.models.bert import Bert, is_plain_bert
from components.models.plm import PlmSpec, load_plm, locate
from tests.components.encode.tiny import save_bert


def ids_of(lengths, top=60):
    random = np.random.default_rng(0)
    return [random.integers(5, top, length).astype(np.int32) for length in lengths]


# --- BERT --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wheel", "tiny"])
@pytest.mark.parametrize("lengths", [[9, 9, 9], [9, 1, 4]], ids=["alike", "padded"])
def test_bert_equals_transformers(bert, name, lengths):
    spec = PlmSpec() if name == "wheel" else PlmSpec(name=str(bert))
    ids, mask = padded(ids_of(lengths))
    ours, theirs = Bert(locate(spec)).eval(), load_plm(spec).model
    mask_tensor = None if mask is None else torch.from_numpy(mask)
    with torch.inference_mode():
        found = ours(torch.from_numpy(ids), mask_tensor)
        expected = theirs(input_ids=torch.from_numpy(ids), attention_mask=mask_tensor).last_hidden_state
    weights = np.ones_like(ids) if mask is None else mask
    np.testing.assert_allclose(
        (found * torch.from_numpy(weights)[..., None]).numpy(), expected.numpy() * weights[..., None], atol=1e-5
    )


def test_bert_reads_old_names_of_weights(tmp_path, bert):
    folder = save_bert(tmp_path / "old")
    tensors = load_file(folder / "model.safetensors")
    old = {
        f"bert.{name.replace('Norm.weight', 'Norm.gamma').replace('Norm.bias', 'Norm.beta')}": t
        for name, t in tensors.items()
    }
    save_file({name: tensor.clone() for name, tensor in old.items()}, folder / "model.safetensors")
    ids = torch.from_numpy(padded(ids_of([5, 5]))[0])
    with torch.inference_mode():
        assert torch.equal(Bert(folder)(ids, None), Bert(bert)(ids, None))


def test_other_models_go_through_transformers(bert, llama, tmp_path):
    assert is_plain_bert(PlmSpec(name=str(bert)), bert)
    assert not is_plain_bert(PlmSpec(name=str(llama)), llama)
    assert not is_plain_bert(PlmSpec(name=str(bert), layers=1), bert)
    assert not is_plain_bert(PlmSpec(name=str(bert), random_weights=True), bert)
    relu = save_bert(tmp_path / "relu")
    config = json.loads((relu / "config.json").read_text())
    (relu / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
    assert not is_plain_bert(PlmSpec(name=str(relu)), relu)


def test_decoder_pools_its_last_token_whatever_the_padding(llama):
    spec = PlmSpec(name=str(llama), pooling="last")
    forward = TorchForward(load_model(spec), "last")
    texts = ids_of([7, 2, 4])
    together = forward(*padded(texts))
    alone = np.concatenate([forward(*padded([text])) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)


# --- memory ------------------------------------------------------------------------------------------------------


class Small:
    """A forward pass with room for so many tokens; it fails as the allocators do."""

    def __init__(self, room, error=MemoryError("cannot allocate")):
        self.room, self.error, self.sizes = room, error, []

    def __call__(self, ids, mask):
        self.sizes.append(ids.size)
        if ids.size > self.room:
            raise self.error
        weights = np.ones_like(ids) if mask is None else mask
        return (ids * weights).sum(1, keepdims=True).astype(np.float32)


def test_batch_is_halved_until_it_fits_and_the_size_is_remembered():
    said = []
    forward = Small(room=12)
    encoder = Encoder(forward, said.append)
    texts = ids_of([4] * 10)
    expected = [[float(text.sum())] for text in texts]
    assert encoder(texts).tolist() == expected
    assert said == [20, 10] and forward.sizes[:3] == [40, 20, 8]
    forward.sizes.clear()
    assert encoder(texts).tolist() == expected
    assert max(forward.sizes) <= 12 and len(said) == 2, "nothing is tried again that did not fit"


def test_one_text_too_large_is_a_clear_error():
    with pytest.raises(UserError, match=r"a text of 30 tokens does not fit into memory; lower encode\.plm\.max_length"):
        Encoder(Small(room=12), lambda _: None)(ids_of([30, 2]))


def test_other_errors_are_not_taken_for_want_of_memory():
    with pytest.raises(IndexError):
        Encoder(Small(room=0, error=IndexError("index out of range")), lambda _: None)(ids_of([2, 2]))
    assert is_short_of_memory(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert is_short_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"))


def test_real_allocator_error_halves_the_batch(bert):
    """The process may have 300 MB more; a batch that needs more is encoded all the same."""
    code = """
import resource, sys, numpy as np, torch
from components.encode.forward import Encoder, TorchForward, load_model
from components.models.plm import PlmSpec
torch.set_num_threads(1)
said = []
encoder = Encoder(TorchForward(load_model(PlmSpec(name=sys.argv[1])), "mean"), said.append)
texts = [np.full(500, 7, np.int32)] * 800
small = encoder(texts[:2])
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + 300_000_000,) * 2)
vectors = encoder(texts)
assert said, "nothing was halved"
assert vectors.shape == (800, 32) and np.allclose(vectors, small[:1], atol=1e-5)
print("halved to", said[-1])
"""
    done = subprocess.run([sys.executable, "-c", code, str(bert)], capture_output=True, text=True)
    assert done.returncode == 0 and "halved to" in done.stdout, done.stderr


def test_numbers_that_are_none_are_refused():
    with pytest.raises(UserError, match=r"NaN or infinite numbers for a text; write encode\.precision: fp32"):
        Encoder(lambda ids, mask: np.full((len(ids), 2), np.nan, np.float32), lambda _: None)(ids_of([2]))
