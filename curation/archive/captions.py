"""The captions of a sample (docs/method.md §1): fields of a tar or columns of a table, whole, or a text in their JSON.

A field is named ``txt``, or ``json:caption`` for the text at a path within JSON. Of several fields either the first that is
present counts, or all of them do; then the same text from two fields is one caption of two sources.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from curation.archive.members import Unread
from curation.base.errors import CocuError, listed, quoted

MAX_CAPTION = 1 << 20  # bytes
MAX_JSON = 16 << 20  # bytes that are read as JSON
MAX_CAPTIONS = 1000  # of a sample
USUAL = ("caption", "captions", "text", "title", "description", "prompt")  # names of the text in a json sidecar
JSON_CAPTION = "caption is JSON, not a sentence"


class CaptionField(NamedTuple):
    """Where captions are."""

    name: str  # as it was written
    member: str  # of the tar, or column
    path: str  # within its JSON; empty for the whole


class Caption(NamedTuple):
    """A caption, and the names of the fields that have it."""

    text: str
    sources: tuple[str, ...]


class Unusable(NamedTuple):
    """A field that is there and gives no caption."""

    reason: str
    remedy: str = ""  # the name of a field that would do


@lru_cache(maxsize=256)
def parse_field(name: str) -> CaptionField:
    """A field by its name; members of tars are compared in lower case, names within JSON as they are.

    >>> parse_field("JSON:blip.Caption")
    CaptionField(name='JSON:blip.Caption', member='json', path='blip.Caption')

    Raises CocuError for a name that is empty, or has nothing behind its colon.
    """
    member, colon, path = name.strip().partition(":")
    if not member.strip() or (colon and not path.strip()):
        raise CocuError(f"{quoted(name)} is no field; write txt, or json:caption for the text at a path within JSON")
    return CaptionField(name.strip(), member.strip().lower(), path.strip())


def parse_column(name: str) -> CaptionField:
    """The same for the columns of a table, whose names are compared as they are."""
    return parse_field(name)._replace(member=name.strip().partition(":")[0].strip())


def names_in(caption: str) -> list[str]:
    """The names of fields that semicolons separate."""
    return [name for name in caption.split(";") if name.strip()]


def members_of(caption_fields: Iterable[str]) -> list[str]:
    """The members of a tar that caption fields are in.

    >>> members_of(["TXT", "json:caption", "json:alt.en"])
    ['txt', 'json']
    """
    return list(dict.fromkeys(parse_field(name).member for name in caption_fields))


def read_captions(
    members: Mapping[str, Any], fields: Sequence[CaptionField], union: bool = False
) -> list[Caption] | Unusable | None:
    """The captions of a sample: of the first field that is present, its first one; with ``union`` those of all fields.

    members: the content of each, bytes or Unread of a tar, values of a table. Unusable, with the reason, where the field
    that counts gives no caption, or none of all does; None where no field is present.
    """
    parsed: dict[str, Any] = {}
    problem: Unusable | None = None
    sources: dict[str, dict[str, None]] = {}  # of each text, in order
    for field in fields:
        texts = _texts(members, field, parsed)
        if texts is None:
            continue
        if not union:
            return texts if isinstance(texts, Unusable) else [Caption(texts[0], (field.name,))]
        if isinstance(texts, Unusable):
            problem = problem or texts
            continue
        for text in texts:
            sources.setdefault(text, {})[field.name] = None

    if len(sources) > MAX_CAPTIONS:
        return Unusable(f"has more than {MAX_CAPTIONS:,} captions")
    return [Caption(text, tuple(names)) for text, names in sources.items()] or problem


def _texts(members: Mapping[str, Any], field: CaptionField, parsed: dict[str, Any]) -> list[str] | Unusable | None:
    """The texts of one field, at least one; None where it is not present. ``parsed``: JSON that was read before."""
    content = members.get(field.member)
    if content is None:
        return None
    if isinstance(content, Unread):
        return Unusable(f"{field.member} {content.reason}")
    if isinstance(content, bytes):
        if len(content) > (MAX_JSON if field.path else MAX_CAPTION):
            what = f"{field.member} is" if field.path else "caption is"
            return Unusable(f"{what} longer than {(MAX_JSON if field.path else MAX_CAPTION) >> 20} MiB")
        try:
            content = content.decode("utf-8")
        except UnicodeDecodeError:
            return Unusable(f"{field.member} is not UTF-8" if field.path else "caption is not UTF-8")

    if not field.path:
        if isinstance(content, str) and is_json(content.strip()):
            return Unusable(JSON_CAPTION, _remedy(field.member, content))
        return _usable(content, field)
    if field.member not in parsed:
        parsed[field.member] = _parsed(content)
    if parsed[field.member] is None:
        return Unusable(f"{field.member} is not JSON with fields")
    values = list(_values(parsed[field.member], field.path))
    return _usable(values, field) if values else None


def _parsed(content: Any) -> Any:
    """The value of a JSON text, or what a table has parsed already; None for what has no fields."""
    if isinstance(content, str):
        try:
            content = json.loads(content)
        except (ValueError, RecursionError):
            return None
    return content if isinstance(content, Mapping | list) else None


def _values(value: Any, path: str) -> Iterator[Any]:
    """What lies at a path: of the items of a list, one after another; null is nothing.

    A name with dots in it counts as it stands before its parts do.
    """
    if isinstance(value, list):
        for item in value:
            if isinstance(item, Mapping):
                yield from _values(item, path)
        return
    if not isinstance(value, Mapping):
        return
    if value.get(path) is not None:
        yield value[path]
        return
    parts = path.split(".")
    for end in range(len(parts) - 1, 0, -1):
        head = ".".join(parts[:end])
        if value.get(head) is not None:
            yield from _values(value[head], ".".join(parts[end:]))
            return


def _usable(value: Any, field: CaptionField) -> list[str] | Unusable:
    """The distinct texts of a value, or of values that may be lists; what is no text is passed over."""
    values = value if isinstance(value, list | tuple) else [value]
    found = [text.strip() for item in values for text in _strings(item)]
    texts = list(dict.fromkeys(text.encode("utf-8", "replace").decode() for text in found if text))
    if any(len(text) > MAX_CAPTION or len(text.encode()) > MAX_CAPTION for text in texts):
        return Unusable(f"caption is longer than {MAX_CAPTION >> 20} MiB")
    if len(texts) > MAX_CAPTIONS:
        return Unusable(f"has more than {MAX_CAPTIONS:,} captions")
    return texts or Unusable("caption is empty" if found or not field.path else f"{field.name} holds no text")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        yield from (item for item in value if isinstance(item, str))


def is_json(caption: str) -> bool:
    """Whether a caption is a JSON object, or a list of texts or objects.

    >>> is_json('{"caption": "a dog"}'), is_json("[a dog]"), is_json("2021")
    (True, False, False)
    """
    if caption[:1] not in ("{", "["):
        return False
    try:
        value = json.loads(caption)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) or (bool(value) and all(isinstance(item, (str, dict)) for item in value))


def _remedy(member: str, content: str) -> str:
    """The field that most likely is the caption within JSON; ``json:NAME`` where none looks like one."""
    value = json.loads(content)
    if not isinstance(value, dict):
        return f"{member}:NAME"
    texts = [name for name in USUAL if any(map(str.strip, _strings(value.get(name))))]
    texts += [name for name, text in value.items() if isinstance(text, str) and " " in text.strip()]
    return f"{member}:{texts[0][:100] if texts else 'NAME'}"


def json_remedy(members: Mapping[str, Any], fields: Iterable[CaptionField]) -> str:
    """The field to name in place of the first one that is JSON as a whole; empty where none is."""
    for field in fields:
        content = members.get(field.member)
        if not field.path and isinstance(content, bytes) and content.lstrip()[:1] in (b"{", b"["):
            texts = _texts(members, field, {})
            if isinstance(texts, Unusable) and texts.remedy:
                return texts.remedy
    return ""


def json_names(members: Mapping[str, Any], fields: Iterable[CaptionField]) -> str:
    """What is in the JSON that has none of the fields, for a message: ``; json has url, width``. Empty without JSON."""
    for field in fields:
        content = members.get(field.member)
        value = _parsed(content.decode("utf-8", "replace")) if field.path and isinstance(content, bytes) else None
        if isinstance(value, Mapping):
            return f"; {field.member} has {listed([str(name)[:100] for name in value], 8)}"
    return ""
