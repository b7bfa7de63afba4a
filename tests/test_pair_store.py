"""Kept scores of pairs: a stopped run goes on, a damaged or foreign file is started anew."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from pair_fakes import TinyFusion, bare_backbone, captions_of, fusion_bench, pair_data, scored
from support import ROOT

from petlbench.harness import pair_scores
from petlbench.harness.pair_store import HEADER, ScoreStore, score_key

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def fusion():
    return fusion_bench()


def test_a_stored_run_goes_on_where_it_was(fusion, tmp_path, monkeypatch):
    monkeypatch.setitem(pair_scores.BLOCK_SCALARS, "cpu", 1)
    expected, shape = scored(fusion), (5, len(fusion[3].tokens))
    method, scores = fusion[0], 17

    def stop(pairs):
        if method.calls["scored"] > scores:
            raise KeyboardInterrupt

    method.calls["scored"], method.hook = 0, stop
    with pytest.raises(KeyboardInterrupt):
        scored(fusion, store=ScoreStore(tmp_path / "deep" / "s", "key", shape))
    method.calls["scored"], method.hook = 0, lambda pairs: None
    store, told = ScoreStore(tmp_path / "deep" / "s", "key", shape), []
    assert store.found == scores
    assert torch.equal(scored(fusion, store=store, say=told.append), expected)
    assert method.calls["scored"] == expected.numel() - scores and told[-1].found == scores
    assert ScoreStore(store.path, "key", shape).found == expected.numel()
    store.clear()
    assert not store.path.exists() and torch.equal(store.scores, expected), "the scores outlive their file"
    store.clear()


KILLED = """
    import os, signal, sys
    from pathlib import Path

    import torch
    from pair_fakes import TinyFusion, bare_backbone, captions_of, pair_data
    from petlbench.harness import pair_scores
    from petlbench.harness.pair_store import ScoreStore

    torch.set_num_threads(1)
    pair_scores.BLOCK_SCALARS["cpu"] = int(sys.argv[2])
    backbone, method = bare_backbone(), TinyFusion()
    data = pair_data(backbone, captions_of(5))

    def die(pairs):
        if method.calls["pairs"] == 9:
            os.kill(os.getpid(), signal.SIGKILL)

    method.hook = die
    store = ScoreStore(Path(sys.argv[1]), "key", (5, len(data.tokens)))
    pair_scores.score_all(method, method.build(None), backbone, data, "fp32", torch.device("cpu"), store=store)
"""


def test_a_killed_process_repeats_one_block(fusion, tmp_path, monkeypatch):
    scalars, path = 200, tmp_path / "scores"
    monkeypatch.setitem(pair_scores.BLOCK_SCALARS, "cpu", scalars)
    method, sizes = fusion[0], []
    method.hook = sizes.append
    expected = scored(fusion)
    died = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(path), str(scalars)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
        capture_output=True,
        text=True,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    done, left = sum(sizes[:8]), sum(sizes[8:])
    store = ScoreStore(path, "key", tuple(expected.shape))
    assert store.found == done, "the ninth block was under way"
    method.calls["scored"] = 0
    torch.testing.assert_close(scored(fusion, store=store), expected)
    assert method.calls["scored"] == left


@pytest.mark.parametrize(
    ("damage", "warning"),
    [
        (lambda path: path.write_bytes(b"nonsense" * 2000), "has no readable header"),
        (lambda path: path.write_bytes(b""), "has no readable header"),
        (lambda path: os.truncate(path, HEADER + 10), "has 4,106 bytes, expected 4,144"),
        (lambda path: path.write_bytes(path.read_bytes()[:HEADER] + b"\x00\x00\x80\x7f" * 12), "holds infinite scores"),
        (
            lambda path: path.write_bytes(path.read_bytes().replace(b'"key": "a"', b'"key": "b"')),
            "has no readable header",
        ),
    ],
)
def test_a_damaged_file_is_started_anew_with_a_warning(tmp_path, damage, warning):
    path, warned = tmp_path / "scores", []
    ScoreStore(path, "a", (3, 4), warned.append).scores.fill_(1.0)
    assert ScoreStore(path, "a", (3, 4), warned.append).found == 12 and not warned
    damage(path)
    store = ScoreStore(path, "a", (3, 4), warned.append)
    assert store.found == 0 and bool(store.scores.isnan().all())
    (line,) = warned
    assert line.startswith(f"{path}: ") and line.endswith("its scores are computed anew")
    assert warning in line


def test_other_scores_start_anew_in_silence(tmp_path):
    path, warned = tmp_path / "scores", []
    for key, shape in (("a", (3, 4)), ("b", (3, 4)), ("b", (4, 3))):
        store = ScoreStore(path, key, shape, warned.append)
        assert store.found == 0 and tuple(store.scores.shape) == shape and not warned
        store.scores.fill_(2.0)
    assert ScoreStore(path, "b", (4, 3)).found == 12


def test_a_key_depends_on_everything_that_scores_depend_on(fusion):
    method, model, backbone, data = fusion
    trained = dict(model.named_parameters())
    other = {**trained, "head.bias": trained["head.bias"] + 1}
    plain = method, backbone, trained, data, "fp32", "cpu"
    captions = pair_data(backbone, [*captions_of(5)[:-1], ["something else"]])
    method_b = TinyFusion(TinyFusion.Config(false_captions=3))
    method_b.name = method.name
    keys = [
        score_key(*plain),
        score_key(method, backbone, other, data, "fp32", "cpu"),
        score_key(method, backbone, trained, data, "bf16", "cpu"),
        score_key(method, backbone, trained, data, "fp32", "cuda"),
        score_key(method, backbone, trained, captions, "fp32", "cpu"),
        score_key(method, bare_backbone(seed=1), trained, data, "fp32", "cpu"),
        score_key(method_b, backbone, trained, data, "fp32", "cpu"),
    ]
    assert len(set(keys)) == len(keys) and score_key(*plain) == keys[0]
    assert {len(key) for key in keys} == {64}
