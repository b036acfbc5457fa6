"""What a checkpoint, a preset or a published teacher is: architecture, size, latent, conditioning, schedule."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..spectral import autoencoder, checkpoint, conditioning, presets
from ..spectral.config import ModelConfig, to_dict
from ..spectral.counting import parameters, unet_macs
from ..spectral.entries import entries
from ..spectral.errors import SpectralError
from ..spectral.formats.source import ReadOptions
from ..spectral.memory import shapes_alone
from ..spectral.unet import UNet
from . import cli


def describe(config: ModelConfig) -> dict[str, Any]:
    """Everything about a model that its configuration tells. MACs are convolutions and linear layers, batch 1."""
    with shapes_alone():
        unet = UNet(config.unet) if config.unet else None
        first_stage = autoencoder.build(config.first_stage) if config.first_stage else None
        conditioner = conditioning.build(config.conditioning)
    about = to_dict(config)
    return {
        "kind": config.kind,
        "preset": config.preset,
        "params": parameters(unet if unet is not None else first_stage),
        "macs": unet_macs(config) if unet is not None else None,
        "latent": _latent(config),
        "first_stage": about["first_stage"] and {**about["first_stage"], "params": parameters(first_stage)},
        "conditioning": {**about["conditioning"], "params": parameters(conditioner)},
        "schedule": about["schedule"],
        "unet": about["unet"],
        "teacher_sha256": config.teacher_sha256,
        **({} if config.few_steps is None else {"few_steps": config.few_steps}),
        **({} if config.guidance is None else {"guidance": config.guidance}),
        **({} if config.unet is None or config.unet.stages is None else {"stages": _stages(config)}),
    }


def _stages(config: ModelConfig) -> list[dict[str, Any]]:
    """Every stage of a network of stages, from the picture to the noise: when it is, its size and cost."""
    assert config.unet is not None and config.unet.stages is not None
    boundaries = config.unet.stages.boundaries
    places = [0.0, *(boundary.at for boundary in boundaries), 1.0]
    found: list[dict[str, Any]] = []
    for stage, entry in enumerate(entries(config.unet)):
        side = -(-config.unet.image_size // 2**entry.level)
        told = {"from": places[stage], "to": places[stage + 1], "channels": entry.channels, "size": side}
        made = {"made_by": boundaries[stage - 1].transform} if stage else {}
        found.append({**told, **made, "macs": unet_macs(config, stage=stage)})
    return found


def _latent(config: ModelConfig) -> dict[str, Any] | None:
    """Channels and side of the latent that the model was trained at, and the side of the images that it stands for."""
    factor = config.first_stage.downscale if config.first_stage else None
    if config.unet is not None:
        channels, size = config.unet.in_channels, config.unet.image_size
    elif config.first_stage is not None and factor is not None:
        channels, size = config.first_stage.embed_dim, config.first_stage.resolution // factor
    else:
        return None
    image_size = size * factor if factor else None
    return {"channels": channels, "size": size, "image_size": image_size, "scale_factor": config.scale_factor}


def inspect(
    path: Path | None,
    preset: str | None,
    teacher: str | None,
    options: ReadOptions = checkpoint.AS_THE_FILE_SAYS,
) -> dict[str, Any]:
    """Describe the one thing that is given.

    Args:
        options: what to assume where a file is silent.

    Raises:
        SpectralError: none or several are given, or the one is unknown or unreadable.
    """
    if sum(bool(given) for given in (path, preset, teacher)) != 1:
        raise SpectralError("inspect takes one of: the path of a checkpoint, --preset NAME, or --teacher NAME.")
    if path is None:
        return describe(presets.config(preset or f"{str(teacher).removesuffix('-teacher')}-teacher"))
    file = checkpoint.read(path, options)
    checkpoint.verify(file)
    modelspec = {k.removeprefix("modelspec."): v for k, v in file.metadata.items() if k.startswith("modelspec.")}
    return {
        **describe(file.config),
        "path": str(path),
        "bytes": sum(part.stat().st_size for part in checkpoint.parts_of(path)),
        "sha256": file.sha256,
        "modelspec": modelspec,
        "training": file.config.training,
        "notes": list(file.notes),
    }


def main(argv: Sequence[str]) -> None:
    """The command `inspect`."""
    parser = cli.Parser("inspect", __doc__)
    parser.add_argument("path", nargs="?", type=Path, help=cli.CHECKPOINT)
    cli.add_read_options(parser)
    parser.add_argument("--preset", help=f"{', '.join(presets.PRESETS)}; each with -teacher, -lite or -student")
    parser.add_argument("--teacher", help="a published LDM teacher: one of the same names, without an ending")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args(argv)
    result = inspect(arguments.path, arguments.preset, arguments.teacher, cli.read_options(arguments))
    if not arguments.json:
        result = {key: value for key, value in result.items() if value is not None and key != "training"}
        result |= {"notes": " ".join(result["notes"]) or "nothing was assumed"} if "notes" in result else {}
        for key in ("params", "macs"):
            if key in result:
                result[key] = f"{result[key]:,}"
    cli.report(result, arguments.json)


if __name__ == "__main__":
    sys.exit(cli.run(main))
