"""The KFP face of the validate step."""

from kfp import dsl

from components.image import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def validate(dataset: str, settings: dict, validated: dsl.Output[dsl.Dataset], data_docs: dsl.Output[dsl.HTML]) -> None:
    """Check the sources against the DatasetSpec and write them as validated Parquet.

    Args:
        dataset: Name of an embedded data set, or path or URI of a DatasetSpec.
        settings: Values of ValidateSettings.
        validated: Folder with impressions, users, items (Parquet) and summary.json.
        data_docs: Folder with the Data Docs of Great Expectations.
    """
    from pathlib import Path

    from components.run import step

    output = Path(validated.path)
    with step("validate", output):
        from components.registry.validations import previous_validation
        from components.validate.settings import ValidateSettings
        from components.validate.step import validate

        before = previous_validation(dataset)
        validate(dataset, output, Path(data_docs.path), ValidateSettings(**settings), before)
