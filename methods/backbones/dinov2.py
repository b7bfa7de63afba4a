"""DINOv2 vision transformers as image towers: reading the weights, and the tower view."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from petlbench.methods.backbones import weights_io
from petlbench.methods.backbones.base import BackboneError, BranchKind, Hidden, Tower

PATCH = 14
HEAD_WIDTH = 64
WEIGHTS_FILE = "vits14.fp16.safetensors"
HUB_EXAMPLE = "facebook/dinov2-small"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_BLOCK = re.compile(r"encoder\.layer\.(\d+)\.")
# Files name the projections as transformers 4 did; transformers 5 renamed the modules.
_RENAMED = (
    (".attention.attention.query.", ".attention.q_proj."),
    (".attention.attention.key.", ".attention.k_proj."),
    (".attention.attention.value.", ".attention.v_proj."),
    (".attention.output.dense.", ".attention.o_proj."),
)


class Dinov2Tower(Tower):
    """``transformers.Dinov2Model``; pooled as the class token beside the mean of the patch tokens, after the last norm.

    Blocks are pre-norm: ``x + layer_scale1(attention(norm1(x)))``, ``x + layer_scale2(mlp(norm2(x)))``.
    """

    modality = "image"

    def __init__(self, model: Any, prefix: str = "vision"):
        self.model = model
        self.prefix = prefix
        self.width = int(self.model.config.hidden_size)
        self.heads = int(self.model.config.num_attention_heads)
        self.pooled_width = 2 * self.width

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The DINOv2 layers."""
        return self.model.encoder.layer

    def _embed(self, inputs: Tensor) -> Hidden:
        """(B, 3, H, W) pictures, sides multiples of 14, to class and patch tokens.

        The position table is interpolated bicubically to the grid of the pictures at hand.
        """
        return Hidden(self.model.embeddings(inputs), prefix=1)

    def _mask(self, hidden: Hidden) -> Tensor | None:
        return None if hidden.mask is None else hidden.mask[:, None, None]

    def _block(self, index: int, hidden: Hidden) -> Tensor:
        return self.blocks[index](hidden.x, self._mask(hidden))

    def _normed(self, index: int, kind: BranchKind, x: Tensor) -> Tensor:
        block: Any = self.blocks[index]
        return (block.norm1 if kind == "attention" else block.norm2)(x)

    def _contribution(self, index: int, kind: BranchKind, normed: Tensor, hidden: Hidden) -> Tensor:
        block: Any = self.blocks[index]
        if kind == "attention":
            return block.layer_scale1(block.attention(normed, attention_mask=self._mask(hidden))[0])
        return block.layer_scale2(block.mlp(normed))

    def _joined(self, index: int, kind: BranchKind, x: Tensor, out: Tensor) -> Tensor:
        return x + out

    def finish(self, hidden: Hidden) -> Tensor:
        """(B, N, W) after the final layer norm."""
        return self.model.layernorm(hidden.x)

    def pool(self, hidden: Hidden) -> Tensor:
        """(B, 2 W): the class token beside the mean of the tokens after the prefix."""
        x = self.finish(hidden)
        return torch.cat([x[:, 0], x[:, hidden.prefix :].mean(1)], 1)

    def linears(self, index: int, kind: BranchKind) -> list[str]:
        """Query, key, value and output projections, or the two layers of the MLP."""
        part = "attention" if kind == "attention" else "mlp"
        root = getattr(self.blocks[index], part)
        names = [name for name, module in root.named_modules() if isinstance(module, nn.Linear)]
        return [f"{self.prefix}.encoder.layer.{index}.{part}.{name}" for name in names]


def build_dinov2(width: int, heads: int, blocks: int, grid: int, mlp_ratio: int = 4) -> Any:
    """An untrained ``transformers.Dinov2Model`` with a position table of ``grid`` x ``grid`` patches of 14 px."""
    from transformers import Dinov2Config, Dinov2Model

    options: Any = {"attn_implementation": "sdpa"}
    config = Dinov2Config(
        **options,
        hidden_size=width,
        num_attention_heads=heads,
        num_hidden_layers=blocks,
        mlp_ratio=mlp_ratio,
        image_size=grid * PATCH,
        patch_size=PATCH,
        use_mask_token=False,
    )
    return Dinov2Model(config)


def locate_dinov2(weights: str | None) -> tuple[Path, str]:
    """The weight file and the name to record for it: an option's file or hub name, or the file in PETLBENCH_WEIGHTS.

    Raises:
        BackboneError: Nothing was found; the message lists every way to provide the weights.
    """
    ways = (
        f"the image tower takes its weights from (1) weights=FILE, a .safetensors file of DINOv2 ViT-S/14 shape, "
        f"(2) a file {WEIGHTS_FILE} in the folder named by {weights_io.WEIGHTS_ENV} (scripts/vits14_weights.py of the "
        f"source tree writes it), or "
        f"(3) weights={HUB_EXAMPLE}, fetched from the Hugging Face hub"
    )
    try:
        path = weights_io.find_weights(weights or WEIGHTS_FILE)
    except BackboneError as error:
        if weights and weights_io.is_hub_name(weights) and not weights.endswith(".safetensors"):
            return _fetch(weights, ways), weights
        raise BackboneError(f"{error}; {ways}") from error
    if path.is_dir():
        if not (path / "model.safetensors").exists():
            raise BackboneError(f"{path}: the folder holds no model.safetensors; {ways}")
        return path / "model.safetensors", path.name
    return path, path.name


def load_dinov2(path: Path, blocks: int | None = None) -> Any:
    """A ``transformers.Dinov2Model`` with the weights of ``path``, shaped by them, in fp32.

    Two layouts of the position table are read: one tensor, or its class and patch parts apart. The grid side, width
    and number of blocks follow from the shapes; heads are 64 wide, as in every DINOv2.

    Args:
        path: State dict with the key names of ``transformers``.
        blocks: Keep only the first ``blocks`` blocks; None keeps all that the file holds.

    Raises:
        BackboneError: The keys or shapes are not those of a DINOv2, or fewer blocks are there than asked for.
    """
    state = weights_io.read_state_dict(path)
    state.pop("embeddings.mask_token", None)  # used in pretraining only
    if "embeddings.pos_cls" in state and "embeddings.pos_patch" in state:
        parts = [state.pop("embeddings.pos_cls"), state.pop("embeddings.pos_patch")]
        state["embeddings.position_embeddings"] = torch.cat(parts, 1)
    table = state.get("embeddings.position_embeddings")
    numbers = {int(match[1]) for key in state if (match := _BLOCK.match(key))}
    if table is None or table.ndim != 3 or not numbers:
        raise BackboneError(
            f"{path.name}: not a DINOv2 state dict in transformers' naming; expected embeddings.position_embeddings "
            "(or embeddings.pos_cls and embeddings.pos_patch) and encoder.layer.N.*, "
            f"found {', '.join(list(state)[:4])}, ..."
        )
    held = max(numbers) + 1
    if blocks is not None and not 1 <= blocks <= held:
        raise BackboneError(f"{path.name}: blocks={blocks}, but the file holds {held}; give 1 to {held}")
    keep = held if blocks is None else blocks
    state = {key: value for key, value in state.items() if not (m := _BLOCK.match(key)) or int(m[1]) < keep}
    grid, width = round((table.shape[1] - 1) ** 0.5), table.shape[2]
    if grid * grid + 1 != table.shape[1] or width % HEAD_WIDTH:
        raise BackboneError(
            f"{path.name}: the position table is {tuple(table.shape)}; expected (1, side * side + 1, width) with a "
            f"width that is a multiple of {HEAD_WIDTH}"
        )
    model = build_dinov2(width, width // HEAD_WIDTH, keep, grid)
    weights_io.load_strict(model, _renamed(state, model), path.name, advice="Is this a DINOv2 with GELU blocks?")
    return model


def _renamed(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    wanted = model.state_dict().keys()
    renamed = {}
    for key, value in state.items():
        if key not in wanted:
            for old, new in _RENAMED:
                key = key.replace(old, new)
        renamed[key] = value
    return renamed


def _fetch(name: str, ways: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, "model.safetensors"))
    except (OSError, ValueError) as error:
        raise BackboneError(f"{name} could not be fetched ({type(error).__name__}: {error}); {ways}") from error
