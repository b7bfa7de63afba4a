"""Small plans, their refusals, plugins and records for tests."""

import pytest
from factories import make_payload

from petlbench.errors import PetlbenchError
from petlbench.harness.experiment import load_experiment
from petlbench.harness.plan import make_plan
from petlbench.harness.record import Record
from petlbench.harness.record_files import write_record

SCENES = {"scenes": {"train": 30, "val": 30, "test": 30}}

PLUGIN = """
from petlbench.methods.base import Method, Preset

class {name}(Method):
    title = "{name}"
    presets = {presets}

    def build(self, backbone):
        return backbone

    def trainable(self, model):
        return ()
"""


def plan(tmp_path, *sets, force=False, **options):
    options = {"methods": ["lora"], "dataset": SCENES, "results": str(tmp_path / "results"), **options}
    return make_plan(load_experiment(None, sets, **options), force=force)


def ids(made):
    return [p.trial.spec.spec_id for p in made.planned]


def refused(match, tmp_path, *sets, **options):
    with pytest.raises(PetlbenchError, match=match):
        plan(tmp_path, *sets, **options)


def plugin(folder, presets, name="Mine"):
    path = folder / f"{name.lower()}.py"
    path.write_text(PLUGIN.format(name=name, presets=presets), encoding="utf-8")
    return str(path)


def put(planned, status="ok", change=None):
    """Write the record that a trial of the plan would leave."""
    payload = make_payload()
    payload |= {"spec": planned.trial.spec.model_dump(mode="json"), "spec_id": planned.trial.spec.spec_id}
    payload["method"]["name"] = planned.trial.spec.method.name
    if status == "failed":
        payload |= {"status": status, "metrics": {}, "cost": None}
        payload["error"] = {"type": "RuntimeError", "message": "out of memory", "traceback": ""}
    if change:
        change(payload)
    return write_record(Record.model_validate(payload), planned.path)
