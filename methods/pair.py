"""The contract of a method that scores pairs: a picture and a caption go through one network together."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from petlbench.methods.backbones.base import Tokens
from petlbench.methods.base import Batch, Method, MethodConfig, MethodError, States


class PairConfig(MethodConfig):
    """What every method that scores pairs can be told."""

    false_captions: int = Field(15, ge=1)
    """False captions per picture in the ranking loss, K; ViLT and IEFT draw 15."""
    own_as_false: bool = False
    """Draw false captions from all captions, the picture's own among them, as the released code of ViLT and IEFT does."""


class PairMethod(Method):
    """A way of fine-tuning a model that scores pairs.

    Scoring is cut so that nothing is computed twice: :meth:`image_states` once per picture, :meth:`text_states` once per
    distinct caption, :meth:`score` once per pair. The harness calls them for whole splits, in blocks of many captions of
    one length with a few pictures, and guarantees that texts of one call need no more padding than their longest.
    """

    family = "fusion"
    kinds: ClassVar[tuple[str, ...]] = ("vilt",)
    Config: ClassVar[type[MethodConfig]] = PairConfig
    config: Any
    own_loss: ClassVar[bool] = True
    splits_by_row: ClassVar[bool] = True
    """A picture is compared with its own candidates only; False where a loss compares the rows of a batch as well."""
    keeps_states: ClassVar[bool] = False
    """Promises that :meth:`image_states` and :meth:`text_states` read frozen weights only, so that they are computed once per
    split and kept; what is trained belongs into :meth:`prepare_image`, :meth:`prepare_text` and :meth:`score`."""

    @abstractmethod
    def image_states(self, model: nn.Module, images: Tensor) -> States:
        """(B, 3, H, W) normalised pictures to named tensors of B rows."""

    @abstractmethod
    def text_states(self, model: nn.Module, tokens: Tokens) -> States:
        """B captions to named tensors of B rows.

        Per-word tensors have the (trimmed) length L as their second dimension and come with a (B, L) bool ``mask``.
        """

    def states_settings(self) -> Mapping[str, Any]:
        """The settings that decide the states, where they are kept; all of them unless a method knows better."""
        return dict(self.config.model_dump(mode="json"))

    def prepare_image(self, model: nn.Module, states: States) -> States:
        """Trained work on one picture's kept states; none by default."""
        return states

    def prepare_text(self, model: nn.Module, states: States) -> States:
        """Trained work on one caption's kept states; none by default."""
        return states

    @abstractmethod
    def score(self, model: nn.Module, image: States, text: States) -> Tensor:
        """(B,) scores of B prepared pictures, each with its own prepared caption; higher is better."""

    def score_pairs(self, model: nn.Module, images: Tensor, tokens: Tokens) -> Tensor:
        """(B,) scores of B pictures, (B, 3, H, W), each with its own caption."""
        image = self.prepare_image(model, self.image_states(model, images))
        return self.score(model, image, self.prepare_text(model, self.text_states(model, tokens)))

    def prepared(self, model: nn.Module, batch: Batch) -> tuple[States, States]:
        """Prepared states of the B pictures, and of the B * (1 + K) candidates."""
        if batch.image_states is not None and batch.candidate_states is not None:
            image, text = batch.image_states, batch.candidate_states
        else:
            assert batch.images is not None and batch.candidates is not None
            image, text = self.image_states(model, batch.images), self.text_states(model, batch.candidates)
        return self.prepare_image(model, image), self.prepare_text(model, text)

    def candidate_scores(self, model: nn.Module, image: States, text: States) -> Tensor:
        """(B, 1 + K) scores of B prepared pictures with their prepared candidates."""
        rows = next(iter(image.values())).shape[0]
        each = next(iter(text.values())).shape[0] // rows
        return self.score(model, repeated(image, each), text).unflatten(0, (rows, each))

    def views(self, model: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
        """(B, 1 + K) scores of the candidates; each row is one picture's."""
        return (self.candidate_scores(model, *self.prepared(model, batch)),)

    def compare(self, model: nn.Module, batch: Batch, *views: Tensor) -> dict[str, Tensor]:
        """Softmax cross-entropy of the own caption among the candidates (ViLT's image-text retrieval fine-tuning)."""
        return {"ranking": ranking(views[0])}

    def logit_scale(self, model: nn.Module) -> Tensor:
        """Nothing divides the scores of pairs by a temperature."""
        return torch.zeros(())

    def encode_image(self, model: nn.Module, images: Tensor) -> Tensor:
        """There is no embedding of a picture alone.

        Raises:
            MethodError: Always.
        """
        raise MethodError(f"method {self.name} scores pairs and has no embeddings; use score_pairs")

    def encode_text(self, model: nn.Module, tokens: Tokens) -> Tensor:
        """There is no embedding of a caption alone.

        Raises:
            MethodError: Always.
        """
        raise MethodError(f"method {self.name} scores pairs and has no embeddings; use score_pairs")


def ranking(scores: Tensor) -> Tensor:
    """Mean over B pictures of -log softmax of the first of (B, 1 + K) scores, in fp32."""
    return -scores.float().log_softmax(1)[:, 0].mean()


def repeated(states: States, times: int) -> dict[str, Tensor]:
    """Each row of every state ``times`` times in a row."""
    return {name: value.repeat_interleave(times, 0) for name, value in states.items()}
