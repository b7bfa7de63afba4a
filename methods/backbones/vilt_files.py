"""ViLT checkpoints in the layouts in which they are published, read strictly."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from petlbench.methods.backbones import weights_io
from petlbench.methods.backbones.base import BackboneError
from petlbench.methods.backbones.vilt import ItmHead, ViltEncoder

HUB_NAME = "dandelin/vilt-b32-mlm-itm"
"""ViLT-B/32 on the Hugging Face hub with its matching head; ``vilt-b32-mlm`` lacks it."""

FILES = ("model.safetensors", "pytorch_model.bin")
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")
_SUFFIXES = (".safetensors", ".ckpt", ".bin", ".pt", ".pth")

# The head of masked language modelling, tables of positions 0, 1, 2 ... that old versions stored, and the running sums of
# Lightning's metrics. Everything else must find its place.
_UNUSED = re.compile(
    r"mlm_score\..+"
    r"|(vilt\.embeddings\.)?text_embeddings\.(position_ids|token_type_ids)|embeddings\.text_embeddings\.position_ids"
    r"|(train|val|test|dev)_\w+\.(scalar|score|correct|total)"
)
_ITM = {"weight": "itm_score.fc.weight", "bias": "itm_score.fc.bias"}

_BLOCK = re.compile(r"transformer\.blocks\.(\d+)\.(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(weight|bias)")
_IN_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_ELSEWHERE = (
    ("text_embeddings.", "vilt.embeddings.text_embeddings."),
    ("token_type_embeddings.", "vilt.embeddings.token_type_embeddings."),
    ("transformer.cls_token", "vilt.embeddings.cls_token"),
    ("transformer.pos_embed", "vilt.embeddings.position_embeddings"),
    ("transformer.patch_embed.proj.", "vilt.embeddings.patch_embeddings.projection."),
    ("transformer.norm.", "vilt.layernorm."),
    ("pooler.", "vilt.pooler."),
)
_BARE = ("embeddings.", "encoder.", "layernorm.", "pooler.")
_EXPECTED = (
    "expected a ViLT for pretraining or retrieval, in the layout of ViLT's own code (transformer.blocks.0...) or of "
    "transformers (vilt.encoder.layer.0...); names above are those of transformers"
)


def vilt_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A ViLT state dict in the names of :class:`ViltEncoder`, with the matching head under its own, ``itm_score.fc``.

    Heads and buffers that retrieval has no use for are left out by name; whatever is unknown stays, to be refused.

    Args:
        state: Layout of ViLT's own code, with query, key and value packed, or of ``transformers``, with or without the
            prefix ``vilt.``.
    """
    found = {name: tensor for name, tensor in state.items() if not _UNUSED.fullmatch(name)}
    if any(name.startswith("transformer.") for name in found):
        return _from_original(found)
    return {f"vilt.{name}" if name.startswith(_BARE) else name: tensor for name, tensor in found.items()}


def _from_original(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if match := _BLOCK.fullmatch(name):
            layer = f"vilt.encoder.layer.{match[1]}"
            if match[2] == "attn.qkv":
                parts = zip(("query", "key", "value"), tensor.tensor_split(3), strict=True)
                out |= {f"{layer}.attention.attention.{part}.{match[3]}": rows.clone() for part, rows in parts}
            else:
                out[f"{layer}.{_IN_BLOCK[match[2]]}.{match[3]}"] = tensor
        else:
            old, new = next((pair for pair in _ELSEWHERE if name.startswith(pair[0])), ("", ""))
            out[new + name.removeprefix(old)] = tensor
    return out


def load_vilt_weights(encoder: ViltEncoder, path: Path, *, advice: str = _EXPECTED) -> str:
    """Load a checkpoint strictly into the trunk and the ranking head.

    ``rank_output`` takes its own values where the file holds them, or those of row 1 ("match") of the matching head, as ViLT
    does; where it holds neither, it keeps its random ones. :attr:`ViltEncoder.itm_head` is set where the file has one.

    Args:
        encoder: Receives the values, in fp32.
        path: Any file that :func:`vilt_names` understands.
        advice: Appended to the message of an error.

    Returns:
        What ``rank_output`` started from: ``rank_output``, ``itm`` or ``random``.

    Raises:
        BackboneError: A name or a shape differs; nothing was loaded then.
    """
    state = vilt_names(weights_io.read_state_dict(path))
    itm_head = _matching_head(state, encoder.width, path)
    source = "rank_output" if any(name.startswith("rank_output.") for name in state) else "random"
    if source == "random" and itm_head is not None:
        source = "itm"
        state |= {"rank_output.weight": itm_head[0][1:], "rank_output.bias": itm_head[1][1:]}
    if source == "random":
        state |= {f"rank_output.{part}": tensor for part, tensor in encoder.rank_output.state_dict().items()}
    wanted = encoder.state_dict()
    matched = sum(name in wanted for name in state)
    counted = f"{matched} of {len(wanted)} names match"
    weights_io.load_strict(encoder, state, path.name, advice=f"{counted}; {advice}")
    encoder.itm_head = itm_head
    return source


def _matching_head(state: dict[str, Tensor], width: int, path: Path) -> ItmHead | None:
    """Takes the head of image-text matching out of ``state``; None where there is none."""
    wanted = {"weight": (2, width), "bias": (2,)}
    parts = {part: state.pop(name) for part, name in _ITM.items() if name in state}
    if not parts:
        return None
    for part, shape in wanted.items():
        found = tuple(parts[part].shape) if part in parts else None
        if found != shape:
            told = "is missing" if found is None else f"is {found}"
            raise BackboneError(
                f"{path.name}: {_ITM[part]} {told}, expected {shape}, the matching head of ViLT; nothing was loaded"
            )
    return parts["weight"].float(), parts["bias"].float()


def is_on_hub(weights: str) -> bool:
    """Whether ``weights`` names no local file or folder but reads as OWNER/MODEL of the Hugging Face hub."""
    return Path(weights).suffix not in _SUFFIXES and weights_io.is_on_hub(weights)


def locate_vilt(weights: str) -> tuple[Path, str]:
    """The weight file and the name to record for it: a file, a folder of ``transformers``, or a hub name, fetched.

    Raises:
        BackboneError: Nothing was found, or the folder holds no ViLT.
    """
    if is_on_hub(weights):
        return _file_in(_fetch(weights)), weights
    try:
        path = weights_io.find_weights(weights)
    except BackboneError as error:
        raise BackboneError(f"{error}, or a hub name such as {HUB_NAME}") from error
    if path.is_dir():
        file = _file_in(path)
        return file, f"{path.name}/{file.name}"
    return path, path.name


def _file_in(folder: Path) -> Path:
    config = folder / "config.json"
    if config.is_file():
        try:
            kind = json.loads(config.read_text()).get("model_type")
        except json.JSONDecodeError as error:
            raise BackboneError(f"{config}: not valid JSON ({error}); fetch the folder again") from error
        if kind != "vilt":
            raise BackboneError(f"{config}: model_type is {kind}, expected vilt; give the folder of a ViLT")
    file = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if file is None:
        raise BackboneError(f"{folder}: holds none of {', '.join(FILES)}; give the folder of a ViLT, or its file")
    return file


def _fetch(name: str) -> Path:
    from huggingface_hub import snapshot_download

    wanted = ["config.json", *FILES, *TOKENIZER_FILES, "tokenizer_config.json"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (OSError, ValueError) as error:
        raise BackboneError(
            f"{name} could not be fetched ({type(error).__name__}: {error}); give weights=FILE or FOLDER instead"
        ) from error
