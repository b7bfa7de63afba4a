"""Weights released by a method's authors: what was read, what was used, and that nothing is missing or left over."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from petlbench.errors import PetlbenchError

_LISTED = 8


class OfficialError(PetlbenchError):
    """A released checkpoint does not fit; nothing was loaded."""


class OfficialState:
    """The tensors of a released checkpoint, from which an importer takes what it uses.

    Args:
        tensors: By their official names.
        source: File name, for messages.
        config: Plain values that the file holds beside the tensors, such as the settings of the training.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], source: str = "checkpoint", config: Mapping[str, Any] | None = None
    ):
        self._left = dict(tensors)
        self.source = source
        self.config = dict(config or {})
        self.dropped: dict[str, str] = {}
        """Name of each tensor that was set aside, with the reason."""

    def __contains__(self, key: str) -> bool:
        return key in self._left

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._left))

    def take(self, key: str) -> Tensor:
        """Use a tensor.

        Raises:
            OfficialError: It is not there (or was used already).
        """
        if key not in self._left:
            held = ", ".join(list(self._left)[:_LISTED]) or "nothing more"
            raise OfficialError(
                f"{self.source}: no tensor {key}; is this a checkpoint of this method, variant and depth? It holds {held}, ..."
            )
        return self._left.pop(key)

    def take_under(self, prefix: str) -> dict[str, Tensor]:
        """Use every tensor whose name begins with ``prefix``; keyed by the rest of the name."""
        return {key.removeprefix(prefix): self._left.pop(key) for key in self if key.startswith(prefix)}

    def drop(self, pattern: str, reason: str) -> list[str]:
        """Set aside what carries no weights of the model.

        Args:
            pattern: Regular expression that has to match a whole name.
            reason: Why it is not used.
        """
        names = [key for key in self if re.fullmatch(pattern, key)]
        for name in names:
            del self._left[name]
            self.dropped[name] = reason
        return names


def read_official(path: Path) -> OfficialState:
    """A released checkpoint, read without running any code in it; see ``read_released`` for what is understood.

    Raises:
        BackboneError: The file is missing or damaged, or holds anything but tensors by name.
    """
    from petlbench.methods.backbones.weights_io import find_weights, read_released

    found = find_weights(path)
    tensors, config = read_released(found)
    return OfficialState(tensors, found.name, config)


def load_official(
    model: nn.Module, mapped: Mapping[str, Tensor], state: OfficialState, trained: Collection[str]
) -> None:
    """Copy imported tensors into a model if, and only if, the import is complete.

    Args:
        model: The built model.
        mapped: What ``Method.import_official`` returned.
        state: What it took them from.
        trained: Names of all trained parameters; every one of them needs a value.

    Raises:
        OfficialError: A key is left over, a trained tensor has no value, a name is unknown or a shape differs; all are
            listed, and the model is untouched.
    """
    own = model.state_dict()
    problems = [
        ("left over in the file", sorted(state)),
        ("trained tensors without a value", sorted(set(trained) - mapped.keys())),
        ("unknown to the model", sorted(mapped.keys() - own.keys())),
        (
            "differing shapes",
            [
                f"{name} is {tuple(tensor.shape)}, expected {tuple(own[name].shape)}"
                for name, tensor in mapped.items()
                if name in own and own[name].shape != tensor.shape
            ],
        ),
    ]
    if any(found for _, found in problems):
        listing = " ".join(
            f"{len(found)} {title}: {', '.join(found[:_LISTED])}{', ...' if len(found) > _LISTED else ''}."
            for title, found in problems
            if found
        )
        raise OfficialError(f"{state.source} does not fit; nothing was loaded. {listing}")
    with torch.no_grad():
        for name, tensor in mapped.items():
            own[name].copy_(tensor)
