"""What two gloo workers, or one process, compute of the same small batches: the cases of test_distributed."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from petlbench.harness import audit
from petlbench.harness.checkpoint import Checkpoints, Progress
from petlbench.harness.distributed.shard import rows_of, share
from petlbench.harness.distributed.world import here, join
from petlbench.harness.engine import Engine
from petlbench.harness.spec import EngineConfig
from petlbench.methods import registry
from petlbench.methods.backbones.random_models import random_clip, random_vilt
from petlbench.methods.base import Batch
from petlbench.methods.recipe import LossConfig, Recipe

CPU = torch.device("cpu")
PAIRS = 8
STEPS = 3
WORKERS = 2


@dataclass(frozen=True)
class Case:
    """One way to train a few steps."""

    method: str = "full_finetune"
    options: dict[str, Any] = field(default_factory=dict)
    loss: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)

    @property
    def recipe(self) -> Recipe:
        # SGD: the change of a weight is its gradient, and Adam would divide rounding noise by itself.
        values = {"optimizer": "sgd", "momentum": 0.0, "lr": 0.1, "weight_decay": 0.0, "warmup": 0, "clip_norm": 0.0}
        return Recipe.model_validate({**values, "schedule": "constant", "batch_size": PAIRS, **self.train})


LOSSES = ("infonce", "multi_positive", "siglip", "hinge", "hinge_hardest", "hmmc", "adaptive_triplet", "harma")
# Chance is what differs between one process and two, so the second view of hmmc drops nothing here.
BY_LOSS = {name: Case(loss={"name": name, "view_dropout": 0.0, "reduction": "mean"}) for name in LOSSES}
ZERO = {f"zero{stage}": Case(engine={"zero_stage": stage}, train={"clip_norm": 0.5}) for stage in range(4)}
MORE = {
    "masked": Case(loss={"mask_duplicates": True}),
    "lora": Case("lora"),
    "harma_method": Case(
        "harma", loss={"name": "harma", "reduction": "mean"}, options={"bottleneck": 16, "mini_bottleneck": 8}
    ),
    "affiliation": Case("pir_petl", options={"dropout": 0.0, "prior": "resnet18"}),
    "cup": Case("cup", options={"dropout": 0.0, "tokens": 2, "cluster_width": 16}),
    "pieces": Case(train={"grad_cache": 3}),
    "pieces_zero2": Case(train={"accumulate": 2}, engine={"zero_stage": 2}),
    "pieces_zero3": Case(train={"accumulate": 2}, engine={"zero_stage": 3}),
    "zero1_offload": Case(engine={"zero_stage": 1, "offload": "cpu"}),
    "zero3_offload": Case("lora", engine={"zero_stage": 3, "offload": "cpu"}),
}
PAIRWISE = {
    "pairs": Case("vilt_lora"),
    "pairs_accumulated": Case("vilt_adapter", {"bottleneck": 4}, train={"accumulate": 2}),
    "fusion": Case("clip_fusion", {"width": 16, "layers": 1, "heads": 2}),
}
"""Methods that score pairs of a picture and its candidates."""
CASES = {**BY_LOSS, **ZERO, **MORE, **PAIRWISE}
RESUMED = ("zero0", "zero1", "zero2", "zero3")


def batches(backbone: Any, count: int = STEPS, size: int = PAIRS) -> list[Batch]:
    """Batches with pictures that repeat, strings that repeat, and classes, one of them unknown."""
    draw = torch.Generator().manual_seed(1)
    made = []
    for index in range(count):
        words = [f"scene {index} number {row % (size - 1)} {'very ' * (row % 3)}wide" for row in range(size)]
        images = torch.randn(size, 3, backbone.resolution, backbone.resolution, generator=draw)
        ids = torch.arange(size)
        image_ids = torch.where(ids == size // 2, 0, ids)
        images[size // 2] = images[0]
        labels = torch.where(ids == 1, -1, ids % 3)
        tokens, texts = backbone.tokenize(words), ids % (size - 1)
        rows = (
            ids[:, None] + torch.tensor([0, 1, 3])
        ) % size  # for methods that score pairs: the own caption, two others
        made.append(
            Batch(
                images, tokens, image_ids, texts, labels, candidates=tokens[rows.flatten()], candidate_ids=texts[rows]
            )
        )
    return made


def built(case: Case) -> tuple[Any, Any, Any, list[str]]:
    """Method, backbone, model in evaluation mode, and names of what is trained."""
    cls = registry.load(registry.discover()[case.method])
    method = cls(cls.Config.model_validate(case.options), LossConfig.model_validate(case.loss))
    backbone = random_clip(seed=3) if "open_clip" in cls.kinds else random_vilt(seed=3)
    torch.manual_seed(5)
    model = method.build(backbone).eval()
    trainable = [n for n, _ in model.named_parameters() if n in set(method.trainable(model))]
    audit.freeze_all_but(model, trainable, case.method)
    return method, backbone, model, trainable


def engine_of(case: Case) -> tuple[Engine, list[Batch]]:
    """An engine for this process's share, and the whole batches."""
    method, backbone, model, trainable = built(case)
    config = EngineConfig.model_validate(case.engine)
    return Engine(model, method, trainable, set(), case.recipe, config, STEPS, STEPS, CPU, seed=7), batches(backbone)


def trained(case: Case) -> tuple[dict[str, Tensor], list[dict[str, float]], bool]:
    """Weights after the steps, losses of each step, and whether the model is an ordinary one again afterwards."""
    engine, data = engine_of(case)
    model, losses = engine._model, []
    for batch in data:
        losses.append(engine.step(rows_of(batch, *share(len(batch), here()))))
        with engine.whole_model(), torch.no_grad():
            if here().first:  # as validation does: one process computes, without the others
                engine._method.views(model, batch)
            here().wait()
    found = engine.trained_tensors()
    with engine.whole_model():
        inside = {n: p.detach().clone() for n, p in model.named_parameters()}
    engine.close(whole=True)
    after = dict(model.named_parameters())
    whole = all(torch.equal(after[n], value) for n, value in inside.items()) and all(
        torch.equal(after[n], value) for n, value in found.items()
    )
    return found, losses, whole and not any(hasattr(p, "ds_id") for p in model.parameters())


def resumed(case: Case, folder: Path) -> bool:
    """Whether a trial that is resumed after its first step ends as one that was not interrupted; leaves the checkpoint."""
    engine, data = engine_of(case)
    mine = [rows_of(batch, *share(len(batch), here())) for batch in data]
    engine.step(mine[0])
    checkpoints = Checkpoints(folder)
    checkpoints.save(engine, Progress(epoch=1, steps=1), engine.trained_tensors())
    for batch in mine[1:]:
        engine.step(batch)
    expected = engine.trained_tensors()
    engine.close(whole=True)
    again, _ = engine_of(case)
    restored = checkpoints.restore(again)
    assert restored is not None and restored[0].workers == here().size
    for batch in mine[1:]:
        again.step(batch)
    found = again.trained_tensors()
    again.close(whole=True)
    return all(torch.equal(found[name], value) for name, value in expected.items())


def main(rank: int, port: int, out: str, names: list[str]) -> None:
    """One of the workers: train every case, resume some, and write what came out."""
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(WORKERS), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    os.environ["DS_ACCELERATOR"] = "cpu"
    dist.init_process_group("gloo")
    with join():
        for name in names:
            found, losses, whole = trained(CASES[name])
            said = {f"loss.{i}.{k}": torch.tensor(v) for i, line in enumerate(losses) for k, v in line.items()}
            save_file({**found, **said, "whole": torch.tensor(whole)}, Path(out) / f"{name}.{rank}.safetensors")
        for name in RESUMED:
            same = resumed(CASES[name], Path(out) / f"checkpoint-{name}")
            save_file({"same": torch.tensor(same)}, Path(out) / f"resumed-{name}.{rank}.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4].split(","))
