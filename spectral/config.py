"""What a model is, as plain data: the same dataclasses are a preset, a YAML section and a checkpoint's metadata."""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from .errors import SpectralError

#: Version of the JSON that a reader knows; it refuses a higher one. A file has the oldest version whose readers know
#: all that it says: 1; with stages 2; with a first stage of other than 32 groups, or `few_steps`, 3; with `guidance` 4.
FORMAT_VERSION = 4

#: No size, count or step of a model comes near it.
LARGEST_INTEGER = 2**31 - 1

Kind = Literal["student", "lite", "teacher", "autoencoder"]


@dataclass(frozen=True)
class BoundaryConfig:
    """Where one stage of f-DM (Gu et al., 2022) ends and the next, of a simpler signal, begins: x^{k+1} = f(x^k).

    Args:
        at: τ, when that is, as a part of the schedule: 0 is the clean latent, 1 noise alone.
        transform: f: "downsample" (the mean of blocks of `factor` × `factor` cells), "blur", or "vae" (the encoder of
            `autoencoder`, whose decoder leads back).
        factor: 2, 4 or 8, of a downsampling.
        back: g, how a downsampled signal gets its size again: "nearest" or "bilinear".
        kernel: of a blur: "gaussian" or "uniform". What is blurred stays as it is on its way back.
        width: of the kernel in cells: the Gaussian's standard deviation, or the (odd) side of the uniform one.
        gamma: γ, mean square of g(f(x)) over that of f(x); `data stages` measures it. 1 for nearest and for blur.
        autoencoder: of "vae": a first stage whose images are the signals of the stage before.
    """

    at: float
    transform: Literal["downsample", "blur", "vae"] = "downsample"
    factor: int = 2
    back: Literal["nearest", "bilinear"] = "nearest"
    kernel: Literal["gaussian", "uniform"] = "gaussian"
    width: float = 1.0
    gamma: float = 1.0
    autoencoder: FirstStageConfig | None = None


@dataclass(frozen=True)
class StagesConfig:
    """The stages of a network that starts on a small or blurred signal; without boundaries it is plain diffusion.

    Args:
        boundaries: by their `at`, rising; stage k lies between boundary k − 1 and boundary k.
        dimension_power: p: at a boundary α²/σ² grows by d^p γ, d being how many times fewer numbers the signal has.
        interpolate: inside a stage the signal goes from x to g(f(x)); without it jumps at the boundary (an ablation).
        shift: that growth of α²/σ²; without it every stage has the schedule as it is (an ablation).
        predicts: what the network says beside the noise: "delta" is f-DM's δ_t; "detail" (ours) is x − g(f(x)), of
            which δ_t is the share (t − τ_k)/(τ_{k+1} − τ_k). So the errors of δ_t fade with that share, by which
            sampling divides.
    """

    boundaries: tuple[BoundaryConfig, ...] = ()
    dimension_power: float = 1.0
    interpolate: bool = True
    shift: bool = True
    predicts: Literal["delta", "detail"] = "detail"


@dataclass(frozen=True)
class UNetConfig:
    """An LDM U-Net. Names are those of LDM's own configuration files, so that manifests and LoRA key maps read alike.

    Args:
        image_size: latent side in cells that the network was trained at; it runs at any size.
        attention_resolutions: down-sampling factors (1, 2, 4, …) at which attention follows each residual block.
        num_heads: attention heads, or -1 when `num_head_channels` fixes the width of a head instead.
        use_spatial_transformer: cross-attention to a context [B, T, context_dim] instead of plain self-attention.
        resblock_updown: resampling lives inside residual blocks (lsun_churches).
        resampler: "conv" is LDM's own; "wavelet" is WG-Down and WG-Up (Section 5.1 of the paper).
        wavelet: filter bank of the wavelet resampler, by PyWavelets' name.
        norm_groups: groups of every group normalisation, 32 in LDM. A network of 32 channels wants fewer: a group of
            one channel loses the mean of that feature, and the picture its global colour.
        stages: of a multi-stage (f-DM) network, which predicts δ beside the noise: its outputs are twice
            `out_channels`, and each smaller stage enters at the level of its own size.
    """

    in_channels: int
    out_channels: int
    model_channels: int
    attention_resolutions: tuple[int, ...]
    num_res_blocks: int = 2
    channel_mult: tuple[int, ...] = (1, 2, 4)
    image_size: int = 64
    num_heads: int = -1
    num_head_channels: int = -1
    use_spatial_transformer: bool = False
    transformer_depth: int = 1
    context_dim: int | None = None
    use_linear_in_transformer: bool = False
    use_scale_shift_norm: bool = False
    resblock_updown: bool = False
    resampler: Literal["conv", "wavelet"] = "conv"
    wavelet: str = "haar"
    norm_groups: int = 32
    stages: StagesConfig | None = None


@dataclass(frozen=True)
class FirstStageConfig:
    """An LDM autoencoder: "kl" (Gaussian posterior) or "vq" (codebook of `n_embed` vectors).

    Args:
        embed_dim: channels of the latent that the U-Net sees.
        z_channels: channels inside, between `conv_out` and `quant_conv`.
        attn_resolutions: image sides at which attention follows each block, counted from `resolution`.
        norm_groups: groups of every group normalisation, 32 in LDM. A network of 32 channels wants fewer: a group of
            one channel loses the mean of that feature, and the picture its colours.
    """

    kind: Literal["kl", "vq"]
    embed_dim: int
    z_channels: int
    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] = ()
    resolution: int = 256
    in_channels: int = 3
    out_ch: int = 3
    n_embed: int | None = None
    norm_groups: int = 32

    @property
    def downscale(self) -> int:
        """Image pixels per latent cell, along one side."""
        return int(2 ** (len(self.ch_mult) - 1))


@dataclass(frozen=True)
class ConditioningConfig:
    """What the context is made from.

    "none": unconditional. "class": LDM's ClassEmbedder of `n_classes` rows. "text": a text tower of `layers` layers,
    `heads` heads and `width` channels. "external": a context of `width` channels whose encoder is not in the file.

    Args:
        null_class: the last class is the null class, which stands for no class at all (not so in cin256).
        tower: "clip" (Stable Diffusion's, kept in the layout of its 1.x files) or "ldm" (the bidirectional
            transformer of LDM's own text models, whose heads are 64 wide whatever the width).
        activation: of a CLIP tower: "quick_gelu" (OpenAI's) or "gelu" (OpenCLIP's).
        skip_last: last layers of a CLIP tower that are not run: 1 in Stable Diffusion 2.x. The states taken are
            normalised by the final normalisation all the same.
        projection: the tower has a text projection, width × width; ComfyUI's pooled output goes through it.
        vocabulary: rows of the token embedding.
        pad_token: fills a text up to `context_length`.
    """

    kind: Literal["none", "class", "text", "external"] = "none"
    width: int = 0
    n_classes: int = 0
    null_class: bool = True
    layers: int = 0
    heads: int = 0
    context_length: int = 77
    class_names: tuple[str, ...] = ()
    tower: Literal["clip", "ldm"] = "clip"
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    skip_last: int = 0
    projection: bool = False
    vocabulary: int = 49408
    pad_token: int = 49407


@dataclass(frozen=True)
class ScheduleConfig:
    """LDM's "linear" schedule (linear in √β) and what the network predicts: noise ("eps") or velocity ("v").

    Args:
        zero_terminal_snr: √ᾱ is shifted and scaled so that the last step is noise alone (see `diffusion.Schedule`).
    """

    linear_start: float = 0.0015
    linear_end: float = 0.0195
    steps: int = 1000
    prediction: Literal["eps", "v"] = "eps"
    zero_terminal_snr: bool = False


@dataclass(frozen=True)
class ModelConfig:
    """Everything a reader needs to rebuild a model from its tensors.

    Args:
        kind: what the file is.
        preset: the name in the preset table, when it has one.
        scale_factor: latents that the U-Net sees are first-stage latents × this.
        teacher_sha256: of the checkpoint that a student was distilled from.
        few_steps: the steps that a student of few steps takes, which knows no others; its guidance is in its weights.
        guidance: the weight of guidance that a student has learnt from guided answers; it is sampled with none.
        training: a summary of the run: command, steps, losses, data; free-form, for people.
    """

    kind: Kind
    unet: UNetConfig | None = None
    first_stage: FirstStageConfig | None = None
    conditioning: ConditioningConfig = field(default_factory=ConditioningConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    scale_factor: float = 1.0
    preset: str | None = None
    teacher_sha256: str | None = None
    few_steps: int | None = None
    guidance: float | None = None
    training: dict[str, Any] = field(default_factory=dict)
    version: int = FORMAT_VERSION


T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration dataclass as plain JSON data (tuples become lists)."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, (tuple, list)) else value

    return {key: plain(value) for key, value in dataclasses.asdict(config).items()}


def from_dict(cls: type[T], data: Any, where: str = "configuration") -> T:
    """Rebuild a configuration dataclass from JSON data, strictly.

    Args:
        cls: one of the dataclasses above.
        data: a dict as `to_dict` gives it.
        where: how to call the thing in an error.

    Raises:
        SpectralError: an unknown or missing key, or a value of the wrong type; the key is named.
    """
    if not isinstance(data, dict):
        raise SpectralError(f"{where} should be a JSON object with {cls.__name__}'s fields, not {type(data).__name__}.")
    hints = typing.get_type_hints(cls)
    known = {item.name: item for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in data:
        if key not in known:
            names = ", ".join(sorted(known))
            raise SpectralError(f"{where} has an unknown key {_short(key)}; the known ones are {names}.")
    for name, item in known.items():
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if required and name not in data:
            raise SpectralError(f"{where} lacks the key {name!r}.")
    return cls(**{key: _convert(hints[key], value, f"{where}.{key}") for key, value in data.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type that `hint` names; only the few shapes that the dataclasses above use."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _convert(next(arg for arg in args if arg is not type(None)), value, where)
    if origin is Literal:
        if value not in args:
            raise SpectralError(f"{where} is {_short(value)}; expected one of {', '.join(map(repr, args))}.")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise SpectralError(f"{where} should be a list, not {type(value).__name__}.")
        return tuple(_convert(args[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if origin is dict:
        hint = dict
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)  # type: ignore[arg-type]
    if hint in (int, float) and isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        raise SpectralError(f"{where} is beyond any number that a model has.")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise SpectralError(f"{where} should be {hint.__name__}, not {_short(value)}.")
    return value


def _short(value: Any) -> str:
    """A value as an error shows it: its beginning."""
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "…"
