"""Write the tables of methods into README.md and methods/README.md: ``python scripts/methods_readme.py``.

Names, papers and sizes come from the classes themselves, step costs from ``results/step_cost.json`` (measured by
``benchmarks/step_cost.py``), so that nothing is said twice. ``--check`` writes nothing and ends with exit code 1 if a
table is out of date.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path

from petlbench.harness.variants import Size, measure, reference, share
from petlbench.methods import registry
from petlbench.methods.backbones.random_models import random_clip, random_two_tower, random_vilt
from petlbench.methods.base import Family, Method

ROOT = Path(__file__).resolve().parent.parent
COSTS = ROOT / "results" / "step_cost.json"
FILES = {"README.md": "short", "methods/README.md": "long"}
START = "<!-- methods: written by scripts/methods_readme.py -->"
END = "<!-- end of methods -->"
KINDS = {"open_clip": "CLIP", "two_tower": "two-tower", "swin_bert": "Swin-BERT", "vilt": "ViLT"}
_TITLE = 40
"""Characters from which what stands before the first comma is no list of authors."""
FAMILIES: tuple[Family, ...] = ("baseline", "head", "selective", "reparameterisation", "prompt", "adapter", "fusion")


def tables() -> dict[str, str]:
    """The short and the long table, by name; every method is built and counted on the shape of its reference."""
    known = registry.discover()
    classes = [registry.load(source) for source in known.values() if source.builtin]
    classes.sort(key=lambda c: (FAMILIES.index(c.family), c.name))
    sizes = {c.name: measure(c, {}, reference(c)) for c in classes}
    return {
        "short": _table(
            ["method", "kind", "paper", "trained on B/32", "%", "step time", "step memory"],
            [_short(c, sizes[c.name]) for c in classes],
            "lllrrrr",
        ),
        "long": _table(
            [
                "method",
                "trained on B/32",
                "forms",
                "starts at zero-shot",
                "added at inference",
                "on",
                "paper",
                "code",
            ],
            [_long(c, sizes[c.name]) for c in classes],
            "lrlcclll",
        ),
    }


def updated(text: str, table: str, name: str = "README.md") -> str:
    """A page with a new table between its two marks.

    Raises:
        ValueError: A mark is missing.
    """
    if text.count(START) != 1 or text.count(END) != 1:
        raise ValueError(f"{name}: expected one line {START} and one line {END}; put them back around the table")
    head, tail = text.split(START)[0], text.split(END)[1]
    return f"{head}{START}\n{table}\n{END}{tail}"


def _short(cls: type[Method], size: Size) -> list[str]:
    percent = share(size.trainable, cls)
    cost = costs().get(cls.name, {})
    return [
        f"[`{cls.name}`](methods/{cls.name}.py)",
        cls.family,
        _cite(cls.paper),
        _number(size.trainable),
        "-" if percent is None else f"{percent:.3f}" if percent < 10 else f"{percent:.1f}",
        *(f"{cost[key]:.2f}" if cost.get(key) else "-" for key in ("step", "memory")),
    ]


def _long(cls: type[Method], size: Size) -> list[str]:
    code = f"[{cls.code}](https://github.com/{cls.code})" if cls.code.count("/") == 1 else cls.code
    return [
        f"[{cls.title}]({cls.name}.py) `{cls.name}`",
        _number(size.trainable),
        "<br>".join(f"{name} {variant.trainable:,}" for name, variant in cls.variants.items()),
        "yes" if cls.identity_start else "no",
        "its modules" if _adds(cls) else "nothing",
        ", ".join(KINDS[k] for k in cls.kinds),
        cls.paper,
        code + (f" ({cls.licence})" if cls.licence else ""),
    ]


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _cite(paper: str) -> str:
    """Authors and venue with year, from "Authors, Title, Venue Year"."""
    first, *rest = paper.split(",")
    if not rest:
        return paper
    venue = rest[-1].strip()
    return f"{first}, {venue}" if len(first) < _TITLE else venue  # a paper cited by its title alone


@cache
def costs() -> dict[str, dict[str, float]]:
    """Ratios to full fine-tuning by method; empty where nothing was measured yet."""
    return json.loads(COSTS.read_text(encoding="utf-8"))["methods"] if COSTS.exists() else {}


def _adds(cls: type[Method]) -> bool:
    """Whether inference with a trained model needs more than the backbone; seen on a small one."""
    makers = {"open_clip": random_clip, "two_tower": random_two_tower, "vilt": random_vilt}
    method, backbone = cls(), next(make for kind, make in makers.items() if kind in cls.kinds)()
    before = sum(p.numel() for p in backbone.parameters())
    return method.added_at_inference(sum(p.numel() for p in method.build(backbone).parameters()) - before) > 0


def _table(headers: list[str], rows: list[list[str]], align: str) -> str:
    rule = {"l": "---", "r": "---:", "c": ":---:"}
    lines = [headers, [rule[a] for a in align], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def main() -> int:
    """Write, or with ``--check`` compare."""
    found = tables()
    stale = []
    for name, kind in FILES.items():
        path = ROOT / name
        text = path.read_text(encoding="utf-8")
        new = updated(text, found[kind], name)
        if new != text:
            stale.append(name)
            if "--check" not in sys.argv[1:]:
                path.write_text(new, encoding="utf-8")
    if "--check" in sys.argv[1:] and stale:
        print(f"{', '.join(stale)} out of date; run python scripts/methods_readme.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
