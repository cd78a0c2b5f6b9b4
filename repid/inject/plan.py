"""From a signature to the function that binds a payload to it, compiled once per actor.

The payload is decoded straight to the dict of keyword arguments: msgspec decodes to a typed dict made from the
signature, with a key for each parameter. One that has a default may be missing, and then Python's own default
applies. That was measured against a struct per signature, whose defaults would have to be taken out again: 130 ns
against 230 ns for two fields.

`bind` has a form for each shape of signature, so that the hot path has no branch that cannot apply. Whatever is not
plain good JSON takes the slow path, which decodes again and explains what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from types import MappingProxyType
from typing import Any, NotRequired, TypeAlias

import msgspec

from ..codec import JSON, JSON_CODEC, Codec, codec_and_payload, origin_of
from ..envelope import Envelope
from ..errors import ConfigurationError, PayloadError
from .dependencies import compile_dependencies
from .faults import Shape, find_faults, find_faults_of_value
from .hints import bare, typed_dict
from .message import Message
from .reading import Reader
from .signature import NO_REST, Signature, read_signature
from .supply import MESSAGE, Dependencies, Step

Overrides: TypeAlias = Mapping[Any, Callable[..., Any]]
"""Dependencies, and the functions that take their places."""

GivenValues: TypeAlias = Sequence[tuple[Callable[..., Any], Any]]
"""Functions of the scope "worker", and the values that they have given."""

Decode: TypeAlias = Callable[[bytes], dict[str, Any]]
SlowPath: TypeAlias = Callable[[Envelope], dict[str, Any]]
Bind: TypeAlias = Callable[[Envelope, Message | None], dict[str, Any]]

NO_NAMES: Mapping[str, Any] = MappingProxyType({})


class BatchPlan(msgspec.Struct, frozen=True, eq=False):
    """How many messages become one call: the list `parameter` has what `read` gives for each of them.

    `read` raises `PayloadError` with every fault it found, and what the code of the element's type raises.
    """

    parameter: str
    read: Callable[[Envelope], Any]


class Plan(msgspec.Struct, frozen=True, eq=False):
    """How messages become calls of one function: `function(**plan.bind(envelope, message))`.

    `bind` returns a new dict with all arguments but the dependencies, or raises `PayloadError` with every fault it
    found, and nothing else. It does not look at the message, which may be None unless `takes_message`. `dependencies`:
    what fills the rest, where there is any. `overridden`: the same plan with other dependencies in the place of some,
    and with what was given; raises `ConfigurationError` for such as do not fit. `batch`: of a function that is given
    many at once; `bind` gives what one message adds to its list then.
    """

    takes_message: bool
    bind: Bind
    signature: Signature
    dependencies: Dependencies | None
    overridden: Callable[[Overrides, GivenValues], Plan]
    batch: BatchPlan | None = None

    @property
    def payload_fields(self) -> list[str] | None:
        """The fields of a payload that make a difference, those of dependencies too. None: any may, as in `**kwargs`,
        or where the function has the message and leaves its payload to itself.
        """
        signature = self.signature
        if self.batch is not None or signature.rest is not NO_REST or (signature.messages and not signature.fields):
            return None
        return [field.name for field in signature.fields] + sorted(_fields_of(_readers_in(self.dependencies)))

    @property
    def for_worker(self) -> tuple[Step, ...]:
        """The dependencies that a worker has to give a value, each after those that it wants."""
        return tuple(step for step in _steps_of(self.dependencies) if step.scope == "worker")


def compile_plan(
    function: Callable[..., Any],
    *,
    strict: bool = False,
    of_batch: bool = False,
    local_names: Mapping[str, Any] = NO_NAMES,
    overrides: Overrides = NO_NAMES,
    given: GivenValues = (),
) -> Plan:
    """Compile the binding of payloads to the function's parameters. Raises `ConfigurationError`.

    A payload is an object, in JSON or MessagePack; its fields fill the parameters of the same names. Those without a
    parameter go to `**kwargs`, or are ignored, or with `strict` refused. No payload at all is an empty object; a
    function without payload parameters takes any payload and does not look at it, unless `strict`.

    `local_names`: what names in the annotations mean that no module knows; see `enclosing_names`. `overrides`: what is
    called in the place of some dependencies. `given`: the values of those that are not called in a run. `of_batch`: the
    function is given many messages at once, and the whole payload of each is an element of its list.
    """
    signature = read_signature(function, local_names, of_batch=of_batch)
    dependencies = compile_dependencies(function, signature, local_names, overrides, given)
    takes_message = bool(signature.messages) or (dependencies is not None and dependencies.takes_message)

    def overridden(others: Overrides, given: GivenValues) -> Plan:
        both = {**overrides, **others}
        return compile_plan(
            function, strict=strict, of_batch=of_batch, local_names=local_names, overrides=both, given=given
        )

    if of_batch:
        _check_once_for_many(signature, dependencies)
        batch = BatchPlan(signature.fields[0].name, _read_element(signature))
        return Plan(takes_message, _bind_one(batch), signature, dependencies, overridden, batch)
    readers = _readers_in(dependencies)
    bind = _reading(_bind(signature, readers, strict=strict), signature.headers, readers)
    return Plan(takes_message, bind, signature, dependencies, overridden)


def _steps_of(dependencies: Dependencies | None) -> tuple[Step, ...]:
    """All steps, in the order of their numbers."""
    if dependencies is None:
        return ()
    return tuple(sorted((*dependencies.outer, *dependencies.inner.steps), key=lambda step: step.number))


def _readers_in(dependencies: Dependencies | None) -> tuple[Reader, ...]:
    return tuple(step.function for step in _steps_of(dependencies) if isinstance(step.function, Reader))


def _fields_of(readers: Sequence[Reader]) -> frozenset[str]:
    return frozenset(reader.field for reader in readers if reader.field is not None)


def _check_once_for_many(signature: Signature, dependencies: Dependencies | None) -> None:
    """Raises `ConfigurationError` for a dependency that wants the message, of which there are many."""
    for step in _steps_of(dependencies):
        for parameter, number in step.wants:
            if number == MESSAGE:
                reader = step.function if isinstance(step.function, Reader) else None
                what = f"the parameter {parameter!r} of {step.function!r}" if reader is None else repr(reader)
                raise ConfigurationError(
                    f"{signature.function}() has a dependency with {what}, which is filled from the message, but "
                    "dependencies are called once for a whole batch: let the actor itself take messages: list[Message]"
                )


def _bind_one(batch: BatchPlan) -> Bind:
    name, read = batch.parameter, batch.read
    return lambda envelope, _: {name: read(envelope)}


def _read_element(signature: Signature) -> Callable[[Envelope], Any]:
    """Reads a payload that is, as a whole, of the type of the only field."""
    hint = signature.fields[0].hint
    decoders = {JSON_CODEC.name: JSON_CODEC.bare_decoder(hint)}
    decode_json = decoders[JSON_CODEC.name]

    def read(envelope: Envelope) -> Any:
        if envelope.content_type == JSON:
            try:
                return decode_json(envelope.payload)
            except Exception:  # noqa: BLE001, S110  the slow path raises it again and explains it
                pass
        return slow_path(envelope)

    def slow_path(envelope: Envelope) -> Any:
        codec, payload = codec_and_payload(envelope)
        if codec.name not in decoders:
            decoders[codec.name] = codec.bare_decoder(hint)
        try:
            return decoders[codec.name](payload)
        except MemoryError:  # not the payload's fault
            raise
        except Exception as error:  # noqa: BLE001  whatever it is, the payload does not fit
            faults = find_faults_of_value(codec, payload, hint, error)
            text = f"the payload is no element of the list {signature.fields[0].name!r} of {signature.function}()"
            raise PayloadError(text, faults) from origin_of(error)

    return read


def _reading(bind: Bind, headers: Sequence[Reader], read_by_steps: Sequence[Reader]) -> Bind:
    """The binding with what is read from headers, and with a look at what the dependencies of the run will read."""
    if not (headers or read_by_steps):
        return bind

    def bind_all(envelope: Envelope, message: Message | None) -> dict[str, Any]:
        arguments = bind(envelope, message)
        for reader in headers:
            arguments[reader.parameter] = reader.read(envelope)
        for reader in read_by_steps:
            reader.read(envelope)
        return arguments

    return bind_all


def _bind(signature: Signature, read_by_steps: Sequence[Reader], *, strict: bool) -> Bind:
    messages = signature.messages
    if signature.fields or signature.rest is not NO_REST or strict:
        decoding = _Decoding(signature, _fields_of(read_by_steps), strict=strict)
        decode_json = decoding.decoder(JSON_CODEC)
        if len(messages) == 1:
            return _bind_payload_and_message(decode_json, decoding.slow_path, messages[0])
        bind = _bind_payload(decode_json, decoding.slow_path)
        return (lambda envelope, message: bind(envelope, None) | dict.fromkeys(messages, message)) if messages else bind
    if len(messages) == 1:
        name = messages[0]
        return lambda _, message: {name: message}
    return (lambda _, message: dict.fromkeys(messages, message)) if messages else (lambda _, __: {})


def _bind_payload(decode_json: Decode, slow_path: SlowPath) -> Bind:
    def bind(envelope: Envelope, _: Message | None) -> dict[str, Any]:
        if envelope.content_type == JSON:
            try:
                return decode_json(envelope.payload)
            except Exception:  # noqa: BLE001, S110  the slow path raises it again and explains it
                pass
        return slow_path(envelope)

    return bind


def _bind_payload_and_message(decode_json: Decode, slow_path: SlowPath, name: str) -> Bind:
    def bind(envelope: Envelope, message: Message | None) -> dict[str, Any]:
        if envelope.content_type == JSON:
            try:
                arguments = decode_json(envelope.payload)
            except Exception:  # noqa: BLE001, S110  the slow path raises it again and explains it
                pass
            else:
                arguments[name] = message
                return arguments
        arguments = slow_path(envelope)
        arguments[name] = message
        return arguments

    return bind


class _Decoding:
    """The decoders of one signature, one for each codec, and what to do when they fail.

    `also`: fields of the payload that its dependencies read.
    """

    def __init__(self, signature: Signature, also: frozenset[str], *, strict: bool) -> None:
        self._signature = signature
        self._names = {field.name for field in signature.fields}
        self._also = also - self._names
        self._strict = strict
        self._decoders: dict[str, Decode] = {}

    def slow_path(self, envelope: Envelope) -> dict[str, Any]:
        """The arguments in any payload, or the `PayloadError` that says what is wrong with it."""
        codec, payload = codec_and_payload(envelope)
        try:
            return self.decoder(codec)(payload)
        except MemoryError:  # not the payload's fault
            raise
        except Exception as error:  # noqa: BLE001  whatever it is, the payload does not fit
            faults = find_faults(codec, payload, self._shape(), error)
            raise PayloadError(f"the payload does not fit {self._signature.function}()", faults) from origin_of(error)

    def decoder(self, codec: Codec) -> Decode:
        """The decoder for one codec, compiled when first asked for."""
        if codec.name not in self._decoders:
            self._decoders[codec.name] = self._compile(codec)
        return self._decoders[codec.name]

    def _compile(self, codec: Codec) -> Decode:
        raw = {field.name for field in self._signature.fields if field.required and bare(field.hint) is msgspec.Raw}
        fields = {
            field.name: field.hint if field.required and field.name not in raw else NotRequired[field.hint]
            for field in self._signature.fields
        }
        decode: Decode = codec.bare_decoder(typed_dict(fields))
        if raw:
            decode = _requiring(decode, raw)
        if self._signature.rest is not NO_REST:
            return self._with_rest(decode, codec)
        return self._strictly(decode, codec) if self._strict else decode

    def _with_rest(self, decode: Decode, codec: Codec) -> Decode:
        names = self._names | self._also
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
        names = self._names | self._also
        split = codec.bare_decoder(dict[str, msgspec.Raw])

        def decode_strictly(payload: bytes) -> dict[str, Any]:
            arguments = decode(payload)
            if not names.issuperset(split(payload)):
                raise _Surplus
            return arguments

        return decode_strictly

    def _shape(self) -> Shape:
        fields = dict.fromkeys(self._also, (Any, False))
        fields |= {field.name: (field.hint, field.required) for field in self._signature.fields}
        return Shape(fields, self._signature.rest, self._signature.reserved, self._strict)


def _requiring(decode: Decode, names: AbstractSet[str]) -> Decode:
    """The decoder, but it requires these keys: in a typed dict msgspec takes a `Raw` only where it may be
    missing.
    """

    def decode_required(payload: bytes) -> dict[str, Any]:
        arguments = decode(payload)
        if not names <= arguments.keys():
            raise _Missing
        return arguments

    return decode_required


class _Missing(Exception):  # noqa: N818  never leaves this module
    """There is no value for a required field; the slow path finds it."""


class _Surplus(Exception):  # noqa: N818  never leaves this module
    """There are fields that a strict signature does not know; the slow path finds them."""
