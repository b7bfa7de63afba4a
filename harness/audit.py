"""Checks that every trial passes before its score counts: what is trained, what is frozen, where it starts."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import xxhash
from torch import Tensor, nn

from petlbench.harness.encode import inference
from petlbench.methods.backbones.base import DualEncoder
from petlbench.methods.base import Batch, Method, count

IDENTITY_TOLERANCE = 1e-4
"""Largest difference of L2-normalised embeddings at step 0, in fp32; merged weights round differently."""


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
    with inference(backbone, "fp32", device):
        if batch.image_pooled is not None and batch.text_pooled is not None:
            pair = backbone.project_image(batch.image_pooled), backbone.project_text(batch.text_pooled)
        else:
            assert batch.images is not None and batch.tokens is not None
            pair = backbone.encode_image(batch.images), backbone.encode_text(batch.tokens)
        return nn.functional.normalize(torch.cat([p.float() for p in pair]), dim=-1)


def check_identity(method: Method, before: Tensor, after: Tensor) -> str:
    """Step 0 equals the untouched backbone where the method promises it.

    Raises:
        AuditError: It promises and does not keep.
    """
    if not method.identity_start:
        return "not promised"
    if before.shape != after.shape:
        raise AuditError(
            f"audit of {method.name}: embeddings have width {after.shape[1]}, the untouched backbone's {before.shape[1]}, "
            "yet the method promises identity_start"
        )
    difference = float((before - after).abs().max())
    if not difference <= IDENTITY_TOLERANCE:
        raise AuditError(
            f"audit of {method.name}: it promises identity_start, but embeddings at step 0 differ from the untouched "
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
