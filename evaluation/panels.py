"""Pictures side by side, each with a title above and a legend below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

GAP, LINE, TEXT, SWATCH = 14, 19, 13, 12  # pixels: between panels, of a line, of a letter's height, of a swatch
NARROWEST = 160  # pixels of a column
INK, FAINT, PAPER = (30, 30, 30), (120, 120, 120), (255, 255, 255)

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


Colour = tuple[int, int, int]


class Entry(NamedTuple):
    """A line of a legend."""

    colour: Colour | None  # None: no swatch
    text: str
    bar: Sequence[Colour] = ()  # in place of a swatch: colours from left to right, over the whole width; text is below


class Panel(NamedTuple):
    """A picture with a title above and a legend below."""

    title: str
    picture: Image.Image
    legend: list[Entry]


def side_by_side(panels: Sequence[Panel], columns: int = 4) -> Image.Image:
    """The panels in rows of ``columns``, titles above, legends below."""
    width = max(NARROWEST, *(panel.picture.width for panel in panels))
    height = max(panel.picture.height for panel in panels)
    rows = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    heights = [GAP + LINE + height + GAP // 2 + LINE * max(lines(panel) for panel in row) for row in rows]

    sheet = Image.new("RGB", (GAP + (GAP + width) * min(columns, len(panels)), sum(heights) + GAP), PAPER)
    for number, row in enumerate(rows):
        top = GAP + sum(heights[:number])
        for column, panel in enumerate(row):
            _draw_panel(sheet, panel, (GAP + column * (width + GAP), top), (width, height))
    return sheet


def lines(panel: Panel) -> int:
    """Lines of a panel's legend; a colour bar takes one more."""
    return sum(2 if entry.bar else 1 for entry in panel.legend)


def _draw_panel(sheet: Image.Image, panel: Panel, corner: tuple[int, int], size: tuple[int, int]) -> None:
    """Draw a panel whose picture has the space ``size``, from ``corner`` (left, top) on."""
    left, top = corner
    width, height = size
    draw = ImageDraw.Draw(sheet)
    title_font = ImageFont.load_default(TEXT + 1)
    font = ImageFont.load_default(TEXT)
    draw.text((left, top), shortened(draw, panel.title, title_font, width), INK, title_font)
    sheet.paste(panel.picture, (left, top + LINE))

    y = top + LINE + height + GAP // 2
    for entry in panel.legend:
        indent = 0
        for number, colour in enumerate(entry.bar):
            start, stop = (left + panel.picture.width * edge // len(entry.bar) for edge in (number, number + 1))
            draw.rectangle((start, y + 2, stop - 1, y + 2 + SWATCH), colour)
        if entry.bar:
            y += LINE
        if entry.colour:
            draw.rectangle((left, y + 2, left + SWATCH, y + 2 + SWATCH), entry.colour)
            indent = SWATCH + 7
        words = shortened(draw, entry.text, font, width - indent)
        draw.text((left + indent, y), words, INK if entry.colour or entry.bar else FAINT, font)
        y += LINE


def shortened(draw: ImageDraw.ImageDraw, text: str, font: Font, width: int) -> str:
    """``text`` on one line, cut with dots where it is wider than ``width``."""
    text = " ".join(text.splitlines())
    while len(text) > 1 and draw.textlength(text, font) > width:
        text = text.rstrip("…")[:-1] + "…"
    return text
