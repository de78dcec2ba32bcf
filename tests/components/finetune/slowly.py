"""The finetune step with a rest after each training step, so that a test finds the time to kill one of its processes.

`python -m tests.components.finetune.slowly TRAINING_SET OUTPUT PROCESSES SETTINGS CONFIG`
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from components.finetune.settings import FinetuneSettings
from components.finetune.step import finetune
from components.models.config import BackboneConfig
from components.training import loop
from components.training.launch import train_together

REST = 0.05


def slowly(training_set: Path, output: Path, model: BackboneConfig, settings: FinetuneSettings) -> None:
    step = loop._Training._step

    def rested(*given):
        time.sleep(REST)
        step(*given)

    loop._Training._step = rested
    finetune(training_set, output, "collaborative", "autoint", model, settings, 1, None)


if __name__ == "__main__":
    given = dict(zip(("training_set", "output"), map(Path, sys.argv[1:3]), strict=True))
    given["settings"] = FinetuneSettings.model_validate_json(sys.argv[4])
    given["model"] = BackboneConfig.model_validate_json(sys.argv[5])
    if int(sys.argv[3]) == 1:
        slowly(**given)
    else:
        from tests.components.finetune.slowly import slowly as in_a_module

        train_together(in_a_module, int(sys.argv[3]), 1, **given)
