"""Reading CIFAR-10's pickles without running what is in them.

A pickle is a program: it names functions and has the reader call them. This reader knows a handful of
names, those by which Python 2 and Python 3 write a NumPy array, and gives each a stand-in of its own,
so that not even NumPy sees anything that was not checked. Every other name is refused.
"""

import io
import pickle

import numpy as np
from jaxtyping import UInt8


class PickledByteType:
    """Stands in for numpy.dtype. Raises UnpicklingError for any type but uint8."""

    def __init__(self, name: str, *flags: object) -> None:
        if name not in ("u1", "|u1", "uint8"):
            raise pickle.UnpicklingError(f"it holds an array of type {name!r} where only uint8 belongs")

    def __setstate__(self, state: object) -> None:
        """Ignores byte order and alignment, which single bytes do not have."""


class PickledArray:
    """Stands in for numpy.ndarray; ``values`` is the array."""

    def __init__(self) -> None:
        self.values: UInt8[np.ndarray, "..."] = np.empty(0, np.uint8)

    def __setstate__(self, state: tuple[int, tuple[int, ...], PickledByteType, bool, bytes | bytearray | str]) -> None:
        _, shape, _, column_major, content = state
        if isinstance(content, str):  # a byte string of Python 2
            content = content.encode("latin1")
        array = np.frombuffer(content, np.uint8).reshape(shape, order="F" if column_major else "C")
        self.values = np.ascontiguousarray(array)


def reconstruct(*arguments: object) -> PickledArray:
    """Stands in for NumPy's ``_reconstruct``, after which a pickle sets the array's state."""
    return PickledArray()


def from_buffer(content: bytes | bytearray, kind: PickledByteType, shape: tuple[int, ...], order: str) -> PickledArray:
    """Stands in for NumPy's ``_frombuffer``, by which protocol 5 writes an array."""
    array = PickledArray()
    array.__setstate__((1, shape, kind, order == "F", content))
    return array


def encode(text: str, encoding: str) -> bytes:
    """Stands in for ``_codecs.encode``, by which Python 3 writes bytes in the protocols of Python 2."""
    return text.encode("latin1")


# NumPy 2 renamed numpy.core to numpy._core.
ADMITTED = {
    ("numpy.core.multiarray", "_reconstruct"): reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): reconstruct,
    ("numpy.core.numeric", "_frombuffer"): from_buffer,
    ("numpy._core.numeric", "_frombuffer"): from_buffer,
    ("numpy", "ndarray"): PickledArray,
    ("numpy", "dtype"): PickledByteType,
    ("_codecs", "encode"): encode,
}


class ArrayUnpickler(pickle.Unpickler):
    """Reads plain containers, numbers, text and arrays of uint8, and nothing else."""

    def find_class(self, module_name: str, global_name: str) -> object:
        try:
            return ADMITTED[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module_name}.{global_name}, which a batch of images does not need; it was not run"
            ) from None


def load_pickle(content: bytes) -> object:
    """What a pickle holds, with each array as a `PickledArray` and Python 2's byte strings as latin1 text.

    Raises UnpicklingError for a name that is not admitted, and whatever else a damaged pickle leads to
    (EOFError, ValueError, TypeError, ...).
    """
    return ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
