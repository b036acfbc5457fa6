"""Sampling: from a checkpoint to images."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ..spectral import checkpoint, diffusion, fdm
from ..spectral.checkpoint import Checkpoint
from ..spectral.conditioning import has_null
from ..spectral.config import ConditioningConfig, ModelConfig
from ..spectral.diffusion import Schedule
from ..spectral.errors import SpectralError
from ..spectral.unet import UNet
from . import cli, figures, running
from .loop.config import check_seed
from .processes import device
from .running import Running
from .staging import process_of
from .teachers import assemble
from .tokens import tokens_of

LARGEST = 8192  # pixels along a side
#: Every step whole, in the precision that the U-Net has.
WHOLE = Running()


def context_of(
    config: ModelConfig, conditioner: nn.Module | None, prompts: Sequence[str], vocabulary: Path | None = None
) -> Tensor | None:
    """Contexts [N, T, width] for prompts: texts, class names, or the numbers of classes; "" is the null condition.

    Args:
        vocabulary: for LDM's own text encoder, where BERT's vocab.txt lies.

    Raises:
        SpectralError: a class is unknown, the model takes no prompts, or what reads them is not there.
    """
    condition = config.conditioning
    if condition.kind == "external":
        raise SpectralError(
            f"This model attends to a context of width {condition.width}, but its encoder is not in the checkpoint; "
            "give its file with --text-encoder."
        )
    if conditioner is None:
        if any(prompts):
            raise SpectralError("This model is unconditional; sample from it without prompts.")
        return None
    device = next(conditioner.parameters()).device
    if condition.kind == "text":
        return conditioner(tokens_of(condition, prompts, vocabulary).to(device))  # type: ignore[no-any-return]
    return conditioner(torch.tensor([class_number(condition, prompt) for prompt in prompts], device=device))  # type: ignore[no-any-return]


def class_number(config: ConditioningConfig, prompt: str) -> int:
    """The class that a prompt names, by name or number; "" is the null class.

    Raises:
        SpectralError: there is none.
    """
    names, count = config.class_names, config.n_classes
    if not prompt and has_null(config):
        return count - 1
    if prompt in names:
        return names.index(prompt)
    if prompt.isdecimal() and len(prompt) < 10 and int(prompt) < count:
        return int(prompt)
    raise SpectralError(
        f"No class {prompt!r}: expected 0 to {count - 1}{' or one of ' + ', '.join(names) if names else ''}."
    )


def steps_of(config: ModelConfig, asked: int | None) -> int:
    """DDIM steps: those that a student of few steps knows, or 50, unless asked otherwise."""
    return asked if asked is not None else config.few_steps or 50


def guidance_of(config: ModelConfig, asked: float | None) -> float:
    """The weight of guidance, as `guidance_weight`; 1 unless asked otherwise where guidance is in the weights."""
    learnt = config.few_steps is not None or config.guidance is not None
    return guidance_weight(config.conditioning, 1.0 if asked is None and learnt else asked)


def guidance_weight(config: ConditioningConfig, asked: float | None) -> float:
    """The weight of guidance: 2 unless asked otherwise, 1 (none) where there is nothing to be guided away from."""
    if config.kind == "none" or (asked is None and not has_null(config)):
        return 1.0
    if asked not in (None, 1.0) and not has_null(config):
        raise SpectralError(
            f"guidance is {asked:g}, but none of the model's {config.n_classes} classes stands for no class, "
            "which guidance leads away from; set guidance to 1."
        )
    return 2.0 if asked is None else asked


@torch.no_grad()
def sample(
    config: ModelConfig,
    unet: nn.Module,
    first_stage: nn.Module,
    conditioner: nn.Module | None,
    prompts: Sequence[str],
    *,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    size: int | None = None,
    batch: int = 16,
    vocabulary: Path | None = None,
    indices: Sequence[int] | None = None,
    how: Running = WHOLE,
) -> Tensor:
    """One image for each prompt, [N, 3, H, W] in [0, 1]. Image i depends on (seed, i) and its prompt alone.

    Args:
        steps: of DDIM; None is 50, or what a student of few steps knows.
        guidance: weight of classifier-free guidance; None is 2, or 1 for a model without a null condition and for a
            student of few steps.
        size: side of the images in pixels; the training size by default.
        vocabulary: for LDM's own text encoder, where BERT's vocab.txt lies.
        indices: the i of every prompt; 0, 1, … by default.
        how: the U-Net is run, which was prepared for it (`Running.prepare`).

    Raises:
        SpectralError: prompts that the model does not know, guidance of a model without a null condition, or a size
            that is no multiple of the first stage's factor.
    """
    check_seed(seed)
    weight = guidance_of(config, guidance)
    assert config.unet is not None and config.first_stage is not None
    side = image_side(config, size) // config.first_stage.downscale
    stage_device = next(first_stage.parameters()).device
    numbers = range(len(prompts)) if indices is None else indices
    images = []
    for start in range(0, len(prompts), batch):
        some = prompts[start : start + batch]
        latent = latents(
            config,
            unet,
            conditioner,
            some,
            numbers[start : start + len(some)],
            steps=steps,
            guidance=weight,
            seed=seed,
            side=side,
            vocabulary=vocabulary,
            how=how,
        )
        images.append(first_stage.decode(latent.to(stage_device)).cpu())  # type: ignore[operator]
    return ((torch.cat(images).clamp(-1, 1) + 1) / 2).float()


def image_side(config: ModelConfig, size: int | None = None) -> int:
    """The side in pixels of the square images that a model makes when asked for `size`; None: its training size.

    Raises:
        SpectralError: a size that is no multiple of the first stage's factor.
    """
    assert config.unet is not None and config.first_stage is not None
    factor = config.first_stage.downscale
    if size is not None and (not factor <= size <= LARGEST or size % factor):
        raise SpectralError(f"The size is {size} pixels; this model makes multiples of {factor}, up to {LARGEST}.")
    return size if size is not None else config.unet.image_size * factor


@torch.no_grad()
def latents(
    config: ModelConfig,
    unet: nn.Module,
    conditioner: nn.Module | None,
    prompts: Sequence[str],
    indices: Sequence[int],
    *,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    side: int | None = None,
    vocabulary: Path | None = None,
    callback: Callable[[int, Tensor, Tensor], None] | None = None,
    how: Running = WHOLE,
) -> Tensor:
    """One batch of latents, [N, C, h, w], as the first stage has them (not scaled), on the U-Net's device.

    Args:
        prompts: of each.
        indices: numbers of each; its noise depends on the seed and on its number alone.
        callback: called after each step with its index, x_t and the predicted x_0, both as the U-Net has them (scaled).
        side: of the latents in cells; None as in training. The other arguments are those of `sample`.

    Raises:
        SpectralError: as `sample`.
    """
    assert config.unet is not None
    weight = guidance_of(config, guidance)
    side, steps = side or config.unet.image_size, steps_of(config, steps)
    noise = torch.stack([_noise(seed, index, (config.unet.in_channels, side, side)) for index in indices])
    schedule, device = Schedule.from_config(config.schedule), next(unet.parameters()).device
    process = process_of(unet, schedule) if isinstance(unet, UNet) else None
    if process is None:
        run, times = partial(diffusion.ddim, schedule=schedule), schedule.ddim_timesteps(steps).tolist()
    else:
        run, times = partial(fdm.sample, process=process), [step.t for step in fdm.plan_of(process, steps)]
    made = run(
        how.network(unet, times),
        noise.to(device),
        steps=steps,
        guidance=weight,
        cond=context_of(config, conditioner, prompts, vocabulary),
        uncond=context_of(config, conditioner, [""], vocabulary) if weight != 1.0 else None,
        callback=callback,
    )
    if not made.isfinite().all():
        half = ", or they are beyond the numbers of fp16: try bf16" if how.named().get("precision") == "fp16" else ""
        raise SpectralError(
            f"The samples are not finite: the model's weights are damaged, or the guidance is too high{half}."
        )
    return made / config.scale_factor


def _noise(seed: int, index: int, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
    return torch.randn(shape, generator=generator)


def sample_checkpoint(opened: Checkpoint, prompts: Sequence[str], **options: Any) -> Tensor:
    """`sample` from an opened checkpoint.

    Raises:
        SpectralError: it holds no U-Net or no first stage.
    """
    if opened.unet is None or opened.first_stage is None:
        raise SpectralError(f"{opened.file.path.name} cannot sample: it lacks a U-Net or a first stage.")
    return sample(opened.config, opened.unet, opened.first_stage, opened.conditioner, prompts, **options)


def main(argv: Sequence[str]) -> None:
    """The command `sample`."""
    parser = cli.Parser("sample", "Make images with a checkpoint: one for each prompt.")
    parser.add_argument("checkpoint", type=Path, help=cli.CHECKPOINT)
    parser.add_argument("prompts", nargs="*", help="texts, class names or class numbers; none for unconditional models")
    parser.add_argument("--out", type=Path, default=Path("samples"), help="folder for images/ and grid.png")
    parser.add_argument("--count", type=int, default=1, help="images of each prompt")
    parser.add_argument("--steps", type=int, help=cli.STEPS)
    parser.add_argument("--guidance", type=float, help=cli.GUIDANCE)
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--size", type=int, help="side of the images in pixels; the training size by default")
    parser.add_argument("--vocabulary", type=Path, help="BERT's vocab.txt, for models with LDM's own text encoder")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    running.add_options(parser)
    cli.add_part_options(parser)
    cli.add_read_options(parser)
    arguments = parser.parse_args(argv)
    if arguments.count < 1:
        raise SpectralError(f"--count is {arguments.count}; at least 1 image is made of each prompt.")
    how = running.of(arguments)
    file = assemble(arguments.checkpoint, cli.read_options(arguments), arguments.first_stage, arguments.text_encoder)
    opened = checkpoint.build(file, device=device())
    if opened.unet is not None:
        how.prepare(opened.unet)
    prompts = [prompt for prompt in arguments.prompts or [""] for _ in range(arguments.count)]
    options = {name: getattr(arguments, name) for name in ("steps", "guidance", "seed", "size", "vocabulary")}
    images = sample_checkpoint(opened, prompts, how=how, **options)
    paths = write_images(images, arguments.out / "images")
    grid = arguments.out / "grid.png"
    rows = {prompt: images[[i for i, own in enumerate(prompts) if own == prompt]] for prompt in dict.fromkeys(prompts)}
    figures.save_grid(rows, grid)
    cli.say_assumed(file.notes)
    result = {"images": [str(path) for path in paths], "grid": str(grid)}
    cli.report(result | ({"assumed": list(file.notes)} if arguments.json else {}), arguments.json)


def write_images(images: Tensor, folder: Path) -> list[Path]:
    """Write [N, 3, H, W] in [0, 1] as 000.png, 001.png, …; nothing else in the folder is touched."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, image in enumerate(images):
        pixels = (image.movedim(0, -1) * 255).round().to(torch.uint8).numpy()
        paths.append(folder / f"{index:03d}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


if __name__ == "__main__":
    sys.exit(cli.run(main))
