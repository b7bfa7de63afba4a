"""Who gets what: shares of GPUs by method, measured memory, packing that never exceeds a GPU, and what the board says of it."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import ray_work
from cli_calls import SMALL_SCENES, call
from factories import md_rows, put_record, three
from hypothesis import given
from hypothesis import strategies as st
from small_trials import share, small_plan, small_trial, trial_stub

from petlbench.datasets.split import Split
from petlbench.errors import PetlbenchError
from petlbench.harness import cluster, probe
from petlbench.harness.experiment import ExperimentError, load_experiment
from petlbench.harness.record_files import read_record
from petlbench.harness.resources import GIB, RETRIES, ResourceError, Resources
from petlbench.harness.schedule import run_trials
from petlbench.harness.shares import Measured, Node, shares, unit_part, with_machine
from petlbench.leaderboard.frame import to_frame
from petlbench.leaderboard.markdown import render_markdown
from petlbench.leaderboard.table import build_board

GPU_NODE = Node("gpu", cpus=16, gpus=2, memory=64 * GIB)
CPU_NODE = Node("cpu", cpus=8, gpus=0, memory=32 * GIB)
METHODS = ["full_finetune", "lora", "linear_probe"]


def measured(need: float, overhead: float = 0.0, capacity: float = 80.0, kind: str = "cuda_reserved") -> Measured:
    return Measured(int(need * GIB), int(overhead * GIB), "card", int(capacity * GIB), kind)


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    """One trial of each of three methods, by name; the last trains nothing but heads."""
    planned = small_plan(tmp_path_factory.mktemp("plan"), methods=[*METHODS, "zero_shot"]).planned
    return {p.trial.spec.method.name: p.trial for p in planned}


def by_method(resources, trials, nodes=(GPU_NODE,), found=None):
    of = {name: trial.spec.spec_id for name, trial in trials.items()}
    known = {of[name]: value for name, value in (found or {}).items()}
    given_out = shares(Resources.model_validate(resources), nodes, trials.values(), known)
    return {name: given_out[spec_id] for name, spec_id in of.items()}


# Shares ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "part"), [(0, 0), (1, 1), (3, 3), (0.5, 0.5), (0.4, 0.5), (0.34, 0.5), (1 / 3, 0.3333), (0.15, 0.1666)]
)
def test_a_part_of_a_gpu_is_one_nth(asked, part):
    assert unit_part(asked) == part


@given(st.floats(0.001, 1))
def test_parts_never_exceed_the_gpu_and_waste_none_of_it(asked):
    part = unit_part(asked)
    fit = int(1 / asked + 1e-6)
    assert part * fit <= 1 < part * (fit + 1)


def test_a_method_may_have_its_own_share(trials):
    found = by_method({"per_method": {"lora": {"gpus": 0.25}, "linear_probe": {"gpus": 0.5, "cpus": 3}}}, trials)
    assert (found["lora"].gpus, found["lora"].cpus, found["lora"].packed) == (0.25, 2, True)
    assert (found["linear_probe"].gpus, found["linear_probe"].cpus) == (0.5, 3)
    assert (found["full_finetune"].gpus, found["full_finetune"].cpus, found["full_finetune"].packed) == (1, 8, False)


def test_several_gpus_make_as_many_workers_but_not_where_nothing_is_trained(trials):
    found = by_method({"gpus_per_trial": 2}, trials)
    assert (found["full_finetune"].workers, found["full_finetune"].gpus) == (2, 1)
    assert (found["zero_shot"].workers, found["zero_shot"].gpus) == (1, 1)
    assert found["full_finetune"].text == "2 workers with 1 GPU, 8 cores each"


def test_trials_at_once_are_counted_over_the_cluster_and_on_a_machine(tmp_path):
    many = {str(i): t.trial for i, t in enumerate(small_plan(tmp_path, methods=METHODS).planned * 4)}
    portion = by_method({"gpus_per_trial": 0.5}, {"a": many["0"]}, nodes=[GPU_NODE, GPU_NODE])["a"]
    assert (portion.concurrent, portion.beside) == (1, 1)  # one trial needs no more
    each = shares(Resources(gpus_per_trial=0.5), [GPU_NODE, GPU_NODE], many.values())
    assert {(s.concurrent, s.beside) for s in each.values()} == {(8, 4)}
    limited = shares(Resources(gpus_per_trial=0.5, max_concurrent=3), [GPU_NODE], many.values())
    assert {(s.concurrent, s.beside) for s in limited.values()} == {(3, 3)}


def test_cores_of_a_cluster_are_not_lumped_together():
    trial_of_five = Resources(cpus_per_trial=5)
    assert share(trial_of_five, 8, 0, 4).concurrent == 1
    small = [replace(CPU_NODE, name=str(i), cpus=4) for i in range(2)]
    with pytest.raises(ResourceError, match=r"needs 5 cores, and Ray sees 0: 4 cores.*lower resources\.cpus_per_trial"):
        shares(trial_of_five, small, [trial_stub()])


@pytest.mark.parametrize(
    ("resources", "nodes", "message"),
    [
        (
            {"gpus_per_trial": 1},
            [CPU_NODE],
            r"needs 1 core and 1 GPU, and Ray sees cpu: 8 cores, 0 GPUs; lower resources.gpus",
        ),
        (
            {"per_method": {"lora": {"gpus": 0.5}}},
            [CPU_NODE],
            r"a trial of lora .*lower resources\.per_method\.lora\.gpus",
        ),
        ({"gpus_per_trial": 4}, [GPU_NODE], "needs 4 workers with 8 cores and 1 GPU each"),
        ({"gpus_per_trial": 4, "workers_per_trial": 2}, [GPU_NODE], "set resources.workers_per_trial=4"),
    ],
)
def test_what_no_node_can_give_is_refused_with_the_key(trials, resources, nodes, message):
    with pytest.raises(ResourceError, match=message):
        by_method(resources, trials, nodes)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("gpus_per_trial=1.5", r"resources\.gpus_per_trial.*whole GPUs, or a part of one"),
        ("gpus_per_trial=some", r"resources\.gpus_per_trial.*'some'"),
        ("per_method.lora.gpu=1", r"per_method.*lora.*gpu"),
    ],
)
def test_a_wrong_value_is_told_with_its_key(assignment, message):
    with pytest.raises(ExperimentError, match=message):
        load_experiment(None, [f"resources.{assignment}"])


def test_an_exception_for_an_unknown_method_names_the_nearest(tmp_path):
    with pytest.raises(PetlbenchError, match=r"resources\.per_method\.lorra: .*lora"):
        small_plan(tmp_path, "resources.per_method.lorra.gpus=0.5")


# Measured memory ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("need", "overhead", "part"),
    [
        (9.0, 0.0, 0.125),  # 9 + 1 GiB of reserve in 80 / 8
        (9.1, 0.0, 0.1428),
        (9.0, 1.5, 0.1428),  # the context is larger than the reserve
        (19.0, 0.0, 0.25),
        (39.1, 0.0, 1.0),
        (79.5, 0.0, 1.0),
        (0.1, 0.0, 0.125),  # no more than max_per_gpu
    ],
)
def test_the_smallest_part_that_holds_peak_and_reserve_is_chosen(need, overhead, part):
    assert measured(need, overhead).part(Resources()) == part


@given(st.floats(0.01, 79), st.floats(0, 3), st.integers(1, 12))
def test_measured_trials_always_fit_beside_each_other(need, overhead, most):
    resources = Resources(max_per_gpu=most)
    found = measured(need, overhead)
    count = round(1 / found.part(resources))
    assert count <= most
    if count > 1:
        assert count * (found.need + max(found.overhead, GIB)) <= found.capacity


def test_auto_packs_what_was_measured_and_nothing_else(trials):
    found = by_method({"gpus_per_trial": "auto"}, trials, found={"lora": measured(9), "linear_probe": measured(30)})
    assert {name: portion.gpus for name, portion in found.items()} == {
        "full_finetune": 1,
        "lora": 0.125,
        "linear_probe": 0.5,
        "zero_shot": 1,
    }


def test_without_a_gpu_auto_keeps_memory_free_on_the_host(trials):
    found = by_method({"gpus_per_trial": "auto"}, trials, [CPU_NODE], {"lora": measured(9, kind="process_resident")})
    assert found["lora"].bundle == {"CPU": found["lora"].cpus, "memory": 9 * GIB}
    assert found["full_finetune"].memory == 0
    one = share(Resources(), 8, 0, 8)
    assert one.bundle == {"CPU": 1}


def test_the_probe_takes_the_pictures_with_the_longest_captions():
    captions = ("a", "a long one indeed", "b", "two words", "c", "the very longest of them")
    split = Split("train", tuple("xyz"), captions, np.array([0, 1, 1, 0, 2, 2]), np.array([5, 6, 7]))
    worst = probe.longest(split, 2)
    assert (worst.images, worst.captions) == (("y", "z"), ("a long one indeed", "b", "c", "the very longest of them"))
    assert worst.owner.tolist() == [0, 0, 1, 1]
    assert worst.labels.tolist() == [6, 7]


def test_a_measurement_is_known_for_every_seed_but_not_for_another_batch_or_card(trials, tmp_path, monkeypatch):
    monkeypatch.setenv("PETLBENCH_CACHE", str(tmp_path))
    lora = trials["lora"]
    card = probe.Card("card", 80 * GIB, "cuda_reserved")
    place = tmp_path / "probes" / f"{probe.probe_key(lora, card)[:32]}.json"
    place.parent.mkdir()
    place.write_text(json.dumps({**asdict(measured(9)), "label": "lora"}))
    spec = lora.spec
    seed = lora.model_copy(update={"spec": spec.model_copy(update={"seed": 7})})
    larger = lora.model_copy(update={"spec": spec.model_copy(update={"train": {**spec.train, "batch_size": 99}})})
    auto = Resources(gpus_per_trial="auto")
    assert probe.known([lora, seed, larger], auto, card) == {t.spec.spec_id: measured(9) for t in (lora, seed)}
    assert probe.known([lora], auto, replace(card, capacity=40 * GIB)) == {}
    place.write_text("{")
    assert probe.known([lora], auto, card) == {}, "a damaged file is measured again"
    assert probe.known([lora], Resources(gpus_per_trial=1), card) == {}


def test_the_probe_trains_and_validates_in_a_process_of_its_own_and_leaves_the_test_split_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("PETLBENCH_CACHE", str(tmp_path / "cache"))
    trial = small_trial(tmp_path / "results", method="linear_probe")
    found = probe.measure_here(trial)
    assert found.kind == "process_resident" and 50 * 2**20 < found.need < found.capacity
    assert not (tmp_path / "results").exists()
    manifests = [json.loads(p.read_text()) for p in (tmp_path / "cache" / "images").glob("*/manifest.json")]
    assert sorted(m["split"] for m in manifests) == ["train", "val"]
    assert {m["split"]: m["shape"][0] for m in manifests}["train"] == 32  # two batches of sixteen
    broken = trial.model_copy(update={"paths": trial.paths.model_copy(update={"dataset_card": "nonsense"})})
    with pytest.raises(probe.ProbeError, match=r"the probe failed: .*nonsense"):
        probe.measure_here(broken)


def test_the_plan_shows_the_share_of_each_method(tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "card_here", lambda: probe.Card("cpu", 16 * GIB, "process_resident"))
    words = ["plan", "lora", "zero_shot", *SMALL_SCENES, "-d", "scenes", "-b", "tiny-clip", "--seed", "0"]
    words += ["--results", tmp_path, "--set", "resources.cpus_per_trial=1"]
    rows = call(*words, "--json", "--set", "resources.per_method.lora.gpus=auto").json["trials"]
    assert {row["method"]: row["share"] for row in rows} == {"lora": "auto, to be measured", "zero_shot": "1 core"}
    assert "lower resources.gpus_per_trial" in call(*words, "--gpus-per-trial", "0.5").error


# Packing, on virtual GPUs ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """Folder of the events that workers write; made before Ray, whose workers get the environment."""
    with ray_work.logged(tmp_path_factory.mktemp("log")) as folder:
        yield folder


@pytest.fixture(scope="module")
def two_gpus(log):
    """A Ray with two virtual GPUs."""
    with ray_work.local_ray(cpus=8, gpus=2):
        yield


def events(log, planned):
    labels = {p.trial.spec.label for p in planned}
    return [line for line in ray_work.told(log) if line["trial"] in labels]


def test_trials_share_gpus_and_never_more_than_a_whole_one(two_gpus, log, tmp_path):
    plan = small_plan(tmp_path, methods=["lora", "full_finetune"], seeds=[0, 1, 2, 3])
    resources = Resources.model_validate({"per_method": {"lora": {"gpus": 0.5}}})
    outcome = run_trials(plan.planned, resources, ray_work.Quiet(), run=ray_work.trial_on_two_gpus)
    assert (outcome.finished, outcome.failed, outcome.restarts) == (8, [], 0)
    used: dict[str, float] = {}
    most = 0.0
    parts = {}
    for line in events(log, plan.planned):
        if line["event"] == "start":
            parts[line["trial"]] = (line["devices"], line["part"])
            used[line["devices"]] = used.get(line["devices"], 0) + line["part"]
            most = max(most, used[line["devices"]])
        elif line["event"] == "end":
            device, part = parts[line["trial"]]
            used[device] -= part
    assert most == 1.0  # two halves or one whole were on a GPU at once, never more
    assert {device for device, _ in parts.values()} == {"0", "1"}
    assert {label.split("/")[0]: part for label, (_, part) in parts.items()} == {"lora": 0.5, "full_finetune": 1.0}


def test_a_cluster_without_cores_cannot_be_measured(two_gpus, monkeypatch):
    monkeypatch.setattr(cluster, "nodes", lambda: [Node("head", cpus=0, gpus=0)])
    with pytest.raises(ResourceError, match="no node of the cluster has cores"):
        probe.smallest_card()


def test_every_node_is_asked_for_its_card(two_gpus):
    found = probe.smallest_card()
    assert found == probe.card_here() and found.capacity > 0


@pytest.mark.parametrize(("part", "cores"), [(1, 12), (0.5, 6), (1 / 3, 4), (0.25, 3), (1 / 6, 2), (1 / 8, 1)])
def test_cores_go_evenly_with_parts_of_a_gpu(part, cores):
    node = Node("node", cpus=96, gpus=8)
    (share,) = set(shares(Resources(gpus_per_trial=part), [node], [trial_stub()] * 64).values())
    assert share.cpus == cores


def test_what_a_trial_raises_is_recorded_once_and_not_tried_again(two_gpus, log, tmp_path):
    plan = small_plan(tmp_path, methods=["linear_probe"])
    display = ray_work.Quiet()
    outcome = run_trials(plan.planned, Resources(), display, run=ray_work.failing_trial)
    assert outcome.failed == [("linear_probe/scenes/tiny-clip/s0", "ValueError: no such luck")]
    assert (outcome.restarts, display.failures) == (0, ["linear_probe"])
    assert len(events(log, plan.planned)) == 1
    record = read_record(plan.planned[0].path)
    assert record.status == "failed" and "failing_trial" in record.error.traceback


def test_a_trial_whose_process_dies_is_started_again_a_few_times(two_gpus, log, tmp_path):
    plan = small_plan(tmp_path, methods=["zero_shot"])
    display = ray_work.Quiet()
    outcome = run_trials(plan.planned, Resources(), display, run=ray_work.dying_trial)
    assert outcome.restarts == RETRIES and len(display.notes) == RETRIES
    assert f"is started again (1 of at most {RETRIES} times)" in display.notes[0]
    assert len(events(log, plan.planned)) == 1 + RETRIES
    assert [label for label, _ in outcome.failed] == ["zero_shot/scenes/tiny-clip/s0"]
    assert read_record(plan.planned[0].path).status == "failed"


# The board ------------------------------------------------------------------------------------------------------------


def packed(payload):
    payload["cost"]["gpu_share"] = 0.25


def test_packed_trials_show_no_cost(tmp_path):
    three(tmp_path, 2.0, method="lora", change=packed)
    three(tmp_path, 2.5, base=10, method="prompt")
    board = build_board(tmp_path)
    (table,) = board.tables
    text = render_markdown(board)
    assert md_rows(text, "lora")[0].count("packed") == 3  # memory, samples/s, seconds
    assert "packed" not in md_rows(text, "prompt")[0]
    assert any("lora (3 of 3 seeds)" in note and "alone" in note for note in table.notes)
    frame = to_frame(board).set_index("method")
    assert frame.loc["lora", ["peak_memory_bytes", "train_samples_per_s", "train_s"]].isna().all()
    assert frame.loc["lora", "cost_packed_seeds"] == 3 and frame.loc["prompt", "cost_packed_seeds"] == 0


def starved(payload):
    payload["cost"]["train_cpu_s"] = 0.69 * payload["cost"]["train_s"]


def alone(payload):
    payload["cost"]["train_cpu_s"] = 0.71 * payload["cost"]["train_s"]


def test_trials_on_a_busy_machine_show_memory_and_no_seconds(tmp_path):
    three(tmp_path, 2.0, method="lora", change=starved)
    three(tmp_path, 2.5, base=10, method="prompt", change=alone)
    board = build_board(tmp_path)
    (table,) = board.tables
    text = render_markdown(board)
    assert md_rows(text, "lora")[0].count("busy") == 2  # samples/s, seconds
    assert "busy" not in md_rows(text, "prompt")[0]
    assert any("lora (3 of 3 seeds)" in note and "--force" in note for note in table.notes)
    frame = to_frame(board).set_index("method")
    assert frame.loc["lora", ["train_samples_per_s", "train_s"]].isna().all()
    assert frame.loc["lora", "peak_memory_bytes"] > 0
    assert frame.loc["lora", "cost_busy_seeds"] == 3 and frame.loc["prompt", "cost_busy_seeds"] == 0


def test_seconds_come_from_the_seeds_that_had_a_processor(tmp_path):
    for seed in range(3):
        put_record(tmp_path, seed=seed, change=starved if seed else alone)
    (table,) = build_board(tmp_path).tables
    assert (table.rows[0].train_s, table.rows[0].starved) == (12.0, 2)


def test_cost_comes_from_the_seeds_that_had_a_gpu_for_themselves(tmp_path):
    for seed in range(3):
        put_record(
            tmp_path, seed=seed, change=packed if seed else lambda payload: payload["cost"].update(gpu_share=1.0)
        )
    (table,) = build_board(tmp_path).tables
    assert (table.rows[0].train_s, table.rows[0].packed) == (12.0, 2)
    assert any("lora (2 of 3 seeds)" in note for note in table.notes)


def test_a_share_reaches_the_trial(tmp_path):
    trial = with_machine(
        small_trial(tmp_path), share(Resources(gpus_per_trial=0.25), 8, 1, 4), Resources(gpu_reserve_gib=2)
    )
    assert (trial.paths.gpus_per_worker, trial.paths.gpu_reserve, trial.paths.threads) == (0.25, 2 * GIB, 2)


def test_a_packed_process_is_held_to_its_part_of_the_card(monkeypatch):
    import torch

    from petlbench.harness.device import limit_memory

    held = []
    card = type("Card", (), {"total_memory": 80 * GIB})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda part, device: held.append(part))
    gpu = torch.device("cuda", 0)
    limit_memory(gpu, 0.25, 2 * GIB)
    limit_memory(gpu, 1.0, 2 * GIB)
    limit_memory(torch.device("cpu"), 0.25, 2 * GIB)
    assert held == [0.25 - 2 / 80, 1.0]
    with pytest.raises(RuntimeError, match=r"0\.02 of a card \(80\.0 GiB\) is less than resources\.gpu_reserve_gib=2"):
        limit_memory(gpu, 0.02, 2 * GIB)
