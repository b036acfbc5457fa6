"""The command `spectrum`: what frequencies images hold (`images`), and its subcommands, a module each.

`plane` measures images in two dimensions; `wiener`, `filters`, `response` and `evolution` probe what a model does to
frequencies; the toys lie in `..toys`. What they share is in `pictures` (images on disk), `opening` (models, clean
latents) and `drawing` (figures); what is computed, in `spectral.spectrum`.
"""

from __future__ import annotations

from .images import measure, spectrum_of

__all__ = ["measure", "spectrum_of"]
