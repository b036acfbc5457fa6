"""Whichever tensor of a published model is missing, surplus or misshapen, it is that one which the error names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from spectral_diffusion.spectral import checkpoint
from spectral_diffusion.spectral.config import ModelConfig
from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.spectral.formats import ldm
from spectral_diffusion.spectral.formats.source import ReadOptions

from .test_ldm_files import TEACHERS, manifest, published

UNET = "model.diffusion_model."
#: Attention and resamplers of all kinds are in these two; the rest is looked at in steps.
EVERY = ("lsun_churches256", "cin256")
STEPS = [(name, 1 if name in EVERY else 11) for name in TEACHERS]


class Names(nn.Module):
    """A module that is nothing but its tensors' names and shapes, for the comparison alone."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.state = state

    def state_dict(self, *_: object, **__: object) -> dict[str, Tensor]:  # type: ignore[override]
        return self.state


_BUILT: dict[str, dict[str, Names | None]] = {}


def modules(config: ModelConfig) -> dict[str, Names | None]:
    """The parts of a model; building them anew for each of thousands of broken files would take an hour."""
    if repr(config) not in _BUILT:
        _BUILT[repr(config)] = {
            prefix: None if module is None else Names(module.state_dict())
            for prefix, module in checkpoint._modules(config).items()
        }
    return _BUILT[repr(config)]


def refused(name: str, tensors: dict[str, Tensor]) -> str | None:
    """The sentence that ends the reading of such a file."""
    try:
        source = ldm.read(Path(f"{name}.ckpt"), tensors, {}, ReadOptions())
        checkpoint.check(source.config, name)
        for prefix, module in modules(source.config).items():
            part = {key.removeprefix(prefix): value for key, value in source.tensors.items() if key.startswith(prefix)}
            checkpoint.match(module, part, prefix)
    except SpectralError as error:
        return str(error)
    return None


def averages(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    inner = {key.removeprefix("model."): value for key, value in tensors.items() if key.startswith("model.")}
    return {"model_ema." + key.replace(".", ""): value for key, value in inner.items()}


@pytest.mark.parametrize(("name", "step"), STEPS)
@pytest.mark.parametrize("averaged", [False, True], ids=["weights", "averages"])
def test_a_missing_key_is_named(name: str, step: int, averaged: bool) -> None:
    whole = published(name)
    whole |= averages(whole) if averaged else {}
    assert refused(name, whole) is None
    for key in list(manifest(name)["keys"])[:: step * (20 if averaged else 1)]:
        said = refused(name, {other: value for other, value in whole.items() if other != key})
        assert said is not None and key in said and "missing" in said


def misshapen(shape: torch.Size) -> Iterator[list[int]]:
    """Longer in front, longer behind, one more axis, empty."""
    yield [shape[0] + 1, *shape[1:]]
    yield [*shape[:-1], shape[-1] + 1]
    yield [*shape, 1]
    yield [0, *shape[1:]]


#: Of these another number of rows is another model, with more codes or more classes.
ROWS = ("quantize.embedding.weight", "cond_stage_model.embedding.weight")


@pytest.mark.parametrize(("name", "step"), STEPS)
def test_a_wrong_shape_is_named(name: str, step: int, every: int = 10) -> None:
    whole = published(name)
    for key in list(whole)[:: every * step]:
        for shape in list(misshapen(whole[key].shape))[1 if key.endswith(ROWS) else 0 :]:
            said = refused(name, whole | {key: torch.empty(shape, device="meta")})
            assert said is not None and key in said and str(shape) in said


@pytest.mark.long
@pytest.mark.parametrize("name", TEACHERS)
def test_every_missing_key_and_every_wrong_shape_is_named(name: str) -> None:
    test_a_missing_key_is_named(name, 1, averaged=False)
    test_a_wrong_shape_is_named(name, 1, every=1)


def test_an_average_of_another_shape_is_named() -> None:
    whole = published("ffhq256")
    whole |= averages(whole)
    wrong = next(key for key in whole if key.startswith("model_ema."))
    said = refused("ffhq256", whole | {wrong: torch.empty(3, 3, device="meta")})
    assert said is not None and wrong in said and "turn ema off" in said


SURPLUS = [
    "model.diffusion_model.input_blocks.1.1.norm.weight2",
    "model.diffusion_model.input_blocks.1.2.conv.weight",
    "model.diffusion_model.output_blocks.99.0.in_layers.0.weight",
    "model.diffusion_model.output_blocks.12.0.in_layers.0.weight",
    "model.diffusion_model.middle_block.3.in_layers.0.weight",
    "model.diffusion_model.out.3.weight",
    "model.diffusion_model.label_emb.0.0.weight",
    "first_stage_model.encoder.down.4.block.0.norm1.weight",
    "first_stage_model.encoder.down.0.block.2.norm1.weight",
    "first_stage_model.decoder.mid.attn_2.q.weight",
    "first_stage_model.quantize.used",
    "cond_stage_model.surplus",
    "model.surplus",
    "model.input_blocks.1",
    "input_blocks.99.x",
    "output_blocks.0.x",
    "encoder.down.0.x",
    "encoder.conv_in.weight",
    "surplus",
]


@pytest.mark.parametrize("key", SURPLUS)
@pytest.mark.parametrize("name", TEACHERS)
def test_a_surplus_key_is_named(name: str, key: str) -> None:
    said = refused(name, published(name) | {key: torch.empty(8, device="meta")})
    assert said is not None and key in said
