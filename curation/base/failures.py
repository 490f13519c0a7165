"""What went wrong at a remote storage, in one sentence, whatever library reports it; and whether it may pass by itself.

Libraries are recognised by the names of their exceptions and by HTTP's status codes, so that none has to be installed.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import NamedTuple

from curation.base.errors import one_line


class Failure(NamedTuple):
    """What happened, and what to do about it."""

    reason: str
    may_pass: bool = False  # worth another attempt
    is_missing: bool = False  # there is no such file


MISSING = Failure("no such file", is_missing=True)

STATUS = {
    401: Failure("the server asks for a login (401); give credentials, for http in ~/.netrc"),
    403: Failure("access denied (403); check the credentials, or sign the address again if it has expired"),
    404: MISSING,
    407: Failure("the proxy asks for a login (407); put it into http_proxy"),
    410: MISSING,
    408: Failure("no answer in time (408); run the same command again later", may_pass=True),
    412: Failure("it was replaced while it was read; run the same command again", may_pass=True),
    425: Failure("not ready yet (425); run the same command again later", may_pass=True),
    429: Failure("too many requests (429); use fewer --workers, or run the same command again later", may_pass=True),
}

# Names of exceptions, of ours and of others; the first row that fits one of the causes of an error is taken.
NAMED: tuple[tuple[set[str], Failure], ...] = (
    (
        {
            "NoCredentialsError",
            "PartialCredentialsError",
            "CredentialRetrievalError",
            "ProfileNotFound",
            "TokenRetrievalError",
            "UnauthorizedSSOTokenError",
            "SSOTokenLoadError",
            "DefaultCredentialsError",
            "RefreshError",
            "ClientAuthenticationError",
            "LocalTokenNotFoundError",
        },
        Failure(
            "no valid credentials; log in with the storage's own tool (aws configure, gcloud auth application-default "
            "login, hf auth login), or for a public bucket set FSSPEC_S3_ANON=true"
        ),
    ),
    (
        {"ClientConnectorCertificateError", "ClientConnectorSSLError", "SSLError"},
        Failure("its certificate is not trusted; correct the address, or name your certificates in SSL_CERT_FILE"),
    ),
    (
        {"ClientConnectorDNSError", "gaierror"},
        Failure("no such host; correct the address, or check the network and the proxy"),
    ),
    (
        {"ConnectionRefusedError"},
        Failure("connection refused; is the server running, and the port right?"),
    ),
    (
        {"OfflineModeIsEnabled"},
        Failure("Hugging Face is set to offline; unset HF_HUB_OFFLINE"),
    ),
    (
        {"ServerTimeoutError", "FSTimeoutError", "ReadTimeoutError", "ConnectTimeoutError", "TimeoutError", "Timeout"},
        Failure("no answer in time; check the network, or run the same command again later", may_pass=True),
    ),
    (
        {
            "ConnectionResetError",
            "ConnectionAbortedError",
            "BrokenPipeError",
            "ServerDisconnectedError",
            "ClientPayloadError",
            "ClientOSError",
            "IncompleteRead",
            "IncompleteReadError",
            "ResponseStreamingError",
            "ConnectionClosedError",
            "RemoteProtocolError",
            "ReadError",
        },
        Failure("the connection broke; check the network, or run the same command again later", may_pass=True),
    ),
    (
        {"EndpointConnectionError", "ClientConnectorError", "ConnectError", "HTTPClientError"},
        Failure("cannot be reached; correct the address, or check the network and the proxy"),
    ),
)

UNREACHABLE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN}


def explain(error: BaseException) -> Failure | None:
    """What an exception of a storage library means; None for one that no storage raises.

    >>> explain(FileNotFoundError("x")).reason
    'no such file'
    >>> explain(ConnectionResetError()).may_pass, explain(ConnectionRefusedError()).may_pass
    (True, False)
    """
    chain = list(_causes(error))
    status = next((status for cause in chain if (status := _status(cause))), None)
    if status in STATUS:
        return STATUS[status]
    if status is not None and status >= 500:
        return Failure(f"the server failed ({status}); run the same command again later", may_pass=True)

    names = [{kind.__name__ for kind in type(cause).__mro__} for cause in chain]
    if any(isinstance(cause, OSError) and cause.errno == errno.ECONNREFUSED for cause in chain):
        names.append({"ConnectionRefusedError"})
    if any(isinstance(cause, OSError) and cause.errno in UNREACHABLE for cause in chain):
        names.append({"ConnectError"})
    for known, failure in NAMED:
        if any(known & of_cause for of_cause in names):
            return failure

    if status is not None:
        return Failure(f"the server refuses the request ({status}); correct the address")
    if any(isinstance(cause, PermissionError) for cause in chain):
        return STATUS[403]
    missing = next((cause for cause in chain if isinstance(cause, FileNotFoundError)), None)
    if missing is None:
        return None
    reason = missing.__cause__  # fsspec says that a file is missing, whatever http ran into
    return MISSING if reason is None else Failure(f"cannot be read ({type(reason).__name__}: {one_line(reason)})")


def is_replaced(error: BaseException) -> bool:
    """Whether a storage refuses to read on in a file, because another has taken its place."""
    return any(_status(cause) == 412 for cause in _causes(error))


def retry_after(error: BaseException) -> float:
    """The seconds that the server asks to wait before another attempt; 0 where it does not say."""
    for cause in _causes(error):
        headers = getattr(cause, "headers", None) or {}
        value = headers.get("Retry-After", "") if hasattr(headers, "get") else ""
        if str(value).isdigit():
            return float(value)
    return 0.0


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, and those that it was raised from or while they were handled."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _status(error: BaseException) -> int | None:
    """The HTTP status that an exception carries: aiohttp's, botocore's, gcsfs', Azure's, Hugging Face's."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return status if isinstance(status, int) else None
    for holder in (error, response):
        for name in ("status", "status_code", "code"):
            value = getattr(holder, name, None)
            if isinstance(value, int) and 400 <= value < 600:
                return value
    return None
