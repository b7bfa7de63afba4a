"""How much memory a method needs, measured: a few of its largest steps and a validation, in a process of their own.

The process is ``python -m petlbench.harness.probe``: it reads a trial from its standard input, trains one epoch on the
pictures with the longest captions (as many as two batches), validates, and prints the peak. The test split is not opened.
Results are kept in ``probes/`` of the cache folder, by everything but the seed that decides them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from petlbench.datasets.cache import cache_folder
from petlbench.errors import PetlbenchError
from petlbench.harness.json_files import write_atomically
from petlbench.harness.resources import GIB, ResourceError, Resources
from petlbench.harness.shares import Measured
from petlbench.harness.spec import Trial, canonical_sha256

if TYPE_CHECKING:
    from petlbench.datasets.split import Split
    from petlbench.harness.cluster import Cluster

BATCHES = 2
"""Batches of an epoch of the probe: the optimiser's state is there from the second one on."""


class ProbeError(PetlbenchError):
    """A method could not be measured."""


@dataclass(frozen=True)
class Card:
    """What a trial would run on.

    Attributes:
        device: Name of the GPU, or of the processor.
        capacity: Bytes of its memory, or of the machine's.
        kind: What is measured there.
    """

    device: str
    capacity: int
    kind: Literal["cuda_reserved", "process_resident"]


def measure(
    trials: Sequence[Trial], resources: Resources, cluster: Cluster | None, note: Callable[[str], None]
) -> dict[str, Measured]:
    """Measure every trial for which ``auto`` was asked, through Ray, on whole GPUs, as many at once as there are.

    Args:
        trials: To be run; those that differ in the seed only are measured once.
        resources: What the user asked for.
        cluster: Where nodes may not see the driver's files.
        note: Takes lines for the user.

    Returns:
        By spec id. A trial that could not be measured is not among them, and a line says why.
    """
    import ray

    from petlbench.harness.cluster import as_config

    if not any(_asked(t, resources) for t in trials):
        return {}
    gpus = min(1.0, ray.cluster_resources().get("GPU", 0))
    card = smallest_card()
    keys = _keys(trials, resources, card)
    found = {key: _kept(key) for key in keys.values()}
    groups = {key: t for t in trials if (key := keys.get(t.spec.spec_id)) and found[key] is None}
    if groups:
        many = f"{len(groups)} configuration{'s' * (len(groups) > 1)}"
        note(f"measuring the memory of {many} on {card.device} ({card.capacity / GIB:.1f} GiB)")
    ask = ray.remote(_probe_on_node).options(num_gpus=gpus, num_cpus=1, max_retries=0)
    answers = {key: ask.remote(t.model_dump(mode="json"), as_config(cluster)) for key, t in groups.items()}
    for key, answer in answers.items():
        label = groups[key].spec.label
        try:
            measured = found[key] = Measured(**ray.get(answer))
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            note(f"the memory of {label} could not be measured, so it is not packed: {str(cause).strip()[:500]}")
            continue
        write_atomically(_place(key), json.dumps({**asdict(measured), "label": label}, indent=1).encode())
        note(f"{label} needs {measured.total / GIB:.2f} GiB: {says(measured, resources)}")
    return _measured_of(keys, found)


def known(trials: Sequence[Trial], resources: Resources, card: Card) -> dict[str, Measured]:
    """What earlier probes on the same kind of card measured, by spec id."""
    keys = _keys(trials, resources, card)
    return _measured_of(keys, {key: _kept(key) for key in keys.values()})


def _keys(trials: Sequence[Trial], resources: Resources, card: Card) -> dict[str, str]:
    """Spec id to key of every trial for which ``auto`` was asked; seeds share a key."""
    return {t.spec.spec_id: probe_key(t, card) for t in trials if _asked(t, resources)}


def _measured_of(keys: Mapping[str, str], found: Mapping[str, Measured | None]) -> dict[str, Measured]:
    return {spec_id: measured for spec_id, key in keys.items() if (measured := found[key]) is not None}


def _kept(key: str) -> Measured | None:
    """What an earlier probe measured; None where there was none, or its file is damaged: then it is measured again."""
    place = _place(key)
    if not place.is_file():
        return None
    try:
        kept = json.loads(place.read_text(encoding="utf-8"))
        return Measured(**{field.name: kept[field.name] for field in fields(Measured)})
    except (ValueError, TypeError, KeyError):
        return None


def says(measured: Measured, resources: Resources) -> str:
    """What follows from a measurement, in words."""
    if measured.kind == "process_resident":
        return "kept free for each trial"
    part = measured.part(resources)
    return "a GPU of its own" if part == 1 else f"1/{round(1 / part)} of a GPU"


def _asked(trial: Trial, resources: Resources) -> bool:
    method = trial.spec.method.name
    return resources.gpus_of(method) == "auto" and resources.workers_of(method) == 1


def probe_key(trial: Trial, card: Card) -> str:
    """Hash of all that decides a measurement: the spec without its seed, the card, the code."""
    import torch

    import petlbench
    from petlbench.methods import registry

    spec = trial.spec.model_dump(mode="json", exclude={"seed"})
    cls = registry.load(registry.discover(trial.paths.plugins)[trial.spec.method.name])
    code = [petlbench.__version__, torch.__version__, registry.source_sha256(cls)]
    return canonical_sha256([spec, asdict(card), code])


def _place(key: str) -> Path:
    return cache_folder() / "probes" / f"{key[:32]}.json"


def smallest_card() -> Card:
    """The card with the least memory among the nodes, so that a part of it holds everywhere.

    Raises:
        ResourceError: No node can run anything.
    """
    import ray

    from petlbench.harness.cluster import nodes, on_node

    gpus = min(1.0, ray.cluster_resources().get("GPU", 0))
    asked = [
        on_node(node.id, _card_on_node, num_gpus=gpus, max_retries=0).remote()
        for node in nodes()
        if (node.gpus if gpus else node.cpus)
    ]
    if not asked:
        raise ResourceError(
            "no node of the cluster has cores, so nothing can be measured; add one, or leave out `auto`"
        )
    return min((Card(**answer) for answer in ray.get(asked)), key=lambda card: card.capacity)


def _card_on_node() -> dict[str, Any]:
    return asdict(card_here())


def _probe_on_node(payload: Mapping[str, Any], link: dict[str, str] | None) -> dict[str, Any]:
    from petlbench.harness.cluster import visit

    with visit(Trial.model_validate(payload), link) as trial:
        return asdict(measure_here(trial))


def card_here() -> Card:
    """The device of this machine that a process sees first, asked for in a process of its own: a GPU's context stays there."""
    return Card(**_child(["--card"], ""))


def measure_here(trial: Trial) -> Measured:
    """Measure in a process of its own on this machine.

    Raises:
        ProbeError: It failed, out of memory for instance; with its last words.
    """
    return Measured(**_child([], trial.model_dump_json()))


def _child(options: list[str], text: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "petlbench.harness.probe", *options]
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"it ended with status {done.returncode} and said nothing"])[-1]
        raise ProbeError(f"the probe failed: {last}")
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def _card() -> Card:
    import psutil
    import torch

    from petlbench.harness.device import choose_device, device_name

    device = choose_device()
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        return Card(device_name(device), total, "cuda_reserved")
    return Card(device_name(device), psutil.virtual_memory().total, "process_resident")


def _measure(trial: Trial) -> Measured:
    """What the child does: an epoch over the worst pictures, then a validation from raw pictures."""
    from dataclasses import replace

    import torch

    from petlbench.harness.checkpoint import Checkpoints
    from petlbench.harness.device import peak_memory
    from petlbench.harness.leftovers import scratch_folder
    from petlbench.harness.parts import assemble
    from petlbench.harness.query_cost import encoding_s
    from petlbench.harness.trial import train_and_select

    train = {**trial.spec.train, "epochs": min(1, trial.spec.train["epochs"])}
    protocol = trial.spec.protocol.model_copy(update={"selection": "best_val"})
    spec = trial.spec.model_copy(update={"train": train, "protocol": protocol})
    trial = trial.model_copy(
        update={"spec": spec, "paths": trial.paths.model_copy(update={"gpus_per_worker": 0, "workers": 1})}
    )
    parts = assemble(trial)
    most = max(BATCHES * train["batch_size"], 1)
    splits = {name: longest(parts.splits[name], most) for name in ("train", "val")}
    with scratch_folder() as scratch:
        trained = train_and_select(trial, Checkpoints(scratch), lambda line: None, replace(parts, splits=splits))
    progress, device = trained.progress, trained.device
    resident, reserved = peak_memory(device)  # of the validation that ended the epoch
    # Towers whose outputs are kept ran before the epoch; a trial times them once more, on a few items.
    opened = trained.ranking.open("val")
    trained.ranking.rank(opened)
    encoding_s(parts.method, trained.built.model, parts.backbone, opened.data, trained.parts.recipe.precision, device)
    after = tuple(map(max, peak_memory(device), trained.peak_before))
    card = _card()
    if device.type != "cuda":
        return Measured(max(progress.peak_memory, resident, after[0]), 0, card.device, card.capacity, card.kind)
    free, total = torch.cuda.mem_get_info(device)
    overhead = max(0, total - free - torch.cuda.memory_reserved(device))
    return Measured(max(progress.peak_reserved, reserved, after[1]), overhead, card.device, total, card.kind)


def longest(split: Split, most: int) -> Split:
    """The ``most`` pictures with the longest captions and all their captions: the steps that need the most memory."""
    import numpy as np

    from petlbench.datasets.split import Split

    words = np.zeros(len(split.images), dtype=np.int64)
    np.maximum.at(words, split.owner, [len(text.split()) for text in split.captions])
    chosen = np.sort(np.argsort(-words, kind="stable")[:most])
    place = {int(old): new for new, old in enumerate(chosen)}
    rows = [row for row, owner in enumerate(split.owner.tolist()) if owner in place]
    return Split(
        split.name,
        tuple(split.images[i] for i in chosen),
        tuple(split.captions[row] for row in rows),
        np.array([place[int(split.owner[row])] for row in rows], dtype=np.int64),
        None if split.labels is None else split.labels[chosen],
        split.classes,
    )


def main() -> None:
    """The process: ``--card`` says what the device is, else a trial in JSON comes on the standard input."""
    import logging

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    found = _card() if "--card" in sys.argv else _measure(Trial.model_validate_json(sys.stdin.read()))
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    main()
