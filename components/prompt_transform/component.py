"""The KFP face of the prompt_transform step."""

from kfp import dsl

from components.image import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def prompt_transform(
    training_set: dsl.Input[dsl.Dataset], settings: dict, shards: int, prompts: dsl.Output[dsl.Dataset]
) -> list:
    """Say every user and item, or every impression, in words.

    Args:
        training_set: The retrieve step's folder.
        settings: Values of PromptSettings.
        shards: Number of parts in which the texts will be encoded.
        prompts: Folder with the unique texts, their value spans, the row-to-text indices and the report.

    Returns:
        The shard numbers 0 to shards - 1, over which the encode step fans out.
    """
    from pathlib import Path

    from components.run import step

    rows, output = Path(training_set.path), Path(prompts.path)
    with step("prompt_transform", output, [rows]):
        from components.prompt_transform.settings import PromptSettings
        from components.prompt_transform.step import prompt_transform

        prompt_transform(rows, output, PromptSettings(**settings))
    return list(range(int(shards)))
