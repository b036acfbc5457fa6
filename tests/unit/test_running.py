"""How the kit runs a U-Net: precisions with bounds on their errors, reuse, compilation; what commands say of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from spectral_diffusion.spectral import checkpoint
from spectral_diffusion.spectral.checkpoint import Checkpoint
from spectral_diffusion.spectral.config import BoundaryConfig, StagesConfig, UNetConfig
from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.spectral.unet import UNet
from spectral_diffusion.training import cli, running
from spectral_diffusion.training.bench.precision import error
from spectral_diffusion.training.evaluation.config import EvaluationConfig
from spectral_diffusion.training.evaluation.samples import asked, check_folder
from spectral_diffusion.training.running import Running, fastest
from spectral_diffusion.training.sample import sample_checkpoint

from . import tiny

CHECKPOINTS = Path(__file__).parents[2] / "workflows" / "checkpoints"
PROMPTS = ("red apple", "smiling face with hearts")


def student(how: Running, name: str = "emoji64-student") -> Checkpoint:
    opened = checkpoint.load(CHECKPOINTS / f"{name}.safetensors")
    assert opened.unet is not None
    how.prepare(opened.unet)
    return opened


def drawn(how: Running, name: str = "emoji64-student", steps: int = 10) -> Tensor:
    return sample_checkpoint(student(how, name), PROMPTS, steps=steps, how=how)


def decibels(one: Tensor, other: Tensor) -> float:
    """Peak signal-to-noise ratio of the worst picture."""
    return float(-10 * (one - other).square().flatten(1).mean(1).log10().max())


@pytest.fixture(scope="module")
def exact() -> Tensor:
    return drawn(Running())


@pytest.mark.parametrize(("half", "bound"), [("bf16", 1.5e-2), ("fp16", 2e-3)])
def test_a_prediction_in_half_precision_is_off_by_some_roundings(half: Any, bound: float) -> None:
    """bfloat16 keeps 8 bits, float16 11: some dozen layers are off by a few of their roundings, 2⁻⁸ and 2⁻¹¹."""
    assert bound / 20 < error(half) < bound


@pytest.mark.parametrize(("half", "least"), [("bf16", 45), ("fp16", 60)])
def test_pictures_in_half_precision_show_no_difference(exact: Tensor, half: Any, least: float) -> None:
    """At 48 dB the root mean square is one of 255 levels."""
    found = drawn(Running(half))
    assert found.dtype == torch.float32 and not torch.equal(found, exact)
    assert decibels(found, exact) > least


def test_a_student_in_stages_keeps_its_transforms_in_float32() -> None:
    found, whole = (drawn(how, "emoji64-fdm") for how in (Running("bf16"), Running()))
    assert decibels(found, whole) > 40
    staged = UNetConfig(
        4, 4, 32, (1, 2), 1, (1, 2), 8, num_head_channels=16, stages=StagesConfig((BoundaryConfig(0.5),))
    )
    unet = UNet(staged)
    Running("fp16").prepare(unet)
    assert unet.out[2].weight.dtype == torch.float16  # type: ignore[union-attr]
    assert all(weight.dtype == torch.float32 for weight in unet.stage_pairs.parameters())


def test_reuse_is_near_and_runs_less(exact: Tensor) -> None:
    how = Running(reuse=2)
    opened = student(how)
    calls: list[int] = []
    assert opened.unet is not None
    opened.unet.middle_block[0].register_forward_hook(lambda *_: calls.append(1))
    found = sample_checkpoint(opened, PROMPTS, steps=10, how=how)
    assert len(calls) == 5 and 25 < decibels(found, exact) < 60


def test_as_it_stands_nothing_changes_to_the_last_bit(exact: Tensor) -> None:
    how = Running(reuse=3, reuse_outer=100)
    assert torch.equal(drawn(how), exact)


@pytest.mark.parametrize("name", ["emoji64-student", pytest.param("emoji64-fdm", marks=pytest.mark.long)])
def test_compiled_pictures_are_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a compiler that makes a graph and runs it as it is; what makes it fast is torch's own."""
    torch._dynamo.reset()
    compile_ = UNet.compile

    def graph(unet: UNet, **settings: Any) -> None:
        assert settings == {"mode": None}
        compile_(unet, backend="eager", fullgraph=True)

    exact = drawn(Running(), name)
    monkeypatch.setattr(UNet, "compile", graph)
    assert decibels(drawn(Running(compile=True), name), exact) > 80


@pytest.mark.parametrize(
    ("where", "supported", "expected"),
    [
        ("cpu", {"_is_avx512_bf16_supported"}, "bf16"),
        ("cpu", {"_is_amx_tile_supported"}, "bf16"),
        ("cpu", set(), "no"),
        ("mps", set(), "no"),
        ("cuda", {(8, 0)}, "bf16"),
        ("cuda", {(9, 0)}, "bf16"),
        ("cuda", {(7, 5)}, "fp16"),
    ],
)
def test_the_fastest_precision(monkeypatch: pytest.MonkeyPatch, where: str, supported: set[Any], expected: str) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name in supported)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: next(iter(supported)))
    assert fastest(torch.device(where)) == expected


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"precision": "int8"}, "precision is 'int8'; expected one of no, bf16, fp16, auto."),
        ({"reuse": 0}, "reuse is 0; expected a whole number from 1."),
        ({"reuse": 2.5}, "reuse is 2.5; expected a whole number from 1."),
        ({"reuse": 2, "reuse_outer": -1}, "reuse_outer is -1; expected a whole number from 1."),
        ({"reuse_outer": 3}, "reuse_outer is 3, but nothing is reused; set reuse as well."),
        ({"reuse": 2, "compile": True}, "compile makes one graph"),
    ],
)
def test_what_cannot_be_is_a_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SpectralError, match=sentence):
        Running(**settings)


def test_samples_made_otherwise_are_never_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = checkpoint.read(CHECKPOINTS / "emoji64-student.safetensors").config
    monkeypatch.setattr(running, "fastest", lambda _device: "bf16")
    plain, faster, half = (
        asked(model, EvaluationConfig(running=how)) for how in (Running(), Running(reuse=2), Running("auto"))
    )
    assert faster.items() - plain.items() == {("reuse", 2)}
    assert half.items() - plain.items() == {("precision", "bf16")}
    path = tmp_path / "samples.json"
    for made, wanted, name in ((plain, faster, "reuse"), (faster, plain, "reuse"), (half, plain, "precision")):
        path.write_text(json.dumps(made))
        assert check_folder(tmp_path, made) == made
        with pytest.raises(SpectralError, match=f"samples made with {name} = "):
            check_folder(tmp_path, wanted)


def test_sample_takes_the_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["sample", str(CHECKPOINTS / "emoji64-student.safetensors"), "red apple", "--steps", "4"]
    for name, options in {"whole": [], "faster": ["--reuse", "2", "--precision", "bf16"]}.items():
        assert cli.main([*given, "--out", str(tmp_path / name), *options]) == 0
    files = [(tmp_path / name / "images" / "000.png").read_bytes() for name in ("whole", "faster")]
    assert files[0] != files[1]
    assert cli.main([*given, "--reuse", "0"]) == 2
    assert "reuse is 0; expected a whole number from 1." in capsys.readouterr().err


def test_a_machine_without_a_compiler_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("/nowhere/c++",))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    given = ["sample", str(tiny.teacher(tmp_path / "teacher.safetensors")), "red", "--steps", "1", "--compile"]
    assert cli.main([*given, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "torch.compile failed (" in said and said.strip().endswith("leave out --compile.")


def test_who_forgets_to_prepare_is_told() -> None:
    with pytest.raises(ValueError, match=r"call Running\.prepare with it first"):
        Running("bf16").network(UNet(UNetConfig(4, 4, 32, (), 1, (1,), 8, num_heads=1)), [1])


def test_numbers_beyond_fp16_are_named() -> None:
    how = Running("fp16")
    opened = student(how)
    assert opened.unet is not None
    opened.unet.out[2].weight.data.fill_(60000.0)  # type: ignore[union-attr]
    with pytest.raises(SpectralError, match="or they are beyond the numbers of fp16: try bf16"):
        sample_checkpoint(opened, PROMPTS[:1], steps=2, how=how)
