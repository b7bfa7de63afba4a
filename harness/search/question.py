"""What a search asks, fully resolved: its hash is the identity of the study that answers it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from petlbench.harness.experiment import Experiment, ExperimentError
from petlbench.harness.plan import make_plan
from petlbench.harness.search import space as spaces
from petlbench.harness.search.settings import SearchConfig
from petlbench.harness.spec import Named, Paths, Trial, TrialSpec, canonical_sha256
from petlbench.methods import registry
from petlbench.methods.base import Domain, Method

SEEN = ("train", "val")
"""Splits that a searched trial knows of; its spec does not even name the test split."""


class Question(BaseModel):
    """Everything that decides which configurations are tried and what they score, but not how many of them."""

    model_config = ConfigDict(extra="forbid")

    version: int = 1
    base: TrialSpec
    """The preset with everything that the experiment sets; of the searched seed; without the test split."""
    space: dict[str, dict[str, Any]]
    """Searched key to ``kind`` and ``values`` of its domain."""
    searcher: str
    scheduler: str
    settings: dict[str, Any]
    """Of the searcher and the scheduler, where they have any."""

    @property
    def study_id(self) -> str:
        """Its :func:`petlbench.harness.spec.canonical_sha256`."""
        return canonical_sha256(self.model_dump(mode="json"))

    @property
    def label(self) -> str:
        """Method, data set, backbone."""
        return f"{self.base.method.name}/{self.base.dataset.name}/{self.base.backbone.name}"


@dataclass(frozen=True)
class Asked:
    """A question with what this machine needs to answer it.

    Attributes:
        question: The question.
        space: Its domains.
        cls: The method.
        paths: Where a trial finds its inputs.
        preset: Which preset the question began with.
        budget: Trials or seconds, the same for every method.
    """

    question: Question
    space: dict[str, Domain]
    cls: type[Method]
    paths: Paths
    preset: str
    budget: SearchConfig

    @property
    def trials(self) -> int | None:
        """Configurations to try; one where there is nothing to choose."""
        return self.budget.trials if self.space else 1

    def trial(self, config: spaces.Config, work: str) -> Trial:
        """One searched trial, its checkpoints below ``work``.

        Raises:
            MethodError: The method or the recipe refuses the combination.
        """
        spec = spaces.configured(self.question.base, config, self.cls)
        return Trial(spec=spec, paths=self.paths.model_copy(update={"work": work}))


def ask(experiment: Experiment, command: list[str] | None = None) -> tuple[list[Asked], list[tuple[str, str]]]:
    """One question per method, data set and backbone, and the combinations that make no sense.

    Raises:
        ExperimentError: The experiment selects on test, or a method's space does not suit the scheduler.
        MethodError: A method's space is wrong.
    """
    settings = experiment.search
    if experiment.protocol.selection == "test_max":
        raise ExperimentError(
            "protocol.selection is test_max, but a search never opens the test split; use best_val or last, and "
            "measure the optimism of test_max with `benchmark run`"
        )
    plan = make_plan(
        experiment.model_copy(update={"seeds": [settings.seed], "tuned": None}), force=True, command=command
    )
    sources = registry.discover(experiment.plugins)
    asked = []
    for planned in plan.planned:
        spec = planned.trial.spec
        cls = registry.load(sources[spec.method.name])
        found = spaces.checked_space(cls)
        options = dict(spec.dataset.options)
        options["splits"] = {name: options["splits"][name] for name in SEEN}
        question = Question(
            base=spec.model_copy(update={"dataset": Named(name=spec.dataset.name, options=options)}),
            space={key: {"kind": d.kind, "values": list(d.values)} for key, d in found.items()},
            searcher=settings.searcher,
            scheduler=settings.scheduler,
            settings=_settings(settings, spec, found),
        )
        asked.append(Asked(question, found, cls, planned.trial.paths, experiment.preset, settings))
    return asked, plan.refused


def _settings(settings: SearchConfig, spec: TrialSpec, space: dict[str, Domain]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if settings.searcher == "grid":
        found["grid_points"] = settings.grid_points
    if settings.scheduler == "pbt":
        if "train.epochs" in space:
            raise ExperimentError(
                f"method {spec.method.name} searches train.epochs, but the members of a population (search.scheduler=pbt) are "
                "trained equally long; use asha, hyperband or fifo"
            )
        found["population"] = settings.trials
        found["interval"] = _interval(settings, spec)
    if settings.scheduler in ("asha", "hyperband"):
        found["reduction"] = settings.reduction
    if settings.scheduler == "asha":
        found["grace"] = settings.grace
    return found


def _interval(settings: SearchConfig, spec: TrialSpec) -> int:
    """Epochs between exchanges, each of them validated."""
    every = spec.protocol.validate_every
    asked = settings.interval or max(1, spec.train["epochs"] // 4)
    return -(-asked // every) * every
