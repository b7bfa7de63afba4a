"""The authors' tensors under our names, and a ViLT of their sizes."""

import re

from golden import ieft_weights as given
from petlbench.methods import ieft
from petlbench.methods.backbones.base import Provenance
from petlbench.methods.backbones.vilt import ViltEncoder
from petlbench.methods.backbones.vilt_files import vilt_names
from petlbench.methods.backbones.vilt_tower import build_vilt


def shapes(by_pattern):
    found = {}
    for key, places in by_pattern.items():
        pattern, _, shape = key.partition("|")
        for place in places.split(" "):
            name = pattern.format(*(n for n in place.split(",") if n))
            found[name] = [int(side) for side in shape.split(",")]
    return found


def ours(official):
    """Their tensors under our names."""
    trunk = {n: t for n, t in official.items() if not re.match(r"transformer\.SE_blocks|local_net", n)}
    mapped = vilt_names(trunk)
    for name in official.keys() - trunk.keys():
        _, place, rest = name.replace("transformer.", "").split(".", 2)
        inner, kind = re.sub(r"(attn|mlp|ffn|body)\.", "", rest).rsplit(".", 1)
        part = "channels" if "SE_blocks" in name else "patches"
        inner = {"dwconv": "conv", "norm2": "norm"}.get(inner, inner) if part == "patches" else inner
        tensor = official[name]
        tensor = tensor.flatten(1) if inner.startswith("project") else tensor  # 1 x 1 convolutions
        mapped[f"{ieft.ENHANCERS}.{int(place) + 1}.{part}.{inner}.{kind}"] = tensor
    return mapped


def golden_vilt(size):
    width, patch = size["width"], size["patch"]
    config = {
        "image_size": 12 * patch,
        "patch_size": patch,
        "hidden_size": width,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 4 * width,
        "vocab_size": given.VOCAB,
        "max_position_embeddings": given.LENGTH,
    }
    provenance = Provenance(
        kind="vilt",
        architecture="golden",
        source="formula",
        sha256="",
        activation="gelu",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        resolution=12 * patch,
        aligned=False,
    )
    return ViltEncoder("golden", build_vilt(config), lambda texts: None, provenance).eval()
