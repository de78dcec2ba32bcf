"""The KFP face of the align step."""

from typing import Optional

from kfp import dsl

from components.image import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def align(
    training_set: dsl.Input[dsl.Dataset],
    prompts: dsl.Input[dsl.Dataset],
    embeddings: dsl.Input[list[dsl.Artifact]],
    backbone: str,
    model: dict,
    settings: dict,
    seed: int,
    champion: dsl.Input[dsl.Model],
    checkpoint: dsl.Output[dsl.Model],
    pretrained: Optional[dsl.Input[dsl.Model]] = None,  # noqa: UP045  (kfp knows this spelling only)
) -> None:
    """Align a fresh collaborative model with the language model's view of the same impressions (CTRL, stage 1).

    Args:
        training_set: The retrieve step's folder.
        prompts: The prompt_transform step's folder.
        embeddings: The encode step's folders, one for each shard.
        backbone: Name of the collaborative backbone.
        model: Values of BackboneConfig.
        settings: Values of AlignSettings.
        seed: Seed of initialisation and shuffling.
        champion: The retrieve step's checkpoints of the champion, for a warm start.
        checkpoint: The aligned collaborative model and its alignment health report.
        pretrained: The pre-trained model to start from; or none.
    """
    from pathlib import Path

    from components.run import step

    shards = [Path(part.path) for part in embeddings]
    rows, texts, output = Path(training_set.path), Path(prompts.path), Path(checkpoint.path)
    begin = Path(pretrained.path) if pretrained else None
    with step("align", output, [rows, texts, *shards, *([begin] if begin else [])]):
        from components.align.settings import AlignSettings
        from components.align.step import align
        from components.models.config import BackboneConfig

        arguments = backbone, BackboneConfig(**model), AlignSettings(**settings), int(seed), begin, Path(champion.path)
        align(rows, texts, shards, output, *arguments)
