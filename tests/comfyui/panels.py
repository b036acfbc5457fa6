"""Pictures side by side with words around them, for a help panel of about 400 pixels: drawn at twice that width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

WIDTH = 800
MARGIN = 8
HEADING, CAPTION = 27, 25


@dataclass(frozen=True)
class Row:
    """Panels with a caption each, below a heading.

    Args:
        panels: picture and caption; "" for none.
        heading: "" for none.
        scale: times a picture's own size; 0 draws all of one width that fills the row.
    """

    panels: Sequence[tuple[Image.Image, str]]
    heading: str = ""
    scale: float = 0

    @property
    def pictures(self) -> list[Image.Image]:
        """The pictures at the size at which they are drawn."""
        room = (WIDTH - MARGIN) // len(self.panels) - MARGIN
        return [_scaled(picture, self.scale or room / picture.width) for picture, _ in self.panels]

    @property
    def above(self) -> int:
        return 40 if self.heading else MARGIN

    @property
    def below(self) -> int:
        return 34 if any(caption for _, caption in self.panels) else 0


def sheet(*rows: Row) -> Image.Image:
    """The rows one below the other on white, WIDTH pixels wide."""
    strips = [_strip(row) for row in rows]
    page = Image.new("RGB", (WIDTH, sum(strip.height for strip in strips) + MARGIN), "white")
    top = 0
    for strip in strips:
        page.paste(strip, (0, top))
        top += strip.height
    return page


def _strip(row: Row) -> Image.Image:
    pictures = row.pictures
    bottom = row.above + max(picture.height for picture in pictures)
    strip = Image.new("RGB", (WIDTH, bottom + row.below), "white")
    draw = ImageDraw.Draw(strip)
    draw.text((MARGIN, 6), row.heading, fill="#1a1a1a", font=ImageFont.load_default(HEADING))
    gap = (WIDTH - sum(picture.width for picture in pictures)) / (len(pictures) + 1)
    left = gap
    for picture, (_, caption) in zip(pictures, row.panels, strict=True):
        strip.paste(picture, (round(left), bottom - picture.height))
        middle = left + picture.width / 2
        draw.text((middle, bottom + 3), caption, fill="#595959", font=ImageFont.load_default(CAPTION), anchor="ma")
        left += picture.width + gap
    return strip


def _scaled(picture: Image.Image, by: float) -> Image.Image:
    size = (round(picture.width * by), round(picture.height * by))
    return picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
