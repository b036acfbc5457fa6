"""Workflow files (UI format) as prompts (API format), the way the page itself does it: by the server's /object_info."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .server import Prompt

#: Nodes that exist in the page alone.
PAGE_ONLY = {"Note", "MarkdownNote"}
#: What the page appends to a seed widget: what to do with the value after queueing.
AFTER_GENERATE = {"fixed", "increment", "decrement", "randomize"}
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}


def to_prompt(path: Path, object_info: dict[str, Any]) -> Prompt:
    """The prompt that queueing the workflow file at `path` in the page would send.

    Raises:
        AssertionError: the file uses a node or an input that the server does not have.
    """
    workflow = json.loads(path.read_text(encoding="utf-8"))
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt: Prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in PAGE_ONLY:
            continue
        assert node["type"] in object_info, f"{path.name}: the server has no node {node['type']}"
        inputs = dict(_widgets(node, object_info[node["type"]]))
        for slot in node.get("inputs", []):
            if slot.get("link") is not None:
                inputs[slot["name"]] = sources[slot["link"]]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def find(prompt: Prompt, class_type: str) -> str:
    """The id of the one node of this type."""
    (found,) = (key for key, node in prompt.items() if node["class_type"] == class_type)
    return found


def _widgets(node: dict[str, Any], info: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names and values of a node's widgets; the file holds the values only, in the order of the declaration.

    Optional widgets that came after the file was saved are not in it; the page then leaves them as they are.
    """
    values = list(node.get("widgets_values", []))
    for name, kind, options in _declared(info):
        if not (isinstance(kind, list) or kind in WIDGET_TYPES) or options.get("forceInput"):
            continue
        if not values and name in info["input"].get("optional", {}):
            continue
        assert values, f"{node['type']} {node['id']}: no value for {name}"
        yield name, values.pop(0)
        seed = options.get("control_after_generate") or name in ("seed", "noise_seed")
        if (seed and values and values[0] in AFTER_GENERATE) or (options.get("image_upload") and values):
            values.pop(0)
    assert not values, f"{node['type']} {node['id']}: values left over: {values}"


def _declared(info: dict[str, Any]) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    for group in ("required", "optional"):
        for name, declaration in info["input"].get(group, {}).items():
            yield name, declaration[0], declaration[1] if len(declaration) > 1 else {}
