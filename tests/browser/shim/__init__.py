"""For tests only: lets the modern page talk to the ComfyUI of March 2024.

That server knows neither the /api prefix nor a handful of questions that today's page asks at its start. This pack,
put into the server's custom_nodes, answers them and serves the page from the installed comfyui-frontend-package.
"""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import comfyui_frontend_package
import folder_paths
from aiohttp import web
from server import PromptServer

import nodes

NODE_CLASS_MAPPINGS: dict[str, type] = {}

#: Where a modern server says that our nodes come from; the page looks for their help there.
PACK = "custom_nodes.ComfyUI-Spectral-Diffusion"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

#: What the page asks and the old server does not know, with the answer that means "nothing special".
EMPTY: dict[str, Any] = {
    "/features": {},
    "/workflow_templates": {},
    "/experiment/models": [],
    "/global_subgraphs": {},
    "/node_replacements": {},
    "/userdata": [],
    "/v2/userdata": [],
    "/jobs": {"jobs": [], "pagination": {"offset": 0, "limit": 0, "total": 0, "has_more": False}},
}


def answer(data: Any) -> Handler:
    """A handler that always says the same."""

    async def handler(_request: web.Request) -> web.StreamResponse:
        return web.json_response(data)

    return handler


async def object_info(_request: web.Request) -> web.StreamResponse:
    """Every node as a modern server describes it."""
    return web.json_response({name: describe(name) for name in nodes.NODE_CLASS_MAPPINGS})


def describe(name: str) -> dict[str, Any]:
    """One node: what the old server says, and the order of the inputs, the module and the tooltips."""
    node: Any = nodes.NODE_CLASS_MAPPINGS[name]
    inputs = node.INPUT_TYPES()
    return {
        "input": inputs,
        "input_order": {group: list(entries) for group, entries in inputs.items()},
        "output": node.RETURN_TYPES,
        "output_is_list": getattr(node, "OUTPUT_IS_LIST", [False] * len(node.RETURN_TYPES)),
        "output_name": getattr(node, "RETURN_NAMES", node.RETURN_TYPES),
        "output_tooltips": getattr(node, "OUTPUT_TOOLTIPS", []),
        "name": name,
        "display_name": nodes.NODE_DISPLAY_NAME_MAPPINGS.get(name, name),
        "description": getattr(node, "DESCRIPTION", ""),
        "python_module": PACK if name.startswith("SpectralDiffusion") else "nodes",
        "category": getattr(node, "CATEGORY", "sd"),
        "output_node": getattr(node, "OUTPUT_NODE", False),
    }


async def i18n(_request: web.Request) -> web.StreamResponse:
    """By language, what the packs' `locales/` hold: main.json and, under its own name, nodeDefs.json."""
    found: dict[str, Any] = {}
    for root in folder_paths.get_folder_paths("custom_nodes"):
        for path in Path(root).glob("*/locales/*/*.json"):
            content = json.loads(path.read_text(encoding="utf-8"))
            found.setdefault(path.parent.name, {}).update(content if path.stem == "main" else {path.stem: content})
    return web.json_response(found)


async def system_stats(_request: web.Request) -> web.StreamResponse:
    """Just enough for the page's About panel."""
    system = {
        "os": "posix",
        "comfyui_version": "0.0.0",
        "python_version": "",
        "argv": [],
        "ram_total": 0,
        "ram_free": 0,
    }
    return web.json_response({"system": {**system, "embedded_python": False, "pytorch_version": ""}, "devices": []})


def install(server: Any) -> None:
    """Add the missing routes to the server, which has not started yet, and point it to the modern page."""
    server.web_root = str(importlib.resources.files(comfyui_frontend_package) / "static")
    known = web.RouteTableDef()
    server.user_manager.add_routes(known)
    special = {"/object_info": object_info, "/i18n": i18n, "/system_stats": system_stats}
    special |= {path: answer(data) for path, data in EMPTY.items()}
    for path, handler in special.items():
        server.routes.get(f"/api{path}")(handler)
    for route in (*server.routes, *known):
        if isinstance(route, web.RouteDef) and not route.path.startswith("/api") and route.path not in special:
            server.routes.route(route.method, f"/api{route.path}")(route.handler)


install(PromptServer.instance)
