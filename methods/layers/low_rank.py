"""What the LoRA family shares: where its updates go, how they are injected, counted and named in peft's files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from torch import nn

from petlbench.methods.backbones.base import DualEncoder
from petlbench.methods.base import PeftFormat
from petlbench.methods.layers.bottleneck import Towers, chosen_towers
from petlbench.methods.layers.peft_names import peft_format
from petlbench.methods.layers.places import Places, places

Targets = Literal["attention", "mlp", "both"]
Projections = Literal["q", "v", "qv", "kv", "qkv", "qkvo"]


def low_rank_places(backbone: DualEncoder, targets: Targets, projections: str, towers: Towers) -> Places:
    """Modules that get updates: the chosen attention projections, both layers of the MLP, or all of these."""
    return places(backbone, towers, projections if targets != "mlp" else "", (0, 1) if targets != "attention" else ())


def inject_low_rank(
    backbone: DualEncoder,
    found: Places,
    packed: Callable[[nn.MultiheadAttention], nn.Module],
    linear: Mapping[str, Any],
) -> None:
    """Put updates into a backbone, in place.

    Args:
        backbone: Untouched.
        found: Where.
        packed: Makes the stand-in for a packed attention.
        linear: Settings of ``peft.LoraConfig`` for linear layers.
    """
    for target in found.packed:
        attention: Any = backbone.get_submodule(target)
        backbone.set_submodule(target, packed(attention))
    if found.linear:
        import peft

        peft.inject_adapter_in_model(peft.LoraConfig(target_modules=found.linear, **linear), backbone)


def low_rank_size(backbone: DualEncoder, rank: int, targets: Targets, projections: str, towers: Towers) -> int:
    """r (in + out) per matrix: 2 W r per projection and 2 (W + M) r per MLP of hidden width M."""
    total = 0
    for tower in chosen_towers(backbone, towers):
        attention = 2 * tower.width * len(projections) if targets != "mlp" else 0
        widening: Any = backbone.get_submodule(tower.linears(0, "mlp")[0])
        mlp = 2 * (tower.width + widening.out_features) if targets != "attention" else 0
        total += tower.depth * rank * (attention + mlp)
    return total


def low_rank_names(model: nn.Module) -> list[str]:
    """Names of all A and B matrices, and of DoRA's magnitudes."""
    marks = (".lora_A.", ".lora_B.", ".lora_magnitude_vector.")
    return [name for name, _ in model.named_parameters() if any(mark in name for mark in marks)]


def low_rank_peft(
    model: nn.Module, backbone: DualEncoder, names: Iterable[str], config: Mapping[str, Any]
) -> PeftFormat:
    """The format of peft's LoRA; joint updates of packed attention are those of peft's own wrapper.

    Args:
        model: Built and injected.
        backbone: The same, as a backbone.
        names: The A and B matrices and magnitudes.
        config: Entries of ``adapter_config.json`` besides the targets.
    """
    keys = {}
    for name in names:
        key = name
        for matrix in ("lora_A", "lora_B"):
            key = key.replace(f".{matrix}.in_proj", f".{matrix}.default.weight")
            key = key.replace(f".{matrix}.out_proj", f".base_layer.out_proj.{matrix}.default.weight")
        keys[name] = key.replace(".lora_magnitude_vector.default.weight", ".lora_magnitude_vector.default")
    return peft_format(backbone, keys, {"peft_type": "LORA", "bias": "none", "lora_dropout": 0.0, **config})
