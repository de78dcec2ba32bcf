"""The KFP face of the evaluate step."""

from typing import Optional

from kfp import dsl

from components.image import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def evaluate(
    dataset: str,
    training_set: dsl.Input[dsl.Dataset],
    collaborative: dsl.Input[dsl.Model],
    arm: str,
    settings: dict,
    evaluation: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    roc: dsl.Output[dsl.ClassificationMetrics],
    aligned: Optional[dsl.Input[dsl.Model]] = None,  # noqa: UP045  (kfp knows this spelling only)
    plm: Optional[dsl.Input[dsl.Model]] = None,  # noqa: UP045
    both: Optional[dsl.Input[dsl.Model]] = None,  # noqa: UP045
    prompts: Optional[dsl.Input[dsl.Dataset]] = None,  # noqa: UP045
    embeddings: Optional[dsl.Input[list[dsl.Artifact]]] = None,  # noqa: UP045
) -> None:
    """Score every arm, and the registered champion, on the same test rows.

    Args:
        dataset: Name of an embedded data set, or path or URI of a DatasetSpec.
        training_set: The retrieve step's folder.
        collaborative: The collaborative-only arm's model.
        arm: Name of the candidate's arm.
        settings: Values of EvaluateSettings.
        evaluation: Folder with metrics, scores, curves, lift and degradation.
        metrics: The candidate's AUC, log loss and so on.
        roc: The candidate's ROC curve.
        aligned: The aligned arm's model, where there is one.
        plm: The model of the language model alone, where it is reported.
        both: The model of both halves, where it is reported.
        prompts: The prompt_transform step's folder, for these two and for rows of new users and items; or none.
        embeddings: The encode step's folders, for rows of new users and items; or none.
    """
    from pathlib import Path

    from components.run import step

    given = {"collaborative": collaborative, arm: aligned, f"{arm}_plm": plm, f"{arm}_both": both}
    given |= {arm: collaborative} if arm == "collaborative" else {}
    arms = {name: Path(model.path) for name, model in given.items() if model}
    rows, output = Path(training_set.path), Path(evaluation.path)
    texts, shards = Path(prompts.path) if prompts else None, [Path(part.path) for part in embeddings or []]
    with step("evaluate", output, [rows, *arms.values()]):
        from components.evaluate.faces import log_metrics
        from components.evaluate.settings import EvaluateSettings
        from components.evaluate.step import evaluate
        from components.registry.client import champion_of

        with champion_of(dataset) as champion:
            results = evaluate(rows, arms, arm, output, EvaluateSettings(**settings), champion, texts, shards)
        log_metrics(results, metrics, roc)
