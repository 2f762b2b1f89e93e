"""How code is taken in: functions by what they do, classes by their members, packages by their version."""

import dis
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.identity.installed import package_of, package_of_module

if TYPE_CHECKING:
    from stages.identity.walk import Walk

# What of a class says nothing of what its instances compute, or is made from what is looked at anyway.
ASIDE = {
    "__doc__",
    "__annotations__",
    "__module__",
    "__qualname__",
    "__dict__",
    "__weakref__",
    "__slots__",
    "__slotnames__",
    "_abc_impl",
    "__abstractmethods__",
    "__dataclass_fields__",
    "__dataclass_params__",
    "__match_args__",
    "__parameters__",
    "__orig_bases__",
    "__firstlineno__",
    "__static_attributes__",
    "__annotate__",
    "__annotate_func__",
}


class UnnameableError(TypeError):
    """Something that decides what an object computes, and by which it cannot be recognised."""


def take_function(walk: "Walk", function: types.FunctionType, at: str) -> None:
    """A function by what it does. One of a package counts by name, and so does its decorator by what it wraps."""
    code, inner = function.__code__, getattr(function, "__wrapped__", None)
    package = package_of(code.co_filename)
    if inner is not None and _only_checks(code.co_filename, package):
        walk.visit(inner, at)
        return
    if package is None:
        take_code(walk, code, at)
        walk.once((id(code), id(function.__globals__)), function, lambda: _take_globals(walk, function, at))
    else:
        walk.write("function", package, code.co_qualname)
        if inner is not None:
            walk.visit(inner, at)
            return
    walk.visit(function.__defaults__, f"the defaults of {at}")
    walk.visit(function.__kwdefaults__, f"the defaults of {at}")
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            content = cell.cell_contents
        except ValueError:  # not filled yet, as in a function that names itself
            walk.write("empty cell")
        else:
            walk.visit(content, f"{name} in {at}")


def _only_checks(file: str, package: str | None) -> bool:
    """Whether a decorator checks the types of what passes it, and changes nothing."""
    return file.startswith("<@beartype(") or (package or "").split(" ")[0] in ("beartype", "jaxtyping")


def take_code(walk: "Walk", code: types.CodeType, at: str) -> None:
    walk.write("code", code.co_code, code.co_flags, code.co_argcount, code.co_kwonlyargcount, code.co_exceptiontable)
    walk.write(*code.co_names, "|", *code.co_varnames, "|", *code.co_freevars, "|", *code.co_cellvars)
    walk.visit(code.co_consts, f"a constant of {at}")


def _take_globals(walk: "Walk", function: types.FunctionType, at: str) -> None:
    """The globals that a function's code looks up; of a module those attributes alone that the code names."""
    looked_up, attributes = _names(function.__code__)
    walk.write("globals", function.__module__, function.__qualname__)
    for name in looked_up:
        if name in function.__globals__:
            _take_global(walk, function.__globals__[name], attributes, f"{name} of {at}")
    for name in attributes:  # an import inside the function
        if isinstance(module := sys.modules.get(name), types.ModuleType):
            _take_global(walk, module, attributes, f"{name} of {at}")


def _take_global(walk: "Walk", value: object, attributes: list[str], at: str) -> None:
    if not isinstance(value, types.ModuleType):
        walk.visit(value, at)
    elif id(value) not in walk.above:
        package = package_of_module(value.__name__)
        walk.write("module", value.__name__, package)
        walk.above.append(id(value))
        for name in attributes if package is None else ():
            if name in vars(value):
                _take_global(walk, vars(value)[name], attributes, f"{name} of {at}")
        walk.above.pop()


def _names(code: types.CodeType) -> tuple[list[str], list[str]]:
    """The globals that code looks up, and the attributes and imported names that it asks for, inner functions
    included."""
    looked_up: dict[str, None] = {}
    attributes: dict[str, None] = {}
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            looked_up[instruction.argval] = None
        elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD", "IMPORT_NAME", "IMPORT_FROM"):
            attributes[instruction.argval] = None
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner = _names(constant)
            looked_up |= dict.fromkeys(inner[0])
            attributes |= dict.fromkeys(inner[1])
    return list(looked_up), list(attributes)


def take_class(walk: "Walk", kind: type, at: str) -> None:
    walk.write("class", kind.__module__, kind.__qualname__)
    walk.once(id(kind), kind, lambda: _take_members(walk, kind, at))


def _take_members(walk: "Walk", kind: type, at: str) -> None:
    """A class by its methods, constants and bases; one of a package by name, and by bases that are none of its own."""
    package = package_of_module(kind.__module__)
    walk.write("members", kind.__module__, kind.__qualname__, package)
    for base in kind.__bases__:
        walk.visit(base, f"a base of {at}")
    if package is None:
        members = {name: value for name, value in vars(kind).items() if name not in ASIDE}
        walk.each(members, f"class {kind.__qualname__}")


def take_method(walk: "Walk", method: types.MethodType, at: str) -> None:
    walk.write("method")
    walk.visit(method.__func__, at)
    walk.visit(method.__self__, f"the owner of {at}")


def take_builtin(walk: "Walk", function: Any, at: str) -> None:  # noqa: ANN401 - of several types
    walk.write("builtin", getattr(function, "__module__", ""), function.__qualname__)
    owner = getattr(function, "__self__", None)
    if owner is not None and not isinstance(owner, types.ModuleType | type):
        walk.visit(owner, f"the owner of {at}")


def take_slot(walk: "Walk", value: Any, at: str) -> None:  # noqa: ANN401 - member and getset descriptors
    walk.write("slot", value.__qualname__)


def take_descriptor(walk: "Walk", value: Any, at: str) -> None:  # noqa: ANN401 - static and class methods, properties
    walk.write(type(value).__qualname__)
    for name in ("__func__", "fget", "fset"):
        if callable(found := getattr(value, name, None)):
            walk.visit(found, at)


def take_module(walk: "Walk", module: types.ModuleType, at: str) -> None:
    """A module that is kept as a value, by its source: whoever has it may use all of it."""
    package = package_of_module(module.__name__)
    walk.write("module", module.__name__, package)
    if package is not None:
        return
    if getattr(module, "__file__", None) is None:
        raise UnnameableError(f"{at} is the module {module.__name__}, which has no source file")
    walk.write(Path(str(module.__file__)).read_bytes())


KINDS: tuple[tuple[Any, Callable[["Walk", Any, str], None]], ...] = (
    (types.FunctionType, take_function),
    (types.MethodType, take_method),
    ((types.BuiltinFunctionType, types.WrapperDescriptorType, types.MethodDescriptorType), take_builtin),
    ((types.ClassMethodDescriptorType, types.MethodWrapperType), take_builtin),
    ((types.MemberDescriptorType, types.GetSetDescriptorType), take_slot),
    (types.CodeType, take_code),
    (type, take_class),
    ((staticmethod, classmethod, property), take_descriptor),
    (types.ModuleType, take_module),
)
