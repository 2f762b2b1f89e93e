import functools
import gzip
import hashlib
import http.server
import io
import tarfile
import threading

import numpy as np
import pytest

from stages.data import download, formats, sources
from stages.data.datasets import DataConfig, load_data
from stages.data.download import DownloadBar, fetch, unpack
from stages.data.formats import DataError


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *arguments):
        pass


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A folder, and the address on this machine where its files can be fetched."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


def md5(content):
    return hashlib.md5(content).hexdigest()


def archive(files):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def test_mnist_is_fetched_to_where_torchvision_puts_it(mirror, tmp_path, monkeypatch):
    folder, address = mirror
    shapes = {"train-images-idx3-ubyte": (9, 28, 28), "train-labels-idx1-ubyte": (9,)}
    shapes |= {"t10k-images-idx3-ubyte": (4, 28, 28), "t10k-labels-idx1-ubyte": (4,)}
    sums = {}
    for name, shape in shapes.items():
        array = np.random.default_rng(0).integers(0, 10, shape, dtype=np.uint8)
        content = bytes((0, 0, 8, len(shape))) + np.array(shape, ">u4").tobytes() + array.tobytes()
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        sums[f"{name}.gz"] = md5((folder / f"{name}.gz").read_bytes())
    assert list(sums) == list(download.MNIST_MD5)
    monkeypatch.setattr(sources, "MNIST_SHAPES", shapes)
    monkeypatch.setattr(download, "MNIST_MIRROR", address)
    monkeypatch.setattr(download, "MNIST_MD5", sums)
    config = DataConfig(name="mnist", root=str(tmp_path / "data"), holdout_images=3, download=True)
    data = load_data(config)
    assert (len(data.train), len(data.holdout), len(data.test)) == (6, 3, 4)
    assert {path.name for path in (tmp_path / "data" / "MNIST" / "raw").iterdir()} == set(sums)
    monkeypatch.setattr(download, "MNIST_MIRROR", "http://127.0.0.1:1/")
    assert load_data(config).train.fingerprint == data.train.fingerprint, "it was fetched twice"


def test_cifar10_is_fetched_and_unpacked_to_where_torchvision_puts_it(mirror, tmp_path, monkeypatch):
    folder, address = mirror
    monkeypatch.setattr(formats, "BATCH_IMAGES", 2)
    batches = {
        f"cifar-10-batches-bin/{name}.bin": bytes([number] + [0] * 3072 + [number] + [1] * 3072)
        for number, name in enumerate(sources.CIFAR10_BATCHES)
    }
    packed = archive(batches | {"cifar-10-batches-bin/readme.html": b"hello"})
    (folder / "cifar-10-binary.tar.gz").write_bytes(packed)
    monkeypatch.setattr(download, "CIFAR10_MIRROR", address)
    monkeypatch.setattr(download, "CIFAR10_MD5", {"cifar-10-binary.tar.gz": md5(packed)})
    data = load_data(DataConfig(name="cifar10", root=str(tmp_path), holdout_images=4, download=True))
    assert data.name == "CIFAR-10"
    assert sorted([*data.train.labels, *data.holdout.labels]) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert data.test.labels.tolist() == [5, 5]
    unpacked = {path.name for path in (tmp_path / "cifar-10-batches-bin").iterdir()}
    assert unpacked == {f"{name}.bin" for name in sources.CIFAR10_BATCHES}


def test_nothing_of_an_archive_lands_outside_the_folder(tmp_path):
    packed = tmp_path / "archive.tar.gz"
    packed.write_bytes(archive({"../../outside.bin": b"1", str(tmp_path / "absolute.bin"): b"2"}))
    with tarfile.open(tmp_path / "links.tar", "w") as tar:
        link = tarfile.TarInfo("link.bin")
        link.type, link.linkname = tarfile.SYMTYPE, str(packed)
        tar.addfile(link)
    before = sorted(tmp_path.rglob("*"))
    unpack(packed, tmp_path / "inner" / "folder")
    unpack(tmp_path / "links.tar", tmp_path / "inner" / "folder")
    inner = [tmp_path / "inner", tmp_path / "inner" / "folder"]
    files = [inner[1] / "absolute.bin", inner[1] / "outside.bin"]
    assert sorted(tmp_path.rglob("*")) == sorted([*before, *inner, *files])


def test_a_file_that_arrives_with_another_checksum_is_refused_and_not_kept(mirror, tmp_path):
    folder, address = mirror
    (folder / "file").write_bytes(b"not what was asked for")
    with pytest.raises(DataError, match=r"/file could not be fetched to .*data: .*--data\.root"):
        fetch(address, "file", md5(b"what was asked for"), tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_a_file_that_the_mirror_lacks_is_named(mirror, tmp_path):
    _, address = mirror
    with pytest.raises(DataError, match=r"/absent could not be fetched to .*: 404"):
        fetch(address, "absent", md5(b""), tmp_path)


def test_a_damaged_file_is_fetched_again(mirror, tmp_path):
    folder, address = mirror
    (folder / "file").write_bytes(b"whole")
    (tmp_path / "file").write_bytes(b"who")
    assert fetch(address, "file", md5(b"whole"), tmp_path).read_bytes() == b"whole"


def test_the_bar_draws_on_a_terminal_and_is_silent_elsewhere(capsys, monkeypatch):
    def draw():
        with DownloadBar("mnist.gz") as bar:
            bar.total = 2_000_000
            bar.update(1_500_000)
            bar.reset()
            bar.update(2_000_000)
            assert bar.total == 2_000_000
        return capsys.readouterr().err

    assert draw() == ""
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "2.0/2.0 MB" in draw()
