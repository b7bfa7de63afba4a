"""Records of an invented schema version 0, in which training seconds lay at the top."""

import pytest
from factories import edit

from petlbench.harness import record as record_module


def older(path):
    """Turn a record into one of version 0."""
    edit(path, lambda p: p.update(schema_version=0, seconds=p["cost"].pop("train_s")))


def from_zero(payload):
    cost = {**payload["cost"], "train_s": payload["seconds"]}
    return {**{k: v for k, v in payload.items() if k != "seconds"}, "cost": cost, "schema_version": 1}


@pytest.fixture
def version_zero(monkeypatch):
    monkeypatch.setitem(record_module.MIGRATIONS, 0, from_zero)
