"""Weight files of Swin-T and BERT-base in the layouts in which they are published, read strictly."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from petlbench.methods.backbones import weights_io
from petlbench.methods.backbones.base import BackboneError

BERT_BASE: dict[str, Any] = {
    "model_type": "bert",
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
}
"""``config.json`` of bert-base-uncased, as far as it sets sizes."""

_BERT_FILES = ("model.safetensors", "pytorch_model.bin")
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")
_STAGE_END = re.compile(r"layers\.(\d+)\.downsample\.(.+)")
_SWIN_UNUSED = re.compile(r"head\..*|.*relative_position_index|.*attn_mask")
_BERT_UNUSED = re.compile(r"pooler\..*|cls\..*|embeddings\.position_ids")


def swin_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A Swin state dict in timm's names: without classifier and index tables, merging at the start of a stage.

    Microsoft's files have the merging of two stages at the end of the first, timm's at the start of the second.
    """
    found = {name: tensor for name, tensor in state.items() if not _SWIN_UNUSED.fullmatch(name)}
    if not any(name.startswith("layers.0.downsample.") for name in found):
        return found
    return {
        _STAGE_END.sub(lambda m: f"layers.{int(m[1]) + 1}.downsample.{m[2]}", name): tensor
        for name, tensor in found.items()
    }


def bert_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A BERT state dict in the names of ``BertModel``: no prefix, norms with weight and bias, no pooler or heads."""
    found = {}
    for name, tensor in state.items():
        own = name.removeprefix("bert.")
        if not _BERT_UNUSED.fullmatch(own):
            found[own.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")] = (
                tensor
            )
    return found


def load_swin_weights(vision: nn.Module, path: Path) -> None:
    """Load a file strictly.

    Raises:
        BackboneError: A name or a shape differs; the message says how many names matched.
    """
    _load(vision, swin_names(weights_io.read_state_dict(path)), path, "Swin-T in Microsoft's or timm's layout")


def load_bert_weights(language: nn.Module, path: Path) -> None:
    """Load a file strictly.

    Raises:
        BackboneError: A name or a shape differs; the message says how many names matched.
    """
    _load(language, bert_names(weights_io.read_state_dict(path)), path, "BERT-base, with or without the prefix `bert.`")


def _load(module: nn.Module, state: dict[str, Tensor], path: Path, expected: str) -> None:
    wanted = module.state_dict()
    matched = sum(name in wanted for name in state)
    advice = f"{matched} of {len(wanted)} names match; expected {expected}"
    weights_io.load_strict(module, state, path.name, advice=advice)


def locate_bert(text_weights: str) -> tuple[Path, Path]:
    """The folder of a BERT encoder, which holds its tokenizer, and the weight file.

    Raises:
        BackboneError: No weight file, or no tokenizer beside it.
    """
    found = weights_io.find_weights(text_weights)
    folder = found if found.is_dir() else found.parent
    path = next((folder / n for n in _BERT_FILES if (folder / n).is_file()), None) if found.is_dir() else found
    if path is None:
        raise BackboneError(
            f"{folder}: holds none of {', '.join(_BERT_FILES)}; give a BERT-base folder or a weight file"
        )
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise BackboneError(
            f"{folder}: the tokenizer is missing; put {' or '.join(_TOKENIZER_FILES)} of the same model beside {path.name}"
        )
    return folder, path
