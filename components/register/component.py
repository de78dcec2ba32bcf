"""The KFP face of the register step."""

from typing import NamedTuple, Optional

from kfp import dsl

from components.image import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def register(
    dataset: str,
    run_id: str,
    method: str,
    backbone: str,
    seed: int,
    settings: dict,
    validated: dsl.Input[dsl.Dataset],
    data_docs: dsl.Input[dsl.HTML],
    training_set: dsl.Input[dsl.Dataset],
    evaluation: dsl.Input[dsl.Artifact],
    collaborative: dsl.Input[dsl.Model],
    bundle: dsl.Output[dsl.Model],
    report: dsl.Output[dsl.HTML],
    gate_card: dsl.Output[dsl.Markdown],
    aligned: Optional[dsl.Input[dsl.Model]] = None,  # noqa: UP045  (kfp knows this spelling only)
    prompts: Optional[dsl.Input[dsl.Dataset]] = None,  # noqa: UP045
    checkpoint: Optional[dsl.Input[dsl.Model]] = None,  # noqa: UP045
) -> NamedTuple("Registered", [("verdict", str), ("reasons", list), ("model_version", str)]):  # type: ignore[valid-type]
    """Judge the candidate, export it without the language model, and register it if it passes.

    Args:
        dataset: Name of an embedded data set, or path or URI of a DatasetSpec.
        run_id: Name of the run; the pipeline's own if empty.
        method: Name of the candidate's arm.
        backbone: Name of the collaborative backbone.
        seed: Seed of the run.
        settings: Values of GateSettings.
        validated: The validate step's folder.
        data_docs: The validate step's Data Docs, to which the report links.
        training_set: The retrieve step's folder.
        evaluation: The evaluate step's folder.
        collaborative: The collaborative-only arm's model.
        bundle: What is served: the ONNX model, its vocabulary, golden rows, proof and manifest.
        report: The run in one HTML file.
        gate_card: Why the candidate was promoted, kept back or rejected.
        aligned: The aligned arm's model, where there is one.
        prompts: The prompt_transform step's folder.
        checkpoint: The align step's folder.
    """
    from pathlib import Path

    from components.run import step

    with step("register"):
        from components.register.settings import GateSettings, RunInfo
        from components.register.step import register

        run = RunInfo(
            run_id=run_id, dataset=dataset, method=method, backbone=backbone, seed=int(seed), data_docs=data_docs.uri
        )
        given = {"validation": validated, "collaborative": collaborative, "aligned": aligned}
        given |= {"prompts": prompts, "alignment": checkpoint}
        pieces = {name: Path(artefact.path) for name, artefact in given.items() if artefact}
        inputs = Path(training_set.path), Path(evaluation.path), Path((aligned or collaborative).path)
        outputs = Path(bundle.path), Path(report.path), Path(gate_card.path)
        result = register(*inputs, *outputs, GateSettings(**settings), run, pieces)
    return result.verdict, result.reasons, result.model_version or ""
