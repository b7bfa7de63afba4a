"""Files of two towers small enough to train inside a test: a ViT of width 64, a BERT of width 16, a few words."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from petlbench.methods.backbones.dinov2 import build_dinov2
from petlbench.methods.backbones.minilm import build_bert

WORDS = ["a", "the", "of", "in", "with", "two", "some", "green", "blue", "red", "port", "park", "road", "lake", "tree"]
BERT = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}


def write_image_tower(folder: Path) -> Path:
    """A ViT file of two blocks, 2 x 2 patches of positions."""
    torch.manual_seed(0)
    path = folder / "vit.safetensors"
    save_file(build_dinov2(64, 1, 2, 2).state_dict(), path)
    return path


def write_text_tower(folder: Path, words: list[str] = WORDS) -> Path:
    """A folder with a BERT of two blocks and its tokenizer."""
    from transformers import BertTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (folder / "vocab.txt").write_text("\n".join(vocab), encoding="utf-8")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    config = {**BERT, "vocab_size": len(vocab)}
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(1)
    save_file(build_bert(config).state_dict(), folder / "model.safetensors")
    return folder


def tower_sets(image: Path, text: Path, resolution: int = 28) -> tuple[str, ...]:
    """Assignments that make ``vits14-minilm`` of these files."""
    given = {"weights": image, "text_weights": text, "resolution": resolution}
    return tuple(f"backbone.vits14-minilm.{key}={value}" for key, value in given.items())


def joint_sets(weights: Path, text: Path) -> tuple[str, ...]:
    """Assignments that make ``vits14-minilm-joint`` of an exported file."""
    return tuple(f"backbone.vits14-minilm-joint.{k}={v}" for k, v in {"weights": weights, "text_weights": text}.items())
