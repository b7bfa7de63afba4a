"""PIR-CLIP as the tests build it."""

from petlbench.methods.pir_clip import PirClip

SMALL = {"prior_layers": (1, 1, 1, 1), "prior_width": 8}


def method_of(config=None, loss=None):
    PirClip.name = "pir_clip"
    return PirClip(config, loss)
