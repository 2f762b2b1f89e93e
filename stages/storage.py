"""The one door to files: a directory, or a bucket of an object store, behind the same few functions.

An object appears whole or not at all, and nothing is ever renamed or appended to. Credentials come from the
environment (AWS_*, GOOGLE_*, AZURE_*) and appear in no message.

>>> storage = Storage.at("memory://example")
>>> storage.put("runs/a/results.json", b"{}")
>>> storage.get("runs/a/results.json"), storage.create("runs/a/results.json", b"[]"), storage.names("runs")
(b'{}', False, ['a'])
"""

import contextlib
import errno
import itertools
import os
import re
import secrets
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PreconditionError,
)
from obstore.store import LocalStore, MemoryStore, from_url

from stages.paths import local_path
from stages.storage_errors import MissingError, StorageError, check_directory, local_reason, remote_reason

if TYPE_CHECKING:
    from obstore.store import ClientConfig

SCHEMES = ("s3", "gs", "az", "memory")
PATIENT = timedelta(seconds=60)  # what a busy object store gets in the middle of a run
TOGETHER = 1000  # objects that a bucket is asked to delete at once, as many as S3 takes
BRIEF = timedelta(seconds=5)  # and before any work, when an address may simply be wrong
_memories: dict[str, MemoryStore] = {}
_process: int | None = None  # whose threads serve obstore: a forked child has none, and would wait for ever


@dataclass(frozen=True, slots=True)
class Entry:
    """An object in a listing."""

    key: str
    bytes: int
    modified: datetime = field(compare=False)
    """By the clock of the machine that keeps it, with its time zone."""


@dataclass(frozen=True)
class Storage:
    """Objects by key (``a/b/c``) below a root. Cheap to make, and to send to other processes."""

    root: str
    """A directory's absolute path, or an object store's URL."""
    prefix: str = ""

    @staticmethod
    def at(place: "str | Path | Storage") -> "Storage":
        """The storage at a directory or URL; of a URL nothing is looked at. Raises StorageError for what is neither."""
        if isinstance(place, Storage):
            return place
        scheme, separator, rest = str(place).partition("://")
        if not separator:
            try:
                return Storage(str(local_path(place, "").absolute()))
            except ValueError as error:
                raise StorageError(str(error)) from None
        parts = urlsplit(str(place))
        if parts.username or parts.password or parts.query:
            raise StorageError(
                f"the {scheme} URL holds more than a bucket and a path: leave credentials in the environment"
            )
        if scheme not in SCHEMES or not rest.strip("/"):
            raise StorageError(
                f"{place} names no storage: give a directory, or {', '.join(f'{each}://' for each in SCHEMES[:-1])} "
                "followed by a bucket (container) and, if you like, a path"
            )
        return Storage(str(place).rstrip("/"))

    def below(self, prefix: str) -> "Storage":
        """The objects whose keys begin with a prefix, as a storage of their own."""
        return Storage(self.root, f"{self.prefix}{prefix.strip('/')}/")

    @property
    def is_local(self) -> bool:
        return "://" not in self.root

    def __str__(self) -> str:
        return self.location()

    def location(self, key: str = "") -> str:
        """Where an object is, as a person would write it."""
        return f"{self.root}/{self.prefix}{key}".rstrip("/")

    @property
    def name(self) -> str:
        """The last part of the location."""
        return self.location().rpartition("/")[2]

    def get(self, key: str) -> bytes:
        """An object's bytes. Raises MissingError where it is not there."""
        with self._reporting(key):
            if self.is_local:  # without the runtime of obstore, which a forked process does not have
                return self.local(key).read_bytes()
            return bytes(self._reader.get(self._full(key)).bytes())

    def find(self, key: str) -> bytes | None:
        """An object's bytes, or None where it is not there."""
        try:
            return self.get(key)
        except MissingError:
            return None

    def put(self, key: str, content: bytes) -> None:
        """Write an object, in place of one that is there: readers see the old or the new one."""
        with self._reporting(key):
            self._client.put(self._full(key), content)

    def create(self, key: str, content: bytes) -> bool:
        """Write an object unless it is there; whether it was written."""
        try:
            with self._reporting(key):
                self._client.put(self._full(key), content, mode="create")
        except AlreadyExistsError:
            return False
        return True

    def swap(self, key: str, content: bytes, *, tag: str) -> bool:
        """Write an object that still has the `tag`, and whether it had (compare-and-swap; not in a directory)."""
        try:
            with self._reporting(key):
                self._client.put(self._full(key), content, mode={"e_tag": tag})
        except PreconditionError:
            return False
        return True

    def head(self, key: str) -> dict[str, Any] | None:
        """Size, e_tag and last_modified of an object, None where it is not there."""
        try:
            with self._reporting(key):
                return dict(self._reader.head(self._full(key)))
        except MissingError:
            return None

    def exists(self, key: str) -> bool:
        """Whether an object is there."""
        return self.head(key) is not None

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """All objects below a prefix (whole parts of keys: ``runs/a`` is not ``runs/ab``), in no order; not hidden
        files, which are a system's (.DS_Store, NFS's .nfs0123)."""
        below = self._full(prefix).rstrip("/")
        with contextlib.suppress(MissingError), self._reporting(prefix):
            for found in obstore.list(self._reader, below or None):
                for each in found:
                    if not each["path"].rpartition("/")[2].startswith("."):
                        yield Entry(each["path"][len(self.prefix) :], each["size"], each["last_modified"])

    def names(self, prefix: str = "") -> list[str]:
        """What stands directly below a prefix and is not hidden, by its next part, in order."""
        try:
            with self._reporting(prefix):
                found = obstore.list_with_delimiter(self._reader, self._full(prefix).rstrip("/") or None)
        except MissingError:
            return []
        paths = [*found["common_prefixes"], *(each["path"] for each in found["objects"])]
        names = (path.rstrip("/").rpartition("/")[2] for path in paths)
        return sorted(name for name in names if not name.startswith("."))

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; what is not there is passed over."""
        remaining = iter(keys)
        while some := list(itertools.islice(remaining, 1 if self.is_local else TOGETHER)):
            with contextlib.suppress(MissingError), self._reporting(some[0]):
                self._reader.delete([self._full(key) for key in some])

    @contextmanager
    def folder(self, prefix: str = "") -> Iterator[Path]:
        """A new local directory whose files become objects below a prefix when the block ends well."""
        with tempfile.TemporaryDirectory(prefix="rap-") as made:
            yield Path(made)
            for file in sorted(Path(made).rglob("*")):
                if file.is_file():
                    self.put(f"{prefix}/{file.relative_to(made).as_posix()}".lstrip("/"), file.read_bytes())

    def local(self, key: str = "") -> Path:
        """An object's file, of a storage that is a directory."""
        if not self.is_local:
            raise StorageError(f"{self.location(key)} is no file: this needs a directory")
        return Path(self.root) / self._full(key)

    def check(self) -> None:
        """Raise StorageError where nothing could be written here; a directory need not be there yet."""
        if self.is_local:
            check_directory(Path(self.location()))
            return
        probe = f".probe-{secrets.token_hex(4)}"
        with self._reporting(probe):
            client = _client(self.root, BRIEF)
            client.put(self._full(probe), b"")
            client.delete(self._full(probe))

    @property
    def _client(self) -> Any:  # noqa: ANN401 - the stores of obstore share methods, not a type
        global _process
        _process = _process or os.getpid()
        if _process != os.getpid():
            raise StorageError(
                f"{self.location()} cannot be reached from a process that was forked from one that uses storage: start "
                'it by spawn (of a DataLoader: multiprocessing_context="spawn")'
            )
        return _client(self.root, PATIENT)

    @property
    def _reader(self) -> Any:  # noqa: ANN401
        """The client, for what makes no directory that is not there."""
        if self.is_local and not Path(self.root).is_dir():
            raise FileNotFoundError(self.root)
        return self._client

    def _full(self, key: str) -> str:
        return self.prefix + key

    @contextmanager
    def _reporting(self, key: str) -> Iterator[None]:
        """Errors of the backend in words of ours; those that are answers pass."""
        try:
            yield
        except (AlreadyExistsError, PreconditionError, StorageError):
            raise
        except (BaseError, OSError, NotImplementedError) as error:
            raise self._error(key, error) from None  # the backend's own text may quote credentials

    def _error(self, key: str, error: Exception) -> Exception:
        said = str(error)
        number = re.search(r"\(os error (\d+)\)", said)
        if number and int(number[1]) in (errno.ENOSPC, errno.EDQUOT):
            return OSError(int(number[1]), os.strerror(int(number[1])), self.location(key))
        reason = local_reason(error, said) if self.is_local else remote_reason(error, said)
        if reason is None:
            return MissingError(f"{self.location(key)}: there is no such object")
        return StorageError(f"{self.location(key)}: {reason}")


@lru_cache(maxsize=64)
def _client(root: str, timeout: timedelta) -> Any:  # noqa: ANN401
    if "://" not in root:
        return LocalStore(root, mkdir=True, automatic_cleanup=True)
    if root.startswith("memory://"):
        return _memories.setdefault(root, MemoryStore())
    plain = root.startswith("s3://") and os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
    options: ClientConfig = {"timeout": PATIENT, "connect_timeout": BRIEF, "allow_http": plain}
    return from_url(root, client_options=options, retry_config={"max_retries": 10, "retry_timeout": timeout})
