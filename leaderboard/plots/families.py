"""Kinds of methods with their colour and marker; a picture must be readable without colour, so the marker alone tells."""

from __future__ import annotations

from typing import NamedTuple

from petlbench.leaderboard.row import Row


class Family(NamedTuple):
    """A kind of method as plots show it."""

    label: str
    colour: str
    marker: str
    """Of matplotlib."""


OTHER = "other"

# Colours of Okabe and Ito (2008), "Color universal design", which people with any colour vision can tell apart.
FAMILIES: dict[str, Family] = {
    "baseline": Family("Baselines", "#000000", "o"),
    "head": Family("Heads", "#E69F00", "s"),
    "selective": Family("Selective tuning", "#56B4E9", "v"),
    "adapter": Family("Adapters", "#009E73", "^"),
    "prompt": Family("Prompts", "#D55E00", "D"),
    "reparameterisation": Family("Reparameterisation", "#0072B2", "P"),
    "fusion": Family("Fusion encoders", "#CC79A7", "X"),
    OTHER: Family("Other methods", "#8a8a8a", "h"),
}
"""Family to its look, in the order of legends."""

_MEMBERS = {
    "baseline": "full_finetune pir zero_shot",
    "head": "clip_adapter linear_probe pir_petl",
    "selective": "bitfit layer_norm partial pir_clip",
    "adapter": "adapter adaptformer convpass cross_modal_adapter harma mrs_adapter uniadapter",
    "prompt": "cocoop coop cup maple vl_prompt vpt",
    "reparameterisation": "clip_lora dora ia3 lora ssf vera",
    "fusion": "clip_fusion ieft ieft_ordered ieft_pe vilt_adapter vilt_full vilt_lora vilt_prompt",
}
_OF_METHOD = {method: family for family, methods in _MEMBERS.items() for method in methods.split()}


def family_of(row: Row) -> str:
    """Key of :data:`FAMILIES` for a row's method."""
    return family(row.group.method, row.group.identity["origin"])


def family(method: str, origin: str) -> str:
    """Key of :data:`FAMILIES`; a method that did not come with the benchmark, or is not listed here, is an `other`.

    Records do not state a family and a board is made without the methods' code, hence the table above.

    Args:
        method: Registered name.
        origin: Of the method's code, as records state it.
    """
    return _OF_METHOD.get(method, OTHER) if origin == "petlbench" else OTHER
