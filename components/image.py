"""The image in which the pipeline's steps run on a cluster."""

import os

#: TANDEM_TRAIN_IMAGE names the pushed image, pinned by digest; the default is what `make images` builds.
TRAIN_IMAGE = os.environ.get("TANDEM_TRAIN_IMAGE") or "tandem-train-python:0.1.0"
