"""Several captions of a picture, from its name, its tags and its colour: what else a person might call it."""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Sequence

from PIL import Image

#: Hue in degrees up to which a colour is called so, of those that are not grey.
HUES = (
    (16, "red"),
    (32, "orange"),
    (70, "yellow"),
    (165, "green"),
    (255, "blue"),
    (290, "purple"),
    (340, "pink"),
    (360, "red"),
)
#: Least share of a picture's opaque pixels that gives it its colour.
MAIN_SHARE = 0.35
#: Tags that get a caption each.
MOST_TAGS = 3


def several(name: str, tags: Sequence[str], colour: str | None) -> list[str]:
    """The captions of a picture, its name first, none twice.

    Args:
        name: what it is called.
        tags: words for it, the best first; those of several words are left out where a caption is one tag.
        colour: of most of it; None where it has no such colour.
    """
    tags = [tag for tag in tags if tag not in name.split()]
    captions = [name]
    if tags:
        captions.append(", ".join([name, *tags]))
    if colour is not None and colour not in name.split():
        captions.append(f"{colour} {name}")
    singles = [tag for tag in tags if tag.isalpha()][:MOST_TAGS]
    captions += singles if colour is None else [f"{colour} {tag}" for tag in singles]
    return list(dict.fromkeys(captions))


def colour_of(picture: Image.Image) -> str | None:
    """The colour of most of an RGBA picture's opaque pixels; None where none has so large a part."""
    small = picture.resize((32, 32), Image.Resampling.BOX)
    pixels: list[tuple[int, int, int, int]] = list(small.getdata())
    names = Counter(named(*pixel[:3]) for pixel in pixels if pixel[3] > 127)
    if not names:
        return None
    name, count = names.most_common(1)[0]
    return name if count >= MAIN_SHARE * names.total() else None


def named(red: int, green: int, blue: int) -> str:
    """What a colour is called, from its parts of 0 to 255."""
    hue, saturation, value = colorsys.rgb_to_hsv(red / 255, green / 255, blue / 255)
    if value < 0.2:
        return "black"
    if saturation < 0.18:
        return "white" if value > 0.85 else "grey"
    name = next(name for most, name in HUES if hue * 360 <= most)
    return "brown" if name in ("red", "orange") and value < 0.65 and saturation > 0.25 else name
