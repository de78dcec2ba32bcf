"""The KFP face of the part of the register step that adds rows to a version."""

from kfp import dsl

from components.image import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def add_rows(
    dataset: str,
    newcomers: dsl.Input[dsl.Artifact],
    embeddings: dsl.Input[dsl.Artifact],
    report: dsl.Output[dsl.Artifact],
) -> None:
    """Give new users and items their rows in a new version of the champion, without training.

    Args:
        dataset: Name of an embedded data set, or path or URI of a DatasetSpec.
        newcomers: Who they are, as the newcomers step has found.
        embeddings: The encode step's folder, of their texts.
        report: JSON with the outcome, the version, the one that it has grown from, and rows by side.
    """
    from pathlib import Path

    from components.run import step

    with step("add_rows"):
        from components.register.rows import add_rows

        result = add_rows(dataset, Path(newcomers.path), [Path(embeddings.path)], Path(report.path))
        report.metadata.update(result)
