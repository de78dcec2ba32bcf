"""The KFP face of the retrieve step."""

from kfp import dsl

from components.image import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def retrieve(dataset: str, validated: dsl.Input[dsl.Dataset], training_set: dsl.Output[dsl.Dataset]) -> None:
    """Join the impressions with user and item features as of their time, and split them.

    Args:
        dataset: Name of an embedded data set, or path or URI of a DatasetSpec.
        validated: The validate step's tables.
        training_set: Folder with train, valid and test (Parquet), vocabulary, spec and hashes.
    """
    from pathlib import Path

    from components.run import step

    tables, output = Path(validated.path), Path(training_set.path)
    with step("retrieve", output, [tables]):
        from components.retrieve.step import retrieve

        training_set.metadata.update(retrieve(dataset, tables, output))
