"""Noun phrases, clauses and relations: how a world puts the facts of a scene into words."""

from __future__ import annotations

from collections.abc import Sequence

from petlbench.datasets.scenes import plain
from petlbench.datasets.scenes.dice import Dice
from petlbench.datasets.scenes.lexicon import (
    ARRANGEMENTS,
    COLOUR_WORDS,
    DIRECTIONS,
    GROUNDS,
    LINEAR,
    MASS,
    NOUNS,
    NUMBERS,
    OTHER_VERBS,
    POSITIONS,
    RELATION_PREPOSITIONS,
    RELATION_VERBS,
    VERBS,
    Verb,
)
from petlbench.datasets.scenes.model import Group, Relation, Scene

TEXTURES = frozenset({"dunes", "canopy", "grassland", "mountains"})
TEXTURE_VERBS: tuple[Verb, ...] = (
    ("stretches across the picture", "stretch across the picture"),
    ("covers the land", "cover the land"),
)
LABEL_PREPOSITIONS = {
    **dict.fromkeys(
        ("airport", "port", "railway station", "resort", "playground", "baseball field", "stadium", "storage tanks",
         "tennis court", "roundabout", "viaduct", "bridge"), "at",
    ),
    **dict.fromkeys(("beach", "golf course", "farmland"), "on"),
}  # fmt: skip


def with_article(phrase: str) -> str:
    """``a`` or ``an`` and the phrase."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


class Voice:
    """How one world speaks about one scene.

    Args:
        scene: The facts.
        dice: Chooses among true wordings.
    """

    def __init__(self, scene: Scene, dice: Dice):
        self.scene = scene
        self.dice = dice
        self.world = scene.world
        self.said: set[tuple[int, str]] = set()  # the facts of the caption being made
        self.sceneries = 0  # how often it names the scenery
        told = [g for g in scene.groups if g.rank < 2]
        self.told = sorted(told, key=lambda g: g.rank)
        self.subjects = [g for g in self.told if g.rank == 0] or self.told
        self.others = [g for g in self.told if g.rank == 1]
        kinds = [g.kind for g in scene.groups]
        self._alone = {kind for kind in kinds if kinds.count(kind) == 1}

    # -- phrases ---------------------------------------------------------------------------------

    def colour(self, name: str) -> str:
        """A word for a colour."""
        return self.dice.pick(COLOUR_WORDS[self.world].get(name, (name,)))

    def phrase(self, group: Group) -> str:
        """Number, trait, colour, noun. The number is left out where it would not be the whole truth."""
        self.said.add((id(group), "what"))
        words = [group.trait] if group.trait else []
        if group.arrangement == "parallel" and group.count > 1:
            words.append("parallel")
        if group.colour and (group.kind not in ("plaza", "container") or self.dice.chance(0.7)):
            words.append(self.colour(group.colour))
        if group.kind in MASS:
            return " ".join([*words, MASS[group.kind][0]])
        singular, plural = self.dice.pick(NOUNS[self.world][group.kind])
        exact = group.counted and group.kind in self._alone
        if group.count == 1:
            phrase = " ".join([*words, singular])
            return f"one {phrase}" if exact and self.dice.chance(0.12) else with_article(phrase)
        if exact and group.count < len(NUMBERS):
            return " ".join([NUMBERS[group.count], *words, plural])
        lead = ["many"] if group.count >= 10 else []
        return " ".join([*lead, *words, plural])

    def plural(self, group: Group) -> bool:
        """Whether the group takes a plural verb."""
        return MASS[group.kind][1] if group.kind in MASS else group.count > 1

    def verb(self, group: Group, options: tuple[Verb, ...] | None = None) -> str:
        """A verb in agreement with the group."""
        singular, plural = self.dice.pick(options or VERBS.get(group.kind, OTHER_VERBS))
        return plural if self.plural(group) else singular

    def arranged(self, group: Group) -> str | None:
        """``in a row`` and the like."""
        if group.count < 2 or not group.arrangement or (group.arrangement == "scattered" and group.count < 3):
            return None
        options = ARRANGEMENTS[self.world].get(group.arrangement)
        if not options:
            return None
        self.said.add((id(group), "arrangement"))
        return self.dice.pick(options)

    def placed(self, group: Group) -> str | None:
        """``in the north``, ``in the middle``, or for long things ``from north to south``."""
        if group.position or group.direction:
            self.said.add((id(group), "place"))
        if group.direction and group.kind in LINEAR:
            return self.dice.pick(DIRECTIONS[self.world][group.direction])
        return self.dice.pick(POSITIONS[self.world][group.position]) if group.position else None

    def scenery(self) -> str:
        """The class with its article, or the ground of a collage."""
        label = self.scene.label
        self.sceneries += 1
        if label is None:
            return self.floor()
        phrases = plain.CLASS_PHRASES if self.world == "scenes" else plain.OTHER_CLASS_PHRASES
        return self.dice.pick(phrases[label])

    def floor(self) -> str:
        """The ground."""
        self.said.add((0, "ground"))
        return self.dice.pick(GROUNDS[self.scene.ground, self.scene.ground_colour])

    def within(self) -> str:
        """``in a forest``, ``at an airport``, ``on green grass``: the scenery with its preposition."""
        label = self.scene.label
        return f"{'on' if label is None else LABEL_PREPOSITIONS.get(label, 'in')} {self.scenery()}"

    def clause(self, group: Group) -> str:
        """The group, its verb, and where or how it lies."""
        phrase, placed = self.phrase(group), self.placed(group)
        if group.kind in TEXTURES:
            return f"{phrase} {self.verb(group, TEXTURE_VERBS)}"
        if group.arrangement == "scattered" and group.count > 2:
            self.said.add((id(group), "arrangement"))
            return f"{phrase} are {self.dice.pick(('scattered', 'spread out'))} {placed or self.within()}"
        arranged = self.arranged(group)
        driving = group.kind in ("car", "truck") and any(
            r.word == "on" and self.scene.groups[r.subject] is group for r in self.scene.relations
        )
        tail = " ".join(part for part in (arranged, placed) if part)
        if driving or not tail:
            seen = self.dice.pick(("can be seen", "are visible" if self.plural(group) else "is visible"))
            return f"{phrase} {seen} {tail or self.within()}"
        return f"{phrase} {self.verb(group)} {tail}"

    def related(self, relation: Relation) -> str:
        """A relation as a clause."""
        self.said.add((id(relation), "relation"))
        subject, target = self.scene.groups[relation.subject], self.scene.groups[relation.object]
        options = RELATION_VERBS[relation.word]
        if relation.word in ("beside", "near") and subject.kind in VERBS and self.dice.chance(0.65):
            preposition = self.dice.pick(RELATION_PREPOSITIONS[relation.word])
            options = tuple((f"{one} {preposition}", f"{many} {preposition}") for one, many in VERBS[subject.kind])
        if relation.word == "along" and subject.kind in LINEAR:
            options = (("runs along", "run along"), ("follows", "follow"))
        if relation.word == "on" and subject.kind in ("boat", "ship"):
            options = (("floats on", "float on"),)
        if relation.word == "in" and target.kind in ("dunes", "mountains"):
            options = (("lies among", "lie among"),)
        if relation.word == "around" and subject.kind == "running track":
            options = (("surrounds", "surround"), ("encloses", "enclose"))
        if relation.word == "on" and subject.kind == "tree":
            options = (("grows on", "grow on"), ("stands on", "stand on"))
        if relation.word == "around" and subject.kind not in ("tree", "palm", "running track", "bunker"):
            options = (("stands around", "stand around"),)
        return f"{self.phrase(subject)} {self.verb(subject, options)} {self.phrase(target)}"


def listed(parts: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join((", ".join(parts[:-1]), parts[-1])) if len(parts) > 1 else parts[0]
