"""ViLT checkpoints written in the layouts that are read: by transformers, and by ViLT's own code."""

import re

import torch

WIDTH = 32
"""Of the random model."""


def itm(model):
    return {"itm_score.fc.weight": model.itm_head[0], "itm_score.fc.bias": model.itm_head[1]}


def trunk(model):
    return {f"vilt.{name}": tensor for name, tensor in model.vilt.state_dict().items()}


def original(model):
    """The weights in the layout of ViLT's own code, query, key and value packed, with what else its files hold."""
    state, out = model.vilt.state_dict(), {}
    moved = {
        "embeddings.cls_token": "transformer.cls_token",
        "embeddings.position_embeddings": "transformer.pos_embed",
        "embeddings.patch_embeddings.projection": "transformer.patch_embed.proj",
        "embeddings.token_type_embeddings": "token_type_embeddings",
        "embeddings.text_embeddings": "text_embeddings",
        "layernorm": "transformer.norm",
        "pooler": "pooler",
    }
    inner = {
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "attention.output.dense": "attn.proj",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
    }
    for name, tensor in state.items():
        if match := re.fullmatch(r"encoder\.layer\.(\d+)\.attention\.attention\.query\.(\w+)", name):
            packed = [state[name.replace("query", part)] for part in ("query", "key", "value")]
            out[f"transformer.blocks.{match[1]}.attn.qkv.{match[2]}"] = torch.cat(packed)
        elif match := re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)\.(weight|bias)", name):
            if "attention.attention" not in name:
                out[f"transformer.blocks.{match[1]}.{inner[match[2]]}.{match[3]}"] = tensor
        else:
            old = next(old for old in moved if name == old or name.startswith(old + "."))
            out[moved[old] + name.removeprefix(old)] = tensor
    return out | {
        "text_embeddings.position_ids": torch.arange(16)[None],
        "mlm_score.bias": torch.zeros(512),
        "mlm_score.transform.dense.weight": torch.zeros(WIDTH, WIDTH),
        "train_itm_loss.scalar": torch.tensor(3.0),
        "train_itm_loss.total": torch.tensor(2.0),
        "val_mlm_accuracy.correct": torch.tensor(1.0),
    }


def written(path, state, **beside):
    torch.save({"epoch": 1, "state_dict": state, **beside}, path)
    return path
