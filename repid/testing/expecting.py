"""How a check says what differed."""

from __future__ import annotations

from collections.abc import Iterator


class Difference(AssertionError):  # noqa: N818  it is a finding; `BrokerFailure` is what callers see
    """The broker did one thing and should have done another."""

    def __init__(self, what: str, expected: object, actual: object) -> None:
        super().__init__(f"{what}: expected {_short(expected)}, but got {_short(actual)}")
        self.what = what
        self.expected = expected
        self.actual = actual


def expect(what: str, actual: object, expected: object) -> None:
    """Raise `Difference` unless both are equal."""
    if actual != expected:
        raise Difference(what, expected, actual)


def expect_between(what: str, actual: float | None, low: float, high: float) -> None:
    """Raise `Difference` unless it is a number within these bounds."""
    if actual is None or not low <= actual <= high:
        raise Difference(what, f"{low} to {high}", actual)


def differences(error: BaseException) -> Iterator[Difference]:
    """Every `Difference` in an exception, which may be a group."""
    if isinstance(error, Difference):
        yield error
    elif isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from differences(one)


def _short(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 400 else f"{text[:400]}…"
