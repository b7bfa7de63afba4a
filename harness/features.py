"""Pooled outputs of frozen towers, computed once and shared by every trial that only trains heads."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from petlbench.datasets.cache import cache_folder
from petlbench.harness.encode import inference, over_images, over_texts
from petlbench.methods.backbones.base import Backbone, DualEncoder
from petlbench.methods.base import Method

if TYPE_CHECKING:
    from petlbench.harness.data import SplitData

FEATURE_VERSION = 1


@dataclass(frozen=True)
class Pooled:
    """Tower outputs before projection.

    Attributes:
        image: (N, P_image) fp32, on the CPU.
        text: (U, P_text) fp32, of the distinct captions, on the CPU.
    """

    image: Tensor
    text: Tensor


def pooled_features(data: SplitData, backbone: DualEncoder, precision: str, device: torch.device) -> Pooled:
    """The cached features of a split; computed under a lock where they are missing.

    The key holds the weights, the pictures, the captions, their tokens and the precision, so a stale entry cannot be met.
    """
    identity = {
        "version": FEATURE_VERSION,
        "backbone": backbone.provenance.model_dump(mode="json"),
        "pictures": data.images.manifest["key"],
        "captions": data.split.sha256,
        "tokens": data.tokens_hash,
        "precision": precision,
        "device": device.type,
        "torch": torch.__version__,
    }
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
    folder = cache_folder() / "features"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{key}.safetensors"
    with FileLock(str(path) + ".lock"):
        if not path.exists():
            pooled = _compute(data, backbone, precision, device)
            handle, temporary = tempfile.mkstemp(dir=folder, suffix=".tmp")
            os.close(handle)
            try:
                told = {"backbone": backbone.name, "split": data.split.name, "pictures": data.images.manifest["key"]}
                save_file({"image": pooled.image.contiguous(), "text": pooled.text.contiguous()}, temporary, told)
                Path(temporary).chmod(0o644)  # a cache may be shared; save_file and mkstemp are for one user
                Path(temporary).replace(path)
            finally:
                Path(temporary).unlink(missing_ok=True)
            return pooled
        tensors = load_file(path)  # under the lock, so that it is not cleared before it is read
    return Pooled(tensors["image"], tensors["text"])


def side_features(
    data: SplitData, method: Method, model: nn.Module, backbone: Backbone, precision: str, device: torch.device
) -> Tensor | None:
    """(N, S) output of ``method.side_features`` for every picture, on the CPU; None where it has none.

    Kept for the trial only: a random side network differs with the seed.
    """
    from petlbench.harness.data import normalised

    if type(method).side_features is Method.side_features:
        return None
    encode: Any = partial(method.side_features, model)
    with inference(model, precision, device):
        first = normalised(data.images.gather(range(1)).to(device), backbone)
        if encode(first) is None:  # the form at hand trains that network, or has none
            return None
        return over_images(data, backbone, encode, device).cpu()


def _compute(data: SplitData, backbone: DualEncoder, precision: str, device: torch.device) -> Pooled:
    with inference(backbone, precision, device):
        image = over_images(data, backbone, backbone.image.pooled, device)
        text = over_texts(data, backbone, backbone.text.pooled, device)
    return Pooled(image.cpu(), text.cpu())
