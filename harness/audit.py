"""Checks that every trial passes before its score counts: what is trained, what is frozen, where it starts."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import xxhash
from torch import Tensor, nn

from petlbench.harness.encode import inference
from petlbench.methods.backbones.base import Backbone, DualEncoder, PairEncoder
from petlbench.methods.base import Batch, Method, count
from petlbench.methods.pair import PairMethod

IDENTITY_TOLERANCE = 1e-4
"""Largest difference at step 0, in fp32, of L2-normalised embeddings or, relative to the largest, of pair scores; merged
weights round differently."""


class AuditError(RuntimeError):
    """A method does not do what it declares; the trial must not produce a score."""


def freeze_all_but(model: nn.Module, trainable: Iterable[str], method: str) -> None:
    """Set ``requires_grad`` on exactly the named parameters.

    Raises:
        AuditError: A name does not exist in the model.
    """
    chosen = set(trainable)
    parameters = dict(model.named_parameters())
    if unknown := sorted(chosen - parameters.keys()):
        raise AuditError(
            f"audit of {method}: trainable() names {len(unknown)} parameters that the model does not have, "
            f"e.g. {', '.join(unknown[:5])}; names must be those of model.named_parameters()"
        )
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in chosen)


def check_count(method: Method, model: nn.Module, trainable: set[str], expected: int | None) -> str:
    """The number of trained scalars equals the declared closed form.

    Raises:
        AuditError: It does not.
    """
    if expected is None:
        return "not declared"
    found = count(model, trainable)
    if found != expected:
        largest = sorted(((p.numel(), n) for n, p in model.named_parameters() if n in trainable), reverse=True)[:5]
        listing = ", ".join(f"{n} ({size:,})" for size, n in largest) or "nothing"
        raise AuditError(
            f"audit of {method.name}: {found:,} scalars are trained but expected_trainable() declares {expected:,}; "
            f"largest trained tensors: {listing}"
        )
    return "ok"


def check_gradients(method: Method, model: nn.Module, trainable: set[str], batch: Batch) -> str:
    """Every trained tensor gets a gradient from one backward pass, and the loss is finite.

    Raises:
        AuditError: Some tensor is not reached (e.g. LoRA on a projection whose weight is read directly).
    """
    named = [(n, p) for n, p in model.named_parameters() if n in trainable]
    if not named:
        return "nothing is trained"
    with torch.random.fork_rng():
        loss = sum(method.loss(model, batch).values(), torch.zeros((), device=batch.image_ids.device))
    if not torch.isfinite(loss):
        raise AuditError(f"audit of {method.name}: the loss of the first batch is {float(loss)}")
    if not loss.requires_grad:
        raise AuditError(f"audit of {method.name}: the loss does not depend on any trained parameter")
    gradients = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
    idle = temperature_without_use(method, model, trainable)
    missing = [n for (n, _), g in zip(named, gradients, strict=True) if g is None and n not in idle]
    if missing:
        raise AuditError(
            f"audit of {method.name}: {len(missing)} of {len(named)} trained tensors get no gradient, e.g. "
            f"{', '.join(missing[:5])}; they would stay at their initial values. Train what the forward pass really reads"
        )
    return "ok"


def temperature_without_use(method: Method, model: nn.Module, trainable: Iterable[str]) -> set[str]:
    """Trained tensors that only set the temperature, where the chosen loss has none: they rightly get no gradient."""
    if method.loss_config.uses_temperature:
        return set()
    scale = method.logit_scale(model)
    chosen = set(trainable)
    named = [(n, p) for n, p in model.named_parameters() if n in chosen and p.requires_grad]
    if not scale.requires_grad or not named:
        return set()
    gradients = torch.autograd.grad(scale.sum(), [p for _, p in named], allow_unused=True)
    return {n for (n, _), g in zip(named, gradients, strict=True) if g is not None}


def embed_for_audit(method: Method, model: nn.Module, batch: Batch, device: torch.device) -> Tensor:
    """(2B, E) L2-normalised embeddings of a small batch in fp32, dropout off."""
    with inference(model, "fp32", device):
        image, text = method.embed(model, batch)
        return nn.functional.normalize(torch.cat([image.float(), text.float()]), dim=-1)


def embed_untouched(backbone: DualEncoder, batch: Batch, device: torch.device) -> Tensor:
    """The same for the backbone itself, before the method builds on it."""
    assert batch.images is not None and batch.tokens is not None
    with inference(backbone, "fp32", device):
        pair = backbone.encode_image(batch.images), backbone.encode_text(batch.tokens)
        return nn.functional.normalize(torch.cat([p.float() for p in pair]), dim=-1)


def outputs(method: Method, model: nn.Module, batch: Batch, device: torch.device) -> Tensor:
    """What a method says of a small batch: :func:`embed_for_audit`, or (B, 1 + K) scores where it scores pairs."""
    if not isinstance(method, PairMethod):
        return embed_for_audit(method, model, batch, device)
    with inference(model, "fp32", device):
        return method.candidate_scores(model, *method.prepared(model, batch)).float()


def outputs_untouched(method: Method, backbone: Backbone, batch: Batch, device: torch.device) -> Tensor:
    """The same of the backbone itself; on a dual encoder, scores are cosines divided by the temperature."""
    if not isinstance(method, PairMethod):
        assert isinstance(backbone, DualEncoder)
        return embed_untouched(backbone, batch, device)
    assert batch.images is not None and batch.candidates is not None
    shape = (len(batch), len(batch.candidates) // len(batch))
    with inference(backbone, "fp32", device):
        if isinstance(backbone, PairEncoder):
            return backbone.score_pairs(batch.images.repeat_interleave(shape[1], 0), batch.candidates).view(shape)
        assert isinstance(backbone, DualEncoder)
        image = nn.functional.normalize(backbone.encode_image(batch.images).float(), dim=-1)
        text = nn.functional.normalize(backbone.encode_text(batch.candidates).float(), dim=-1)
        return backbone.logit_scale.exp() * torch.einsum("be,bke->bk", image, text.unflatten(0, shape))


def check_identity(method: Method, before: Tensor, after: Tensor) -> str:
    """Step 0 equals the untouched backbone where the method promises it.

    Raises:
        AuditError: It promises and does not keep.
    """
    if not method.identity_start:
        return "not promised"
    what = "scores" if isinstance(method, PairMethod) else "embeddings"
    if before.shape != after.shape:
        raise AuditError(
            f"audit of {method.name}: {what} have width {after.shape[1]}, the untouched backbone's {before.shape[1]}, "
            "yet the method promises identity_start"
        )
    difference = float((before - after).abs().max() / before.abs().max().clamp(min=1))  # scores may be large
    if not difference <= IDENTITY_TOLERANCE:
        raise AuditError(
            f"audit of {method.name}: it promises identity_start, but {what} at step 0 differ from the untouched "
            f"backbone by up to {difference:.2e} (tolerance {IDENTITY_TOLERANCE:.0e}); start the added modules at zero, or "
            "set identity_start = False"
        )
    return "ok"


def frozen_hash(model: nn.Module, trainable: set[str]) -> str:
    """Hash of every parameter and stored buffer that is not trained."""
    digest = xxhash.xxh3_128()
    # A module shared by many blocks stands in the state once per block, but among the parameters once.
    trained = {id(p) for n, p in model.named_parameters() if n in trainable}
    for name, tensor in sorted(model.state_dict(keep_vars=True).items()):
        if id(tensor) not in trained:
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def check_frozen(method: Method, before: str, after: str) -> str:
    """Nothing frozen has changed.

    Raises:
        AuditError: Something has.
    """
    if before != after:
        raise AuditError(
            f"audit of {method.name}: frozen weights or buffers changed during training; a module updates itself in its "
            "forward pass (batch norm statistics?) or trainable() leaves out something that is updated"
        )
    return "ok"
