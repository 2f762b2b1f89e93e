"""Pictures become 8-bit arrays as they are, or are refused: nothing is cut off or made grey unasked."""

import numpy as np
import pytest
from PIL import Image

from stages.data.formats import DataError
from stages.data.pictures import array_of

GREY, COLOUR = Image.new("L", (4, 3), 7), Image.new("RGB", (4, 3), (9, 8, 7))


def stored(values: list, kind: type, folder) -> str:
    """The file of a picture of these values, in grey of more than 8 bits."""
    path = str(folder / "wide.tif")
    Image.fromarray(np.resize(np.array(values, kind), (3, 4))).save(path)
    return path


@pytest.mark.parametrize("channels", [None, 1, 3])
@pytest.mark.parametrize(
    ("values", "kind", "mode"),
    [
        ([0, 4095], np.uint16, "I;16"),
        ([0, 65535], np.int32, "I"),
        ([-1, 5], np.int32, "I"),
        ([0.0, 0.5], np.float32, "F"),
        ([0.0, np.nan], np.float32, "F"),
    ],
)
def test_pixels_that_8_bits_do_not_hold_are_refused(values, kind, mode, channels, tmp_path):
    path = stored(values, kind, tmp_path)
    with pytest.raises(DataError, match=rf"wide.tif has pixels from .* in more than 8 bits \(mode {mode}\); .*scale"):
        array_of([GREY, path], size=None, channels=channels)


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_8_bits_in_wider_pixels_are_taken_as_they_are(kind, tmp_path):
    values = list(range(244, 256))
    (found,) = array_of([stored(values, kind, tmp_path)], size=None)
    assert found.ravel().tolist() == values


def test_a_picture_in_colour_among_grey_ones_is_not_made_grey_unasked():
    with pytest.raises(DataError, match=r"first picture is grey and picture 1 is in colour: give --data.channels"):
        array_of([GREY, COLOUR], size=None)
    assert array_of([COLOUR, GREY], size=None)[1].max() == 7
    assert array_of([GREY, COLOUR], size=None, channels=3)[1, :, 0, 0].tolist() == [9, 8, 7]
    assert array_of([GREY, COLOUR], size=None, channels=1).shape == (2, 1, 3, 4)
