"""Scores of all pairs: equal to one forward per pair, in any block size, from kept states, with an honest estimate."""

import json
import re
import runpy
from dataclasses import replace

import pytest
import torch
from pair_fakes import KeptInMemory, bare_backbone, captions_of, fusion_bench, one_by_one, pair_data, scored
from support import ROOT
from torch import nn

from petlbench.harness import kernels, pair_progress, pair_scores
from petlbench.harness.pair_progress import PairCost, PairProgress, ProgressMeter, clock
from petlbench.harness.pair_scores import ScoreError, length_groups, score_some, take
from petlbench.harness.pair_store import ScoreStore
from petlbench.methods.backbones.random_models import random_vilt
from petlbench.methods.registry import discover, load

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def vilt():
    return random_vilt()


@pytest.fixture
def fusion():
    return fusion_bench()


def built(name, backbone, captions):
    cls = load(discover()[name])
    method = cls(cls.Config())
    return method, method.build(backbone).eval(), backbone, pair_data(backbone, captions)


@pytest.mark.parametrize("scalars", [1, 2**11, 2**20])
def test_vilt_scores_equal_one_forward_per_pair(vilt, monkeypatch, scalars):
    monkeypatch.setitem(pair_scores.BLOCK_SCALARS, "cpu", scalars)
    bench = built("vilt_full", vilt, captions_of(4))
    expected = one_by_one(*bench)
    assert expected.std(0).min() > 1e-3 and expected.std(1).min() > 1e-3, "every picture and caption matters"
    torch.testing.assert_close(scored(bench), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scalars", [1, 300, 2**20])
def test_states_with_trained_preparation_score_alike(fusion, monkeypatch, scalars):
    monkeypatch.setitem(pair_scores.BLOCK_SCALARS, "cpu", scalars)
    torch.testing.assert_close(scored(fusion), one_by_one(*fusion), atol=1e-5, rtol=1e-5)


def test_pictures_come_in_chunks_and_captions_are_prepared_once(fusion, monkeypatch):
    monkeypatch.setattr(pair_scores, "EVAL_BATCH", 2)
    method, _, _, data = fusion
    cost = PairCost()
    found = scored(fusion, cost=cost)
    texts = len(data.tokens)
    assert method.calls["image"] == 5 and method.calls["text"] == texts and method.calls["scored"] == 5 * texts
    assert (cost.images, cost.texts, cost.pairs) == (5, texts, 5 * texts)
    assert min(cost.image_s, cost.text_s, cost.pair_s) > 0
    torch.testing.assert_close(found, one_by_one(*fusion), atol=1e-5, rtol=1e-5)


def test_captions_beyond_the_memory_budget_are_prepared_for_every_chunk(fusion, monkeypatch):
    monkeypatch.setattr(pair_scores, "EVAL_BATCH", 2)
    monkeypatch.setattr(pair_scores, "TEXT_BYTES", 0)
    expected = one_by_one(*fusion)
    fusion[0].calls["text"] = 0
    torch.testing.assert_close(scored(fusion), expected, atol=1e-5, rtol=1e-5)
    assert fusion[0].calls["text"] == 3 * len(fusion[3].tokens), "once for each chunk of pictures"


def test_kept_states_stand_in_for_pixels_and_words(fusion):
    expected = scored(fusion)
    kept = KeptInMemory(*fusion)
    method, _, _, data = fusion
    method.calls.update(image=0, text=0)
    data.images.asked.clear()
    torch.testing.assert_close(scored(fusion, kept=kept), expected)
    assert method.calls["image"] == method.calls["text"] == 0 and not data.images.asked


def test_padding_stays_where_it_is_part_of_the_input(fusion):
    fusion[2].trims_text = False
    seen = []
    fusion[0].hook = lambda pairs: seen.append(pairs)
    torch.testing.assert_close(scored(fusion), one_by_one(*fusion), atol=1e-5, rtol=1e-5)
    assert seen[0] == 5 * len(fusion[3].tokens), "all captions in one group"


def test_groups_hold_every_caption_once_at_its_own_length():
    tokens = pair_data(bare_backbone(), captions_of(30)).tokens
    groups = length_groups(tokens, True)
    assert torch.equal(torch.cat(groups).sort().values, torch.arange(len(tokens)))
    lengths = [tokens.mask[ids].sum(1).unique().tolist() for ids in groups]
    assert all(len(length) == 1 for length in lengths) and lengths == sorted(lengths, reverse=True)
    assert len(length_groups(tokens, False)) == 1


def test_rows_are_taken_as_views_where_they_can_be():
    states = {"x": torch.arange(12.0).view(6, 2)}
    views, copies = ([3, 3, 3], [1, 2, 3], [4]), ([1, 3, 4], [0, 0, 1], [0, 1, 2, 0], [0, 2, 2, 3], [2, 1, 0])
    for index in (*views, *copies):
        taken = take(states, torch.tensor(index))["x"]
        assert torch.equal(taken, states["x"][index])
        shared = taken.untyped_storage().data_ptr() == states["x"].untyped_storage().data_ptr()
        assert shared == (index in views), index


def test_only_wanted_pairs_are_scored(fusion):
    method, _, _, data = fusion
    everything = scored(fusion)
    wanted = torch.rand(everything.shape, generator=torch.Generator().manual_seed(1)) < 0.3
    wanted[2] = False
    method.calls.update(scored=0)
    data.images.asked.clear()
    found = score_some(*fusion, "fp32", CPU, wanted)
    assert torch.equal(found.isnan(), ~wanted) and method.calls["scored"] == int(wanted.sum())
    assert 2 not in data.images.asked, "a picture without pairs is not looked at"
    torch.testing.assert_close(found[wanted], everything[wanted])


def test_bf16_is_close_and_the_former_mode_comes_back(vilt):
    bench = built("vilt_full", vilt, captions_of(4))
    bench[1].train()
    plain, half = scored(bench), scored(bench, precision="bf16")
    assert half.dtype == torch.float32 and bench[1].training
    assert 0 < float((plain - half).abs().max()) < 0.1 * float(plain.std())


def test_scores_that_are_no_numbers_are_refused_by_name(fusion):
    nn.init.constant_(fusion[1].head.bias, torch.nan)
    with pytest.raises(
        ScoreError, match=r"split test: method tiny_fusion scores picture 0 with caption \d+ as nan.*diverged"
    ):
        scored(fusion)


def test_shapes_are_checked(fusion, tmp_path):
    with pytest.raises(ScoreError, match=r"wanted pairs of shape \(5, 1\), expected one row for each of 5 pictures"):
        score_some(*fusion, "fp32", CPU, torch.ones(5, 1, dtype=torch.bool))
    with pytest.raises(ScoreError, match=r"score store of shape \(2, 3\)"):
        scored(fusion, store=ScoreStore(tmp_path / "s", "key", (2, 3)))


# --- packed kernels ---


def test_packed_layers_multiply_alike_and_leave_no_trace():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 512), nn.Linear(512, 256, bias=False), nn.Linear(256, 1)).eval()
    x = torch.randn(3, 7, 256)
    if not kernels.usable(CPU):
        pytest.skip("this processor or torch has no packed products")
    with torch.inference_mode():
        expected = model(x)
        with kernels.packed_linears(model, "fp32", CPU) as changed:
            assert changed == 2, "the narrow layer gains nothing"
            torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            half = model(x)
            with kernels.packed_linears(model, "bf16", CPU):
                assert model[0](x).dtype == torch.bfloat16
                torch.testing.assert_close(model(x), half, atol=2e-2, rtol=2e-2)
                with torch.autocast("cpu", enabled=False):  # as a head that wants full precision asks for
                    torch.testing.assert_close(model(x), expected)
    assert not any("forward" in vars(module) for module in model.modules())
    assert torch.equal(model(x), expected)


def test_layers_come_back_after_an_error():
    model = nn.Linear(256, 256)
    with pytest.raises(RuntimeError, match="stop"), kernels.evaluation_kernels(model, "fp32", CPU):
        raise RuntimeError("stop")
    assert "forward" not in vars(model)


@pytest.mark.parametrize("before", [True, False])
def test_fused_attention_is_switched_back(before):
    usual = torch.backends.cuda.flash_sdp_enabled()
    try:
        torch.backends.cuda.enable_flash_sdp(before)
        with kernels.fused_attention(CPU):
            assert torch.backends.cuda.flash_sdp_enabled()
        assert torch.backends.cuda.flash_sdp_enabled() is before
    finally:
        torch.backends.cuda.enable_flash_sdp(usual)


# --- estimates ---


def test_a_short_run_tells_its_end_only(fusion):
    told = []
    scored(fusion, say=told.append)
    assert len(told) == 1 and told[0].done == told[0].pairs == 5 * len(fusion[3].tokens)
    assert str(told[0]).startswith(f"test: {told[0].pairs:,} pairs scored in 0:0")


def test_the_estimate_comes_before_the_work(fusion, monkeypatch):
    monkeypatch.setattr(pair_progress, "FIRST_S", 0.0)
    monkeypatch.setitem(pair_scores.BLOCK_SCALARS, "cpu", 1)
    told = []
    scored(fusion, say=told.append)
    texts = len(fusion[3].tokens)
    first, last = told[0], told[-1]
    assert len(told) == 2 and first.first and first.done == 2, "later messages wait their turn"
    assert str(first).startswith(f"test: 5 pictures x {texts} captions = {5 * texts} pairs, ")
    assert re.search(r"pairs/s, about \d+:\d\d", str(first)) and last.left_s == 0


def test_messages_are_rate_limited(fusion, monkeypatch):
    monkeypatch.setattr(pair_progress, "FIRST_S", 0.0)
    monkeypatch.setattr(pair_progress, "EVERY_S", 0.0)
    monkeypatch.setitem(pair_scores.BLOCK_SCALARS, "cpu", 1)
    told = []
    scored(fusion, say=told.append)
    total = told[0].pairs
    assert [line.done for line in told] == list(range(2, total + 1)), "with no pause between them, one a block"
    assert str(told[1]).startswith(f"test: 3 of {total} pairs, ") and str(told[1]).endswith(" left")


def test_lines_read_as_promised():
    line = PairProgress("test", 210, 377, 79_170, 0, 64, 1234.4, 64.2, 1.0, first=True)
    assert str(line) == "test: 210 pictures x 377 captions = 79,170 pairs, 1,234 pairs/s, about 1:04"
    resumed = replace(line, found=12_000)
    assert "= 79,170 pairs, 12,000 of them kept from an earlier run, 1,234" in str(resumed)
    assert "captions -> 500 pairs" in str(replace(line, pairs=500)), "a shortlist is not all pairs"
    assert str(replace(line, first=False)) == "test: 64 of 79,170 pairs, 1,234 pairs/s, about 1:04 left"
    assert str(replace(line, done=79_170, pairs_per_s=3.456)) == "test: 79,170 pairs scored in 0:01, 3.46 pairs/s"
    assert [clock(s) for s in (0.4, 59.6, 754, 3723)] == ["0:00", "1:00", "12:34", "1:02:03"]


def test_estimates_weigh_pairs_by_their_length(monkeypatch):
    """20 captions of 30 words took 1 s; 20 of 10 words on top of 10 patches take half of that each."""
    monkeypatch.setattr(pair_progress, "FIRST_S", 0.0)
    told = []
    groups = [torch.arange(0, 40), torch.arange(40, 60)]
    meter = ProgressMeter(
        "test", (1, 60), 60, torch.ones(1, 60, dtype=torch.bool), groups, [30, 10], told.append, PairCost()
    )
    meter.weigh(10, 30, 0)
    meter.add(0, 20, 99.0)  # sets kernels up; left out of the rate
    meter.add(0, 19, 0.95)
    assert told[0].left_s == pytest.approx(0.05 + 20 * 0.05 * 20 / 40)
    assert told[0].pairs_per_s == pytest.approx(21 / told[0].left_s)


def test_the_benchmark_finds_equal_scores(tmp_path, capsys):
    script = runpy.run_path(str(ROOT / "benchmarks" / "pair_scoring.py"))
    flash = torch.backends.cuda.flash_sdp_enabled()
    try:
        code = script["main"](["--tiny", "--rounds", "1", "--pictures", "3", "--json", str(tmp_path / "out.json")])
    finally:
        torch.backends.cuda.enable_flash_sdp(flash)
    assert code == 0
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["largest_difference"] < 1e-5
    rows = report["rows"]
    assert rows["one forward per pair and slot"]["in_all"] == 1.0
    assert rows["+ distinct strings only"]["in_all"] == pytest.approx(23 / 14)
    assert "+ fast kernels = score_all" in capsys.readouterr().out
    assert {"random weights"} == set(report["bf16"])
