"""CLIP weights inside released checkpoints: OpenAI's names are open_clip's, so they map one to one."""

from __future__ import annotations

from torch import Tensor, nn

from petlbench.methods.backbones.base import DualEncoder
from petlbench.methods.base import MethodError
from petlbench.methods.official import OfficialError, OfficialState

_NO_WEIGHTS = r"(input_resolution|context_length|vocab_size|attn_mask)"


def take_clip(model: nn.Module, state: OfficialState, prefix: str, held_as: str = "clip.") -> dict[str, Tensor]:
    """Take the CLIP weights of a checkpoint, all of them or none.

    Args:
        model: Holds an open_clip model as ``held_as``.
        state: Its tensors under ``prefix`` are used.
        prefix: What the checkpoint puts before OpenAI's names.
        held_as: What the model puts before them.

    Returns:
        Name in the model to tensor; empty where the checkpoint holds no CLIP weights.

    Raises:
        OfficialError: Some CLIP weights are there and others are not.
    """
    state.drop(prefix.replace(".", r"\.") + _NO_WEIGHTS, "follows from the architecture")
    mapped = {f"{held_as}{rest}": tensor for rest, tensor in state.take_under(prefix).items()}
    wanted = {n for n, _ in model.named_parameters() if n.startswith(held_as) and ".attached_" not in n}
    if mapped and (missing := sorted(wanted - mapped.keys())):
        raise OfficialError(
            f"{state.source} holds part of CLIP under {prefix or 'no prefix'!r}: {len(missing)} of {len(wanted)} tensors are "
            f"missing, such as {', '.join(missing[:5])}; give the whole checkpoint, or the adapter's tensors alone"
        )
    return mapped


def names_by_id(model: nn.Module) -> dict[int, str]:
    """``id`` of each parameter to its name in ``model.named_parameters()``; a shared parameter has one name."""
    return {id(parameter): name for name, parameter in model.named_parameters()}


def require_openai_clip(backbone: DualEncoder, state: OfficialState) -> None:
    """:func:`require_quick_gelu` where weights that sit outside of the towers are put on CLIP's; other towers they may not fit.

    Raises:
        MethodError: It is a CLIP, but its activation is not QuickGELU.
    """
    if backbone.provenance.kind == "open_clip":
        require_quick_gelu(backbone, state)


def require_quick_gelu(backbone: DualEncoder, state: OfficialState) -> None:
    """Refuse a backbone that computes another activation than OpenAI's CLIP, on which the weights were trained.

    Raises:
        MethodError: The backbone's activation is not QuickGELU.
    """
    found = backbone.provenance.activation
    if found != "quick_gelu":
        raise MethodError(
            f"{state.source} was trained on OpenAI's CLIP, which uses quick_gelu; {backbone.name} computes {found}, which "
            "loads without an error and loses accuracy. Choose the weights' tag openai (ViT-B-32:openai), or an architecture "
            "whose name ends in -quickgelu"
        )
