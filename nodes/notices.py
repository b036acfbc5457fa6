"""Sentences that reach the person at the page, not only the log: `web/notices.js` shows them."""

from __future__ import annotations

import logging

EVENT = "spectral_diffusion.notice"


def warn(summary: str, detail: str) -> None:
    """Say something in the log, and as a message in the page that queued the prompt.

    Args:
        summary: a few words, the message's title.
        detail: what happened and what to do.
    """
    logging.warning("%s: %s", summary, detail)
    from server import PromptServer  # type: ignore[import-not-found]  # ComfyUI's; it is there once nodes run

    server = getattr(PromptServer, "instance", None)
    if server is not None:
        message = {"severity": "warn", "summary": summary, "detail": detail}
        server.send_sync(EVENT, message, getattr(server, "client_id", None))
