"""How a machine is divided among trials, and what becomes of a trial whose process died."""

from small_trials import small_plan, tiny_backbone  # noqa: F401 (a fixture)

from petlbench.harness.record import read_record
from petlbench.harness.resources import Resources
from petlbench.harness.schedule import _account
from petlbench.harness.shares import share


def test_cpu_machine_runs_one_trial_per_core():
    portion = share(Resources(), cpus=4, gpus=0, trials=9)
    assert (portion.cpus, portion.gpus, portion.concurrent) == (1, 0, 4)


def test_fewer_trials_than_cores_share_the_cores():
    portion = share(Resources(), cpus=8, gpus=0, trials=2)
    assert (portion.cpus, portion.concurrent) == (4, 2)


def test_jobs_limits_concurrency():
    portion = share(Resources(max_concurrent=1), cpus=4, gpus=0, trials=9)
    assert (portion.cpus, portion.concurrent) == (4, 1)


def test_one_trial_per_gpu_by_default():
    portion = share(Resources(), cpus=16, gpus=2, trials=9)
    assert (portion.cpus, portion.gpus, portion.concurrent) == (8, 1.0, 2)


def test_packed_gpu():
    portion = share(Resources(gpus_per_trial=0.5), cpus=16, gpus=1, trials=9)
    assert (portion.cpus, portion.gpus, portion.concurrent) == (8, 0.5, 2)


def test_cpus_per_trial_bounds_what_fits():
    portion = share(Resources(cpus_per_trial=4), cpus=6, gpus=0, trials=9)
    assert (portion.cpus, portion.concurrent) == (4, 1)


def test_a_trial_whose_process_died_gets_a_failed_record(tmp_path):
    (planned,) = small_plan(tmp_path).planned
    label, reason = _account(planned, RuntimeError("worker died\nwith details"))
    record = read_record(planned.path)
    assert record.status == "failed"
    assert record.error.message == "worker died\nwith details"
    assert label == planned.trial.spec.label
    assert reason == "RuntimeError: worker died"
