"""The archive of arrays is the ZIP that `zipfile` would write."""

import io
import json
import zipfile

import numpy as np
import pytest

from stages.trajectories import archive
from stages.trajectories.archive import SEAL, pack, unpack

ARRAYS = {"index": np.arange(300, dtype=np.int64), "signs": np.full((300, 2, 3), 7, np.uint8)}
ATTRIBUTES = {"kind": "näme"}


def test_an_archive_is_byte_for_byte_what_zipfile_writes_of_its_members() -> None:
    content = pack(ARRAYS, ATTRIBUTES)
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as found, zipfile.ZipFile(buffer, "w") as expected:
        assert found.testzip() is None
        for name in found.namelist():
            expected.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), found.read(name))
        expected.comment = content[-SEAL:]
    assert buffer.getvalue() == content


def test_the_last_chunk_is_filled_up() -> None:
    with zipfile.ZipFile(io.BytesIO(pack(ARRAYS, ATTRIBUTES))) as found:
        assert [name for name in found.namelist() if "/c/" in name] == [
            "index/c/0",
            "index/c/1",
            "signs/c/0/0/0",
            "signs/c/1/0/0",
        ]
        assert json.loads(found.read("index/zarr.json"))["shape"] == [300]
    arrays, attributes = unpack(pack(ARRAYS, ATTRIBUTES))
    assert attributes == ATTRIBUTES
    assert all(np.array_equal(arrays[name], array) for name, array in ARRAYS.items())


def test_what_does_not_fit_into_a_zip_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "LARGEST", 500)
    with pytest.raises(ValueError, match=r"more than 4 GiB: make schedule\.cohort_images smaller"):
        pack(ARRAYS, ATTRIBUTES)
