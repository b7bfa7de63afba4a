"""What every backbone offers: towers with the same attach points, two in one embedding space or one over both inputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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


class BranchState(NamedTuple):
    """What an attached module sees when a branch of a block has computed its contribution.

    Attributes:
        out: (B, N, W) what the branch is about to add to the residual stream.
        residual: (B, N, W) the stream that the branch starts from and is added to.
        normed: (B, N, W) what the branch reads: the layer-normed residual in pre-norm blocks, the residual itself in
            post-norm ones.
        hidden: Mask, prefix and pooling position of the sequence; its ``x`` is the input of the block.
    """

    out: Tensor
    residual: Tensor
    normed: Tensor
    hidden: Hidden


class SecondView(NamedTuple):
    """How the second view of an input differs from the first: dropout on the embedded tokens."""

    rate: float
    kind: Literal["element", "token"]


BranchKind = Literal["attention", "mlp"]
BRANCHES: tuple[BranchKind, BranchKind] = ("attention", "mlp")


class Tower(ABC):
    """One modality's transformer, as a view on modules that its :class:`DualEncoder` owns.

    A method changes a tower in three ways, the same on every backbone: it inserts tokens between :meth:`embed` and the
    blocks, it attaches modules to branches (:meth:`attach`), or it injects into named linear layers (:meth:`linears`).
    """

    modality: Literal["image", "text", "joint"]
    width: int
    """Width W of the token states."""
    heads: int
    pooled_width: int
    """Width P of the pooled output, before projection to the embedding space."""
    view: SecondView | None = None
    """Set while a second view is computed, see :meth:`DualEncoder.second_view`."""

    @property
    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The transformer blocks in order (live: replacing an element is seen by the next forward)."""

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    def embed(self, inputs: Any) -> Hidden:
        """Token and position embeddings: (B, 3, H, W) float pictures or :class:`Tokens` to the first block's input."""
        hidden = self._embed(inputs)
        if self.view is None:
            return hidden
        if self.view.kind == "element":
            return hidden.with_x(nn.functional.dropout(hidden.x, self.view.rate))
        return hidden.with_x(nn.functional.dropout1d(hidden.x, self.view.rate))  # whole tokens, as channels

    def run_block(self, index: int, hidden: Hidden) -> Hidden:
        """Apply block ``index``; works for any sequence length, so inserted tokens pass through."""
        attached = any(self._attached(index, kind) for kind in BRANCHES)
        return hidden.with_x(self._by_parts(index, hidden) if attached else self._block(index, hidden))

    def attach(self, index: int, kind: BranchKind, module: nn.Module) -> None:
        """Let ``module`` change what a branch of block ``index`` adds to the residual stream.

        The module is called with a :class:`BranchState` and returns the new contribution, (B, N, W). Several modules on
        one branch act in the order of attachment; one module may be attached in many places, which shares its weights.
        It becomes part of the block, as ``attached_attention`` or ``attached_mlp``.
        """
        block = self.blocks[index]
        name = f"attached_{kind}"
        if not hasattr(block, name):
            block.add_module(name, nn.ModuleList())
        block.get_submodule(name).append(module)  # type: ignore[operator]

    def _attached(self, index: int, kind: BranchKind) -> Any:
        return getattr(self.blocks[index], f"attached_{kind}", ())

    def _by_parts(self, index: int, hidden: Hidden) -> Tensor:
        """(B, N, W) output of the block, branch by branch, with what is attached to them."""
        x = hidden.x
        for kind in BRANCHES:
            normed = self._normed(index, kind, x)
            out = self._contribution(index, kind, normed, hidden)
            for module in self._attached(index, kind):
                out = module(BranchState(out, x, normed, hidden))
            x = self._joined(index, kind, x, out)
        return x

    @abstractmethod
    def _embed(self, inputs: Any) -> Hidden:
        """:meth:`embed` of the first view."""

    @abstractmethod
    def _block(self, index: int, hidden: Hidden) -> Tensor:
        """(B, N, W) output of the block where nothing is attached to it."""

    @abstractmethod
    def _normed(self, index: int, kind: BranchKind, x: Tensor) -> Tensor:
        """(B, N, W) what a branch reads of the residual stream ``x``."""

    @abstractmethod
    def _contribution(self, index: int, kind: BranchKind, normed: Tensor, hidden: Hidden) -> Tensor:
        """(B, N, W) what a branch adds to the residual stream."""

    @abstractmethod
    def _joined(self, index: int, kind: BranchKind, x: Tensor, out: Tensor) -> Tensor:
        """(B, N, W) the residual stream after a contribution."""

    @abstractmethod
    def finish(self, hidden: Hidden) -> Tensor:
        """(B, N, W) per-token outputs after the final norm (where the tower has one)."""

    @abstractmethod
    def pool(self, hidden: Hidden) -> Tensor:
        """(B, P) pooled output of the last block's states, before projection."""

    @abstractmethod
    def linears(self, index: int, kind: BranchKind) -> list[str]:
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
    """``open_clip``, ``two_tower``, ``swin_bert`` or ``vilt``."""
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


class Backbone(nn.Module, ABC):
    """A pretrained vision-language model: what data preparation, audits and records need of it, whatever its shape."""

    name: str
    provenance: Provenance
    trims_text: bool
    """True where padding a caption further cannot change what the model says of it, so batches are cut to their longest
    caption."""

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

    def new_parameters(self) -> Iterator[str]:
        """Names of parameters that were initialised at random and must be trained by every method (joining heads)."""
        return iter(())


class DualEncoder(Backbone):
    """A pretrained image tower and text tower with projections into one embedding space of width E."""

    image: Tower
    text: Tower
    embed_dim: int
    logit_scale: nn.Parameter
    """Log of the inverse temperature."""

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

    @contextmanager
    def second_view(self, rate: float, kind: Literal["element", "token"] = "element") -> Iterator[None]:
        """Within this block both towers drop embedded tokens: the second view of Yuan et al. 2023 (PE-RSITR).

        Args:
            rate: Probability of dropping; what is kept is scaled by 1 / (1 - rate).
            kind: ``element``: every scalar of the embedded tokens on its own, as in the authors' code. ``token``: whole
                tokens, as in the paper's figure.
        """
        towers = (self.image, self.text)
        for tower in towers:
            tower.view = SecondView(rate, kind)
        try:
            yield
        finally:
            for tower in towers:
                tower.view = None


class PairEncoder(Backbone):
    """A pretrained model that scores a picture and a caption together, in one transformer over both."""

    joint: Tower
    """The blocks over words and patches, in this order."""

    @abstractmethod
    def score_pairs(self, images: Tensor, tokens: Tokens) -> Tensor:
        """(B,) scores of B pictures, (B, 3, H, W) normalised floats, each with its own caption; higher is better."""
