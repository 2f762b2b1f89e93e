import builtins
import os
import pickle
import struct
import warnings

import numpy as np
import pytest

from stages.data.pickles import PickledArray, load_pickle

IMAGES = np.arange(6, dtype=np.uint8).reshape(2, 3) * 50


def text(content):
    """A byte string as Python 2 pickles it."""
    return b"T" + struct.pack("<i", len(content)) + content


def number(value):
    return b"J" + struct.pack("<i", value)


def python2_array(array, dtype=b"u1"):
    """An array as Python 2 and NumPy 1 pickle it, which is how CIFAR-10's own files have it."""
    flags = [number(3), text(b"|"), b"NNN", number(-1), number(-1), number(0)]
    kind = b"cnumpy\ndtype\n" + text(dtype) + number(0) + number(1) + b"\x87R(" + b"".join(flags) + b"tb"
    column_major = array.flags.f_contiguous and not array.flags.c_contiguous
    shape = b"(" + b"".join(map(number, array.shape)) + b"t"
    content = text(array.tobytes(order="A"))
    state = number(1) + shape + kind + (b"\x88" if column_major else b"\x89") + content
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + number(0) + b"\x85" + text(b"b")
    return empty + b"\x87R(" + state + b"tb"


def python2_batch(array, **options):
    return b"\x80\x02}(" + text(b"data") + python2_array(array, **options) + text(b"labels") + b"]u."


@pytest.mark.parametrize("array", [IMAGES, np.asfortranarray(IMAGES)], ids=["rows first", "columns first"])
def test_an_array_of_python_2_is_read_in_either_order(array):
    batch = load_pickle(python2_batch(array))
    assert isinstance(batch, dict)
    assert batch["labels"] == []
    np.testing.assert_array_equal(batch["data"].values, IMAGES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's own reader grumbles at the age, and agrees
        np.testing.assert_array_equal(pickle.loads(python2_batch(array), encoding="latin1")["data"], IMAGES)


@pytest.mark.parametrize("protocol", range(6))
def test_an_array_of_python_3_is_read(protocol):
    batch = load_pickle(pickle.dumps({"data": IMAGES, "labels": [1, 2]}, protocol=protocol))
    assert isinstance(batch, dict)
    assert batch["labels"] == [1, 2]
    assert isinstance(batch["data"], PickledArray)
    np.testing.assert_array_equal(batch["data"].values, IMAGES)


class Malicious:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
def test_a_command_in_a_pickle_is_refused_by_name_and_not_run(protocol, tmp_path):
    witness = tmp_path / "witness"
    bomb = pickle.dumps({"labels": [1], "data": Malicious(os.system, f"touch {witness}")}, protocol=protocol)
    with pytest.raises(pickle.UnpicklingError, match=r"posix\.system.*not run"):
        load_pickle(bomb)
    assert not witness.exists()
    pickle.loads(bomb)
    assert witness.exists(), "the bomb is harmless, and this test proves nothing"


@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (builtins.eval, ("1",), "eval"),
        (builtins.getattr, (1, "real"), "getattr"),
        (np.load, ("somewhere",), "load"),
        (np.fromfile, ("somewhere",), "fromfile"),
    ],
)
def test_every_other_name_is_refused(function, arguments, name):
    with pytest.raises(pickle.UnpicklingError, match=name):
        load_pickle(pickle.dumps(Malicious(function, *arguments), protocol=2))


@pytest.mark.parametrize("dtype", [b"O8", b"i8", b"f4", b"V3072"])
def test_an_array_of_another_type_is_refused(dtype):
    with pytest.raises(pickle.UnpicklingError, match=dtype.decode()):
        load_pickle(python2_batch(IMAGES, dtype=dtype))


def test_an_array_whose_shape_and_bytes_disagree_is_refused():
    content = python2_batch(IMAGES).replace(number(2) + number(3), number(2) + number(4))
    with pytest.raises(ValueError, match="reshape"):
        load_pickle(content)
