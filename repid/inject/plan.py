"""From a signature to the function that binds a payload to it, compiled once per actor.

The payload is decoded straight to the dict of keyword arguments: msgspec decodes to a typed dict made from the
signature, with a key for each parameter. One that has a default need not be there, and then Python's own default
applies. That was measured against a struct per signature, whose defaults would have to be taken out again: 130 ns
against 230 ns for two fields.

`bind` has a form for each shape of signature, so that the hot path has no branch that cannot apply. Whatever is not
plain good JSON takes the long way, which decides anew and explains what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NotRequired, TypeAlias

import msgspec

from ..codec import JSON, JSON_CODEC, Codec, codec_for
from ..envelope import Envelope
from ..errors import PayloadError
from .dependencies import compile_dependencies
from .faults import Shape, find_faults
from .hints import typed_dict
from .message import Message
from .signature import NO_REST, Signature, read_signature
from .supply import Dependencies

Decode: TypeAlias = Callable[[bytes], dict[str, Any]]
TheLongWay: TypeAlias = Callable[[Envelope], dict[str, Any]]
Bind: TypeAlias = Callable[[Envelope, Message | None], dict[str, Any]]

NO_NAMES: Mapping[str, Any] = MappingProxyType({})


class Plan(msgspec.Struct, frozen=True, eq=False):
    """How messages become calls of one function: `function(**plan.bind(envelope, message))`.

    `bind` returns a new dict with all arguments but the dependencies, or raises `PayloadError` with every fault it
    found, and nothing else. It does not look at the message, which may be None unless `takes_message`.
    `dependencies`: what fills the rest, where there is any.
    """

    takes_message: bool
    bind: Bind
    signature: Signature
    dependencies: Dependencies | None


def compile_plan(
    function: Callable[..., Any], *, strict: bool = False, local_names: Mapping[str, Any] = NO_NAMES
) -> Plan:
    """Compile the binding of payloads to the function's parameters. Raises `ConfigurationError`.

    A payload is an object, in JSON or MessagePack; its fields fill the parameters of the same names. Those without a
    parameter go to `**kwargs`, or are ignored, or with `strict` refused. No payload at all is an empty object; a
    function without payload parameters takes any payload and does not look at it, unless `strict`.

    `local_names`: what names in the annotations mean that no module knows; see `enclosing_names`.
    """
    signature = read_signature(function, local_names)
    dependencies = compile_dependencies(function, signature, local_names)
    takes_message = bool(signature.messages) or (dependencies is not None and dependencies.takes_message)
    return Plan(takes_message, _bind(signature, strict=strict), signature, dependencies)


def _bind(signature: Signature, *, strict: bool) -> Bind:
    messages = signature.messages
    if signature.fields or signature.rest is not NO_REST or strict:
        decoding = _Decoding(signature, strict=strict)
        decode_json = decoding.decoder(JSON_CODEC)
        if len(messages) == 1:
            return _bind_payload_and_message(decode_json, decoding.take_the_long_way, messages[0])
        bind = _bind_payload(decode_json, decoding.take_the_long_way)
        return (lambda envelope, message: bind(envelope, None) | dict.fromkeys(messages, message)) if messages else bind
    if len(messages) == 1:
        name = messages[0]
        return lambda _, message: {name: message}
    return (lambda _, message: dict.fromkeys(messages, message)) if messages else (lambda _, __: {})


def _bind_payload(decode_json: Decode, take_the_long_way: TheLongWay) -> Bind:
    def bind(envelope: Envelope, _: Message | None) -> dict[str, Any]:
        if envelope.content_type == JSON:
            try:
                return decode_json(envelope.payload)
            except Exception:  # noqa: BLE001, S110 (the long way raises it again and explains it)
                pass
        return take_the_long_way(envelope)

    return bind


def _bind_payload_and_message(decode_json: Decode, take_the_long_way: TheLongWay, name: str) -> Bind:
    def bind(envelope: Envelope, message: Message | None) -> dict[str, Any]:
        if envelope.content_type == JSON:
            try:
                arguments = decode_json(envelope.payload)
            except Exception:  # noqa: BLE001 (the long way raises it again and explains it)
                arguments = take_the_long_way(envelope)
        else:
            arguments = take_the_long_way(envelope)
        arguments[name] = message
        return arguments

    return bind


class _Decoding:
    """The decoders of one signature, one for each codec, and what to do when they fail."""

    def __init__(self, signature: Signature, *, strict: bool) -> None:
        self._signature = signature
        self._strict = strict
        self._decoders: dict[str, Decode] = {}

    def take_the_long_way(self, envelope: Envelope) -> dict[str, Any]:
        """The arguments in any payload, or the `PayloadError` that says what is wrong with it."""
        payload = envelope.payload or b"{}"
        codec = codec_for(envelope.content_type) if envelope.payload else JSON_CODEC
        try:
            return self.decoder(codec)(payload)
        except MemoryError:  # not the payload's fault
            raise
        except Exception as error:
            faults = find_faults(codec, payload, self._shape(), error)
            raise PayloadError(f"the payload does not fit {self._signature.function}()", faults) from error

    def decoder(self, codec: Codec) -> Decode:
        """The decoder for one codec, compiled when first asked for."""
        if codec.name not in self._decoders:
            self._decoders[codec.name] = self._compile(codec)
        return self._decoders[codec.name]

    def _compile(self, codec: Codec) -> Decode:
        fields = {
            field.name: field.hint if field.required else NotRequired[field.hint] for field in self._signature.fields
        }
        decode: Decode = codec.bare_decoder(typed_dict(fields))
        if self._signature.rest is not NO_REST:
            return self._with_rest(decode, codec)
        return self._strictly(decode, codec) if self._strict else decode

    def _with_rest(self, decode: Decode, codec: Codec) -> Decode:
        names = {field.name for field in self._signature.fields}
        reserved = self._signature.reserved
        strict = self._strict
        split = codec.bare_decoder(dict[str, msgspec.Raw])
        decode_one = codec.bare_decoder(self._signature.rest)

        def decode_with_rest(payload: bytes) -> dict[str, Any]:
            arguments = decode(payload)
            for key, raw in split(payload).items():
                if key in reserved:
                    if strict:
                        raise _Surplus(key)
                elif key not in names:
                    arguments[key] = decode_one(raw)
            return arguments

        return decode_with_rest

    def _strictly(self, decode: Decode, codec: Codec) -> Decode:
        names = frozenset(field.name for field in self._signature.fields)
        split = codec.bare_decoder(dict[str, msgspec.Raw])

        def decode_strictly(payload: bytes) -> dict[str, Any]:
            arguments = decode(payload)
            if not names.issuperset(split(payload)):
                raise _Surplus
            return arguments

        return decode_strictly

    def _shape(self) -> Shape:
        fields = {field.name: (field.hint, field.required) for field in self._signature.fields}
        return Shape(fields, self._signature.rest, self._signature.reserved, self._strict)


class _Surplus(Exception):  # noqa: N818 (never leaves this module)
    """There are fields that a strict signature does not know; the slow path finds them."""
