"""HarMA with the golden weights of the authors' code."""

import json
import re

from golden.fill import filled
from support import ROOT

from petlbench.methods.backbones.open_clip_model import OpenClipEncoder
from petlbench.methods.backbones.random_models import random_clip
from petlbench.methods.harma import Harma, HarmaConfig

GOLDEN = json.loads((ROOT / "tests" / "golden" / "harma.json").read_text(encoding="utf-8"))
DESCRIBED = HarmaConfig(form="as_described")


def method_of(config=None, loss=None):
    Harma.name = "harma"
    return Harma(config, loss)


def all_shapes(by_pattern):
    """Names and shapes from patterns that stand for the blocks of a tower."""
    return {
        pattern.replace("resblocks.{}", f"resblocks.{index}"): shape
        for pattern, (shape, times) in by_pattern.items()
        for index in range(times)
    }


def golden_tensors():
    state = filled(all_shapes(GOLDEN["shapes"]), GOLDEN["seed"])
    for pattern, factor, term in GOLDEN["rules"]:
        for name in state:
            if re.fullmatch(pattern, name):
                state[name] = factor * state[name] + term
    return state


def golden_backbone(activation):
    import open_clip

    towers = open_clip.CLIPVisionCfg(**GOLDEN["vision"]), open_clip.CLIPTextCfg(**GOLDEN["text"])
    clip = open_clip.CLIP(GOLDEN["embed_dim"], *towers, quick_gelu=activation == "quick_gelu")
    provenance = random_clip().provenance.model_copy(update={"activation": activation})
    return OpenClipEncoder("golden", clip, None, provenance).eval()
