"""The walk through all that an object refers to, and how data are taken in on the way."""

import hashlib
import io
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from copyreg import dispatch_table
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.identity import functions, networks
from stages.identity.functions import UnnameableError

MOST = 1_000_000
"""Values that are looked at before an object is given up: more are taken for a tangle without an end."""


def object_fingerprint(value: object) -> str:
    """32 hexadecimal digits that name a live object: a model, a function, or anything that they hold.

    Raises UnnameableError, which says where, for what has no identity that could be read off (a generator, an open
    file, an object of a compiled extension that cannot be pickled).
    """
    try:
        return Walk().fingerprint(value)
    except RecursionError:
        raise UnnameableError(f"a {type(value).__name__} is nested too deeply to be named") from None


class Walk:
    """One pass through all that an object refers to.

    What is shared counts as if it were not, so that a copy has the same name. Classes, and the globals of functions,
    refer to each other in circles: where one is met its name is taken in, and what it consists of comes later, once.
    """

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.above: list[int] = []  # the objects inside which this one was met
        self.later: dict[object, Callable[[], None]] = {}
        self.alive: list[object] = []  # an id is an object's own only while it lives
        self.visits = 0

    def fingerprint(self, value: object) -> str:
        whole = self.apart(lambda: self.visit(value, type(value).__name__))
        done: dict[object, str] = {}
        while waiting := self.later.keys() - done.keys():
            for key in waiting:
                done[key] = self.apart(self.later[key])
        return hashlib.sha256("".join([whole, *sorted(done.values())]).encode()).hexdigest()[:32]

    def write(self, *words: object) -> None:
        """Take in words, each with its length: what they are made of cannot be split in another way."""
        for word in words:
            content = word if isinstance(word, bytes | memoryview) else str(word).encode()
            self.digest.update(f"{len(content)}:".encode())
            self.digest.update(content)

    def visit(self, value: Any, at: str) -> None:  # noqa: ANN401 - anything
        """Take in a value; ``at`` says where it was found, for the message."""
        self.visits += 1
        if self.visits > MOST:
            raise UnnameableError(f"{at} lies in an object of more than {MOST:,} parts")
        if value is None or isinstance(value, bool | int | float | complex | str | bytes):
            self.write(type(value).__qualname__, value if isinstance(value, bytes) else repr(value))
        elif id(value) in self.above:
            self.write("above", len(self.above) - self.above.index(id(value)))
        else:
            self.above.append(id(value))
            next((take for kinds, take in KINDS if isinstance(value, kinds)), take_object)(self, value, at)
            self.above.pop()

    def each(self, values: Mapping[Any, object], at: str) -> None:
        """A mapping in its own order, which may well decide what is computed."""
        self.write("mapping", len(values))
        for key, value in list(values.items()):
            self.visit(key, f"{at}, a key")
            self.visit(value, f"{at}.{key}" if isinstance(key, str) else f"{at}[{key!r:.40}]")

    def once(self, key: object, value: object, take: Callable[[], None]) -> None:
        """Have something taken in later, and not again for the same key, which lives as long as ``value``."""
        if key not in self.later:
            self.later[key] = take
            self.alive.append(value)

    def apart(self, take: Callable[[], None]) -> str:
        """The digest of what is taken in by itself."""
        outside = self.digest, self.above
        self.digest, self.above = hashlib.sha256(), []
        take()
        found = self.digest.hexdigest()
        self.digest, self.above = outside
        return found


def take_sequence(walk: Walk, values: Any, at: str) -> None:  # noqa: ANN401 - list, tuple and their kin
    _extension(walk, values, at)
    walk.write("sequence", len(values))
    for number, value in enumerate(list(values)):
        walk.visit(value, f"{at}[{number}]")


def take_set(walk: Walk, values: Any, at: str) -> None:  # noqa: ANN401 - set, frozenset
    _extension(walk, values, at)
    walk.write("set", *sorted(walk.apart(lambda value=value: walk.visit(value, at)) for value in values))


def take_mapping(walk: Walk, values: Any, at: str) -> None:  # noqa: ANN401 - dict and its kin
    _extension(walk, values, at)
    walk.each(values, at)


def _extension(walk: Walk, values: object, at: str) -> None:
    """The class of a container, and what it has beside its content, where it is not one of Python's own."""
    walk.write(type(values).__qualname__)
    if type(values).__module__ != "builtins":
        walk.visit(type(values), f"the class of {at}")
        walk.each(getattr(values, "__dict__", {}), at)


def take_tensor(walk: Walk, value: Tensor, at: str) -> None:
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        raise UnnameableError(f"{at} is a {value.layout} tensor of {value.dtype} on {value.device}")
    plain = value.detach().cpu().contiguous()
    plain = torch.view_as_real(plain.resolve_conj()) if plain.is_complex() else plain
    walk.write("tensor", value.dtype, tuple(value.shape), plain.reshape(-1).view(torch.uint8).numpy().data)


def take_array(walk: Walk, value: Any, at: str) -> None:  # noqa: ANN401 - array or NumPy number
    values = np.ascontiguousarray(value)
    if values.dtype.hasobject:
        take_sequence(walk, values.ravel().tolist(), at)
    walk.write("array", values.dtype.str, values.shape, b"" if values.dtype.hasobject else values.tobytes())


def take_object(walk: Walk, value: object, at: str) -> None:
    """Any other object: by its class and attributes, or by what would be pickled of it."""
    kind = type(value)
    walk.write("object")
    walk.visit(kind, f"the class of {at}")
    if kind not in dispatch_table and _is_pickled_by_attributes(kind):
        walk.each(attributes_of(value), at)
        return
    try:
        reduced = dispatch_table[kind](value) if kind in dispatch_table else value.__reduce_ex__(2)
    except Exception as error:  # whatever anybody's __reduce__ may raise
        raise UnnameableError(f"{at} is a {kind.__qualname__}, by which nothing can be recognised") from error
    if isinstance(reduced, str):  # the name of a global
        walk.write(reduced)
        walk.visit(getattr(value, "__wrapped__", None), at)  # of a cached function
        return
    for part in reduced:
        walk.visit(list(part) if isinstance(part, Iterator) else part, at)  # items and pairs come as iterators


def _is_pickled_by_attributes(kind: type) -> bool:
    own = {name for each in kind.__mro__ if each is not object for name in vars(each)}
    return own.isdisjoint({"__reduce_ex__", "__reduce__", "__getstate__"})


def attributes_of(value: object) -> dict[str, object]:
    """The attributes of an object, in its dictionary and its slots."""
    slots = [vars(kind).get("__slots__", ()) for kind in type(value).__mro__]
    names = [name for each in slots for name in ((each,) if isinstance(each, str) else each)]
    named = {name: getattr(value, name) for name in names if name != "__dict__" and hasattr(value, name)}
    return {**named, **getattr(value, "__dict__", {})}


def refuse(walk: Walk, value: object, at: str) -> None:
    raise UnnameableError(f"{at} is a {type(value).__qualname__}, by which nothing can be recognised")


def take_kind(walk: Walk, value: object, at: str) -> None:
    """What is alike for all values of a kind: where something is computed, and who waits for whom."""
    walk.write(type(value).__qualname__)


def take_text(walk: Walk, value: object, at: str) -> None:
    walk.write(type(value).__qualname__, value)


def take_generator(walk: Walk, value: torch.Generator, at: str) -> None:
    walk.visit(value.get_state(), at)


KINDS: tuple[tuple[Any, Callable[[Walk, Any, str], None]], ...] = (
    *networks.KINDS,
    (Tensor, take_tensor),
    ((np.ndarray, np.generic), take_array),
    *functions.KINDS,
    ((dict, types.MappingProxyType), take_mapping),
    ((list, tuple), take_sequence),
    ((set, frozenset), take_set),
    ((torch.dtype, torch.layout, torch.memory_format, np.dtype), take_text),
    ((torch._ops.OpOverload, torch._ops.OpOverloadPacket), take_text),
    (torch.Generator, take_generator),
    ((torch.device, type(threading.Lock()), type(threading.RLock())), take_kind),
    ((types.GeneratorType, io.IOBase), refuse),
)
"""How each kind is taken in; the first that fits, else `take_object`."""
