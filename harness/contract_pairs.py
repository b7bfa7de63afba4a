"""The part of the contract that differs for methods that score pairs: scores in place of embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from petlbench.harness.contract_outcome import ContractError, NotApplicable
from petlbench.harness.contract_runs import STEPS, TOLERANCE, BackboneRun
from petlbench.harness.encode import inference
from petlbench.harness.fit import load_trained
from petlbench.methods.backbones.base import Tokens
from petlbench.methods.base import States
from petlbench.methods.pair import PairMethod

_CPU = torch.device("cpu")


class PairRun(BackboneRun):
    """A method that scores pairs on one random backbone."""

    method: PairMethod

    def of_results(self) -> tuple[tuple[str, Callable[[], str], bool], ...]:
        """Name, function, and whether the rest needs it, of the checks of what the method puts out."""
        return (
            ("scores", self.scores, True),
            ("deterministic", self.deterministic, False),
            ("batch independence", self.batch_independence, False),
            ("text padding", self.text_padding, False),
            ("keeps_states", self.keeps_states, False),
            ("save and load", self.save_and_load, False),
        )

    def scores(self) -> str:
        """(B,), floating point, finite, and not the same for every pair."""
        images, tokens = self._inputs
        self._found = self._score(images, tokens)
        if self._found.shape != (len(self.batch),):
            raise ContractError(
                f"score_pairs gave shape {tuple(self._found.shape)} for {len(self.batch)} pairs; expected (B,)"
            )
        if not torch.isfinite(self._found).all():
            raise ContractError(f"score_pairs gave NaN or infinity after {STEPS} steps of training")
        if len(self._found.unique()) == 1:
            raise ContractError("score_pairs gives every pair the same score; it looks at neither picture nor caption")
        return f"{float(self._found.min()):.3f} to {float(self._found.max()):.3f}"

    def deterministic(self) -> str:
        """In evaluation mode the same pair gets the same score, bit for bit."""
        again = self._score(*self._inputs)
        if not torch.equal(again, self._found):
            raise ContractError(
                f"two passes in evaluation mode differ by {self._off(again, self._found):.1e}; use nn.Dropout or test "
                "self.training rather than drawing random numbers in every forward pass"
            )
        return "bit for bit"

    def batch_independence(self) -> str:
        """A score depends on its own pair only: alone, in another order, and as part of all pairs of a block."""
        images, tokens = self._inputs
        order = torch.arange(len(self.batch) - 1, -1, -1)
        found = [(self._score(images[order], tokens[order])[order], self._found)]
        found += [(self._score(images[i : i + 1], tokens[i : i + 1]), self._found[i : i + 1]) for i in range(3)]
        found.append((self._crossed(images, tokens).diagonal(), self._found))
        difference = max(self._off(*pair) for pair in found)
        if not difference <= TOLERANCE:
            raise ContractError(
                f"a score changes by up to {difference:.1e} with the other rows of its batch (tolerance {TOLERANCE:.0e}); "
                "it would depend on how the evaluation cuts its batches. Do not mix rows in image_states, text_states, "
                "prepare_image, prepare_text or score"
            )
        return f"differences up to {difference:.0e}"

    def text_padding(self) -> str:
        """Padding a caption further changes nothing where the backbone promises so."""
        if not self.backbone.trims_text:
            raise NotApplicable("this backbone sees padding")
        images, tokens = self._inputs
        short = tokens.mask.sum(1).argsort()[:3]  # these lose most when trimmed together
        trimmed = tokens[short].trimmed()
        difference = self._off(self._score(images[short], trimmed), self._found[short])
        if not difference <= TOLERANCE:
            cut = tokens.ids.shape[1] - trimmed.ids.shape[1]
            raise ContractError(
                f"a score changes by up to {difference:.1e} when {cut} padding tokens are cut off (tolerance "
                f"{TOLERANCE:.0e}); respect the mask of the text states"
            )
        return f"differences up to {difference:.0e}"

    def keeps_states(self) -> str:
        """Kept states are those of a freshly built model, although this one was trained, and stand in for pixels and words."""
        if not self.method.keeps_states:
            raise NotApplicable("not promised")
        images, tokens = self._inputs
        mine, fresh = self._states(self.model, images, tokens), self._states(self._built_anew(), images, tokens)
        for side, now, then in zip(("image_states", "text_states"), mine, fresh, strict=True):
            for name, value in now.items():
                if not torch.equal(value, then[name]):
                    raise ContractError(
                        f"it promises keeps_states, but {side} `{name}` changed with training; what is trained belongs "
                        "into prepare_image, prepare_text and score"
                    )
        assert self.batch.candidates is not None
        states = self._states(self.model, images, self.batch.candidates)
        kept = replace(self.batch, images=None, candidates=None, image_states=states[0], candidate_states=states[1])
        with inference(self.model, "fp32", _CPU):
            both = [sum(float(v) for v in self.method.loss(self.model, b).values()) for b in (self.batch, kept)]
        if abs(both[0] - both[1]) > TOLERANCE * max(1.0, abs(both[0])):
            raise ContractError(
                f"it promises keeps_states, but with kept states the loss is {both[1]:.6f} instead of {both[0]:.6f}"
            )
        return "kept states give the same loss"

    def save_and_load(self) -> str:
        """The trained tensors, loaded into a model that a method made anew has built, give the same scores."""
        stored = self._stored()
        data = save(stored)
        method: Any = self.cls(self.method.config, self.method.loss_config)
        model = self._built_anew(method)
        load_trained(model, load(data))
        with inference(model, "fp32", _CPU):
            difference = self._off(method.score_pairs(model, *self._inputs).float(), self._found)
        if not difference <= TOLERANCE:
            raise ContractError(
                f"loaded into a freshly built model, the trained tensors give scores that differ by up to "
                f"{difference:.1e}; something outside trainable() was learned, or build() is not repeatable under a "
                "fixed seed"
            )
        return f"{len(data):,} bytes" if stored else "nothing to store"

    def _score(self, images: Tensor, tokens: Tokens, model: nn.Module | None = None) -> Tensor:
        model = self.model if model is None else model
        with inference(model, "fp32", _CPU):
            return self.method.score_pairs(model, images, tokens).float()

    def _crossed(self, images: Tensor, tokens: Tokens) -> Tensor:
        """(B, B) scores of every picture with every caption, states computed once, as the evaluation does."""
        image, text = self._states(self.model, images, tokens)
        rows = torch.arange(len(images))
        with inference(self.model, "fp32", _CPU):
            image = self.method.prepare_image(self.model, image)
            text = self.method.prepare_text(self.model, text)
            first, second = rows.repeat_interleave(len(rows)), rows.repeat(len(rows))
            one = {name: value[first] for name, value in image.items()}
            other = {name: value[second] for name, value in text.items()}
            return self.method.score(self.model, one, other).float().view(len(rows), len(rows))

    def _states(self, model: nn.Module, images: Tensor, tokens: Tokens) -> tuple[States, States]:
        with inference(model, "fp32", _CPU):
            return self.method.image_states(model, images), self.method.text_states(model, tokens)

    def _off(self, found: Tensor, expected: Tensor) -> float:
        """Largest difference, relative to the largest score where that is above 1."""
        return float((found - expected).abs().max() / self._found.abs().max().clamp(min=1))
