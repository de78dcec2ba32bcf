"""A warm start: what the champion knows it scores as the champion does; what only the new model knows is fresh."""

import pytest
import torch

from components.dataset.errors import UserError
from components.dataset.layout import PADDING
from components.models.registry import build_backbone, reads_history
from components.run import write_json
from components.training.checkpoints import save_model
from components.training.warm import begin_with, champion_checkpoint
from pipelines.settings import Backbone
from tests.components.models.making import SMALL, ids_of, layout_of, model_of

WIDTHS = (1, 3, 1, 1, 2)
SAID = {"name": "tandem-shop", "version": "3", "run_id": "r"}


def layouts(name):
    """The champion's input, and one whose fields each know three values more."""
    history = 4 if reads_history(name) else 0
    return layout_of(*WIDTHS, history=history), layout_of(*WIDTHS, history=history, sizes=12)


def saved(folder, model, arm="candidate"):
    folder.mkdir(exist_ok=True)
    write_json(folder / "champion.json", SAID)
    save_model(folder / arm, model, {})
    return folder / arm


def moved(ids, small, large):
    """The same values as ids of the larger layout."""
    found = torch.zeros_like(ids)
    for old, new in zip((*small.fields, *small.history), (*large.fields, *large.history), strict=True):
        mine = ids[:, old.start : old.stop]
        found[:, new.start : new.stop] = torch.where(mine == PADDING, PADDING, mine - old.offset + new.offset)
    return found


@pytest.mark.parametrize("name", Backbone.__args__)
def test_every_backbone_scores_what_the_champion_knew_as_the_champion_does(name, tmp_path):
    small, large = layouts(name)
    champion = model_of(name, small)
    fresh = build_backbone(name, large, SMALL)
    initial = {key: value.clone() for key, value in fresh.state_dict().items()}
    assert begin_with(fresh, saved(tmp_path / "kept", champion)) == SAID
    ids = ids_of(small)
    with torch.inference_mode():
        assert torch.equal(fresh.eval()(moved(ids, small, large)), champion(ids))
    field = large.fields[0]
    new = slice(field.offset + 9, field.offset + 12)
    assert torch.equal(fresh.embedding.table.weight[new], initial["embedding.table.weight"][new])


def test_without_growth_it_is_the_champion(tmp_path):
    champion = model_of("autoint")
    fresh = build_backbone("autoint", champion.layout, SMALL)
    begin_with(fresh, saved(tmp_path, champion))
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in champion.state_dict().items())


def test_another_backbone_or_configuration_is_refused(tmp_path):
    champion = saved(tmp_path, model_of("autoint"))
    for fresh in (
        build_backbone("dcn", layout_of(*WIDTHS, history=4), SMALL),
        build_backbone("autoint", layout_of(*WIDTHS, history=4), SMALL.model_copy(update={"embedding_dim": 8})),
    ):
        with pytest.raises(UserError, match=r"another backbone or configuration.*warm_start: false"):
            begin_with(fresh, champion)


def test_text_rows_do_not_start_warm(tmp_path):
    layout, config = layout_of(*WIDTHS, history=4), SMALL.model_copy(update={"text_rows": 2})
    champion = saved(tmp_path, build_backbone("autoint_history", layout, config))
    with pytest.raises(UserError, match=r"model\.text_rows: 0 or warm_start: false"):
        begin_with(build_backbone("autoint_history", layout, config), champion)


@pytest.mark.parametrize("widths", [(1, 3, 1, 1), (1, 3, 1, 1, 3)])
def test_other_fields_are_refused(widths, tmp_path):
    champion = saved(tmp_path, model_of("autoint"))
    with pytest.raises(UserError, match="not the champion's grown"):
        begin_with(build_backbone("autoint", layout_of(*widths, history=4), SMALL), champion)


def test_a_smaller_vocabulary_is_refused(tmp_path):
    champion = saved(tmp_path, model_of("autoint"))
    with pytest.raises(UserError, match="not the champion's grown"):
        begin_with(build_backbone("autoint", layout_of(*WIDTHS, history=4, sizes=8), SMALL), champion)


def test_each_arm_finds_its_own_checkpoint(tmp_path):
    saved(tmp_path / "both", model_of("autoint"))
    saved(tmp_path / "both", model_of("autoint"), "collaborative")
    saved(tmp_path / "alone", model_of("autoint"), "collaborative")
    assert champion_checkpoint(tmp_path / "both", "ctrl") == tmp_path / "both" / "candidate"
    assert champion_checkpoint(tmp_path / "both", "collaborative") == tmp_path / "both" / "collaborative"
    assert champion_checkpoint(tmp_path / "alone", "ctrl") == tmp_path / "alone" / "collaborative"


def test_without_a_champion_training_starts_anew(tmp_path):
    write_json(tmp_path / "champion.json", {})
    assert champion_checkpoint(tmp_path, "ctrl") is None
    assert champion_checkpoint(None, "ctrl") is None
