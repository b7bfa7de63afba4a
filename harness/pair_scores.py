"""Scores of pairs by a method that looks at picture and caption together, with everything that is exact for free.

Each picture and each distinct caption is prepared once. Captions are grouped by their exact length, so that nothing is
padded; the pairs of a group are cut into blocks of about one size in memory, whatever pictures they come from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from petlbench.errors import PetlbenchError
from petlbench.harness.encode import EVAL_BATCH, inference
from petlbench.harness.kernels import evaluation_kernels
from petlbench.harness.pair_progress import PairCost, PairProgress, ProgressMeter, now
from petlbench.methods.backbones.base import Backbone, Tokens
from petlbench.methods.base import States
from petlbench.methods.pair import PairMethod

if TYPE_CHECKING:
    from petlbench.harness.data import SplitData
    from petlbench.harness.pair_store import ScoreStore

BLOCK_SCALARS = {"cpu": 2**20, "cuda": 2**26}
"""Scalars in the prepared states of one block of pairs, by device. On a CPU the MLP's inner states, four times as many,
then stay in the last cache; on a GPU a block of ViLT-B/32 is some 540 pairs and 1 GB of inner states in fp32."""

TEXT_BYTES = 2**31
"""Prepared states of captions are kept up to this size; those beyond are computed again for every chunk of pictures."""


class ScoreError(PetlbenchError):
    """Scores cannot be computed, or are not numbers."""


class KeptLike(Protocol):
    """States of a split that were computed before; rows come back on the CPU, words cut to the longest of the asked."""

    def images(self, rows: Tensor) -> States:
        """States of (B,) pictures."""
        ...

    def texts(self, ids: Tensor) -> States:
        """States of (B,) distinct captions."""
        ...


def score_all(
    method: PairMethod,
    model: nn.Module,
    backbone: Backbone,
    data: SplitData,
    precision: str,
    device: torch.device,
    *,
    kept: KeptLike | None = None,
    store: ScoreStore | None = None,
    say: Callable[[PairProgress], None] | None = None,
    cost: PairCost | None = None,
) -> Tensor:
    """Exact scores of every picture with every distinct caption.

    Args:
        method: Scores pairs.
        model: What its ``build`` returned, on ``device``.
        backbone: Gives normalisation and trimming.
        data: The split, N pictures and U distinct captions.
        precision: Of the trial.
        device: Where the model lies.
        kept: States to start from, in place of pixels and words.
        store: Keeps finished scores, so that an interrupted run goes on where it was; must have the shape (N, U).
        say: Told the estimate once the first blocks are measured, then the progress every few seconds, then the end.
        cost: Collects the seconds spent.

    Returns:
        (N, U) fp32 on the CPU; mapped from the store's file where there is one.

    Raises:
        ScoreError: A score is not finite, or the store has another shape.
    """
    return score_some(
        method, model, backbone, data, precision, device, None, kept=kept, store=store, say=say, cost=cost
    )


def score_some(
    method: PairMethod,
    model: nn.Module,
    backbone: Backbone,
    data: SplitData,
    precision: str,
    device: torch.device,
    wanted: Tensor | None,
    *,
    kept: KeptLike | None = None,
    store: ScoreStore | None = None,
    say: Callable[[PairProgress], None] | None = None,
    cost: PairCost | None = None,
) -> Tensor:
    """Exact scores of chosen pairs.

    Args:
        method: As of :func:`score_all`, like all others but ``wanted``.
        model: Likewise.
        backbone: Likewise.
        data: Likewise.
        precision: Likewise.
        device: Likewise.
        wanted: (N, U) bool on the CPU; None means all pairs.
        kept: Likewise.
        store: Likewise.
        say: Likewise.
        cost: Likewise.

    Returns:
        (N, U) fp32 on the CPU, NaN where nothing was wanted (or stored before).

    Raises:
        ScoreError: As of :func:`score_all`, or ``wanted`` has another shape.
    """
    shape = (len(data.split.images), len(data.tokens))
    for what, found in (("wanted pairs", wanted), ("score store", None if store is None else store.scores)):
        if found is not None and tuple(found.shape) != shape:
            raise ScoreError(
                f"split {data.split.name}: {what} of shape {tuple(found.shape)}, expected one row for each of {shape[0]} "
                f"pictures and one column for each of {shape[1]} distinct captions"
            )
    scores = torch.full(shape, torch.nan) if store is None else store.scores
    missing = scores.isnan() if wanted is None else scores.isnan() & wanted
    cost = PairCost() if cost is None else cost
    total = scores.numel() if wanted is None else int(wanted.sum())
    groups = length_groups(data.tokens, backbone.trims_text)
    lengths = [int(data.tokens.mask[ids[0]].sum()) for ids in groups]
    meter = ProgressMeter(data.split.name, shape, total, missing, groups, lengths, say, cost)
    with inference(model, precision, device), evaluation_kernels(model, precision, device):
        prepared = _Prepared(method, model, backbone, data, device, kept, groups, cost)
        for rows in torch.arange(shape[0]).split(EVAL_BATCH):
            open_here = missing[rows]
            if bool(open_here.any()):
                _score_chunk(prepared, rows, open_here, scores, store, meter)
    if store is not None:
        store.flush()
    meter.end()
    return scores


def length_groups(tokens: Tokens, trims: bool) -> list[Tensor]:
    """Ids of captions of equal length, longest first, so that a lack of memory shows at once.

    One group of all where padding is part of what the model sees.
    """
    if not trims:
        return [torch.arange(len(tokens))]
    lengths = tokens.mask.sum(1)
    return [(lengths == length).nonzero().squeeze(1) for length in lengths.unique(sorted=True).flip(0)]


def _score_chunk(
    prepared: _Prepared,
    rows: Tensor,
    missing: Tensor,
    scores: Tensor,
    store: ScoreStore | None,
    meter: ProgressMeter,
) -> None:
    """Score what is missing, (rows, U) bool, of a chunk of pictures."""
    pictures = missing.any(1).nonzero().squeeze(1)  # a resumed chunk may need only some
    rows, missing = rows[pictures], missing[pictures]
    image = prepared.image(rows)
    for number, ids in enumerate(prepared.groups):
        pairs = missing[:, ids].nonzero()  # picture by picture, so that a block often holds one picture only
        if not len(pairs):
            continue
        text = prepared.text(number)
        each = _scalars(image) + _scalars(text)
        meter.weigh(_scalars(image), _scalars(text), number)
        for block in pairs.split(max(1, BLOCK_SCALARS[prepared.device.type] // each)):
            at_image, at_text = block.unbind(1)
            began = now(prepared.device)
            found = prepared.score(take(image, at_image), take(text, at_text))
            spent = now(prepared.device) - began
            bad = (~found.isfinite()).nonzero()
            if len(bad):
                first = int(bad[0, 0])
                picture, caption = int(rows[at_image[first]]), int(ids[at_text[first]])
                raise ScoreError(
                    f"split {prepared.data.split.name}: method {prepared.method.name} scores picture {picture} with caption "
                    f"{caption} as {float(found[first])}, expected a finite number; the model has diverged: look at the "
                    "loss, lower the learning rate"
                )
            scores[rows[at_image], ids[at_text]] = found
            if store is not None:
                store.flush_now_and_then()
            meter.add(number, len(found), spent)


class _Prepared:
    """Prepared states on the device: of captions kept as far as they fit, of pictures a chunk at a time."""

    def __init__(
        self,
        method: PairMethod,
        model: nn.Module,
        backbone: Backbone,
        data: SplitData,
        device: torch.device,
        kept: KeptLike | None,
        groups: Sequence[Tensor],
        cost: PairCost,
    ):
        self.method, self.model, self.backbone, self.data = method, model, backbone, data
        self.device, self.kept, self.groups, self.cost = device, kept, groups, cost
        self._texts: dict[int, States] = {}
        self._text_bytes = 0

    def image(self, rows: Tensor) -> States:
        """States of the pictures with the given places in the split."""
        from petlbench.harness.data import normalised

        began = now(self.device)
        if self.kept is not None:
            states = _moved(self.kept.images(rows), self.device)
        else:
            raw = self.data.images.gather(rows.tolist()).to(self.device)
            states = self.method.image_states(self.model, normalised(raw, self.backbone))
        prepared = self.method.prepare_image(self.model, states)
        self.cost.image_s += now(self.device) - began
        self.cost.images += len(rows)
        return prepared

    def text(self, number: int) -> States:
        """States of the captions of a group."""
        if number in self._texts:
            return self._texts[number]
        began = now(self.device)
        parts = [self._text(ids) for ids in self.groups[number].split(EVAL_BATCH)]
        states = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        self.cost.text_s += now(self.device) - began
        self.cost.texts += len(self.groups[number])
        size = sum(value.nbytes for value in states.values())
        if self._text_bytes + size <= TEXT_BYTES:
            self._texts[number] = states
            self._text_bytes += size
        return states

    def _text(self, ids: Tensor) -> States:
        if self.kept is not None:
            states: States = _moved(self.kept.texts(ids), self.device)
        else:
            tokens = self.data.tokens[ids]
            tokens = (tokens.trimmed() if self.backbone.trims_text else tokens).to(self.device)
            states = self.method.text_states(self.model, tokens)
        return self.method.prepare_text(self.model, states)

    def score(self, image: States, text: States) -> Tensor:
        """(B,) fp32 on the CPU."""
        return self.method.score(self.model, image, text).float().cpu()


def take(states: States, index: Tensor) -> dict[str, Tensor]:
    """Rows of every state by (B,) places; as views where the places are all one, or a run without gaps."""
    first, steps = int(index[0]), index.diff()
    if not bool(steps.any()):
        return {name: value[first : first + 1].expand(len(index), *value.shape[1:]) for name, value in states.items()}
    if bool((steps == 1).all()):
        return {name: value[first : first + len(index)] for name, value in states.items()}
    return {name: value[index.to(value.device)] for name, value in states.items()}


def _scalars(states: States) -> int:
    """Floating-point scalars per row."""
    return sum(value[0].numel() for value in states.values() if value.is_floating_point())


def _moved(states: States, device: torch.device) -> States:
    return {name: value.to(device) for name, value in states.items()}
