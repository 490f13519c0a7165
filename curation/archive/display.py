"""Archives as people read them: in a terminal, and in a notebook with pictures. Nothing is read before it is shown."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from curation.archive.entries import Filter, Holding
from curation.base.errors import CocuError
from curation.base.markup import quoted, text
from curation.base.terminal import printable

if TYPE_CHECKING:
    from curation.archive.reader import ArchiveReader

SIDE = 160  # pixels of a picture
SHOWN = 12  # concepts of an archive
COLOURS = ("#2f6db5", "#d9742b", "#2f8f5b", "#a2479d", "#b08a14", "#2a93a6", "#c2475a", "#7168c9")  # of clusters
CARD = "display:flex;gap:12px;margin:0 0 12px;font:13px/1.5 system-ui,sans-serif"
TRACK = "display:inline-block;width:120px;height:8px;margin:0 8px;border-radius:4px;background:#8883"


def facts(archive: ArchiveReader) -> dict[str, str]:
    """What is known of the archives of a run without reading them."""
    counts, config = archive.manifest.get("counts", {}), archive.manifest["config"]
    method = config.get("archive", {})
    known = {
        "archives": f"{counts['rows']:,}" if "rows" in counts else "",
        "shards": f"{len(archive.shards):,}",
        "concepts": f"{counts['concepts']:,}" if "concepts" in counts else "",
        "expansion": str(method.get("expansion", "")),
        "ranking": {True: "cocu", False: "none"}.get(method.get("ranking"), str(method.get("ranking", ""))),
        "filters": ", then ".join(map(_condition, archive.filters)),
    }
    return {name: printable(value) for name, value in known.items() if value}


def _condition(condition: Filter | Holding) -> str:
    """A filter as it was written, without its defaults."""
    if isinstance(condition, Holding):
        return f"concept={' or '.join(condition.concepts)}"
    default = Filter()
    changed = {name: value for name, value in vars(condition).items() if value != getattr(default, name)}
    return ", ".join(f"{name}={value}" for name, value in changed.items())


def line(archive: ArchiveReader) -> str:
    """The archives of a run in a line."""
    known = ", ".join(f"{name} {value}" for name, value in facts(archive).items())
    return f"{type(archive).__name__}({printable(archive.folder)!r}: {known})"


def table(archive: ArchiveReader) -> str:
    """The archives of a run as a small table of HTML."""
    rows = "".join(f"<tr><th>{name}</th><td>{text(value)}</td></tr>" for name, value in facts(archive).items())
    return (
        f"<table><caption>{text(printable(archive.folder))}</caption>{rows}</table>"
        "<p><code>.head()</code> and <code>.show(key)</code> show archives, "
        "<code>.filter(concept=...)</code> chooses them</p>"
    )


class Rows(list[dict[str, Any]]):
    """Some archives, a dict each, that a terminal and a notebook show so that people can read them.

    A row has what a row of archives has; ``shards`` are the names of their shards.
    """

    def __init__(self, archive: ArchiveReader, rows: list[dict[str, Any]], shards: list[str]) -> None:
        super().__init__(rows)
        self.archive, self.shards = archive, shards

    def __repr__(self) -> str:
        """Two lines for each."""
        return "\n".join(map(_lines, self))

    def _repr_html_(self) -> str:
        pictures, notes = _pictures(self)
        cards = "".join(_card(row, pictures.get(number, "")) for number, row in enumerate(self))
        return cards + "".join(f"<p><i>{text(note, 400)}</i></p>" for note in notes)


def _lines(row: dict[str, Any]) -> str:
    """An archive as lines of text."""
    names = [f"{entry['concept']} {entry['score']:.2f}" for entry in row["concepts"][:SHOWN]]
    more = len(row["concepts"]) - len(names)
    end = f" and {more} more" if more else ""
    return (
        f"{printable(row['key'])}: {printable(row['caption'])}\n    {printable(', '.join(names) or 'no concepts')}{end}"
    )


def _card(row: dict[str, Any], picture: str) -> str:
    """An archive as HTML: its picture, its caption, and a bar for each concept, which begin at the lowest score."""
    shown = row["concepts"][:SHOWN]
    scores = [entry["score"] for entry in row["concepts"]]
    least, most = min(scores, default=0.0), max(scores, default=0.0)
    bars = "".join(_bar(entry, least, most) for entry in shown)
    more = len(row["concepts"]) - len(shown)
    image = f'<img src="{picture}" alt="{text(row["caption"])}" style="max-width:{SIDE}px">' if picture else ""
    end = f"<div>and {more} more</div>" if more else ""
    return (
        f'<div style="{CARD}"><div>{image}</div><div><b>{quoted(row["caption"])}</b> '
        f"<small>{text(row['key'], 80)}</small>{bars or '<div>no concepts</div>'}{end}</div></div>"
    )


def _bar(entry: dict[str, Any], least: float, most: float) -> str:
    share = (entry["score"] - least) / (most - least) if most > least else 1.0
    colour = COLOURS[entry["cluster"] % len(COLOURS)]
    bar = f"display:block;width:{0.04 + 0.96 * share:.1%};height:8px;border-radius:4px;background:{colour}"
    return (
        f'<div title="in {entry["support"]} retrieved captions; cluster {entry["cluster"]}">'
        f'<span style="{TRACK}"><span style="{bar}"></span></span>'
        f"{text(entry['concept'], 60)} <small>{entry['score']:.2f}</small></div>"
    )


def _pictures(rows: Rows) -> tuple[dict[int, str], list[str]]:
    """``data:`` addresses of pictures by the number of their row, and why some are missing."""
    from curation.archive.thumbnails import read_fields, thumbnail

    numbers: dict[str, list[int]] = defaultdict(list)
    for number, shard in enumerate(rows.shards):
        numbers[shard].append(number)
    pictures: dict[int, str] = {}
    notes: list[str] = []
    try:
        sources = {source.name: source for source in rows.archive.sources}
    except CocuError as error:  # embeddings were imported, or the tars lie where nothing is opened unasked
        return pictures, [f"No pictures: {error}"]
    for shard, group in numbers.items():
        extensions = sources[shard].image.lower().split(";")
        try:
            by_key = read_fields(sources[shard].path, [rows[number]["key"] for number in group], extensions)
            for number in group:
                fields = by_key.get(rows[number]["key"], {})
                content = next((fields[name] for name in extensions if name in fields), None)
                if content:
                    pictures[number] = thumbnail(content, SIDE)
        except CocuError as error:  # the archives are there all the same
            notes.append(str(error))
    return pictures, notes
