"""`Header` and `Payload`: what a parameter may be read from, besides what fills it anyway."""

from __future__ import annotations

import msgspec


class Header(msgspec.Struct, frozen=True):
    """`tenant: Annotated[str, Header("x-tenant")]`: the header of that name, in an actor or a dependency.

    Its text is converted to the type of the parameter, which may be a number, a bool, a date, an enum and the like. A
    message without it, or with another kind of text, does not fit and becomes a dead letter at once, unless the
    parameter has a default for the first.
    """

    name: str


class Payload(msgspec.Struct, frozen=True):
    """`order: Annotated[int, Payload()]`: a parameter of a dependency that is filled from the payload, as an actor's
    are.

    `name`: of the field; default: the parameter's name. The field may fill a parameter of the actor, too. A message
    without it does not fit, unless the parameter has a default.
    """

    name: str | None = None
