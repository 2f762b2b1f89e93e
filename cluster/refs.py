"""Values in the object store, which workers get by reference."""

import platform
from dataclasses import dataclass
from typing import Generic, TypeVar

import ray
from ray import ObjectRef
from ray.exceptions import ObjectLostError

from cluster.parcels import Parcel, ParcelError, pack
from cluster.tasks import LostError

Value = TypeVar("Value")


@dataclass(frozen=True)
class Ref(Generic[Value]):
    """A value in the object store: cheap to pass to any number of workers, which ``get`` it."""

    _ref: "ObjectRef[Parcel[Value]]"

    def get(self) -> Value:
        """The value; arrays are read-only views of shared memory.

        Raises ParcelError where this process cannot import what the driver could, and LostError where the value is gone
        with the process that stored it.
        """
        try:
            parcel = ray.get(self._ref)
        except ObjectLostError as error:
            raise LostError(f"a value in the object store is gone, with the process that stored it: {error}") from None
        try:
            return parcel.open()
        except ImportError as error:
            raise ParcelError(
                f"a worker process on {platform.node()} cannot import what the driver can ({error}): install it on "
                "every node, or put it into a folder that all nodes see under the same path"
            ) from error


def put(value: Value | Parcel[Value]) -> Ref[Value]:
    """Store a value once for all workers; it lives as long as a Ref to it, and as this process.

    Raises ParcelError for what cannot be sent; what a user hands in is packed before a session starts.
    """
    parcel = value if isinstance(value, Parcel) else pack(value, f"an object of type {type(value).__name__}")
    return Ref(ray.put(parcel))
