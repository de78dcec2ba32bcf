"""The components of the pipelines under one name, so that a pipeline's parameters may bear the steps' names."""

from components.align.component import align
from components.deploy.component import deploy
from components.encode.component import encode
from components.evaluate.component import evaluate
from components.finetune.component import finetune
from components.materialize.component import materialize
from components.notify.component import notify
from components.pretrain.component import pretrain
from components.prompt_transform.component import prompt_transform
from components.prompt_transform.newcomers_component import newcomers
from components.reconstruct.component import reconstruct
from components.register.component import register
from components.register.rows_component import add_rows
from components.retrieve.component import retrieve
from components.validate.component import validate

__all__ = [
    "add_rows",
    "align",
    "deploy",
    "encode",
    "evaluate",
    "finetune",
    "materialize",
    "newcomers",
    "notify",
    "pretrain",
    "prompt_transform",
    "reconstruct",
    "register",
    "retrieve",
    "validate",
]
