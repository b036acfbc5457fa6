"""The frame of a page that stands alone: its style, and pictures inside it. Nothing is fetched."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from html import escape
from typing import Any

from PIL import Image
from torch import Tensor

STYLE = """
:root { color-scheme: light dark; --text: #1b1e24; --soft: #5b6472; --line: #dfe3e8; --back: #fff; --panel: #f6f7f9;
  --accent: #b34700; }
@media (prefers-color-scheme: dark) { :root { --text: #e7e9ec; --soft: #a2abb8; --line: #343a44; --back: #15181d;
  --panel: #1e2229; --accent: #ff9a57; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .8rem; }
p { margin: 0 0 .8rem; }
a { color: var(--accent); }
.soft, .lead { color: var(--soft); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; vertical-align: top; padding: .5rem .75rem .5rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 600; white-space: nowrap; }
td.number, th.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
td.number { font-weight: 600; }
table.figures td.number, table.figures th.number { text-align: right; }
td.code { font-family: ui-monospace, monospace; font-size: .85rem; overflow-wrap: anywhere; }
.better { color: var(--accent); font-size: .85rem; white-space: nowrap; }
ul.notes { padding: .8rem 1rem .8rem 2rem; background: var(--panel); border-left: 4px solid var(--accent);
  margin: 1.2rem 0 0; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(6.2rem, 1fr)); gap: .9rem .7rem; }
.pictures + p { margin-top: 1.4rem; }
figure { margin: 0; }
figure img { display: block; width: 100%; height: auto; border-radius: 4px; }
figure img + img { margin-top: 3px; }
.small img { image-rendering: pixelated; }
figcaption { color: var(--soft); font-size: .78rem; line-height: 1.3; margin-top: .3rem; overflow-wrap: anywhere; }
.plot { display: block; max-width: 46rem; width: 100%; background: #fff; border-radius: 6px; padding: .5rem; }
.plot.whole { max-width: none; }
@media (max-width: 40rem) { th { white-space: normal; } }
"""


def document(title: str, sections: Sequence[str]) -> str:
    """A page of sections, which are HTML; empty ones are left out. The title is text."""
    head = [
        "<meta charset='utf-8'><meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
    ]
    body = [section for section in sections if section]
    parts = ["<!doctype html>", "<html lang='en'><head>", *head, "</head>", "<body><main>", *body]
    return "\n".join([*parts, "</main></body></html>"]) + "\n"


def notes(sentences: Sequence[str]) -> str:
    """Sentences that stand out."""
    return f"<ul class='notes'>{''.join(f'<li>{escape(said)}</li>' for said in sentences)}</ul>" if sentences else ""


def picture(image: Tensor, alt: str) -> str:
    """An image [3, H, W] in [0, 1]."""
    pixels = image.clamp(0, 1).mul(255).round().byte().movedim(0, -1).contiguous().numpy()
    content = io.BytesIO()
    small = max(pixels.shape) <= 128
    Image.fromarray(pixels).save(content, format="WEBP", lossless=small, quality=90)
    return f"<img alt='{escape(alt)}' src='{_data_uri('image/webp', content.getvalue())}'>"


def plot(content: bytes, alt: str, kind: str = "") -> str:
    """A figure, a PNG file; of kind "whole" it is as wide as the page."""
    return f"<img class='plot {kind}' alt='{escape(alt)}' src='{_data_uri('image/png', content)}'>"


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def million(count: float) -> str:
    """Parameters or multiply-adds, shortened."""
    return f"{count / 1e9:.2f} G" if count >= 1e9 else f"{count / 1e6:.3g} M"


def said(value: Any) -> str:
    """A setting in words, digests shortened."""
    if isinstance(value, dict):
        return "(" + ", ".join(f"{key} {said(item)}" for key, item in value.items()) + ")"
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value):
        return value[:12] + "…"
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def change(share: float, spread: float | None = None) -> str:
    """A relative change in whole percent, and its spread: "−12 %", or "−12 ± 3 %"."""
    percent = round(100 * share)
    said = f"{percent:+d}".replace("-", "−") if percent else "0"
    return f"{said} %" if spread is None else f"{said} ± {round(100 * spread)} %"
