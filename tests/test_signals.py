"""SIGINT and SIGTERM: the first lets trials end their epoch, the second ends the process."""

import os
import signal
import subprocess
import sys
import textwrap

from support import ROOT

from petlbench.harness.signals import Interruption, listening
from petlbench.harness.stopping import Running, stopper


def test_the_grace_period_runs_by_the_monotonic_clock():
    now = [100.0]
    asked = Interruption(grace_s=20, clock=lambda: now[0])
    assert (asked.asked, asked.overdue, asked.exit_code) == (False, False, 0)
    asked.ask(signal.SIGTERM)
    now[0] += 19
    assert (asked.asked, asked.overdue, asked.exit_code) == (True, False, 143)
    now[0] += 2
    assert asked.overdue


def test_trials_end_at_their_report_and_none_is_waited_for_that_began_later():
    asked, running, said = Interruption(), Running(), []
    stop = stopper(asked, running, said.append)
    running.began("a")
    running.began("b")
    assert not stop("a", {"epoch": 1}) and not stop.stop_all()
    asked.ask(signal.SIGINT)
    assert not stop.stop_all() and "SIGINT: 2 running trials may end the epoch" in said[0]
    assert stop("a", {"epoch": 2}) and not stop("b", {"finished": 1})
    running.ended("a")
    running.began("c")
    assert not stop.stop_all()
    running.ended("b")
    assert stop.stop_all() and len(said) == 1


def test_a_second_signal_ends_the_process_at_once():
    code = """
        import os, signal, time
        from petlbench.harness.signals import Interruption, listening
        asked = Interruption()
        with listening(asked, before_end=lambda: print("in order", flush=True)):
            os.kill(os.getpid(), signal.SIGTERM)
            print(asked.exit_code, flush=True)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
    """
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=env, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (130, "143\nin order\n")


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with listening(Interruption()):
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
