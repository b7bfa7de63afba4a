"""Which weights a benchmark starts from, so that none needs a download."""

from __future__ import annotations

OWN_WEIGHTS = ("tiny-clip", "vits14-minilm")
"""Backbones that are loaded with the weights they bring; others start at random."""


def start_weights(backbone: str, pretrained: str = "random") -> dict[str, str]:
    """Options for ``load_backbone``: none where the backbone brings its weights, else the tag ``pretrained``."""
    return {} if backbone in OWN_WEIGHTS else {"pretrained": pretrained}
