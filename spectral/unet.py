"""The LDM U-Net, in the key layout of its checkpoints; its resamplers are LDM's own or wavelet-gated.

Every layer comes from `operations` (torch.nn, or ComfyUI's casting classes) and attention from a function that the
caller may give, so that the same network runs in training and as a native ComfyUI model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as recomputed

from . import autoencoder
from .attention import SelfAttention, SpatialTransformer, scaled_dot_product_attention
from .config import StagesConfig, UNetConfig
from .deep_features import Call
from .entries import FIRST_ENTRY, entries
from .gating import WaveletDown, WaveletUp
from .hooks import NO_HOOKS, Hooks
from .layers import Attention, Layers, added, ordered, silu, zeroed
from .limits import check
from .resampling import ConvDown, ConvUp, NearestUp, PoolDown, Resampler, Size


@dataclass(frozen=True)
class Tap:
    """A place in the U-Net whose features can be read: the end of a resolution, before it is resampled.

    Args:
        path: "down", "middle" or "up".
        level: 0 is the full latent resolution; each level halves it. The middle block is at the last level.
    """

    path: Literal["down", "middle", "up"]
    level: int


def timestep_embedding(t: Tensor, width: int, max_period: float = 10000.0) -> Tensor:
    """Sinusoidal embedding of the steps t [B] (may be fractional), [B, width] float32: cosines, then sines."""
    half = width // 2
    rates = torch.exp(torch.arange(half, dtype=torch.float32, device=t.device) * (-math.log(max_period) / half))
    angles = t[:, None].float() * rates
    embedding = torch.cat([angles.cos(), angles.sin()], dim=1)
    return F.pad(embedding, (0, 1)) if width % 2 else embedding


class ResBlock(nn.Module):
    """Residual block with the time embedding added (or as scale and shift) between its two convolutions.

    Args:
        resample: makes a resampler; it is used twice, on the branch and on the skip, before the first convolution.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        make: Layers,
        scale_shift: bool,
        resample: Callable[[], Resampler] | None = None,
    ) -> None:
        super().__init__()
        self.scale_shift, self.resamples = scale_shift, resample is not None
        self.in_layers = nn.Sequential(make.norm(inputs), nn.SiLU(), make.conv(inputs, outputs))
        if resample is not None:
            self.h_upd, self.x_upd = resample(), resample()
        self.emb_layers = nn.Sequential(nn.SiLU(), make.linear(embedding, outputs * (2 if scale_shift else 1)))
        # The Identity stands where LDM has its (never used) dropout: the keys count positions.
        last = zeroed(make.conv(outputs, outputs))
        self.out_layers = nn.Sequential(make.norm(outputs), nn.SiLU(), nn.Identity(), last)
        self.skip_connection = nn.Identity() if inputs == outputs else make.conv(inputs, outputs, kernel=1)

    def forward(self, x: Tensor, embedding: Tensor, size: Size = None, hooks: Hooks = NO_HOOKS) -> Tensor:
        h = silu(self.in_layers[0](x))
        if self.resamples:
            h, x = self.h_upd(h, size, hooks), self.x_upd(x, size, hooks)
        h = self.in_layers[2](h)
        shift = hooks.shift(self, embedding)[..., None, None]
        if self.scale_shift:
            scale, shift = shift.chunk(2, dim=1)
            h = self.out_layers[0](h) * (1 + scale) + shift
        else:
            h = self.out_layers[0](added(h, shift))
        return added(self.out_layers[3](silu(h)), self.skip_connection(x))


class Block(nn.Sequential):
    """The layers that LDM keeps under one index: convolution or residual block, attention, resampler."""

    def features(self, h: Tensor, embedding: Tensor, context: Tensor | None, hooks: Hooks = NO_HOOKS) -> Tensor:
        """Everything but a resampler at the end."""
        for layer in self:
            if _resamples(layer):
                break
            if isinstance(layer, ResBlock):
                h = layer(h, embedding, hooks=hooks)
            elif isinstance(layer, (SelfAttention, SpatialTransformer)):
                h = layer(h, context, hooks)
            else:
                h = layer(h)
        return h

    def resample(self, h: Tensor, embedding: Tensor, size: Size = None, hooks: Hooks = NO_HOOKS) -> Tensor:
        """The resampler at the end, if there is one; `size` is what going up should arrive at."""
        last = self[-1]
        if not _resamples(last):
            return h
        return last(h, embedding, size, hooks) if isinstance(last, ResBlock) else last(h, size, hooks)


def _resamples(layer: nn.Module) -> bool:
    """Whether a layer changes the resolution."""
    return layer.resamples if isinstance(layer, ResBlock) else isinstance(layer, Resampler)


class Blocks(nn.ModuleList):
    """A list of blocks."""

    def __iter__(self) -> Iterator[Block]:  # type: ignore[override]
        return super().__iter__()  # type: ignore[return-value]


class _Way(NamedTuple):
    """What goes along through one call of the network, as `UNet.forward` was given it."""

    embedding: Tensor
    context: Tensor | None
    features: dict[Tap, Tensor] | None
    hooks: Hooks


class UNet(nn.Module):
    """LDM's U-Net: predicts the noise (or velocity) in a latent.

    Args:
        config: the architecture.
        operations: where Linear, Conv2d, GroupNorm and LayerNorm come from.
        attention: (q, k, v, heads) → out, all [B, T, heads · d].

    Attributes:
        recompute: blocks keep only their inputs for the backward pass, and are computed again in it (activation
            checkpointing: Chen et al., 2016). The numbers stay the same.

    Raises:
        SpectralError: the configuration cannot be built; the setting at fault is named.
    """

    def __init__(
        self,
        config: UNetConfig,
        *,
        operations: Any = nn,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        attention: Attention = scaled_dot_product_attention,
    ) -> None:
        super().__init__()
        check(config)
        self.config, self.recompute = config, False
        self.dtype = dtype or torch.get_default_dtype()
        make = Layers(operations, attention, config.norm_groups, dtype, device)
        width = config.model_channels
        self.embedding_width = 4 * width
        self.time_embed = nn.Sequential(
            make.linear(width, self.embedding_width),
            nn.SiLU(),
            make.linear(self.embedding_width, self.embedding_width),
        )
        self.taps: dict[tuple[str, int], Tap] = {}
        widths = self._build_down(make)
        channels = widths[-1]
        self.middle_block = Block(
            self._residual(channels, channels, make),
            self._attend(channels, make),
            self._residual(channels, channels, make),
        )
        self.taps["middle", 0] = Tap("middle", len(config.channel_mult) - 1)
        self._build_up(widths, make)
        self.out = self._output(width, config.out_channels, make)
        if config.stages is not None:
            self._build_stages(config.stages, make)

    def _residual(self, inputs: int, outputs: int, make: Layers, resample: Any = None) -> ResBlock:
        return ResBlock(inputs, outputs, self.embedding_width, make, self.config.use_scale_shift_norm, resample)

    def _attend(self, channels: int, make: Layers) -> nn.Module:
        config = self.config
        heads = config.num_heads if config.num_head_channels < 1 else channels // config.num_head_channels
        if not config.use_spatial_transformer:
            return SelfAttention(channels, heads, make)
        return SpatialTransformer(
            channels, heads, config.context_dim, config.transformer_depth, config.use_linear_in_transformer, make
        )

    def _resampler(self, up: bool, channels: int, level: int, make: Layers) -> Resampler | ResBlock:
        """The layer that changes the resolution, alone or inside a residual block; `level` is the finer one."""
        config = self.config
        kind: Any
        if config.resampler == "wavelet":
            kind = WaveletUp if up else WaveletDown

            def resample() -> Resampler:
                made = kind(channels, config.wavelet, make.operations, **make.factory)
                made.level = level
                return made  # type: ignore[no-any-return]

            return self._residual(channels, channels, make, resample) if config.resblock_updown else resample()
        if config.resblock_updown:
            return self._residual(channels, channels, make, NearestUp if up else PoolDown)
        return (ConvUp if up else ConvDown)(channels, make)

    def _build_down(self, make: Layers) -> list[int]:
        """Fill `input_blocks`; returns the width that each of them leaves as a skip."""
        config, channels = self.config, self.config.model_channels
        self.input_blocks = Blocks([Block(make.conv(config.in_channels, channels))])
        widths = [channels]
        for level, mult in enumerate(config.channel_mult):
            for _ in range(config.num_res_blocks):
                layers: list[nn.Module] = [self._residual(channels, mult * config.model_channels, make)]
                channels = mult * config.model_channels
                if 2**level in config.attention_resolutions:
                    layers.append(self._attend(channels, make))
                self.input_blocks.append(Block(*layers))
                widths.append(channels)
            self.taps["down", len(self.input_blocks) - 1] = Tap("down", level)
            if level < len(config.channel_mult) - 1:
                self.input_blocks.append(Block(self._resampler(False, channels, level, make)))
                widths.append(channels)
        return widths

    def _build_up(self, widths: list[int], make: Layers) -> None:
        """Fill `output_blocks`, each taking one skip."""
        config, channels = self.config, widths[-1]
        widths = list(widths)
        self.output_blocks = Blocks()
        for level, mult in reversed(list(enumerate(config.channel_mult))):
            for index in range(config.num_res_blocks + 1):
                layers: list[nn.Module] = [self._residual(channels + widths.pop(), mult * config.model_channels, make)]
                channels = mult * config.model_channels
                if 2**level in config.attention_resolutions:
                    layers.append(self._attend(channels, make))
                if level and index == config.num_res_blocks:
                    layers.append(self._resampler(True, channels, level - 1, make))
                self.output_blocks.append(Block(*layers))
            self.taps["up", len(self.output_blocks) - 1] = Tap("up", level)

    def _output(self, width: int, channels: int, make: Layers) -> nn.Sequential:
        outputs = channels * (1 if self.config.stages is None else 2)
        return nn.Sequential(make.norm(width), nn.SiLU(), zeroed(make.conv(width, outputs)))

    def _build_stages(self, stages: StagesConfig, make: Layers) -> None:
        """Where every stage's signal enters and leaves, and the autoencoders that lead to some of them.

        A signal of a new size has convolutions of its own. They take the places of the layer that would bring features
        of this size, and of the one that would bring them to the next.
        """
        mult, width = self.config.channel_mult, self.config.model_channels
        self.entries = entries(self.config)
        self.stage_inputs, self.stage_outputs, self.stage_pairs = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for entry in self.entries:
            if entry.key in self.stage_inputs or entry.key == FIRST_ENTRY:
                continue
            self.stage_inputs[entry.key] = make.conv(
                entry.channels, width * (mult[entry.level - 1] if entry.level else 1)
            )
            self.stage_outputs[entry.key] = self._output(width * mult[entry.level], entry.channels, make)
        for index, boundary in enumerate(stages.boundaries):
            if boundary.autoencoder is not None:
                self.stage_pairs[str(index)] = autoencoder.build(boundary.autoencoder).to(**make.factory)

    def embed(self, timesteps: Tensor, dtype: torch.dtype) -> Tensor:
        """The time embedding of the steps [B], [B, 4 · model_channels]."""
        return self.time_embed(timestep_embedding(timesteps, self.config.model_channels).to(dtype))  # type: ignore[no-any-return]

    def tap_channels(self) -> dict[Tap, int]:
        """Every place whose features can be read, and how many channels they have there."""
        return {tap: self.config.model_channels * self.config.channel_mult[tap.level] for tap in self.taps.values()}

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | None = None,
        *,
        features: dict[Tap, Tensor] | None = None,
        hooks: Hooks = NO_HOOKS,
        stage: int = 0,
    ) -> Tensor:
        """Predict the noise (or velocity), and δ beside it, or the detail, if the network has stages (`fdm.Process`).

        Args:
            x: noisy latent [B, in_channels, H, W], any H and W.
            timesteps: [B], 0 … T − 1.
            context: [B, T, context_dim] for a conditioned model.
            features: when given, receives the features at every tap.
            hooks: called on the way; they may change what passes by.
            stage: of a network of stages, the one that x belongs to.

        Returns:
            [B, out_channels, H, W], twice the channels of x for a network of stages.
        """
        way = _Way(
            hooks.time(self, timesteps, x.dtype), None if context is None else context.to(x.dtype), features, hooks
        )
        enter, first, leave = self._ends(stage)
        blocks = len(self.input_blocks) - first
        recalled = hooks.recall(Call(tuple(x.shape), stage, blocks))
        h, skips = self._down(way, ordered(x), enter, range(first, first + (recalled[0] if recalled else blocks)))
        if recalled is None:
            h = self._middle(way, h)
        else:
            h = recalled[1]
            hooks.skipped(self._attending(range(first + recalled[0], first + blocks)))
        return leave(self._up(way, h, skips, len(self.output_blocks) - first)).contiguous()  # type: ignore[no-any-return]

    def _down(self, way: _Way, h: Tensor, enter: nn.Module | None, blocks: range) -> tuple[Tensor, list[Tensor]]:
        """The input blocks, the first of them replaced by `enter`; what they lead to, and what they leave as skips."""
        skips = []
        for index, block in list(enumerate(self.input_blocks))[blocks.start : blocks.stop]:
            way.hooks.enter("input", index)
            if index == blocks.start and enter is not None:
                h = self._run(enter, h)
            else:
                h = self._run(block.features, h, way.embedding, way.context, way.hooks)
                self._tap(way.features, "down", index, h)
                h = self._run(block.resample, h, way.embedding, None, way.hooks)
            h = way.hooks.leave("input", h)
            skips.append(h)
            h = way.hooks.go_on(h)
        return h, skips

    def _middle(self, way: _Way, h: Tensor) -> Tensor:
        way.hooks.enter("middle", 0)
        h = self._run(self.middle_block.features, h, way.embedding, way.context, way.hooks)
        h = way.hooks.leave("middle", h)
        self._tap(way.features, "middle", 0, h)
        return h

    def _up(self, way: _Way, h: Tensor, skips: list[Tensor], end: int) -> Tensor:
        """The output blocks before `end`, as many as there are skips."""
        for index, block in list(enumerate(self.output_blocks))[end - len(skips) : end]:
            way.hooks.rise(len(skips), h)
            way.hooks.enter("output", index)
            h = torch.cat(way.hooks.join(h, skips.pop()), dim=1)
            h = self._run(block.features, h, way.embedding, way.context, way.hooks)
            self._tap(way.features, "up", index, h)
            if skips:
                h = self._run(block.resample, h, way.embedding, _size(skips), way.hooks)
        return h

    def _attending(self, skipped: range) -> int:
        """How many layers attend where these input blocks are left out, with the middle and their output blocks."""
        down, up = list(self.input_blocks), list(self.output_blocks)[::-1]
        parts = [self.middle_block, *(block for index in skipped for block in (down[index], up[index]))]
        return sum(isinstance(layer, (SelfAttention, SpatialTransformer)) for part in parts for layer in part)

    def _ends(self, stage: int) -> tuple[nn.Module | None, int, nn.Module]:
        """What a stage's signal enters by (None: the first block), in place of which block, and leaves by."""
        entry = self.entries[stage] if stage else None
        if entry is None or entry.key == FIRST_ENTRY:
            return None, 0, self.out
        return self.stage_inputs[entry.key], entry.block, self.stage_outputs[entry.key]

    def _run(self, part: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """A part of the network; nothing in it is random, so that it can be computed again as it was."""
        if self.recompute and torch.is_grad_enabled():
            return recomputed(part, *inputs, use_reentrant=False, preserve_rng_state=False)  # type: ignore[no-any-return]
        return part(*inputs)

    def _tap(self, features: dict[Tap, Tensor] | None, path: str, index: int, h: Tensor) -> None:
        if features is not None and (path, index) in self.taps:
            features[self.taps[path, index]] = h


def _size(skips: list[Tensor]) -> Size:
    """Height and width of the skip that comes next."""
    return (skips[-1].shape[2], skips[-1].shape[3]) if skips else None
