"""Trials on the nodes of a cluster: what a node does not see is sent to it, what it cannot write is sent back.

The driver (:class:`Cluster`) asks every node what it sees. A worker (:func:`visit`) takes paths that it sees as they are; for
others it unpacks the driver's parcels, where ``resources.ship_data`` allows that. Where it does not see the results folder,
it writes to a folder of its own, sends record, ranks and adapter back when the trial ends, and the driver writes them.
Checkpoints stay where they were written: a trial whose node was lost goes on from its last epoch where the results folder is
visible to all, and starts afresh where it is not.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import petlbench
from petlbench.datasets.cache import cache_folder
from petlbench.errors import PetlbenchError
from petlbench.harness.failure import first_line
from petlbench.harness.leftovers import remove_written, written
from petlbench.harness.parcels import pack, unpack, walk, write_files
from petlbench.harness.record_files import RECORD_SUFFIX, good_record, path_of
from petlbench.harness.resources import GIB, Resources
from petlbench.harness.shares import Node
from petlbench.harness.spec import Paths, Trial

PATIENCE_S = 120
"""How long a node may take to say what it sees; its first task starts a process and imports the package."""


class ClusterError(PetlbenchError):
    """A node cannot run trials as it is; the message names it and the way out."""


@dataclass(frozen=True)
class Link:
    """How a worker finds the driver's desk and knows its results folder.

    Attributes:
        desk: Name of the actor.
        mark: Name of a file in the work folder, within the results, that this run put there.
    """

    desk: str
    mark: str


def nodes() -> list[Node]:
    """The living nodes that Ray sees."""
    import ray

    found = []
    for entry in ray.nodes():
        if entry["Alive"]:
            has = entry["Resources"]
            name = f"{entry['NodeManagerHostname']} ({entry['NodeManagerAddress']}, {entry['NodeID'][:6]})"
            cpus, gpus, memory = (int(has.get(kind, 0)) for kind in ("CPU", "GPU", "memory"))
            found.append(Node(name, cpus, gpus, memory, entry["NodeID"]))
    return found


def on_node(node: str, function: Callable[..., Any], **options: Any) -> Any:
    """A function or class that Ray runs on one node (Ray's id), where it asks for no cores; with further options of Ray's."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(function).options(num_cpus=0, scheduling_strategy=there, **options)


def inputs(paths: Paths) -> list[str]:
    """Everything outside of the package that a trial reads."""
    card = [paths.dataset_card] if Path(paths.dataset_card).is_absolute() else []
    root = [paths.dataset_root] if paths.dataset_root else []
    named = [*paths.dataset_paths.values(), *paths.weights.values(), *paths.method_files.values()]
    first = inputs(paths.first_stage.trial.paths) if paths.first_stage else []
    return list(dict.fromkeys([*card, *root, *named, *paths.plugins, *first]))


class Cluster:
    """The driver's side, for the time of a run."""

    def __init__(self, trials: Sequence[Trial], resources: Resources, *, one_folder: bool = False):
        """Ask the nodes what they see, and pack what is to be sent.

        Args:
            trials: What is to be run.
            resources: Whether anything may be sent.
            one_folder: Whether every node must see the results folder.

        Raises:
            ClusterError: A node does not see an input and nothing may be sent, does not see the results folder though it must,
                or does not have this package.
        """
        import ray

        from petlbench.harness.desk import Desk

        paths, run = trials[0].paths, uuid.uuid4().hex
        self.results = Path(paths.results)
        self.link = Link(f"petlbench-{run}", f"run-{run}")
        self._home = ray.get_runtime_context().get_node_id()
        self._mark = Path(paths.work) / self.link.mark
        self._mark.parent.mkdir(parents=True, exist_ok=True)
        self._mark.touch()
        self._desk = on_node(self._home, Desk, name=self.link.desk).remote()
        try:
            self._send(trials, resources, one_folder)
        except BaseException:
            self.close()
            raise

    def _send(self, trials: Sequence[Trial], resources: Resources, one_folder: bool) -> None:
        import ray

        paths = list(dict.fromkeys(path for trial in trials for path in inputs(trial.paths)))
        stages = list(dict.fromkeys(trial.paths.first_stage.record for trial in trials if trial.paths.first_stage))
        others = [node for node in nodes() if node.id != self._home and node.cpus]
        answers = list(self._asked(others, [*paths, *stages, str(self._mark)]))
        for stage in stages:
            if blind := [node for node, missing in answers if stage in missing]:
                raise ClusterError(
                    f"{stage}, the record that chooses the shortlists (protocol.rerank.first), is not visible on node "
                    f"{blind[0].name}; it is read with its adapter beside it, so mount its results folder there under the same path"
                )
        if one_folder and (blind := [node for node, missing in answers if str(self._mark) in missing]):
            raise ClusterError(
                f"the results folder {self.results} is not visible on node {blind[0].name}, and a search keeps its checkpoints "
                "there; give one that all nodes see (--results on a shared file system)"
            )
        for path in paths:
            where = [node for node, missing in answers if path in missing]
            if where and not resources.ship_data:
                gib = sum(file.stat().st_size for file in _files(Path(path))) / GIB
                raise ClusterError(
                    f"{path} is not visible on node {where[0].name}{f' and {len(where) - 1} more' * (len(where) > 1)}; mount "
                    f"it there under the same path, or set resources.ship_data=true to send {gib:.2f} GiB once to each node"
                )
            # Where there are no other nodes yet, an autoscaler may bring some that see nothing.
            if resources.ship_data and (where or not others):
                ray.get(self._desk.offer.remote(path, pack(Path(path), ray.put)))

    def _asked(self, others: list[Node], paths: list[str]) -> Iterator[tuple[Node, list[str]]]:
        import ray

        asked = [(node, on_node(node.id, _look, max_retries=0).remote(paths)) for node in others]
        for node, answer in asked:
            try:
                version, missing = ray.get(answer, timeout=PATIENCE_S)
            except ray.exceptions.RayError as error:
                if node.id not in {known.id for known in nodes()}:
                    continue  # lost since it was listed; it will be given nothing
                said = first_line(str(error), type(error).__name__)
                raise ClusterError(
                    f"node {node.name} cannot run trials: {said} Is petlbench {petlbench.__version__} installed there, in "
                    "the environment that Ray was started from?"
                ) from error
            if version != petlbench.__version__:
                raise ClusterError(
                    f"node {node.name} has petlbench {version}, here it is {petlbench.__version__}; install the same version "
                    "on all nodes"
                )
            yield node, missing

    def collect(self, spec_id: str) -> None:
        """Write what a worker sent back, if it did; a node that saw no good record may send that of a failure, which gives way."""
        import ray

        files = ray.get(self._desk.take.remote(spec_id))
        kept = [(name, content) for name, content in files if not self._gives_way(name, content, spec_id)]
        write_files(kept, self.results)

    def _gives_way(self, name: str, content: bytes, spec_id: str) -> bool:
        if not name.endswith(RECORD_SUFFIX) or name.count("/") != 2 or json.loads(content).get("status") == "ok":
            return False
        return good_record(self.results / name, spec_id) is not None

    def lost_its_node(self, spec_id: str) -> bool:
        """Whether the node that a trial was last begun on is gone."""
        import ray

        places = ray.get(self._desk.places.remote(spec_id))
        return bool(places) and places[-1] not in {node.id for node in nodes()}

    def close(self) -> None:
        """End the actor and remove the mark."""
        import ray

        self._mark.unlink(missing_ok=True)
        ray.kill(self._desk)


@contextmanager
def open_cluster(
    trials: Sequence[Trial], resources: Resources, *, one_folder: bool = False
) -> Iterator[Cluster | None]:
    """The :class:`Cluster` of a run; None on a Ray of our own, whose workers see what the driver sees."""
    if not resources.address and len(nodes()) == 1:
        yield None
        return
    cluster = Cluster(trials, resources, one_folder=one_folder)
    try:
        yield cluster
    finally:
        cluster.close()


def _look(paths: list[str]) -> tuple[str, list[str]]:
    """On a node: the version of this package there, and which paths are missing."""
    return petlbench.__version__, [path for path in paths if not Path(path).exists()]


@contextmanager
def visit(trial: Trial, link: dict[str, str] | None) -> Iterator[Trial]:
    """On a node: the trial with paths that hold here; what it wrote to a folder of this node is sent to the driver.

    Args:
        trial: With the driver's paths.
        link: A :class:`Link` as a dictionary; None where all is local.

    Raises:
        ClusterError: An input is missing here and was not sent.
    """
    if link is None:
        yield trial
        return
    import ray

    desk = ray.get_actor(link["desk"])
    spec_id = trial.spec.spec_id
    ray.get(desk.began.remote(spec_id, ray.get_runtime_context().get_node_id()))
    shipped = {path: _here(path, desk) for path in inputs(trial.paths) if not Path(path).exists()}
    paths = _replaced(trial.paths, shipped)
    if (Path(paths.work) / link["mark"]).exists():
        yield trial.model_copy(update={"paths": paths})
        return
    if paths.workers > 1:
        raise ClusterError(
            f"the results folder {paths.results} is not visible on node {_name()}; a trial of several workers needs one that "
            "all nodes see (--results on a shared file system)"
        )
    own = cache_folder() / "away" / hashlib.sha256(paths.results.encode()).hexdigest()[:16]
    paths = paths.model_copy(update={"results": str(own), "work": str(own / ".work")})
    there = trial.model_copy(update={"paths": paths})
    record = path_of(there)
    remove_written(record)  # what a killed worker may have left
    try:
        yield there
    finally:
        files = [file for path in written(record) for file in _files(path)]
        if files:
            ray.get(desk.deliver.remote(spec_id, [(f.relative_to(own).as_posix(), f.read_bytes()) for f in files]))
            remove_written(record)


def _here(path: str, desk: Any) -> str:
    import ray

    parcel = ray.get(desk.parcel.remote(path))
    if parcel is None:
        raise ClusterError(
            f"{path} is not visible on node {_name()}; mount it there under the same path, or set resources.ship_data=true to "
            "send it"
        )
    return str(unpack(parcel, ray.get))


def _replaced(paths: Paths, there: dict[str, str]) -> Paths:
    """Paths with those of this node in the place of the driver's."""
    if not there:
        return paths

    def moved(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: moved(inner) for key, inner in value.items()}
        return [moved(inner) for inner in value] if isinstance(value, list) else there.get(value, value)

    names = ("dataset_card", "dataset_root", "dataset_paths", "weights", "method_files", "plugins")
    update = {name: moved(getattr(paths, name)) for name in names}
    if (stage := paths.first_stage) is not None:
        trial = stage.trial.model_copy(update={"paths": _replaced(stage.trial.paths, there)})
        update["first_stage"] = stage.model_copy(update={"trial": trial})
    return paths.model_copy(update=update)


def _name() -> str:
    import ray

    own = ray.get_runtime_context().get_node_id()
    return next((node.name for node in nodes() if node.id == own), own)


def _files(path: Path) -> list[Path]:
    """All files in a folder, or the file itself."""
    return [file for file in walk(path) if file.is_file()]


def as_config(cluster: Cluster | None) -> dict[str, str] | None:
    """The link as it travels in a trial's configuration."""
    return None if cluster is None else asdict(cluster.link)
