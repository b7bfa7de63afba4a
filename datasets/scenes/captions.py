"""Captions: five different sentences about a scene, each made of facts of its description only."""

from __future__ import annotations

import math
from collections.abc import Callable

from petlbench.datasets.scenes import plain
from petlbench.datasets.scenes.dice import Dice
from petlbench.datasets.scenes.geometry import compass
from petlbench.datasets.scenes.lexicon import (
    LINEAR,
    MASS,
    RELATION_PREPOSITIONS,
)
from petlbench.datasets.scenes.model import Group, Scene
from petlbench.datasets.scenes.voice import Voice, listed
from petlbench.datasets.scenes.worlds import world_named

_WORDS = 2  # the random stream of captions, apart from those of facts (0) and looks (1)
CAPTIONS_PER_PICTURE = 5
GROUNDED = frozenset(
    {"diamond", "running track", "tennis", "stadium", "lake", "pond", "church", "tank", "warehouse", "house",
     "roundabout", "pivot", "bunker"}
)  # fmt: skip
"""Subjects that stand directly on the scene's ground."""

Template = Callable[[Voice], "str | None"]


def _with(v: Voice) -> str | None:
    """The class with its subject and something else."""
    first = v.dice.pick(v.subjects)
    if first.kind in MASS and not v.others:
        return None
    rest = [g for g in v.told if g is not first and g.kind != first.kind]
    tells_little = first.kind in ("canopy", "grassland") or (first.kind in MASS and v.dice.chance(0.5))
    parts = [] if tells_little else [v.phrase(first)]
    v.dice.shuffle(rest)
    for group in rest[: v.dice.integer(0 if parts else 1, 2)]:
        if not any(other.kind == group.kind for other in rest if other is not group):
            parts.append(v.phrase(group))
    if not parts:
        return None
    if v.scene.label is None:
        return f"{listed(parts)} on {v.scenery()}"
    return f"{v.scenery()} with {listed(parts)}"


def _relation(v: Voice) -> str | None:
    """A spatial relation as a sentence."""
    return v.related(v.dice.pick(v.scene.relations)) if v.scene.relations else None


def _main_relation(v: Voice) -> str | None:
    """A relation of the subject, without a verb where the language allows."""
    main = [r for r in v.scene.relations if v.scene.groups[r.subject].rank == 0]
    if not main:
        return None
    relation = v.dice.pick(main)
    prepositions = RELATION_PREPOSITIONS.get(relation.word)
    if prepositions is None or v.dice.chance(0.4):
        return v.related(relation)
    subject, target = v.scene.groups[relation.subject], v.scene.groups[relation.object]
    parts = [v.phrase(subject), v.arranged(subject), v.dice.pick(prepositions), v.phrase(target)]
    return " ".join(part for part in parts if part)


def _subject(v: Voice) -> str | None:
    """The subject and where it is."""
    return v.clause(v.dice.pick(v.subjects))


def _other(v: Voice) -> str | None:
    """Something beside the subject."""
    return v.clause(v.dice.pick(v.others)) if v.others else None


def _there(v: Voice) -> str | None:
    """``There are`` and a group."""
    group = v.dice.pick(v.told)
    if group.kind in MASS:
        return None
    parts = ["there", "are" if v.plural(group) else "is", v.phrase(group), v.arranged(group)]
    if group.kind not in LINEAR:
        parts.append(v.placed(group))
    if parts[-1] is None:
        parts.append(v.within())
    return " ".join(part for part in parts if part)


def _pair(v: Voice) -> str | None:
    """Two groups in one sentence."""
    if len(v.told) < 2:
        return None
    first = v.dice.pick(v.subjects)
    rest = [g for g in v.told if g.kind != first.kind and (g.position != first.position or not g.position)]
    if not rest:
        return None
    return f"{v.clause(first)}, and {v.clause(v.dice.pick(rest))}"


def _compare(v: Voice) -> str | None:
    """One group lies to the north (and so on) of another."""
    compact = [g for g in v.told if g.position and g.kind not in MASS and g.kind not in LINEAR]
    pairs = []
    for a in compact:
        for b in compact:
            if a.kind != b.kind:
                (ax, ay), (bx, by) = _centre(a), _centre(b)
                if math.hypot(ax - bx, ay - by) > 30:
                    pairs.append((a, b, compass(math.degrees(math.atan2(ay - by, ax - bx)))))
    if not pairs:
        return None
    a, b, side = v.dice.pick(pairs)
    return f"{v.phrase(a)} {v.verb(a, (('is', 'are'), ('lies', 'lie')))} {side} of {v.phrase(b)}"


def _centre(group: Group) -> tuple[float, float]:
    return sum(i.x for i in group.items) / group.count, sum(i.y for i in group.items) / group.count


def _ground(v: Voice) -> str | None:
    """The subject and the ground around it."""
    group = v.dice.pick(v.subjects)
    if group.kind not in GROUNDED or v.scene.label == "dense residential":
        return None
    verb = v.verb(group, (("is surrounded by", "are surrounded by"), ("lies on", "lie on")))
    if group.kind in ("lake", "pond"):
        verb = "are surrounded by" if v.plural(group) else "is surrounded by"
    return f"{v.phrase(group)} {verb} {v.floor()}"


def _view(v: Voice) -> str | None:
    """`pretrain` only: a heading, then what is there."""
    groups = list(v.told)
    v.dice.shuffle(groups)
    kinds = [g.kind for g in groups]
    parts = [v.phrase(g) for g in groups[: v.dice.integer(1, 3)] if kinds.count(g.kind) == 1]
    if not parts:
        return None
    lead = "" if v.scene.label is None else f"{v.scenery()}: "
    return f"{lead}{listed(parts)}"


def _seen(v: Voice) -> str | None:
    """`pretrain` only: what one can see from above."""
    group = v.dice.pick(v.told)
    parts = [v.phrase(group), v.arranged(group), None if group.kind in LINEAR else v.placed(group)]
    text = " ".join(part for part in parts if part)
    return f"{v.dice.pick(('from above we see', 'the picture shows', 'one can make out'))} {text}"


TEMPLATES: dict[str, tuple[tuple[Template, ...], ...]] = {
    "scenes": (
        (_with,),
        (_main_relation, _subject),
        (_other, _relation),
        (_compare, _ground, _there),
        (_pair, _relation, _there, _with),
    ),
    "pretrain": (
        (_view,),
        (_seen, _subject),
        (_seen, _main_relation),
        (_compare, _with, _there),
        (_view, _relation, _pair),
    ),
}
"""Per world, one tuple of interchangeable templates for each of the five captions."""


def _finished(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def captions(scene: Scene) -> tuple[str, ...]:
    """Five different captions of a scene.

    Every count, colour, place and relation in them is one of ``scene``'s facts. At the rate of the world's ``plain``
    one of the five is a plain caption of the class, which other pictures share.

    Raises:
        RuntimeError: The scene holds too few facts for five different captions (a fault of its layout).
    """
    world = world_named(scene.world)
    dice = Dice(world.key, scene.seed, scene.index, _WORDS)
    voice = Voice(scene, dice)
    found: list[str] = []
    told: list[set[tuple[int, str]]] = []
    if scene.label is not None and dice.chance(world.plain):
        stock = plain.PLAIN if scene.world == "scenes" else plain.OTHER_PLAIN
        found.append(dice.pick(stock[scene.label]))
    slots = list(TEMPLATES[scene.world][: CAPTIONS_PER_PICTURE - len(found)])
    everything = tuple({template: None for slot in TEMPLATES[scene.world] for template in slot})
    for slot in slots:
        least = 2 if dice.chance(world.terse) else 3
        for attempt in range(90):
            voice.said, voice.sceneries = set(), 0
            text = dice.pick(slot if attempt < 8 else everything)(voice)
            if not text or _finished(text) in found or voice.sceneries > 1:
                continue
            wanted = 1 if attempt > 75 else 2 if attempt > 45 else least
            if len(voice.said) >= wanted and (attempt > 75 or voice.said not in told):
                told.append(voice.said)
                found.append(_finished(text))
                break
        else:
            raise RuntimeError(f"{scene.world} scene {scene.seed}/{scene.index} ({scene.label}): only {found}")
    dice.shuffle(found)
    return tuple(found)
