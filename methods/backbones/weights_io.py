"""Reading weight files: safe formats only, strict keys and shapes, and a hash of what was read."""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from petlbench.methods.backbones import torch_file
from petlbench.methods.backbones.base import BackboneError

WEIGHTS_ENV = "PETLBENCH_WEIGHTS"
"""Environment variable naming a folder that is searched for weight files given by bare name."""

_WRAPPERS = ("state_dict", "model", "model_state_dict")
_PICKLED = (".pt", ".pth", ".bin", ".ckpt")
_LISTED = 10


def find_weights(path: str | Path) -> Path:
    """The weight file or folder at ``path``, or of that name inside the folder named by ``PETLBENCH_WEIGHTS``.

    Raises:
        BackboneError: It is in neither place.
    """
    given = Path(path).expanduser()
    if given.exists():
        return given
    folder = os.environ.get(WEIGHTS_ENV)
    if folder and not given.is_absolute() and (inside := Path(folder).expanduser() / given).exists():
        return inside
    looked = f" or in {WEIGHTS_ENV}={folder}" if folder else f" ({WEIGHTS_ENV}, a folder searched next, is not set)"
    raise BackboneError(f"weights: {path} was not found{looked}; give the path of an existing file")


def is_hub_name(name: str) -> bool:
    """Whether ``name`` reads as OWNER/MODEL of the Hugging Face hub and is no local path."""
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", name)) and not name.startswith(".") and not Path(name).exists()


def is_on_hub(name: str) -> bool:
    """Whether ``name`` reads as OWNER/MODEL of the Hugging Face hub, and :func:`find_weights` finds nothing of that name."""
    if not is_hub_name(name):
        return False
    try:
        find_weights(name)
    except BackboneError:
        return True
    return False


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal.

    Raises:
        BackboneError: It is a folder.
    """
    if path.is_dir():
        raise BackboneError(f"{path}: is a folder, expected a weight file; name the file in it")
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def tensors_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of tensors in order of name, hexadecimal."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """All tensors of a ``.safetensors`` file or of a plain PyTorch file, by name.

    Pickled files are read by PyTorch's restricted unpickler, which runs no code. The usual wrappers are taken off: a
    dictionary under ``state_dict``, ``model`` or ``model_state_dict``, and the prefix ``module.`` of parallel training.

    Raises:
        BackboneError: Unknown suffix, damaged file, a TorchScript archive, anything but tensors inside, or a value
            that is not finite.
    """
    if path.suffix == ".safetensors":
        state = _read_safetensors(path)
    elif path.suffix in _PICKLED:
        state = _read_pickled(path)
    else:
        raise BackboneError(
            f"{path.name}: weight files end in .safetensors, {', '.join(_PICKLED)}; found {path.suffix or 'no suffix'}"
        )
    return _finished(state, path)


def read_released(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors of a checkpoint as authors release them, and the plain values that stand beside them.

    As :func:`read_state_dict`, but tables may be nested, whose keys are joined by dots, and numbers among the tensors
    come as tensors of no dimension, so that whoever imports them has to say what they are.

    Returns:
        Tensors by name; and other values by name, those of an entry ``config`` without that prefix.

    Raises:
        BackboneError: As :func:`read_state_dict`.
    """
    if path.suffix not in _PICKLED:
        return read_state_dict(path), {}
    loaded = _load_pickled(path)
    if not isinstance(loaded, Mapping):
        raise BackboneError(f"{path.name}: holds a {type(loaded).__name__}, expected a table of tensors by name")
    table = _unwrapped(loaded)
    state: dict[str, Tensor] = {}
    config: dict[str, Any] = {}
    for key, value in _flat(table):
        if isinstance(value, Tensor):
            state[key] = value
        elif isinstance(value, bool | int | float):
            state[key] = torch.tensor(value)
        else:
            config[key] = value
    beside = loaded.get("config") if table is not loaded else None
    return _finished(state, path), {**config, **(beside if isinstance(beside, Mapping) else {})}


def _finished(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Without the prefix of parallel training, and finite."""
    if state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    for key, value in state.items():
        # OpenAI's text tower may bring its causal mask along: -inf above the diagonal, and no weight.
        if not key.endswith("attn_mask") and value.is_floating_point() and not torch.isfinite(value).all():
            raise BackboneError(f"{path.name}: tensor {key} holds NaN or infinity; the file is damaged, fetch it again")
    return state


def load_strict(
    module: nn.Module,
    state: Mapping[str, Tensor],
    source: str,
    *,
    ignored: Collection[str] = (),
    advice: str = "",
) -> None:
    """Copy ``state`` into ``module`` if, and only if, every key and every shape agrees.

    Args:
        module: Receives the values, cast to its own types.
        state: Tensors by name, as in ``module.state_dict()``.
        source: File or tag, for the message.
        ignored: Keys that may stand in ``state`` although the module has no use for them.
        advice: Appended to the message.

    Raises:
        BackboneError: Missing keys, unexpected keys or differing shapes; all three are listed. The module is untouched.
    """
    wanted = module.state_dict()
    found = {key: value for key, value in state.items() if key in wanted or key not in ignored}
    missing = [key for key in wanted if key not in found]
    unexpected = [key for key in found if key not in wanted]
    shapes = [
        f"{key} is {tuple(found[key].shape)}, expected {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in found and found[key].shape != value.shape
    ]
    if missing or unexpected or shapes:
        parts = [f"{source} does not fit {type(module).__name__}; nothing was loaded."]
        parts += [_listing("missing keys", missing), _listing("unexpected keys", unexpected)]
        parts += [_listing("differing shapes", shapes), advice]
        raise BackboneError(" ".join(part for part in parts if part))
    module.load_state_dict(found)


def _listing(title: str, items: list[str]) -> str:
    if not items:
        return ""
    more = f", and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return f"{len(items)} {title}: {', '.join(items[:_LISTED])}{more}."


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise BackboneError(f"{path.name}: not a readable safetensors file ({error}); fetch it again") from error


def _read_pickled(path: Path) -> dict[str, Tensor]:
    loaded = _load_pickled(path)
    if isinstance(loaded, Mapping):
        loaded = _unwrapped(loaded)
    if not isinstance(loaded, Mapping):
        raise BackboneError(f"{path.name}: holds a {type(loaded).__name__}, expected a table of tensors by name")
    foreign = [f"{key} ({type(value).__name__})" for key, value in loaded.items() if not isinstance(value, Tensor)]
    if foreign or not loaded:
        raise BackboneError(
            f"{path.name}: expected tensors by name, at the top or under {', '.join(_WRAPPERS)}. "
            + (_listing("entries that are not tensors", foreign) or "The table is empty.")
        )
    return dict(loaded)


def _load_pickled(path: Path) -> Any:
    if _is_torchscript(path):
        raise BackboneError(
            f"{path.name} is a TorchScript archive, a program rather than a table of weights (OpenAI's original .pt "
            "files are); it is not run here. Use the same weights by tag, such as ViT-B-32:openai, or as .safetensors"
        )
    try:
        return _load_restricted(path)
    except Exception as error:  # on damaged bytes the restricted unpickler fails in any way
        reason = str(error).partition("\n")[0] or repr(error)
        raise BackboneError(
            f"{path.name}: cannot be read as a plain table of weights ({reason}). Only tensors and plain values "
            "are read, code in a file is never run; convert the file to .safetensors"
        ) from error


def _load_restricted(path: Path) -> Any:
    """As ``torch.load``; objects after the weights (a configuration of a YAML library) come as their plain values."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        rest = torch_file.without_objects(path, _WRAPPERS)
        if rest is None:
            raise
        loaded = torch.load(rest, map_location="cpu", weights_only=True)
        return {**torch_file.plain_values(path), **loaded}


def _unwrapped(loaded: Mapping[str, Any]) -> Mapping[str, Any]:
    return next((loaded[key] for key in _WRAPPERS if isinstance(loaded.get(key), Mapping)), loaded)


def _flat(table: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())
