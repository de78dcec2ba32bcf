import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from components.models.plm import PlmSpec
from components.register.proof import PlmFoundError, UsedPlm, held_tensors, prove

RANDOM = np.random.default_rng(0)
TABLE = RANDOM.normal(size=(300, 8)).astype(np.float32)
WEIGHT = RANDOM.normal(size=(1, 8)).astype(np.float32)
WORDS = RANDOM.normal(size=(500, 16)).astype(np.float32)
DENSE = RANDOM.normal(size=(300, 8)).astype(np.float32)  # of the very shape of the collaborative table


@pytest.fixture(scope="module")
def plm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plm")
    (folder / "config.json").write_text("{}")
    tensors = {
        "embeddings.word_embeddings.weight": WORDS,
        "encoder.layer.0.output.dense.weight": DENSE,
        "encoder.layer.0.output.dense.bias": np.zeros(8, np.float32),
    }
    save_file(tensors, folder / "model.safetensors")
    return UsedPlm(PlmSpec(name=str(folder)), "digest")


def write(path, tensors, nodes=(), functions=()):
    """An ONNX file that scores ids by a table, with more in it if asked for."""
    initialisers = [numpy_helper.from_array(values, name) for name, values in tensors.items()]
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["rows"]), *nodes],
        "scores",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", 2])],
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["n", 2, 8])],
        initialisers,
    )
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    model = helper.make_model(graph, opset_imports=imports, functions=list(functions))
    onnx.save(model, path)
    return path


def constant(name, values):
    return helper.make_node("Constant", [], [name], name=name, value=numpy_helper.from_array(values, name))


@pytest.fixture
def fresh(tmp_path):
    return write(tmp_path / "fresh.onnx", {"table": RANDOM.normal(size=TABLE.shape), "weight": WEIGHT * 2})


def proven(tmp_path, fresh, plm, tensors=None, nodes=(), functions=()):
    held = {"table": TABLE, "weight": WEIGHT, **(tensors or {})}
    return prove(write(tmp_path / "model.onnx", held, nodes, functions), fresh, plm)


def test_a_collaborative_model_passes_and_is_listed(tmp_path, fresh, plm):
    proof = proven(tmp_path, fresh, plm)
    assert proof["plm_free"] is True
    assert proof["parameters"] == proof["fresh_parameters"] == TABLE.size + WEIGHT.size
    assert [(tensor["name"], tensor["shape"]) for tensor in proof["tensors"]] == [
        ("table", [300, 8]),
        ("weight", [1, 8]),
    ]
    assert all(len(tensor["sha256"]) == 64 for tensor in proof["tensors"])
    assert (proof["plm"]["digest"], proof["plm"]["compared"]) == ("digest", True)
    assert (proof["plm"]["tensors"], proof["plm"]["parameters"]) == (3, WORDS.size + DENSE.size + 8)


def test_a_plm_that_is_not_at_hand_is_said(tmp_path, fresh):
    gone = UsedPlm(PlmSpec(name=str(tmp_path / "gone")), "digest")
    proof = proven(tmp_path, fresh, gone)
    assert proof["plm"]["compared"] is False
    assert "no folder" in proof["plm"]["reason"]
    with pytest.raises(PlmFoundError, match="'words'"):
        proven(tmp_path, fresh, gone, {"words": WORDS})


def test_without_a_plm_the_shapes_still_count(tmp_path, fresh):
    assert proven(tmp_path, fresh, None)["plm"] is None
    with pytest.raises(PlmFoundError, match=r"'words' .* is no part of the collaborative model"):
        proven(tmp_path, fresh, None, {"words": WORDS})


@pytest.mark.parametrize("values", [WORDS, WORDS.T, WORDS.reshape(250, 32), WORDS.astype(np.float16)])
def test_a_smuggled_matrix_is_refused_in_any_shape(tmp_path, fresh, plm, values):
    with pytest.raises(PlmFoundError, match=r"tensor 'extra' .* is no part of the collaborative model"):
        proven(tmp_path, fresh, plm, {"extra": np.ascontiguousarray(values)})


def test_the_plms_shape_is_named(tmp_path, fresh, plm):
    with pytest.raises(PlmFoundError, match=r"the shape of the PLM's embeddings\.word_embeddings\.weight"):
        proven(tmp_path, fresh, plm, {"extra": RANDOM.normal(size=(16, 500)).astype(np.float32)})


def test_numbers_of_the_plm_in_the_place_of_ones_own(tmp_path, fresh, plm):
    for values in (DENSE, DENSE.T.reshape(300, 8), DENSE[::-1].copy()):
        with pytest.raises(PlmFoundError, match=r"'table' holds the numbers of the PLM's encoder\.layer\.0\.output"):
            proven(tmp_path, fresh, plm, {"table": values})


def test_a_telling_name_is_refused(tmp_path, fresh, plm):
    with pytest.raises(PlmFoundError, match=r"bears the name of a transformer's part"):
        proven(tmp_path, fresh, plm, {"bert.encoder.layer.0.output.bias": np.ones(8, np.float32)})


def test_a_tensor_twice_is_one_too_many(tmp_path, fresh, plm):
    with pytest.raises(PlmFoundError, match="'copy'"):
        proven(tmp_path, fresh, plm, {"copy": TABLE + 1})


def test_many_small_tensors_are_refused(tmp_path, fresh, plm):
    pieces = {f"piece{i}": part for i, part in enumerate(np.array_split(WORDS.ravel(), 20))}
    with pytest.raises(PlmFoundError, match="its small tensors hold 8008 numbers, those of the collaborative model 8"):
        proven(tmp_path, fresh, plm, pieces)


def hidden_in_constant():
    return {"nodes": [constant("extra", WORDS)]}


def hidden_in_floats():
    return {"nodes": [helper.make_node("Constant", [], ["extra"], name="extra", value_floats=WORDS.ravel().tolist())]}


def hidden_in_string():
    return {"nodes": [helper.make_node("Constant", [], ["extra"], name="extra", value_string=WORDS.tobytes())]}


def hidden_in_subgraph():
    inner = helper.make_graph([], "inner", [], [], [numpy_helper.from_array(WORDS, "extra")])
    return {"nodes": [helper.make_node("If", ["weight"], ["x"], then_branch=inner, else_branch=inner)]}


def hidden_in_function():
    nodes = [constant("extra", WORDS)]
    function = helper.make_function("own", "f", [], ["extra"], nodes, [helper.make_opsetid("", 18)])
    return {"functions": [function]}


def hidden_in_sparse():
    values = numpy_helper.from_array(WORDS.ravel(), "extra")
    indices = numpy_helper.from_array(np.arange(WORDS.size), "indices")
    sparse = helper.make_sparse_tensor(values, indices, [WORDS.size])
    return {"nodes": [helper.make_node("Constant", [], ["extra"], name="extra", sparse_value=sparse)]}


@pytest.mark.parametrize(
    "hidden",
    [hidden_in_constant, hidden_in_floats, hidden_in_string, hidden_in_subgraph, hidden_in_function, hidden_in_sparse],
)
def test_a_matrix_is_found_wherever_it_hides(tmp_path, fresh, plm, hidden):
    with pytest.raises(PlmFoundError, match="'extra"):
        proven(tmp_path, fresh, plm, **hidden())


def test_external_files_are_read(tmp_path, plm, fresh):
    path = write(tmp_path / "model.onnx", {"table": TABLE, "weight": WEIGHT, "extra": WORDS})
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin")
    assert [tensor.count for tensor in held_tensors(path)] == [TABLE.size, WEIGHT.size, WORDS.size]
    with pytest.raises(PlmFoundError, match="'extra'"):
        prove(path, fresh, plm)


def test_notes_of_the_file_count_too(tmp_path, fresh, plm):
    path = write(tmp_path / "model.onnx", {"table": TABLE, "weight": WEIGHT})
    model = onnx.load(path)
    helper.set_model_props(model, {"note": np.tile(WORDS, (3, 1)).tobytes().hex()})
    onnx.save(model, path)
    with pytest.raises(PlmFoundError, match="bytes more beside its tensors"):
        prove(path, fresh, plm)


def test_equal_zeros_are_no_proof_of_guilt(tmp_path, fresh, plm):
    assert proven(tmp_path, fresh, plm, {"weight": np.zeros((1, 8), np.float32)})["plm_free"]
