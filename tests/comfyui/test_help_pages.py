"""Every node's help page, in every language: that it names all inputs and outputs, and shows pictures that fit.

With UPDATE_PICTURES set, the pictures are made anew by running the nodes.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from .distribution import REPOSITORY
from .help_pictures import PICTURES
from .panels import WIDTH
from .server import ComfyServer
from .test_locales import LOCALES, TRANSLATED

DOCS = REPOSITORY / "nodes" / "web" / "docs"
IMAGES = DOCS / "images"
PICTURE = re.compile(r"!\[([^\]]+)\]\(images/([^)]+)\)")
#: All pictures together, in bytes: they are downloaded with the pack.
MOST = 1_000_000
#: What comes after the common part of inputs such as level_1 … level_5, which a page names together.
ONE_OF_MANY = re.compile(r"[ _]?\d|[ _](?=[LH]{2}$)")


def page(language: str, node: str) -> Path:
    return DOCS / f"{node}.md" if language == "en" else DOCS / node / f"{language}.md"


def words(language: str) -> dict[str, Any]:
    """What the locale says about the nodes; `test_locales` keeps it complete."""
    content: dict[str, Any] = json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))
    return content


@pytest.mark.parametrize("language", ["en", *TRANSLATED])
def test_a_page_names_its_node_and_every_input_and_output(language: str) -> None:
    for node, said in words(language).items():
        text = page(language, node).read_text(encoding="utf-8")
        assert text.startswith(f"# {said['display_name']}\n"), node
        for slot in (*said["inputs"].values(), *said["outputs"].values()):
            assert ONE_OF_MANY.split(slot["name"])[0] in text, f"{node}: {slot['name']}"


@pytest.mark.parametrize("language", TRANSLATED)
def test_a_translated_page_has_the_sections_and_pictures_of_the_english_one(language: str) -> None:
    for node in words(language):
        texts = [page(each, node).read_text(encoding="utf-8") for each in ("en", language)]
        ours, theirs = ([line.split()[0] for line in text.splitlines() if line.startswith("#")] for text in texts)
        assert ours == theirs, node
        first, second = ([name for _, name in PICTURE.findall(text)] for text in texts)
        assert first == second, node


def test_every_page_has_a_picture_and_every_picture_a_page() -> None:
    shown = {name for node in words("en") for _, name in PICTURE.findall(page("en", node).read_text(encoding="utf-8"))}
    assert shown == {path.name for path in IMAGES.iterdir()} == {f"{name}.webp" for name in PICTURES}
    assert all(PICTURE.search(page("en", node).read_text(encoding="utf-8")) for node in words("en"))
    assert sum(path.stat().st_size for path in IMAGES.iterdir()) <= MOST


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_fits_the_panel(name: str, comfy: ComfyServer) -> None:
    path = IMAGES / f"{name}.webp"
    if os.environ.get("UPDATE_PICTURES"):
        PICTURES[name](comfy).save(path, quality=85, method=6)
    with Image.open(path) as picture:
        assert picture.width == WIDTH and picture.height <= 1.5 * WIDTH
        assert np.asarray(picture.convert("L")).std() > 10
