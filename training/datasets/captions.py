"""Several captions of a picture, from its name, its tags and its colour: what else a person might call it."""

from __future__ import annotations

import colorsys
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from PIL import Image

#: Hue in degrees up to which a colour is called so, of those that are neither grey nor dark nor pale. Yellow begins
#: where the faces of Fluent emoji do, and their reds at 336°.
HUES = (
    (16, "red"),
    (32, "orange"),
    (70, "yellow"),
    (165, "green"),
    (255, "blue"),
    (290, "purple"),
    (335, "pink"),
    (360, "red"),
)
COLOURS = frozenset(name for _, name in HUES) | {"black", "white", "grey", "brown"}
#: Least share of a picture's opaque pixels that gives it its colour.
MAIN_SHARE = 0.35
#: Tags that get a caption each.
MOST_TAGS = 3


def several(name: str, tags: Sequence[str], colour: str | None) -> list[str]:
    """The captions of a picture, its name first, none twice: NAME; NAME, TAG, …; COLOUR NAME; COLOUR TAG, ….

    Args:
        name: what it is called. Where it holds a colour, no other one is said of the picture.
        tags: words for it; those that its name holds, that name colours, or have no letter are left out.
        colour: of most of it; None where it has no such colour.
    """
    said = {*name.lower().split(), *re.findall(r"\w+", name.lower())}
    tags = [tag for tag in dict.fromkeys(tags) if any(map(str.isalpha, tag)) and tag.lower() not in said | COLOURS]
    if said & COLOURS - {colour}:
        colour = None
    captions = [name]
    if tags:
        captions.append(", ".join([name, *tags]))
    if colour is not None and colour not in said:
        captions.append(f"{colour} {name}")
    alone = [tag for tag in tags if tag.isalpha()][:MOST_TAGS]
    captions += alone if colour is None else [f"{colour} {tag}" for tag in alone]
    return list(dict.fromkeys(captions))


def colour_of(picture: Image.Image) -> str | None:
    """The colour of most of an RGBA picture's opaque pixels; None where none has so large a part."""
    pixels = np.asarray(picture.resize((32, 32), Image.Resampling.BOX)).reshape(-1, 4)
    names = Counter(named(*rgb) for *rgb, opacity in pixels.tolist() if opacity > 127)
    if not names:
        return None
    name, count = names.most_common(1)[0]
    return name if count >= MAIN_SHARE * names.total() else None


def named(red: int, green: int, blue: int) -> str:
    """What a colour is called, one of `COLOURS`, from its parts of 0 to 255."""
    hue, saturation, value = colorsys.rgb_to_hsv(red / 255, green / 255, blue / 255)
    shadow = 200 < hue * 360 < 320 and saturation < 0.45  # the black of Fluent emoji, a dull violet
    if value < (0.4 if shadow else 0.2):
        return "black"
    if saturation < 0.18:
        return "white" if value > 0.85 else "grey"
    name = next(name for most, name in HUES if hue * 360 <= most)
    if name == "pink" and value < 0.6:
        return "purple"
    if name == "orange" and value < 0.7:
        return "brown"
    if name == "red" and value > 0.8 and saturation < 0.6:
        return "pink"
    if name == "red" and saturation < (0.75 if value < 0.7 else 0.4):
        return "brown"
    return name
