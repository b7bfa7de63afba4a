"""What every backbone offers: two towers with the same attach points, joined in one embedding space."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from petlbench.errors import PetlbenchError


class BackboneError(PetlbenchError):
    """A backbone cannot be built, or its weights do not fit; nothing is ever loaded in part."""


@dataclass(frozen=True)
class Tokens:
    """A batch of tokenised captions.

    Attributes:
        ids: (B, L) int64 token ids, padded at the end.
        mask: (B, L) bool, True on real tokens (start and end tokens included).
    """

    ids: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return self.ids.shape[0]

    def __getitem__(self, rows: Any) -> Tokens:
        return Tokens(self.ids[rows], self.mask[rows])

    def to(self, device: torch.device | str) -> Tokens:
        """The same tokens on another device."""
        return Tokens(self.ids.to(device, non_blocking=True), self.mask.to(device, non_blocking=True))

    def trimmed(self) -> Tokens:
        """Cut to the longest caption of the batch; exact only where :attr:`DualEncoder.trims_text` says so."""
        longest = max(1, int(self.mask.sum(1).max()))
        return Tokens(self.ids[:, :longest], self.mask[:, :longest])


@dataclass(frozen=True)
class Hidden:
    """The token sequence between two blocks.

    Attributes:
        x: (B, N, W) token states.
        mask: (B, N) bool, True on tokens that may be attended to; None means all.
        pool_at: (B,) int64 position of the token that is pooled; None where pooling does not pick one token.
        prefix: Number of leading tokens that are neither patches nor words (CLS, inserted prompts).
    """

    x: Tensor
    mask: Tensor | None = None
    pool_at: Tensor | None = None
    prefix: int = 0

    def with_x(self, x: Tensor) -> Hidden:
        """The same sequence with new states of the same length."""
        return replace(self, x=x)


class Slot(NamedTuple):
    """A place in the module tree: ``getattr(parent, name)`` is the module that stands there."""

    parent: nn.Module
    name: str

    def get(self) -> nn.Module:
        """The module that stands there now."""
        return getattr(self.parent, self.name)

    def set(self, module: nn.Module) -> None:
        """Put another module there."""
        setattr(self.parent, self.name, module)


class Tower(ABC):
    """One modality's transformer, as a view on modules that its :class:`DualEncoder` owns.

    A method changes a tower in three ways, the same on every backbone: it inserts tokens between :meth:`embed` and the
    blocks, it wraps a branch (:meth:`branch`), or it injects into named linear layers (:meth:`linears`).
    """

    modality: Literal["image", "text"]
    width: int
    """Width W of the token states."""
    heads: int
    pooled_width: int
    """Width P of the pooled output, before projection to the embedding space."""

    @property
    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The transformer blocks in order (live: replacing an element is seen by the next forward)."""

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @abstractmethod
    def embed(self, inputs: Any) -> Hidden:
        """Token and position embeddings: (B, 3, H, W) float pictures or :class:`Tokens` to the first block's input."""

    @abstractmethod
    def run_block(self, index: int, hidden: Hidden) -> Hidden:
        """Apply block ``index``; works for any sequence length, so inserted tokens pass through."""

    @abstractmethod
    def finish(self, hidden: Hidden) -> Tensor:
        """(B, N, W) per-token outputs after the final norm (where the tower has one)."""

    @abstractmethod
    def pool(self, hidden: Hidden) -> Tensor:
        """(B, P) pooled output of the last block's states, before projection."""

    @abstractmethod
    def branch(self, index: int, kind: Literal["attention", "mlp"]) -> Slot:
        """Where a branch's contribution (B, N, W), before it is added to the residual stream, leaves a module.

        Wrapping the module in this slot with ``Sequential(module, adapter)`` places an adapter after the branch.
        """

    @abstractmethod
    def linears(self, index: int, kind: Literal["attention", "mlp"]) -> list[str]:
        """Full names, within the DualEncoder, of the modules holding the weights of a branch (targets for LoRA)."""

    def run(self, hidden: Hidden, start: int = 0, stop: int | None = None) -> Hidden:
        """Apply blocks ``start`` to ``stop``."""
        for index in range(start, self.depth if stop is None else stop):
            hidden = self.run_block(index, hidden)
        return hidden

    def tokens(self, inputs: Any) -> Tensor:
        """(B, N, W) per-token outputs."""
        return self.finish(self.run(self.embed(inputs)))

    def pooled(self, inputs: Any) -> Tensor:
        """(B, P) pooled output."""
        return self.pool(self.run(self.embed(inputs)))


class Provenance(BaseModel):
    """Where a backbone's weights come from; part of every record."""

    model_config = ConfigDict(extra="forbid")

    kind: str
    """``open_clip`` or ``two_tower``."""
    architecture: str
    source: str
    """Hub tag, file name or package the weights came from; never an absolute path."""
    sha256: str
    """Hash of the weight file, or of the loaded tensors where there is no single file."""
    activation: str
    """``gelu`` or ``quick_gelu``."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resolution: int
    aligned: bool
    """True where the two towers were pretrained into one space; False where only joining heads can align them."""
    licence: str = "unknown"
    notes: str = ""


class DualEncoder(nn.Module, ABC):
    """A pretrained image tower and text tower with projections into one embedding space of width E."""

    name: str
    provenance: Provenance
    image: Tower
    text: Tower
    embed_dim: int
    trims_text: bool
    """True where padding a caption further cannot change its embedding, so batches are cut to their longest caption."""
    logit_scale: nn.Parameter
    """Log of the inverse temperature."""

    @property
    def resolution(self) -> int:
        """Side of the square input pictures, pixels."""
        return self.provenance.resolution

    @property
    def aligned(self) -> bool:
        """Whether the untouched model ranks pairs meaningfully (zero-shot)."""
        return self.provenance.aligned

    @abstractmethod
    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """(len(texts), context length) tokens; captions that are too long are cut, keeping the end token."""

    @abstractmethod
    def project_image(self, pooled: Tensor) -> Tensor:
        """(B, P_image) to (B, E), not normalised."""

    @abstractmethod
    def project_text(self, pooled: Tensor) -> Tensor:
        """(B, P_text) to (B, E), not normalised."""

    def encode_image(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised float pictures to (B, E), not L2-normalised."""
        return self.project_image(self.image.pooled(images))

    def encode_text(self, tokens: Tokens) -> Tensor:
        """Tokens to (B, E), not L2-normalised."""
        return self.project_text(self.text.pooled(tokens))

    def new_parameters(self) -> Iterator[str]:
        """Names of parameters that were initialised at random and must be trained by every method (joining heads)."""
        return iter(())
