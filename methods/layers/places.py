"""Where in a backbone the projections, norms, embeddings and joining maps are, by name."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from petlbench.methods.backbones.base import DualEncoder, Tower
from petlbench.methods.layers.bottleneck import Towers, chosen_towers


class Places(NamedTuple):
    """Names, within the DualEncoder, of modules that hold weights to update."""

    packed: list[str]
    """``nn.MultiheadAttention`` modules, which hold q, k, v and o at once."""
    linear: list[str]
    """``nn.Linear`` modules."""


class Ends(NamedTuple):
    """What stands before and behind a tower's blocks; names within the DualEncoder."""

    embedding: str
    """Patch convolution or word table."""
    first_norm: list[str]
    """Norm between the embedding and the first block, where there is one."""
    final_norm: list[str]
    """Norm behind the last block, where there is one."""
    projection: list[str]
    """Parameter or module that maps the pooled output to the joint space (the joining head of aligned towers); none where new
    joining heads do, which every method trains."""


def places(backbone: DualEncoder, towers: Towers, projections: str = "", mlp: tuple[int, ...] = ()) -> Places:
    """Modules of every block that hold the wanted weights.

    Args:
        backbone: Untouched.
        towers: In which towers.
        projections: Letters out of ``qkvo``; on packed attention any of them names the whole module.
        mlp: Indices into the two linear layers of the MLP: 0 widens, 1 narrows.
    """
    found = Places([], [])
    for tower in chosen_towers(backbone, towers):
        for index in range(tower.depth):
            names = tower.linears(index, "attention") if projections else []
            if len(names) == 1:
                found.packed.extend(names)
            else:
                found.linear.extend(name for letter, name in zip("qkvo", names, strict=False) if letter in projections)
            layers = tower.linears(index, "mlp") if mlp else []
            found.linear.extend(layers[i] for i in mlp)
    return found


def packed_parts(projections: str) -> tuple[str, ...]:
    """Letters out of ``qkvo`` as packed attention calls its projections."""
    return tuple("out_proj" if letter == "o" else letter for letter in projections)


def ends(backbone: DualEncoder, tower: Tower) -> Ends:
    """The embedding, norms and projection of a tower."""
    view: Any = tower
    root = str(view.prefix)
    if backbone.provenance.kind == "two_tower":
        head = [f"{tower.modality}_head"] if backbone.aligned else []
        if tower.modality == "image":
            return Ends(f"{root}.embeddings.patch_embeddings.projection", [], [f"{root}.layernorm"], head)
        return Ends(f"{root}.embeddings.word_embeddings", [f"{root}.embeddings.LayerNorm"], [], head)
    root = root.removesuffix(".transformer")
    if tower.modality == "text":
        return Ends(f"{root}.token_embedding", [], [f"{root}.ln_final"], [f"{root}.text_projection"])
    absent = isinstance(backbone.get_submodule(f"{root}.ln_pre"), nn.Identity)
    return Ends(f"{root}.conv1", [] if absent else [f"{root}.ln_pre"], [f"{root}.ln_post"], [f"{root}.proj"])


def projection_size(backbone: DualEncoder, tower: Tower) -> int:
    """P E scalars of the projection, and E of its bias where it is a module with one; 0 where there is no projection.

    A joining head with a hidden layer of width H has (P + 1) H + (H + 1) E.
    """
    total = 0
    for name in ends(backbone, tower).projection:
        parent, _, last = name.rpartition(".")
        projection: Any = getattr(backbone.get_submodule(parent), last)
        if isinstance(projection, nn.Sequential):
            hidden = int(projection[0].out_features)  # type: ignore[arg-type]
            total += (tower.pooled_width + 1) * hidden + (hidden + 1) * backbone.embed_dim
            continue
        biased = getattr(projection, "bias", None) is not None
        total += (tower.pooled_width + biased) * backbone.embed_dim
    return total


def block_names(backbone: DualEncoder, tower: Tower) -> list[str]:
    """Full names of the tower's blocks, in order."""
    names = {id(module): name for name, module in backbone.named_modules()}
    return [names[id(block)] for block in tower.blocks]


def under(name: str, prefixes: list[str]) -> bool:
    """Whether a dotted name is at or below one of the prefixes."""
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def tower_names(backbone: DualEncoder, towers: Towers) -> list[str]:
    """Prefixes of everything that lies between the inputs and the pooled outputs of the towers, projections left out."""
    names: list[str] = []
    for tower in chosen_towers(backbone, towers):
        edge = ends(backbone, tower)
        names += [edge.embedding, *edge.first_norm, *block_names(backbone, tower), *edge.final_norm]
    return names
