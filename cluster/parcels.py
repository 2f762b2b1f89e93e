"""What travels to workers, pickled on the driver: what cannot travel is refused there, before Ray starts.

Beyond what cloudpickle takes: modules with parametrizations (`spectral_norm`, `weight_norm`), TorchScript, models on
a GPU that a worker does not have, and what was imported in a way in which a worker could not.

>>> pack({"weights": [1, 2]}, "the weights").open()
{'weights': [1, 2]}
"""

import copyreg
import io
import os
import pickle
import platform
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import FunctionType, ModuleType
from typing import Any, Generic, TypeVar

from ray import cloudpickle

Value = TypeVar("Value")


class ParcelError(ValueError):
    """Something that cannot be sent to worker processes."""


@dataclass(frozen=True, eq=False)
class Parcel(Generic[Value]):
    """A pickled value. Its arrays lie beside it, so that workers read them where the object store holds them."""

    content: pickle.PickleBuffer
    arrays: list[pickle.PickleBuffer]
    what: str = ""
    name: Callable[[Value], str] | None = None
    found: str = ""
    """What `name` gave where it was packed."""

    def open(self) -> Value:
        """The value again; arrays are read-only views. Raises ParcelError where it has another name here."""
        value = pickle.loads(self.content, buffers=self.arrays)
        if self.name is not None and self.name(value) != self.found:
            raise ParcelError(
                f"{self.what} is another one in a worker process on {platform.node()}, which imports its code anew: a "
                "global, method or file that it uses was changed after it was imported here, or there is another "
                "version there. Keep what it needs in its attributes, or set it in the module's own source"
            )
        return value


def pack(value: Value, what: str, *, name: Callable[[Value], str] | None = None) -> Parcel[Value]:
    """The value as a parcel, which was opened once to see that it can be.

    ``name`` is to give the same for the value wherever the parcel is opened, or it is not the same value there. Raises
    ParcelError, which names ``what`` and the reason, where it cannot be pickled, or not be read again.
    """
    try:
        parcel = _pickled(value)
        opened = parcel.open()
    except Exception as error:  # whatever anybody's __reduce__ and __setstate__ raise
        culprit = next(_culprits(value), "")
        raise ParcelError(
            f"{what} cannot be sent to worker processes: {culprit}{type(error).__name__}: {error}; make such a thing "
            "when it is first used, or leave it out in __getstate__"
        ) from error
    return parcel if name is None else replace(parcel, what=what, name=name, found=name(opened))


def _pickled(value: object) -> Parcel:
    file, arrays = io.BytesIO(), []
    packer = _Packer(file, protocol=5, buffer_callback=arrays.append)
    try:
        packer.dump(value)
    finally:
        packer.forget()
    return Parcel(pickle.PickleBuffer(file.getvalue()), arrays)


class _Packer(cloudpickle.CloudPickler):  # pyright: ignore[reportPrivateImportUsage]
    """A cloudpickle that knows PyTorch, and sends code along that workers could not import."""

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - pickle's
        super().__init__(*arguments, **options)
        self._importable: dict[str, bool] = {}
        self._sent: list[ModuleType] = []

    def reducer_override(self, obj: Any) -> Any:  # noqa: ANN401 - pickle's
        # An actor that has nothing to do with PyTorch is spared the import.
        if "torch" in sys.modules and (reduced := _reduced(obj)) is not None:
            return reduced
        module = obj if isinstance(obj, ModuleType) else None
        if isinstance(obj, type | FunctionType):
            module = sys.modules.get(obj.__module__ or "")
        if module is not None and not self._is_importable(module):
            cloudpickle.register_pickle_by_value(module)
            self._sent.append(module)
        return super().reducer_override(obj)

    def forget(self) -> None:
        for module in self._sent:
            cloudpickle.unregister_pickle_by_value(module)

    def _is_importable(self, module: ModuleType) -> bool:
        name = module.__name__
        if name == "__main__" or name in cloudpickle.list_registry_pickle_by_value():
            return True  # of which cloudpickle sends the code itself
        top = name.partition(".")[0]
        if top not in self._importable:
            self._importable[top] = _is_found(top)
        return self._importable[top]


def _is_found(name: str) -> bool:
    """Whether an import of this name finds what stands under it: not if it was loaded from a file by its path."""
    loaded = getattr(sys.modules.get(name), "__file__", None)
    specs = (finder.find_spec(name, None) for finder in sys.meta_path if hasattr(finder, "find_spec"))
    spec = next((found for found in specs if found is not None), None)
    if spec is None:
        return False
    return loaded is None or not spec.has_location or os.path.realpath(loaded) == os.path.realpath(spec.origin or "")


def _reduced(obj: Any) -> tuple | None:  # noqa: ANN401 - anything
    """How pickle is to write an object of PyTorch's that refuses to be pickled, or that would ask for a GPU."""
    import torch
    from torch.nn.utils import parametrize

    if isinstance(obj, torch.jit.ScriptModule | torch.jit.ScriptFunction):
        return _load_script, (obj.save_to_buffer(),)  # pyright: ignore[reportCallIssue]
    if isinstance(obj, torch.nn.Module) and parametrize.is_parametrized(obj):
        # PyTorch puts a class in between whose __getstate__ raises; that of the class itself is the next one.
        return copyreg.__newobj__, (type(obj),), super(type(obj), obj).__getstate__()  # pyright: ignore[reportAttributeAccessIssue]
    if type(obj) is torch.Tensor and obj.device.type not in ("cpu", "meta"):  # of parameters this is the data
        return obj.detach().cpu().requires_grad_(obj.requires_grad).__reduce_ex__(5)
    return None


def _load_script(content: bytes) -> Any:  # noqa: ANN401 - a ScriptModule
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of all of TorchScript, which is the user's choice
        return torch.jit.load(io.BytesIO(content), map_location="cpu")


def _culprits(value: object) -> Iterator[str]:
    """Which of the things that a module or a function holds cannot be pickled."""
    for owner, held in _holders(value):
        for name, each in held.items():
            try:
                _pickled(each).open()
            except Exception:
                yield f"{owner}{name}: "


def _holders(value: object) -> Iterator[tuple[str, Mapping[str, object]]]:
    if isinstance(value, FunctionType):
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        yield "", {name: cell.cell_contents for name, cell in cells}
        return
    for name, part in getattr(value, "named_modules", dict)():
        yield name and f"{name}.", {key: held for key, held in vars(part).items() if key != "_modules"}
