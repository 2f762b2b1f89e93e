"""The same behaviour of a directory, of memory, and of an S3 server; and what is refused, in words."""

import errno
import multiprocessing
import os
import pickle
from datetime import UTC, datetime, timedelta

import pytest

from stages.storage import Entry, Storage
from stages.storage_errors import MissingError, StorageError


@pytest.fixture(params=["directory", "memory", "s3"])
def storage(request, tmp_path):
    if request.param == "directory":
        return Storage.at(tmp_path / "root")
    if request.param == "memory":
        return Storage.at(f"memory://{tmp_path.name}")
    return Storage.at(f"{request.getfixturevalue('s3_bucket')}/{tmp_path.name}")


def test_what_was_put_comes_back_and_is_replaced_whole(storage):
    storage.put("a/b", b"one")
    storage.put("a/b", b"two")
    assert storage.get("a/b") == b"two"
    assert storage.find("a/c") is None
    with pytest.raises(MissingError, match="a/c: there is no such object"):
        storage.get("a/c")


def test_only_the_first_creation_writes(storage):
    assert storage.create("a", b"one")
    assert not storage.create("a", b"two")
    assert storage.get("a") == b"one"


def test_a_listing_names_what_lies_below_whole_parts_of_keys(storage):
    for key in ("runs/a/x", "runs/a/y/z", "runs/ab/x", "other"):
        storage.put(key, b"123")
    assert sorted(each.key for each in storage.entries("runs/a")) == ["runs/a/x", "runs/a/y/z"]
    now = datetime.now(UTC)
    assert set(storage.below("runs/a").entries()) == {Entry("x", 3, now), Entry("y/z", 3, now)}
    assert all(abs(now - each.modified) < timedelta(minutes=1) for each in storage.entries())
    assert storage.names("runs") == ["a", "ab"]
    assert storage.names("runs/a") == ["x", "y"]
    assert storage.names() == ["other", "runs"]
    assert storage.names("nothing") == []


def test_deleted_objects_are_gone_and_missing_ones_are_passed_over(storage):
    storage.put("a/b", b"")
    assert storage.exists("a/b")
    storage.delete(["a/b", "a/c"])
    assert not storage.exists("a/b")
    assert list(storage.entries()) == []


def test_swapping_asks_for_the_tag_that_is_there(storage):
    storage.put("a", b"one")
    found = storage.head("a")
    assert found is not None
    if storage.is_local:
        with pytest.raises(StorageError):
            storage.swap("a", b"two", tag=found["e_tag"])
        return
    assert storage.swap("a", b"two", tag=found["e_tag"])
    assert not storage.swap("a", b"three", tag=found["e_tag"])
    assert storage.get("a") == b"two"


def test_a_folder_becomes_objects_only_when_its_block_ends_well(storage):
    with storage.folder("model") as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_bytes(b"x")
    assert storage.get("model/deep/file") == b"x"

    def fail() -> None:
        with storage.folder("other") as folder:
            (folder / "file").write_bytes(b"x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert storage.names() == ["model"]


def test_a_usable_place_passes_its_check_and_is_left_as_it_was(storage):
    storage.check()
    assert list(storage.entries()) == []


def test_it_is_sent_to_another_process_as_its_address(storage):
    sent = pickle.dumps(storage.below("a"))
    assert len(sent) < 300
    storage.put("a/b", b"x")
    assert pickle.loads(sent).get("b") == b"x"


def test_locations_are_paths_or_urls():
    assert (
        Storage.at("s3://bucket/rap/").below("runs").below("x/").location("a.json") == "s3://bucket/rap/runs/x/a.json"
    )
    assert Storage.at("/tmp/rap").below("runs/x").location() == "/tmp/rap/runs/x"
    assert Storage.at("/tmp/rap").below("runs/x").name == "x"


@pytest.mark.parametrize("place", ["ftp://host/x", "s3://", "http://host/bucket"])
def test_an_unknown_scheme_is_refused(place):
    with pytest.raises(StorageError, match="s3://, gs://, az://"):
        Storage.at(place)


def test_credentials_in_a_url_are_refused_and_not_repeated():
    with pytest.raises(StorageError, match="leave credentials in the environment") as refused:
        Storage.at("s3://name:secret@bucket/x")
    assert "secret" not in str(refused.value)


def test_a_bucket_that_is_not_there_is_named(s3_bucket):
    with pytest.raises(StorageError, match=r"s3://nobucket/x.*no such bucket \(NoSuchBucket\)"):
        Storage.at("s3://nobucket/x").check()


def test_a_server_that_is_not_there_is_named_before_work(s3_bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match="cannot be reached") as refused:
        Storage.at("s3://elsewhere/x").check()
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in str(refused.value)
    assert refused.value.__cause__ is None


def test_a_bucket_that_refuses_any_request_says_that_rights_are_lacking(s3_server, s3_bucket):
    storage = Storage.at(s3_bucket)
    asked = [
        *(lambda: storage.get("a"), lambda: storage.put("a", b""), lambda: storage.head("a")),
        *(lambda: storage.names("a"), lambda: list(storage.entries("a")), lambda: storage.delete(["a"])),
    ]
    with s3_server.failing(lambda number: "403"):
        for ask in asked:
            with pytest.raises(StorageError, match=r"no rights to read or write there .*check the credentials"):
                ask()


def test_reading_makes_no_directory(tmp_path):
    storage = Storage.at(tmp_path / "root").below("runs")
    assert storage.find("a") is None
    assert (list(storage.entries()), storage.names(), storage.exists("a")) == ([], [], False)
    storage.delete(["a"])
    assert not (tmp_path / "root").exists()


def test_a_missing_object_is_that_whatever_its_name(storage):
    for key in ("versions/403.safetensors", "connection/timed out", "credential/NoSuchBucket"):
        assert storage.find(key) is None


def test_a_directory_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="is a file"):
        Storage.at(tmp_path / "file" / "root").check()
    Storage.at(tmp_path / "not" / "yet").check()
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not os.path.exists("/proc/self"), reason="no /proc here")
def test_a_directory_whose_rights_allow_what_its_disk_does_not_is_refused():
    with pytest.raises(StorageError, match=r"/proc/rap-runs cannot be written: /proc .*; name another directory"):
        Storage.at("/proc/rap-runs").check()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_stays_an_error_of_the_system(tmp_path, monkeypatch):
    storage = Storage.at(tmp_path)
    error = storage._error("a", OSError("write failed: No space left on device (os error 28)"))
    assert isinstance(error, OSError)
    assert error.errno == errno.ENOSPC


def in_a_fork(storage, answers):
    try:
        answers.put(storage.get("a"))
    except StorageError as error:
        answers.put(str(error))


def test_a_forked_process_reads_files_and_is_told_to_be_spawned_for_anything_else(storage):
    storage.put("a", b"content")
    forking = multiprocessing.get_context("fork")
    answers = forking.SimpleQueue()
    child = forking.Process(target=in_a_fork, args=(storage, answers))
    child.start()
    child.join()
    found = answers.get()
    assert found == b"content" if storage.is_local else 'multiprocessing_context="spawn"' in found
