"""Exact retrieval ranks in both directions, in torch, a block of images at a time.

Ranks are found by counting how many candidates score higher and how many tie, which needs no sort. Counting runs over
distinct caption strings, weighted by how many captions carry each, so equal strings tie by construction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from petlbench.harness.first_answers import FirstAnswers
from petlbench.harness.metrics import Ranks

__all__ = ["Ranks", "rank_all", "rank_scores"]

KEEP_BYTES = 2**30
"""A score matrix up to this size is kept between the two passes; above it the product is computed twice."""

_EXACT = 2**24  # counts are sums of ones in fp32, exact below this


@torch.inference_mode()
def rank_all(
    image_emb: Tensor, text_emb: Tensor, owner: Any, text_ids: Any, *, chunk: int = 256, top: int = 0
) -> Ranks:
    """Ranks of a dual encoder.

    Embeddings are cast to fp32 and L2-normalised here, whatever they come in: at the 8 bits of bf16 thousands of
    unrelated pairs would tie. TF32 and autocast are off for the product for the same reason.

    Args:
        image_emb: (N, D) embeddings of the images, any float type, any device; the work happens on that device.
        text_emb: (U, D) embeddings of the distinct caption strings, in the order of their ids.
        owner: (M,) integers, image of each caption.
        text_ids: (M,) integers, distinct string of each caption, covering 0..U-1.
        chunk: Images per block. Working memory is a few times ``4 * chunk * M`` bytes, besides the kept scores
            (``4 * N * U`` bytes if that is at most :data:`KEEP_BYTES`, else nothing).
        top: First answers to keep of every query, fewer where there are fewer candidates; 0 keeps none.

    Returns:
        The ranks, on the CPU.

    Raises:
        ValueError: Shapes disagree, an embedding is not finite or is zero, an image has no caption, ids out of range.
    """
    if image_emb.ndim != 2 or text_emb.ndim != 2 or image_emb.shape[1] != text_emb.shape[1]:
        raise ValueError(
            f"embeddings have shapes {tuple(image_emb.shape)} and {tuple(text_emb.shape)}, expected (N, D) and (U, D)"
        )
    layout = _Layout.of(owner, text_ids, len(image_emb), image_emb.device)
    if len(text_emb) != layout.strings:
        raise ValueError(
            f"text_emb has {len(text_emb)} rows, but text_ids name {layout.strings} distinct strings; "
            "encode each distinct string once (Split.distinct), in the order of its id"
        )
    images = _normalised(image_emb, "image")
    texts = _normalised(text_emb.to(image_emb.device), "text").T
    keep = 4 * layout.images * layout.strings <= KEEP_BYTES
    return _count(lambda start, stop: images[start:stop] @ texts, layout, chunk, keep, top)


@torch.inference_mode()
def rank_scores(
    scores: Tensor | NDArray | Iterable[Tensor | NDArray],
    owner: Any,
    text_ids: Any,
    *,
    columns: Literal["captions", "strings"] = "captions",
    chunk: int = 256,
    top: int = 0,
) -> Ranks:
    """Ranks from ready scores, as a cross encoder makes them.

    Args:
        scores: (N, M) or (N, U) matrix, higher is better, or blocks of its rows in order (joined here). ``-inf`` is
            allowed (a pair that a first stage pruned), NaN is not.
        owner: (M,) integers, image of each caption.
        text_ids: (M,) integers, distinct string of each caption, covering 0..U-1.
        columns: What a column is: a caption (M of them), or a distinct string (U of them, in the order of the ids).
        chunk: Images per block.
        top: As of :func:`rank_all`.

    Returns:
        The ranks, on the CPU.

    Raises:
        ValueError: Wrong shape, NaN, or two captions with the same string but different scores for one image.
    """
    if columns not in ("captions", "strings"):
        raise ValueError(f"columns is {columns!r}, expected 'captions' or 'strings'")
    if isinstance(scores, Tensor | np.ndarray):
        matrix = torch.as_tensor(scores)
    else:
        matrix = torch.cat([torch.as_tensor(rows) for rows in scores])
    layout = _Layout.of(owner, text_ids, len(matrix), matrix.device)
    width = layout.strings if columns == "strings" else layout.captions
    if matrix.ndim != 2 or matrix.shape[1] != width:
        raise ValueError(
            f"scores have shape {tuple(matrix.shape)}, expected ({layout.images}, {width}): one column for each of "
            f"the {columns}"
        )
    missing = matrix.isnan().nonzero()
    if len(missing):
        raise ValueError(f"scores hold {len(missing)} NaN, the first at image, column {tuple(missing[0].tolist())}")
    if columns == "captions" and not torch.equal(layout.first, torch.arange(width, device=matrix.device)):
        matrix = _per_string(matrix, layout, chunk)  # needed even without duplicates, if ids are in another order
    # fp32 holds every half-precision number, fp64 every integer in use; the counts are made in this type.
    kept = (torch.float32, torch.float64)
    wide = matrix.dtype if matrix.dtype in kept else torch.float32 if matrix.is_floating_point() else torch.float64
    return _count(lambda start, stop: matrix[start:stop].to(wide), layout, chunk, keep=False, top=top)


@dataclass(frozen=True)
class _Layout:
    """Who owns what, as index tensors on the device of the scores. P counts distinct (string, image) pairs."""

    images: int
    captions: int
    strings: int
    owner: Tensor  # (M,)
    text_ids: Tensor  # (M,)
    copies: Tensor  # (U,) fp32, captions that carry the string
    first: Tensor  # (U,) first caption that carries the string
    own: Tensor  # (N, most captions of an image) own captions; missing ones repeat caption 0 and are masked
    own_mask: Tensor
    pair_string: Tensor  # (P,) in the order of the strings, so P == U means the identity
    pair_image: Tensor  # (P,)
    pair_of: Tensor  # (M,) pair of each caption

    @classmethod
    def of(cls, owner: Any, text_ids: Any, images: int, device: torch.device) -> _Layout:
        owner, text_ids = _whole(owner, "owner"), _whole(text_ids, "text_ids")
        if owner.shape != text_ids.shape:
            raise ValueError(f"owner names {len(owner)} captions, text_ids {len(text_ids)}; both list the captions")
        if owner.max() >= images:
            raise ValueError(f"owner of caption {owner.argmax()} is {owner.max()}, but there are {images} images")
        if max(images, len(owner)) >= _EXACT:
            raise ValueError(f"{images} images and {len(owner)} captions: fp32 counts are exact below {_EXACT} only")
        per_image, copies = np.bincount(owner, minlength=images), np.bincount(text_ids)
        if not per_image.all():
            raise ValueError(f"image {per_image.argmin()} owns no caption, so it cannot be ranked; drop it")
        if not copies.all():
            raise ValueError(f"no caption has text id {copies.argmin()}; ids must cover 0..{len(copies) - 1}")
        by_image = np.argsort(owner, kind="stable")
        place = np.arange(len(owner)) - np.repeat(np.cumsum(per_image) - per_image, per_image)
        own = np.full((images, per_image.max()), -1)
        own[owner[by_image], place] = by_image
        pairs, pair_of = np.unique(text_ids * images + owner, return_inverse=True)
        tensors = {
            "owner": owner,
            "text_ids": text_ids,
            "copies": copies.astype(np.float32),
            "first": np.unique(text_ids, return_index=True)[1],
            "own": own.clip(0),
            "own_mask": own >= 0,
            "pair_string": pairs // images,
            "pair_image": pairs % images,
            "pair_of": pair_of,
        }
        moved = {name: torch.from_numpy(array).to(device) for name, array in tensors.items()}
        return cls(images, len(owner), len(copies), **moved)


def _count(block: Callable[[int, int], Tensor], layout: _Layout, chunk: int, keep: bool, top: int = 0) -> Ranks:
    """Ranks from a function that gives rows ``start:stop`` of the (N, U) score matrix.

    Text-to-image counting needs each caption's score with its own image before the first block is counted. That score
    is read out of the very block it is compared in, never computed on its own: another summation order differs in the
    last bit, and a collapsed encoder, whose scores all tie, would then come out with perfect or zero recall.
    """
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}, expected at least 1 image per block")
    spans = [(start, min(start + chunk, layout.images)) for start in range(0, layout.images, chunk)]
    with _plain_fp32(layout.owner.device):
        kept, image_parts, right = [], [], None
        answers = FirstAnswers(layout.text_ids, top)
        for start, stop in spans:
            scores = block(start, stop)
            answers.see(scores, start)
            image_parts.append(_image_to_text(scores, layout, start, stop))
            here = _inside(layout, start, stop).nonzero().squeeze(1)
            if right is None:
                right = scores.new_empty(len(layout.pair_image))
            right[here] = scores[layout.pair_image[here] - start, layout.pair_string[here]]
            if keep:
                kept.append(scores)
        assert right is not None  # a layout has at least one image
        pair = right.new_zeros((3, len(right)), dtype=torch.int64)
        for number, (start, stop) in enumerate(spans):
            scores = kept[number] if keep else block(start, stop)
            pair += _text_to_image(scores, right, layout, start, stop)
    greater, tied, lower = pair
    if bool((tied < 1).any()):
        raise RuntimeError("the score of a pair changed between two passes; run with a smaller chunk or on the CPU")
    index = greater + lower
    best = index.new_full((layout.strings,), layout.images)
    best.scatter_reduce_(0, layout.pair_string, index, "amin")  # an owner of the string that the order meets first
    image_rows = torch.cat(image_parts, dim=1)
    text_rows = torch.stack([greater, tied - 1, index, best[layout.pair_string]])[:, layout.pair_of]
    first = (None, None) if not top else tuple(map(_int32, answers.found()))
    return Ranks(_int32(layout.owner), *_int32(image_rows), *_int32(text_rows), *first)


def _image_to_text(scores: Tensor, layout: _Layout, start: int, stop: int) -> Tensor:
    """Rows greater, tied, positives, index, duplicate of :class:`Ranks` for the images of one block, (5, rows)."""
    own, mask = layout.own[start:stop], layout.own_mask[start:stop]
    own_string = layout.text_ids[own]
    own_scores = scores.gather(1, own_string)
    best = own_scores.masked_fill(~mask, -torch.inf).amax(dim=1, keepdim=True)
    at_best = (own_scores == best) & mask
    copies = layout.copies.to(scores.dtype)
    buffer = torch.empty_like(scores)  # comparing into the scores' type and multiplying beats summing booleans
    greater = (torch.gt(scores, best, out=buffer) @ copies).long()
    reached = (torch.ge(scores, best, out=buffer) @ copies).long()
    positives = at_best.sum(dim=1)
    tied = reached - greater - positives
    index, duplicate = greater.clone(), greater.clone()
    rows = (tied > 0).nonzero().squeeze(1)  # the order inside a tie matters for these images alone
    if len(rows):
        last = layout.captions
        until = own.masked_fill(~at_best, last).amin(dim=1)[rows, None]
        until_copy = layout.first[own_string].masked_fill(~at_best, last).amin(dim=1)[rows, None]
        ties = (scores[rows] == best[rows]).index_select(1, layout.text_ids)
        place = torch.arange(last, device=scores.device)
        index[rows] += (ties & (place < until)).sum(dim=1)
        duplicate[rows] += (ties & (place < until_copy)).sum(dim=1)
    return torch.stack([greater, tied, positives, index, duplicate])


def _text_to_image(scores: Tensor, right: Tensor, layout: _Layout, start: int, stop: int) -> Tensor:
    """Per pair, images of one block that score higher, that tie (itself too), that tie with a lower index, (3, P)."""
    if len(right) > layout.strings:
        scores = scores.index_select(1, layout.pair_string)
    buffer = torch.empty_like(scores)
    greater = torch.gt(scores, right, out=buffer).sum(dim=0).long()
    tied = torch.ge(scores, right, out=buffer).sum(dim=0).long() - greater
    lower = torch.zeros_like(tied)
    pairs = (tied > _inside(layout, start, stop)).nonzero().squeeze(1)
    if len(pairs):
        ties = scores.index_select(1, pairs) == right[pairs]
        place = torch.arange(start, stop, device=scores.device)
        lower[pairs] = (ties & (place[:, None] < layout.pair_image[pairs])).sum(dim=0)
    return torch.stack([greater, tied, lower])


def _inside(layout: _Layout, start: int, stop: int) -> Tensor:
    """(P,) whether the image of a pair lies in the block."""
    return (layout.pair_image >= start) & (layout.pair_image < stop)


def _per_string(matrix: Tensor, layout: _Layout, chunk: int) -> Tensor:
    """(N, M) caption scores as (N, U) string scores, checking that equal strings score the same."""
    distinct = matrix.index_select(1, layout.first)
    for start in range(0, len(matrix), chunk):  # in blocks, to bound the memory of the copy
        rows = slice(start, start + chunk)
        unequal = (distinct[rows].index_select(1, layout.text_ids) != matrix[rows]).nonzero()
        if len(unequal):
            row, caption = unequal[0].tolist()
            raise ValueError(
                f"image {start + row}: captions {int(layout.first[layout.text_ids[caption]])} and {caption} have the "
                "same string but different scores; score each distinct string once and pass columns='strings'"
            )
    return distinct


def _normalised(embeddings: Tensor, what: str) -> Tensor:
    embeddings = embeddings.float()
    norms = torch.linalg.vector_norm(embeddings, dim=1, keepdim=True)
    bad = (~(norms.isfinite() & (norms > 0))).nonzero()
    if len(bad):
        row = int(bad[0, 0])
        raise ValueError(
            f"{what} embedding {row} has norm {float(norms[row])} ({len(bad)} such of {len(norms)}); expected finite "
            "and above 0. The model has diverged or collapsed: look at the loss, lower the learning rate"
        )
    return embeddings / norms


def _whole(values: Any, name: str) -> NDArray[np.int64]:
    array = np.asarray(values.cpu() if isinstance(values, Tensor) else values)
    if array.ndim != 1 or not len(array) or array.dtype.kind not in "iu" or array.min() < 0:
        raise ValueError(
            f"{name} is {array.dtype}{array.shape}, expected a non-empty list of whole numbers from 0 up, one a caption"
        )
    return array.astype(np.int64)


def _int32(tensor: Tensor) -> NDArray[np.int32]:
    return tensor.cpu().numpy().astype(np.int32)


@contextmanager
def _plain_fp32(device: torch.device) -> Iterator[None]:
    """True fp32 products: no autocast, no TF32, no bf16 passes, whatever training has switched on."""
    with torch.autocast(device.type, enabled=False):
        if hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # torch >= 2.9; its getter refuses the older API
            switches = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
            before = [switch.fp32_precision for switch in switches]
            try:
                for switch in switches:
                    switch.fp32_precision = "ieee"
                yield
            finally:
                for switch, value in zip(switches, before, strict=True):
                    switch.fp32_precision = value
        else:
            level = torch.get_float32_matmul_precision()
            try:
                torch.set_float32_matmul_precision("highest")
                yield
            finally:
                torch.set_float32_matmul_precision(level)
