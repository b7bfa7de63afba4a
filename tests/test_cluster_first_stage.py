"""A shortlist's record on a cluster: what it reads is asked for and sent as well, and nodes must see the record itself."""

from types import SimpleNamespace

import pytest
from small_trials import trial_stub

from petlbench.harness import cluster as module
from petlbench.harness.cluster import Cluster, ClusterError, inputs
from petlbench.harness.resources import Resources
from petlbench.harness.shares import Node
from petlbench.harness.spec import FirstStage

RECORD = "/results/scenes/lora/x.json"


def reranked():
    """A trial whose shortlist comes from a record with weights of its own."""
    trial = trial_stub()
    first = trial.model_copy(update={"paths": trial.paths.model_copy(update={"weights": {"weights": "/w/first"}})})
    paths = {
        "dataset_root": "/data",
        "weights": {"weights": "/w/second"},
        "first_stage": FirstStage(record=RECORD, trial=first),
    }
    return trial.model_copy(update={"paths": trial.paths.model_copy(update=paths)})


def test_inputs_of_the_first_stage_are_inputs_and_move_with_the_others():
    paths = reranked().paths
    assert inputs(paths) == ["/data", "/w/second", "/w/first"]
    moved = module._replaced(paths, {"/w/first": "/there/first", "/data": "/there/data"})
    assert (moved.dataset_root, moved.weights) == ("/there/data", {"weights": "/w/second"})
    assert moved.first_stage.trial.paths.weights == {"weights": "/there/first"} and moved.first_stage.record == RECORD


def test_a_record_that_a_node_does_not_see_is_refused_before_anything_runs(tmp_path, monkeypatch):
    trial = reranked()
    away = Node("far (10.0.0.2)", 4, 0, 0, "id of far")
    context = SimpleNamespace(get_node_id=lambda: "id of home")
    monkeypatch.setattr("ray.get_runtime_context", lambda: context)
    monkeypatch.setattr("ray.kill", lambda actor: None)
    monkeypatch.setattr(module, "on_node", lambda *a, **o: SimpleNamespace(remote=lambda: None))
    monkeypatch.setattr(module, "nodes", lambda: [away])
    asked = []
    monkeypatch.setattr(Cluster, "_asked", lambda self, others, paths: asked.append(paths) or [(away, [RECORD])])
    work = trial.paths.model_copy(update={"work": str(tmp_path / ".work"), "results": str(tmp_path)})
    with pytest.raises(ClusterError, match=r"protocol\.rerank\.first.*not visible on node far") as caught:
        Cluster([trial.model_copy(update={"paths": work})], Resources(ship_data=True))
    assert str(caught.value).startswith(RECORD) and RECORD in asked[0] and "/w/first" in asked[0]
    assert not list((tmp_path / ".work").iterdir()), "no mark is left"
