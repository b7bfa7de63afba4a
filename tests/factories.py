"""Synthetic records and ranks for the tests of the leaderboard and the record."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from petlbench.harness.metrics import METRIC_VERSION, RULES, Ranks, recalls
from petlbench.harness.record import Record
from petlbench.harness.record_files import record_path, write_record

IMAGES, PER_IMAGE = 40, 5
CEILING = {"t2i_r1": 99.5, "t2i_r5": 100.0, "t2i_r10": 100.0}


def spec_hash(spec: dict[str, Any]) -> str:
    text = json.dumps(spec, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def make_ranks(skill: float, seed: int = 0, images: int = IMAGES, per_image: int = PER_IMAGE) -> Ranks:
    """Ranks without ties of a noisy scorer: (i, c) scores ``skill`` more where image i owns caption c."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(images), per_image)
    scores = rng.normal(size=(images, len(owner))) + skill * (owner == np.arange(images)[:, None])
    best = np.where(owner == np.arange(images)[:, None], scores, -np.inf).max(1)
    i2t = (scores > best[:, None]).sum(1)
    t2i = (scores > scores[owner, np.arange(len(owner))]).sum(0)
    return ranks_from(owner, i2t, t2i)


def ranks_from(owner: Any, i2t: Any, t2i: Any) -> Ranks:
    """Ranks without ties."""
    owner, i2t, t2i = (np.asarray(a, dtype=np.int32) for a in (owner, i2t, t2i))
    n, m = np.zeros_like(i2t), np.zeros_like(t2i)
    return Ranks(owner, i2t, n, n + 1, i2t, i2t, t2i, m, t2i, t2i)


def make_payload(
    ranks: Ranks | None = None,
    *,
    method: str = "lora",
    title: str | None = None,
    options: dict[str, Any] | None = None,
    dataset: str = "toyset",
    backbone: str = "vit-x",
    seed: int = 0,
    rule: str = "best_val",
    change: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """A complete record of status ok as a dictionary; ``change`` edits it in place."""
    ranks = ranks or make_ranks(3.0, seed)
    spec = {
        "version": 1,
        "method": {"name": method, "options": {"rank": 8, **(options or {})}},
        "dataset": {"name": dataset, "options": {}},
        "backbone": {"name": backbone, "options": {}},
        "train": {"lr": 1e-3, "epochs": 2},
        "seed": seed,
    }
    split = {"captions": ranks.captions, "distinct_captions": ranks.captions - 1, "images": ranks.images}
    payload = {
        "schema_version": 1,
        "spec_id": "",
        "status": "ok",
        "spec": spec,
        "method": {
            "name": method,
            "title": title or method.title(),
            "origin": "petlbench",
            "sha256": hashlib.sha256(method.encode()).hexdigest(),
        },
        "backbone": {
            "kind": "open_clip",
            "architecture": "ViT-X",
            "source": "hub:example",
            "sha256": hashlib.sha256(backbone.encode()).hexdigest(),
            "activation": "quick_gelu",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.2, 0.2, 0.2],
            "resolution": 224,
            "aligned": True,
        },
        "data": {
            "name": dataset,
            "title": dataset.upper(),
            "card_version": "1",
            "splits": {
                "train": {**split, "sha256": "a" * 64},
                "test": {**split, "sha256": "b" * 64, "ceiling": CEILING},
            },
        },
        "selection": {"rule": rule, "epoch": 2, "val_mR": 50.0, "budget_trials": 1},
        "metrics": {
            "test": {
                "recalls": recalls(ranks),
                "other_rules": {name: recalls(ranks, name) for name in RULES if name != "index"},
                "tie_rule": "index",
                "metric_version": METRIC_VERSION,
            }
        },
        "params": {"trained": 163_840, "total": 10_000_000, "added_at_inference": 0, "stored_bytes": 655_360},
        "cost": {
            "train_s": 12.0 + seed,
            "eval_s": 1.5,
            "samples_per_s": 512.0,
            "steps": 20,
            "peak_memory": 3 * 2**30,
            "memory_kind": "process_resident",
            "device": "cpu",
            "threads": 1,
        },
        "curve": [{"epoch": 1, "loss": 1.5, "lr": 1e-3, "val_mR": 40.0, "seconds": 6.0}],
        "audit": {"frozen_unchanged": "ok"},
        "provenance": {"git": "0" * 40},
    }
    if change:
        change(payload)
    payload["spec_id"] = spec_hash(payload["spec"])
    return payload


def two_places(root: Path) -> tuple[Path, Path]:
    """Two folders of the same content: finished trials, a failed one, and a record that cannot be read."""
    places = root / "here", root / "there" / "deeper"
    for place in places:
        three(place, 2.0)
        three(place, 1.8, base=7, method="prompt")
        put_failed(place, method="harma")
        edit(put_record(place, dataset="bad"), lambda payload: payload.pop("spec"))
    return places


def put_record(root: Path, ranks: Ranks | None = None, *, with_ranks: bool = True, **kwargs: Any) -> Path:
    """Write a record (and its ranks) where a trial would; returns the record's path."""
    ranks = ranks or make_ranks(3.0, kwargs.get("seed", 0))
    record = Record.model_validate(make_payload(ranks, **kwargs))
    path = record_path(root, record.spec, record.spec_id)
    if with_ranks:
        record.artifacts["ranks"] = path.stem + ".ranks.npz"
    write_record(record, path)
    if with_ranks:
        ranks.save(path.with_name(record.artifacts["ranks"]))
    return path


def put_failed(root: Path, *, message: str = "CUDA out of memory", status: str = "failed", **kwargs: Any) -> Path:
    """Write a record of a trial that did not end well."""

    def fail(payload: dict[str, Any]) -> None:
        payload["status"] = status
        payload["metrics"] = {}
        if status == "failed":
            payload["error"] = {"type": "RuntimeError", "message": message, "traceback": "..."}

    return put_record(root, with_ranks=False, change=fail, **kwargs)


def three(root: Path, skill: float, base: int = 0, **kwargs: Any) -> list[Path]:
    """Three seeds of one method."""
    return [put_record(root, make_ranks(skill, base + seed), seed=seed, **kwargs) for seed in range(3)]


def two_stage_part(**changes: Any) -> dict[str, Any]:
    """The part of a record that describes a shortlist and what it lost on a sample of queries."""
    exact = {"i2t_r1": 40.0, "i2t_r5": 70.0, "i2t_r10": 80.0, "t2i_r1": 30.0, "t2i_r5": 60.0, "t2i_r10": 74.0}
    lost = {"i2t_r1": 38.75, "i2t_r5": 70.0, "i2t_r10": 80.0, "t2i_r1": 30.5, "t2i_r5": 60.0, "t2i_r10": 74.0}
    sample = {"images": 16, "captions": 32, "exact": {**exact, "mR": 59.0}, "two_stage": {**lost, "mR": 58.875}}
    bound = {"i2t_rk": 96.25, "t2i_rk": 91.5}
    return {"k": 32, "first_stage": "own cosine", "pairs": 7_680, "bound": bound, "sample": sample, **changes}


def query_part(**changes: Any) -> dict[str, Any]:
    """The part of a record that says what a query costs, in seconds."""
    encode = {"image_encode_s": 0.02, "text_encode_s": 0.001, "pair_s": 0.0003}
    pairs = {"pairs_per_query_t2i": float(IMAGES), "pairs_per_query_i2t": 199.0}
    return {**encode, **pairs, "t2i_s": 0.013, "i2t_s": 0.0797, **changes}


def scores_pairs(payload: dict[str, Any]) -> None:
    """As ``change`` of a record: a cross encoder scored every pair."""
    payload["metrics"]["test"]["scoring"] = "pairs"
    payload["cost"]["query"] = query_part()


def reranks(**changes: Any) -> Callable[[dict[str, Any]], None]:
    """As ``change`` of a record: only a shortlist was scored; ``changes`` go into its part."""

    def change(payload: dict[str, Any]) -> None:
        part = two_stage_part(**changes)
        payload["spec"]["protocol"] = {"rerank": {"k": part["k"], "first": part.get("first_stage_spec_id") or "own"}}
        payload["metrics"]["test"].update(scoring="two_stage", two_stage=part)
        payload["cost"]["query"] = query_part(t2i_s=0.0105, pairs_per_query_t2i=32.0, pairs_per_query_i2t=32.0)

    return change


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a JSON file in place."""
    payload = json.loads(path.read_text())
    change(payload)
    path.write_text(json.dumps(payload))


def md_rows(markdown: str, first: str) -> list[list[str]]:
    """Cells of the table rows whose second cell begins with ``first``; escaped pipes stay in their cell."""
    found = [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in markdown.splitlines() if "|" in line]
    return [cells for cells in found if len(cells) > 1 and cells[1].startswith(first)]
