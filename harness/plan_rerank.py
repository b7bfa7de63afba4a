"""What ranks first where a method that scores pairs is given a shortlist."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from petlbench.datasets.registry import is_path, load_card
from petlbench.datasets.split import Split
from petlbench.harness.experiment import Experiment, ExperimentError
from petlbench.harness.record_files import read_record
from petlbench.harness.resolve import PATH_OPTIONS, absolute
from petlbench.harness.spec import OWN, FirstStage, ProtocolConfig

if TYPE_CHECKING:
    from petlbench.methods.backbones.registry import BackboneInfo
    from petlbench.methods.base import Method

JOINT_KINDS = ("vilt",)
"""Kinds of backbone that score pairs and have no dual encoder inside."""


def protocol_of(
    cls: type[Method], info: BackboneInfo, experiment: Experiment, stage_of: Callable[[], FirstStage]
) -> tuple[ProtocolConfig, FirstStage | None, str | None]:
    """The protocol of one method, what ranks first in it, and why that cannot be.

    Args:
        cls: The method.
        info: The backbone it sits on.
        experiment: Gives the protocol.
        stage_of: :func:`first_stage` of the data set; called where a record ranks first.
    """
    from petlbench.methods.pair import PairMethod

    asked = experiment.protocol.rerank
    if asked is None or not issubclass(cls, PairMethod):  # a dual encoder's own ranking is exact
        return experiment.protocol.model_copy(update={"rerank": None}), None, None
    if asked.first == OWN:
        if info.kind in JOINT_KINDS:
            reason = (
                f"protocol.rerank.first is `{OWN}`, but {info.name} has no dual encoder of its own; give the record of one "
                "on the same data set, protocol.rerank.first=RECORD.json"
            )
            return experiment.protocol, None, reason
        return experiment.protocol, None, None
    stage = stage_of()
    named = asked.model_copy(update={"first": stage.trial.spec.spec_id})
    return experiment.protocol.model_copy(update={"rerank": named}), stage, None


def first_backbone(experiment: Experiment) -> list[str]:
    """The backbone of the record that ranks first, whose section may say where its weights lie; none where there is no such."""
    rerank = experiment.protocol.rerank
    if rerank is None or rerank.first == OWN or not (path := Path(absolute(rerank.first))).is_file():
        return []
    return [read_record(path).spec["backbone"]["name"]]


def first_stage(experiment: Experiment, dataset: str, splits: dict[str, Split]) -> FirstStage:
    """The dual encoder of the record that ``protocol.rerank.first`` names.

    Raises:
        ExperimentError: There is no such record, or it is none of a dual encoder on the same splits with its weights.
    """
    from petlbench.harness.adapters import AdapterError, adapter_of
    from petlbench.harness.retrial import Places, trial_of
    from petlbench.methods import registry
    from petlbench.methods.pair import PairMethod

    assert experiment.protocol.rerank is not None
    path = Path(absolute(experiment.protocol.rerank.first))
    where = experiment.place("protocol", "rerank", "first")
    if not path.is_file():
        raise ExperimentError(
            f"{where}: key `protocol.rerank.first`: {path} is no file; expected `{OWN}` or the record (.json) of a dual "
            "encoder on the same data set, as `benchmark run` writes it"
        )
    record = read_record(path)
    if record.status != "ok" or record.data is None:
        raise ExperimentError(f"{where}: key `protocol.rerank.first`: the trial of {path} did not finish; run it again")
    same = record.data.name == dataset and all(
        name in splits and splits[name].sha256 == part.sha256 for name, part in record.data.splits.items()
    )
    if not same:
        raise ExperimentError(
            f"{where}: key `protocol.rerank.first`: {path} is of data set {record.data.name} with other splits than "
            f"{dataset} here; choose a record of the same data set and splits, or run one"
        )
    card = _own_card(experiment, dataset)
    section = experiment.dataset.get(dataset) or experiment.dataset.get(card or "", {})
    places = Places(
        card=card and absolute(card),
        dataset={dataset: {key: value for key, value in section.items() if key in ("root", *PATH_OPTIONS)}},
        backbone={key: value for key, value in experiment.backbone.items() if key == record.spec["backbone"]["name"]},
        method={key: value for key, value in experiment.method.items() if key == record.spec["method"]["name"]},
        plugins=tuple(experiment.plugins),
    )
    trial = trial_of(record, path, places)
    cls = registry.load(registry.discover(experiment.plugins)[trial.spec.method.name])
    if issubclass(cls, PairMethod):
        raise ExperimentError(
            f"{where}: key `protocol.rerank.first`: {trial.spec.method.name} scores pairs itself; a first stage must be a "
            "dual encoder, whose scores of a whole split are cheap"
        )
    try:
        adapter_of(record, path)
    except AdapterError as error:
        raise ExperimentError(f"{where}: key `protocol.rerank.first`: {error}") from error
    return FirstStage(record=str(path), trial=trial)


def _own_card(experiment: Experiment, dataset: str) -> str | None:
    """The card of a data set as the experiment names it, where that is by path; None for ours."""
    paths = [name for name in experiment.datasets if is_path(name)]
    return next((name for name in paths if load_card(name).name == dataset), None)
