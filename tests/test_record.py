"""The record: round trip, refusal of what JSON cannot hold, versions, atomic writes, exported schema."""

import json
import os
from pathlib import Path

import jsonschema
import pytest
from factories import edit, make_payload, put_record, reranks
from support import ROOT

from petlbench.harness import record as module
from petlbench.harness.json_files import RecordError, write_atomically
from petlbench.harness.record import Record
from petlbench.harness.record_files import find_records, read_record, record_path, write_record
from petlbench.harness.schemas import SHARED, schema_text

SCHEMA_FILE = ROOT / "results" / "schema" / "record.v1.json"


def test_a_record_comes_back_equal(tmp_path):
    record = Record.model_validate(make_payload())
    path = write_record(record, tmp_path / "deep" / "er" / "r.json")
    assert read_record(path) == record
    assert path.read_bytes().endswith(b"}\n")
    first = path.read_bytes()
    write_record(read_record(path), path)
    assert path.read_bytes() == first


def test_its_path_names_data_method_backbone_seed_and_hash():
    payload = make_payload(backbone="open_clip:ViT-B-32/openai", seed=4)
    path = record_path(Path("results"), payload["spec"], payload["spec_id"])
    assert path.as_posix() == f"results/toyset/lora/open_clip_ViT-B-32_openai-s4-{payload['spec_id'][:8]}.json"


@pytest.mark.parametrize(
    ("place", "key"),
    [
        (("metrics", "test", "recalls", "mR"), "metrics.test.recalls.mR"),
        (("cost", "train_s"), "cost.train_s"),
        (("spec", "train", "lr"), "spec.train.lr"),
        (("provenance", "git"), "provenance.git"),
        (("curve", 0, "loss"), "curve.0.loss"),
    ],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_refused_with_the_key_named(tmp_path, place, key, value):
    payload = make_payload()
    target = payload
    for step in place[:-1]:
        target = target[step]
    target[place[-1]] = value
    record = Record.model_validate(payload)
    with pytest.raises(RecordError, match=rf"r\.json.*`{key}`.*NaN or infinite"):
        write_record(record, tmp_path / "r.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "1e999"])
def test_nan_in_a_file_is_refused_with_the_key_named(tmp_path, literal):
    path = put_record(tmp_path)
    path.write_text(path.read_text().replace('"eval_s": 1.5', f'"eval_s": {literal}'))
    with pytest.raises(RecordError, match=r"`cost\.eval_s` is NaN or infinite"):
        read_record(path)


def test_an_atomic_write_that_fails_keeps_the_old_file_and_leaves_nothing_behind(tmp_path, monkeypatch):
    path = tmp_path / "r.json"
    write_atomically(path, b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_a_written_file_is_readable_by_others(tmp_path):
    path = tmp_path / "r.json"
    write_atomically(path, b"x")
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("version", [0, 2, "1", None, [1], {"a": 1}])
def test_an_unknown_schema_version_names_file_found_and_readable(tmp_path, version):
    path = put_record(tmp_path)
    edit(path, lambda p: p.update(schema_version=version))
    with pytest.raises(RecordError, match=r"schema_version.*this petlbench reads 1; upgrade petlbench") as caught:
        read_record(path)
    assert str(path) in str(caught.value) and repr(version) in str(caught.value)


def test_a_missing_key_is_named_with_a_way_out(tmp_path):
    path = put_record(tmp_path)
    edit(path, lambda p: p["cost"].pop("train_s"))
    with pytest.raises(RecordError, match=r"key `cost\.train_s`: Field required; move it away") as caught:
        read_record(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 400  # the message does not repeat the record


def test_an_unknown_key_and_a_wrong_type_are_named_with_what_was_found(tmp_path):
    path = put_record(tmp_path)
    edit(path, lambda p: p["params"].update(traned=1))
    with pytest.raises(RecordError, match=r"`params\.traned`.*found 1"):
        read_record(path)
    edit(path, lambda p: (p["params"].pop("traned"), p["params"].update(trained="many")))
    with pytest.raises(RecordError, match=r"`params\.trained`.*found 'many'"):
        read_record(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b'{"a": 1}'])
def test_what_is_not_a_record_is_said_to_be_none(tmp_path, content):
    path = tmp_path / "r.json"
    path.write_bytes(content)
    with pytest.raises(RecordError, match=r"r\.json: (not a JSON record|no key `schema_version`)"):
        read_record(path)


@pytest.mark.parametrize("spec_id", ["", "abc", "A" * 64, "g" * 64])
def test_a_spec_id_is_64_lower_case_hexadecimal_digits(tmp_path, spec_id):
    path = put_record(tmp_path)
    edit(path, lambda p: p.update(spec_id=spec_id))
    with pytest.raises(RecordError, match=r"`spec_id`.*64 lower-case hexadecimal"):
        read_record(path)


def test_a_migration_brings_an_old_record_up(tmp_path, monkeypatch):
    path = put_record(tmp_path)
    edit(path, lambda p: p.update(schema_version=0, seconds=p["cost"].pop("train_s")))

    def from_zero(payload):
        payload["cost"]["train_s"] = payload.pop("seconds")
        return {**payload, "schema_version": 1}

    with pytest.raises(RecordError, match="reads 1"):
        read_record(path)
    monkeypatch.setitem(module.MIGRATIONS, 0, from_zero)
    assert read_record(path).cost.train_s == 12.0
    edit(path, lambda p: p.update(schema_version=7))
    with pytest.raises(RecordError, match="reads 0, 1; upgrade"):
        read_record(path)


@pytest.mark.parametrize("name", SHARED)
def test_the_exported_schema_is_that_of_the_model(name):
    assert (SCHEMA_FILE.parent / name).read_text() == schema_text(SHARED[name]), (
        f"results/schema/{name} is stale: python -m petlbench.harness.schemas results/schema"
    )


def test_the_schema_accepts_a_written_record_and_refuses_a_broken_one(tmp_path):
    schema = json.loads(SCHEMA_FILE.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    payload = json.loads(put_record(tmp_path).read_text())
    jsonschema.validate(payload, schema)
    payload["status"] = "fine"
    with pytest.raises(jsonschema.ValidationError, match="fine"):
        jsonschema.validate(payload, schema)
    del payload["spec_id"], payload["status"]
    with pytest.raises(jsonschema.ValidationError, match="required"):
        jsonschema.validate(payload, schema)


def test_how_scores_came_about_and_what_a_query_costs_come_back(tmp_path):
    record = Record.model_validate(make_payload(change=reranks(first_stage_spec_id="c" * 64)))
    again = read_record(write_record(record, tmp_path / "r.json"))
    assert again == record
    assert again.metrics["test"].two_stage.bound.t2i_rk == 91.5
    assert again.cost.query.t2i_s == 0.0105
    jsonschema.validate(json.loads((tmp_path / "r.json").read_text()), json.loads(SCHEMA_FILE.read_text()))


def test_a_record_from_before_pair_scorers_reads_as_dot_products_of_unknown_query_cost(tmp_path):
    path = put_record(tmp_path)
    edit(path, lambda p: (p["cost"].pop("query"), p["metrics"]["test"].pop("two_stage")))
    record = read_record(path)
    assert record.metrics["test"].scoring == "embeddings"
    assert record.metrics["test"].two_stage is None and record.cost.query is None


def test_committed_records_read():
    paths = list(find_records(ROOT / "results"))
    assert paths
    assert {read_record(path).schema_version for path in paths} == {1}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda p: p["metrics"]["test"].update(two_stage=None),
            r"`metrics\.test`.*is two_stage, but `two_stage` is missing",
        ),
        (
            lambda p: p["metrics"]["test"].update(scoring="pairs"),
            r"`metrics\.test`.*is pairs, but `two_stage` is given",
        ),
        (lambda p: p["metrics"]["test"]["two_stage"].update(k=0), r"`metrics\.test\.two_stage\.k`.*found 0"),
        (lambda p: p["metrics"]["test"]["two_stage"].update(first_stage=""), r"two_stage\.first_stage`"),
        (lambda p: p["metrics"]["test"]["two_stage"].update(first_stage_spec_id="C" * 64), r"first_stage_spec_id`"),
        (lambda p: p["metrics"]["test"]["two_stage"]["bound"].update(i2t_rk=100.5), r"bound\.i2t_rk`.*found 100\.5"),
        (
            lambda p: p["metrics"]["test"]["two_stage"]["sample"]["exact"].pop("mR"),
            r"same recalls, but only one has mR",
        ),
        (lambda p: p["cost"]["query"].update(pair_s=-1e-9), r"`cost\.query\.pair_s`.*found -1e-09"),
        (lambda p: p["cost"]["query"].pop("t2i_s"), r"`cost\.query\.t2i_s`: Field required"),
    ],
)
def test_a_shortlist_or_query_cost_that_contradicts_itself_is_refused(tmp_path, change, said):
    path = put_record(tmp_path, change=reranks())
    read_record(path)
    edit(path, change)
    with pytest.raises(RecordError, match=said):
        read_record(path)


def test_find_records_skips_hidden_work_boards_schema_and_other_depths(tmp_path):
    wanted = put_record(tmp_path)
    for other in (".work/a/b.json", "toyset/.tmp/b.json", "toyset/lora/.b.json", "boards/x/b.json", "schema/x/b.json"):
        (tmp_path / other).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / other).write_text("{}")
    (tmp_path / "loose.json").write_text("{}")
    (tmp_path / "scratch" / "toyset" / "lora").mkdir(parents=True)
    (tmp_path / "scratch" / "toyset" / "lora" / "b.json").write_text("{}")
    assert list(find_records(tmp_path)) == [wanted]
    assert list(find_records(tmp_path / "absent")) == []
