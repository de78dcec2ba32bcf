"""FLIP's three ways to a click from a pre-trained pair: the collaborative half, the PLM, or both (fine-tuning)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from components.dataset.errors import UserError
from components.models.base import CollaborativeModel
from components.models.tuning import learnt_settings, save_learnt
from components.run import read_json
from components.training.checkpoints import load_model
from components.training.group import Group
from components.training.learner import Learner
from components.training.reader import FrozenReader, LiveReader, open_reader, row_vectors
from components.training.settings import LoopSettings
from components.training.tokens import TokenRows

#: id: the collaborative model, the only one that can be served; plm: the PLM alone; both: a learnt mixture.
Strategy = Literal["id", "plm", "both"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
ID, PLM, BOTH = STRATEGIES
#: Beside a model whose score needs the PLM: which strategy it is, and the weights that are no part of either half.
ABOUT, WEIGHTS = "strategy.json", "strategy.safetensors"


class Fusion(nn.Module):
    """The sigmoid's argument alpha * z_ID + (1 - alpha) * z_PLM, alpha learnt from 0 on."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(()))

    def forward(self, of_id: Tensor, of_plm: Tensor) -> Tensor:
        """The mixed logits [n]."""
        return self.alpha * of_id + (1 - self.alpha) * of_plm


class TextLearner(Learner):
    """A click model that scores with the PLM: a linear output on its vectors, alone or mixed with the table's.

    Args:
        model: The collaborative model; of no part in the strategy plm.
        reader: The PLM over the prompts' tokens.
        texts: Which texts each row reads.
        strategy: plm or both.
    """

    def __init__(
        self, model: CollaborativeModel, reader: FrozenReader | LiveReader, texts: TokenRows, strategy: Strategy
    ) -> None:
        super().__init__(model)
        self.reader, self.rows_of, self.strategy = reader, texts, strategy
        self.output = nn.Linear(reader.dim * len(texts.columns), 1)
        self.fusion = Fusion() if strategy == BOTH else None

    def scores(self, ids: Tensor, part: str, rows: Tensor) -> dict[str, Tensor]:
        """Logits [n] of ids [n, W] that lie at `rows` of a part: under the strategy's name, and those of its halves."""
        columns = self.rows_of.numbers(part, rows).unbind(1)
        read = [row_vectors(self.reader, column) for column in columns]
        text: Tensor = self.output(torch.cat(read, 1)).squeeze(-1)
        if self.fusion is None:
            return {PLM: text}
        of_id: Tensor = self.model(ids)
        return {BOTH: self.fusion(of_id, text), ID: of_id, PLM: text}

    def losses(
        self,
        ids: Tensor,
        labels: Tensor,
        rows: Tensor,
        settings: LoopSettings,
        generator: torch.Generator,  # noqa: ARG002  (nothing is hidden)
        group: Group,  # noqa: ARG002
        whole: int,
    ) -> tuple[Tensor, Tensor]:
        """The strategy's cross-entropy, and what is minimised: its parts' cross-entropies too, and the L2 penalty."""
        share = len(labels) / whole
        found = self.scores(ids, "train", rows)
        every = {name: binary_cross_entropy_with_logits(logits, labels) * share for name, logits in found.items()}
        objective = torch.stack(list(every.values())).sum()
        if self.strategy == BOTH and settings.embedding_l2 > 0:
            embedded = self.model.embedding(ids)
            objective = objective + settings.embedding_l2 * embedded.square().sum((1, 2)).mean() * share
        return every[self.strategy], objective

    def weight_groups(self, settings: LoopSettings) -> list[dict[str, Any]]:
        """As a learner's; the PLM's weights have a rate of their own."""
        of_plm = list(self.reader.parameters()) if isinstance(self.reader, LiveReader) else []
        groups = self.groups_without(of_plm, settings)
        tuned = [weight for weight in of_plm if weight.requires_grad]
        return [*groups, *([{"params": tuned, "lr": settings.plm_learning_rate}] if tuned else [])]

    def predict(
        self, part: str, ids: npt.NDArray[np.integer], batch_size: int = 8192, first: int = 0
    ) -> npt.NDArray[np.float32]:
        """Click probabilities [n] of the rows of a part from `first` on, given as ids [n, W], in eval mode."""
        device = next(self.model.parameters()).device
        self.eval()
        found = []
        with torch.no_grad():
            for start in range(0, len(ids), batch_size):
                batch = torch.from_numpy(np.ascontiguousarray(ids[start : start + batch_size])).to(device)
                rows = torch.arange(first + start, first + start + len(batch))
                found.append(torch.sigmoid(self.scores(batch, part, rows)[self.strategy]).cpu().numpy())
        return np.concatenate(found) if found else np.empty(0, np.float32)

    def save(self, folder: Path) -> None:
        """Write beside the collaborative half what the strategy's score needs besides."""
        model = self.reader.model if isinstance(self.reader, LiveReader) else None
        save_learnt(folder, model, self.reader.settings, self.reader.digest)
        own = {"output": self.output, **({"fusion": self.fusion} if self.fusion else {})}
        state = {f"{part}.{name}": value for part, of in own.items() for name, value in of.state_dict().items()}
        save_file({name: value.cpu().contiguous() for name, value in state.items()}, folder / WEIGHTS)
        about: dict[str, Any] = {"strategy": self.strategy}
        about |= {} if self.fusion is None else {"alpha": self.fusion.alpha.item()}
        (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def checked(name: str) -> Strategy:
    """The strategy of this name.

    Raises:
        UserError: there is none.
    """
    for known in STRATEGIES:
        if known == name:
            return known
    raise UserError(f"strategy '{name}' is unknown; write one of {', '.join(STRATEGIES)}")


def strategy_of(checkpoint: Path) -> Strategy:
    """What the score of a trained arm needs: the collaborative half alone, or the PLM too."""
    path = checkpoint / ABOUT
    return checked(read_json(path)["strategy"]) if path.is_file() else ID


def text_learner(
    model: CollaborativeModel,
    strategy: Strategy,
    checkpoint: Path,
    prompts: Path,
    parts: tuple[str, ...],
    device: torch.device,
    megabytes: int,
) -> TextLearner:
    """A click model over the PLM whose weights lie beside a checkpoint.

    Args:
        model: The collaborative half.
        strategy: plm or both.
        checkpoint: Of the reconstruct step, or of a trained arm.
        prompts: The prompt_transform step's folder.
        parts: Parts whose rows are read.
        device: Where both lie.
        megabytes: What a frozen PLM's states may take that are kept.

    Raises:
        UserError: no PLM lies beside the checkpoint, or its texts or weights cannot be had.
    """
    settings = learnt_settings(checkpoint)
    texts = TokenRows.read(prompts, settings.plm, dict.fromkeys(parts))
    reader = open_reader(texts.tokens, settings, device, megabytes, start=checkpoint)
    return TextLearner(model, reader, texts, strategy).to(device)


def load_text_learner(checkpoint: Path, prompts: Path, part: str, device: torch.device) -> TextLearner:
    """A trained arm whose score needs the PLM.

    Raises:
        UserError: it is none, or the PLM or its texts cannot be had.
    """
    strategy = strategy_of(checkpoint)
    if strategy == ID:
        raise UserError(f"{checkpoint}: scores without a PLM")
    learner = text_learner(load_model(checkpoint), strategy, checkpoint, prompts, (part,), device, 0)
    learner.load_state_dict(load_file(checkpoint / WEIGHTS), strict=False)
    return learner
