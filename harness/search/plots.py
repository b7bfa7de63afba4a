"""Pictures of a study: how it went on, where good values lie, which settings mattered. SVG and PNG."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from petlbench.harness.json_files import write_atomically
from petlbench.harness.search import space as spaces
from petlbench.harness.search.study import SearchedTrial, Study
from petlbench.methods.base import Domain

MIN_FOR_IMPORTANCE = 10
"""Finished and pruned trials below which an importance would say nothing."""

_KINDS = {
    "ok": ("o", "trained to the end"),
    "pruned": ("x", "stopped early"),
    "changed": ("^", "took over from others"),
}
"""Marker and legend."""

_COLOURS = {"changed": "#2ca02c", "ok": "#1f77b4", "pruned": "#9aa5b1", "best": "#d62728", "line": "#444444"}


def write_plots(study: Study) -> list[Path]:
    """Write ``history``, ``slices`` and ``importance``, each as ``.svg`` and ``.png``, where there is enough to show."""
    scored = [trial for trial in study.trials if trial.best_mR is not None and trial.status != "running"]
    if not scored:
        return []
    drawn = _save(study, "history", lambda figure: _history(figure, study, scored))
    domains = {k: Domain(d["kind"], tuple(d["values"])) for k, d in study.about.question.space.items()}
    if domains:
        drawn += _save(
            study, "slices", lambda figure: _slices(figure, study, scored, domains), width=3.1 * len(domains) + 0.6
        )
    if weights := importance(scored, domains):
        drawn += _save(
            study, "importance", lambda figure: _importance(figure, study, weights), height=1.2 + 0.45 * len(weights)
        )
    return drawn


def importance(trials: list[SearchedTrial], domains: dict[str, Domain]) -> dict[str, float]:
    """Share of each setting in what makes the best trials differ from the others (PED-ANOVA, Watanabe et al. 2023).

    Empty where fewer than :data:`MIN_FOR_IMPORTANCE` trials or fewer than two settings are there, or all scores are equal.
    """
    import optuna

    usable = [trial for trial in trials if not trial.taken and spaces.contains(domains, trial.config)]
    if len(usable) < MIN_FOR_IMPORTANCE or len(domains) < 2 or len({trial.best_mR for trial in usable}) < 2:
        return {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    distributions = spaces.distributions(domains)
    for trial in usable:
        # Pruned trials count with what they reached: that they were stopped says something about their settings.
        study.add_trial(
            optuna.trial.create_trial(params=trial.config, distributions=distributions, value=trial.best_mR)
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.importance.get_param_importances(study, evaluator=optuna.importance.PedAnovaImportanceEvaluator())


def _history(figure: Any, study: Study, trials: list[SearchedTrial]) -> None:
    axis = figure.add_subplot()
    best = study.best()
    for kind, (marker, label) in _KINDS.items():
        of = [t for t in trials if _kind(t) == kind]
        if of:
            axis.scatter(
                [t.number for t in of], [t.best_mR for t in of], marker=marker, c=_COLOURS[kind], s=28, label=label
            )
    top: float | None = None
    steps = []
    for trial in trials:
        if _kind(trial) == "ok" and (top is None or (trial.best_mR or 0) > top):
            top = trial.best_mR
        steps.append(top)
    axis.step(
        [t.number for t in trials],
        [float("nan") if s is None else s for s in steps],
        where="post",
        c=_COLOURS["line"],
        lw=1,
        label="best so far",
    )
    if best is not None:
        axis.scatter(
            [best.number],
            [best.best_mR],
            marker="*",
            c=_COLOURS["best"],
            s=110,
            zorder=3,
            label=f"best: {best.best_mR:.2f}",
        )
    if trials[0].origin == "preset" and trials[0].best_mR is not None:
        axis.axhline(trials[0].best_mR, ls=":", lw=1, c=_COLOURS["line"], label="preset")
    axis.set(xlabel="trial", ylabel="validation mR (%)", title=study.about.question.label)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))


def _slices(figure: Any, study: Study, trials: list[SearchedTrial], domains: dict[str, Domain]) -> None:
    axes = figure.subplots(1, len(domains), sharey=True, squeeze=False)[0]
    best = study.best()
    for axis, (key, domain) in zip(axes, domains.items(), strict=True):
        names = _names(key, domain, trials)
        if names:
            axis.set_xticks(range(len(names)), names, fontsize=8)
            axis.set_xlim(-0.5, len(names) - 0.5)
        elif domain.kind == "loguniform":
            axis.set_xscale("log")
            axis.xaxis.set_minor_formatter("")
            ends = [*domain.values, *(trial.config[key] for trial in trials)]
            axis.set_xlim(min(ends) / 1.2, max(ends) * 1.2)

        def place(trial: SearchedTrial, key: str = key, names: list[str] = names) -> float:
            return names.index(str(trial.config[key])) if names else trial.config[key]

        for kind, (marker, _) in _KINDS.items():
            of = [t for t in trials if _kind(t) == kind]
            axis.scatter([place(t) for t in of], [t.best_mR for t in of], marker=marker, c=_COLOURS[kind], s=28)
        if best is not None:
            axis.scatter([place(best)], [best.best_mR], marker="*", c=_COLOURS["best"], s=110, zorder=3)
        axis.set_xlabel(key)
    axes[0].set_ylabel("validation mR (%)")
    there = {_kind(trial) for trial in trials}
    named = {"ok": "circle", "pruned": "cross", "changed": "triangle"}
    legend = [f"{named[kind]}: {label}" for kind, (_, label) in _KINDS.items() if kind in there]
    figure.suptitle(f"{study.about.question.label}\n({', '.join([*legend, 'star: best'])})", fontsize=9)


def _kind(trial: SearchedTrial) -> str:
    return "changed" if trial.taken else trial.status


def _names(key: str, domain: Domain, trials: list[SearchedTrial]) -> list[str]:
    """Ticks of a choice, with what the preset has besides; empty for an interval."""
    if domain.kind != "choice":
        return []
    return list(dict.fromkeys([*map(str, domain.values), *(str(trial.config[key]) for trial in trials)]))


def _importance(figure: Any, study: Study, weights: dict[str, float]) -> None:
    axis = figure.add_subplot()
    names = sorted(weights, key=lambda name: weights[name])
    axis.barh(names, [100 * weights[name] for name in names], color=_COLOURS["ok"], height=0.6)
    axis.set(xlabel="importance (%), PED-ANOVA", title=study.about.question.label)


def _save(study: Study, name: str, draw: Callable[[Any], None], width: float = 7.0, height: float = 3.4) -> list[Path]:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    paths = []
    with rc_context(
        {"svg.hashsalt": "petlbench", "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10}
    ):
        figure = Figure(figsize=(max(4.0, width), height), layout="constrained")
        draw(figure)
        for kind, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
            path = study.folder / f"{name}.{kind}"
            write_atomically(path, buffer.getvalue())
            paths.append(path)
    return paths
