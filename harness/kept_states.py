"""States of frozen towers for every picture and caption of a split, computed once and mapped from disk by every trial.

One safetensors file per split, weights and precision, ``states/KEY.safetensors`` in the cache folder, with the tensors
``image.NAME``, one row per picture, and ``text.NAME``, one row per distinct caption, padded to the longest of the split.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from petlbench.datasets.cache import cache_folder
from petlbench.datasets.split import DataError
from petlbench.harness.audit import frozen_hash
from petlbench.harness.encode import EVAL_BATCH, inference
from petlbench.harness.states_file import StatesFile, StatesLayout
from petlbench.methods import registry
from petlbench.methods.backbones.base import Backbone, Tokens
from petlbench.methods.base import MethodError, States
from petlbench.methods.pair import PairMethod

if TYPE_CHECKING:
    from petlbench.harness.data import SplitData

STATES_VERSION = 1


@dataclass(frozen=True)
class KeptStates:
    """Kept states of a split, mapped from their file: only rows that are asked for are read.

    Attributes:
        image: Named tensors of N rows, fp32 or bf16 as they are stored.
        text: Named tensors of U rows.
        per_word: Which of ``text`` have the words as second dimension, and are cut to the longest caption at hand.
        path: The file.
        fresh: True when this call made it, False when it was found.
    """

    image: States
    text: States
    per_word: frozenset[str]
    path: Path
    fresh: bool

    def images(self, rows: Tensor) -> dict[str, Tensor]:
        """States of (B,) pictures, given by their places in the split; fp32, on the CPU."""
        return {name: _full(value[rows]) for name, value in self.image.items()}

    def texts(self, ids: Tensor) -> dict[str, Tensor]:
        """States of (B,) distinct captions, given by their ids, padded no further than the longest of them needs."""
        longest = int(self._lengths[ids].max()) if self.per_word else 0
        return {
            name: _full((value[:, :longest] if name in self.per_word else value)[ids])
            for name, value in self.text.items()
        }

    @cached_property
    def _lengths(self) -> Tensor:
        return self.text["mask"].sum(1)


def kept_states(
    method: PairMethod,
    model: nn.Module,
    backbone: Backbone,
    data: SplitData,
    precision: str,
    device: torch.device,
) -> KeptStates:
    """The kept states of a split; computed under a lock where they are missing.

    The key holds the frozen weights, the method's file, the pictures, the captions and the precision, so a stale entry
    cannot be met. Settings of the method are part of it too, unless its ``states_settings()`` names those that matter.

    The file is large: 8,734 pictures of 257 tokens and width 384 take 3.4 GB in fp32. Under precision bf16 it holds bf16, half
    of that; layers under autocast round what they read to bf16 anyway. Padding behind a caption takes no room on file
    systems with sparse files. One batch at a time is in memory while it is written.

    Args:
        method: One that promises :attr:`PairMethod.keeps_states`.
        model: What its ``build`` returned, frozen except for what is trained.
        backbone: Gives normalisation, trimming and provenance.
        data: The split.
        precision: Of the trial.
        device: Where the model lies.

    Raises:
        DataError: The cache folder is full or cannot be written, or the entry is damaged.
        MethodError: Nothing of the model is frozen, or the states do not have one row per item.
    """
    identity = {
        "version": STATES_VERSION,
        "method": type(method).__name__,
        "source": registry.source_sha256(type(method)),
        "settings": _settings(method),
        "backbone": backbone.provenance.model_dump(mode="json"),
        "weights": _frozen(method, model),
        "pictures": data.images.manifest["key"],
        "captions": data.split.sha256,
        "tokens": data.tokens_hash,
        "precision": precision,
        "device": device.type,
        "torch": torch.__version__,
    }
    text = json.dumps(identity, sort_keys=True)
    path = cache_folder() / "states" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(path) + ".lock"):
        fresh = not path.exists()
        if fresh:
            with inference(model, precision, device):
                source = _Source(method, model, backbone, data, device)
                source.write(path, torch.bfloat16 if precision == "bf16" else torch.float32)
        return _open(path, fresh)  # under the lock, so that it is not cleared before it is mapped


@dataclass(frozen=True)
class _Source:
    """Where states come from."""

    method: PairMethod
    model: nn.Module
    backbone: Backbone
    data: SplitData
    device: torch.device

    def write(self, path: Path, stored: torch.dtype) -> None:
        """Write the states of all pictures and captions, batch by batch. The lock of the entry is held."""
        layout, lengths, per_word = StatesLayout(stored), self.data.tokens.mask.sum(1), self.per_word()
        _, first = next(self.of_images(batch=1))
        layout.add("image.", first, len(self.data.split.images))
        ids, first = next(self.of_texts(batch=1))
        layout.add("text.", first, len(lengths), per_word, longer=int(lengths.max() - lengths[ids[0]]))
        told = {"backbone": self.backbone.name, "split": self.data.split.name}
        told |= {"method": type(self.method).__name__, "pictures": self.data.images.manifest["key"]}
        with StatesFile(path, layout, {"per_word": " ".join(sorted(per_word)), **told}) as file:
            for rows, states in self.of_images():
                file.write("image.", rows, states)
            for rows, states in self.of_texts():
                file.write("text.", rows, states)

    def of_images(self, batch: int | None = None) -> Iterator[tuple[Tensor, States]]:
        """Places in the split, and the states of these pictures."""
        from petlbench.harness.data import normalised

        for rows in torch.arange(len(self.data.split.images)).split(batch or EVAL_BATCH):
            raw = self.data.images.gather(rows.numpy()).to(self.device)
            yield rows, self.method.image_states(self.model, normalised(raw, self.backbone))

    def of_texts(self, batch: int | None = None) -> Iterator[tuple[Tensor, States]]:
        """Ids of distinct captions, shortest first where trimming is exact, and the states of these captions."""
        tokens, trims = self.data.tokens, self.backbone.trims_text
        ids = torch.argsort(tokens.mask.sum(1), stable=True) if trims else torch.arange(len(tokens))
        for rows in ids.split(batch or EVAL_BATCH):
            chosen = tokens[rows].trimmed() if trims else tokens[rows]
            yield rows, self.method.text_states(self.model, chosen.to(self.device))

    def per_word(self) -> frozenset[str]:
        """Names of the text states whose second dimension grows with one more token of padding.

        Widths can equal lengths by chance, so the question is put to the method, with the shortest caption. Where that one
        fills the whole context, or padding changes the states, nothing is ever trimmed.
        """
        lengths = self.data.tokens.mask.sum(1)
        length = int(lengths.min())
        if not self.backbone.trims_text or length == self.data.tokens.mask.shape[1]:
            return frozenset()
        row = self.data.tokens[lengths.argmin()[None]]
        short, long = (
            self.method.text_states(self.model, Tokens(row.ids[:, :n], row.mask[:, :n]).to(self.device))
            for n in (length, length + 1)
        )
        return frozenset(name for name, value in short.items() if value.shape != long[name].shape)


def _open(path: Path, fresh: bool) -> KeptStates:
    """Map an entry."""
    try:
        with safe_open(path, "pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            per_word = frozenset(file.metadata()["per_word"].split())
    except (SafetensorError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: this entry of kept states is damaged ({error}); delete the file and run again, they are then "
            "computed anew"
        ) from error
    image, text = (
        {name.removeprefix(part): value for name, value in found.items() if name.startswith(part)}
        for part in ("image.", "text.")
    )
    return KeptStates(image, text, per_word, path, fresh)


def _settings(method: PairMethod) -> Mapping[str, Any]:
    """The settings that decide the states: all of them, unless the method says otherwise."""
    chosen = getattr(method, "states_settings", None)
    return method.config.model_dump(mode="json") if chosen is None else chosen()


def _frozen(method: PairMethod, model: nn.Module) -> str:
    """Hash of everything frozen in the model.

    Raises:
        MethodError: Nothing is, so that what was kept would go stale.
    """
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    if len(trained) == sum(1 for _ in model.parameters()):
        raise MethodError(
            f"{type(method).__name__}: no parameter of the model is frozen, so its states cannot be kept; freeze what is not "
            "trained first, or set keeps_states = False"
        )
    return frozen_hash(model, trained)


def _full(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value
