"""What a trial is put together from: data, backbone and method, found or refused before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from petlbench.datasets.card import Card
from petlbench.datasets.load import load
from petlbench.datasets.registry import load_card
from petlbench.datasets.split import DataError, Split
from petlbench.harness import audit
from petlbench.harness.device import seed_everything
from petlbench.harness.spec import Trial, without_hashes
from petlbench.methods import registry
from petlbench.methods.backbones.base import Backbone
from petlbench.methods.backbones.registry import load_backbone
from petlbench.methods.base import Method, MethodError, names_in
from petlbench.methods.recipe import LossConfig, Recipe


@dataclass(frozen=True)
class Parts:
    """What a trial is put together from."""

    card: Card
    splits: dict[str, Split]
    backbone: Backbone
    method: Method
    recipe: Recipe
    origin: str

    @property
    def same_pictures(self) -> bool:
        """Every epoch shows a picture in the same way, so that what a frozen network says of it can be kept."""
        return not self.method.trains or (
            self.recipe.augmentation.is_identity and not self.recipe.loss.needs_second_view
        )


@dataclass(frozen=True)
class Built:
    """A method on its backbone, frozen except for what is trained.

    Attributes:
        model: What ``method.build`` returned.
        trainable: Names of all trained parameters, in the model's order.
        new_heads: Joining heads of unaligned towers among them, which every method trains.
    """

    model: nn.Module
    trainable: list[str]
    new_heads: set[str]


def assemble(trial: Trial) -> Parts:
    """Read the data set and build backbone and method, untrained.

    Raises:
        DataError: The data set is not what the plan saw.
        BackboneError: The weights are missing or do not fit.
        MethodError: The method refuses the backbone.
    """
    spec, paths = trial.spec, trial.paths
    card = load_card(paths.dataset_card)
    options, hashes = without_hashes(spec.dataset.options)
    splits = load(card, paths.dataset_root, **{**options, **paths.dataset_paths})
    # A trial has the splits that its spec names: a searched one does not even know the test split.
    splits = {name: split for name, split in splits.items() if name in (hashes or splits)}
    if absent := [name for name in hashes if name not in splits]:
        raise DataError(
            f"data set {card.name}: the trial was planned on {', '.join(absent)} too, but of its splits only "
            f"{', '.join(splits) or 'none'} are there; restore the files, or plan and run anew"
        )
    for name, expected in hashes.items():
        if splits[name].sha256 != expected:
            raise DataError(
                f"data set {card.name}: split {name} has changed since the trial was planned (pictures' names, captions or "
                f"their order: hash {splits[name].sha256[:12]}, then {expected[:12]}); restore it, or plan and run anew"
            )
    # A weight file's content is named in the spec, its place in the paths.
    backbone = load_backbone(spec.backbone.name, **{**spec.backbone.options, **paths.weights}, seed=spec.seed)
    sources = registry.discover(paths.plugins)
    cls = registry.load(sources[spec.method.name])
    recipe = Recipe.model_validate(spec.train)
    options = {**spec.method.options, **paths.method_files}
    method = cls(cls.Config.model_validate(options), LossConfig.model_validate(recipe.loss))
    if reason := method.refuse(backbone):
        raise MethodError(f"method {method.name} on {backbone.name}: {reason}")
    return Parts(card, splits, backbone, method, recipe, sources[spec.method.name].origin)


def build(parts: Parts, seed: int, device: torch.device) -> Built:
    """Build the method on the backbone, which lies on ``device``, with the initial weights of a seed, and freeze the rest.

    Raises:
        AuditError: The method names parameters that the model does not have.
    """
    method, backbone = parts.method, parts.backbone
    seed_everything(seed)
    model = method.build(backbone).to(device)
    new_heads = set(names_in(model, backbone, backbone.new_parameters())) if method.trains else set()
    own = set(method.trainable(model)) - new_heads
    audit.freeze_all_but(model, own | new_heads, method.name)
    return Built(model, [n for n, _ in model.named_parameters() if n in own or n in new_heads], new_heads)
