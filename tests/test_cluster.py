"""Several machines: nodes that see other files, nodes that vanish. Two Ray nodes on one machine stand for two machines."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
import ray_work
from cli_calls import small_set
from search_parts import Silent, asked_for

from petlbench.harness.cluster import ClusterError, inputs
from petlbench.harness.experiment import load_experiment
from petlbench.harness.plan import make_plan
from petlbench.harness.record_files import read_record
from petlbench.harness.resources import Resources
from petlbench.harness.schedule import run_trials
from petlbench.harness.search.run import search

# Nodes ----------------------------------------------------------------------------------------------------------------

SETS = ("train.epochs=3", "train.sampling=image", "train.batch_size=4")


@pytest.fixture(scope="module")
def log():
    folder = tempfile.mkdtemp(prefix="petlbench-log-")
    with ray_work.logged(Path(folder)):
        yield Path(folder)
    shutil.rmtree(folder)


def patiently(start, **options):
    """Start a node. On a busy machine its parts do not find each other in the time that Ray gives them, so it need not look for
    their ports, and may try again."""
    for last in (False, False, True):
        try:
            return start(**options, **dict(zip(PORTS, free_ports(len(PORTS)), strict=True)))
        except Exception:
            if last:
                raise


PORTS = ("metrics_agent_port", "metrics_export_port", "runtime_env_agent_port", "dashboard_agent_listen_port")


def free_ports(count):
    """Ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@pytest.fixture(scope="module")
def cluster(log):
    """A head without cores, on which the driver is; tests add the nodes that work."""
    import ray
    from ray.cluster_utils import Cluster

    from petlbench.harness.ray_session import quiet_ray

    quiet_ray()
    quick = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 1000, "health_check_failure_threshold": 10}
    made = Cluster()
    lean = {"no_monitor": True, "include_log_monitor": False, "include_dashboard": False}
    patiently(made.add_node, num_cpus=0, _system_config=quick, **lean)
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()


def plan(home: Path, seeds: list[int], method: str = "lora"):
    card, root = small_set(home) if not (home / "files").exists() else (next(home.glob("*.yaml")), home / "files")
    experiment = load_experiment(
        None,
        SETS,
        methods=[method],
        datasets=[str(card)],
        dataset={str(card): {"root": str(root)}},
        seeds=seeds,
        results=str(home / "results"),
    )
    return make_plan(experiment).planned


def of(log, planned):
    labels = {p.trial.spec.label for p in planned}
    return [line for line in ray_work.told(log) if line["trial"] in labels]


def test_a_lost_node_costs_only_its_running_trial_which_goes_on_elsewhere(cluster, log, tmp_path):
    both = {
        node.node_id: node
        for node in (patiently(cluster.add_node, num_cpus=1, include_log_monitor=False) for _ in range(2))
    }
    planned = plan(tmp_path, seeds=[0, 1, 2, 3])
    lost: list[str] = []

    def lose() -> None:
        """The node of the trial that waits behind its first checkpoint goes."""
        end = time.monotonic() + 240
        while not (held := [e for e in of(log, planned) if e["event"] == "held"]):
            if time.monotonic() > end:
                return
            time.sleep(0.05)
        lost.append(held[0]["trial"])
        cluster.remove_node(both.pop(held[0]["node"]), allow_graceful=False)

    watcher = threading.Thread(target=lose, daemon=True)
    watcher.start()
    display = ray_work.Quiet()
    outcome = run_trials(planned, Resources(), display, run=ray_work.held_trial)
    watcher.join(10)
    assert not watcher.is_alive(), "no trial waited behind its checkpoint"
    cluster.remove_node(*both.values())
    assert (outcome.finished, outcome.failed, outcome.lost) == (4, [], [])
    assert outcome.restarts == 1 and f"{lost[0]} lost its process or its node" in display.notes[0]
    assert {read_record(p.path).status for p in planned} == {"ok"}
    begun = [(e["trial"], e["done"]) for e in of(log, planned) if e["event"] == "start"]
    again = [done for trial, done in begun if trial == lost[0]]
    assert again[0] == 0 and len(again) == 2 and again[1] >= 1  # from its checkpoint, which both nodes see
    assert sorted(trial for trial, _ in begun if trial != lost[0]) == sorted(
        p.trial.spec.label for p in planned if p.trial.spec.label != lost[0]
    )


@pytest.fixture
def blind_node(cluster, tmp_path):
    """A node of another view: where the driver keeps data and results it has an empty file system, and its own cache."""
    home, cache = tmp_path / "home", tmp_path / "node-cache"
    home.mkdir()
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("this user may not make mount namespaces, by which a node sees other files")
    ray_cli = Path(sys.executable).with_name("ray")
    start = [str(ray_cli), "start", f"--address={cluster.address}", "--num-cpus=2", "--block"]
    start += ["--min-worker-port=0", "--max-worker-port=0"]
    options = (
        "dashboard-agent-grpc-port",
        "metrics-export-port",
        "runtime-env-agent-port",
        "dashboard-agent-listen-port",
    )
    start += [f"--{option}={port}" for option, port in zip(options, free_ports(4), strict=True)]
    script = 'mount -t tmpfs none "$1" && shift && exec "$@"'
    before = set(alive())
    child = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", script, "sh", str(home), *start],
        env={**os.environ, "PETLBENCH_CACHE": str(cache)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not set(alive()) - before:
        assert child.poll() is None and time.monotonic() < deadline, "the node did not start"
        time.sleep(0.2)
    (node,) = set(alive()) - before
    yield home, cache, node
    child.send_signal(signal.SIGTERM)
    child.wait(60)


def alive() -> list[str]:
    import ray

    return [node["NodeID"] for node in ray.nodes() if node["Alive"]]


def test_a_node_that_sees_neither_data_nor_results_gets_the_one_and_sends_back_the_other(blind_node, log):
    home, cache, node = blind_node
    planned = plan(home, seeds=[0, 1, 2, 3], method="linear_probe")
    message = (
        r"toyset\.yaml is not visible on node .*mount it there under the same path, or set resources\.ship_data=true"
    )
    with pytest.raises(ClusterError, match=message):
        run_trials(planned, Resources(), ray_work.Quiet(), run=ray_work.fake_trial)
    assert not of(log, planned)

    outcome = run_trials(planned, Resources(ship_data=True), ray_work.Quiet(), run=ray_work.fake_trial)
    assert (outcome.finished, outcome.failed, outcome.restarts) == (4, [], 0)
    assert {e["node"] for e in of(log, planned)} == {node}
    for item in planned:
        record = read_record(item.path)
        assert record.spec_id == item.trial.spec.spec_id
        assert item.path.with_name(record.artifacts["ranks"]).is_file()
        assert (item.path.with_name(record.artifacts["weights"]) / "adapter_config.json").read_text() == "{}"
    # Once per node, however many trials at once: the card and the folder of pictures.
    shipped = [p for p in (cache / "shipped").iterdir() if p.is_dir()]
    hidden = [Path(path).name for path in inputs(planned[0].trial.paths) if Path(path).is_relative_to(home)]
    assert sorted(next(p.iterdir()).name for p in shipped) == sorted(hidden) == ["files", "toyset.yaml"]
    pictures = {e["trial"]: e["pictures"] for e in of(log, planned) if e["event"] == "start"}
    assert set(pictures.values()) == {12}
    assert not list((cache / "away").glob("*/*/*/*.json")) and not list((home / "results" / ".work").glob("run-*"))

    # What a trial raises there is recorded here.
    (broken,) = plan(home, seeds=[9], method="bitfit")
    outcome = run_trials([broken], Resources(ship_data=True), ray_work.Quiet(), run=ray_work.failing_trial)
    assert [reason for _, reason in outcome.failed] == ["ValueError: no such luck"]
    assert "failing_trial" in json.loads(broken.path.read_text())["error"]["traceback"]


@pytest.mark.slow
def test_a_search_goes_on_where_a_node_was_lost(cluster, tmp_path):
    both = [patiently(cluster.add_node, num_cpus=1, include_log_monitor=False) for _ in range(2)]
    asked = asked_for(tmp_path, "search.trials=2", "search.scheduler=fifo", "train.epochs=8", method="lora")
    place = tmp_path / "search"
    reached: list[list[int]] = []

    def epochs() -> list[int]:
        found = [json.loads(path.read_text()) for path in sorted(place.glob("*/*/*/trials/*.json"))]
        return [len(trial["curve"]) for trial in found]

    def lose() -> None:
        end = time.monotonic() + 240
        while len(epochs()) < 2 or min(epochs()) < 2:
            if time.monotonic() > end:
                return
            time.sleep(0.05)
        reached.append(epochs())
        cluster.remove_node(both.pop(), allow_graceful=False)

    watcher = threading.Thread(target=lose, daemon=True)
    watcher.start()
    (searched,) = search([asked], place, Resources(), Silent(), command=[])
    watcher.join(10)
    assert reached, "no two trials reached their second epoch"
    cluster.remove_node(both.pop())
    assert searched.complete and min(reached[0]) >= 2
    for trial in searched.study.trials:
        assert trial.status == "ok" and [line.epoch for line in trial.curve] == list(range(1, 9))


def test_a_search_wants_a_results_folder_that_all_nodes_see(blind_node):
    home, _, _ = blind_node
    asked = asked_for(home / "results")
    with pytest.raises(
        ClusterError, match=r"results folder .* is not visible on node .* a search keeps its checkpoints"
    ):
        search([asked], home / "results" / "search", Resources(), Silent(), command=[])
    assert not list((home / "results").rglob("trials"))
