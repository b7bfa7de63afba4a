"""Names of PIR's released checkpoints and ours."""

from __future__ import annotations

import torch
from torch import Tensor

from petlbench.methods.backbones.swin_bert_files import swin_names
from petlbench.methods.official import OfficialState

_RESNET = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
"""Children of a ResNet by their place, which is how the authors' wrapper names them."""
_BLOCK = {"ffn.0": "ffn.0", "ffn.1": "ffn.1", "ffn.3": "ffn.3", "norm1": "norm1", "norm2": "norm2"}
_BLOCKS = {"sa": ("own", "mhatt"), "ca": ("cross", "mhatt_cross")}
_PARTS = ("weight", "bias")


def imported(state: OfficialState, image_steps: int, text_steps: int, affiliation: bool) -> dict[str, Tensor]:
    """Every tensor of a released checkpoint by our name.

    Raises:
        OfficialError: A tensor of a head is missing.
    """
    state.drop(r"vision_encoder\..*(relative_position_index|attn_mask)", "index tables, made from the window")
    found = {"backbone.temp": state.take("temp")}
    if affiliation:
        found["temp2"] = state.take("temp2")
    else:
        state.drop("temp2", "the affiliation loss is off")
    for name, tensor in swin_names(state.take_under("vision_encoder.")).items():
        found[f"backbone.vision.{name}"] = tensor
    for name, tensor in state.take_under("text_encoder.").items():
        found[f"backbone.language.{name.removeprefix('bert.')}"] = tensor
    for name, tensor in state.take_under("conv_encoder.").items():
        place, _, rest = name.partition(".")
        found[f"prior.network.{_RESNET.get(place, place)}.{rest}"] = tensor
    direct = {"vision_proj": "backbone.vision_proj", "text_proj": "backbone.text_proj", "conv_proj": "image_head.prior"}
    direct |= {"head_img": "image_head.head", "head_txt": "text_head.head"}
    for theirs, ours in direct.items():
        for part in _PARTS:
            found[f"{ours}.{part}"] = state.take(f"{theirs}.{part}")
    for side, ours, steps in (("img", "image_head", image_steps), ("txt", "text_head", text_steps)):
        for index in range(steps):
            found.update(_step(state, side, f"{ours}.steps.{index}", index))
    return found


def _step(state: OfficialState, side: str, ours: str, index: int) -> dict[str, Tensor]:
    found = {f"{ours}.mapping.{part}": state.take(f"mapping_{side}.{index}.{part}") for part in _PARTS}
    for kind, (block, attention) in _BLOCKS.items():
        theirs, own = f"{side}_{kind}.{index}", f"{ours}.{block}"
        for part in _PARTS:
            for old, new in _BLOCK.items():
                found[f"{own}.{new}.{part}"] = state.take(f"{theirs}.{old}.{part}")
            for old, new in (("linear_q", "query"), ("linear_merge", "merge")):
                found[f"{own}.attention.{new}.{part}"] = state.take(f"{theirs}.{attention}.{old}.{part}")
            pair = [state.take(f"{theirs}.{attention}.linear_{which}.{part}") for which in "kv"]
            found[f"{own}.attention.key_value.{part}"] = torch.cat(pair)
    return found
