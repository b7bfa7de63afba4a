"""The frozen scene prior of PIR: a ResNet without its classifier, whose pooled output guides the image head."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from petlbench.methods.backbones import weights_io
from petlbench.methods.backbones.base import BackboneError

PriorName = Literal["resnet50", "resnet18"]
PRIOR_WIDTH: dict[str, int] = {"resnet50": 2048, "resnet18": 512}
_PICTURES, _BLOBS, _SMALLEST, _LARGEST = 8, 4, 64, 96


class ScenePrior(nn.Module):
    """A frozen ResNet to its pooled features; always in evaluation mode and without gradients.

    Args:
        network: Which ResNet; ``resnet50`` (23,508,032 parameters) in PIR.
        weights: ``random``, or a file with a ResNet of torchvision's names, such as the scene classifiers of RSP; a
            classifier in it is left out, everything else has to fit.
        resolution: Side of the pictures, pixels; used to give the norms of a random network their statistics.

    Raises:
        BackboneError: The file is not found or does not fit.
    """

    def __init__(self, network: PriorName = "resnet50", weights: str = "random", resolution: int = 224):
        super().__init__()
        from torchvision.models import resnet

        self.network = getattr(resnet, network)(weights=None)
        self.network.fc = nn.Identity()
        self.width = PRIOR_WIDTH[network]
        if weights == "random":
            _calibrate(self.network, resolution)
        else:
            load_prior(self.network, weights)
        self.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> ScenePrior:
        """Stays in evaluation mode: in training mode its batch norms would mix the rows of a batch, and drift."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) pictures, normalised for the backbone, to (B, P)."""
        return self.network(images)


def load_prior(network: nn.Module, weights: str) -> None:
    """Load a file of torchvision's names strictly into a ResNet without classifier.

    Raises:
        BackboneError: It is not found or does not fit; the message says how many names matched.
    """
    path = weights_io.find_weights(weights)
    state = weights_io.read_state_dict(path)
    wanted = network.state_dict()
    matched = sum(name in state for name in wanted)
    try:
        weights_io.load_strict(network, state, path.name, ignored=("fc.weight", "fc.bias"))
    except BackboneError as error:
        raise BackboneError(
            f"scene prior: {matched} of {len(wanted)} names match; {error} Give a ResNet with torchvision's names, or "
            "say prior_weights=random"
        ) from error


@torch.no_grad()
def _calibrate(network: nn.Module, resolution: int) -> None:
    """Let the batch norms of a random network take the statistics of seeded, smooth noise.

    With the initial statistics (mean 0, variance 1) the output of a random ResNet grows with its depth and hardly differs
    between pictures. The released code avoids that by normalising with the batch at hand. White noise is averaged away
    by the first convolutions, so statistics of it would let pictures, which are smooth, grow all the same.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    if norms[0].weight.is_meta:
        return
    for norm in norms:
        norm.momentum = None  # plain average: the statistics of the one batch that follows
    network.train()
    side = min(max(resolution, _SMALLEST), _LARGEST)
    coarse = torch.randn(_PICTURES, 3, _BLOBS, _BLOBS, device=norms[0].weight.device)
    network(nn.functional.interpolate(coarse, (side, side), mode="bicubic"))
    network.eval()
    for norm in norms:
        norm.momentum = 0.1


def prior_size(network: str) -> int:
    """Parameters of the prior without classifier."""
    return {"resnet50": 23_508_032, "resnet18": 11_176_512}[network]
