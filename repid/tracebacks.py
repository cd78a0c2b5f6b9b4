"""Errors put into words: in bounded time and size, and without fail.

An error that an actor raised is an object of somebody else's making. Reading any attribute of it, even `__class__`, may
run code that raises, lies or goes on for ever; its text may be 100 MB long; its chain of causes may have 20 000 links,
or go in a circle; a group may have 100 000 members. What is written here about an error must not depend on its good
will, since a failure that cannot be recorded would be run again by one worker after another. So:

* `type(error)` is asked instead of `isinstance`, and the fields are read through the descriptors of `BaseException`.
* Its text is asked for once, and cut. Whatever that raises is a part of the answer.
* No function recurses along a chain. The depth and the width of groups, the links of a chain and the frames of a
  traceback have limits, and all errors together have one more.

`traceback.TracebackException` cannot be used for this: it visits everything first and cuts afterwards. And it puts
each frame into words anew, for which Python parses the line of source: some hundred microseconds for each error, where
a job that succeeds takes ten. Jobs that fail for one reason fail in the same places, so the words for a place are kept.
"""

from __future__ import annotations

import re
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import groupby, repeat
from types import CodeType, TracebackType
from typing import Any, NoReturn

LONGEST_TEXT = 16_000
"""Characters of an error's own text that are kept: its beginning."""

LONGEST_TRACEBACK = 16_000
"""Characters of a traceback that are kept: its end, where the error is."""

LONGEST_LINE = 2_000
"""Characters of an error's text within a traceback."""

LONGEST_CHAIN = 10
"""Errors along one chain of causes and contexts that are shown: the latest."""

WIDEST_GROUP = 15
DEEPEST_GROUP = 5

MOST_FRAMES = 100
"""Frames of one error that are shown: the innermost."""

MACHINERY = frozenset({"repid", "trio_parallel", "_trio_parallel_workers", "outcome", "contextlib"})
"""Modules that call the program: what comes before its first frame tells nobody anything of it."""

MOST_REPEATED = 3
"""How many frames of the same place, one after another, are shown, as Python does."""

MOST_PLACES = 1000
"""Places in code whose words are kept."""

MOST_ERRORS = 60
"""Errors that one traceback shows."""

MOST_VISITED = 200_000
"""Errors that are looked through in search of a kind of error."""

CAUSE = "\nThe above exception was the direct cause of the following exception:\n\n"
CONTEXT = "\nDuring handling of the above exception, another exception occurred:\n\n"
"""As Python writes them."""

_name: Any = type.__dict__["__name__"]
_qualname: Any = type.__dict__["__qualname__"]
_cause: Any = BaseException.__cause__
_context: Any = BaseException.__context__
_suppresses: Any = BaseException.__suppress_context__
_traceback: Any = BaseException.__traceback__
_members: Any = BaseExceptionGroup.exceptions


LONGEST_PASSWORD = 4000
"""Characters of a password in an address that are looked for: the time that a text takes must grow with its length
only.
"""

_PASSWORDS = re.compile(
    r"((?!https?:|wss?:)\b[a-z][a-z0-9+.-]{0,30}://[^\s:@/]*:)(?!(?-i:PASSWORD)@)"
    rf"\S{{0,{LONGEST_PASSWORD}}}(?=@)"  # up to the last @: one that holds / or @ is no less secret
    r"|(\b(?:http|ws)s?://[^\s:@/]*:)[^\s@/?#]*(?=@)"
    r"|(password\s*=\s*)\\*(?:'(?:[^'\\]|\\.)*'?|\"[^\"]*\"?|[^\s&'\"]+)",
    re.IGNORECASE,
)
"""The passwords in the addresses of servers: between `//user:` and `@`, and behind `password=`. The word
PASSWORD stands for one in texts that teach.
"""

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
"""All but tabs and ends of lines."""


def is_a(error: BaseException, *kinds: type[BaseException]) -> bool:
    """Whether the error is of one of these kinds, whatever it says of itself."""
    return issubclass(type(error), kinds)


def members(error: BaseException) -> tuple[BaseException, ...]:
    """The members of a group; of an error that is no group, none."""
    return _members.__get__(error) if is_a(error, BaseExceptionGroup) else ()


def leaves(error: BaseException) -> Iterable[BaseException]:
    """The error itself; of a group, its members and the members of groups in it."""
    if not is_a(error, BaseExceptionGroup):
        return (error,)
    return (each for each in _walk(error, members) if not is_a(each, BaseExceptionGroup))


def unwrapped(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What to raise for a group that came out of nurseries of ours: an order to stop the process comes first, a single
    error comes bare, several stay a group.
    """
    orders = group.subgroup((KeyboardInterrupt, SystemExit))
    found = list(leaves(orders or group))
    return found[-1] if orders or len(found) == 1 else group


def family(error: BaseException, *, openly: bool) -> Iterable[BaseException]:
    """The error, its members, and all that they come from; `openly`: only what a traceback shows of that."""
    if _cause.__get__(error) is None and _context.__get__(error) is None and not members(error):  # as most are
        return (error,)
    return _walk(error, _shown_relatives if openly else _relatives)


def _relatives(error: BaseException) -> tuple[BaseException, ...]:
    return tuple(each for each in (*members(error), _cause.__get__(error), _context.__get__(error)) if each is not None)


def _shown_relatives(error: BaseException) -> tuple[BaseException, ...]:
    _, origin = _origin(error)
    return members(error) if origin is None else (*members(error), origin)


def _walk(error: BaseException, following: Any) -> Iterator[BaseException]:
    seen, open_ends = {id(error)}, [error]
    while open_ends and len(seen) < MOST_VISITED:
        present = open_ends.pop()
        yield present
        for each in following(present):
            if id(each) not in seen:
                seen.add(id(each))
                open_ends.append(each)


def traceback_of(error: BaseException) -> TracebackType | None:
    """Where the error was raised."""
    return _traceback.__get__(error)  # type: ignore[no-any-return]


def raise_again(error: BaseException) -> NoReturn:
    """Raise an error that keeps its context, although another one is being handled."""
    context = _context.__get__(error)
    try:
        raise error
    finally:
        _context.__set__(error, context)


def let_go(error: BaseException) -> None:
    """Drop the tracebacks of an error that has been recorded and logged, and of those that it came from.

    They hold the frames of the actor, and these all that it had in its variables. Often the frames hold the error, too
    (`last = error`, in a loop that tries again), so that only the garbage collector would free it all, which looks
    rarely in a process that runs many jobs: a thousand failures would keep what a thousand actors had.
    """
    for each in family(error, openly=False):
        _traceback.__set__(each, None)


def name_of(error: BaseException) -> str:
    """The name of the error's type."""
    return cut(_name.__get__(type(error)), 200)


def text_of(error: BaseException, longest: int = LONGEST_TEXT) -> str:
    """What the error says, cut, and such that UTF-8 can write it."""
    try:
        return cut(str(error), longest)
    except BaseException as fault:  # noqa: BLE001  whatever is wrong with it, its failure is to be recorded
        return f"(its text cannot be had: __str__ raised {name_of(fault)})"


def without_passwords(text: str) -> str:
    """The text, with *** in place of each password of an address (`scheme://user:password@host`, `password=…`).

    Every text of an error of repid, of its log, and of what it writes of other errors goes through here.
    """
    if "://" not in text and "assword" not in text and "ASSWORD" not in text:  # as most
        return text
    return _PASSWORDS.sub(lambda found: f"{found[found.lastindex or 0]}***", text)


def cut(text: str, longest: int) -> str:
    """The text, or its beginning and its length; what UTF-8 cannot write is escaped."""
    text = str.__str__(text)  # of a subclass, which may do anything
    beginning = writable(without_passwords(text[: longest + LONGEST_PASSWORD])[:longest])
    return beginning if len(text) <= longest else f"{beginning}… (cut: {len(text)} characters)"


def writable(text: str) -> str:
    """The text, with an escape for each lone surrogate, which UTF-8 cannot write."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def inert(text: str) -> str:
    """The text for a log or a terminal: its later lines are indented, so that none of them passes for an entry of its
    own, and control characters are escaped.
    """
    if text.isprintable():  # as most are
        return text
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text).replace("\n", "\n    ")


def explain(error: BaseException, text: str | None = None, *, in_program: bool = False) -> str:
    """The error with its traceback and what it comes from, as Python would show it, cut. `text`: what it says, if
    known. `in_program`: it was raised by the program; tracebacks begin there, without those calls of repid that led to
    it.
    """
    try:
        known = {} if text is None else {id(error): text}
        lines = "".join(_Explanation(known, in_program=in_program).of(error, DEEPEST_GROUP))
        return writable(lines)[-LONGEST_TRACEBACK:]
    except Exception as fault:  # noqa: BLE001  a line of source that cannot be read, or the like
        return f"{name_of(error)} (its traceback cannot be had: {name_of(fault)})\n"


class _Explanation:
    """What is written about one error. `left`: the errors that it may still show."""

    def __init__(self, texts: dict[int, str], *, in_program: bool) -> None:
        self._texts = texts
        self._in_program = in_program
        self._seen: set[int] = set()
        self._left = MOST_ERRORS

    def of(self, error: BaseException, depth: int) -> list[str]:
        """The chain that ends with this error, the oldest first."""
        chain, links = [error], [""]
        self._seen.add(id(error))
        while len(chain) < LONGEST_CHAIN:
            link, earlier = _origin(chain[-1])
            if earlier is None or id(earlier) in self._seen:
                break
            self._seen.add(id(earlier))
            chain.append(earlier)
            links.append(link)
        lines: list[str] = []
        for number in reversed(range(len(chain))):
            lines += self._one(chain[number], depth)
            lines.append(links[number])
        return lines

    def _one(self, error: BaseException, depth: int) -> list[str]:
        self._left -= 1
        outermost = traceback_of(error)
        if self._in_program:
            program = _program_in(outermost)
            outermost = program if program is not None or _needs_no_machinery(error) else outermost
        frames = _frames_of(outermost)
        lines = ["Traceback (most recent call last):\n", *frames] if frames else []
        lines += [f"{_full_name(error)}: {self._text(error)}\n", *_notes(error)]
        within = members(error)
        for number, member in enumerate(within[:WIDEST_GROUP], 1):
            if depth == 0 or self._left <= 0:
                break
            lines.append(f"  +---------------- {number} of {len(within)} ----------------\n")
            lines += [f"  | {line}\n" for line in "".join(self.of(member, depth - 1)).splitlines()]
        return lines

    def _text(self, error: BaseException) -> str:
        return inert(cut(self._texts.get(id(error)) or text_of(error), LONGEST_LINE))


_places: dict[tuple[int, int], tuple[CodeType, str]] = {}
"""The words for places in code, by the identity of the code, which is kept for that, and the place in it."""


def _frames_of(outermost: TracebackType | None) -> list[str]:
    """What Python would write of each frame."""
    frames = [_words_for(link) for link in deque(_links(outermost), MOST_FRAMES)]
    if len(frames) <= MOST_REPEATED:
        return frames
    lines: list[str] = []
    for words, same in groupby(frames):
        count = len(list(same))
        lines += repeat(words, min(count, MOST_REPEATED))
        more = count - MOST_REPEATED
        if more > 0:
            lines.append(f"  [Previous line repeated {more} more time{'s' if more > 1 else ''}]\n")
    return lines


def _links(link: TracebackType | None) -> Iterator[TracebackType]:
    while link is not None:
        yield link
        link = link.tb_next


def _program_in(outermost: TracebackType | None) -> TracebackType | None:
    """The outermost frame of the program, behind those of repid. Returns None if none is the program's."""
    return next(
        (link for link in _links(outermost) if not _is_machinery(link.tb_frame.f_globals.get("__name__"))), None
    )


def _needs_no_machinery(error: BaseException) -> bool:
    """Whether an error that has no frame of the program is clear without those of repid: other errors are shown with
    it, or repid wrote its text for this.
    """
    if _shown_relatives(error):
        return True
    cls = type(error)
    return _module_of(cls) == "repid" and _name.__get__(cls) != "InternalError"


def _is_machinery(module: object) -> bool:
    return type(module) is str and module.partition(".")[0] in MACHINERY


def _words_for(link: TracebackType) -> str:
    code = link.tb_frame.f_code
    place = id(code), link.tb_lasti
    kept = _places.get(place)
    if kept is None:
        if len(_places) >= MOST_PLACES:
            _places.clear()
        kept = _places[place] = code, without_passwords("".join(traceback.extract_tb(link, limit=1).format()))
    return kept[1]


def _origin(error: BaseException) -> tuple[str, BaseException | None]:
    cause: BaseException | None = _cause.__get__(error)
    if cause is not None:
        return CAUSE, cause
    return CONTEXT, None if _suppresses.__get__(error) else _context.__get__(error)


def _full_name(error: BaseException) -> str:
    cls = type(error)
    name: str = _qualname.__get__(cls)
    module = _module_of(cls)
    if module not in {"", "__main__", "__mp_main__", "builtins"}:
        name = f"{module}.{name}"
    return inert(cut(name, 400))


def _module_of(cls: type[BaseException]) -> str:
    module = type.__dict__["__dict__"].__get__(cls).get("__module__")
    return module if type(module) is str else ""


def _notes(error: BaseException) -> list[str]:
    try:
        notes = object.__getattribute__(error, "__notes__")
    except BaseException:  # noqa: BLE001  most have none
        return []
    if type(notes) is not list:
        return []
    return [f"    {inert(cut(note, LONGEST_LINE))}\n" for note in notes[:10] if type(note) is str]
