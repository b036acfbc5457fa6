"""What pictures of emoji are called: colours that everybody knows, and captions made of names, tags and colours."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from matplotlib import colors
from PIL import Image, ImageDraw

from spectral_diffusion.training.datasets.captions import COLOURS, colour_of, named, several

#: CSS colours whose names end in that of another colour than they are given: between two hues, or nearly white.
BETWEEN = {
    "orange": "yellow",  # the yellow of emoji is as warm
    "darkorange": "yellow",
    "orangered": "orange",
    "indianred": "pink",
    "mediumvioletred": "pink",
    "palevioletred": "pink",
    "greenyellow": "green",
    "lightyellow": "white",
    "lightgoldenrodyellow": "white",
    "sandybrown": "orange",
    "navajowhite": "yellow",
    "aliceblue": "white",
    "lightseagreen": "blue",
    "darkslategrey": "blue",
    "lightslategrey": "blue",
    "slategrey": "blue",
}


def parts(name: str) -> tuple[int, int, int]:
    red, green, blue = (round(255 * part) for part in colors.to_rgb(name))
    return red, green, blue


def test_colours_are_called_what_css_calls_them() -> None:
    """Of every CSS colour whose name ends in one of ours: dark red, sky blue, hot pink."""
    known = {name: colour for name in colors.CSS4_COLORS for colour in COLOURS if name.endswith(colour)}
    assert set(known.values()) == COLOURS and len(known) > 60
    found = {name: named(*parts(name)) for name in known}
    assert {name: given for name, given in found.items() if given != known[name]} == BETWEEN


@pytest.mark.parametrize(
    ("rgb", "expected"),
    [
        ((255, 0, 128), "pink"),
        ((255, 100, 0), "orange"),
        ((0, 255, 255), "blue"),
        ((139, 0, 0), "red"),
        ((90, 60, 40), "brown"),
        ((128, 0, 96), "purple"),
        ((56, 48, 70), "black"),  # Fluent's black heart
        ((250, 40, 100), "red"),  # its red heart
        ((254, 150, 186), "pink"),  # its pig
        ((250, 190, 60), "yellow"),  # its faces
    ],
)
def test_colours_without_a_name(rgb: tuple[int, int, int], expected: str) -> None:
    assert named(*rgb) == expected


def test_every_colour_has_a_name() -> None:
    steps = range(0, 256, 15)
    assert {named(r, g, b) for r in steps for g in steps for b in steps} == COLOURS


def disc(colour: str, size: tuple[int, int] = (64, 64), inner: str | None = None, share: float = 0.0) -> Image.Image:
    """On nothing; of its lower part, so much in another colour."""
    image = Image.new("RGBA", size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    draw.rectangle((8, 8, size[0] - 9, size[1] - 9), fill=colour)
    if inner is not None:
        draw.rectangle((8, 8, size[0] - 9, 8 + round(share * (size[1] - 17))), fill=inner)
    return image


def test_a_pictures_colour_is_that_of_most_of_it() -> None:
    assert [colour_of(disc(colour)) for colour in ("red", "green", "white")] == ["red", "green", "white"]
    assert colour_of(disc("blue", (40, 90))) == "blue"
    assert colour_of(disc("blue", inner="lime", share=0.3)) == "blue"
    assert colour_of(disc("blue", inner="lime", share=0.7)) == "green"


def test_a_picture_without_a_main_colour_has_none() -> None:
    assert colour_of(Image.new("RGBA", (64, 64), (255, 0, 0, 0))) is None  # clear
    stripes = Image.new("RGBA", (60, 60))
    for place, colour in enumerate(("red", "yellow", "green", "blue")):
        stripes.paste(Image.new("RGBA", (15, 60), colour), (15 * place, 0))
    assert colour_of(stripes) is None


@pytest.mark.parametrize(
    ("name", "tags", "colour", "expected"),
    [
        ("joker", [], None, ["joker"]),
        ("joker", [], "white", ["joker", "white joker"]),
        (
            "automobile",
            ["car", "driving", "vehicle", "wheels"],
            "red",
            [
                "automobile",
                "automobile, car, driving, vehicle, wheels",
                "red automobile",
                "red car",
                "red driving",
                "red vehicle",
            ],
        ),
        ("kite", ["fly", "soar"], None, ["kite", "kite, fly, soar", "fly", "soar"]),
        # What the name says is not said again, nor is what the tags say twice.
        ("red apple", ["apple", "red", "fruit", "fruit"], "red", ["red apple", "red apple, fruit", "red fruit"]),
        ("man: red hair", ["man", "adult"], "red", ["man: red hair", "man: red hair, adult", "red adult"]),
        ("Europe-Africa", ["europe", "globe"], None, ["Europe-Africa", "Europe-Africa, globe", "globe"]),
        # A name's own colour is the picture's; and of tags that are colours nothing is known.
        ("black cat", ["pet"], "purple", ["black cat", "black cat, pet", "pet"]),
        ("tooth", ["white", "teeth"], "grey", ["tooth", "tooth, teeth", "grey tooth", "grey teeth"]),
        # Alone stand only words.
        ("ufo", ["-1", "flying saucer", "1st", "…"], None, ["ufo", "ufo, flying saucer, 1st"]),
    ],
)
def test_captions_of_a_picture(name: str, tags: Sequence[str], colour: str | None, expected: list[str]) -> None:
    assert several(name, tags, colour) == expected
