"""The dual encoder that ranks before a method that scores pairs: its own, or that of a record."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from petlbench.datasets.split import DataError
from petlbench.harness import adapters
from petlbench.harness.data import SplitData
from petlbench.harness.evaluate import embeddings
from petlbench.harness.kept import keep
from petlbench.harness.parts import Parts, assemble, build
from petlbench.harness.query_cost import encoding_s
from petlbench.harness.record_files import read_record
from petlbench.harness.spec import FirstStage
from petlbench.methods.backbones.base import DualEncoder


@dataclass(frozen=True)
class FirstScores:
    """What ranks first.

    Attributes:
        name: ``own cosine``, or method, backbone and seed of a record.
        spec_id: Of the record; None for the method's own dual encoder.
        scores: (N, U) fp32 cosines on the CPU.
        image_s: Seconds per picture to encode it.
        text_s: Seconds per distinct caption to encode it.
        width: Width E of its embeddings.
    """

    name: str
    spec_id: str | None
    scores: Tensor
    image_s: float
    text_s: float
    width: int


def own_scores(
    backbone: DualEncoder, model: nn.Module, data: SplitData, precision: str, device: torch.device
) -> FirstScores:
    """Cosines of the dual encoder that a method for pairs sits on, as it is now (joining heads may be trained)."""
    from petlbench.harness.encode import inference, over_images, over_texts

    with inference(model, precision, device):
        began = time.perf_counter()
        image = over_images(data, backbone, backbone.encode_image, device)
        between = time.perf_counter()
        text = over_texts(data, backbone, backbone.encode_text, device)
        ended = time.perf_counter()
    seconds = (between - began) / len(image), (ended - between) / len(text)
    return FirstScores("own cosine", None, cosines(image, text), *seconds, image.shape[1])


def record_scores(stage: FirstStage, data: SplitData, device: torch.device) -> FirstScores:
    """Cosines of the dual encoder of a record, on the split that is open here.

    Raises:
        DataError: It reads other captions than this trial (``train.captions`` differs).
        AdapterError: Its trained tensors are missing or do not fit.
    """
    record = read_record(Path(stage.record))
    parts = assemble(stage.trial)
    theirs = SplitData.open(parts.splits[data.split.name], parts.backbone, parts.recipe.captions)
    if theirs.split.captions != data.split.captions:
        raise DataError(
            f"first stage {stage.record}: it reads the captions of split {data.split.name} in another form "
            f"(train.captions={parts.recipe.captions}) than this trial; choose a record of the same form"
        )
    parts.backbone.to(device)
    built = build(parts, stage.trial.spec.seed, device)
    if (adapter := adapters.adapter_of(record, Path(stage.record))) is not None:
        adapters.load_adapter(parts.method, built.model, built.trainable, adapter)
    image, text = _embedded(parts, built.model, theirs, device)
    seconds = encoding_s(parts.method, built.model, parts.backbone, theirs, parts.recipe.precision, device)
    spec = stage.trial.spec
    label = f"{spec.method.name} on {spec.backbone.name}, seed {spec.seed}"
    return FirstScores(label, record.spec_id, cosines(image, text), *seconds, image.shape[1])


def cosines(image: Tensor, text: Tensor) -> Tensor:
    """(N, U) fp32 cosines, on the CPU, of (N, E) and (U, E) embeddings."""
    unit = torch.nn.functional.normalize
    with torch.autocast(image.device.type, enabled=False):
        return (unit(image.float(), dim=-1) @ unit(text.float(), dim=-1).T).cpu()


def _embedded(parts: Parts, model: nn.Module, data: SplitData, device: torch.device) -> tuple[Tensor, Tensor]:
    assert isinstance(parts.backbone, DualEncoder)
    kept = keep(parts, model, data, device)
    return embeddings(parts.method, model, parts.backbone, data, parts.recipe.precision, device, kept)
