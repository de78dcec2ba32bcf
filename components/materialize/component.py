"""The KFP face of the materialize step."""

from kfp import dsl

from components.image import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def materialize(
    dataset: str,
    end: str,
    full: bool,
    validated: dsl.Input[dsl.Dataset],
    report: dsl.Output[dsl.Artifact],
    age: dsl.Output[dsl.Metrics],
) -> None:
    """Bring the online features up to the validated tables, and say how old the data are.

    Args:
        dataset: Name of an embedded data set, or path or URI of a DatasetSpec.
        end: Moment (ISO 8601) as of which values are taken; now if empty or in the future.
        full: Write every key, and not only those whose values have changed.
        validated: The validate step's tables.
        report: JSON with keys, keys written, newest event and age in seconds of each view.
        age: Seconds from the newest event of each dated view to now, by the view's name.
    """
    from pathlib import Path

    from components.run import step

    with step("materialize"):
        from components.materialize.step import materialize

        views = materialize(dataset, Path(validated.path), end, full, Path(report.path))
        report.metadata.update(views)
        age.metadata.update({name: view["age_seconds"] for name, view in views.items() if view["newest"]})
