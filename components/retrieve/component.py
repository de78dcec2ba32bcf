"""The KFP face of the retrieve step."""

from kfp import dsl

from components.image import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def retrieve(
    dataset: str,
    window: str,
    warm_start: bool,
    validated: dsl.Input[dsl.Dataset],
    training_set: dsl.Output[dsl.Dataset],
    champion: dsl.Output[dsl.Model],
) -> None:
    """Join the impressions with user and item features as of their time, and split them.

    Args:
        dataset: Name of an embedded data set, or path or URI of a DatasetSpec.
        window: Which impressions: all, since-last-success, since-champion, or START/END.
        warm_start: Begin with the champion's weights, and grow its vocabulary.
        validated: The validate step's tables.
        training_set: Folder with train, valid and test (Parquet), vocabulary, spec and hashes.
        champion: The checkpoints that a warm start begins with; holds none where training starts anew.
    """
    from pathlib import Path

    from components.run import step

    tables, output = Path(validated.path), Path(training_set.path)
    with step("retrieve", output, [tables]):
        from components.registry.continuation import champion_checkpoints, window_of
        from components.retrieve.step import retrieve

        start = champion_checkpoints(dataset, warm_start, Path(champion.path))
        known = start / "vocabulary.json" if start else None
        training_set.metadata.update(retrieve(dataset, tables, output, window_of(dataset, window), known))
