"""A request that nobody waits for any longer leaves neither its thread nor its model at work."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from components.dataset.bundle import MODEL, Bundle, write_manifest
from components.dataset.scoring import stoppable
from components.run import read_json, write_json
from serving.features import OnlineFeatures
from serving.ranker import LONG, Ranker
from serving.scorer import Scorer
from serving.settings import ServeSettings
from tests.serving.conftest import alone
from tests.serving.stores import MemoryStore
from tests.serving.test_promotion import until

#: As many as a request may name. Their call takes many seconds, that for the golden rows some milliseconds.
MANY = [f"s{number}" for number in range(1000)]
#: Products of two matrices [n, n] of n rows.
PRODUCTS = 600
STOPPED = "terminate flag"


def make_slow(path):
    """Have a bundle's model, whole, take a time that grows with the cube of the rows, and say what it said before."""
    model = onnx.load(path / MODEL)
    graph = model.graph
    (answer,) = graph.output
    last = next(node for node in graph.node if answer.name in node.output)
    last.output[list(last.output).index(answer.name)] = "quick"
    for name, value in {"zero": np.float32(0), "column": np.array([-1, 1]), "axes": np.array([1])}.items():
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    graph.node.extend(
        [
            helper.make_node("Mul", ["quick", "zero"], ["nothing"]),
            helper.make_node("Reshape", ["nothing", "column"], ["tall"]),
            helper.make_node("Transpose", ["tall"], ["wide"]),
            helper.make_node("MatMul", ["tall", "wide"], ["product0"]),
            *(helper.make_node("MatMul", [f"product{n}"] * 2, [f"product{n + 1}"]) for n in range(PRODUCTS)),
            helper.make_node("ReduceSum", [f"product{PRODUCTS}", "axes"], ["sum"], keepdims=0),
            helper.make_node("Add", ["quick", "sum"], [answer.name]),
        ]
    )
    onnx.save(model, path / MODEL)
    manifest = read_json(path / "manifest.json")
    write_manifest(path, {key: value for key, value in manifest.items() if key != "files"} | {"folded": False})


@pytest.fixture(scope="module")
def bundle(shop):
    (found,) = shop.glob("home/runs/first/artifacts/*/register/bundle")
    return found


@pytest.fixture(scope="module")
def models(bundle, tmp_path_factory):
    """A folder of models whose champion is a slow one."""
    folder = tmp_path_factory.mktemp("slow")
    shutil.copytree(bundle, folder / "1")
    make_slow(folder / "1")
    write_json(folder / "aliases.json", {"champion": "1"})
    return folder


@pytest.mark.parametrize("asked", ["rank", "predict"])
def test_a_call_that_is_cancelled_ends_and_frees_its_thread(models, asked):
    scorer = Scorer(Bundle.open(models / "1"))
    ranker = Ranker(scorer, OnlineFeatures(MemoryStore(), ServeSettings()), "1", len(MANY))
    assert scorer.seconds(len(MANY), folds=True) > LONG
    call, happened = scorer.whole.probabilities, []

    def noted(*given):
        happened.append("begun")
        try:
            call(*given)
        except Exception as error:
            happened.append(STOPPED if STOPPED in str(error) else str(error))
            raise

    async def ask():
        # One thread for all long calls: the next one waits for those before it.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        requests = {
            "rank": lambda: ranker.rank("c1", MANY),
            "predict": lambda: ranker.predict(["c1"] * len(MANY), MANY, [{}] * len(MANY)),
        }
        for number in (1, 2):
            request = asyncio.ensure_future(requests[asked]())
            while happened.count("begun") < number:
                await asyncio.sleep(0.01)
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request
        return await asyncio.to_thread(happened.copy)

    scorer.whole.probabilities = noted
    assert asyncio.run(ask()) == ["begun", STOPPED] * 2


def test_every_call_of_a_model_can_be_stopped(bundle, shop):
    scorer = Scorer(Bundle.open(bundle))
    assert scorer.folded is not None
    (row, *_), options = scorer.bundle.golden().to_pylist(), stoppable()
    rows = {row["item_id"]: row}
    options.terminate = True
    with pytest.raises(Exception, match=STOPPED):
        scorer.rank(row, list(rows), rows, options=options)
    parts = scorer.table.parts(list(rows), rows)
    for scorer.folds_from in (1, 2):
        with pytest.raises(Exception, match=STOPPED):
            scorer.meet(row, parts, options)
        assert scorer.meet(row, parts)[0] == pytest.approx([row["probability"]], abs=1e-5)


def test_a_late_answer_and_one_whose_caller_has_gone_are_given_up(shop, models, tmp_path):
    """In a real service: 504 for the one, nobody to tell in the other, and both calls stopped."""
    with alone(shop, tmp_path / "log", models, timeout=3, max_concurrency=1) as service:

        def told(name):
            lines = service.client.get("/metrics").text.splitlines()
            return sum(float(line.split()[-1]) for line in lines if re.match(name, line))

        late = service.post("/rank", {"user_id": "c1", "item_ids": MANY})
        assert (late.status_code, late.json()) == (504, {"error": "gateway timeout", "detail": []})
        assert int(late.headers["retry-after"]) >= 1
        until(lambda: told("tandem_calls_stopped_total") == 1)
        pairs = [{"user_id": "c1", "item_id": item} for item in MANY]
        body = json.dumps({"pairs": pairs}).encode()
        kind = "content-type: application/json"
        head = f"POST /predict HTTP/1.1\r\nhost: x\r\n{kind}\r\ncontent-length: {len(body)}\r\n\r\n"
        url = service.client.base_url
        with socket.create_connection((url.host, url.port)) as caller:
            caller.sendall(head.encode() + body)
            until(lambda: told(r'tandem_candidates_count\{endpoint="/predict"') == 1)
        until(lambda: told("tandem_calls_stopped_total") == 2)
        until(lambda: told(r'.*endpoint="/predict",http_response_code="499"') > 0)
        answer = service.post("/rank", {"user_id": "c1", "item_ids": MANY[:3]})
        assert answer.status_code == 200, "the one place that there is for requests is free again"
        assert "Traceback" not in service.log.read_text()
