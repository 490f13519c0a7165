"""Addresses that are written down or printed: without secrets when they go out, and taken literally when they come back."""

from __future__ import annotations

import re

HIDDEN = "?hidden"  # in place of a query
WEB = ("http", "https", "ftp", "ftps")
# What may stay in a query: it says which file is meant, and opens nothing.
HARMLESS = {"dl", "download", "generation", "hidden", "raw", "revision", "version", "versionid"}

_URL = re.compile(r"\b([a-z][a-z0-9+.-]*)://((?:(?!::)[^\s'\"<>])+)", re.IGNORECASE)


def redacted(text: str) -> str:
    """An address, or a message that quotes some, without what may be a secret: user and password, signatures, tokens.

    >>> redacted("https://me:word@host/00000.tar?X-Amz-Signature=9f3e: no such file")
    'https://host/00000.tar?hidden: no such file'
    >>> redacted("s3://bucket/{00000..00331}.tar"), redacted("data/00000.tar")
    ('s3://bucket/{00000..00331}.tar', 'data/00000.tar')
    """
    return _URL.sub(_without_secrets, text) if "://" in text else text


def _without_secrets(match: re.Match[str]) -> str:
    scheme, rest = match[1], match[2]
    ending = re.search(r"[:;,.)\]]*$", rest)[0]  # type: ignore[index]  # of the sentence around it
    rest = rest.removesuffix(ending) if ending else rest
    slashes = rest[: len(rest) - len(rest.lstrip("/"))]  # some storages write memory:///bucket
    authority = re.split(r"[/?#]", rest.lstrip("/"), maxsplit=1)[0]
    user, _, host = authority.rpartition("@")
    if user and (":" in user or scheme.lower() in WEB):  # abfs://container@account has no secret there
        rest = slashes + host + rest[len(slashes + authority) :]

    address, mark, query = _split_query(rest, scheme.lower() in WEB)
    if not mark:
        return f"{scheme}://{rest}{ending}"
    names = {part.partition("=")[0].lower() for part in query.split("&")}
    return f"{scheme}://{address}{mark + query if names <= HARMLESS else HIDDEN}{ending}"


def _split_query(rest: str, is_web: bool) -> tuple[str, str, str]:
    """Address, mark and what follows it. Elsewhere than in the web a ? without a = belongs to a glob."""
    found = re.search(r"[?#]", rest)
    if found is None or not (is_web or "=" in rest[found.start() :]):
        return rest, "", ""
    return rest[: found.start()], found[0], rest[found.end() :]


def is_redacted(address: str) -> bool:
    """Whether something was left out of a recorded address, so that it cannot be opened as it stands."""
    return address.endswith(HIDDEN)
