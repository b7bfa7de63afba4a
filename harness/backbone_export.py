"""The whole backbone of a finished trial as one weight file, so that other trials can start from it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from petlbench.errors import PetlbenchError
from petlbench.harness import adapters
from petlbench.harness.disk import room_for
from petlbench.harness.encode import inference
from petlbench.harness.evaluation import check_same_backbone
from petlbench.harness.json_files import RecordError, write_atomically
from petlbench.harness.parts import Built, Parts, assemble, build
from petlbench.harness.record import Record
from petlbench.harness.record_files import read_record
from petlbench.harness.retrial import Places, trial_of
from petlbench.harness.spec import Trial, canonical_json
from petlbench.methods.backbones.base import Backbone, DualEncoder
from petlbench.methods.backbones.exported import ENTRY, Alignment, Exported, TwoTowerShape
from petlbench.methods.backbones.joint import describe_towers
from petlbench.methods.backbones.open_clip_model import OpenClipEncoder
from petlbench.methods.backbones.registry import load_backbone
from petlbench.methods.backbones.two_tower import TwoTowerEncoder

_CPU = torch.device("cpu")
_LISTED = 6
_CAPTIONS = ("an airport with two runways beside a lake", "many buildings")


class ExportError(PetlbenchError):
    """A trial's backbone cannot be written as a weight file of its own."""


@dataclass(frozen=True)
class Export:
    """A written file.

    Attributes:
        path: The file.
        header: What it says of itself.
        tensors: Number of tensors.
        scalars: Number of scalars.
        size: Bytes.
        sha256: Of the file.
    """

    path: Path
    header: Exported
    tensors: int
    scalars: int
    size: int
    sha256: str


def export_backbone(record_path: Path, out: Path, places: Places, *, force: bool = False) -> Export:
    """Build the model of a record again, load what it trained, and write its backbone whole; deterministic to the byte.

    The written tensors are put into an untouched backbone first, which must then say of pictures and captions what the
    trained model says of them: a method may leave neither modules nor hooks behind.

    Args:
        record_path: A finished record; its trained tensors lie beside it.
        out: The ``.safetensors`` file to write, whole or not at all.
        places: Where data, weights and plugins lie on this machine.
        force: Replace an existing file.

    Raises:
        ExportError: ``out`` exists or is no file of this kind, or the trained model is more than its backbone.
        RecordError: The record is unreadable, of a failed trial, or made by an incompatible version.
        AdapterError: The trained tensors are missing or do not fit.
        DataError: Data are missing, or are not those of the record.
        BackboneError: Weights are missing.
        DiskFull: There is no room; an older file stands.
    """
    _check_out(out, force)
    record = read_record(record_path)
    if record.status != "ok":
        raise RecordError(
            f"{record_path}: the trial has status `{record.status}`, so there is nothing to export; run it again"
        )
    adapter = adapters.adapter_of(record, record_path)
    if adapter is None:
        raise ExportError(
            f"{record_path}: method {record.method.name} trained nothing; its backbone is {record.spec['backbone']['name']}, as "
            "it was"
        )
    trial = trial_of(record, record_path, places)
    parts = assemble(trial)
    check_same_backbone(parts, record.backbone or {}, record_path)
    shape = _described(parts.backbone, record_path)
    built = build(parts, trial.spec.seed, _CPU)
    adapters.load_adapter(parts.method, built.model, built.trainable, adapter)
    backbone = _alone(parts, built, trial, record_path)

    header = Exported(
        name=trial.spec.backbone.name,
        backbone=parts.backbone.provenance,
        alignment=_alignment(record, parts, record_path),
        two_tower=shape,
    )
    state = {name: tensor.detach().clone().contiguous() for name, tensor in _state(backbone).items()}
    payload = save(state, metadata={ENTRY: canonical_json(header.model_dump(mode="json"))})
    with room_for("the exported backbone", out.parent, len(payload)):
        write_atomically(out, payload)
    scalars = sum(tensor.numel() for tensor in state.values())
    return Export(out, header, len(state), scalars, len(payload), hashlib.sha256(payload).hexdigest())


def _check_out(out: Path, force: bool) -> None:
    if out.suffix != ".safetensors":
        raise ExportError(f"--out {out}: weight files end in .safetensors; found {out.suffix or 'no suffix'}")
    if out.is_dir():
        raise ExportError(f"--out {out} is a folder; give the file to write")
    if out.exists() and not force:
        raise ExportError(f"--out {out} exists; give --force to replace it, or another name")


def _described(backbone: Backbone, path: Path) -> TwoTowerShape | None:
    """What the file must say of the shape, where a name does not say it; refuses what no option reads again."""
    if isinstance(backbone, TwoTowerEncoder):
        return describe_towers(backbone)
    if isinstance(backbone, OpenClipEncoder):
        return None
    raise ExportError(
        f"{path}: {backbone.name} is a backbone of kind {backbone.provenance.kind}, which is not read from one file; two_tower "
        "and open_clip ones are exported"
    )


def _alone(parts: Parts, built: Built, trial: Trial, path: Path) -> DualEncoder:
    """An untouched backbone with the trained tensors in it, if that is all that the trained model is."""
    spec = trial.spec
    fresh = load_backbone(spec.backbone.name, **{**spec.backbone.options, **trial.paths.weights}, seed=spec.seed)
    assert isinstance(fresh, DualEncoder)
    state = built.model.state_dict()
    wanted = fresh.state_dict().keys()
    advice = "export the trial of a method that changes the backbone's own weights only, such as full_finetune"
    if added := sorted(state.keys() - wanted):
        more = ", ..." if len(added) > _LISTED else ""
        raise ExportError(
            f"{path}: method {parts.method.name} leaves {len(added)} tensors in the model that {fresh.name} does not have "
            f"({', '.join(added[:_LISTED])}{more}), so the backbone is not the whole model; {advice}"
        )
    if lost := sorted(wanted - state.keys()):
        raise ExportError(
            f"{path}: the model of method {parts.method.name} lacks {len(lost)} tensors of {fresh.name} "
            f"({', '.join(lost[:_LISTED])}); {advice}"
        )
    fresh.load_state_dict(state)
    if not _same_outputs(parts, built.model, fresh):
        raise ExportError(
            f"{path}: {fresh.name} with the trained tensors does not say what the model of method {parts.method.name} says, so "
            f"something besides weights was changed (hooks, or its own encode_image); {advice}"
        )
    return fresh


def _same_outputs(parts: Parts, model: nn.Module, fresh: DualEncoder) -> bool:
    """Whether both say the same of a picture of noise and of two captions, bit for bit."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, fresh.resolution, fresh.resolution, generator=generator)
    tokens = fresh.tokenize(_CAPTIONS)
    with inference(model, "fp32", _CPU):
        trained = parts.method.encode_image(model, images), parts.method.encode_text(model, tokens)
    with inference(fresh.eval(), "fp32", _CPU):
        alone = fresh.encode_image(images), fresh.encode_text(tokens)
    return all(torch.equal(one, other) for one, other in zip(trained, alone, strict=True))


def _state(backbone: DualEncoder) -> dict[str, Tensor]:
    """Tensors under the names that the backbone's option ``weights`` reads."""
    return backbone.clip.state_dict() if isinstance(backbone, OpenClipEncoder) else backbone.state_dict()


def _alignment(record: Record, parts: Parts, path: Path) -> Alignment:
    if record.data is None or record.selection is None:
        key = "data" if record.data is None else "selection"
        raise RecordError(f"{path}: a finished record has a key `{key}`, this one has none; restore it")
    chosen, packages = record.selection, record.provenance.get("packages") or {}
    return Alignment(
        spec_id=record.spec_id,
        spec=record.spec,
        method=record.method.name,
        method_sha256=record.method.sha256,
        dataset=record.data.name,
        dataset_licence=parts.card.licence,
        splits={name: part.sha256 for name, part in record.data.splits.items()},
        selection=chosen.rule,
        epoch=chosen.epoch,
        val_mR=chosen.val_mR if chosen.rule in ("best_val", "last") else None,
        code={
            "git": record.provenance.get("git"),
            **{name: packages.get(name) for name in ("petlbench", "torch", "transformers", "open_clip_torch")},
        },
    )
