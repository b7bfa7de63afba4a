"""CLIP's ResNet with attention pooling as a side encoder: normalisation statistics fixed, one query, strict weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from petlbench.methods.backbones.base import BackboneError
from petlbench.methods.backbones.weights_io import find_weights, load_strict, read_state_dict

STRIDE = 32
"""Pixels per position of the last feature map."""
HEAD = 64
"""Width of an attention head of the pooling."""
EXPANSION = 4
RANDOM = "random"
_PREFIXES = ("res_visual.", "visual.")
_PICTURES = 8
_COARSE = 4


class PriorResNet(nn.Module):
    """``ModifiedResNet`` of open_clip, (B, 3, R, R) pictures to (B, D) features.

    Its batch norms never use or update batch statistics, in training either: an embedding depends on its own picture
    alone, and what is frozen stays as it is.

    Args:
        layers: Blocks of the four stages; (3, 4, 6, 3) is ResNet-50.
        width: Channels of the first stage, even; 64 in ResNet-50.
        dim: Width D of the output.
        side: Side R of the pictures, pixels.
    """

    def __init__(self, layers: Sequence[int], width: int, dim: int, side: int):
        super().__init__()
        from open_clip.modified_resnet import ModifiedResNet

        self.net: Any = ModifiedResNet(list(layers), dim, EXPANSION * 8 * width // HEAD, side, width)
        self.eval()

    def train(self, mode: bool = True) -> PriorResNet:
        """Stays in evaluation mode; there is no dropout inside, and batch statistics must not enter."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, R, R) to (B, D)."""
        net = self.net
        x = net.layer4(net.layer3(net.layer2(net.layer1(net.stem(images)))))
        return attention_pool(net.attnpool, x.flatten(2).transpose(1, 2))

    def load(self, weights: str) -> None:
        """Weights of a CLIP ResNet, or of the prior inside a PIR-CLIP checkpoint; all keys and shapes must agree.

        Raises:
            BackboneError: No such file, or it holds another network; the message lists the keys.
        """
        path = find_weights(weights)
        state = read_state_dict(path)
        prefix = next((p for p in _PREFIXES if any(key.startswith(p) for key in state)), "")
        own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        known = self.net.state_dict()
        if not own.keys() & known.keys():
            raise BackboneError(
                f"{path.name}: 0 of the {len(known)} tensors of a CLIP ResNet were found, neither by plain name nor under "
                f"{' or '.join(_PREFIXES)}; the file's first keys are {', '.join(list(state)[:5])}"
            )
        advice = "Is this a ResNet-50 of CLIP, and do prior_layers, prior_width and prior_dim fit it?"
        load_strict(self.net, own, path.name, advice=advice)

    @torch.no_grad()
    def start_at_random(self, *, open_branches: bool) -> None:
        """Make an untrained network pass its input on: set the statistics from smooth noise, under torch's global seed.

        Without data there are no statistics, and at open_clip's initial weights the signal would fade to nothing on its
        way. Noise that is drawn on a coarse grid and enlarged is as smooth as pictures are.

        Args:
            open_branches: Start the residual branches at 1 instead of open_clip's 0, for a network that stays frozen.
        """
        norms = [m for m in self.net.modules() if isinstance(m, nn.BatchNorm2d)]
        if open_branches:
            for name, parameter in self.net.named_parameters():
                if name.endswith("bn3.weight"):
                    nn.init.ones_(parameter)
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 1.0
            norm.train()
        side = self.net.image_size
        coarse = torch.randn(_PICTURES, 3, _COARSE, _COARSE)
        self(F.interpolate(coarse, (side, side), mode="bicubic", align_corners=False))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()


def attention_pool(pool: Any, features: Tensor) -> Tensor:
    """What open_clip's ``AttentionPool2d`` gives for the mean, the only query whose result is read.

    With one query, keys and values need not be projected: the query is mapped back through the key weights, and the value
    weights act on the mixed features. Exact, and a few percent of the work. A constant feature 1 carries the biases.

    Args:
        pool: The module that holds the weights.
        features: (B, N, C) positions of the last feature map.

    Returns:
        (B, D)
    """
    heads = pool.num_heads
    x = torch.cat([features.mean(1, keepdim=True), features], 1) + pool.positional_embedding.to(features.dtype)
    query = pool.q_proj(x[:, 0]).unflatten(-1, (heads, -1))  # (B, H, C / H)
    keys = torch.einsum("bhd,hdc->bhc", query, _with_bias(pool.k_proj, heads)).to(x.dtype)
    spread = F.pad(x, (0, 1), value=1.0)[:, None].expand(-1, heads, -1, -1)
    mixed = F.scaled_dot_product_attention(keys[:, :, None], spread, spread, scale=query.shape[-1] ** -0.5)[:, :, 0]
    return pool.c_proj(torch.einsum("bhc,hdc->bhd", mixed, _with_bias(pool.v_proj, heads)).flatten(1))


def _with_bias(linear: nn.Linear, heads: int) -> Tensor:
    """(H, C / H, C + 1) weights of each head, the bias as last column."""
    return torch.cat([linear.weight, linear.bias[:, None]], 1).unflatten(0, (heads, -1))


def prior_scalars(layers: Sequence[int], width: int, dim: int, side: int) -> int:
    """Parameters of :class:`PriorResNet`: stem, bottleneck blocks with their norms, and attention pooling."""
    half = width // 2
    total = 27 * half + 9 * half * half + 9 * half * width + 2 * (half + half + width)
    channels = width
    for stage, blocks in enumerate(layers):
        planes = width << stage
        for block in range(blocks):
            out = EXPANSION * planes
            total += channels * planes + 9 * planes * planes + planes * out + 2 * (2 * planes + out)
            if block == 0:  # stride 2, or at least another number of channels
                total += channels * out + 2 * out
            channels = out
    grid = side // STRIDE
    return total + (grid * grid + 1) * channels + 3 * (channels * channels + channels) + channels * dim + dim
