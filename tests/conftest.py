"""Fixtures and settings for every test."""

import gc
import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_DEDUP_LOGS", "0")
# Tests run side by side: threads must not spin on each other's cores, and Ray's workers not wait behind other tests.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("RAY_worker_niceness", "0")
sys.path.insert(0, str(Path(__file__).resolve().parent))


# The same examples in every run, so that a push fails for what it changed; HYPOTHESIS_PROFILE=explore draws new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("explore", max_examples=2000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


def pytest_collection_finish():
    """What was imported by now stays: every trial collects garbage, and need not look through torch again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory):
    """No test reads what an earlier run has left in the user's cache, nor leaves anything there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PETLBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def one_thread():
    """One torch thread: small operations only wait for each other on several, and sums keep their order."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def small_world(tmp_path_factory):
    """A random CLIP of two narrow blocks wherever a backbone is loaded, and a cache of the module's own."""
    import torch

    from petlbench.methods.backbones.random_models import random_clip

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("petlbench.harness.parts.load_backbone", lambda name, *, seed=0, **options: random_clip(seed=7))
        patch.setenv("PETLBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        threads = torch.get_num_threads()
        yield
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def one_cache(tmp_path_factory):
    """A cache folder for a module whose trials all have the same pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PETLBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def told(tmp_path_factory, cache_of_the_tests):
    """The record of a short trial when nothing happens, and its checkpoints as they were after the second epoch."""
    import shutil

    from small_trials import a_trial

    from petlbench.harness.leftovers import work_folder
    from petlbench.harness.trial import run_trial
    from petlbench.methods.backbones.random_models import random_clip

    folder = tmp_path_factory.mktemp("undisturbed")
    trial = a_trial(folder)

    def keep(line):
        if line["epoch"] == 2:
            shutil.copytree(work_folder(trial), folder / "kept")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("petlbench.harness.parts.load_backbone", lambda name, **options: random_clip(seed=7))
        return run_trial(trial, keep), folder / "kept"


@pytest.fixture
def undisturbed(told):
    return told[0]


@pytest.fixture
def after_two_epochs(told):
    return told[1]
