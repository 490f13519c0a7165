"""Remote storage: which library opens a path, what is tried again, and a stream that survives a broken connection."""

from __future__ import annotations

import contextlib
import functools
import io
import re
from collections.abc import Callable
from typing import Any, TypeVar

from fsspec import get_filesystem_class
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import known_implementations
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_exponential, wait_random

from curation.base.addresses import redacted
from curation.base.errors import CocuError, InputError, one_line
from curation.base.failures import STATUS, Failure, explain, is_replaced, retry_after

Outcome = TypeVar("Outcome")

ATTEMPTS = 5
FIRST_WAIT = 1.0  # seconds before the second attempt; twice as long before each further one
LONGEST_WAIT = 60.0
BUFFER = 1 << 20  # bytes that are read ahead
STALLED = 60  # seconds without a byte

# Buckets hold keys, not folders: a folder needs no making, and making one would create a bucket that is not there.
BUCKETS = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "oci", "tos", "hf"}
WEB = {"http", "https"}

# What tells versions of a file apart: all that http gives, or the first that another storage gives.
HTTP_VALIDATORS = ("ETag", "Content-MD5", "Digest", "Last-Modified")
OTHER_VALIDATORS = (
    *("etag", "mtime", "LastModified", "created", "last_modified", "updated", "blob_id", "md5Hash", "sha"),
    *("modify", "modificationTime", "last_write_time"),
)


def is_remote(path: str) -> bool:
    """Whether ``path`` is a URL (``s3://...``, ``https://...``, ``memory://...``) rather than a local path."""
    return re.match(r"[a-z][a-z0-9+.-]*://", path) is not None and not path.startswith("file://")


def scheme(path: str) -> str:
    """``s3`` of ``s3://...``; empty for a local path."""
    return path.partition("://")[0] if is_remote(path) else ""


def open_filesystem(path: str) -> tuple[Any, str]:
    """The fsspec file system of a path, and the path in it.

    Raises InputError when the library that opens such paths is not installed, with the command that installs it.
    """
    if not is_remote(path):
        return LocalFileSystem(), LocalFileSystem._strip_protocol(path)
    protocol = scheme(path)
    try:
        kind = get_filesystem_class(protocol)
        filesystem = kind(**{**kind._get_kwargs_from_urls(path), **_options(protocol, path)})
        return filesystem, filesystem._strip_protocol(path)
    except ImportError as error:
        raise InputError(
            f"{redacted(path)}: needs another package; run pip install {_package(protocol, error)}"
        ) from None
    except ValueError as error:
        if protocol in known_implementations:
            raise InputError(f"{redacted(path)}: cannot be opened ({one_line(error)})") from None
        raise InputError(f"{redacted(path)}: {protocol}:// is not a kind of address that fsspec knows") from None
    except Exception as error:  # some log in at once
        raise explained(error, path) from None


def _options(protocol: str, path: str) -> dict[str, Any]:
    if protocol in BUCKETS - {"hf"}:
        return {"use_listings_cache": False}  # other processes write into the same folders
    if protocol in WEB:
        # An address that is valid as it stands is not quoted again, which would break its signature.
        is_quoted = re.fullmatch(r"(?:[!-$&-~]|%[0-9A-Fa-f]{2})*", path) is not None
        return {"encoded": is_quoted, "client_kwargs": _http_session()}
    return {}


@functools.cache
def _http_session() -> dict[str, Any]:
    """Of aiohttp: http_proxy, no_proxy and ~/.netrc count; a long download may last, a stalled one may not."""
    from aiohttp import ClientTimeout

    return {"trust_env": True, "timeout": ClientTimeout(total=None, sock_connect=STALLED, sock_read=STALLED)}


def _package(protocol: str, error: ImportError) -> str:
    package = str(known_implementations.get(protocol, {}).get("class", "")).partition(".")[0]
    if package not in ("", "fsspec"):
        return package
    cause = error.__cause__ if isinstance(error.__cause__, ImportError) else error
    return (cause.name or protocol).partition(".")[0]


# --- what is tried again --------------------------------------------------------------------------------------------------


def attempt(path: str, work: Callable[[], Outcome]) -> Outcome:
    """The outcome of ``work``, which concerns ``path``; at a remote storage, what may pass by itself is tried again.

    Raises InputError with one line for whatever a remote storage reports, and for a local file that is not to be read.
    """
    try:
        if not is_remote(path):
            return work()
        retrying = Retrying(
            stop=stop_after_attempt(ATTEMPTS), wait=_wait, retry=retry_if_exception(_may_pass), reraise=True
        )
        return retrying(work)
    except CocuError:
        raise
    except Exception as error:
        if is_remote(path):
            raise explained(error, path) from None
        if isinstance(error, FileNotFoundError):
            raise InputError(f"{path}: no such file") from None
        if isinstance(error, (PermissionError, IsADirectoryError, NotADirectoryError)):
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None
        raise


def explained(error: Exception, path: str) -> InputError:
    """What went wrong at a remote storage, as the error that users see."""
    failure = explain(error) or Failure(f"cannot be read ({type(error).__name__}: {one_line(error)})")
    tried = f" (tried {ATTEMPTS} times)" if failure.may_pass else ""
    return InputError(f"{redacted(path)}: {failure.reason}{tried}")


def is_missing(error: BaseException) -> bool:
    """Whether an exception of a storage says that there is no such file."""
    failure = explain(error)
    return failure is not None and failure.is_missing


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, CocuError):
        return False
    failure = explain(error)
    return failure is not None and failure.may_pass


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = retry_after(error) if error else 0.0
    backoff = wait_exponential(FIRST_WAIT) + wait_random(0, FIRST_WAIT)
    return min(max(backoff(state), asked), LONGEST_WAIT)


# --- reading ------------------------------------------------------------------------------------------------------------


def mark(info: dict[str, Any]) -> str | None:
    """What tells this version of a file from others, from fsspec's description of it; None where nothing does."""
    of_http = [str(info[name]) for name in HTTP_VALIDATORS if info.get(name)]
    others = [str(info[name]) for name in OTHER_VALIDATORS if info.get(name)]
    return " ".join(of_http) or next(iter(others), None)


def open_remote(path: str) -> io.BufferedReader:
    """Open a remote file for reading, as a seekable binary stream. Raises InputError, then and while it is read."""
    return io.BufferedReader(RemoteReader(path), BUFFER)


class RemoteReader(io.RawIOBase):
    """Reads a remote file; after a broken connection it is opened again and read on from where it was."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self._filesystem, self._inner = open_filesystem(path)
        self._in_blocks = True  # until the server turns out to send whole files only
        self._position = 0
        self._stream: Any = None
        attempt(path, self._open)

    def readable(self) -> bool:
        """Part of the interface of streams."""
        return True

    def seekable(self) -> bool:
        """Part of the interface of streams."""
        return True

    def tell(self) -> int:
        """Part of the interface of streams."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Part of the interface of streams. Raises InputError for a seek from the end where the length is not known."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position}.get(whence)
        if start is None:
            start = getattr(self._stream, "size", None)
            if start is None:
                raise InputError(f"{redacted(self._path)}: the server does not say how long it is; copy it here first")
        self._position = max(start + offset, 0)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Part of the interface of streams."""
        data = attempt(self._path, lambda: self._read(len(buffer)))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        """Part of the interface of streams."""
        self._drop()
        super().close()

    def _open(self) -> None:
        options = {} if self._in_blocks else {"block_size": 0}
        self._stream = self._filesystem.open(self._inner, "rb", **options)

    def _drop(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            with contextlib.suppress(Exception):  # what was read is read
                stream.close()

    def _read(self, size: int) -> bytes:
        try:
            if self._stream is None:
                self._open()
            if self._stream.tell() != self._position:
                self._go_to(self._position)
            data = bytes(self._stream.read(size))
            length = getattr(self._stream, "size", None)
            if size and not data and length is not None and self._position < length:
                raise ConnectionResetError("fewer bytes than were announced")
            return data
        except Exception as error:
            self._drop()
            if self._in_blocks and isinstance(error, ValueError) and "range requests" in str(error):
                self._in_blocks = False
                return self._read(size)
            if self._position and is_replaced(error):  # from its start it could be read again, not from here
                raise InputError(f"{redacted(self._path)}: {STATUS[412].reason}") from None
            raise

    def _go_to(self, position: int) -> None:
        try:
            self._stream.seek(position)
        except ValueError:  # a stream that only goes forward
            if position < self._stream.tell():
                self._drop()
                self._open()
            while ahead := position - self._stream.tell():
                if not self._stream.read(min(ahead, BUFFER)):
                    break
