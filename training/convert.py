"""Write a checkpoint in another layout: this project's file, LDM's and Stable Diffusion's, or a diffusers folder."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..spectral import checkpoint
from ..spectral.checkpoint import Layout
from ..spectral.formats.source import ReadOptions
from . import cli
from .teachers import assemble

LAYOUTS: dict[Layout, str] = {
    "spectral": "this project's .safetensors",
    "ldm": "latent-diffusion's and Stable Diffusion's .safetensors or .ckpt",
    "diffusers": "a folder",
}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def convert(
    source: Path,
    target: Path,
    layout: Layout,
    dtype: torch.dtype | None = None,
    options: ReadOptions = checkpoint.AS_THE_FILE_SAYS,
    first_stage: Path | None = None,
    text_encoder: Path | None = None,
) -> dict[str, Any]:
    """Convert, and say what was assumed of the source and what the new file cannot say.

    Raises:
        SpectralError: as `teachers.assemble` and `checkpoint.convert`.
    """
    file = assemble(source, options, first_stage, text_encoder)
    lost = checkpoint.convert(file, target, layout, dtype=dtype)
    return {
        "path": str(target),
        "layout": layout,
        "kind": file.config.kind,
        "bytes": sum(part.stat().st_size for part in checkpoint.parts_of(target)),
        "assumed": list(file.notes),
        "lost": lost,
    }


def main(argv: Sequence[str]) -> None:
    """The command `convert`."""
    parser = cli.Parser("convert", __doc__)
    parser.add_argument("source", type=Path, help=cli.CHECKPOINT)
    parser.add_argument("target", type=Path, help="a new file, or a new folder for diffusers")
    layouts = "; ".join(f"{name}: {what}" for name, what in LAYOUTS.items())
    parser.add_argument("--layout", choices=tuple(LAYOUTS), default="spectral", help=layouts)
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="of the stored tensors; the source's by default")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    cli.add_part_options(parser)
    cli.add_read_options(parser)
    arguments = parser.parse_args(argv)
    dtype = DTYPES[arguments.dtype] if arguments.dtype else None
    result = convert(
        arguments.source,
        arguments.target,
        arguments.layout,
        dtype,
        cli.read_options(arguments),
        arguments.first_stage,
        arguments.text_encoder,
    )
    if not arguments.json:
        result |= {key: " ".join(result[key]) or "nothing" for key in ("assumed", "lost")}
    cli.report(result, arguments.json)


if __name__ == "__main__":
    sys.exit(cli.run(main))
