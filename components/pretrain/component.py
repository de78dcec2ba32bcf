"""The KFP face of the pretrain step."""

from kfp import dsl

from components.image import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def pretrain(
    training_set: dsl.Input[dsl.Dataset],
    backbone: str,
    model: dict,
    settings: dict,
    seed: int,
    checkpoint: dsl.Output[dsl.Model],
) -> None:
    """Teach a fresh model's sequence encoder to tell what is hidden of users' histories (SRP4CTR).

    Args:
        training_set: The retrieve step's folder.
        backbone: Name of the collaborative backbone, one with a sequence encoder.
        model: Values of BackboneConfig.
        settings: Values of PretrainSettings.
        seed: Seed of initialisation, shuffling and masks.
        checkpoint: The model with its pre-trained encoder, and each attribute's loss on held-out users.
    """
    from pathlib import Path

    from components.run import step

    rows, output = Path(training_set.path), Path(checkpoint.path)
    with step("pretrain", output, [rows]):
        from components.models.config import BackboneConfig
        from components.pretrain.settings import PretrainSettings
        from components.pretrain.step import pretrain

        pretrain(rows, output, backbone, BackboneConfig(**model), PretrainSettings(**settings), int(seed))
