"""Progress displays: plain lines for logs, a live table for terminals."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from petlbench.harness import progress
from petlbench.harness.progress import LiveDisplay, PlainDisplay, make_display
from petlbench.harness.recorded import Planned
from petlbench.harness.spec import Named, Paths, Trial, TrialSpec


def planned(method="lora", seed=0, epochs=4, backbone="tiny-clip"):
    spec = TrialSpec(
        method=Named(name=method),
        dataset=Named(name="ucm"),
        backbone=Named(name=backbone),
        train={"epochs": epochs},
        seed=seed,
    )
    trial = Trial(spec=spec, paths=Paths(results="r", work="w", dataset_card="ucm"))
    return Planned(trial, Path("r.json"), "to run")


def line(epoch, epochs=4, **more):
    return {"epoch": epoch, "epochs": epochs, "loss": 1.25, "best_mR": 20.0, **more}


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when told to."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def plain(**console):
    out = io.StringIO()
    return PlainDisplay(Console(file=out, **console)), out


def live():
    console = Console(file=io.StringIO(), force_terminal=True, width=100, record=True, color_system=None)
    return LiveDisplay(console), console


def shown(display, console):
    with console.capture() as caught:
        console.print(display._draw())
    return caught.get()


def run_all(display, clock):
    """Two trials: one that finishes, one that fails in its second epoch."""
    good, bad = planned(), planned("full_finetune")
    display.start([good, bad], 2)
    display.started(good)
    display.started(bad)
    clock[0] += 10
    display.epoch(good, line(1, val_mR=19.5))
    display.epoch(bad, line(1, loss=None, val_mR=None, best_mR=None))
    display.failed(bad)
    display.finished(good)
    display.stop()


def test_plain_lines_are_one_per_event_and_free_of_control_characters(clock):
    # A colour terminal is feigned: a log file must stay plain even so.
    display, out = plain(width=20, force_terminal=False, color_system="truecolor")
    run_all(display, clock)
    text = out.getvalue()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)
    lines = text.splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d \S", each) for each in lines)
    said = [each[9:] for each in lines]
    assert said[:5] == [
        "2 trials, 2 at a time",
        "lora/ucm/tiny-clip/s0 started",
        "full_finetune/ucm/tiny-clip/s0 started",
        "lora/ucm/tiny-clip/s0 epoch 1/4 loss 1.2500 val mR 19.50 best 20.00",
        "full_finetune/ucm/tiny-clip/s0 epoch 1/4 loss -- val mR -- best --",
    ]
    assert said[5].startswith("full_finetune/ucm/tiny-clip/s0 FAILED; trials 0/2 done, 1 running, 1 failed")
    assert said[6].startswith("lora/ucm/tiny-clip/s0 done; trials 1/2 done, 0 running, 1 failed")
    assert said[7].startswith("trials 1/2 done") and len(said) == 8


def test_the_live_table_shows_counts_epoch_loss_validation_and_time_left(clock):
    display, console = live()
    first, second, third = planned(), planned("linear_probe", seed=2), planned("zero_shot", epochs=0)
    display.start([first, second, third], 2)
    try:
        display.started(third)
        display.finished(third)
        display.started(first)
        display.started(second)
        clock[0] += 60
        display.epoch(first, line(2, val_mR=18.75))
        text = shown(display, console)
        assert "trials 1/3 done, 2 running, 0 failed; elapsed 1:00" in text
        row = next(each for each in text.splitlines() if each.startswith("lora/"))
        assert row.split() == ["lora/ucm/tiny-clip/s0", "2/4", "1.250", "18.75", "20.00", "1:00"]
        row = next(each for each in text.splitlines() if each.startswith("linear_probe/"))
        assert row.split() == ["linear_probe/ucm/tiny-clip/s2", "0/4", "--", "--", "--", "1:00"]
        # 3 of 11 epochs (two trials of 4 + 1, one of 0 + 1) took 60 s.
        assert "left about 2:40" in text
        display.failed(second)
        assert "1/3 done, 1 running, 1 failed" in shown(display, console)
    finally:
        display.stop()
    assert "failed linear_probe/ucm/tiny-clip/s2" in console.export_text()


def test_names_in_brackets_are_not_taken_for_markup(clock):
    odd = planned(backbone="[red]x[/blue]")
    for display, console in (live(), (lambda d: (d[0], d[0].console))(plain())):
        display.start([odd], 1)
        display.started(odd)
        display.failed(odd)
        display.stop()
        text = console.export_text() if console.record else console.file.getvalue()
        assert "lora/ucm/[red]x[/blue]/s0" in text


def test_time_left_is_unknown_before_the_first_epoch_and_nothing_at_the_end(clock):
    display, _ = plain()
    only = planned()
    display.start([only], 1)
    display.started(only)
    assert display.eta() == "--"
    clock[0] += 7200
    display.epoch(only, line(1, val_mR=1.0))
    assert display.eta() == "8:00:00"
    display.finished(only)
    assert display.eta() == "0:00"


def test_a_resumed_trial_counts_the_epochs_it_brought_along(clock):
    display, _ = plain()
    resumed, other = planned(), planned(seed=1)
    display.start([resumed, other], 1)
    display.started(resumed)
    display.epoch(resumed, line(3))
    display.finished(resumed)
    assert (display.epochs_done, display.epochs_total) == (5, 10)


def test_the_last_validation_stays_when_an_epoch_is_not_validated(clock):
    display, out = plain()
    only = planned()
    display.start([only], 1)
    display.started(only)
    display.epoch(only, line(1, val_mR=12.0))
    display.epoch(only, line(2))
    assert "epoch 2/4 loss 1.2500 val mR 12.00" in out.getvalue()


def test_terminals_get_the_table_and_files_get_lines():
    assert isinstance(make_display(Console(file=io.StringIO())), PlainDisplay)
    assert isinstance(make_display(Console(file=io.StringIO(), force_terminal=True)), LiveDisplay)
