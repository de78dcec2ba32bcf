"""The KFP face of the part of the prompt_transform step that says new users and items in words."""

from typing import NamedTuple

from kfp import dsl

from components.image import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def newcomers(
    dataset: str,
    end: str,
    encode: dict,
    validated: dsl.Input[dsl.Dataset],
    prompts: dsl.Output[dsl.Dataset],
    found: dsl.Output[dsl.Artifact],
) -> NamedTuple("Newcomers", [("Output", int), ("encode", dict)]):  # type: ignore[valid-type]
    """Find users and items that the champion has no row for, and say them in the words that it has learnt.

    Args:
        dataset: Name of an embedded data set, or path or URI of a DatasetSpec.
        end: Moment (ISO 8601) as of which values are taken; now if empty or in the future.
        encode: Values of EncodeSettings.
        validated: The validate step's tables.
        prompts: Folder with their texts, for the encode step.
        found: Folder with the champion's version, and their keys.

    Returns:
        How many there are, and the settings of the encode step: those given, with the PLM that the champion has learnt
        from.
    """
    from pathlib import Path

    from components.run import step

    with step("newcomers"):
        from components.dataset.window import parsed
        from components.prompt_transform.newcomers import newcomers

        outputs = Path(prompts.path), Path(found.path)
        result = newcomers(dataset, Path(validated.path), parsed(end), *outputs)
    plm = {name: value for name, value in result["plm"].items() if value is not None}
    return sum(result["new"].values()), {**encode, "plm": plm}
