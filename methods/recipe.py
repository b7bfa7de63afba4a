"""How a method is trained: optimiser, schedule, batch, loss, precision. Defaults are the `matched` protocol."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from petlbench.datasets.augment import Augmentation


class LossConfig(BaseModel):
    """Which loss compares the two embeddings of a batch (see :mod:`petlbench.methods.losses`)."""

    model_config = ConfigDict(extra="forbid")

    name: Literal["infonce", "multi_positive"] = "infonce"
    """``infonce``: the diagonal is positive. ``multi_positive``: every pair of the same picture or string is."""
    mask_duplicates: bool = False
    """Do not count a pair of the same picture, or of equal strings, as a negative."""


class Recipe(BaseModel):
    """One training recipe; every field can be set from the command line as ``train.FIELD``."""

    model_config = ConfigDict(extra="forbid")

    epochs: int = Field(10, ge=0)
    batch_size: PositiveInt = 128
    """Pairs per optimiser step."""
    sampling: Literal["caption", "image"] = "caption"
    """``caption``: an epoch visits every caption once. ``image``: every picture once, with one caption at random."""
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: PositiveFloat = 1e-3
    new_lr: PositiveFloat | None = None
    """Learning rate of the backbone's randomly initialised joining heads; None means ``lr``."""
    weight_decay: float = Field(0.01, ge=0)
    """Applied to matrices only; biases, norms, scalars and embeddings of one dimension are exempt."""
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Literal["cosine", "constant", "step"] = "cosine"
    """Per step. ``step``: multiply by ``step_factor`` every ``step_epochs`` epochs."""
    step_factor: float = Field(0.7, gt=0, le=1)
    step_epochs: PositiveInt = 20
    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of all steps with linearly rising learning rate."""
    clip_norm: float = Field(1.0, ge=0)
    """Largest gradient norm; 0 turns clipping off."""
    loss: LossConfig = LossConfig()
    augmentation: Augmentation = Augmentation()
    precision: Literal["fp32", "bf16"] = "fp32"
    """``bf16``: autocast with fp32 weights (DeepSpeed torch_autocast); evaluation ranks are fp32 in both."""
