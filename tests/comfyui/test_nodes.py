"""What the pack tells ComfyUI about its nodes, and what a start costs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from typing import Any

from .distribution import REPOSITORY
from .server import ComfyServer

PREFIX = "SpectralDiffusion"


def test_all_nodes_are_there_with_names_and_descriptions(object_info: dict[str, Any]) -> None:
    ours = {name: info for name, info in object_info.items() if name.startswith(PREFIX)}
    assert len(ours) >= 8
    for name, info in ours.items():
        assert info["category"].startswith("spectral diffusion"), name
        assert info["display_name"] != name
        assert info["description"].endswith("."), name


def test_every_input_has_a_tooltip(object_info: dict[str, Any]) -> None:
    for name, info in object_info.items():
        if name.startswith(PREFIX):
            for group in ("required", "optional"):
                for key, declaration in info["input"].get(group, {}).items():
                    assert len(declaration) > 1 and declaration[1].get("tooltip"), f"{name}.{key}"


def test_every_node_has_a_help_page(object_info: dict[str, Any]) -> None:
    pages = {page.stem for page in (REPOSITORY / "nodes" / "web" / "docs").glob("*.md")}
    assert pages == {name for name in object_info if name.startswith(PREFIX)}


def test_the_log_shows_no_failed_import(comfy: ComfyServer) -> None:
    log = comfy.log.read_text(errors="replace")
    assert not re.search(r"IMPORT FAILED\): \S*Spectral", log), log
    assert "Cannot import" not in log


def test_importing_the_package_outside_comfyui_loads_nothing() -> None:
    code = "import sys, spectral_diffusion; print('torch' in sys.modules, spectral_diffusion.WEB_DIRECTORY)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "./nodes/web"]


def test_every_node_says_what_its_outputs_are_and_what_to_search_for(object_info: dict[str, Any]) -> None:
    """Read from the source: older versions of ComfyUI do not pass it on."""
    seen = 0
    for source in (REPOSITORY / "nodes").glob("*.py"):
        for made in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if not isinstance(made, ast.ClassDef):
                continue
            said = {ast.unparse(part.targets[0]): part.value for part in made.body if isinstance(part, ast.Assign)}
            if "RETURN_TYPES" in said:
                outputs, tooltips = (said[name].elts for name in ("RETURN_TYPES", "OUTPUT_TOOLTIPS"))  # type: ignore[attr-defined]
                assert len(outputs) == len(tooltips) > 0, made.name
                assert len(ast.literal_eval(said["SEARCH_ALIASES"])) >= 3, made.name
                seen += 1
    assert seen == sum(name.startswith(PREFIX) for name in object_info)
