"""The contract of a method: one file says what is added, what is trained and what is minimised; the harness does the rest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from petlbench.errors import PetlbenchError
from petlbench.methods import losses
from petlbench.methods.backbones.base import Backbone, DualEncoder, Tokens
from petlbench.methods.official import OfficialState
from petlbench.methods.recipe import LossConfig

PE_RSITR = (
    "Yuan et al., Parameter-Efficient Transfer Learning for Remote Sensing Image-Text Retrieval, TGRS 2023, Tab. {}"
)
"""Source of the most complete published tables, CLIP ViT-B/32."""


Family = Literal["baseline", "head", "selective", "adapter", "prompt", "reparameterisation", "fusion"]

States = Mapping[str, Tensor]
"""What is computed once per picture, or once per caption, before pairs are scored: named tensors with one row each."""


class MethodError(PetlbenchError):
    """A method cannot do what was asked of it (wrong backbone, impossible setting)."""


class MethodConfig(BaseModel):
    """Base of every method's hyper-parameters; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class Preset:
    """A named set of defaults: ``method`` goes into the method's Config, ``train`` into the Recipe."""

    method: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Domain:
    """A search interval or choice; translated to Ray Tune by the harness, so that methods do not import it."""

    kind: Literal["loguniform", "uniform", "choice", "randint"]
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Variant:
    """A named form of a method whose size is known from its paper, its code or a published table."""

    method: Mapping[str, Any]
    """Config values that differ from the defaults."""
    trainable: int
    """Trained scalars on CLIP ViT-B/32."""
    note: str = ""
    """Where the form or its count comes from."""


@dataclass(frozen=True)
class PeftFormat:
    """How a trained adapter is written so that `peft` can load it."""

    config: Mapping[str, Any]
    """The entries of ``adapter_config.json``."""
    keys: Mapping[str, str]
    """Parameter name, as in ``model.named_parameters()``, to key in ``adapter_model.safetensors``."""


@dataclass(frozen=True)
class Published:
    """One published row; percentages. ``selection`` says on which split the authors chose their epoch."""

    dataset: str
    source: str
    values: tuple[float, float, float, float, float, float]
    """i2t R@1, 5, 10, then t2i R@1, 5, 10."""
    trainable: str = ""
    selection: Literal["val", "test", "last", "unknown"] = "unknown"
    seen: bool = True
    """False for numbers that were recalled, not read in the source."""
    backbone: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """``architecture``, ``weights``, ``sources``, ``activation`` and ``resolution``, as in ``leaderboard/published_schema.py``.
    A difference from records is shown only where these and ``split`` are stated and the same."""
    split: Mapping[str, int] = field(default_factory=dict, hash=False)
    """``test_images`` and ``test_captions``; where known ``train_images`` and ``val_images``."""


@dataclass(frozen=True)
class Batch:
    """One training batch of B image-caption pairs.

    Attributes:
        images: (B, 3, H, W) float, normalised; None when pooled features stand in for the frozen towers.
        tokens: The captions, trimmed where exact; None likewise.
        image_ids: (B,) int64, equal for pairs with the same picture.
        text_ids: (B,) int64, equal for pairs with the same caption string.
        labels: (B,) int64 scene classes, -1 unknown, or None.
        image_pooled: (B, P_image) cached pooled outputs of a frozen image tower (head-only methods).
        text_pooled: (B, P_text) likewise.
        image_side: (B, D) kept output of a frozen network for the pictures (:meth:`Method.side_features`).
        candidates: B * (1 + K) captions for methods that score pairs: each picture's own, then K others that are false for
            it, picture by picture.
        candidate_ids: (B, 1 + K) int64, equal for equal strings, in the same numbering as ``text_ids``.
        image_states: Kept states of the B pictures in place of ``images`` (:attr:`PairMethod.keeps_states`).
        candidate_states: Kept states of the candidates, in place of ``candidates``.
    """

    images: Tensor | None
    tokens: Tokens | None
    image_ids: Tensor
    text_ids: Tensor
    labels: Tensor | None = None
    image_pooled: Tensor | None = None
    text_pooled: Tensor | None = None
    image_side: Tensor | None = None
    candidates: Tokens | None = None
    candidate_ids: Tensor | None = None
    image_states: States | None = None
    candidate_states: States | None = None

    def __len__(self) -> int:
        return self.image_ids.shape[0]


class Method(ABC):
    """A way of fine-tuning a pretrained model; a dual encoder unless it is a :class:`petlbench.methods.pair.PairMethod`.

    A subclass sets the class attributes and writes :meth:`build` and :meth:`trainable`. It must not freeze,
    schedule, evaluate or read files: the harness freezes everything that :meth:`trainable` does not name, and audits it.
    """

    name: ClassVar[str]
    """Set by the registry from the file name."""
    title: ClassVar[str]
    paper: ClassVar[str] = ""
    code: ClassVar[str] = ""
    """Repository of the reference implementation."""
    licence: ClassVar[str] = ""
    """Licence of the reference implementation."""

    family: ClassVar[Family]
    """What kind of method it is."""
    choices: ClassVar[tuple[str, ...]] = ()
    """Each choice that is this project's own because the source is silent, in one sentence."""
    official: ClassVar[str] = ""
    """The layout of released weights that :meth:`import_official` reads, in one line; empty where none were released."""

    Config: ClassVar[type[MethodConfig]] = MethodConfig
    variants: ClassVar[Mapping[str, Variant]] = {}
    presets: ClassVar[Mapping[str, Preset]] = {"matched": Preset()}
    """``matched``: the common protocol. ``paper``: the recipe behind the published retrieval rows or, where there are none,
    that of the method's own paper. ``official``: where both exist, the method's own."""
    space: ClassVar[Mapping[str, Domain]] = {}
    published: ClassVar[tuple[Published, ...]] = ()
    kinds: ClassVar[tuple[str, ...]] = ("open_clip", "two_tower")
    """Backbone kinds it can sit on."""
    trains: ClassVar[bool] = True
    own_loss: ClassVar[bool] = False
    """True where ``train.loss`` is not heeded, which plans tell; such a method says in :meth:`compare` what it minimises."""
    needs_alignment: ClassVar[bool] = False
    """True where the method is meaningless on towers that were never pretrained together."""
    identity_start: ClassVar[bool] = False
    """Promises that embeddings at step 0 equal those of the untouched backbone; audited."""
    head_only: ClassVar[bool] = False
    """Promises that the towers' pooled outputs never change, so that they are computed once and cached."""
    splits_by_row: ClassVar[bool] = False
    """Promises that each term of the loss is a mean over rows, none of which looks at another; accumulation then needs no
    second pass (:mod:`petlbench.harness.grad_cache`)."""

    def __init__(self, config: MethodConfig | None = None, loss: LossConfig | None = None):
        self.config = self.Config() if config is None else config
        self.loss_config = LossConfig() if loss is None else loss

    @abstractmethod
    def build(self, backbone: Any) -> nn.Module:
        """Add the method's modules to a backbone of one of :attr:`kinds`.

        Returns:
            The model that is trained and evaluated; often the same object.
        """

    @abstractmethod
    def trainable(self, model: nn.Module) -> Iterable[str]:
        """Names, as in ``model.named_parameters()``, of what is trained besides the backbone's new parameters."""

    def expected_trainable(self, backbone: Any) -> int | None:
        """The closed form of the number of trained parameters, from the untouched backbone's widths and depths.

        Does not count :meth:`Backbone.new_parameters`. None: the method has no closed form and the audit is skipped.
        """
        return None

    def added_at_inference(self, added: int) -> int:
        """Scalars that inference needs besides the backbone's; override with 0 where they merge into its weights.

        Args:
            added: Scalars that :meth:`build` added to the backbone.
        """
        return added

    def refuse(self, backbone: Any) -> str | None:
        """A reason why this method cannot sit on this backbone, or None."""
        if backbone.provenance.kind not in self.kinds:
            return (
                f"it works on backbones of kind {', '.join(self.kinds)}; {backbone.name} is {backbone.provenance.kind}"
            )
        if self.needs_alignment and not backbone.aligned:
            return (
                f"the towers of {backbone.name} were never trained together, so without training its scores are "
                "meaningless; choose an aligned backbone (tiny-clip, or any open_clip model) or a method that trains"
            )
        return None

    def head_image(self, model: nn.Module, pooled: Tensor) -> Tensor:
        """(B, P_image) pooled tower output to (B, E)."""
        return self._dual(model).project_image(pooled)

    def head_text(self, model: nn.Module, pooled: Tensor) -> Tensor:
        """(B, P_text) pooled tower output to (B, E)."""
        return self._dual(model).project_text(pooled)

    def encode_image(self, model: nn.Module, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, E) embeddings, not necessarily L2-normalised."""
        return self.head_image(model, self._dual(model).image.pooled(images))

    def encode_text(self, model: nn.Module, tokens: Tokens) -> Tensor:
        """Tokens to (B, E) embeddings, not necessarily L2-normalised."""
        return self.head_text(model, self._dual(model).text.pooled(tokens))

    def side_features(self, model: nn.Module, images: Tensor) -> Tensor | None:
        """(B, D) output of a frozen network, beside the towers or the image tower itself; None where there is none.

        It depends on the pictures alone, so the harness computes it once per picture where no augmentation changes them.
        """
        return None

    def encode_image_beside(self, model: nn.Module, images: Tensor, side: Tensor | None) -> Tensor:
        """:meth:`encode_image` with what :meth:`side_features` gave for these pictures, where that was kept."""
        return self.encode_image(model, images)

    def embed(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Both embeddings of a batch, from cached pooled features where the batch carries them."""
        if batch.image_pooled is not None and batch.text_pooled is not None:
            return self.head_image(model, batch.image_pooled), self.head_text(model, batch.text_pooled)
        assert batch.images is not None and batch.tokens is not None
        image = self.encode_image_beside(model, batch.images, batch.image_side)
        return image, self.encode_text(model, batch.tokens)

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Named scalar losses; the harness minimises their sum.

        It is cut in two, so that a batch may be larger than one device holds: :meth:`views` is computed part by part, on
        several devices or one after another, and :meth:`compare` once for all rows. Override those two rather than this;
        a method with a ``loss`` of its own trains in one process and one piece only.

        Raises:
            MethodError: The loss needs a second view, which cached features cannot give.
        """
        return self.compare(model, batch, *self.views(model, batch))

    def views(self, model: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
        """What the loss compares, row by row: both (B, E) embeddings, and those of a second view where the loss needs it.

        Each tensor has B rows; row i may depend on row i of the batch, on parameters and on chance, not on other rows.

        Raises:
            MethodError: The loss needs a second view, which cached features cannot give.
        """
        config = self.loss_config
        first = self.embed(model, batch)
        if not config.needs_second_view:
            return first
        if batch.image_pooled is not None:
            raise MethodError(f"method {self.name}: loss {config.name} needs pictures and words, not cached features")
        with self._dual(model).second_view(config.view_dropout, config.view):
            return *first, *self.embed(model, batch)

    def compare(self, model: nn.Module, batch: Batch, *views: Tensor) -> dict[str, Tensor]:
        """The terms of the chosen loss between the :meth:`views` of all rows.

        Args:
            model: For parameters that only the loss reads, such as the temperature.
            batch: Ids and labels; pictures and words of the whole batch may be nowhere together.
            views: As :meth:`views` gives them.
        """
        image, text = views[:2]
        second = (views[2], views[3]) if self.loss_config.needs_second_view else None
        return losses.terms(image, text, self.logit_scale(model).exp(), batch, self.loss_config, second)

    def logit_scale(self, model: nn.Module) -> Tensor:
        """Log of the inverse temperature used by the contrastive losses."""
        return self._dual(model).logit_scale

    def import_official(self, model: nn.Module, state: OfficialState) -> dict[str, Tensor]:
        """Map weights that the method's authors released to this model.

        Args:
            model: What :meth:`build` returned.
            state: The released tensors. Whatever is used is taken from it and what carries no weights is dropped; a key
                left over, a trained tensor without a value and a differing shape are errors of the caller.

        Returns:
            Name in ``model.state_dict()`` to tensor.

        Raises:
            MethodError: There is no importer, or the layout is not the one that it reads.
        """
        raise MethodError(f"method {self.name} has no importer: no weights were released for it, or none are known")

    def peft_format(self, model: nn.Module) -> PeftFormat | None:
        """How `peft` stores this adapter, or None where it has no such method; then plain safetensors are written."""
        return None

    def _dual(self, model: nn.Module) -> DualEncoder:
        if isinstance(model, DualEncoder):
            return model
        inner = getattr(model, "backbone", None)
        if isinstance(inner, DualEncoder):
            return inner
        raise MethodError(
            f"method {self.name}: build() returned {type(model).__name__}, which is neither a DualEncoder nor holds one as "
            "`.backbone`; return the backbone, hold it as `.backbone`, or override encode_image and encode_text"
        )


def parameters_under(model: nn.Module, *prefixes: str) -> list[str]:
    """Names of all parameters at or below the given dotted module names."""
    return [n for n, _ in model.named_parameters() if any(n == p or n.startswith(p + ".") for p in prefixes)]


def names_in(model: nn.Module, backbone: Backbone, names: Iterable[str]) -> list[str]:
    """Names of backbone parameters as the built model calls them; it may hold the backbone inside.

    Raises:
        MethodError: The model does not hold one of them.
    """
    by_id = {id(p): n for n, p in model.named_parameters()}
    own = dict(backbone.named_parameters())
    wanted = list(names)
    if lost := [n for n in wanted if n not in own or id(own[n]) not in by_id]:
        raise MethodError(
            f"the built {type(model).__name__} does not hold the backbone's parameters {', '.join(lost[:5])}; build() must "
            "return the backbone or a module that holds it as `.backbone`"
        )
    return [by_id[id(own[n])] for n in wanted]


def count(model: nn.Module, names: Iterable[str]) -> int:
    """Number of scalars in the named parameters."""
    chosen = set(names)
    return sum(p.numel() for n, p in model.named_parameters() if n in chosen)
