"""The image in which the pipeline's steps run on a cluster."""

import os

#: Set TANDEM_TRAIN_IMAGE to the pushed image, pinned by digest, before compiling for a cluster.
TRAIN_IMAGE = os.environ.get("TANDEM_TRAIN_IMAGE") or "tandem-train-python:0.1.0"
