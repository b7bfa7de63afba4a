"""Data set, backbone and method of an experiment as they enter a spec: every option resolved, local files by their content."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petlbench.datasets.card import Card
from petlbench.datasets.layout import find_root, settle
from petlbench.datasets.load import load
from petlbench.datasets.registry import options_model
from petlbench.datasets.split import SPLITS, Split
from petlbench.harness.experiment import Experiment, ExperimentError, merged
from petlbench.harness.spec import Named, with_hashes

if TYPE_CHECKING:
    from petlbench.methods.backbones.registry import BackboneInfo
    from petlbench.methods.base import Method

WEIGHT_OPTIONS = ("weights", "text_weights")
"""Backbone options that may name local files; their content, not their path, enters the spec."""

HASHED = "sha256:"
"""Begins the value of an option that stands for a file by its content."""

METHOD_FILES = ("prior_weights",)
"""Likewise the options of a method that may name the weights of a frozen network beside the backbone."""

RANDOM = "random"
"""Value of such an option that stands for no file."""

PATH_OPTIONS = ("annotations", "image_dir", "val_images", "val_list", "karpathy_json")
"""Data set options that may name files outside the set's folder."""


def absolute(path: str) -> str:
    """A path that does not depend on the working folder; ``~`` is the user's home."""
    return str(Path(path).expanduser().absolute())


def resolve_dataset(
    name: str, card: Card, experiment: Experiment, notes: list[str]
) -> tuple[Named, str | None, dict[str, str], dict[str, Split]]:
    """The set as it enters the spec; its root folder; options that are absolute paths; its splits. Adds to ``notes``."""
    if name != card.name and name in experiment.dataset and card.name in experiment.dataset:
        raise ExperimentError(
            f"sections dataset.{name} and dataset.{card.name} speak of the same data set; join them into one"
        )
    section = name if name in experiment.dataset else card.name
    given = experiment.dataset.get(section, {})
    places = () if card.format == "scenes" else ("root", "format")
    for key in places:
        if given.get(key) is not None and not isinstance(given[key], str):
            raise ExperimentError(
                f"{experiment.place('dataset', section, key)}: key `dataset.{section}.{key}` has the value {given[key]!r}; "
                "expected text, so quote it"
            )
    settled = settle(card, given.get("root"), given, given.get("format"))
    options = experiment.checked_section(
        options_model(settled.card.format), "dataset", section, base=settled.card.options, leave=places
    ).model_dump(mode="json")
    # Resolved here: the workers of a cluster do not have this machine's environment.
    root = str(find_root(settled.card, given.get("root"))) if settled.card.files is not None else None
    # Reading now finds a missing file before anything is started, and ties the identity of every trial to the pictures'
    # names, captions and ownership rather than to where they lie.
    splits = load(settled.card, root, **options)
    for needed in SPLITS:
        if needed not in splits or not splits[needed].captions:
            raise ExperimentError(
                f"data set {card.name} has no {needed} split (it has: {', '.join(s for s in splits if splits[s].captions)}); "
                "training needs train, selection needs val, and the board needs test. Cut it by an option: val_list=FILE, "
                "val_share=0.1, test_share=0.1 or fold=1/5; or choose another card"
            )
    hashes = {name: split.sha256 for name, split in splits.items()}
    # Absolute paths belong to this machine: the spec keeps the last part only, the content is in the hashes.
    local = {key: str(options[key]) for key in PATH_OPTIONS if options.get(key) and Path(options[key]).is_absolute()}
    options |= {key: Path(value).name for key, value in local.items()}
    if settled.card.format != card.format:
        options["format"] = settled.card.format
    if settled.told:
        notes.append(settled.told)
    return Named(name=card.name, options=with_hashes(options, hashes)), root, local, splits


def resolve_backbone(name: str, experiment: Experiment) -> tuple[BackboneInfo, Named, dict[str, str]]:
    """Replace local weight paths by their content's hash, so that a spec means the same on every machine."""
    from petlbench.methods.backbones.base import BackboneError
    from petlbench.methods.backbones.registry import BackboneConfig, describe_backbone

    section = experiment.backbone.get(name, {})
    if "name" in section:
        raise ExperimentError(
            f"{experiment.place('backbone', name, 'name')}: key `backbone.{name}.name` is unknown; the section's own name "
            "says which backbone it is"
        )
    experiment.checked_section(BackboneConfig, "backbone", name, base={"name": name})
    try:
        info = describe_backbone(name, **section)
    except BackboneError as error:
        if name not in experiment.backbone:
            raise
        raise ExperimentError(f"{experiment.place('backbone', name)}: {error}") from error
    resolved, weights = _by_content(info.options, WEIGHT_OPTIONS)
    return info, Named(name=name, options=resolved), weights


def _by_content(options: Mapping[str, Any], keys: Collection[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Options with the hash of each local file in place of its path, and the paths."""
    resolved, files = dict(options), {}
    for key in keys:
        given = resolved.get(key)
        path = Path(str(given)).expanduser() if given else None
        if path is not None and path.exists():
            files[key] = str(path.absolute())
            resolved[key] = f"{HASHED}{content_sha256(path)}"
    return resolved, files


def content_sha256(path: Path) -> str:
    """Hash of a weight file, or of the names and contents of all files in a folder."""
    from petlbench.methods.backbones.weights_io import file_sha256

    if path.is_file():
        return file_sha256(path)
    digest = hashlib.sha256()
    for inner in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(f"{inner.relative_to(path).as_posix()}\0{file_sha256(inner)}\n".encode())
    return digest.hexdigest()


def resolve_method(
    name: str, cls: type[Method], experiment: Experiment
) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """Options, recipe and local weight files: the method's preset, then the common ``train`` section, then the method's own."""
    from petlbench.methods.base import Preset
    from petlbench.methods.recipe import Recipe

    preset = cls.presets.get(experiment.preset, Preset())
    config = experiment.checked_section(cls.Config, "method", name, base=preset.method, leave=("train",))
    common = merged(preset.train, experiment.checked_section(Recipe, "train").model_dump(exclude_unset=True))
    recipe = experiment.checked_section(Recipe, "method", name, "train", base=common)
    if not cls.trains:  # the recipe of a method without training must not split its results
        recipe = Recipe(epochs=0, captions=recipe.captions)
    options = config.model_dump(mode="json")
    for key in METHOD_FILES:
        if options.get(key) not in (None, RANDOM) and not options[key].startswith(HASHED):
            options[key] = _found(options[key], key, name, experiment)
    options, files = _by_content(options, METHOD_FILES)
    return options, recipe.model_dump(mode="json"), files


def _found(given: str, key: str, method: str, experiment: Experiment) -> str:
    """The file that a method will open under this name, which may lie in ``PETLBENCH_WEIGHTS``."""
    from petlbench.methods.backbones.base import BackboneError
    from petlbench.methods.backbones.weights_io import find_weights

    try:
        return str(find_weights(given))
    except BackboneError as error:
        raise ExperimentError(
            f"{experiment.place('method', method, key)}: key `method.{method}.{key}`: {error}"
        ) from error
