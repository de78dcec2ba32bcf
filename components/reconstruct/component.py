"""The KFP face of the reconstruct step."""

from kfp import dsl

from components.image import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def reconstruct(
    training_set: dsl.Input[dsl.Dataset],
    prompts: dsl.Input[dsl.Dataset],
    backbone: str,
    model: dict,
    settings: dict,
    seed: int,
    champion: dsl.Input[dsl.Model],
    checkpoint: dsl.Output[dsl.Model],
) -> None:
    """Teach the collaborative and the language model to tell what is hidden of each other's view (FLIP, pre-training).

    Args:
        training_set: The retrieve step's folder.
        prompts: The prompt_transform step's folder.
        backbone: Name of the collaborative backbone.
        model: Values of BackboneConfig.
        settings: Values of ReconstructSettings.
        seed: Seed of initialisation, shuffling and masks.
        champion: The retrieve step's checkpoints of the champion, for a warm start.
        checkpoint: The collaborative model and its health report; beside it what was trained of the language model.
    """
    from pathlib import Path

    from components.run import step

    rows, texts, output = Path(training_set.path), Path(prompts.path), Path(checkpoint.path)
    with step("reconstruct", output, [rows, texts]):
        from components.models.config import BackboneConfig
        from components.reconstruct.settings import ReconstructSettings
        from components.reconstruct.step import reconstruct

        given = backbone, BackboneConfig(**model), ReconstructSettings(**settings), int(seed), Path(champion.path)
        reconstruct(rows, texts, output, *given)
