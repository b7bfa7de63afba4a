"""What a check of the contract can say, and how an error in a method's code becomes an outcome."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from petlbench.errors import PetlbenchError
from petlbench.harness.audit import AuditError
from petlbench.methods.base import Method


class ContractError(PetlbenchError):
    """A method breaks its contract."""


class NotApplicable(Exception):
    """A check says nothing about this method; the message says why."""


@dataclass(frozen=True)
class Check:
    """The outcome of one check.

    Attributes:
        name: Short name of what was checked.
        outcome: Whether the contract is kept.
        message: What was found, or what is wrong and how to mend it.
        subject: Backbone and preset it ran on; empty for what the class declares.
    """

    name: str
    outcome: Literal["ok", "failed", "not applicable"]
    message: str
    subject: str = ""


def attempt(name: str, function: Callable[[], str], cls: type[Method], subject: str = "") -> Check:
    """Run one check; whatever a method's code raises is reported as a failure, with the place."""
    try:
        return Check(name, "ok", function(), subject)
    except NotApplicable as reason:
        return Check(name, "not applicable", str(reason), subject)
    except (PetlbenchError, AuditError) as error:
        return Check(name, "failed", str(error).removeprefix(f"audit of {cls.name}: "), subject)
    except Exception as error:
        return Check(name, "failed", f"{type(error).__name__}: {error} ({_place(error, cls)})", subject)


def _place(error: Exception, cls: type[Method]) -> str:
    """The innermost line of the method's own file, else the innermost line at all."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if Path(f.filename) == Path(inspect.getfile(cls))]
    frame = (own or frames)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"
