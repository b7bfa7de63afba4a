"""A method's search space: checked, laid over a spec, and translated for Optuna or into a grid."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

from pydantic import BaseModel, ValidationError

from petlbench.datasets.validation import suggest
from petlbench.harness.spec import Named, TrialSpec
from petlbench.methods.base import Domain, Method, MethodError
from petlbench.methods.recipe import Recipe

Config = dict[str, Any]
"""Searched key, such as ``train.lr``, to value."""


def checked_space(cls: type[Method]) -> dict[str, Domain]:
    """The space of a method, every key and domain seen to make sense; empty where nothing is trained.

    Raises:
        MethodError: A key names no field, or a domain is empty or upside down.
    """
    if not cls.trains:
        return {}
    for key, domain in cls.space.items():
        section, _, rest = key.partition(".")
        owners: dict[str, type[BaseModel]] = {"method": cls.Config, "train": Recipe}
        owner = owners.get(section)
        if owner is None or not rest:
            raise MethodError(f"space of {cls.name}: key `{key}` must begin with `method.` or `train.`")
        if (field := rest.partition(".")[0]) not in owner.model_fields:
            raise MethodError(f"space of {cls.name}: key `{key}` is unknown; {suggest(field, owner.model_fields)}")
        _check(domain, f"space of {cls.name}: `{key}`")
    return dict(cls.space)


def _check(domain: Domain, where: str) -> None:
    values = domain.values
    kinds = get_args(get_type_hints(Domain)["kind"])
    if domain.kind not in kinds:
        raise MethodError(f"{where}: unknown kind {domain.kind!r}; {suggest(str(domain.kind), kinds)}")
    if domain.kind == "choice":
        if not values or len({_canonical(v) for v in values}) < len(values):
            raise MethodError(f"{where}: a choice needs values, each of them once; found {values}")
        if strange := [v for v in values if not isinstance(v, bool | int | float | str | None)]:
            raise MethodError(f"{where}: a choice is made of numbers, texts, booleans and None; found {strange[0]!r}")
        return
    numbers = len(values) == 2 and all(isinstance(v, int | float) and math.isfinite(v) for v in values)
    if not numbers or not values[0] < values[1]:
        raise MethodError(f"{where}: {domain.kind} needs two numbers, the lower one first; found {values}")
    if domain.kind == "loguniform" and values[0] <= 0:
        raise MethodError(f"{where}: loguniform needs positive ends; found {values}")
    if domain.kind == "randint" and not all(isinstance(v, int) for v in values):
        raise MethodError(f"{where}: randint needs two integers; found {values}")


def _canonical(value: Any) -> tuple[str, Any]:
    """Tells True from 1, which Python calls equal, but not 1 from 1.0."""
    return (
        ("number", value)
        if isinstance(value, int | float) and not isinstance(value, bool)
        else (str(type(value)), value)
    )


def current(spec: TrialSpec, space: Mapping[str, Domain]) -> Config:
    """What a spec has under the keys of a space."""
    return {key: _get(spec, key) for key in space}


def _get(spec: TrialSpec, key: str) -> Any:
    section, _, rest = key.partition(".")
    value: Any = spec.method.options if section == "method" else spec.train
    for part in rest.split("."):
        value = value[part]
    return value


def applied(
    config: Mapping[str, Any], cls: type[Method], options: Mapping[str, Any], train: Mapping[str, Any]
) -> tuple[Config, Config]:
    """A method's options and recipe with a configuration laid over them, validated again.

    Raises:
        MethodError: The method or the recipe refuses the combination.
    """
    sections = {"method": _deep(options), "train": _deep(train)}
    for key, value in config.items():
        section, *inner, last = key.split(".")
        place: Any = sections[section]
        for part in inner:
            place = place[part]
        place[last] = value
    try:
        return (
            cls.Config.model_validate(sections["method"]).model_dump(mode="json"),
            Recipe.model_validate(sections["train"]).model_dump(mode="json"),
        )
    except ValidationError as error:
        first = error.errors()[0]
        shown = ", ".join(f"{key}={value}" for key, value in config.items())
        raise MethodError(f"method {cls.name} with {shown}: {first['msg']} (found {first['input']!r})") from error


def configured(base: TrialSpec, config: Mapping[str, Any], cls: type[Method]) -> TrialSpec:
    """The spec of one searched trial.

    Raises:
        MethodError: The method or the recipe refuses the combination.
    """
    options, train = applied(config, cls, base.method.options, base.train)
    return base.model_copy(update={"method": Named(name=base.method.name, options=options), "train": train})


def _deep(values: Mapping[str, Any]) -> Config:
    return {key: _deep(value) if isinstance(value, Mapping) else value for key, value in values.items()}


def contains(space: Mapping[str, Domain], config: Mapping[str, Any]) -> bool:
    """Whether a searcher could have proposed a configuration."""
    return space.keys() == config.keys() and all(_holds(space[key], value) for key, value in config.items())


def _holds(domain: Domain, value: Any) -> bool:
    if domain.kind == "choice":
        return any(_canonical(value) == _canonical(known) for known in domain.values)
    low, high = domain.values
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return low <= value < high and isinstance(value, int) if domain.kind == "randint" else low <= value <= high


def distributions(space: Mapping[str, Domain]) -> dict[str, Any]:
    """The space for Optuna; ``randint`` leaves its upper end out, as in NumPy and Ray Tune."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, Any] = {}
    for key, domain in space.items():
        if domain.kind == "choice":
            found[key] = CategoricalDistribution(domain.values)
        elif domain.kind == "randint":
            found[key] = IntDistribution(domain.values[0], domain.values[1] - 1)
        else:
            low, high = map(float, domain.values)
            found[key] = FloatDistribution(low, high, log=domain.kind == "loguniform")
    return found


def grid(space: Mapping[str, Domain], points: int, seed: int) -> list[Config]:
    """All combinations of :func:`grid_values` in an order drawn from ``seed``, so that any first N are a fair sample."""
    axes = [grid_values(domain, points) for domain in space.values()]
    found = [dict(zip(space, values, strict=True)) for values in itertools.product(*axes)]
    random.Random(seed).shuffle(found)
    return found


def grid_values(domain: Domain, points: int) -> list[Any]:
    """The finite stand-in for a domain: all of a choice, else up to ``points`` values, ends included, evenly spaced.

    Evenly in the logarithm for ``loguniform``; integers are rounded, and all are taken where there are no more.
    """
    if domain.kind == "choice":
        return list(domain.values)
    low, high = domain.values
    if domain.kind == "randint":
        steps = min(points, high - low)
        return sorted({round(low + i * (high - 1 - low) / max(1, steps - 1)) for i in range(steps)})
    if domain.kind == "uniform":
        inner = [low + i * (high - low) / (points - 1) for i in range(1, points - 1)]
    else:
        ratio = high / low
        inner = [float(f"{low * ratio ** (i / (points - 1)):.6g}") for i in range(1, points - 1)]
    return [float(low), *inner, float(high)]
