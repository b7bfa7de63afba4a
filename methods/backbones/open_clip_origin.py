"""Which open_clip architecture, weights and activation a name and its options stand for; builds nothing."""

from __future__ import annotations

import difflib
import fnmatch
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from petlbench.methods.backbones import weights_io
from petlbench.methods.backbones.base import BackboneError
from petlbench.methods.backbones.exported import Exported, aligned_source, header_of

Activation = Literal["gelu", "quick_gelu"]
Rgb = tuple[float, float, float]

CLIP_MEAN: Rgb = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Rgb = (0.26862954, 0.26130258, 0.27577711)

KNOWN_FILES: dict[str, tuple[Activation, str]] = {
    # A state dict does not record its activation, and the wrong one costs points without an error.
    "RS5M_ViT-B-32*": ("quick_gelu", "GeoRSCLIP, built on OpenAI's ViT-B/32 (om-ai-lab/RS5M, inference/inference.py)"),
    "RS5M_ViT-H-14*": ("gelu", "GeoRSCLIP, built on LAION's ViT-H/14 (om-ai-lab/RS5M, inference/inference.py)"),
    "RemoteCLIP[-_]ViT-*": (
        "gelu",
        "RemoteCLIP, loaded into plain open_clip models (ChenDelong1999/RemoteCLIP, README)",
    ),
}
"""Activation of published files, by file name, with where it was seen."""


@dataclass(frozen=True)
class Origin:
    """A resolved open_clip backbone: everything known before weights are read.

    Attributes:
        architecture: open_clip's name.
        config: open_clip's configuration of it.
        source: File name, or ``ARCHITECTURE:TAG``.
        activation: What the weights were trained with.
        path: Local weight file, None for tags and untrained models.
        tag: Hub tag, ``random``, or None for local files.
        entry: open_clip's entry of the tag.
        resolution: Asked-for input side in pixels, or None.
        mean: Input mean per channel.
        std: Input standard deviation per channel.
        notes: How the activation is known.
    """

    architecture: str
    config: dict[str, Any]
    source: str
    activation: Activation
    path: Path | None = None
    tag: str | None = None
    entry: dict[str, Any] = field(default_factory=dict)
    resolution: int | None = None
    mean: Rgb = CLIP_MEAN
    std: Rgb = CLIP_STD
    notes: str = ""

    @property
    def trained(self) -> bool:
        """False for random weights."""
        return self.tag != "random"

    @property
    def options(self) -> dict[str, Any]:
        """The options that stand for this origin, with what was left open filled in."""
        every = {
            "pretrained": self.tag,
            "weights": None if self.path is None else str(self.path),
            "activation": self.activation,
            "resolution": self.resolution,
        }
        return {key: value for key, value in every.items() if value is not None}

    def fetch(self) -> Path | None:
        """The weight file, downloaded where need be; None for an untrained model.

        Raises:
            BackboneError: The hub cannot be reached.
        """
        if self.path is not None or not self.trained:
            return self.path
        import open_clip

        try:
            return Path(open_clip.download_pretrained(self.entry))
        except (OSError, ValueError, RuntimeError) as error:
            raise BackboneError(
                f"{self.source} could not be fetched ({type(error).__name__}: {error}). Check the connection, or fetch "
                "the file elsewhere and give weights=FILE with activation=gelu or quick_gelu"
            ) from error


def resolve(
    name: str, weights: str | None, pretrained: str | None, activation: Activation | None, resolution: int | None
) -> Origin:
    """What a name (``ARCHITECTURE`` or ``ARCHITECTURE:TAG``) and its options stand for.

    Raises:
        BackboneError: Unknown names, a missing file, an unknown activation, or options that contradict each other.
    """
    architecture, _, tag = name.partition(":")
    if tag and pretrained and tag != pretrained:
        raise BackboneError(f"{name}: the name asks for tag {tag}, the option pretrained for {pretrained}; give one")
    config = _config(architecture)
    pretrained = tag or pretrained
    if weights and pretrained:
        raise BackboneError(f"{name}: weights={weights} and tag {pretrained} exclude each other; give one")
    patch = config["vision_cfg"]["patch_size"]
    if resolution is not None and resolution % patch:
        raise BackboneError(f"{architecture}: resolution={resolution} is not a multiple of its patch size {patch}")
    if weights:
        path = weights_io.find_weights(weights)
        if (header := header_of(path)) is not None:
            return _exported(architecture, config, path, header, activation, resolution)
        found, notes = _file_activation(architecture, config, path.name, activation)
        return Origin(architecture, config, path.name, found, path=path, resolution=resolution, notes=notes)
    if pretrained == "random":
        found = activation or ("quick_gelu" if config.get("quick_gelu") else "gelu")
        _agree(architecture, config, activation, found, f"the architecture name {architecture}")
        return Origin(architecture, config, "random initialisation", found, tag=pretrained, resolution=resolution)
    entry = _tag_entry(architecture, pretrained)
    found = "quick_gelu" if entry.get("quick_gelu") else "gelu"
    _agree(architecture, config, activation, found, f"tag {pretrained}")
    return Origin(
        architecture,
        config,
        f"{architecture}:{pretrained}",
        found,
        tag=pretrained,
        entry=entry,
        resolution=resolution,
        mean=tuple(entry.get("mean", CLIP_MEAN)),  # type: ignore[arg-type]
        std=tuple(entry.get("std", CLIP_STD)),  # type: ignore[arg-type]
        notes="activation by tag",
    )


def _exported(
    architecture: str,
    config: dict[str, Any],
    path: Path,
    header: Exported,
    activation: Activation | None,
    resolution: int | None,
) -> Origin:
    """A file that ``benchmark export-backbone`` wrote: its header says what a state dict does not."""
    base = header.backbone
    if base.kind != "open_clip" or base.architecture.removesuffix("-quickgelu") != architecture.removesuffix(
        "-quickgelu"
    ):
        raise BackboneError(
            f"{path.name} holds a {base.architecture} ({base.kind}), exported from {header.name}; give it to that backbone, not to "
            f"{architecture}"
        )
    true: Activation = "quick_gelu" if base.activation == "quick_gelu" else "gelu"
    _agree(architecture, config, activation, true, f"the header of {path.name}")
    if resolution is None and base.resolution != config["vision_cfg"]["image_size"]:
        resolution = base.resolution
    return Origin(
        architecture,
        config,
        aligned_source(header),
        true,
        path=path,
        resolution=resolution,
        mean=base.mean,
        std=base.std,
        notes=f"activation, mean and deviation by the file's header; licence of {header.alignment.dataset}: "
        f"{header.alignment.dataset_licence}",
    )


def architectures() -> dict[str, str]:
    """Names of the open_clip architectures that can be used, each with one line about its size."""
    import open_clip
    from open_clip.factory import get_model_config

    lines = {}
    for name in open_clip.list_models():
        config = get_model_config(name)
        if _unsupported(config) is None:
            tags = len(open_clip.list_pretrained_tags_by_model(name))
            lines[name] = f"{size_line(config)}; {tags} tag{'' if tags == 1 else 's'}"
    return lines


def size_line(config: dict[str, Any]) -> str:
    """Depth x width of both towers, patch and picture side."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    return (
        f"ViT {vision['layers']} x {vision['width']}, patch {vision['patch_size']}, {vision['image_size']} px; "
        f"text {text['layers']} x {text['width']}"
    )


def _config(architecture: str) -> dict[str, Any]:
    import open_clip
    from open_clip.factory import get_model_config

    names = open_clip.list_models()
    if architecture not in names:
        near = difflib.get_close_matches(architecture.replace("/", "-"), names, n=3, cutoff=0.5)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise BackboneError(f"unknown backbone {architecture}{hint} `benchmark ls backbones` shows all")
    config: dict[str, Any] = get_model_config(architecture)
    if (reason := _unsupported(config)) is not None:
        raise BackboneError(f"{architecture}: {reason}; choose a ViT architecture, such as ViT-B-32 or ViT-L-14")
    return config


def _unsupported(config: dict[str, Any]) -> str | None:
    vision, text = config["vision_cfg"], config["text_cfg"]
    if isinstance(vision.get("layers", 12), (list, tuple)):
        return "its image tower is a convolutional network, which has no transformer blocks to attach to"
    if vision.get("timm_model_name"):
        return "its image tower is a timm model, whose attach points are not mapped"
    if "multimodal_cfg" in config:
        return "it is a CoCa model with a captioning decoder, which retrieval does not use"
    if text.get("hf_model_name"):
        return "its text tower is a Hugging Face model, whose attach points are not mapped"
    if text.get("hf_tokenizer_name"):
        return "its tokenizer comes from the Hugging Face hub and its text tower is not CLIP's"
    return None


def _file_activation(
    architecture: str, config: dict[str, Any], file: str, asked: Activation | None
) -> tuple[Activation, str]:
    """The activation of a local file, and a note on how that is known."""
    for pattern, (activation, why) in KNOWN_FILES.items():
        if fnmatch.fnmatch(file, pattern):
            _agree(architecture, config, asked, activation, f"{file} ({why})")
            return activation, f"activation by file name: {why}"
    if config.get("quick_gelu"):
        _agree(architecture, config, asked, "quick_gelu", f"the architecture name {architecture}")
        return "quick_gelu", "activation by architecture name"
    if asked is None:
        raise BackboneError(
            f"{file}: a state dict does not record its activation and the wrong one costs points silently; give "
            "activation=quick_gelu (OpenAI's weights and what was fine-tuned from them) or activation=gelu (LAION's)"
        )
    return asked, "activation as stated by the user"


def _agree(architecture: str, config: dict[str, Any], asked: Activation | None, true: Activation, what: str) -> None:
    if asked is not None and asked != true:
        raise BackboneError(f"activation={asked}, but {what} needs {true}; leave the option out")
    if config.get("quick_gelu") and true == "gelu":
        plain = architecture.removesuffix("-quickgelu")
        raise BackboneError(f"{architecture} is a QuickGELU architecture, but {what} needs gelu; use {plain}")


def _tag_entry(architecture: str, tag: str | None) -> dict[str, Any]:
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if tag is None:
        raise BackboneError(
            f"{architecture}: which weights? Give a tag, such as {architecture}:{tags[0] if tags else 'TAG'}, or "
            f"weights=FILE, or pretrained=random for an untrained model. Tags: {', '.join(tags) or 'none'}"
        )
    entry: dict[str, Any] = get_pretrained_cfg(architecture, tag)
    if not entry:
        near = difflib.get_close_matches(tag, tags, n=2, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise BackboneError(f"{architecture} has no tag {tag}; {hint}Tags: {', '.join(tags) or 'none'}")
    return entry
