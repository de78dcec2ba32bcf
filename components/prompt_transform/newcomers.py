"""Users and items that came after training: who they are, and their texts by the words that the model has learnt."""

from __future__ import annotations

import logging
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.dataset.bundle import Bundle
from components.dataset.catalog import load_spec
from components.dataset.errors import UserError
from components.dataset.prompts import TEXT_SCHEMA, write_prompt_set
from components.dataset.spec import ITEM_KEY, USER_KEY, DatasetSpec, Kind
from components.dataset.vocabulary import Vocabulary
from components.prompt_transform.collect import Collected, Collector
from components.prompt_transform.lengths import Tokens
from components.prompt_transform.render import Renderer
from components.prompt_transform.settings import PromptSettings
from components.prompt_transform.step import prompt_hash
from components.registry.client import Registered, champion, fetch
from components.registry.rows import FOUND, KEYS, fetch_checkpoint, refuse_without_maps
from components.run import aside, write_json
from components.training.growth import NewRows

log = logging.getLogger("tandem.prompt_transform")

SIDE_KEYS = {"user": USER_KEY, "item": ITEM_KEY}


def newcomers(dataset: str, validated: Path, end: datetime | None, prompts: Path, output: Path) -> dict[str, Any]:
    """Find the users and items that the feature store has and the champion has no row for, and say them in words.

    Args:
        dataset: Name of an embedded data set, or path of a DatasetSpec.
        validated: The validate step's tables.
        end: Moment as of which their values are taken; now if None or later.
        prompts: Folder for their texts, each once, as the encode step reads them.
        output: Folder for FOUND (the champion's name and version, and how many there are by side) and KEYS (side, key
            and number of the text).

    Returns:
        What FOUND says, and as `plm` the PlmSpec that the texts are to be encoded with.

    Raises:
        UserError: there is no champion, it has learnt no map of rows, or it was trained on other words.
    """
    from feature_repo.materialise import latest_profiles

    spec, version = load_spec(dataset), champion(dataset)
    if version is None:
        raise UserError(f"{spec.name} has no champion that rows could be added to; write tandem run first")
    vocabulary, maps = _opened(version)
    renderer = _renderer(spec, version, maps)
    sides: dict[str, Collected] = {}
    keys = []
    for side in maps.sides:
        known = latest_profiles(spec, validated, side, end)
        if known is None:
            continue
        unknown = without_known(known, vocabulary, spec, side)
        if unknown.num_rows:
            collector = Collector(side)
            collector.add(side, renderer.entities(side, unknown))
            sides[side] = collector.finish(sum(other.table.num_rows for other in sides.values()))
            named = {"side": pa.repeat(side, len(unknown)), "key": unknown[SIDE_KEYS[side]]}
            keys.append(pa.table({**named, "text_id": pa.array(sides[side].index[side], pa.int32())}))
    texts = pa.concat_tables([TEXT_SCHEMA.empty_table(), *(side.table for side in sides.values())])
    index = {side: {f"{side}_text": found.index[side]} for side, found in sides.items()}
    meta = {"settings": renderer.settings.model_dump(mode="json"), "prompt_hash": maps.about["prompt_hash"]}
    write_prompt_set(prompts, texts, index, {"texts": {side: len(one.table) for side, one in sides.items()}}, meta)
    new = {side: len(sides[side].index[side]) if side in sides else 0 for side in SIDE_KEYS}
    found = {"name": version.name, "version": version.version, "new": new}
    _write(output, found, keys)
    log.info("%s version %s: %d users and %d items are new", version.name, version.version, new["user"], new["item"])
    return {**found, "plm": maps.about["plm"]}


def without_known(entities: pa.Table, vocabulary: Vocabulary, spec: DatasetSpec, side: str) -> pa.Table:
    """The users or items whose keys the model does not know."""
    (name,) = [field.name for field in spec.model_fields_of(side) if field.kind is Kind.ID]
    known = pa.array(vocabulary.field(name).values, pa.string())
    return entities.filter(pc.invert(pc.is_in(entities[SIDE_KEYS[side]], known)))


def _opened(version: Registered) -> tuple[Vocabulary, NewRows]:
    """What a version knows, and its maps."""
    with TemporaryDirectory(prefix="tandem-newcomers-") as folder:
        bundle = Bundle.open(fetch(version, Path(folder, "bundle")))
        refuse_without_maps(version, bundle)
        return bundle.vocabulary, NewRows.load(fetch_checkpoint(version, bundle, Path(folder, "checkpoint")))


def _renderer(spec: DatasetSpec, version: Registered, maps: NewRows) -> Renderer:
    """Says users and items as they were said in the version's training.

    Raises:
        UserError: the DatasetSpec, or the code, would say them otherwise.
    """
    if not maps.about.get("prompt") or not maps.about.get("plm"):
        raise UserError(f"{version.name} version {version.version} does not say how its texts were made; train anew")
    settings = PromptSettings.model_validate(maps.about["prompt"])
    now, then = prompt_hash(spec, settings), maps.about["prompt_hash"]
    if now != then:
        raise UserError(
            f"{version.name} version {version.version} was trained on other words than '{spec.name}' gives now (prompt "
            f"{then[:12]}, now {now[:12]}): a map of those texts cannot read these; train anew, or say fields, codes "
            "and prompt as they were"
        )
    return Renderer(spec, settings, Tokens.of(settings.plm) if settings.plm else None)


def _write(output: Path, found: dict[str, Any], keys: list[pa.Table]) -> None:
    schema = pa.schema([("side", pa.string()), ("key", pa.string()), ("text_id", pa.int32())])
    with aside(output) as draft:
        draft.mkdir()
        write_json(draft / FOUND, found)
        pq.write_table(pa.concat_tables([schema.empty_table(), *(table.cast(schema) for table in keys)]), draft / KEYS)
