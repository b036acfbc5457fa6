"""Train an LDM first stage (KL) on images: L1 of pixels and of spectra, and a pull of the posterior to N(0, 1).

A trained one can go on as `init`; with `decoder_only` its latents stay what they are, and so do the models of them.

With `latents_of` it codes the latents of another first stage, for a stage of f-DM that lies behind a vae.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..spectral import autoencoder, checkpoint
from ..spectral.checkpoint import Checkpoint
from ..spectral.config import FirstStageConfig, ModelConfig
from ..spectral.errors import SpectralError
from . import cli, figures
from .data.batches import Batch, Data
from .data.config import DataConfig
from .data.dataset import open_data
from .data.latents import encode, kind_of, latents_of
from .loop.config import RunConfig, check_weight
from .loop.fit import fit
from .loop.folder import begin, summary
from .loop.randomness import SampleRandom
from .loop.stopping import stopping_in_order
from .processes import device, is_main
from .textures import WINDOW, texture_distance

#: Images from all over the data that the scale of the latents is measured on.
MEASURED = 512


@dataclass(frozen=True)
class AutoencoderConfig:
    """Configuration of `train-autoencoder`.

    Args:
        data: the images.
        run: steps, batch size, output folder and the like.
        first_stage: the architecture.
        frequency_weight: weight of the L1 distance of the images' spectra (orthonormal 2D FFT).
        texture_weight: weight of the distance of local power spectra (see `textures`); 0 is off.
        kl_weight: weight of the posterior's divergence from N(0, 1), a mean over the latent's elements.
        init: a file with a first stage of this architecture, whose weights this one starts from.
        decoder_only: leave the encoder, and so all latents, as they are in `init`.
        patch: side in pixels of the part of every image, at a random place, that a step learns from; null: all of it.
            The network works on images of any size: of smaller parts a batch holds more in the same time.
        latents_of: a checkpoint with a first stage, whose latents (scaled, as a U-Net sees them) are coded in place of
            the images.
    """

    run: RunConfig
    data: DataConfig = field(default_factory=DataConfig)
    first_stage: FirstStageConfig = field(
        default_factory=lambda: FirstStageConfig("kl", 4, 4, 32, (1, 2, 2), num_res_blocks=1, resolution=64)
    )
    frequency_weight: float = 1.0
    texture_weight: float = 0.0
    kl_weight: float = 1e-3
    init: Path | None = None
    decoder_only: bool = False
    patch: int | None = None
    latents_of: Path | None = None

    def __post_init__(self) -> None:
        check_weight("frequency_weight", self.frequency_weight)
        check_weight("texture_weight", self.texture_weight)
        check_weight("kl_weight", self.kl_weight)
        smallest = self.data.size if self.patch is None else self.patch
        if self.texture_weight and (self.latents_of is not None or smallest < WINDOW):
            raise SpectralError(f"texture_weight is for images of {WINDOW} pixels or more; set it to 0.")
        if self.decoder_only and self.init is None:
            raise SpectralError("decoder_only trains the decoder of a first stage; give its file as init.")


class AutoencoderTask(nn.Module):
    """Losses of one batch of the autoencoder.

    Args:
        base: whose latents it codes; None for images.
    """

    def __init__(self, config: AutoencoderConfig, base: Checkpoint | None = None) -> None:
        super().__init__()
        self.config = config
        self._base = (base,)  # in a tuple, and so none of what is trained
        self.first_stage = autoencoder.AutoencoderKL(config.first_stage)
        if config.decoder_only:
            for part in (self.first_stage.encoder, self.first_stage.quant_conv):
                part.requires_grad_(False)

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """What takes most of the time."""
        return (self.first_stage.encoder, self.first_stage.decoder)

    def signal(self, batch: Batch, device: torch.device) -> Tensor:
        """What is coded: images in [−1, 1], or scaled latents, [B, C, H, W] float32."""
        base = self._base[0]
        if base is None:
            return floats(batch["image"], device)
        assert base.first_stage is not None
        with torch.no_grad():
            encoded = encode(base.first_stage, batch["image"])
            return base.config.scale_factor * latents_of({kind_of(base.first_stage): encoded}, device)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        device = next(self.parameters()).device
        random = SampleRandom(self.config.run.seed, batch["ordinal"], device)
        image = self.signal(batch, device)
        if self._base[0] is None:  # latents of mirrored images are not mirrored latents
            image = torch.where((random.uniform() < 0.5).to(device).view(-1, 1, 1, 1), image, image.flip(-1))
            image = image if self.config.patch is None else patches(image, self.config.patch, random)
        with torch.set_grad_enabled(not self.config.decoder_only):
            mean, log_variance = self.first_stage.posterior(image)
        latent = mean + torch.exp(0.5 * log_variance) * random.normal(tuple(mean.shape[1:]))
        decoded = self.first_stage.decode(latent)
        difference = (decoded - image).float()
        spatial = difference.abs().mean()
        frequency = torch.view_as_real(torch.fft.rfft2(difference, norm="ortho")).abs().mean()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).mean()
        loss = spatial + self.config.frequency_weight * frequency + self.config.kl_weight * divergence
        terms = {"spatial": spatial, "frequency": frequency, "kl": divergence}
        if self.config.texture_weight:
            terms["texture"] = texture_distance(decoded, image)
            loss = loss + self.config.texture_weight * terms["texture"]
        psnr = 10 * torch.log10(4.0 / difference.detach().square().mean())
        return {"loss": loss, **terms, "psnr": psnr}


def train(config: AutoencoderConfig) -> dict[str, Any]:
    """Train, and export `RUN/autoencoder.safetensors`; returns its path and the last statistics.

    Raises:
        SpectralError: no data, or an architecture that this kit does not train (VQ, or not of colours).
    """
    if config.first_stage.kind != "kl":
        raise SpectralError(
            "train-autoencoder trains KL first stages; set first_stage.kind to kl (VQ ones are read only)."
        )
    autoencoder.check(config.first_stage)
    base = None if config.latents_of is None else open_first_stage(config.latents_of)
    channels, multiple, what = 3, config.first_stage.downscale, "images"
    if base is not None and base.config.first_stage is not None:
        channels, what = base.config.first_stage.embed_dim, "latents"
        multiple *= base.config.first_stage.downscale
    if (config.first_stage.in_channels, config.first_stage.out_ch) != (channels, channels):
        raise SpectralError(
            f"The {what} have {channels} channels; set first_stage.in_channels and first_stage.out_ch to {channels}."
        )
    check_patch(config, multiple)
    if config.data.size % multiple:
        raise SpectralError(f"data.size is {config.data.size}; this first stage needs a multiple of {multiple}.")
    data = open_data(config.data, multiple=multiple)
    if "image" not in data.preview_samples(1):
        raise SpectralError(f"{data.source} holds latents; a first stage learns from images, so give those.")
    start = None if config.init is None else open_first_stage(config.init)
    known = {"latents_of": None if base is None else base.file.sha256}
    begin(config, data=data.sha256, **known, **({} if start is None else {"init": start.file.sha256}))
    task = AutoencoderTask(config, base)
    if start is not None:
        take(task.first_stage, start)

    def preview(path: Path) -> None:
        signal = task.signal(data.preview_samples(12), next(task.parameters()).device)
        with torch.no_grad():
            rows = {"data": signal, "autoencoder": task.first_stage.decode(task.first_stage.encode(signal))}
            if base is not None and base.first_stage is not None:
                scale = base.config.scale_factor
                rows = {name: base.first_stage.decode(latent / scale) for name, latent in rows.items()}
        if is_main():
            figures.save_grid({name: (row.clamp(-1, 1) + 1) / 2 for name, row in rows.items()}, path)

    statistics = fit(task, data, config.run, preview)
    first_stage = task.first_stage.eval()
    scale = scale_of(first_stage, data) if base is None else 1.0
    if start is not None and config.decoder_only:
        scale = start.config.scale_factor
    training = summary(config, statistics, data.count)
    about = ModelConfig("autoencoder", first_stage=config.first_stage, scale_factor=scale, training=training)
    path = config.run.out / "autoencoder.safetensors"
    if is_main():
        checkpoint.save(path, about, first_stage=first_stage)
    return {"path": str(path), "scale_factor": scale, **statistics}


def take(first_stage: autoencoder.FirstStage, start: Checkpoint) -> None:
    """Give a first stage the weights of another.

    Raises:
        SpectralError: it is of another architecture.
    """
    assert start.first_stage is not None
    if start.first_stage.config != first_stage.config:
        own, other = vars(first_stage.config), vars(start.first_stage.config)
        name = next(name for name in own if own[name] != other[name])
        raise SpectralError(
            f"first_stage.{name} is {own[name]}, but that of {start.file.path.name} is {other[name]}; make them equal, "
            "or leave init out."
        )
    first_stage.load_state_dict(start.first_stage.state_dict())


def floats(image: Tensor, device: torch.device) -> Tensor:
    """uint8 images as float32 in [−1, 1] on the device."""
    return image.to(device, non_blocking=True).float().div_(127.5).sub_(1.0)


def patches(image: Tensor, side: int, random: SampleRandom) -> Tensor:
    """A square of `side` pixels at a random place of every image [B, C, H, W]."""
    places = [((size - side + 1) * random.uniform()).long().tolist() for size in image.shape[2:]]
    cut = [one[:, top : top + side, left : left + side] for one, top, left in zip(image, *places, strict=True)]
    return torch.stack(cut)


def check_patch(config: AutoencoderConfig, multiple: int) -> None:
    """Raise SpectralError where patches cannot be cut from the images, or coded."""
    side = config.patch
    if side is None:
        return
    if config.latents_of is not None:
        raise SpectralError("patch is for images; leave it out where latents_of is given.")
    if not (0 < side <= config.data.size and side % multiple == 0) or config.data.buckets:
        raise SpectralError(
            f"patch is {side}; expected a multiple of {multiple}, at most data.size = {config.data.size}, "
            "and no data.buckets."
        )


def open_first_stage(path: Path) -> Checkpoint:
    """A checkpoint that has a first stage.

    Raises:
        SpectralError: it has none, or the file cannot be read.
    """
    opened = checkpoint.load(path, device=device())
    if opened.first_stage is None:
        raise SpectralError(f"{path} holds no first stage; give a file of train-autoencoder, or a whole checkpoint.")
    return opened


def scale_of(first_stage: autoencoder.FirstStage, data: Data) -> float:
    """What latents are multiplied by to have a variance of 1 (LDM's scale_by_std)."""
    images = data.preview_samples(MEASURED)["image"]
    parts = [latents_of({kind_of(first_stage): encode(first_stage, part)}) for part in images.split(64)]
    return 1.0 / torch.cat(parts).std().item()


@stopping_in_order()
def main(argv: Sequence[str]) -> None:
    """The command `train-autoencoder`."""
    config, as_json = cli.parse_config(AutoencoderConfig, argv, "train-autoencoder", __doc__)
    cli.report(train(config), as_json)


if __name__ == "__main__":
    sys.exit(cli.run(main))
