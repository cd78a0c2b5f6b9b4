"""The changes that are tried: one small fault each, as a programmer could make it, found in the syntax tree."""

from __future__ import annotations

import ast
import hashlib
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]

COMPARISONS: dict[type[ast.cmpop], tuple[str, str]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
}
ARITHMETIC: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
}
OPPOSITES = {"min": "max", "max": "min", "any": "all", "all": "any"}


class Mutant(NamedTuple):
    """The text from `start` to `end` of a file replaced by `new`. `line` is what `reach` knows the line by."""

    file: str
    number: int
    line: str
    operator: str
    old: str
    new: str
    start: int
    end: int

    @property
    def name(self) -> str:
        """The same as long as the line and its function are the same, wherever in the file they are."""
        return f"{self.file} {self.line} [{self.old} -> {self.new}]"

    @property
    def place(self) -> str:
        """Where it is now."""
        return f"{self.file}:{self.number}"

    @property
    def package(self) -> str:
        """`runtime`, `brokers.sqlite`; modules that are in no package are together."""
        parts = Path(self.file).parts[1:-1]
        return ".".join(parts) or "modules"

    def rank(self, seed: str) -> str:
        """By this the sample is drawn: a change of other code does not change it."""
        return hashlib.sha256(f"{seed} {self.name}".encode()).hexdigest()

    def apply(self, source: str) -> str:
        """The module with the fault in it."""
        return source[: self.start] + self.new + source[self.end :]


def find(root: Path, file: str) -> list[Mutant]:
    """Every change of a module. A few of them do not compile."""
    return list(_Finder(file, (root / file).read_text()).mutants())


def equivalent_mutants() -> dict[str, str]:
    """Those that change nothing anyone could see: the name of each, and the reason."""
    entries = tomllib.loads((Path(__file__).parent / "equivalent.toml").read_text()).get("mutant", [])
    return {entry["name"]: entry["reason"] for entry in entries}


def compiles(root: Path, mutant: Mutant) -> bool:
    """Whether it is still Python."""
    try:
        compile(mutant.apply((root / mutant.file).read_text()), "", "exec")
    except SyntaxError:
        return False
    return True


class _Finder:
    def __init__(self, file: str, source: str) -> None:
        self._file = file
        self._source = source
        self._keys = keys(source)
        self._starts = [0]
        for line in source.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))
        self._lines = source.splitlines()

    def mutants(self) -> Iterator[Mutant]:
        for node in _code(ast.parse(self._source)):
            yield from self._of(node)

    def _of(self, node: ast.AST) -> Iterator[Mutant]:
        yield from self._of_operator(node)
        yield from self._of_statement(node)

    def _of_operator(self, node: ast.AST) -> Iterator[Mutant]:
        match node:
            case ast.Compare(left, [op], [right]) if type(op) in COMPARISONS:
                yield self._between(left, right, "comparison", COMPARISONS[type(op)])
            case ast.BoolOp(op, [first, second, *_]):
                words = ("and", "or") if isinstance(op, ast.And) else ("or", "and")
                yield self._between(first, second, "and, or", words)
            case ast.BinOp(left, op, right) if type(op) in ARITHMETIC:
                yield self._between(left, right, "arithmetic", ARITHMETIC[type(op)])
            case ast.UnaryOp(ast.Not(), operand):
                yield self._instead(node, "not", self._text(operand))
            case ast.Constant(bool() as value):
                yield self._instead(node, "constant", str(not value))
            case ast.Constant(int() | float() as value):
                yield self._instead(node, "constant", str(value + 1))
            case ast.Call(ast.Name(name) as function) if name in OPPOSITES:
                yield self._instead(function, "min, max", OPPOSITES[name])

    def _of_statement(self, node: ast.AST) -> Iterator[Mutant]:
        match node:
            case ast.If(test) | ast.IfExp(test=test):
                yield self._instead(test, "condition", "True")
                yield self._instead(test, "condition", "False")
            case ast.Return(ast.expr() as value) if ast.unparse(value) != "None":
                yield self._instead(value, "result", "None")
            case ast.Expr(ast.Call() | ast.Await() as value) if not _only_tells(value):
                yield self._instead(node, "statement", "pass")
            case ast.Assign(value=value) | ast.AugAssign(value=value) if not isinstance(value, ast.Constant):
                yield self._instead(node, "statement", "pass")
            case ast.Raise():
                yield self._instead(node, "raise", "pass")
            case ast.With(items=[ast.withitem(ast.Call() as call, None)]):
                yield self._instead(call, "with", "__import__('contextlib').nullcontext()")
            case ast.FunctionDef(decorator_list=[*decorators]) | ast.AsyncFunctionDef(decorator_list=[*decorators]):
                for decorator in decorators:
                    if ast.unparse(decorator) == "enable_ki_protection":
                        yield self._instead(decorator, "decorator", "(lambda function: function)")
            case ast.keyword(arg="shield" | "bound" | "deadline" | "max_wait" as name, value=value):
                yield self._instead(value, "keyword", "False" if name == "shield" else "1e9")

    def _offset(self, line: int, column: int) -> int:
        """`column` is in bytes, as the syntax tree has it."""
        return self._starts[line - 1] + len(self._lines[line - 1].encode()[:column].decode())

    def _span(self, node: ast.AST) -> tuple[int, int]:
        places: tuple[int, ...] = tuple(
            getattr(node, name) for name in ("lineno", "col_offset", "end_lineno", "end_col_offset")
        )
        return self._offset(*places[:2]), self._offset(*places[2:])

    def _text(self, node: ast.AST) -> str:
        start, end = self._span(node)
        return self._source[start:end]

    def _instead(self, node: ast.AST, operator: str, new: str) -> Mutant:
        return self._mutant(operator, *self._span(node), new)

    def _between(self, left: ast.expr, right: ast.expr, operator: str, words: tuple[str, str]) -> Mutant:
        start, end = self._span(left)[1], self._span(right)[0]
        at = start + self._source[start:end].index(words[0])
        return self._mutant(operator, at, at + len(words[0]), words[1])

    def _mutant(self, operator: str, start: int, end: int, new: str) -> Mutant:
        number = self._source.count("\n", 0, start) + 1
        return Mutant(self._file, number, self._keys[number], operator, self._source[start:end], new, start, end)


def _code(node: ast.AST) -> Iterator[ast.AST]:
    """The parts in which a fault would be seen: no annotations, no imports for types, no texts for people."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.JoinedStr | ast.Assert) or _is_annotation(node, child) or _only_tells(child):
            continue
        if isinstance(child, ast.Assign) and ast.unparse(child.value).startswith("TypeVar("):
            continue
        if isinstance(child, ast.Raise) and "AssertionError" in ast.unparse(child):
            continue
        yield child
        yield from _code(child)


def _is_annotation(parent: ast.AST, child: ast.AST) -> bool:
    return child is getattr(parent, "annotation", None) or child is getattr(parent, "returns", None)


def _only_tells(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func).startswith(("log.", "warnings."))


def keys(source: str) -> dict[int, str]:
    """What each line of a module is known by: the function it is in, and its text."""
    lines = source.splitlines()
    within = [""] * (len(lines) + 1)

    def visit(node: ast.AST, name: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                inner = f"{name}.{child.name}".lstrip(".")
                first = min([child.lineno, *(decorator.lineno for decorator in child.decorator_list)])
                within[first : (child.end_lineno or first) + 1] = [inner] * ((child.end_lineno or first) + 1 - first)
                visit(child, inner)
            else:
                visit(child, name)

    visit(ast.parse(source), "")
    return {number: f"{within[number]}|{text.strip()}" for number, text in enumerate(lines, 1)}
