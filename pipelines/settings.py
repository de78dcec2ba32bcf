"""Every setting of a run in one validated object: the same names in YAML, on the command line and in the pipeline."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from components.align.settings import AlignSettings
from components.dataset.errors import UserError
from components.dataset.window import ALL, FORMS, check_window
from components.encode.settings import EncodeSettings
from components.evaluate.settings import EvaluateSettings
from components.finetune.settings import FinetuneSettings
from components.models.config import BackboneConfig
from components.pretrain.settings import PretrainSettings
from components.prompt_transform.settings import PromptSettings
from components.reconstruct.settings import ReconstructSettings
from components.register.settings import GateSettings
from components.validate.settings import ValidateSettings

COLLABORATIVE = "collaborative"
CTRL = "ctrl"
FLIP = "flip"
SRP4CTR = "srp4ctr"
SRP4CTR_CTRL = "srp4ctr+ctrl"
#: The backbone that has rows for items' texts.
AUTOINT_HISTORY = "autoint_history"
#: Methods that pre-train a sequence encoder.
PRETRAINED = (SRP4CTR, SRP4CTR_CTRL)
#: Methods that align with encoded texts.
ALIGNED = (CTRL, SRP4CTR_CTRL)
Method = Literal["collaborative", "ctrl", "flip", "srp4ctr", "srp4ctr+ctrl"]
#: How a click is told after FLIP's pre-training: by the collaborative half, by the PLM, or by both.
Strategy = Literal["id", "plm", "both"]
ID: Strategy = "id"
#: What of a PLM's settings decides the vectors of its texts, beside its files.
DECIDE_VECTORS = {"name", "revision", "pooling", "layers", "random_weights"}
Backbone = Literal[
    "autoint",
    "autoint_history",
    "bst",
    "dcn",
    "dcnv2",
    "deepfm",
    "din",
    "fibinet",
    "mean_history",
    "pnn",
    "srp4ctr",
    "wide_deep",
    "xdeepfm",
]
BACKBONES: tuple[str, ...] = get_args(Backbone)


def _window(text: str) -> str:
    try:
        return check_window(text)
    except UserError as error:
        raise ValueError(str(error)) from None


class RunSettings(BaseModel):
    """What one training run does; each field is a parameter of the pipeline."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    dataset: str = Field(default="sample", min_length=1, description="Embedded data set or path of a DatasetSpec.")
    method: Method = Field(default="ctrl", description="What it learns from before clicks.")
    backbone: Backbone = Field(default="autoint", description="The collaborative model.")
    seed: int = Field(default=1, ge=0, lt=2**31, description="Seed of initialisation, shuffling and sampling.")
    run_id: str = Field(default="", description="Name of the run in the registry; Kubeflow's own if empty.")
    strategies: tuple[Strategy, ...] = Field(
        default=(ID,), min_length=1, description="flip: arms trained; id is the candidate, plm and both are reported."
    )
    shards: int = Field(default=1, ge=1, le=100, description="Parts in which the texts are encoded.")
    window: Annotated[str, AfterValidator(_window)] = Field(
        default=ALL, description=f"Which impressions it learns from: {FORMS}."
    )
    warm_start: bool = Field(
        default=False, description="Begin with the champion's weights and grow its vocabulary; anew without a champion."
    )
    model: BackboneConfig = BackboneConfig()
    # pydantic's own BaseModel.validate forbids the plain name.
    checks: ValidateSettings = Field(default=ValidateSettings(), alias="validate")
    prompt: PromptSettings = PromptSettings()
    encode: EncodeSettings = EncodeSettings()
    align: AlignSettings = AlignSettings()
    pretrain: PretrainSettings = PretrainSettings()
    reconstruct: ReconstructSettings = ReconstructSettings()
    finetune: FinetuneSettings = FinetuneSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    gate: GateSettings = GateSettings()

    @model_validator(mode="before")
    @classmethod
    def _with_backbone(cls, content: Any) -> Any:
        """SRP4CTR is a backbone as well as a method, and the only one that it can pre-train."""
        if not isinstance(content, dict) or content.get("method") not in PRETRAINED:
            return content
        content = {"backbone": SRP4CTR, **content}
        if content["backbone"] != SRP4CTR:
            raise ValueError(
                f"method {content['method']} pre-trains a sequence encoder; write backbone {SRP4CTR}, or leave it out"
            )
        return content

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.warm_start and self.method in PRETRAINED:
            raise ValueError(
                f"warm_start: method {self.method} pre-trains its encoder anew each time; write warm_start: false, "
                "or method ctrl or collaborative"
            )
        return self

    @property
    def reads_texts(self) -> bool:
        """Whether clicks are learnt from texts too, without or after stage 1."""
        return self.finetune.reads_texts or self.model.text_rows > 0

    @model_validator(mode="after")
    def _check_strategies(self) -> RunSettings:
        if len(set(self.strategies)) < len(self.strategies):
            raise ValueError("strategies names one twice; write some of [id, plm, both]")
        if self.method != FLIP and self.strategies != (ID,):
            raise ValueError("strategies other than id need a PLM pre-trained by FLIP; write --method flip")
        if self.strategies != (ID,) and (self.finetune.hidden_users or self.finetune.hidden_items):
            raise ValueError(
                "strategies plm and both know no hidden ids; leave finetune.hidden_users and finetune.hidden_items at 0"
            )
        return self

    @model_validator(mode="after")
    def _check_texts(self) -> Self:
        """Refuse at once what a step could only refuse once all texts are encoded."""
        mode, aligns = self.align.plm_mode, self.method in ALIGNED
        if aligns and mode != "frozen":
            mine, theirs = (plm.model_dump(include=DECIDE_VECTORS) for plm in (self.align.plm, self.encode.plm))
            differing = ", ".join(sorted(name for name in mine if mine[name] != theirs[name]))
            if differing:
                raise ValueError(
                    f"align.plm_mode {mode} trains the PLM that the texts are encoded with, and align.plm is not "
                    f"encode.plm in {differing}; write them alike"
                )
            if self.finetune.auxiliary.weight > 0:
                raise ValueError(
                    f"finetune.auxiliary keeps an alignment with encoded texts up, and align.plm_mode {mode} aligns "
                    "with those of a PLM that has learnt on; write auxiliary.weight 0, or plm_mode frozen"
                )
        if self.model.text_rows and self.backbone != AUTOINT_HISTORY:
            raise ValueError(
                f"model.text_rows: backbone {self.backbone} has no rows for texts; "
                f"write backbone {AUTOINT_HISTORY}, or 0"
            )
        needs = {
            "finetune.map_rows": bool(self.finetune.map_rows),
            "model.text_rows": self.model.text_rows > 0,
            "align.liked_texts": aligns and self.align.liked_texts,
        }
        if self.prompt.granularity == "instance" and any(needs.values()):
            asking = ", ".join(name for name, asks in needs.items() if asks)
            raise ValueError(
                f"{asking}: a text of a whole impression is no user's or item's; write prompt.granularity entity"
            )
        return self

    def parameters(self) -> dict[str, Any]:
        """The pipeline's arguments: every field but method and strategies, which are the pipeline itself."""
        # kfp has no null: a setting that is None is left out, and None is its default.
        return self.model_dump(mode="json", by_alias=True, exclude={"method", "strategies"}, exclude_none=True)


def parse_settings(content: dict[str, Any], assignments: list[str]) -> RunSettings:
    """Settings from a mapping and `key=value` assignments such as 'align.temperature=0.1', the latter first in rank.

    Raises:
        UserError: an assignment has no '=', a key is unknown, or a value is impossible.
    """
    return validated(assigned(content, assignments))


def assigned(content: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """The mapping with `key=value` assignments carried out in it.

    Raises:
        UserError: an assignment has no '=', or its value is no YAML.
    """
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key:
            raise UserError(f"--set {assignment}: write key=value, such as --set align.temperature=0.1")
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserError(f"--set {assignment}: the value is not understood; quote it as YAML") from None
        _assign(content, key.split("."), parsed, assignment)
    return content


def validated(content: dict[str, Any]) -> RunSettings:
    """The mapping as settings.

    Raises:
        UserError: a key is unknown or a value is impossible.
    """
    try:
        return RunSettings.model_validate(content)
    except ValidationError as error:
        raise UserError("; ".join(_explain(problem) for problem in error.errors())) from None


def _assign(content: dict[str, Any], path: list[str], value: Any, assignment: str) -> None:
    *sections, last = path
    for section in sections:
        content = content.setdefault(section, {})
        if not isinstance(content, dict):
            raise UserError(f"--set {assignment}: '{section}' is a value, not a section")
    content[last] = value


def _explain(problem: Any) -> str:
    key, said = ".".join(str(part) for part in problem["loc"]), str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "value_error" and isinstance(problem["input"], dict):
        # Of settings that do not go together; which ones they are is said, and a dump of all says nothing more.
        return f"settings of {key}: {said}" if key else said
    if problem["type"] != "extra_forbidden":
        # Our own messages name the value already.
        found = "" if repr(problem["input"]) in said else f", not {problem['input']!r}"
        return f"setting '{key}': {said}{found}"
    section = RunSettings().model_dump(by_alias=True)
    for part in problem["loc"][:-1]:
        section = section[part]
    return f"unknown setting '{key}'; one of: {', '.join(sorted(section))}"
