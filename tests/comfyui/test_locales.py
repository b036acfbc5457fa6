"""The words of the nodes in other languages, as the page reads them from `locales/`.

English says what the nodes' code says: with UPDATE_LOCALES set, its files are written anew. Every other language has
the same entries.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from typing import Any

import pytest

from .distribution import REPOSITORY
from .server import ComfyServer
from .test_nodes import PREFIX

LOCALES = REPOSITORY / "locales"
FILES = ("main.json", "nodeDefs.json")
TRANSLATED = sorted(path.name for path in LOCALES.iterdir() if path.name != "en")
#: Names that are the same in every language.
NAMES = {"CLIP", "VAE", "Latent"}
CHINESE = re.compile(r"[\u4e00-\u9fff]")
#: The page takes texts for patterns, in which these mean something.
SPECIAL = set("{}|@")
Texts = dict[tuple[str, ...], str]


@pytest.fixture(scope="module")
def english(comfy: ComfyServer, object_info: dict[str, Any]) -> dict[str, Any]:
    """What the files of English must hold, by their names."""
    tooltips = comfy.get("/probe/output_tooltips")
    ours = {name: info for name, info in object_info.items() if name.startswith(PREFIX)}
    categories = {part for info in ours.values() for part in info["category"].split("/")}
    core = {kind for name, info in object_info.items() if name not in ours for kind in info["output"]}
    types = {kind for info in ours.values() for kind in info["output"]} - core - {"STRING", "FLOAT"}
    return {
        "main.json": {
            "nodeCategories": {part: part for part in sorted(categories)},
            "dataTypes": {kind: kind for kind in sorted(types)},
        },
        "nodeDefs.json": {name: described(info, tooltips[name]) for name, info in ours.items()},
    }


def described(info: dict[str, Any], tooltips: list[str]) -> dict[str, Any]:
    """One node's entry."""
    inputs = {
        key: {"name": key, "tooltip": declaration[1]["tooltip"]}
        for group in ("required", "optional")
        for key, declaration in info["input"].get(group, {}).items()
    }
    outputs = {
        str(index): {"name": name, "tooltip": tooltip}
        for index, (name, tooltip) in enumerate(zip(info["output_name"], tooltips, strict=True))
    }
    said = {"display_name": info["display_name"], "description": info["description"]}
    return {**said, "inputs": inputs, "outputs": outputs}


@pytest.mark.parametrize("file", FILES)
def test_english_says_what_the_nodes_say(file: str, english: dict[str, Any]) -> None:
    if os.environ.get("UPDATE_LOCALES"):
        made = json.dumps(english[file], indent=2, ensure_ascii=False)
        (LOCALES / "en" / file).write_text(made + "\n", encoding="utf-8")
    assert read("en", file) == english[file]


@pytest.mark.parametrize("language", ["en", *TRANSLATED])
@pytest.mark.parametrize("file", FILES)
def test_the_page_takes_every_text_as_it_is(language: str, file: str) -> None:
    for path, text in texts(read(language, file)):
        assert text.strip() and not SPECIAL & set(text), path


@pytest.mark.parametrize("language", TRANSLATED)
@pytest.mark.parametrize("file", FILES)
def test_a_translation_has_every_entry_and_its_numbers(language: str, file: str) -> None:
    ours, theirs = dict(texts(read("en", file))), dict(texts(read(language, file)))
    assert list(ours) == list(theirs)
    for path, text in ours.items():
        assert numbers(text) <= numbers(theirs[path]), path


@pytest.mark.parametrize("file", FILES)
def test_nothing_is_left_in_english(file: str) -> None:
    left = [path for path, text in texts(read("zh", file)) if text not in NAMES and not CHINESE.search(text)]
    assert not left


def read(language: str, file: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((LOCALES / language / file).read_text(encoding="utf-8"))
    return content


def texts(content: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every text of a file and where it is."""
    for key, value in content.items():
        if isinstance(value, dict):
            yield from texts(value, (*path, key))
        else:
            yield (*path, key), value


def numbers(text: str) -> set[str]:
    return set(re.findall(r"\d+(?:\.\d+)?", text))
