"""All that a method says of itself, as plain values: what `benchmark ls methods` prints."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

if TYPE_CHECKING:
    from petlbench.harness.variants import Size
    from petlbench.methods.backbones.base import Backbone
    from petlbench.methods.base import Method

Counted = Callable[["type[Method]", Mapping[str, Any], "Backbone"], "Size"]


def overview(cls: type[Method], origin: str, backbone: Backbone) -> dict[str, Any]:
    """One row of the table; nothing is built, the count is the method's closed form.

    Args:
        cls: The method.
        origin: Where it comes from.
        backbone: What it is counted on, in shape only (:func:`petlbench.harness.variants.reference`).
    """
    from petlbench.harness.variants import declared

    return _row(cls, origin, backbone, declared)


def description(cls: type[Method], origin: str, backbone: Backbone) -> dict[str, Any]:
    """Everything, with the sizes of the default form, of every preset and of every variant as measured by building it.

    Args:
        cls: The method.
        origin: Where it comes from.
        backbone: What it is counted on, in shape only (:func:`petlbench.harness.variants.reference`).
    """
    from petlbench.harness.variants import measure as build_and_count

    known: dict[str, Size] = {}

    def measure(cls: type[Method], options: Mapping[str, Any], backbone: Backbone) -> Size:
        form = cls.Config.model_validate(dict(options)).model_dump_json()  # presets and variants often share a form
        if form not in known:
            known[form] = build_and_count(cls, options, backbone)
        return known[form]

    row = _row(cls, origin, backbone, measure)
    row["presets"] = {name: _preset(cls, name, backbone, measure) for name in cls.presets}
    row["variants"] = {
        name: {
            "method": dict(variant.method),
            **_size(cls, measure(cls, variant.method, backbone)),
            "declared": variant.trainable,
            "note": variant.note,
        }
        for name, variant in cls.variants.items()
    }
    row["space"] = {key: {"kind": domain.kind, "values": list(domain.values)} for key, domain in cls.space.items()}
    row["published"] = [
        {
            "dataset": p.dataset,
            "source": p.source,
            "values": list(p.values),
            "trainable": p.trainable,
            "selection": p.selection,
            "seen": p.seen,
        }
        for p in cls.published
    ]
    return row


def fields_of(config: type[BaseModel]) -> dict[str, dict[str, str]]:
    """Type, default and documentation of each setting, as text."""
    docs = _attribute_docs(config)
    found = {}
    for name, field in config.model_fields.items():
        default = field.get_default(call_default_factory=True) if not field.is_required() else PydanticUndefined
        found[name] = {
            "type": inspect.formatannotation(field.annotation).replace("typing.", ""),
            "default": "required" if default is PydanticUndefined else str(default),
            "doc": field.description or docs.get(name, ""),
        }
    return found


def _row(cls: type[Method], origin: str, backbone: Backbone, counted: Counted) -> dict[str, Any]:
    from petlbench.harness.variants import reference_name

    return {
        "name": cls.name,
        "title": cls.title,
        "family": getattr(cls, "family", "not stated"),
        **_size(cls, counted(cls, {}, backbone)),
        "counted_on": reference_name(cls),
        "backbones": ", ".join(cls.kinds),
        "presets": ", ".join(cls.presets),
        "origin": origin,
        "paper": cls.paper,
        "code": cls.code,
        "licence": cls.licence,
        "description": inspect.getdoc(cls) or "",
        "config": {name: field["default"] for name, field in fields_of(cls.Config).items()},
        "space": sorted(cls.space),
        "choices": list(cls.choices),
        "official": cls.official,
    }


def _size(cls: type[Method], size: Size) -> dict[str, Any]:
    from petlbench.harness.variants import share

    found: dict[str, Any] = {"trainable": size.trainable, "total": size.total, "percent": share(size.trainable, cls)}
    return found | ({"reason": size.reason} if size.reason else {})


def _preset(cls: type[Method], name: str, backbone: Backbone, measure: Counted) -> dict[str, Any]:
    from petlbench.methods.recipe import Recipe

    preset = cls.presets[name]
    options = cls.Config.model_validate(dict(preset.method)).model_dump(mode="json")
    recipe = Recipe.model_validate(dict(preset.train)).model_dump(mode="json")
    return {"method": options, "train": recipe, **_size(cls, measure(cls, preset.method, backbone))}


def _attribute_docs(cls: type) -> dict[str, str]:
    """The strings under the fields of a class and of the classes it inherits from, by field."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base is BaseModel or not (inspect.isclass(base) and issubclass(base, BaseModel)):
            continue
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        except (OSError, SyntaxError):
            continue  # made without a source file: there is nothing to read
        assert isinstance(body, ast.ClassDef)
        for field, doc in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(doc, ast.Expr)
                and isinstance(doc.value, ast.Constant)
                and isinstance(doc.value.value, str)
            ):
                docs[field.target.id] = inspect.cleandoc(doc.value.value).replace("\n", " ")
    return docs
