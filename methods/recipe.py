"""How a method is trained: optimiser, schedule, batch, loss, precision. Defaults are the `matched` protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from petlbench.datasets.augment import Augmentation

Share = Annotated[float, Field(ge=0, lt=1)]


class LossConfig(BaseModel):
    """Which loss compares the two embeddings of a batch (see :mod:`petlbench.methods.losses`)."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    name: Literal[
        "infonce", "multi_positive", "siglip", "hinge", "hinge_hardest", "hmmc", "adaptive_triplet", "harma"
    ] = "infonce"
    """``infonce``: the diagonal is positive. ``multi_positive``: InfoNCE with every pair of ``positives``. ``siglip``:
    each pair on its own. ``hinge``: all negatives, ``hinge_hardest``: the hardest one. ``hmmc``: hardest hinge across and
    within modalities (MRS-Adapter). ``adaptive_triplet``: focal-weighted hinge; ``harma``: that plus multi_positive."""
    mask_duplicates: bool = False
    """Do not count a pair of the same picture, or of equal strings, as a negative."""
    positives: Literal["image", "image_or_text"] = "image_or_text"
    """What is positive in ``multi_positive`` and ``harma``: pairs of the same picture, or also of equal strings."""
    margin: float = Field(0.2, ge=0)
    """Of the hinge losses, in cosine similarity."""
    reduction: Literal["sum", "mean"] = "sum"
    """Of the hinge losses over the batch; the papers sum."""
    gamma: float = Field(2.0, ge=1)
    """Focusing exponent of ``adaptive_triplet``."""
    intra_weight: float = Field(1.0, ge=0)
    """Weight of the two terms within a modality in ``hmmc``."""
    view: Literal["element", "token"] = "element"
    """What the second view of ``hmmc`` drops: scalars of the embedded tokens, or whole tokens."""
    view_dropout: float = Field(0.2, ge=0, lt=1)
    """With which probability."""
    siglip_bias: float = -10.0
    """Added to the scaled similarities in ``siglip``; learned in the paper from this value, constant here."""

    @property
    def uses_temperature(self) -> bool:
        """Whether the temperature enters; hinge losses compare plain cosines."""
        return self.name in ("infonce", "multi_positive", "siglip", "harma")

    @property
    def needs_second_view(self) -> bool:
        """Whether both towers run twice per step."""
        return self.name == "hmmc" and self.intra_weight > 0


class Recipe(BaseModel):
    """One training recipe; every field can be set from the command line as ``train.FIELD``."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

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
    decay: Literal["matrices", "not_bias", "all"] = "matrices"
    """What weight decay acts on; ``matrices`` leaves out biases, norms and scalars, ``not_bias`` only biases."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    momentum: float = Field(0.9, ge=0, lt=1)
    """Of ``sgd``."""
    schedule: Literal["cosine", "constant", "linear", "step"] = "cosine"
    """Per step, after the warm-up. ``cosine`` and ``linear`` fall to ``final_lr``; ``step``: see ``milestones``."""
    final_lr: float = Field(0.0, ge=0)
    step_factor: float = Field(0.7, gt=0, le=1)
    milestones: tuple[PositiveInt, ...] = ()
    """Epochs, counted from 1, from whose start the rate is multiplied by ``step_factor`` (once per milestone)."""
    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of all steps with linearly rising learning rate."""
    clip_norm: float = Field(1.0, ge=0)
    """Largest gradient norm; 0 turns clipping off."""
    loss: LossConfig = LossConfig()
    augmentation: Augmentation = Augmentation()
    precision: Literal["fp32", "bf16"] = "fp32"
    """``bf16``: autocast with fp32 weights (DeepSpeed torch_autocast); evaluation ranks are fp32 in both."""
    captions: Literal["raw", "cleaned"] = "raw"
    """``cleaned``: in training and evaluation alike, without case and punctuation and cut to 30 words (PIR, HarMA)."""
    accumulate: PositiveInt = 1
    """Pieces in which a step's batch goes through the model, one after another; the loss stays that of the whole batch."""
    grad_cache: PositiveInt | None = None
    """The same by size: pairs that go through the model at once, per process."""

    @model_validator(mode="after")
    def _milestones_where_needed(self) -> Recipe:
        if self.schedule == "step" and not self.milestones:
            raise ValueError("schedule step needs milestones, the epochs from which the rate falls, such as [20]")
        return self

    @model_validator(mode="after")
    def _one_way_to_cut(self) -> Recipe:
        if self.grad_cache is not None and self.accumulate > 1:
            raise ValueError(
                f"accumulate={self.accumulate} (pieces) and grad_cache={self.grad_cache} (pairs per piece) both cut the "
                "batch; give one"
            )
        return self

    @model_serializer(mode="wrap")
    def _only_if_asked(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Specs from before these settings, and all that do not use them, keep their identity.
        values: dict[str, Any] = handler(self)
        idle = {"accumulate": 1, "grad_cache": None}
        return {key: value for key, value in values.items() if key not in idle or value != idle[key]}


PE_RSITR_TRAIN: Mapping[str, Any] = {
    "optimizer": "adam",
    "lr": 2e-4,
    "weight_decay": 0.0,
    "schedule": "step",
    "step_factor": 0.7,
    "milestones": (20,),
    "warmup": 0.0,
    "clip_norm": 0.0,
    "batch_size": 16,
    "epochs": 30,
    "loss": {"name": "hinge_hardest", "margin": 0.2, "reduction": "sum"},
}
"""The recipe of PE-RSITR (Yuan et al. 2023) as its training code had it; the loss of its baselines is not stated."""
