"""Latents in place of images: what a first stage makes of them, once for the whole run."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ...spectral.autoencoder import AutoencoderKL, FirstStage
from ...spectral.errors import SpectralError
from .batches import Batch, Loaded, MapData
from .images import Images
from .order import Plan
from .pictures import Framing


def first_stage_sha256(first_stage: nn.Module) -> str:
    """Of what makes the latents, the encoder's tensors as float32 numbers, whatever file they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(first_stage.state_dict().items()):
        if name.startswith(("encoder.", "quant_conv.")):
            digest.update(f"{name} {list(tensor.shape)}\n".encode())
            digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


def kind_of(first_stage: FirstStage) -> str:
    """What its latents are called in a batch."""
    return "moments" if isinstance(first_stage, AutoencoderKL) else "latent"


@torch.no_grad()
def encode(first_stage: FirstStage, images: Tensor) -> Tensor:
    """Images uint8 [B, 3, H, W] → moments [B, 2C, h, w] or latent [B, C, h, w], float32, where the first stage is."""
    pixels = images.to(next(first_stage.parameters()).device).float().div_(127.5).sub_(1.0)
    if isinstance(first_stage, AutoencoderKL):
        return torch.cat(first_stage.posterior(pixels), dim=1).float()
    return first_stage.encode(pixels).float()


def latents_of(
    batch: Batch, device: torch.device | str = "cpu", normal: Callable[[tuple[int, ...]], Tensor] | None = None
) -> Tensor:
    """The (unscaled) latents of a batch that holds moments or latents, float32 [B, C, h, w] on the device.

    Args:
        batch: as `batches` gives it.
        normal: gives normal random numbers [B, *shape], to draw from the posterior with; None takes its mode.
    """
    if "latent" in batch:
        return batch["latent"].to(device, torch.float32, non_blocking=True)  # type: ignore[no-any-return]
    mean, log_variance = batch["moments"].to(device, torch.float32, non_blocking=True).chunk(2, dim=1)
    if normal is None:
        return mean  # type: ignore[no-any-return]
    return mean + torch.exp(0.5 * log_variance) * normal(tuple(mean.shape[1:]))  # type: ignore[no-any-return]


class Latents(MapData):
    """Latents with random access; `kind` is what they are called in a batch."""

    kind: str

    def load(self, plan: Plan, seed: int, mirrored: bool = True) -> Loaded:
        framing = Framing(flip=self.config.flip and mirrored, seed=seed)
        items = [(epoch, self.shown(index)) for epoch, index in plan.items]
        rows = [self.row(index, framing.draw(self.key(index), epoch)[1]) for epoch, index in items]
        captions = [self.caption(index, seed, epoch) for epoch, index in items]
        return Loaded(self._batch([index for _, index in items], rows) | {"caption": captions}, [])

    def shown(self, index: int) -> int:
        """The sample that is given in the place of one: itself, unless it could not be read."""
        return index

    def preview_samples(self, count: int) -> Batch:
        """From all over the data, not mirrored."""
        places = torch.linspace(0, len(self) - 1, min(count, len(self))).long().tolist()
        rows = [self.row(index, False) for index in places]
        alike = [(index, row) for index, row in zip(places, rows, strict=True) if row.shape == rows[0].shape]
        return self._batch([index for index, _ in alike], [row for _, row in alike])

    def _batch(self, indices: list[int], rows: list[Tensor]) -> Batch:
        return {
            self.kind: torch.stack(rows),
            "index": torch.tensor(indices),
            "caption": [self.captions[index] for index in indices],
            "label": [self.subgroups[index] for index in indices],
        }

    @abstractmethod
    def row(self, index: int, flipped: bool) -> Tensor:
        """The moments or the latent of a sample, or of its mirror image."""


class HeldLatents(Latents):
    """The latents of images, computed once when the run starts, and held in memory as float32.

    Args:
        images: squares, cropped to the centre.
        first_stage: makes the latents, on its device.
        batch: images at a time.

    Raises:
        SpectralError: the images are not all alike, or none of them can be read.
    """

    def __init__(self, images: Images, first_stage: FirstStage, batch: int = 64) -> None:
        super().__init__(images.config, images.source, images.captions, images.subgroups, images.also)
        if images.config.crop == "random" or images.config.buckets:
            raise SpectralError(
                "Latents are held in memory of centre crops of one size; set data.crop to centre, and leave "
                "data.buckets out."
            )
        self.images, self.kind = images, kind_of(first_stage)
        plain, flipped, shown = [], [], []
        for start in range(0, len(images), batch):
            items = [(0, index) for index in range(start, min(start + batch, len(images)))]
            loaded = images.load(Plan(items), 0, mirrored=False).batch
            if loaded is None:
                raise SpectralError(_unreadable(images))
            shown += loaded["index"].tolist()
            plain.append(encode(first_stage, loaded["image"]).cpu())
            if images.config.flip:
                flipped.append(encode(first_stage, loaded["image"].flip(-1)).cpu())
        self._rows, self._flipped = torch.cat(plain), torch.cat(flipped) if flipped else None
        self._shown = shown

    @property
    def in_memory(self) -> bool:
        return True

    @property
    def sha256(self) -> str:
        return self.images.sha256

    def found(self) -> list[tuple[str, str]]:
        return self.images.found()

    def preview_samples(self, count: int) -> Batch:
        """The images themselves."""
        return self.images.preview_samples(count)

    def shown(self, index: int) -> int:
        return self._shown[index]

    def key(self, index: int) -> str:
        return self.images.records[index].key

    def row(self, index: int, flipped: bool) -> Tensor:
        return self._flipped[index] if flipped and self._flipped is not None else self._rows[index]


def _unreadable(images: Images) -> str:
    name, reason = images.found()[-1]
    return (
        f"Too many of the images of {images.source} cannot be read; the last one: {reason if name in reason else name}"
    )
