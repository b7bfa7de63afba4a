"""One method on one untrained backbone: build it, train it for a few steps, and see whether it keeps its promises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from petlbench.harness import audit
from petlbench.harness.contract_data import fake_batch
from petlbench.harness.contract_outcome import Check, ContractError, NotApplicable, attempt
from petlbench.harness.device import seed_everything
from petlbench.harness.distributed.shard import rows_of
from petlbench.harness.encode import inference
from petlbench.harness.fit import load_trained
from petlbench.methods.backbones.base import Backbone, DualEncoder, Tokens
from petlbench.methods.base import Batch, Method, MethodConfig, names_in
from petlbench.methods.recipe import LossConfig

STEPS = 4
"""AdamW steps; modules behind two zero-initialised factors move from the third on."""
LEARNING_RATE = 1e-2
TOLERANCE = audit.IDENTITY_TOLERANCE
"""Largest difference of L2-normalised embeddings that may come from another order of summation."""

_CPU = torch.device("cpu")


class BackboneRun:
    """A method with one configuration on one random backbone; each check is a method of its own.

    Args:
        cls: The method.
        config: Its settings.
        loss: Settings of the loss.
        make: Builds the untrained backbone from a seed.
        subject: What a report calls this run.
        seed: Seeds backbone, data, build and training.
    """

    backbone: Backbone
    model: nn.Module
    trainable: list[str]
    own: set[str]

    def __init__(
        self,
        cls: type[Method],
        config: MethodConfig,
        loss: LossConfig,
        make: Callable[..., Backbone],
        subject: str,
        seed: int,
    ):
        self.cls, self.make, self.subject, self.seed = cls, make, subject, seed
        self.method = cls(config, loss)
        self.backbone = make(seed)
        self.batch = fake_batch(self.backbone, seed)

    def all(self) -> list[Check]:
        """Every check in the order of a trial; those that need a built model are left out where building fails."""
        checks: list[Check] = []
        with torch.random.fork_rng(devices=[]):
            for name, function, needed in (
                ("accepts", self.accepts, True),
                ("build", self.build, True),
                ("trainable", self.names, True),
                ("count", self.count, False),
                ("identity_start", self.identity_start, False),
                ("loss", self.loss, True),
                ("bf16", self.bf16, False),
                ("splits by row", self.by_row, False),
                ("gradients", self.gradients, False),
                ("training", self.training, False),
                ("frozen", self.frozen, False),
                *self.of_results(),
            ):
                checks.append(attempt(name, function, self.cls, self.subject))
                if needed and checks[-1].outcome != "ok":
                    break
        return checks

    def of_results(self) -> tuple[tuple[str, Callable[[], str], bool], ...]:
        """Name, function, and whether the rest needs it, of the checks of what the method puts out."""
        return (
            ("embeddings", self.embeddings, True),
            ("deterministic", self.deterministic, False),
            ("batch independence", self.batch_independence, False),
            ("text padding", self.text_padding, False),
            ("head_only", self.head_only, False),
            ("side_features", self.side_features, False),
            ("save and load", self.save_and_load, False),
        )

    def accepts(self) -> str:
        """The method can sit here at all; else nothing more is asked of it."""
        if reason := self.method.refuse(self.backbone):
            raise NotApplicable(f"refused: {reason}")
        return "can sit on this backbone"

    def build(self) -> str:
        """Note what is needed of the untouched backbone, then build."""
        backbone = self.backbone
        images, tokens = self._inputs
        self._before = audit.outputs_untouched(self.method, backbone, self.batch, _CPU)
        if self.cls.head_only:
            assert isinstance(backbone, DualEncoder)
            with inference(backbone, "fp32", _CPU):
                self._pooled = backbone.image.pooled(images).clone(), backbone.text.pooled(tokens).clone()
        self._expected = self.method.expected_trainable(backbone)
        seed_everything(self.seed)
        self.model = self.method.build(backbone)
        if not isinstance(self.model, nn.Module):
            raise ContractError(f"build() returned {self.model!r}; expected the torch module to train and evaluate")
        return type(self.model).__name__

    def names(self) -> str:
        """The named parameters exist; freeze the rest as a trial does."""
        new = set(names_in(self.model, self.backbone, self.backbone.new_parameters())) if self.cls.trains else set()
        self.own = set(self.method.trainable(self.model)) - new
        audit.freeze_all_but(self.model, self.own | new, self.cls.name)
        self.trainable = [n for n, _ in self.model.named_parameters() if n in self.own or n in new]
        if self.cls.trains and not self.trainable:
            raise ContractError("trainable() names nothing, yet the method does not set trains = False")
        if not self.cls.trains and self.trainable:
            raise ContractError(f"trains is False, yet trainable() names {', '.join(self.trainable[:5])}")
        self._start = {n: p.detach().clone() for n, p in self.model.named_parameters() if n in set(self.trainable)}
        self._frozen_before = audit.frozen_hash(self.model, set(self.trainable))
        with inference(self.model, "fp32", _CPU):
            self._side = self.method.side_features(self.model, self._inputs[0])
        return f"{len(self.trainable)} tensors" + (f", {len(new)} of them new joining heads" if new else "")

    def count(self) -> str:
        """The number of trained scalars has the declared closed form."""
        if self._expected is None:
            raise NotApplicable("expected_trainable() declares none")
        audit.check_count(self.method, self.model, self.own, self._expected)
        return f"{self._expected:,}"

    def identity_start(self) -> str:
        """Step 0 equals the untouched backbone."""
        if not self.cls.identity_start:
            raise NotApplicable("not promised")
        after = audit.outputs(self.method, self.model, self.batch, _CPU)
        audit.check_identity(self.method, self._before, after)
        return "step 0 is the untouched backbone"

    def loss(self) -> str:
        """Named finite scalars, also where the data set has no labels."""
        self.model.train()
        first = _total(self.method.loss(self.model, self.batch))
        _total(self.method.loss(self.model, replace(self.batch, labels=None)))
        return f"{float(first.detach()):.4f}"

    def bf16(self) -> str:
        """The loss is finite under autocast, as with train.precision=bf16."""
        with torch.autocast("cpu", torch.bfloat16):
            return f"{float(_total(self.method.loss(self.model, self.batch)).detach()):.4f}"

    def gradients(self) -> str:
        """Every trained tensor is reached."""
        if not self.cls.trains:
            raise NotApplicable("nothing is trained")
        audit.check_gradients(self.method, self.model, set(self.trainable), self.batch)
        return f"reach all {len(self.trainable)} tensors"

    def training(self) -> str:
        """Plain AdamW without weight decay moves every trained tensor."""
        if not self.cls.trains:
            raise NotApplicable("nothing is trained")
        self.model.train()
        parameters = {n: p for n, p in self.model.named_parameters() if n in self._start}
        optimizer = torch.optim.AdamW(parameters.values(), lr=LEARNING_RATE, weight_decay=0.0)
        losses = []
        for _ in range(STEPS):
            optimizer.zero_grad()
            total = _total(self.method.loss(self.model, self.batch))
            total.backward()
            optimizer.step()
            losses.append(float(total.detach()))
        idle = audit.temperature_without_use(self.method, self.model, parameters)
        still = [n for n, p in parameters.items() if torch.equal(p, self._start[n]) and n not in idle]
        if still:
            raise ContractError(
                f"{len(still)} of {len(parameters)} trained tensors have not moved after {STEPS} AdamW steps, e.g. "
                f"{', '.join(still[:5])}; their gradient is zero. Are two factors of a product both zero at the start?"
            )
        return f"loss {losses[0]:.4f} to {losses[-1]:.4f} in {STEPS} steps"

    def frozen(self) -> str:
        """Nothing that is not trained has changed."""
        if not self.cls.trains:
            raise NotApplicable("nothing is trained")
        audit.check_frozen(self.method, self._frozen_before, audit.frozen_hash(self.model, set(self.trainable)))
        return "unchanged"

    def embeddings(self) -> str:
        """(B, E) with one E, floating point, finite."""
        images, tokens = self._inputs
        self._image, self._text = self._encode(images, tokens)
        for what, value in (("encode_image", self._image), ("encode_text", self._text)):
            if value.ndim != 2 or len(value) != len(self.batch):
                raise ContractError(
                    f"{what} gave shape {tuple(value.shape)} for {len(self.batch)} inputs; expected (B, E)"
                )
            if not torch.isfinite(value).all():
                raise ContractError(f"{what} gave NaN or infinity after {STEPS} steps of training")
        if self._image.shape != self._text.shape:
            raise ContractError(f"widths differ: image {self._image.shape[1]}, text {self._text.shape[1]}")
        return str(tuple(self._image.shape))

    def deterministic(self) -> str:
        """In evaluation mode the same input gives the same embedding, bit for bit."""
        again = self._encode(*self._inputs)
        if not (torch.equal(again[0], self._image) and torch.equal(again[1], self._text)):
            raise ContractError(
                f"two passes in evaluation mode differ by {self._far(again):.1e}; use nn.Dropout or test self.training "
                "rather than drawing random numbers in every forward pass"
            )
        return "bit for bit"

    def batch_independence(self) -> str:
        """An embedding depends on its own input only: alone, and in another order."""
        images, tokens = self._inputs
        order = torch.arange(len(self.batch) - 1, -1, -1)
        image, text = self._encode(images[order], tokens[order])
        alone = [self._encode(images[i : i + 1], tokens[i : i + 1]) for i in range(3)]
        difference = max(
            self._far((image[order], text[order])),
            self._far((torch.cat([a for a, _ in alone]), torch.cat([b for _, b in alone]))),
        )
        if not difference <= TOLERANCE:
            raise ContractError(
                f"an embedding changes by up to {difference:.1e} with the other rows of its batch (tolerance "
                f"{TOLERANCE:.0e}); scores would depend on how the evaluation cuts its batches. Do not mix rows in "
                "encode_image or encode_text"
            )
        return f"differences up to {difference:.0e}"

    def text_padding(self) -> str:
        """Padding a caption further changes nothing where the backbone promises so."""
        if not self.backbone.trims_text:
            raise NotApplicable("this backbone sees padding")
        images, tokens = self._inputs
        short = tokens.mask.sum(1).argsort()[:3]  # these lose most when trimmed together
        trimmed = tokens[short].trimmed()
        _, text = self._encode(images[short], trimmed)
        difference = _distance(text, self._text[short])
        if not difference <= TOLERANCE:
            cut = tokens.ids.shape[1] - trimmed.ids.shape[1]
            raise ContractError(
                f"a text embedding changes by up to {difference:.1e} when {cut} padding tokens are cut off (tolerance "
                f"{TOLERANCE:.0e}); respect Tokens.mask, and Hidden.mask where tokens are inserted"
            )
        return f"differences up to {difference:.0e}"

    def head_only(self) -> str:
        """The towers' pooled outputs stay, and stand in for pixels and words everywhere."""
        if not self.cls.head_only:
            raise NotApplicable("not promised")
        images, tokens = self._inputs
        assert isinstance(self.backbone, DualEncoder)
        with inference(self.backbone, "fp32", _CPU):
            now = self.backbone.image.pooled(images), self.backbone.text.pooled(tokens)
        if not (torch.equal(now[0], self._pooled[0]) and torch.equal(now[1], self._pooled[1])):
            raise ContractError(
                "it promises head_only, but the towers' pooled outputs are not those of the untouched backbone, which "
                "the harness computes once and caches; set head_only = False"
            )
        cached = replace(self.batch, images=None, tokens=None, image_pooled=now[0], text_pooled=now[1])
        with inference(self.model, "fp32", _CPU):
            heads = self.method.head_image(self.model, now[0]), self.method.head_text(self.model, now[1])
        if told := self._another_result(cached, self._far(heads)):
            raise ContractError(
                f"it promises head_only, but cached features give another result than pixels and words: {told}. Put the whole "
                "method into head_image and head_text, or set head_only = False"
            )
        return "cached features give the same loss"

    def side_features(self) -> str:
        """What is kept of pictures beside the towers stays as it is, and stands in for them everywhere."""
        if self._side is None:
            raise NotApplicable("there are none")
        images, _ = self._inputs
        with inference(self.model, "fp32", _CPU):
            now = self.method.side_features(self.model, images)
            image = self.method.encode_image_beside(self.model, images, now)
        if now is None or not torch.equal(now, self._side):
            raise ContractError(
                "side_features() changed with training or differs between two calls, but the harness computes it once per "
                "picture; leave out what is trained and what is random"
            )
        if told := self._another_result(
            replace(self.batch, image_side=now), _distance(image, self._image[: len(image)])
        ):
            raise ContractError(
                f"side_features(), kept, give another result than pixels: {told}. encode_image_beside() must give what "
                "encode_image() gives"
            )
        return "kept outputs give the same loss"

    def save_and_load(self) -> str:
        """The trained tensors, loaded into a model that a method made anew has built, give the same embeddings."""
        stored = self._stored()
        data = save(stored)
        method = self.cls(self.method.config, self.method.loss_config)
        model = self._built_anew(method)
        load_trained(model, load(data))
        images, tokens = self._inputs
        with inference(model, "fp32", _CPU):
            difference = self._far((method.encode_image(model, images), method.encode_text(model, tokens)))
        if not difference <= TOLERANCE:
            raise ContractError(
                f"loaded into a freshly built model, the trained tensors give embeddings that differ by up to "
                f"{difference:.1e}; something outside trainable() was learned, or build() is not repeatable under a "
                "fixed seed"
            )
        return f"{len(data):,} bytes" if stored else "nothing to store"

    def _another_result(self, kept: Batch, difference: float) -> str | None:
        """How far a batch of kept outputs is from the batch of pixels and words; None where embeddings and loss agree.

        Args:
            kept: The batch with kept outputs.
            difference: Of its embeddings, see :func:`_distance`.
        """
        with inference(self.model, "fp32", _CPU):
            both = [float(_total(self.method.loss(self.model, b))) for b in (self.batch, kept)]
        if difference > TOLERANCE or abs(both[0] - both[1]) > TOLERANCE * max(1.0, abs(both[0])):
            return f"embeddings differ by {difference:.1e}, the loss is {both[1]:.6f} instead of {both[0]:.6f}"
        return None

    def by_row(self) -> str:
        """Where the loss is promised to be a mean over rows, that of a batch is the mean of its parts'."""
        if not self.method.splits_by_row:
            raise NotApplicable("not promised")
        size = len(self.batch)
        cuts = [(0, size // 2), (size // 2, size)]
        with inference(self.model, "fp32", _CPU):
            whole, *parts = (
                float(_total(self.method.loss(self.model, rows_of(self.batch, *cut)))) for cut in ((0, size), *cuts)
            )
        mean = sum(part * (stop - start) for part, (start, stop) in zip(parts, cuts, strict=True)) / size
        if not abs(whole - mean) <= TOLERANCE * max(1.0, abs(whole)):
            raise ContractError(
                f"it promises splits_by_row, but the loss of a batch is {whole:.6f} and the mean over its halves {mean:.6f}: with "
                "accumulation or several workers another loss would be trained. Set splits_by_row = False"
            )
        return "the mean over its parts"

    def _stored(self) -> dict[str, Tensor]:
        wanted = set(self.trainable)
        return {n: p.detach().clone().contiguous() for n, p in self.model.named_parameters() if n in wanted}

    def _built_anew(self, method: Method | None = None) -> nn.Module:
        backbone = self.make(self.seed)
        seed_everything(self.seed)
        return (method or self.method).build(backbone)

    @property
    def _inputs(self) -> tuple[Tensor, Tokens]:
        assert self.batch.images is not None and self.batch.tokens is not None
        return self.batch.images, self.batch.tokens

    def _encode(self, images: Tensor, tokens: Tokens, model: nn.Module | None = None) -> tuple[Tensor, Tensor]:
        model = self.model if model is None else model
        with inference(model, "fp32", _CPU):
            return self.method.encode_image(model, images), self.method.encode_text(model, tokens)

    def _far(self, pair: tuple[Tensor, Tensor]) -> float:
        """Largest difference from the embeddings of the first rows."""
        return max(
            _distance(mine, kept[: len(mine)]) for mine, kept in zip(pair, (self._image, self._text), strict=True)
        )


def _distance(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference of L2-normalised rows."""
    unit = nn.functional.normalize
    return float((unit(a.float(), dim=-1) - unit(b.float(), dim=-1)).abs().max())


def _total(losses: Any) -> Tensor:
    """Sum of named losses, after checking what they are."""
    if not isinstance(losses, dict) or not losses:
        raise ContractError(f"loss() returned {type(losses).__name__}; expected a dict of named scalar tensors")
    for name, value in losses.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or value.ndim:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ContractError(f"loss() gave {name!r}: {shape}; expected a tensor without dimensions under a string")
        if not torch.isfinite(value):
            raise ContractError(f"loss {name!r} is {float(value.detach())}")
    return torch.stack([value.float() for value in losses.values()]).sum()
