"""For tests only: what nodes say about their outputs, which servers of 2024 do not pass on."""

from __future__ import annotations

from aiohttp import web
from server import PromptServer

import nodes


@PromptServer.instance.routes.get("/probe/output_tooltips")
async def output_tooltips(_request: web.Request) -> web.StreamResponse:
    """By node id."""
    every = {name: getattr(node, "OUTPUT_TOOLTIPS", ()) for name, node in nodes.NODE_CLASS_MAPPINGS.items()}
    return web.json_response({name: list(tooltips) for name, tooltips in every.items()})
