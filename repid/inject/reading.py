"""Parameters that are read from the message itself: `Header`, and for dependencies `Payload`.

Of an actor they are bound with its payload. A dependency's own are steps that read from the message, and are read once
before the run as well: so a message that lacks one is refused like any that does not fit, and is not tried again.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter
from typing import Any, NotRequired

import msgspec

from ..codec import JSON_CODEC, codec_and_payload, fault_of, origin_of
from ..envelope import Envelope
from ..errors import ConfigurationError, PayloadError
from .constraints import translate_constraints
from .hints import check_decodable, typed_dict
from .injected import INJECTED
from .markers import Header, Payload
from .message import Received


class Reader:
    """Reads one parameter from a message. Called with the message, as a dependency is.

    `field`: of the payload, if it is one. The parameter's default stands for what the message does not have. Raises
    `ConfigurationError`, whose text begins with `where`, for what cannot be read.
    """

    def __init__(self, parameter: Parameter, source: Header | Payload, hint: Any, where: str) -> None:
        self.parameter = parameter.name
        self.source = source
        self.field = (source.name or parameter.name) if isinstance(source, Payload) else None
        self._default = parameter.default
        hint = translate_constraints(hint, where)
        check_decodable(hint, where)
        self._find = (
            _header(source, hint, where) if isinstance(source, Header) else _field(parameter.name, source, hint)
        )

    def __repr__(self) -> str:
        return repr(self.source)

    def __call__(self, message: Received) -> Any:
        """What a run gets."""
        return self.read(message._delivery.envelope)  # noqa: SLF001  the worker's side of it

    def read(self, envelope: Envelope) -> Any:
        """The value, or the default. Raises `PayloadError` if it is missing, or of another type."""
        value = self._find(envelope)
        if value is not msgspec.UNSET:
            return value
        if self._default is Parameter.empty or self._default is INJECTED:
            missing = (
                f"message has no header {self.source.name!r}"
                if isinstance(self.source, Header)
                else f"payload has no field {self.field!r}"
            )
            raise PayloadError(f"the {missing} for the parameter {self.parameter!r}")
        return self._default


Find = Callable[[Envelope], Any]
"""The value in an envelope; UNSET if there is none."""


def _header(source: Header, hint: Any, where: str) -> Find:
    name = source.name
    if not isinstance(name, str) or not name:
        raise ConfigurationError(f"{where}: Header takes the name of a header, as Header('x-tenant'), but has {name!r}")

    def find(envelope: Envelope) -> Any:
        text = envelope.headers.get(name)
        if text is None:
            return msgspec.UNSET
        try:
            return msgspec.convert(text, hint, strict=False)
        except Exception as error:  # noqa: BLE001  whatever it is, the header does not fit
            told = f"the header {name!r} of the message does not fit"
            raise PayloadError(told, [fault_of(error)]) from origin_of(error)

    return find


def _field(parameter: str, source: Payload, hint: Any) -> Find:
    name = source.name or parameter
    shape = typed_dict({name: NotRequired[hint]})
    decoders = {JSON_CODEC.name: JSON_CODEC.decoder(shape)}

    def find(envelope: Envelope) -> Any:
        codec, payload = codec_and_payload(envelope)
        if codec.name not in decoders:
            decoders[codec.name] = codec.decoder(shape)
        return decoders[codec.name](payload).get(name, msgspec.UNSET)

    return find
