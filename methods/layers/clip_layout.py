"""The frozen CLIP inside checkpoints of the prompt-learning trainers (CoOp's family), which save it in two halves."""

from __future__ import annotations

from torch import Tensor

from petlbench.methods.backbones.base import DualEncoder
from petlbench.methods.backbones.open_clip_towers import OpenClipImageTower, OpenClipTextTower
from petlbench.methods.base import MethodError
from petlbench.methods.layers.openai_clip import require_quick_gelu
from petlbench.methods.official import OfficialState

_TEXT_PARTS = ("transformer.", "positional_embedding", "ln_final.", "text_projection")


def take_encoders(state: OfficialState, backbone: DualEncoder, own: str = "backbone.") -> dict[str, Tensor]:
    """Take ``image_encoder.*``, ``text_encoder.*`` and ``logit_scale``; these checkpoints hold no word embeddings.

    Args:
        state: What is left after the prompts were taken.
        backbone: Gives our names.
        own: Where the built model holds the backbone.

    Returns:
        Name in the built model's ``state_dict()`` to tensor.

    Raises:
        MethodError: The backbone is no CLIP, or none with OpenAI's activation.
    """
    tower = backbone.text
    if not isinstance(tower, OpenClipTextTower) or not isinstance(backbone.image, OpenClipImageTower):
        raise MethodError(f"{state.source} holds a CLIP; {backbone.name} is none. Choose an open_clip backbone")
    require_quick_gelu(backbone, state)
    root = own + tower.prefix.removesuffix("transformer")
    found = {f"{own}clip.visual.{rest}": value for rest, value in state.take_under("image_encoder.").items()}
    for part in _TEXT_PARTS:
        for rest, value in state.take_under(f"text_encoder.{part}").items():
            found[root + part + rest] = value
    found[f"{own}clip.logit_scale"] = state.take("logit_scale")
    return found
