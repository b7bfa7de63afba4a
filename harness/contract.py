"""The contract of a method, as checks that run in seconds on untrained backbones: what `benchmark check` shows."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from petlbench.harness.contract_outcome import Check, ContractError, NotApplicable, attempt
from petlbench.harness.contract_pairs import PairRun
from petlbench.harness.contract_runs import BackboneRun
from petlbench.harness.search.space import checked_space
from petlbench.methods.backbones.base import Backbone
from petlbench.methods.backbones.random_models import random_clip, random_swin_bert, random_two_tower, random_vilt
from petlbench.methods.base import Domain, Family, Method, MethodConfig
from petlbench.methods.pair import PairMethod
from petlbench.methods.recipe import Recipe

BACKBONES: Mapping[str, Callable[..., Backbone]] = {
    "random-clip": random_clip,
    "random-two-tower": random_two_tower,
    "random-swin-bert": random_swin_bert,
    "random-vilt": random_vilt,
}
"""Untrained stand-ins for the kinds of backbone, by the name that a report shows."""

FORBIDDEN_IMPORTS = ("ray", "deepspeed")
"""What only the harness may import: a method must be usable, and testable, without a cluster."""

_KINDS = ("open_clip", "two_tower", "swin_bert", "vilt")


def check_method(cls: type[Method], *, seed: int = 0) -> list[Check]:
    """Put a method through the whole contract.

    First what the class declares, then every distinct preset on every kind of random backbone that the method supports:
    built, trained for a few plain AdamW steps on fake data, stored and loaded again. Needs no GPU, no files, and
    neither Ray nor DeepSpeed.

    Args:
        cls: A class from :func:`petlbench.methods.registry.load`.
        seed: Seeds backbones, fake data and training.

    Returns:
        All checks in order. An error inside the method's code is a failed check, never an exception.
    """
    checks = list(_declarations(cls))
    checks.append(attempt("refusal", lambda: _refusal(cls, seed), cls))
    settings = _settings(cls)
    ran = False
    for name, make in BACKBONES.items():
        for preset, config, loss in settings:
            subject = name if preset == "matched" else f"{name}, preset {preset}"
            runs: list[BackboneRun] = []
            kind = PairRun if issubclass(cls, PairMethod) else BackboneRun
            made = attempt(
                "construct", partial(_made, runs, kind, cls, config, loss, make, subject, seed), cls, subject
            )
            if not runs:
                checks.append(made)
                continue
            found = runs[0].all()
            checks.extend(found)
            ran = ran or len(found) > 1
    if not ran:
        message = (
            "no random backbone could be built on, so nothing else was checked; see the checks above and `kinds`, "
            "`needs_alignment` and refuse()"
        )
        checks.append(Check("coverage", "failed", message))
    return checks


def _made(runs: list[BackboneRun], kind: type[BackboneRun], *given: Any) -> str:
    runs.append(kind(*given))
    return "made"


def _declarations(cls: type[Method]) -> Iterator[Check]:
    for name, function in (
        ("declaration", _declaration),
        ("imports", _imports),
        ("config", _config),
        ("presets", _presets),
        ("variants", _variants),
        ("space", _space),
        ("published", _published),
    ):
        yield attempt(name, lambda function=function: function(cls), cls)  # type: ignore[misc]


def _declaration(cls: type[Method]) -> str:
    for attribute in ("title", "paper", "code", "licence"):
        if not isinstance(getattr(cls, attribute), str):
            raise ContractError(f"{attribute} must be a string, found {getattr(cls, attribute)!r}")
    if isinstance(cls.kinds, str) or not cls.kinds or not set(cls.kinds) <= set(_KINDS):
        raise ContractError(f"kinds is {cls.kinds!r}; expected a tuple of one or more of {', '.join(_KINDS)}")
    if (family := getattr(cls, "family", None)) not in (known := get_args(Family)):
        raise ContractError(f"family is {family!r}; expected one of {', '.join(known)}")
    if isinstance(cls.choices, str) or not all(isinstance(line, str) and line.strip() for line in cls.choices):
        raise ContractError(f"choices must be a tuple of sentences, found {cls.choices!r}")
    if bool(cls.official) != (cls.import_official is not Method.import_official):
        raise ContractError("`official` and import_official() go together: name the layout that the importer reads")
    for flag in (
        "trains",
        "needs_alignment",
        "identity_start",
        "head_only",
        "splits_by_row",
        "own_loss",
        *(("keeps_states",) if issubclass(cls, PairMethod) else ()),
    ):
        if not isinstance(getattr(cls, flag), bool):
            raise ContractError(f"{flag} must be True or False, found {getattr(cls, flag)!r}")
    return ", ".join(cls.kinds)


def _imports(cls: type[Method]) -> str:
    path = Path(inspect.getfile(cls))
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        else:
            continue
        for module in modules:
            if module.partition(".")[0] in FORBIDDEN_IMPORTS:
                raise ContractError(
                    f"{path.name}:{node.lineno} imports {module}; methods import neither "
                    f"{' nor '.join(FORBIDDEN_IMPORTS)}: scheduling and training belong to the harness"
                )
    return "neither ray nor deepspeed"


def _config(cls: type[Method]) -> str:
    if not (inspect.isclass(cls.Config) and issubclass(cls.Config, MethodConfig)):
        raise ContractError(f"Config must be a subclass of MethodConfig, found {cls.Config!r}")
    config = _validated(cls.Config, {}, "Config()")
    _round_trip(config, "Config")
    if cls.Config.model_config.get("extra") != "forbid":
        raise ContractError('Config must keep extra="forbid", or a misspelt option would be ignored in silence')
    return f"{len(cls.Config.model_fields)} fields with defaults"


def _presets(cls: type[Method]) -> str:
    if "matched" not in cls.presets:
        raise ContractError("there is no preset `matched`, the common protocol that `benchmark run` uses")
    for name, preset in cls.presets.items():
        _round_trip(_validated(cls.Config, preset.method, f"presets[{name!r}].method"), f"presets[{name!r}].method")
        _round_trip(_validated(Recipe, preset.train, f"presets[{name!r}].train"), f"presets[{name!r}].train")
    return ", ".join(cls.presets)


def _variants(cls: type[Method]) -> str:
    if not cls.variants:
        raise NotApplicable("no variants declared")
    for name, variant in cls.variants.items():
        _validated(cls.Config, variant.method, f"variants[{name!r}]")
    return ", ".join(cls.variants)


def _space(cls: type[Method]) -> str:
    if not cls.space:
        raise NotApplicable("nothing to search")
    models: dict[str, type[BaseModel]] = {"method": cls.Config, "train": Recipe}
    for key, domain in cls.space.items():
        section, *path = key.split(".")
        if section not in models or not path:
            raise ContractError(f"space key {key!r}: expected method.FIELD or train.FIELD")
        _has_field(models[section], path, key)
        for value in _extremes(key, domain):
            nested: Any = value
            for part in reversed(path):
                nested = {part: nested}
            _validated(models[section], nested, f"space[{key!r}] = {value!r}")
    checked_space(cls)  # what a search asks for too
    return ", ".join(cls.space)


def _has_field(model: type[BaseModel], path: list[str], key: str) -> None:
    current: Any = model
    for part in path:
        fields = current.model_fields if inspect.isclass(current) and issubclass(current, BaseModel) else {}
        if part not in fields:
            known = ", ".join(fields) or "none"
            raise ContractError(
                f"space key {key!r}: {getattr(current, '__name__', current)} has no field {part!r} ({known})"
            )
        current = fields[part].annotation


def _extremes(key: str, domain: Domain) -> tuple[Any, ...]:
    """Values at the edges of a domain; every one of them must be a valid setting."""
    if domain.kind == "choice":
        if len(domain.values) < 2:
            raise ContractError(f"space[{key!r}]: a choice needs two or more values, found {domain.values!r}")
        return domain.values
    if len(domain.values) != 2 or not domain.values[0] < domain.values[1]:
        raise ContractError(f"space[{key!r}]: {domain.kind} needs (low, high) with low < high, found {domain.values!r}")
    low, high = domain.values
    if domain.kind == "loguniform" and low <= 0:
        raise ContractError(f"space[{key!r}]: loguniform needs a positive lower end, found {low!r}")
    return (low, high - 1) if domain.kind == "randint" else (low, high)


def _published(cls: type[Method]) -> str:
    if not cls.published:
        raise NotApplicable("no published rows")
    for row in cls.published:
        where = f"published row {row.dataset or '?'} ({row.source or 'no source'})"
        if not row.dataset or not row.source:
            raise ContractError(f"{where}: dataset and source must be named")
        if len(row.values) != 6 or not all(0 <= v <= 100 for v in row.values):
            raise ContractError(f"{where}: expected six percentages, R@1, 5, 10 of i2t then t2i; found {row.values}")
        for direction, part in (("i2t", row.values[:3]), ("t2i", row.values[3:])):
            if list(part) != sorted(part):
                raise ContractError(f"{where}: {direction} R@1, 5, 10 must not fall, found {part}; a mistyped digit?")
    return f"{len(cls.published)} rows"


def _refusal(cls: type[Method], seed: int) -> str:
    method = cls()
    variants: dict[str, Backbone] = {
        "an aligned open_clip backbone": random_clip(seed),
        "an open_clip backbone whose towers were never trained together": random_clip(seed, aligned=False),
        "an unaligned two_tower backbone": random_two_tower(seed),
        "an unaligned swin_bert backbone": random_swin_bert(seed),
        "a vilt backbone": random_vilt(seed),
    }
    refused = []
    for what, backbone in variants.items():
        reason = method.refuse(backbone)
        if reason is not None and not (isinstance(reason, str) and reason.strip()):
            raise ContractError(f"refuse() returned {reason!r} for {what}; expected None or a reason in words")
        fits = backbone.provenance.kind in cls.kinds and (backbone.aligned or not cls.needs_alignment)
        if not fits and reason is None:
            raise ContractError(
                f"refuse() accepts {what}, yet the class declares kinds {', '.join(cls.kinds)} and "
                f"needs_alignment={cls.needs_alignment}; an override of refuse() must also ask super().refuse()"
            )
        if reason is not None:
            refused.append(what)
    return f"refuses {'; '.join(refused)}" if refused else "refuses nothing"


def _settings(cls: type[Method]) -> list[tuple[str, MethodConfig, Any]]:
    """(preset, config, loss) of every preset that differs from those before it; invalid ones failed above already."""
    found: list[tuple[str, MethodConfig, Any]] = []
    for name in sorted(cls.presets, key=lambda n: n != "matched"):
        try:
            config = cls.Config.model_validate(dict(cls.presets[name].method))
            loss = Recipe.model_validate(dict(cls.presets[name].train)).loss
        except Exception:
            continue  # reported by the checks `config` and `presets`
        if all((config, loss) != known[1:] for known in found):
            found.append((name, config, loss))
    return found


def _validated(model: type[BaseModel], values: Mapping[str, Any], what: str) -> BaseModel:
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        found = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or model.__name__}: {e['msg'].lower()}" for e in error.errors()
        )
        raise ContractError(f"{what} is not valid: {found}") from error


def _round_trip(model: BaseModel, what: str) -> None:
    try:
        same = type(model).model_validate_json(model.model_dump_json()) == model
    except ValidationError as error:
        raise ContractError(f"{what} cannot be read back from its own JSON: {error.errors()[0]['msg']}") from error
    if not same:
        raise ContractError(f"{what} changes when written as JSON and read back; records could not be run again")
