"""Train tiny-vilt, the shipped cross encoder, on the `pretrain` world of the synthetic scenes.

    python scripts/pretrain_tiny_vilt.py
    python scripts/pretrain_tiny_vilt.py --pictures 512 --align-epochs 1 --fuse-epochs 1 --output try.safetensors

Two stages, after ALBEF (Li et al., Align before Fuse, NeurIPS 2021). First the transformer reads pictures and captions
apart, and InfoNCE aligns the two class tokens through heads that are thrown away; that is cheap, as every other pair of a
batch is a negative. Then it reads them together, in groups of pictures that the first stage finds alike: all pairs of a
group are scored, each caption has to find its picture, each picture its caption, and every pair is told to match or not.
Takes about 20 minutes on one core. The benchmarked `scenes` set has no part in it, and nothing is selected; the validation
split is evaluated once, at the end. The same arguments on the same kind of machine give the same weights.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from pretrain_tiny_clip import JITTER, Corpus, batches, make_corpus
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from petlbench.datasets.augment import augment, normalise
from petlbench.datasets.load import load
from petlbench.datasets.scenes.model import GENERATOR_VERSION
from petlbench.harness.data import SplitData, normalised
from petlbench.harness.metrics import recalls
from petlbench.harness.ranks import rank_scores
from petlbench.methods.backbones import tiny_vilt
from petlbench.methods.backbones.base import Hidden, Tokens
from petlbench.methods.backbones.registry import load_backbone
from petlbench.methods.backbones.vilt import ViltEncoder
from petlbench.methods.losses import infonce, same_pair

GROUP, ALIKE = 8, 5
"""Pictures whose pairs are scored with each other, and how many of them resemble the first."""
NEIGHBOURS = 64
LARGEST_SCALE = math.log(100.0)


class Aligner(nn.Module):
    """The transformer on one input at a time, with projections of the class tokens to a space of their own."""

    def __init__(self, encoder: ViltEncoder):
        super().__init__()
        self.encoder = encoder
        self.image_head = nn.Linear(encoder.width, encoder.width)
        self.text_head = nn.Linear(encoder.width, encoder.width)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def image(self, images: Tensor) -> Tensor:
        """(B, W) normalised embeddings of pictures."""
        return self._embedded(Hidden(self.encoder.embed_image(images)), self.image_head)

    def text(self, tokens: Tokens) -> Tensor:
        """(B, W) normalised embeddings of captions."""
        return self._embedded(Hidden(self.encoder.embed_text(tokens), mask=tokens.mask), self.text_head)

    def _embedded(self, hidden: Hidden, head: nn.Linear) -> Tensor:
        joint = self.encoder.joint
        return F.normalize(head(joint.finish(joint.run_pooled(hidden))[:, 0]).float())


class Matcher(nn.Module):
    """The transformer on pairs, with ViLT's matching head: (2, W), row 1 says "match" and becomes the ranking head."""

    def __init__(self, encoder: ViltEncoder):
        super().__init__()
        self.encoder = encoder
        self.itm = nn.Linear(encoder.width, 2)

    def forward(self, images: Tensor, tokens: Tokens) -> Tensor:
        """(G, S, S, 2) logits of each picture of a group with each of its captions, of G * S pictures and captions."""
        encoder, size = self.encoder, GROUP
        image, text = encoder.embed_image(images), encoder.embed_text(tokens)
        image = image.unflatten(0, (-1, size, 1)).expand(-1, -1, size, -1, -1).flatten(0, 2)
        text = text.unflatten(0, (-1, 1, size)).expand(-1, size, -1, -1, -1).flatten(0, 2)
        mask = tokens.mask.unflatten(0, (-1, 1, size)).expand(-1, size, -1, -1).flatten(0, 2)
        hidden = encoder.joint.run_pooled(encoder.join(text, mask, image))
        # Not the tower's own pool, which leaves autocast: scores of a loss need not be told apart as ranks must.
        pooled = encoder.vilt.pooler(encoder.vilt.layernorm(hidden.x))
        return self.itm(pooled).float().unflatten(0, (-1, size, size))


def groups(corpus: Corpus, alike: Tensor, count: int, chance: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """(picture rows, text rows) of ``count`` groups at a time; in an epoch every picture leads a group every eighth time."""
    pictures = len(corpus.pictures)
    order = torch.randperm(pictures, generator=chance)[: pictures // GROUP]
    for first in order[: len(order) // count * count].split(count):
        near = torch.rand(count, alike.shape[1], generator=chance).argsort(1)[:, :ALIKE]
        far = torch.randint(pictures, (count, GROUP - 1 - ALIKE), generator=chance)
        rows = torch.cat([first[:, None], alike[first[:, None], near], far], 1).flatten()
        which = torch.randint(corpus.text_ids.shape[1], (len(rows),), generator=chance)
        yield rows, corpus.text_ids[rows, which]


def group_loss(logits: Tensor, rows: Tensor, texts: Tensor) -> Tensor:
    """Ranking in both directions over (G, S, S, 2) logits, and matching; pairs that share a string are no negatives."""
    score = logits[..., 1]
    true = torch.eye(GROUP, dtype=torch.bool)
    rows, texts = rows.view(-1, GROUP), texts.view(-1, GROUP)
    same = (rows[:, :, None] == rows[:, None]) | (texts[:, :, None] == texts[:, None])
    ranked = score.masked_fill(same & ~true, float("-inf"))
    both = (ranked.log_softmax(2) + ranked.log_softmax(1)).diagonal(dim1=1, dim2=2)
    matching = logits.log_softmax(-1)
    told = matching[..., 1].diagonal(dim1=1, dim2=2).mean() + matching[..., 0][~same].mean()
    return -both.mean() / 2 - told / 2


@torch.no_grad()
def neighbours(corpus: Corpus, aligner: Aligner) -> Tensor:
    """(N, 64) rows of the pictures most alike to each, by the embeddings of picture and captions side by side."""
    aligner.eval()
    mean, std = aligner.encoder.provenance.mean, aligner.encoder.provenance.std
    image = torch.cat([aligner.image(normalise(part, mean, std)) for part in corpus.pictures.split(512)])
    chunks = torch.arange(len(corpus.tokens)).split(512)
    text = torch.cat([aligner.text(corpus.tokens[rows].trimmed()) for rows in chunks])
    side = torch.cat([image, F.normalize(text[corpus.text_ids].mean(1))], 1)
    found = []
    for rows in torch.arange(len(side)).split(512):
        alike = side[rows] @ side.T
        alike[torch.arange(len(rows)), rows] = -1
        found.append(alike.topk(min(NEIGHBOURS, len(side) - 1)).indices)
    aligner.train()
    return torch.cat(found)


def fit(
    model: nn.Module,
    epochs: int,
    per_epoch: int,
    draw: Callable[[], Iterable[tuple[Tensor, Tensor]]],
    loss_of: Callable[[Tensor, Tensor], Tensor],
    options: argparse.Namespace,
) -> float:
    """AdamW with warm-up and cosine; mean loss of the last hundred steps."""
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    weights = [{"params": decayed, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(weights, options.lr, betas=(0.9, 0.98), fused=True)
    steps = epochs * per_epoch
    warmup = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    model.train()
    started, losses = time.monotonic(), []
    for _ in range(epochs):
        for rows, texts in draw():
            # The fused attention is slower than plain products at these lengths, above all backward.
            with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
                loss = loss_of(rows, texts)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            if len(losses) % 50 == 0:
                seconds = time.monotonic() - started
                line = f"{type(model).__name__} step {len(losses)}/{steps}  loss {sum(losses[-50:]) / 50:.3f}  {seconds:.0f} s"
                print(line, file=sys.stderr, flush=True)
    return sum(losses[-100:]) / len(losses[-100:])


def train(corpus: Corpus, encoder: ViltEncoder, options: argparse.Namespace) -> tuple[Matcher, dict[str, float]]:
    """Both stages.

    Returns:
        The encoder under its matching head, and each stage's loss.
    """
    chance = torch.Generator().manual_seed(options.seed)
    mean, std = encoder.provenance.mean, encoder.provenance.std
    pictures = len(corpus.pictures)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        aligner, matcher = Aligner(encoder), Matcher(encoder)
    encoder.rank_output.requires_grad_(False)  # it starts from the matching head at the end

    def pixels(rows: Tensor) -> Tensor:
        return normalise(augment(corpus.pictures[rows], JITTER, chance), mean, std)

    def aligning(rows: Tensor, texts: Tensor) -> Tensor:
        image, text = aligner.image(pixels(rows)), aligner.text(corpus.tokens[texts].trimmed())
        scale = aligner.logit_scale.clamp(max=LARGEST_SCALE).exp()
        return infonce(scale * image @ text.T, same_pair(rows, texts))

    def fusing(rows: Tensor, texts: Tensor) -> Tensor:
        return group_loss(matcher(pixels(rows), corpus.tokens[texts].trimmed()), rows, texts)

    aligned = fit(
        aligner,
        options.align_epochs,
        pictures // options.batch,
        lambda: batches(corpus, options.batch, chance),
        aligning,
        options,
    )
    alike = neighbours(corpus, aligner)
    fused = fit(
        matcher,
        options.fuse_epochs,
        pictures // GROUP // options.groups,
        lambda: groups(corpus, alike, options.groups, chance),
        fusing,
        options,
    )
    encoder.rank_output.requires_grad_(True)
    return matcher.eval(), {"loss_aligning": aligned, "loss_fusing": fused}


@torch.inference_mode()
def zero_shot(path: Path, split: str = "val") -> dict[str, float]:
    """Recalls in percent on a split of `scenes`, every pair scored with the weights as they are shipped, in fp32."""
    backbone = load_backbone("tiny-vilt", weights=path)
    assert isinstance(backbone, ViltEncoder)
    data = SplitData.open(load("scenes")[split], backbone)
    pictures = len(data.split.images)
    image = backbone.embed_image(normalised(data.images.gather(range(pictures)), backbone))
    scores = torch.empty(pictures, len(data.tokens))
    lengths = data.tokens.mask.sum(1)
    for length in lengths.unique():
        columns = (lengths == length).nonzero()[:, 0]
        text = backbone.embed_text(data.tokens[columns].trimmed())
        for row in range(pictures):
            hidden = backbone.join(text, None, image[row].expand(len(text), -1, -1))
            scores[row, columns] = backbone.head(backbone.joint.run_pooled(hidden))
    return recalls(rank_scores(scores, data.split.owner, data.split.text_ids, columns="strings"))


def main() -> None:
    """Render, train, save, measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=tiny_vilt.WEIGHTS, help="safetensors file to write")
    parser.add_argument("--pictures", type=int, default=24_000)
    parser.add_argument("--align-epochs", type=int, default=8)
    parser.add_argument("--fuse-epochs", type=int, default=4)
    parser.add_argument("--batch", type=int, default=128, help="pairs per step of the first stage")
    parser.add_argument("--groups", type=int, default=8, help="groups of 8 x 8 pairs per step of the second stage")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=1, help="of the scenes too; 0 are those of tiny-clip")
    parser.add_argument("--workers", type=int, default=1, help="processes that render")
    parser.add_argument("--threads", type=int, default=1, help="threads that train; the weights depend on it")
    options = parser.parse_args()
    least = max(options.batch, GROUP * options.groups)
    if options.pictures < least:
        parser.error(f"--pictures {options.pictures} is less than one batch of {least}")

    torch.set_num_threads(options.threads)
    started = time.monotonic()
    corpus = make_corpus(options.pictures, options.seed, options.workers)
    rendered = time.monotonic() - started
    encoder = tiny_vilt.untrained_tiny_vilt(options.seed)
    matcher, losses = train(corpus, encoder, options)
    trained = time.monotonic() - started - rendered

    recipe = {key: value for key, value in vars(options).items() if key not in ("output", "workers")}
    state = {f"vilt.{key}": value.half() for key, value in encoder.vilt.state_dict().items()}
    state |= {f"itm_score.fc.{key}": value.half() for key, value in matcher.itm.state_dict().items()}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, options.output, {"recipe": json.dumps(recipe), "generator_version": str(GENERATOR_VERSION)})
    options.output.chmod(0o644)  # it is installed for every user
    report = {"recipe": recipe, **losses, "seconds_rendering": rendered, "seconds_training": trained}
    report["seconds_processor"] = time.process_time()
    print(json.dumps({**report, "scenes_val_zero_shot": zero_shot(options.output)}, indent=2))


if __name__ == "__main__":
    main()
