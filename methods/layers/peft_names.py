"""Names in the files of `peft`, and the entries of its configuration that say where an adapter goes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from petlbench.methods.backbones.base import DualEncoder
from petlbench.methods.base import PeftFormat

_ADAPTER = re.compile(r"\.(lora_|ia3_|vera_lambda_|ln_tuning_)")


def peft_format(backbone: DualEncoder, keys: Mapping[str, str], config: Mapping[str, Any]) -> PeftFormat:
    """The format for a plain model: an open_clip model, or the two-tower module with its joining heads.

    peft writes a parameter ``PLACE.KIND.ADAPTER.rest`` of the model as ``base_model.model.PLACE.KIND.rest``. Joining heads
    go along as modules that are saved whole.

    Args:
        backbone: Built and injected.
        keys: Parameter name to the name that peft's own injection would give it, adapter name ``default`` included.
        config: Entries of ``adapter_config.json`` besides the targets and the heads.
    """
    root = "clip." if backbone.provenance.kind == "open_clip" else ""
    plain = {name: key.removeprefix(root).replace(".default", "") for name, key in keys.items()}
    heads = list(backbone.new_parameters())
    plain |= {name: name.removeprefix(root) for name in heads}
    # A pattern that matches whole names: peft takes a list as endings, and a text tower's name ends an image tower's.
    targets = sorted({_place(key) for name, key in plain.items() if name not in heads})
    return PeftFormat(
        config={
            "task_type": None,
            "inference_mode": True,
            **config,
            "target_modules": "|".join(re.escape(target) for target in targets),
            "modules_to_save": sorted({name.removeprefix(root).partition(".")[0] for name in heads}) or None,
        },
        keys={name: f"base_model.model.{key}" for name, key in plain.items()},
    )


def _place(key: str) -> str:
    """The module that an adapter sits on; the output projection of packed attention belongs to the whole attention."""
    return _ADAPTER.split(key)[0].removesuffix(".base_layer.out_proj")
