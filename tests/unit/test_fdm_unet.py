"""U-Nets that stages enter at the level of their own size: keys, sizes, shared parameters, costs, refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spectral_diffusion.spectral.config import (
    BoundaryConfig,
    FirstStageConfig,
    StagesConfig,
    UNetConfig,
)
from spectral_diffusion.spectral.counting import count_macs
from spectral_diffusion.spectral.entries import Entry, entries, factors
from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.spectral.hooks import Direction, Hooks, Part
from spectral_diffusion.spectral.unet import Tap, UNet

from .tiny import randomized

B = BoundaryConfig
PLAIN = UNetConfig(3, 3, 32, (2, 4), num_res_blocks=2, channel_mult=(1, 2, 3), image_size=16, num_head_channels=32)
PAIR = FirstStageConfig("kl", 5, 4, 32, (1, 1), num_res_blocks=1, resolution=16, in_channels=3, out_ch=3)
THREE = StagesConfig((B(0.3), B(0.5, "blur"), B(0.7)))
NETWORKS = {
    "conv": PLAIN,
    "haar": replace(PLAIN, resampler="wavelet"),
    "db2": replace(PLAIN, resampler="wavelet", wavelet="db2"),
    "updown": replace(PLAIN, resblock_updown=True, use_scale_shift_norm=True),
    "updown-haar": replace(PLAIN, resblock_updown=True, resampler="wavelet"),
    "transformer": replace(PLAIN, use_spatial_transformer=True, context_dim=24),
}
STAGES = {
    "three": THREE,
    "factor-4": StagesConfig((B(0.5, factor=4),)),
    "vae": StagesConfig((B(0.3, "vae", autoencoder=PAIR), B(0.6))),
}
every_network = pytest.mark.parametrize("kind", NETWORKS)
every_stages = pytest.mark.parametrize("stages", STAGES)


def network(kind: str, stages: str = "three") -> UNet:
    return randomized(UNet(replace(NETWORKS[kind], stages=STAGES[stages]))).eval().requires_grad_(False)


def inputs(unet: UNet, stage: int, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor | None]:
    """What a stage sees when latents have `size` cells."""
    entry = unet.entries[stage]
    generator = torch.Generator().manual_seed(stage)
    sides = (-(-side // 2**entry.level) for side in size)
    context = torch.randn(2, 5, 24, generator=generator) if unet.config.context_dim else None
    return torch.randn(2, entry.channels, *sides, generator=generator), torch.tensor([900.0, 10.0]), context


def on_all(unet: UNet, size: tuple[int, int] = (16, 16), **more: Any) -> list[Tensor]:
    return [unet(*inputs(unet, stage, size), stage=stage, **more) for stage in range(len(unet.entries))]


@every_network
@every_stages
@pytest.mark.parametrize("size", [(16, 16), (15, 9), (4, 7)], ids=str)
def test_every_stage_answers_twice_in_its_own_size(kind: str, stages: str, size: tuple[int, int]) -> None:
    unet = network(kind, stages)
    for stage, out in enumerate(on_all(unet, size)):
        x = inputs(unet, stage, size)[0]
        assert out.shape == (2, 2 * x.shape[1], *x.shape[2:])
        assert out.isfinite().all() and out.std() > 0.01


@every_network
def test_keys_are_those_of_the_plain_network_and_some_more(kind: str) -> None:
    plain, staged = UNet(NETWORKS[kind]).state_dict(), network(kind).state_dict()
    for key, tensor in plain.items():
        doubled = [2 * tensor.shape[0], *tensor.shape[1:]]
        assert list(staged[key].shape) == (doubled if key.startswith("out.2.") else list(tensor.shape)), key
    assert {key.rpartition(".")[0] for key in staged.keys() - plain.keys()} == {
        f"{end}.{stage}" for stage in (1, 3) for end in ("stage_inputs",)
    } | {f"stage_outputs.{stage}.{layer}" for stage in (1, 3) for layer in (0, 2)}
    assert staged["stage_inputs.1.weight"].shape == (32, 3, 3, 3)  # as wide as what the first down-sampling leaves
    assert staged["stage_inputs.3.weight"].shape == (64, 3, 3, 3)
    assert staged["stage_outputs.1.2.weight"].shape == (6, 64, 3, 3)  # as wide as the level's last block
    assert staged["stage_outputs.3.2.weight"].shape == (6, 96, 3, 3)


def test_the_first_stage_is_the_plain_network() -> None:
    """With the plain one's weights, and their copy for δ, both halves of the output are the plain network's."""
    plain = randomized(UNet(NETWORKS["haar"])).eval().requires_grad_(False)
    staged, weights = network("haar"), plain.state_dict()
    doubled = {key: torch.cat([one, one]) if key.startswith("out.2.") else one for key, one in weights.items()}
    staged.load_state_dict(doubled, strict=False)
    x = inputs(staged, 0, (15, 16))
    expected = plain(*x)
    torch.testing.assert_close(staged(*x), torch.cat([expected, expected], dim=1), atol=1e-6, rtol=0)
    for key in weights:
        if not key.startswith("out.2."):
            assert torch.equal(staged.state_dict()[key], weights[key])


def test_entries() -> None:
    assert entries(replace(PLAIN, stages=THREE)) == [
        Entry("0", 0, 3, 0),
        Entry("1", 1, 3, 3),
        Entry("1", 1, 3, 3),
        Entry("3", 2, 3, 6),
    ]
    assert entries(replace(PLAIN, stages=STAGES["vae"])) == [
        Entry("0", 0, 3, 0),
        Entry("1", 1, 5, 3),
        Entry("2", 2, 5, 6),
    ]
    assert [factors(STAGES[name]) for name in ("three", "factor-4", "vae")] == [4, 4, 4] and factors(None) == 1


@every_network
def test_inner_levels_are_shared(kind: str) -> None:
    """What a stage learns from is exactly its own ends and the blocks of its level and below: by the gradients."""
    unet = network(kind).requires_grad_(True)
    seen = []
    for stage in range(4):
        unet.zero_grad(set_to_none=True)
        unet(*inputs(unet, stage, (16, 16)), stage=stage).square().sum().backward()
        seen.append({name for name, parameter in unet.named_parameters() if parameter.grad is not None})
    names = {name for name, _ in unet.named_parameters()}

    def blocks(*parts: tuple[str, range]) -> set[str]:
        starts = tuple(f"{part}.{index}." for part, indices in parts for index in indices)
        return {name for name in names if name.startswith(("time_embed", "middle_block", *starts))}

    def last(index: int) -> set[str]:
        """Of the block that would go up: what changes the size."""
        layers = {name.split(".")[2] for name in names if name.startswith(f"output_blocks.{index}.")}
        return {name for name in names if name.startswith(f"output_blocks.{index}.{max(layers)}.")}

    def ends(key: str) -> set[str]:
        return {name for name in names if name.startswith((f"stage_inputs.{key}.", f"stage_outputs.{key}."))}

    assert seen[0] == blocks(("input_blocks", range(9)), ("output_blocks", range(9)), ("out", range(3)))
    middle = blocks(("input_blocks", range(4, 9)), ("output_blocks", range(6)))
    assert seen[1] == seen[2] == middle - last(5) | ends("1")
    assert seen[3] == blocks(("input_blocks", range(7, 9)), ("output_blocks", range(3))) - last(2) | ends("3")


class InStage(nn.Module):
    """A network that is called in one of its stages."""

    def __init__(self, unet: UNet, stage: int) -> None:
        super().__init__()
        self.unet, self.stage = unet, stage

    def forward(self, *given: Any) -> Tensor:
        return self.unet(*given, stage=self.stage)


def residual(inputs: int, outputs: int, cells: int) -> int:
    """Multiply-adds of a residual block: two 3 × 3 convolutions, the time's, a 1 × 1 where the width changes."""
    return (
        cells * 9 * outputs * (inputs + outputs)
        + 128 * outputs
        + (cells * inputs * outputs if inputs != outputs else 0)
    )


def test_a_small_stage_costs_what_a_hand_counts() -> None:
    """Widths 32 and 64, one block a level, no attention but in the middle (qkv and projection, 4 w² a cell)."""
    config = UNetConfig(3, 3, 32, (), num_res_blocks=1, channel_mult=(1, 2), image_size=16, num_head_channels=32)
    unet = UNet(replace(config, stages=StagesConfig((B(0.5),))), device="meta")
    whole, part, embedding = 256, 64, 32 * 128 + 128 * 128
    middle = 2 * residual(64, 64, part) + part * 4 * 64 * 64
    inner = residual(32, 64, part) + middle + residual(128, 64, part) + residual(96, 64, part)
    outer = residual(32, 32, whole) + part * 9 * 32 * 32 + whole * 9 * 64 * 64  # and conv down, conv up
    outer += residual(96, 32, whole) + residual(64, 32, whole)
    meta = torch.empty(1, device="meta")
    small = count_macs(InStage(unet, 1), torch.empty(1, 3, 8, 8, device="meta"), meta)
    large = count_macs(InStage(unet, 0), torch.empty(1, 3, 16, 16, device="meta"), meta)
    assert small == embedding + inner + part * 9 * (3 * 32 + 64 * 6)
    assert large == embedding + inner + outer + whole * 9 * (3 * 32 + 32 * 6)
    assert small < large / 2


@pytest.mark.parametrize("kind", ["conv", "updown-haar", "transformer"])
def test_recomputing_changes_no_gradient_in_any_stage(kind: str) -> None:
    unet = network(kind).requires_grad_(True)
    for stage in range(4):
        gradients = []
        for recompute in (False, True):
            unet.recompute = recompute
            unet.zero_grad(set_to_none=True)
            unet(*inputs(unet, stage, (9, 14)), stage=stage).square().sum().backward()
            gradients.append({name: p.grad for name, p in unet.named_parameters() if p.grad is not None})
        assert gradients[0].keys() == gradients[1].keys()
        assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


@every_network
def test_features_of_a_stage_are_those_of_its_levels(kind: str) -> None:
    """Sizes as in the whole network, levels from the stage's own on; looking changes no bit."""
    unet = network(kind)
    for stage, (level, plain) in enumerate(zip((0, 1, 1, 2), on_all(unet, (15, 10)), strict=True)):
        seen: dict[Tap, Tensor] = {}
        out = unet(*inputs(unet, stage, (15, 10)), stage=stage, features=seen)
        assert torch.equal(out, plain)
        levels = range(level, 3)
        assert set(seen) == {Tap("middle", 2)} | {Tap(path, one) for path in ("down", "up") for one in levels}  # type: ignore[arg-type]
        for tap, features in seen.items():
            sides = tuple(-(-side // 2**tap.level) for side in (15, 10))
            assert features.shape == (2, unet.tap_channels()[tap], *sides)


class Watching(Hooks):
    """Keeps what it is told, in its order."""

    def __init__(self) -> None:
        self.entered: list[tuple[Part, int]] = []
        self.levels: list[tuple[Direction, int]] = []
        self.left: list[int] = []
        self.joined: list[tuple[int, int]] = []

    def enter(self, part: Part, index: int) -> None:
        self.entered.append((part, index))

    def leave(self, part: Part, h: Tensor) -> Tensor:
        self.left.append(h.shape[1])
        return h

    def join(self, h: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        assert h.shape[2:] == skip.shape[2:]
        self.joined.append((h.shape[1], skip.shape[1]))
        return h, skip

    def gates(self, gates: Tensor, direction: Direction, level: int) -> Tensor:
        self.levels.append((direction, level))
        return gates


@every_network
def test_hooks_see_the_same_indices_in_every_stage(kind: str) -> None:
    """A small stage's blocks bear the numbers, widths and gates' levels that they have in the whole network."""
    unet, seen = network(kind), []
    for stage in range(4):
        seen.append(Watching())
        plain = unet(*inputs(unet, stage, (9, 12)), stage=stage)
        assert torch.equal(unet(*inputs(unet, stage, (9, 12)), stage=stage, hooks=seen[-1]), plain)
    whole = seen[0]
    assert whole.entered == [
        *(("input", index) for index in range(9)),
        ("middle", 0),
        *(("output", index) for index in range(9)),
    ]
    for stage, first in ((1, 3), (2, 3), (3, 6)):
        assert seen[stage].entered == whole.entered[first : 19 - first]
        assert seen[stage].left == whole.left[first:]
        assert seen[stage].joined == whole.joined[: 9 - first]
        level = first // 3
        times = 2 if NETWORKS[kind].resblock_updown else 1  # on the branch and on the skip
        gates = [("down", one) for one in range(level, 2)] + [("up", one) for one in reversed(range(level, 2))]
        if NETWORKS[kind].resampler == "wavelet":
            assert seen[stage].levels == [gate for gate in gates for _ in range(times)]


def paired(**settings: Any) -> StagesConfig:
    """A stage behind an autoencoder of other settings."""
    return StagesConfig((B(0.5, "vae", autoencoder=replace(PAIR, **settings)),))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"out_channels": 6, "stages": THREE}, "set out_channels to in_channels"),
        ({"stages": StagesConfig()}, "stages has no boundaries"),
        ({"stages": StagesConfig((B(0.5, "vae"),))}, "Stage 1 has the transform 'vae'; an autoencoder belongs"),
        ({"stages": StagesConfig((B(0.3), B(0.5, autoencoder=PAIR)))}, "Stage 2 has the transform 'downsample'"),
        ({"stages": paired(in_channels=4, out_ch=4)}, "autoencoder of stage 1 codes 4 channels, but the signal before"),
        ({"stages": paired(out_ch=4)}, "codes 3 channels"),
        ({"stages": paired(embed_dim=13)}, "stage 1 makes more numbers than it is given"),
        ({"stages": paired(ch_mult=())}, "first stage's channels, ch_mult"),
        ({"stages": paired(ch=33)}, "first stage's ch is 33"),
        (
            {"stages": StagesConfig((B(0.5, factor=8),))},
            "last stage is 8 times smaller than the latent",
        ),
        ({"stages": StagesConfig((B(0.2), B(0.4), B(0.6)))}, "goes to 4 times smaller"),
        ({"stages": StagesConfig((B(0.5, factor=0),))}, "factor is 0; expected 2, 4 or 8"),
        ({"stages": StagesConfig((B(0.5, factor=-2),))}, "factor is -2; expected"),
        ({"stages": StagesConfig((B(0.5, factor=3),))}, "factor is 3; expected"),
        ({"stages": StagesConfig((B(1.5),))}, "boundary lies at 1.5"),
        ({"stages": StagesConfig((B(0.5, gamma=-1.0),))}, "gamma is -1.0"),
        ({"stages": StagesConfig((B(0.5, "blur", width=99.0),))}, "width of a Gaussian blur is 99"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_what_no_network_can_be_is_refused_in_a_sentence(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(SpectralError, match=says):
        UNet(replace(PLAIN, **settings), device="meta")
