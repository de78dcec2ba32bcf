"""The KFP face of the finetune step."""

from typing import Optional

from kfp import dsl

from components.image import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def finetune(
    training_set: dsl.Input[dsl.Dataset],
    arm: str,
    backbone: str,
    model: dict,
    settings: dict,
    seed: int,
    trained: dsl.Output[dsl.Model],
    checkpoint: Optional[dsl.Input[dsl.Model]] = None,  # noqa: UP045  (kfp knows this spelling only)
    prompts: Optional[dsl.Input[dsl.Dataset]] = None,  # noqa: UP045
    embeddings: Optional[dsl.Input[list[dsl.Artifact]]] = None,  # noqa: UP045
    champion: Optional[dsl.Input[dsl.Model]] = None,  # noqa: UP045
    strategy: str = "id",
) -> None:
    """Train the collaborative model on clicks, from an aligned checkpoint or from scratch.

    Args:
        training_set: The retrieve step's folder.
        arm: Name of the arm in the comparison.
        backbone: Name of the collaborative backbone.
        model: Values of BackboneConfig.
        settings: Values of FinetuneSettings.
        seed: Seed of initialisation and shuffling.
        trained: The model (safetensors and JSON) and its training curve.
        checkpoint: The aligned model to start from; none for the collaborative-only arm.
        prompts: The prompt_transform step's folder, for mapped rows and alignment beside the clicks; or none.
        embeddings: The encode step's folders; or none.
        champion: The retrieve step's checkpoints of the champion, for a warm start without an aligned model; or none.
        strategy: id: the collaborative model scores; plm, both: the language model does, alone or beside it.
    """
    from pathlib import Path

    from components.run import step

    rows, output = Path(training_set.path), Path(trained.path)
    start, said, best = (Path(given.path) if given else None for given in (checkpoint, prompts, champion))
    shards = [Path(part.path) for part in embeddings or []]
    with step(f"finetune-{arm}", output, [path for path in (rows, start, said, *shards) if path]):
        from components.finetune.settings import FinetuneSettings
        from components.finetune.step import finetune
        from components.models.config import BackboneConfig
        from components.training.strategies import checked

        arguments = arm, backbone, BackboneConfig(**model), FinetuneSettings(**settings), int(seed), start
        finetune(rows, output, *arguments, said, shards, best, checked(strategy))
