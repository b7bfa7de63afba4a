"""Write the table of methods into methods/README.md, from the registry: ``python scripts/methods_readme.py``.

Everything in it comes from the classes themselves, so that a method is described in one place only. ``--check`` writes
nothing and ends with exit code 1 if the table is out of date.
"""

from __future__ import annotations

import sys
from pathlib import Path

from petlbench.methods import registry
from petlbench.methods.backbones.base import DualEncoder
from petlbench.methods.backbones.random_models import random_clip, random_two_tower
from petlbench.methods.backbones.registry import load_backbone
from petlbench.methods.base import Method

README = Path(__file__).resolve().parent.parent / "methods" / "README.md"
START = "<!-- methods: written by scripts/methods_readme.py -->"
END = "<!-- end of methods -->"
KINDS = {"open_clip": "CLIP", "two_tower": "two-tower"}


def vit_b_32() -> DualEncoder:
    """CLIP ViT-B/32 in shape only, described as what its published weights are: aligned."""
    backbone = load_backbone("ViT-B-32", pretrained="random")
    backbone.provenance = backbone.provenance.model_copy(update={"aligned": True})
    return backbone.to("meta")


def table(backbone: DualEncoder) -> str:
    """The built-in methods as a Markdown table.

    Args:
        backbone: Gives the widths and depths for the number of trained parameters; never built on.
    """
    lines = [
        "| method | trained on ViT-B/32 | starts at zero-shot | added at inference | backbones | paper | reference code |",
        "| --- | ---: | :---: | :---: | --- | --- | --- |",
    ]
    for name, source in registry.discover().items():
        if source.builtin:
            lines.append(_line(name, registry.load(source), backbone))
    return "\n".join(lines)


def updated(text: str, backbone: DualEncoder) -> str:
    """The README with a new table between its two marks.

    Raises:
        ValueError: A mark is missing.
    """
    if text.count(START) != 1 or text.count(END) != 1:
        raise ValueError(f"{README}: expected one line {START} and one line {END}; put them back around the table")
    head, tail = text.split(START)[0], text.split(END)[1]
    return f"{head}{START}\n{table(backbone)}\n{END}{tail}"


def _line(name: str, cls: type[Method], backbone: DualEncoder) -> str:
    method = cls()
    trained = method.expected_trainable(backbone) if backbone.provenance.kind in cls.kinds else None
    code = f"[{cls.code}](https://github.com/{cls.code})" if cls.code.count("/") == 1 else cls.code
    cells = [
        f"[{cls.title}]({name}.py) `{name}`",
        "-" if trained is None else f"{trained:,}",
        "yes" if cls.identity_start else "no",
        "its modules" if _adds(cls) else "nothing",
        ", ".join(KINDS[k] for k in cls.kinds),
        cls.paper,
        code + (f" ({cls.licence})" if cls.licence else ""),
    ]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _adds(cls: type[Method]) -> bool:
    """Whether inference with a trained model needs more than the backbone; seen on a small one."""
    method, backbone = cls(), random_clip() if "open_clip" in cls.kinds else random_two_tower()
    before = sum(p.numel() for p in backbone.parameters())
    return method.added_at_inference(sum(p.numel() for p in method.build(backbone).parameters()) - before) > 0


def main() -> int:
    """Write, or with ``--check`` compare."""
    text = README.read_text(encoding="utf-8")
    new = updated(text, vit_b_32())
    if "--check" in sys.argv[1:]:
        if new != text:
            print(f"{README.name} is out of date; run python scripts/methods_readme.py", file=sys.stderr)
        return int(new != text)
    README.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
