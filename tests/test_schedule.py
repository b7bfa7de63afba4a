"""How a machine is divided among trials, and what becomes of a trial whose process died."""

import ray_work
from factories import make_ranks
from small_trials import share, small_plan, tiny_backbone  # noqa: F401 (a fixture)

from petlbench.harness.record import ErrorPart
from petlbench.harness.record_files import read_record, write_record
from petlbench.harness.resources import Resources
from petlbench.harness.schedule import _account, _recorded_since


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
    label, reason = _account(planned, ErrorPart.of(RuntimeError("worker died\nwith details")))
    record = read_record(planned.path)
    assert record.status == "failed"
    assert record.error.message == "worker died\nwith details"
    assert label == planned.trial.spec.label
    assert reason == "RuntimeError: worker died"


def test_a_failed_rerun_leaves_the_good_record_and_does_not_count_as_finished(tmp_path):
    (planned,) = small_plan(tmp_path).planned
    good = ray_work.record_of(planned.trial, make_ranks(2.0))
    write_record(good, planned.path)
    (forced,) = small_plan(tmp_path, force=True).planned
    assert forced.state == "to run" and _recorded_since(forced.trial, forced.before) is None
    _account(forced, ErrorPart.of(RuntimeError("no such luck")))
    assert read_record(planned.path).status == "ok"
    write_record(good, planned.path)
    assert _recorded_since(forced.trial, forced.before).status == "ok"


def test_a_corrupt_record_that_was_to_be_replaced_does_not_hide_the_error(tmp_path):
    (planned,) = small_plan(tmp_path).planned
    planned.path.parent.mkdir(parents=True)
    planned.path.write_text("{")
    (forced,) = small_plan(tmp_path, force=True).planned
    assert _account(forced, ErrorPart.of(RuntimeError("no such luck")))[1] == "RuntimeError: no such luck"
    assert read_record(planned.path).error.message == "no such luck"
