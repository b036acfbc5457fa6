"""Core's patches for our U-Net: FreeU, Self-Attention Guidance, ControlNets and whatever else a MODEL's options hold.

The names in `transformer_options`, and what a patch is called with, are those of ComfyUI's own U-Net; blocks are
counted as in LDM's lists, which is how core counts them too.
"""

from __future__ import annotations

import inspect
from functools import cached_property
from typing import Any, Literal, Protocol

from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from ..spectral.deep_features import Call, DeepFeatures
from ..spectral.hooks import Attending, Direction, Hooks, Part
from . import control

#: Where a MODEL's options hold the patches of its gates, a tuple of `GatePatch`.
GATES = "spectral_diffusion_gates"
#: Where they hold what deep features are remembered by, a `Remembering`.
REUSE = "spectral_diffusion_reuse"
#: What this version's attention functions can be told besides q, k, v and heads.
_ACCEPTED = inspect.signature(optimized_attention).parameters
_TELLS_ALL = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in _ACCEPTED.values())


class Moment:
    """When and for what the network is called.

    Args:
        options: ComfyUI's transformer_options of this call.
        timesteps: [B], the same number B times.
    """

    def __init__(self, options: dict[str, Any], timesteps: Tensor) -> None:
        self.options, self.timesteps = options, timesteps

    @cached_property
    def timestep(self) -> float:
        """0 … T − 1."""
        return float(self.timesteps[0])


class GatePatch(Protocol):
    """Reads or changes gates [B, 4, C] on their way, as `Hooks.gates`."""

    def __call__(self, gates: Tensor, direction: Direction, level: int, moment: Moment) -> Tensor: ...


class Remembering(Protocol):
    """Keeps deep features from one call of the network to the next."""

    def features(self, moment: Moment) -> DeepFeatures | None:
        """Those for this call; None runs the whole network and keeps nothing."""
        ...


class Patches(Hooks):
    """The patches of one call of the network.

    Args:
        options: ComfyUI's transformer_options; as in core's U-Net, it says where in the network a patch is called.
        additions: of ControlNets; None without any.
        timesteps: of this call, [B].
        x: the noisy latent [B, C, H, W].
        width: the U-Net's model_channels.
        attn_precision: the type that attention must compute its scores in, or None.
    """

    def __init__(
        self,
        options: dict[str, Any],
        additions: control.Additions | None,
        timesteps: Tensor,
        x: Tensor,
        width: int,
        attn_precision: Any,
    ) -> None:
        self.options, self.control, self.width = options, additions, width
        self.patches: dict[str, list[Any]] = options.get("patches", {})
        self.replacements: dict[str, dict[Any, Any]] = options.get("patches_replace", {})
        self.precision = attn_precision
        self.gate_patches: tuple[GatePatch, ...] = options.get(GATES, ())
        self.moment = Moment(options, timesteps)
        remembering: Remembering | None = options.get(REUSE)
        self.deep = None if remembering is None else remembering.features(self.moment)
        self.transformers = 0
        options["original_shape"], options["transformer_index"] = list(x.shape), 0

    def embedding(self, embedding: Tensor) -> Tensor:
        for patch in self.patches.get("emb_patch", ()):
            embedding = patch(embedding, self.width, self.options)
        return embedding

    def recall(self, call: Call) -> tuple[int, Tensor] | None:
        recalled = None if self.deep is None else self.deep.recall(call)
        if recalled is None:
            return None
        outer, h = recalled
        control.skip(self.control, call.blocks - outer)
        return outer, self._own(h)

    def skipped(self, transformers: int) -> None:
        self.transformers += transformers

    def rise(self, left: int, h: Tensor) -> None:
        if self.deep is not None and self.deep.wants(left):
            self.deep.rise(left, self._own(h))

    def _own(self, h: Tensor) -> Tensor:
        """Features that a patch may write to, as FreeU does."""
        return h.clone() if "output_block_patch" in self.patches else h

    def enter(self, part: Part, index: int) -> None:
        self.options["block"], self.options["transformer_index"] = (part, index), self.transformers

    def leave(self, part: Part, h: Tensor) -> Tensor:
        self.options["transformer_index"] = self.transformers
        h = control.added(h, self.control, part)
        if part == "input":
            for patch in self.patches.get("input_block_patch", ()):
                h = patch(h, self.options)
        return h

    def go_on(self, h: Tensor) -> Tensor:
        for patch in self.patches.get("input_block_patch_after_skip", ()):
            h = patch(h, self.options)
        return h

    def join(self, h: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        skip = control.added(skip, self.control, "output")
        for patch in self.patches.get("output_block_patch", ()):
            h, skip = patch(h, skip, self.options)
        return h, skip

    def transform(self, shape: tuple[int, ...]) -> None:
        self.options["activations_shape"] = list(shape)
        self.options["transformer_index"] = self.transformers
        self.transformers += 1

    def attention(
        self, layer: Attending, name: Literal["attn1", "attn2"], depth: int, x: Tensor, context: Tensor
    ) -> Tensor:
        """As `Hooks.attention`, by ComfyUI's own attention unless a patch replaces it."""
        self.options["block_index"] = depth
        if name == "attn1":  # one for both attentions of a block, which patches may leave notes in
            self.extra = self._extra(layer, x)
        extra, value = self.extra, context
        for patch in self.patches.get(f"{name}_patch", ()):
            x, context, value = patch(x, context, value, extra)
        # Whole, for HyperTile cuts queries alone, and core's attention then views keys and values as that many.
        q, k, v = (one.contiguous() for one in layer.project(x, context, value))
        replace = self._replacement(name, depth)
        out = self._attend(q, k, v, layer.heads) if replace is None else replace(q, k, v, extra)
        out = layer.output(out)
        for patch in self.patches.get(f"{name}_output_patch", ()):
            out = patch(out, extra)
        return out

    def between(self, x: Tensor) -> Tensor:
        for patch in self.patches.get("middle_patch", ()):
            x = patch(x, self.extra)
        return x

    def gates(self, gates: Tensor, direction: Direction, level: int) -> Tensor:
        for patch in self.gate_patches:
            gates = patch(gates, direction, level, self.moment)
        return gates

    def _extra(self, layer: Attending, x: Tensor) -> dict[str, Any]:
        """What patches of attention are told."""
        told = {key: value for key, value in self.options.items() if key not in ("patches", "patches_replace")}
        width = x.shape[-1] // layer.heads
        return {**told, "n_heads": layer.heads, "dim_head": width, "attn_precision": self.precision}

    def _replacement(self, name: str, depth: int) -> Any:
        """The patch that stands for the attention here, of this transformer block or of the whole place."""
        known, place = self.replacements.get(name, {}), self.options["block"]
        return known.get((*place, depth), known.get(place))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        wanted = {"attn_precision": self.precision, "transformer_options": self.options}
        told = {key: value for key, value in wanted.items() if _TELLS_ALL or key in _ACCEPTED}
        return optimized_attention(q, k, v, heads, **told)  # type: ignore[no-any-return]
