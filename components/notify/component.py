"""The KFP face of the exit handler."""

from kfp import dsl

from components.image import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def notify(workflow: str, tasks: dict) -> None:
    """Tell the webhook how the run ended: with its gate card, or with the step that failed.

    Args:
        workflow: Name of the run's Argo Workflow.
        tasks: The step that each task of the pipeline is, by the task's name.
    """
    import os

    from components.run import step

    with step("notify"):
        from components.notify.step import notify

        notify(workflow, os.environ["TANDEM_NAMESPACE"], tasks)
