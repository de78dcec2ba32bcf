"""The KFP face of the deploy step."""

from kfp import dsl

from components.image import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def deploy(
    dataset: str,
    validated: dsl.Input[dsl.Dataset],
    bundle: dsl.Input[dsl.Model],
    verdict: str,
    deployment: dsl.Output[dsl.Artifact],
) -> None:
    """Bring the online features up to date and, if the candidate was promoted, move the service to it.

    Args:
        dataset: Name of an embedded data set, or path or URI of a DatasetSpec.
        validated: The validate step's tables.
        bundle: The register step's bundle.
        verdict: promoted, kept or rejected.
        deployment: What was deployed, or why nothing was.
    """
    from pathlib import Path

    from components.run import step

    with step("deploy"):
        from components.deploy.step import deploy

        deploy(Path(bundle.path), Path(validated.path), dataset, verdict, Path(deployment.path))
