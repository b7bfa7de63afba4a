"""A gallery: what one or two methods answer to chosen queries, beside what is right."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from PIL import Image

from petlbench.datasets.split import Split, class_name
from petlbench.harness.gallery_choose import WAYS, Choice, GalleryError, Way, choose
from petlbench.harness.gallery_data import Told
from petlbench.harness.metrics import DEFINITION, Ranks

Mark = Literal["hit", "duplicate"]
"""``hit``: the right answer. ``duplicate``: a caption whose string is one of the picture's own, or a picture that owns the
caption's string; right to a reader, a miss by the strict rule."""

SIDE = 160
"""Longer side of the pictures in a gallery, pixels."""

_QUALITY = 82


@dataclass(frozen=True)
class Item:
    """A picture or a caption.

    Attributes:
        place: In the split, from 0.
        text: The caption, or the name of the picture.
        label: Scene class of the picture, or of the caption's picture; empty where unknown.
        mark: Whether it answers the query; None where it does not, or where it is not an answer.
    """

    place: int
    text: str
    label: str
    mark: Mark | None = None


@dataclass(frozen=True)
class Side:
    """What one method answers.

    Attributes:
        rank: Of the right answer, from 1.
        duplicate_rank: Of the first answer that is right or a duplicate, from 1.
        answers: The first ones, best first.
    """

    rank: int
    duplicate_rank: int
    answers: tuple[Item, ...]


@dataclass(frozen=True)
class Question:
    """A query, what is right, and what the methods answer.

    Attributes:
        way: ``i2t`` asks with a picture for captions, ``t2i`` with a caption for pictures.
        query: The picture or caption.
        truth: The right answers: all own captions, or the one picture.
        duplicates: Captions or pictures that count as duplicates.
        sides: One per method.
    """

    way: Way
    query: Item
    truth: tuple[Item, ...]
    duplicates: int
    sides: tuple[Side, ...]


@dataclass(frozen=True, eq=False)
class Gallery:
    """All that a page or a picture shows.

    Attributes:
        data: Title of the data set and its number of test pictures and captions.
        names: One per method, distinct.
        about: Facts per method: recalls, record, whether it was built again.
        chosen: How the queries were chosen, one sentence.
        questions: In the order chosen, image to text first.
        thumbnails: JPEG of every picture that is shown, by place.
        definition: How ranks are counted.
    """

    data: str
    names: tuple[str, ...]
    about: tuple[str, ...]
    chosen: str
    questions: tuple[Question, ...]
    thumbnails: dict[int, bytes] = field(repr=False)
    definition: str = DEFINITION


def make_gallery(told: Sequence[Told], choice: Choice, ways: Iterable[Way] = WAYS, top: int = 5) -> Gallery:
    """Choose queries and look up what was answered.

    Args:
        told: One or two records whose ranks hold at least ``top`` first answers.
        choice: Which queries; per direction.
        ways: Directions.
        top: Answers per query.

    Raises:
        GalleryError: The records do not share a split, or nothing can be chosen.
        DataError: A picture cannot be decoded.
    """
    if not 1 <= len(told) <= 2:
        raise GalleryError(f"a gallery shows one or two records, not {len(told)}")
    first = told[0]
    for other in told[1:]:
        if other.split.sha256 != first.split.sha256:
            raise GalleryError(
                f"{first.path} and {other.path} were tested on different splits (hash {first.split.sha256[:12]} and "
                f"{other.split.sha256[:12]}), so their answers do not compare"
            )
    questions = []
    for way in ways:
        ranks = [_ranks(one.answers, way) for one in told]
        same = np.arange(len(first.split.images)) if way == "i2t" else first.split.text_ids
        chosen = choose(choice, way, ranks[0], ranks[1] if len(ranks) > 1 else None, same.tolist())
        questions += [_question(told, way, place, top) for place in chosen]
    if not questions:
        raise GalleryError(
            "no query fits the choice: every right answer comes first, or both methods rank alike; try --random K"
        )
    return Gallery(
        data=_data(first),
        names=_names(told),
        about=tuple(_about(one) for one in told),
        chosen=_said(choice, len(told)),
        questions=tuple(questions),
        thumbnails=_thumbnails(first.split, questions),
    )


def thumbnail(picture: Image.Image) -> bytes:
    """A small JPEG made from the pixels alone: nothing else of the file comes along."""
    small = picture.convert("RGB")
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    clean = Image.fromarray(np.asarray(small))  # without the metadata of the file
    buffer = io.BytesIO()
    clean.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def _question(told: Sequence[Told], way: Way, place: int, top: int) -> Question:
    split = told[0].split
    sides = tuple(_side(one, way, place, top) for one in told)
    scored = told[0].scored
    if way == "i2t":
        own = np.flatnonzero(split.owner == place)
        others = np.isin(scored.text_ids, scored.text_ids[own]) & (split.owner != place)
        query, truth = picture(split, place), tuple(caption(split, at) for at in own.tolist())
        return Question(way, query, truth, int(others.sum()), sides)
    owner = int(split.owner[place])
    return Question(way, caption(split, place), (picture(split, owner),), len(_owners(told[0], place) - {owner}), sides)


def _owners(told: Told, place: int) -> set[int]:
    """Pictures that own the string of a caption."""
    text_ids = told.scored.text_ids
    return set(told.split.owner[text_ids == text_ids[place]].tolist())


def _side(told: Told, way: Way, place: int, top: int) -> Side:
    split, scored, ranks = told.split, told.scored, told.answers
    kept = ranks.i2t_top if way == "i2t" else ranks.t2i_top
    assert kept is not None  # the caller asked for them
    answers = []
    if way == "i2t":
        strings = set(scored.text_ids[split.owner == place].tolist())
        for at in kept[place, :top].tolist():
            own, twin = split.owner[at] == place, int(scored.text_ids[at]) in strings
            answers.append(caption(split, at, "hit" if own else "duplicate" if twin else None))
    else:
        owners = _owners(told, place)
        for at in kept[place, :top].tolist():
            right = at == split.owner[place]
            answers.append(picture(split, at, "hit" if right else "duplicate" if at in owners else None))
    return Side(int(_ranks(ranks, way)[place]) + 1, int(getattr(ranks, f"{way}_duplicate")[place]) + 1, tuple(answers))


def picture(split: Split, place: int, mark: Mark | None = None) -> Item:
    """A picture of a split."""
    return Item(place, split.images[place].name, _class(split, place), mark)


def caption(split: Split, place: int, mark: Mark | None = None) -> Item:
    """A caption of a split."""
    return Item(place, split.captions[place], _class(split, int(split.owner[place])), mark)


def _class(split: Split, image: int) -> str:
    if split.labels is None or split.labels[image] < 0:
        return ""
    return class_name(split.classes, int(split.labels[image]))


def _ranks(ranks: Ranks, way: Way) -> np.ndarray:
    return ranks.i2t_index if way == "i2t" else ranks.t2i_index


def _thumbnails(split: Split, questions: Iterable[Question]) -> dict[int, bytes]:
    shown = set()
    for question in questions:
        answers = [item.place for side in question.sides for item in side.answers]
        shown |= {question.query.place} if question.way == "i2t" else {question.truth[0].place, *answers}
    places = sorted(shown)
    with ThreadPoolExecutor() as pool:
        return dict(zip(places, pool.map(lambda at: thumbnail(split.images[at].open()), places), strict=True))


def _names(told: Sequence[Told]) -> tuple[str, ...]:
    names = [one.record.method.title for one in told]
    if len(set(names)) < len(names):
        names = [
            f"{one.record.method.title} ({one.record.spec['backbone']['name']}, s{one.record.spec['seed']})"
            for one in told
        ]
    if len(set(names)) < len(names):
        names = [f"{name} {one.record.spec_id[:8]}" for name, one in zip(names, told, strict=True)]
    return tuple(names)


def _about(told: Told) -> str:
    found = told.record.metrics["test"].recalls
    again = (
        ", answers of the model built again from its stored tensors"
        if told.rebuilt
        else ", answers stored with its ranks"
    )
    return (
        f"{told.name}: mR {found['mR']:.2f}, image-to-text R@1 {found['i2t_r1']:.2f}, text-to-image R@1 {found['t2i_r1']:.2f}; "
        f"record {told.path.name}{again}{''.join(f'; {note}' for note in told.notes)}"
    )


def _data(told: Told) -> str:
    data = told.record.data
    title = data.title if data else told.record.spec["dataset"]["name"]
    return f"{title}, test split: {len(told.split.images):,} pictures, {len(told.split.captions):,} captions"


def _said(choice: Choice, methods: int) -> str:
    if choice.rule == "query":
        return "Queries named by their number."
    if choice.rule == "random":
        return f"Queries drawn at random with seed {choice.seed}, {choice.count} per direction."
    if choice.rule == "failures":
        whose = "the method" if methods == 1 else "the better of the two methods"
        return (
            f"Failures: the queries whose right answer is ranked worst by {whose}, up to {choice.count} per direction."
        )
    return (
        f"The queries on which the methods differ most (by the ratio of their ranks), up to {choice.count} per direction, half "
        "of them in favour of either. They are chosen for their difference, so they say where the methods differ, not how often."
    )
