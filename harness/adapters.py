"""Trained adapters on disk: the trained tensors and nothing else, in peft's own format where the method is peft's.

Plain form: one file ``NAME.adapter.safetensors``, tensors under their names in the model. peft's form: a folder
``NAME.adapter`` with ``adapter_config.json`` and ``adapter_model.safetensors``, which ``peft`` opens, and
``other.safetensors`` for trained tensors that peft does not know, such as the joining heads of unaligned towers.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from petlbench.errors import PetlbenchError
from petlbench.harness.record import Record
from petlbench.methods.backbones.base import Backbone
from petlbench.methods.base import Method
from petlbench.methods.recipe import Recipe

FILE_SUFFIX = ".adapter.safetensors"
FOLDER_SUFFIX = ".adapter"
CONFIG, PEFT_TENSORS, OTHER_TENSORS = "adapter_config.json", "adapter_model.safetensors", "other.safetensors"
_ABOUT = "petlbench"
_LISTED = 8


class AdapterError(PetlbenchError):
    """A stored adapter is missing, damaged, or belongs to another model."""


class About(BaseModel):
    """What a stored adapter says of itself; one JSON entry in the header of its safetensors file."""

    model_config = ConfigDict(extra="ignore")

    method: str
    options: dict[str, Any]
    """The method's resolved options."""
    backbone: str
    backbone_sha256: str
    """Of the pretrained weights that it was trained on."""
    seed: int
    spec_id: str
    captions: str | None = None
    """How captions were treated, as in ``train.captions``; None: as usual, or not kept by an earlier version. So below."""
    precision: str | None = None
    shown: dict[str, Any] = {}
    """How pictures reached the backbone: activation, resolution, mean and std of its provenance; empty: as it is by default."""


def conditions(recipe: Recipe, backbone: Backbone, options: Mapping[str, Any]) -> dict[str, Any]:
    """What :class:`About` says of evaluation, where it is not what any trial has.

    Args:
        recipe: Of the trial.
        backbone: Of the trial.
        options: Those that the backbone was asked for with.
    """
    usual = Recipe()
    told = {
        key: getattr(recipe, key) for key in ("captions", "precision") if getattr(recipe, key) != getattr(usual, key)
    }
    return told | ({"shown": how_shown(backbone)} if {"resolution", "activation"} & set(options) else {})


def how_shown(backbone: Backbone) -> dict[str, Any]:
    """How pictures reach a backbone, as JSON types."""
    told = backbone.provenance.model_dump(mode="json")
    return {key: told[key] for key in ("activation", "resolution", "mean", "std")}


def save_adapter(
    method: Method, model: nn.Module, trained: Collection[str], about: About, folder: Path, name: str
) -> Path | None:
    """Write the trained tensors, whole or not at all; what stood there under this name is replaced.

    Args:
        method: Says whether peft has a format for it.
        model: The trained model.
        trained: Names, as in ``model.named_parameters()``, of what was trained.
        about: What to note in the header.
        folder: Created where it is missing.
        name: File name without suffix.

    Returns:
        The file or folder, or None where nothing is trained.

    Raises:
        AdapterError: The method's peft format names a tensor that the model does not have.
    """
    tensors = {n: p.detach().cpu().contiguous() for n, p in model.named_parameters() if n in trained}
    if not tensors:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    header = {_ABOUT: about.model_dump_json(exclude_defaults=True), "format": "pt"}
    peft = method.peft_format(model)
    plain, packed = folder / f"{name}{FILE_SUFFIX}", folder / f"{name}{FOLDER_SUFFIX}"
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}.") as scratch:
        if peft is None:
            _save(tensors, Path(scratch) / plain.name, header)
            (Path(scratch) / plain.name).replace(plain)
            shutil.rmtree(packed, ignore_errors=True)
            return plain
        known = _known_to_peft(method, model, peft.keys)
        fresh = Path(scratch) / packed.name
        fresh.mkdir()
        _save({peft.keys[n]: known[n] for n in peft.keys}, fresh / PEFT_TENSORS, header)
        if other := {n: t for n, t in tensors.items() if n not in peft.keys}:
            _save(other, fresh / OTHER_TENSORS, header)
        (fresh / CONFIG).write_text(json.dumps(dict(peft.config), indent=1, sort_keys=True) + "\n", encoding="utf-8")
        if packed.exists():  # a folder cannot be renamed over another; the old one goes with the scratch folder
            packed.replace(Path(scratch) / "old")
        fresh.replace(packed)
        plain.unlink(missing_ok=True)
        return packed


def _save(tensors: dict[str, torch.Tensor], path: Path, header: dict[str, str]) -> None:
    save_file(tensors, path, metadata=header)
    path.chmod(0o644)  # as the record beside it; safetensors' own files are for one user


def adapter_of(record: Record, path: Path) -> Path | None:
    """Where the trained tensors of a record lie; None where nothing was trained.

    Raises:
        AdapterError: They are not there.
    """
    name = record.artifacts.get("weights")
    if name is None:
        return None
    # Records of earlier versions name a place below the results folder, three levels up.
    found = path.absolute().parents[2] / name if name.startswith(".work/") else path.absolute().with_name(name)
    if not found.exists():
        raise AdapterError(
            f"{path}: its trained weights {found} are not there (they are not kept in version control); copy them from "
            "where it was trained, or train again with `benchmark run ... --force`"
        )
    return found


def load_adapter(method: Method, model: nn.Module, trained: Collection[str], path: Path) -> int:
    """Copy a stored adapter into a freshly built model if, and only if, it holds every trained tensor and nothing else.

    Args:
        method: The method that built the model.
        model: Receives the values.
        trained: Names of what was trained.
        path: From :func:`save_adapter`; a folder that peft wrote for the same layout will do.

    Returns:
        Number of tensors copied.

    Raises:
        AdapterError: It is missing or damaged, or names or shapes do not fit. The model is untouched.
    """
    found = _read(method, model, path)
    own = model.state_dict()
    peft = method.peft_format(model)
    expected = {
        *trained,
        *(() if peft is None else peft.keys),
    }  # peft's files may hold frozen tensors too: VeRA's projections
    problems = {
        "missing": sorted(set(trained) - found.keys()),
        "unknown to the model": sorted(found.keys() - own.keys()),
        "not trained in this form": sorted((found.keys() & own.keys()) - expected),
        "of another shape": [
            f"{n} is {tuple(t.shape)}, expected {tuple(own[n].shape)}"
            for n, t in found.items()
            if n in own and own[n].shape != t.shape
        ],
    }
    if any(problems.values()):
        listing = " ".join(
            f"{len(names)} {what}: {', '.join(names[:_LISTED])}{', ...' if len(names) > _LISTED else ''}."
            for what, names in problems.items()
            if names
        )
        raise AdapterError(
            f"{path} does not fit method {method.name} as it was built; nothing was loaded. Tensors {listing} Were method, "
            "options and backbone the same?"
        )
    with torch.no_grad():
        for name, tensor in found.items():
            own[name].copy_(tensor)
    return len(found)


def read_about(path: Path) -> About | None:
    """What a stored adapter says of itself; None where it does not (older ones, and those that peft wrote).

    Raises:
        AdapterError: It is missing or damaged.
    """
    file = path / PEFT_TENSORS if path.is_dir() else path
    try:
        with safe_open(file, framework="pt") as opened:
            text = (opened.metadata() or {}).get(_ABOUT)
        return None if text is None else About.model_validate_json(text)
    except (SafetensorError, OSError, ValidationError) as error:
        raise _unreadable(file, error) from error


def stored_bytes(path: Path) -> int:
    """Size on disk."""
    return sum(p.stat().st_size for p in path.iterdir()) if path.is_dir() else path.stat().st_size


def _read(method: Method, model: nn.Module, path: Path) -> dict[str, Tensor]:
    """Tensors by their names in the model."""
    if not path.is_dir():
        return _tensors(path)
    peft = method.peft_format(model)
    if peft is None:
        raise AdapterError(f"{path} is a folder in peft's format, which method {method.name} does not have")
    names = {key: name for name, key in peft.keys.items()}
    # What peft holds under a key that the method does not name keeps that key, so that it is reported.
    found = {names.get(key, key): tensor for key, tensor in _tensors(path / PEFT_TENSORS).items()}
    other = path / OTHER_TENSORS
    return found | (_tensors(other) if other.exists() else {})


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> AdapterError:
    if not file.exists():
        return AdapterError(
            f"{file}: no such file; expected a stored adapter (NAME{FILE_SUFFIX}, or a folder of peft's)"
        )
    return AdapterError(f"{file}: cannot be read as a stored adapter ({error}); restore it, or train it again")


def _known_to_peft(method: Method, model: nn.Module, keys: Mapping[str, str]) -> dict[str, Tensor]:
    own = model.state_dict()
    if lost := [name for name in keys if name not in own]:
        raise AdapterError(
            f"method {method.name}: peft_format() names {', '.join(lost[:_LISTED])}, which the model does not have"
        )
    return {name: own[name].detach().cpu().contiguous() for name in keys}
