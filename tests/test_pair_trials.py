"""Whole trials of methods that score pairs: exact, by a shortlist, interrupted, and evaluated again from their record."""

import json
from pathlib import Path

import pytest
import torch
from factories import edit
from small_trials import small_plan, small_trial
from support import ROOT

from petlbench.harness import ranking as ranking_module
from petlbench.harness.evaluation import evaluate_record
from petlbench.harness.experiment import ExperimentError, load_experiment
from petlbench.harness.pair_scores import ScoreError
from petlbench.harness.plan import make_plan
from petlbench.harness.record_files import path_of, read_record
from petlbench.harness.retrial import Places, trial_of
from petlbench.harness.spec import ProtocolConfig, RerankConfig, TrialSpec
from petlbench.harness.trial import run_trial
from petlbench.methods.backbones.base import BackboneError
from petlbench.methods.backbones.random_models import random_clip, random_vilt

pytestmark = pytest.mark.usefixtures("one_thread", "tiny_models")

QUICK = ("train.epochs=1", "method.vilt_lora.false_captions=3", "method.clip_fusion.false_captions=3")
FUSION = ("method.clip_fusion.width=16", "method.clip_fusion.layers=1", "method.clip_fusion.heads=2")


@pytest.fixture
def tiny_models(monkeypatch):
    def load(name, *, seed=0, **options):
        return random_vilt(seed=7) if "vilt" in name else random_clip(seed=7)

    monkeypatch.setattr("petlbench.harness.parts.load_backbone", load)


def vilt_trial(results, *sets, **options):
    return small_trial(results, *QUICK, *sets, method="vilt_lora", backbones=["tiny-vilt"], **options)


def fusion_trial(results, *sets):
    return small_trial(results, *QUICK, *FUSION, *sets, method="clip_fusion")


def test_a_cross_encoder_is_trained_selected_and_recorded_with_its_query_cost(tmp_path):
    lines = []
    record = run_trial(vilt_trial(tmp_path), lines.append)
    test = record.metrics["test"]
    assert (record.status, test.scoring, test.two_stage) == ("ok", "pairs", None)
    assert record.audit["count"] == record.audit["gradients"] == record.audit["identity_start"] == "ok"
    query = record.cost.query
    assert query.pairs_per_query_t2i == record.data.splits["test"].images
    assert query.pairs_per_query_i2t == record.data.splits["test"].distinct_captions
    assert query.t2i_s == pytest.approx(query.text_encode_s + query.pairs_per_query_t2i * query.pair_s)
    assert query.pair_s > 0
    assert [line["scored"] == line["pairs"] for line in lines if "pairs_per_s" in line][-1]


def test_a_dual_encoder_states_what_a_query_costs_too(tmp_path):
    record = run_trial(small_trial(tmp_path, "train.epochs=1", method="linear_probe"))
    assert record.metrics["test"].scoring == "embeddings"
    assert record.cost.query.text_encode_s > 0 and record.cost.query.pair_s > 0


def test_the_same_seed_gives_the_same_scores_and_another_seed_others(tmp_path):
    first = run_trial(vilt_trial(tmp_path / "a"))
    again = run_trial(vilt_trial(tmp_path / "b"))
    assert first.metrics["test"].recalls == again.metrics["test"].recalls
    assert [e.loss for e in first.curve] == [e.loss for e in again.curve]
    (planned,) = small_plan(tmp_path, *QUICK, "seeds=[1]", methods=["vilt_lora"], backbones=["tiny-vilt"]).planned
    assert run_trial(planned.trial).curve[0].loss != first.curve[0].loss


def test_a_shortlist_is_recorded_as_such_and_the_whole_gallery_is_exact(tmp_path):
    exact = run_trial(fusion_trial(tmp_path))
    short = run_trial(fusion_trial(tmp_path, "protocol.rerank={k: 3, sample: 8}"))
    whole = run_trial(fusion_trial(tmp_path, "protocol.rerank={k: 100000, sample: 0}"))
    part = short.metrics["test"].two_stage
    assert short.metrics["test"].scoring == "two_stage"
    assert (part.k, part.first_stage, part.first_stage_spec_id) == (3, "own cosine", None)
    assert part.pairs < exact.data.splits["test"].images * exact.data.splits["test"].distinct_captions / 2
    assert short.metrics["test"].recalls["t2i_r1"] <= part.bound.t2i_rk
    assert (part.sample.images, part.sample.captions) == (8, 8)
    assert whole.metrics["test"].two_stage.bound.i2t_rk == 100
    assert whole.metrics["test"].recalls == exact.metrics["test"].recalls
    assert short.cost.query.pairs_per_query_t2i == 3
    assert len({r.spec_id for r in (exact, short, whole)}) == 3


def test_a_record_of_a_dual_encoder_ranks_before_a_cross_encoder(tmp_path):
    first = small_trial(tmp_path, "train.epochs=1", method="linear_probe")
    run_trial(first)
    trial = vilt_trial(tmp_path, f"protocol.rerank={{k: 3, sample: 0, first: {path_of(first)}}}")
    assert trial.spec.protocol.rerank.first == first.spec.spec_id
    assert str(tmp_path) not in trial.spec.model_dump_json()
    record = run_trial(trial)
    part = record.metrics["test"].two_stage
    assert part.first_stage == "linear_probe on tiny-clip, seed 0"
    assert part.first_stage_spec_id == first.spec.spec_id
    # and the record alone leads to the same numbers again, its first stage found beside it
    again = evaluate_record(path_of(trial), Places())
    assert again.same, again.differing


def test_a_stored_adapter_of_a_cross_encoder_gives_the_recorded_metrics_again(tmp_path):
    for trial in (vilt_trial(tmp_path), fusion_trial(tmp_path, "protocol.rerank={k: 3, sample: 4}")):
        run_trial(trial)
        assert evaluate_record(path_of(trial), Places()).same
        assert evaluate_record(path_of(trial), Places(), "val").same


def test_an_interrupted_evaluation_goes_on_from_its_scores(tmp_path, monkeypatch):
    whole = run_trial(vilt_trial(tmp_path / "whole"))
    trial = vilt_trial(tmp_path / "cut")
    real, seen = ranking_module.score_all, []

    def dies_half_way(method, model, backbone, data, *rest, **options):
        seen.append((data.split.name, int((~options["store"].scores.isnan()).sum()) if "store" in options else None))
        if data.split.name == "test" and len([s for s in seen if s[0] == "test"]) == 1:
            half = real(method, model, backbone, data, *rest)
            options["store"].scores[: len(half) // 2] = half[: len(half) // 2]
            options["store"].flush()
            raise KeyboardInterrupt
        return real(method, model, backbone, data, *rest, **options)

    monkeypatch.setattr(ranking_module, "score_all", dies_half_way)
    with pytest.raises(KeyboardInterrupt):
        run_trial(trial)
    record = run_trial(trial)
    assert seen[-1][0] == "test" and seen[-1][1] > 0, "the second run starts from the scores of the first"
    assert [name for name, _ in seen] == ["val", "test", "test"], "the finished epoch is not trained again"
    assert record.metrics["test"].recalls == whole.metrics["test"].recalls
    assert not list(Path(trial.paths.work).rglob("*.scores")), "a finished trial leaves no scores behind"


def test_scores_that_are_not_numbers_fail_the_trial(tmp_path, monkeypatch):
    from petlbench.methods.vilt_lora import ViltLora

    real = ranking_module.score_all

    def overflows(*given, **options):  # from the first evaluation on, so that the audits before training pass
        monkeypatch.setattr(
            ViltLora, "score", lambda self, model, image, text: torch.full((len(text["x"]),), torch.nan)
        )
        return real(*given, **options)

    monkeypatch.setattr(ranking_module, "score_all", overflows)
    trial = vilt_trial(tmp_path, "train.epochs=1")
    with pytest.raises(ScoreError, match="expected a finite number"):
        run_trial(trial)
    assert read_record(path_of(trial)).status == "failed"


# --- the plan ---


def test_a_spec_that_reranks_nothing_keeps_its_identity():
    assert "rerank" not in ProtocolConfig().model_dump()
    assert ProtocolConfig(rerank=RerankConfig()).model_dump()["rerank"] == {"k": 32, "first": "own", "sample": 32}
    stored = json.loads((next((ROOT / "results" / "scenes" / "lora").glob("*.json"))).read_text(encoding="utf-8"))
    assert TrialSpec.model_validate(stored["spec"]).spec_id == stored["spec_id"]


def test_reranking_leaves_dual_encoders_as_they_are(tmp_path):
    plain, asked = (
        small_plan(tmp_path, *sets, methods=["lora"]).planned[0].trial.spec.spec_id
        for sets in ((), ("protocol.rerank={k: 5}",))
    )
    assert plain == asked


def test_a_vilt_has_no_first_stage_of_its_own(tmp_path):
    made = small_plan(tmp_path, "protocol.rerank={k: 5}", methods=["vilt_lora"], backbones=["tiny-vilt"])
    ((label, reason),) = made.refused
    assert label == "vilt_lora/scenes/tiny-vilt"
    assert "protocol.rerank.first=RECORD.json" in reason


def test_a_first_stage_must_be_a_finished_dual_encoder_on_the_same_splits(tmp_path):
    def planned(path, *sets):
        rerank = f"protocol.rerank={{k: 3, first: {path}}}"
        return small_plan(tmp_path, *QUICK, rerank, *sets, methods=["vilt_lora"], backbones=["tiny-vilt"])

    with pytest.raises(ExperimentError, match=r"protocol\.rerank\.first.*nowhere\.json is no file"):
        planned(tmp_path / "nowhere.json")
    dual = small_trial(tmp_path, "train.epochs=0", method="linear_probe")
    run_trial(dual)
    with pytest.raises(ExperimentError, match="with other splits than scenes"):
        planned(path_of(dual), "dataset.scenes.test=20")
    adapter = next(path_of(dual).parent.glob("*.adapter*"))
    adapter.rename(adapter.with_name("moved"))
    with pytest.raises(ExperimentError, match=r"protocol\.rerank\.first`: .*are not there"):
        planned(path_of(dual))
    older = tmp_path / ".work" / "weights" / adapter.name  # where earlier versions kept them
    older.parent.mkdir(parents=True, exist_ok=True)
    adapter.with_name("moved").rename(older)
    edit(path_of(dual), lambda payload: payload["artifacts"].update(weights=f".work/weights/{adapter.name}"))
    assert planned(path_of(dual)).planned
    pair = fusion_trial(tmp_path, "train.epochs=0")
    run_trial(pair)
    with pytest.raises(ExperimentError, match="clip_fusion scores pairs itself"):
        planned(path_of(pair))


def test_files_of_the_first_stage_can_be_given_too(tmp_path):
    """A record knows weights by their content; where they lie is told for its first stage's backbone likewise."""
    file = tmp_path / "elsewhere" / "mine.safetensors"
    file.parent.mkdir()
    file.write_bytes(b"known by its hash; the models here are others")
    where = f"backbone.tiny-clip.weights={file}"
    dual = small_trial(tmp_path, "train.epochs=0", where, method="linear_probe", backbones=["tiny-clip"])
    run_trial(dual)
    rerank = f"protocol.rerank={{k: 3, sample: 0, first: {path_of(dual)}}}"
    trial = vilt_trial(tmp_path, where, rerank)
    run_trial(trial)
    with pytest.raises(BackboneError, match=r"give that file with --set backbone\.tiny-clip\.weights=FILE"):
        trial_of(read_record(path_of(trial)), path_of(trial), Places())
    places = Places(backbone={"tiny-clip": {"weights": str(file)}})
    again = trial_of(read_record(path_of(trial)), path_of(trial), places)
    assert again.paths.first_stage.trial.paths.weights == {"weights": str(file)}
    with pytest.raises(ExperimentError, match="the record's backbone is tiny-vilt or tiny-clip"):
        trial_of(read_record(path_of(trial)), path_of(trial), Places(backbone={"swin-bert": {"weights": str(file)}}))


def test_methods_meet_the_backbones_that_fit_without_a_word(tmp_path):
    made = make_plan(
        load_experiment(
            None,
            ["dataset.scenes.train=48"],
            methods=["lora", "vilt_lora", "clip_fusion"],
            backbones=["tiny-clip", "tiny-vilt"],
            seeds=[0],
            results=str(tmp_path),
        )
    )
    found = {(p.trial.spec.method.name, p.trial.spec.backbone.name) for p in made.planned}
    assert found == {("lora", "tiny-clip"), ("vilt_lora", "tiny-vilt"), ("clip_fusion", "tiny-clip")}
    assert not made.refused
    alone = small_plan(tmp_path, methods=["lora"], backbones=["tiny-vilt"])
    assert not alone.planned and "not vilt" in alone.refused[0][1]
