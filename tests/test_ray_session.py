"""Starting Ray on a machine that is busy with other things."""

from types import SimpleNamespace

import pytest
import ray

from petlbench.harness import ray_session as session_module
from petlbench.harness.ray_session import ray_session
from petlbench.harness.resources import ResourceError, Resources


@pytest.fixture
def listed(monkeypatch):
    """A Ray that is never started and whose list of nodes is this list, from which all but the last are taken one by one."""
    calls = []
    nodes: list[list[dict]] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: calls.append(options.get("address")))
    monkeypatch.setattr(ray, "shutdown", lambda: calls.append("shutdown"))
    monkeypatch.setattr(ray, "nodes", lambda: nodes.pop(0) if len(nodes) > 1 else nodes[0])
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "own"))
    monkeypatch.setattr(session_module.time, "sleep", lambda seconds: calls.append("waited"))
    return calls, nodes


def node(name="own", alive=True, **resources):
    return {"NodeID": name, "Alive": alive, "Resources": resources}


def test_a_node_that_does_not_show_its_cores_yet_is_waited_for(listed):
    calls, nodes = listed
    nodes += [[], [node()], [node(alive=False, CPU=2.0)], [node("other", CPU=9.0), node(memory=1.0)], [node(CPU=2.0)]]
    with ray_session(Resources()):
        assert calls == ["local", *["waited"] * 4]
    assert calls[-1] == "shutdown"


def test_a_head_without_cores_only_has_to_be_listed_with_something(listed):
    calls, nodes = listed
    nodes += [[node()], [node(memory=1.0)]]
    with ray_session(Resources(address="host:6379")):
        assert calls == ["host:6379", "waited"]


def test_a_node_that_never_shows_its_cores_is_an_error_with_a_way_out(listed, monkeypatch):
    calls, nodes = listed
    nodes += [[node()]]
    monkeypatch.setattr(session_module, "_PATIENCE_S", 0.0)
    with (
        pytest.raises(ResourceError, match=r"shows no resources, expected cores\. .*overloaded"),
        ray_session(Resources()),
    ):
        raise AssertionError("nothing may run on it")
    assert calls[-1] == "shutdown"


def test_a_start_that_times_out_is_tried_again_and_then_told(listed, monkeypatch):
    calls, _ = listed

    def late(**options):
        calls.append("tried")
        raise RuntimeError("The node timed out during startup. ...")

    monkeypatch.setattr(ray, "init", late)
    with (
        pytest.raises(ResourceError, match="Ray did not start in 3 attempts: The node timed out"),
        ray_session(Resources()),
    ):
        raise AssertionError("nothing may run on it")
    assert calls.count("tried") == 3
