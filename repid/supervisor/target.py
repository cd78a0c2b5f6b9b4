"""How another process finds the app: as `module:attribute`, or in the program that is being run."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import runpy
import sys
import traceback
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import msgspec

from ..actors import Router
from ..application import Application
from ..errors import ConfigurationError, did_you_mean
from ..tracebacks import without_passwords
from ..worker import Worker

SPAWNED = "__mp_main__"
"""What `__name__` is while a process imports the program: as with multiprocessing, `if __name__ == "__main__"` is not
entered, and pickles find what the program defines."""


class Target(msgspec.Struct, frozen=True):
    """Where an app is. `main`: the program to be run first, as `python -m` name or as a path to a file."""

    name: str
    main_module: str | None = None
    main_path: str | None = None


def load_object(target: str) -> Any:
    """The object that `module:attribute` names; a function without arguments is called for it.

    Raises `ConfigurationError` saying what is wrong with it. What the module itself raises comes through.
    """
    module_name, colon, attribute = target.partition(":")
    if attribute.startswith("//"):
        raise ConfigurationError(
            f"{module_name}://… is the address of a server, and what is named here is an app: give the server to one, "
            "app = Repid(Connection(server)), and name that, such as shop.jobs:app"
        )
    if module_name.endswith(".py") or "/" in module_name:
        raise ConfigurationError(
            f"{module_name!r} is a file, not a module: {_module_of(module_name, attribute or 'app')}"
        )
    if not colon or not module_name or not attribute or module_name.startswith("."):
        raise ConfigurationError(
            f"{target!r} does not name an app: it takes module:attribute, such as {_likely(target)}"
        )
    found: Any = _import(module_name)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ConfigurationError(f"module {module_name!r} has no {attribute!r}{_hint(part, vars(found))}")
        found = getattr(found, part)
    return _give(target, found) if isinstance(found, types.FunctionType) else found


def _module_of(file: str, attribute: str) -> str:
    """How to name an attribute of the module in that file."""
    path, here = Path(file).resolve(), Path.cwd()
    if not path.is_relative_to(here):
        return f"run this in the folder {str(path.parent)!r}, and name '{path.stem}:{attribute}'"
    return f"did you mean '{'.'.join(path.relative_to(here).with_suffix('').parts)}:{attribute}'?"


def _likely(target: str) -> str:
    """What was probably meant by a target without a colon, as far as the files here tell."""
    module, _, attribute = target.rpartition(".")
    if module and _is_here(module):
        return f"{module}:{attribute}"
    return f"{target}:app" if _is_here(target) else "myproject.jobs:app"


def _is_here(module: str) -> bool:
    """Whether there is a file of that module, looked for without importing anything."""
    return (
        all(part.isidentifier() for part in module.split(".")) and Path(*module.split(".")).with_suffix(".py").is_file()
    )


def _give(target: str, function: types.FunctionType) -> Any:
    """What the function returns, if it can be called here: without arguments, and without awaiting it."""
    if inspect.iscoroutinefunction(function):
        raise ConfigurationError(
            f"{target!r} is an async function, and would have to be awaited: name an object, or a sync function that "
            "returns one"
        )
    try:
        inspect.signature(function, follow_wrapped=False).bind()
    except TypeError as error:
        raise ConfigurationError(
            f"{target!r} is a function that cannot be called without arguments ({error}): name an object, or a "
            "function without arguments that returns one"
        ) from None
    return function()


def _hint(name: str, there: Mapping[str, Any]) -> str:
    """The name that was probably meant, else those of the apps."""
    objects = {each: value for each, value in there.items() if not each.startswith("_") and not isinstance(value, type)}
    apps = [each for each, value in objects.items() if _is_app(value)]
    return did_you_mean(name, objects) or (f"; its apps are: {', '.join(apps)}" if apps else "")


def load_app(target: str) -> Application:
    """The app that `module:attribute` names; a function without arguments is called for it.

    Raises `ConfigurationError` saying what is wrong with it. What the module itself raises comes through.
    """
    found = load_object(target)
    if isinstance(found, Router):
        kind, option = ("Worker", "worker") if isinstance(found, Worker) else ("Router", "router")
        raise ConfigurationError(
            f"{target!r} is a {kind}, and what runs is an app: add its actors to a Repid, with "
            f"app.include_router({option}), and name that"
        )
    if not _is_app(found):
        raise ConfigurationError(f"{target!r} is no Repid app, but {found!r}")
    return found


def failure_of_import(what: str, error: Exception) -> str:
    """The lines to show for what the program raised while it was imported: from where the program begins."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals.get("__name__", "").partition(".")[0] in _MACHINERY:
        trace = trace.tb_next
    lines = traceback.format_exception(type(error), error, trace)
    return without_passwords("".join(lines)) + f"repid: {what} cannot be loaded: see above"


_MACHINERY = {"repid", "importlib", "runpy"}
"""Packages whose frames come before those of the program that is loaded."""


def _import(name: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # it is there, and imports something that is not
        what = name if error.name == name else f"{name} (there is no {error.name})"
        raise ConfigurationError(f"there is no module {what}: looked in {Path.cwd()} and in sys.path") from None


def _is_app(value: object) -> TypeGuard[Application]:
    if isinstance(value, type):
        return False
    try:
        return hasattr(value, "run_worker") and hasattr(value, "magic")
    except Exception:  # noqa: BLE001  INJECTED, or a proxy that has no request
        return False


def find_target(app: Application) -> Target:
    """Where another process finds this app: it must be a global of the program, or of a module that is imported.

    Raises `ConfigurationError` if it is none.
    """
    main = sys.modules["__main__"]
    others = [module for name, module in list(sys.modules.items()) if name not in {"__main__", SPAWNED}]
    for module in [*others, main]:
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if value is app and isinstance(module, types.ModuleType):
                return _main_target(main, name) if module is main else Target(f"{module.__name__}:{name}")
    raise ConfigurationError(
        "several processes need an app they can import, and this one is not a global of any module: assign it at the "
        'top level of one (app = Repid(...)), or name it: target="module:attribute", where the attribute may be a '
        "function that makes it"
    )


def _main_target(main: types.ModuleType, name: str) -> Target:
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return Target(name, main_module=spec.name)
    file = getattr(main, "__file__", None)
    if file is None:
        raise ConfigurationError("several processes need a program they can import, and this one is no file")
    return Target(name, main_path=str(Path(file).absolute()))


def load_target(target: Target) -> Application:
    """The app, in a process that was started to run it."""
    if target.main_module is None and target.main_path is None:
        return load_app(target.name)
    module = types.ModuleType(SPAWNED)
    if target.main_module is not None:
        module.__dict__.update(runpy.run_module(target.main_module, run_name=SPAWNED, alter_sys=True))
    else:
        module.__dict__.update(runpy.run_path(str(target.main_path), run_name=SPAWNED))
    sys.modules["__main__"] = sys.modules[SPAWNED] = module
    found = getattr(module, target.name, None)
    if not _is_app(found):
        raise ConfigurationError(f"the program defines no app named {target.name!r} unless it is run as the main one")
    return found
