"""The KFP face of the encode step."""

from kfp import dsl

from components.image import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def encode(
    prompts: dsl.Input[dsl.Dataset],
    settings: dict,
    shard: int,
    shards: int,
    embeddings: dsl.Output[dsl.Artifact],
    cache: dsl.Output[dsl.Metrics],
) -> None:
    """Encode one shard of the texts with the pre-trained language model, each text once.

    Args:
        prompts: The prompt_transform step's folder.
        settings: Values of EncodeSettings.
        shard: Which shard, from 0.
        shards: How many shards there are.
        embeddings: Folder with the shard's embeddings (safetensors).
        cache: Hits and misses of the encoding cache, and the seconds it saved.
    """
    from pathlib import Path

    from components.run import step

    texts, output = Path(prompts.path), Path(embeddings.path)
    with step("encode", output, [texts]):
        from components.encode.settings import EncodeSettings
        from components.encode.step import encode

        meta = encode(texts, output, EncodeSettings(**settings), int(shard), int(shards))
        for name, value in meta["cache"].items():
            cache.log_metric(name, value)
