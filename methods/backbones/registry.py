"""Backbones by name."""

from __future__ import annotations

import difflib
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from petlbench.methods.backbones.base import Backbone, BackboneError
from petlbench.methods.backbones.weights_io import find_weights


class BackboneInfo(NamedTuple):
    """What is known of a backbone without building it."""

    name: str
    kind: str
    line: str
    aligned: bool
    """Whether it was pretrained to tell which picture and caption belong together."""
    options: dict[str, Any] = {}
    """Options with defaults and found files filled in; empty in listings."""


NAMED = {
    info.name: info
    for info in (
        BackboneInfo("tiny-clip", "open_clip", "small CLIP at 64 px, trained on synthetic scenes; shipped", True),
        BackboneInfo(
            "vits14-minilm", "two_tower", "DINOv2-shaped ViT-S/14 and all-MiniLM-L6-v2, joined by new heads", False
        ),
        BackboneInfo("vits14-minilm-joint", "two_tower", "vits14-minilm after an alignment, from your own file", True),
        BackboneInfo(
            "swin-bert", "swin_bert", "Swin-T and BERT-base under linear projections, the towers of PIR", False
        ),
        BackboneInfo("vilt-b32", "vilt", "ViLT-B/32, one transformer over picture and caption, 384 px", True),
        BackboneInfo("tiny-vilt", "vilt", "small ViLT at 64 px, trained on synthetic scenes; shipped", True),
    )
}
"""Backbones of this package; every other name is an open_clip architecture."""


class BackboneConfig(BaseModel):
    """Which backbone, with which weights; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid")

    name: str
    """One of :data:`NAMED`, an open_clip architecture, or ``ARCHITECTURE:TAG``."""
    pretrained: str | None = None
    """open_clip tag, or ``random``; ``swin-bert`` and ``vilt-b32`` know ``random`` only."""
    weights: str | None = None
    """Local weight file (image tower of ``vits14-minilm``: also a hub name; ``vits14-minilm-joint``: both towers; ``swin-bert``:
    its Swin-T; ``vilt-b32``: file, folder or hub name)."""
    text_weights: str | None = None
    """Folder or hub name of the text tower of ``vits14-minilm``, of its tokenizer for ``vits14-minilm-joint``; folder or file
    of BERT-base of ``swin-bert``; folder with BERT's tokenizer for ``vilt-b32``."""
    activation: Literal["gelu", "quick_gelu"] | None = None
    """Activation of a local open_clip file, which the file itself does not record."""
    resolution: int | None = Field(None, ge=1)
    """Side of the input pictures, pixels; None takes the backbone's own."""
    blocks: int | None = Field(None, ge=1)
    """Keep only the first blocks of the image tower (``vits14-minilm``)."""


_OPTIONS = {
    "tiny-clip": ("weights",),
    "vits14-minilm": ("weights", "text_weights", "resolution", "blocks"),
    "vits14-minilm-joint": ("weights", "text_weights", "resolution"),
    "swin-bert": ("weights", "text_weights", "pretrained", "resolution"),
    "vilt-b32": ("weights", "text_weights", "pretrained", "resolution"),
    "tiny-vilt": ("weights",),
}
_OPEN_CLIP_OPTIONS = ("weights", "pretrained", "activation", "resolution")


def load_backbone(
    name: str,
    *,
    weights: Any = None,
    pretrained: str | None = None,
    resolution: int | None = None,
    seed: int = 0,
    **options: Any,
) -> Backbone:
    """A backbone by name, on the CPU, in fp32 and evaluation mode.

    Args:
        name: One of :data:`NAMED`, any open_clip ViT architecture, or ``ARCHITECTURE:TAG``.
        weights: Local weight file; a bare name is also looked up in the folder named by ``PETLBENCH_WEIGHTS``.
        pretrained: open_clip tag, or ``random`` for an untrained model.
        resolution: Side of the input pictures, pixels.
        seed: Seeds what is initialised at random (joining heads, untrained models).
        **options: Further fields of :class:`BackboneConfig`.

    Raises:
        BackboneError: Unknown name or option, missing or unfitting weights.
    """
    given = _given(name, weights=weights, pretrained=pretrained, resolution=resolution, **options)
    if name == "tiny-clip":
        from petlbench.methods.backbones.tiny_clip import load_tiny_clip

        return load_tiny_clip(**given).eval()
    if name == "vits14-minilm":
        from petlbench.methods.backbones.two_tower import load_two_tower

        return load_two_tower(name, seed=seed, **given).eval()
    if name == "vits14-minilm-joint":
        from petlbench.methods.backbones.joint import load_joint

        return load_joint(name, **given).eval()
    if name == "swin-bert":
        from petlbench.methods.backbones.swin_bert import load_swin_bert

        return load_swin_bert(name, seed=seed, **given).eval()
    if name == "vilt-b32":
        from petlbench.methods.backbones.vilt_b32 import load_vilt

        return load_vilt(name, seed=seed, **given).eval()
    if name == "tiny-vilt":
        from petlbench.methods.backbones.tiny_vilt import load_tiny_vilt

        return load_tiny_vilt(**given).eval()
    from petlbench.methods.backbones.open_clip_model import load_open_clip

    return load_open_clip(name, seed=seed, **given).eval()


def describe_backbone(name: str, **options: Any) -> BackboneInfo:
    """What :func:`load_backbone` would load, with every file located, but without building or reading anything.

    Raises:
        BackboneError: Unknown name or option, missing weights, or contradicting options.
    """
    given = _given(name, **options)
    if name == "tiny-clip":
        from petlbench.methods.backbones.tiny_clip import WEIGHTS

        return NAMED[name]._replace(options={"weights": str(find_weights(given.get("weights", WEIGHTS)))})
    if name == "vits14-minilm":
        from petlbench.methods.backbones.two_tower import resolve_two_tower

        return NAMED[name]._replace(options=resolve_two_tower(name, **given))
    if name == "vits14-minilm-joint":
        from petlbench.methods.backbones.joint import resolve_joint

        return NAMED[name]._replace(options=resolve_joint(name, **given))
    if name == "swin-bert":
        from petlbench.methods.backbones.swin_bert import resolve_swin_bert

        return NAMED[name]._replace(options=resolve_swin_bert(name, **given))
    if name == "vilt-b32":
        from petlbench.methods.backbones.vilt_b32 import resolve_vilt

        options = resolve_vilt(name, **given)
        return NAMED[name]._replace(options=options, aligned="pretrained" not in options)
    if name == "tiny-vilt":
        from petlbench.methods.backbones.tiny_vilt import WEIGHTS as TINY_VILT

        return NAMED[name]._replace(options={"weights": str(find_weights(given.get("weights", TINY_VILT)))})
    from petlbench.methods.backbones import open_clip_origin

    origin = open_clip_origin.resolve(name, *(given.get(key) for key in _OPEN_CLIP_OPTIONS))
    line = open_clip_origin.size_line(origin.config)
    return BackboneInfo(name, "open_clip", line, origin.trained, origin.options)


def list_backbones() -> list[BackboneInfo]:
    """Every backbone that can be loaded, own ones first."""
    from petlbench.methods.backbones.open_clip_origin import architectures

    others = (BackboneInfo(name, "open_clip", line, True) for name, line in sorted(architectures().items()))
    return [*NAMED.values(), *others]


def _given(name: str, **options: Any) -> dict[str, Any]:
    """The options that were set, checked against what the backbone takes."""
    for key in ("weights", "text_weights"):
        if options.get(key) is not None:
            options[key] = str(options[key])
    try:
        config = BackboneConfig(name=name, **options)
    except ValidationError as error:
        raise BackboneError(f"backbone {name}: {_explain(error)}") from error
    if name not in NAMED and (near := difflib.get_close_matches(name, NAMED, n=1)):
        raise BackboneError(f"unknown backbone {name}; did you mean {near[0]}? `benchmark ls backbones` shows all")
    allowed = _OPTIONS.get(name, _OPEN_CLIP_OPTIONS)
    given = {key: value for key, value in config.model_dump(exclude={"name"}).items() if value is not None}
    if foreign := [key for key in given if key not in allowed]:
        raise BackboneError(f"backbone {name} has no option {', '.join(foreign)}; it takes {', '.join(allowed)}")
    return given


def _explain(error: ValidationError) -> str:
    lines = []
    for entry in error.errors():
        key = ".".join(map(str, entry["loc"]))
        if entry["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, BackboneConfig.model_fields, n=1)
            hint = f", did you mean {near[0]}?" if near else f"; there are {', '.join(BackboneConfig.model_fields)}"
            lines.append(f"unknown option {key}{hint}")
        else:
            lines.append(f"{key}={entry['input']!r}: {entry['msg'].lower()}")
    return "; ".join(lines)
