"""Why a place cannot be read or written, in words: what was found, and what to do; no credentials."""

import os
import re
import tempfile
from pathlib import Path

from obstore.exceptions import PermissionDeniedError, UnauthenticatedError


class StorageError(ValueError):
    """A place that cannot be read or written; the message names it and what to do, and holds no credentials."""


class MissingError(StorageError, FileNotFoundError):
    """An object that is not there."""


RIGHTS = "no rights to read or write there"


def local_reason(error: Exception, said: str) -> str | None:
    """What went wrong in a directory and what to do; None for a file that is not there."""
    if isinstance(error, FileNotFoundError):
        return None
    if isinstance(error, NotImplementedError):
        return "a directory has no compare-and-swap"
    if isinstance(error, PermissionError | PermissionDeniedError):
        return f"{RIGHTS}; check the permissions, or name another directory"
    number = re.search(r"\(os error (\d+)\)", said)
    cause = os.strerror(int(number[1])) if number else type(error).__name__
    return f"could not be read or written: {cause}; run the same command again once that is mended"


def remote_reason(error: Exception, said: str) -> str | None:
    """The same for a bucket. Quotes nothing of what the server said but its error's code."""
    status = re.search(r"status code: (\d+)", said)
    found = re.search(r"<Code>(\w+)</Code>", said) or status
    code = found[1] if found else type(error).__name__
    if code in ("NoSuchBucket", "ContainerNotFound") or "bucket does not exist" in said:
        return f"there is no such bucket ({code}); make it, or name another one"
    if isinstance(error, FileNotFoundError):
        return None
    refused = status is not None and status[1] in ("401", "403")  # of a listing, obstore's error has no type of its own
    if refused or isinstance(error, PermissionError | PermissionDeniedError | UnauthenticatedError):
        return f"{RIGHTS} ({code}); check the credentials in the environment"
    if re.search(r"169\.254\.|metadata\.google|credential", said, re.IGNORECASE):
        return "no credentials were found; set those of the object store in the environment"
    if re.search(r"error sending request|Connect|connection|timed out", said, re.IGNORECASE):
        return (
            "cannot be reached; check the network and the endpoint in the environment, then run the same command again"
        )
    return f"could not be read or written ({code}); run the same command again once that is mended"


def check_directory(path: Path) -> None:
    """Raises StorageError for a directory that cannot be made or written."""
    found = next(each for each in (path, *path.parents) if each.exists())
    if not found.is_dir():
        raise StorageError(f"{path}: {found} is a file; name a directory, which is made when it is not there")
    if not os.access(found, os.W_OK | os.X_OK):
        raise StorageError(f"{path} cannot be written: {found} does not allow it; name another directory")
    try:  # also a system's own folders, and a disk that is mounted to be read, whatever the rights say
        with tempfile.TemporaryDirectory(prefix=".probe-", dir=found):
            pass
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {found} holds no new folder ({error.strerror}); name another directory"
        ) from None
