"""What `bench` measures and how it says it; no test here depends on how fast anything is."""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import replace

import pytest
import torch

from spectral_diffusion.spectral import presets
from spectral_diffusion.spectral.gated_haar import gated_down, gated_up
from spectral_diffusion.training import benchmark, cli
from spectral_diffusion.training.bench import networks, operations, peers, precision, scaling, timing
from spectral_diffusion.training.bench.timing import Settings, in_turn, overhead, speed

ENDINGS = ("", "_spread", "_seconds", "_reference_seconds", "_batch")


def test_times_are_taken_in_turn_and_ratios_are_medians_of_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: a clock that the functions themselves turn."""
    now, calls = [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def takes(name: str, seconds: list[float]) -> None:
        calls.append(name)
        now[0] += seconds[calls.count(name) - 1]

    one, other = [9.0, 9.0, 3.0, 8.0, 5.0, 4.0, 6.0], [9.0, 9.0, 1.0, 4.0, 2.0, 4.0, 1.0]
    functions = {"one": lambda: takes("one", one), "other": lambda: takes("other", other)}
    times = in_turn(functions, 5, warm=2)
    assert calls == ["one", "other"] * 7
    found = overhead("x", times, "one", "other", 4)
    assert found == {"x": 2.5, "x_spread": 1.5, "x_seconds": 5.0, "x_reference_seconds": 2.0, "x_batch": 4}
    turned = speed("x", times, "one", "other", 4)
    assert turned["x"] == 0.4 and (turned["x_seconds"], turned["x_reference_seconds"]) == (5.0, 2.0)


def test_repeats_are_one_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def takes() -> None:
        now[0] += 2.0

    assert timing.seconds(takes, repeats=3) == 2.0 and now[0] == 6.0


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> str:
    """A preset of small networks in the place of the paper's."""
    whole = presets.PRESETS[networks.PRESET]
    unet = replace(whole.unet, model_channels=64, channel_mult=(1, 2), attention_resolutions=(2,), image_size=16)
    monkeypatch.setitem(presets.PRESETS, "small", replace(whole, unet=unet, slim=32))
    monkeypatch.setattr(networks, "PRESET", "small")
    return "small"


def test_everything_is_one_flat_object(
    small: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(precision, "fastest", lambda _device: "bf16")
    monkeypatch.setattr(precision, "PRESET", small)
    assert cli.main(["bench", "--quick", "--batch", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    ratios = [
        "student_vs_teacher",
        "student_vs_lite",
        "student_vs_diffusers_lite",
        "student_vs_diffusers_ldm",
        "teacher_vs_diffusers",
        *(f"gated_{way}_vs_{other}" for way in ("down", "up") for other in ("pytorch_wavelets", "ptwt", "copy")),
        "ddim_overhead",
        "fdm_speedup",
        "distill_step_overhead",
        "radial_spectrum_vs_fft",
        "reuse_2_speedup",
        "reuse_3_speedup",
        "student_bf16_vs_float32",
    ]
    numbers = {ratio + ending: found.pop(ratio + ending) for ratio in ratios for ending in ENDINGS}
    assert all(math.isfinite(number) and number >= 0 for number in numbers.values())
    assert all(numbers[ratio + "_seconds"] > 0 and numbers[ratio + "_batch"] == 2 for ratio in ratios)
    assert 0 < found.pop("distill_step_recompute_gib") < found.pop("distill_step_gib")
    assert found.pop("device") and found.pop("torch") == torch.__version__
    assert 1e-3 < found.pop("bf16_error") < 2e-2
    assert found == {"batch": 2, "precision": "no", "threads": torch.get_num_threads()}


def test_growth_has_slopes_and_the_table_every_network(
    small: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scaling, "PRESET", small)
    monkeypatch.setattr(scaling, "ENOUGH", 0.0)
    monkeypatch.setattr(scaling, "GROWTH", {"batch": (1, 2, 4), "side": (8, 16, 32), "steps": (2, 4, 8)})
    assert cli.main(["bench", "scaling", "table", "--quick", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["student_batch_2_seconds"] > 0 and found["student_steps_4_seconds"] > 0
    assert all(math.isfinite(found[f"slope_{name}_{unit}"]) for name in scaling.GROWTH for unit in ("seconds", "gib"))
    assert {f"{kind}_batch_{n}_gib" for kind in ("student", "lite", "teacher") for n in (1, 8)} < set(found)
    assert cli.main(["bench", "scaling", "--quick"]) == 0
    assert "slope_side_seconds" in capsys.readouterr().out


def test_operations_are_counted_beside_what_was_published(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", "operations", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for name in ("cin256_v2_teacher", "cin256_v2_student", "stable_diffusion_1_teacher"):
        assert found[f"{name}_gmacs"] == pytest.approx(found[f"{name}_published_gmacs"], rel=0.01)
    for every in (2, 3, 5, 10, 20):
        published = found[f"cin256_v2_deepcache_{every}_published_gmacs"]
        assert found[f"cin256_v2_teacher_reuse_{every}_gmacs"] == pytest.approx(published, rel=0.025)
    monkeypatch.setattr(operations, "COUNTED", {"student": ("student", 1)})
    assert cli.main(["bench", "operations"]) == 0
    assert "stable_diffusion_1_bk_sdm_tiny_published     205.09 " in capsys.readouterr().out


def test_a_cpu_without_bfloat16_is_not_asked_for_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(precision, "fastest", lambda _device: "no")
    assert cli.main(["bench", "precision", "--json"]) == 0
    assert not any("bf16" in name for name in json.loads(capsys.readouterr().out))


def test_all_is_all(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In the order of the help; the nodes where there is a ComfyUI to measure them in."""
    for table in (benchmark.SUBJECTS, benchmark.BY_NAME):
        for name in table:
            monkeypatch.setitem(table, name, lambda _settings, name=name: {f"{name}_found": 1.0})
    monkeypatch.setattr(benchmark.comfyui, "measure", lambda _settings, at: {"comfyui_found": 1.0})
    monkeypatch.setattr(benchmark, "Installation", lambda *_where: None)
    for options, more in (([], set()), (["--comfyui", "anywhere"], {"comfyui_found"})):
        assert cli.main(["bench", "all", "--json", *options]) == 0
        found = {name for name in json.loads(capsys.readouterr().out) if name.endswith("_found")}
        expected = {f"{name}_found" for table in (benchmark.SUBJECTS, benchmark.BY_NAME) for name in table}
        assert found == expected | more


def test_a_slope_is_the_power() -> None:
    assert scaling.slope([1, 2, 4, 8], [3, 12, 48, 192]) == pytest.approx(2)


def test_a_table_says_ratio_times_and_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "resamplers", "spectrum", "--quick", "--batch", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines[1:-2]} > {"gated_down_vs_copy", "radial_spectrum_vs_fft"}
    assert all(len(line.split()) == 8 for line in lines[1:-2]) and "threads" in lines[-1]


def test_a_peer_that_is_not_there_is_left_out_and_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_wavelets", None)
    assert cli.main(["bench", "resamplers", "--quick", "--batch", "1", "--json"]) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert "gated_down_vs_ptwt" in found and "gated_down_vs_pytorch_wavelets" not in found
    assert "pytorch_wavelets" in shown.err and "spectral-diffusion[bench]" in shown.err


@pytest.mark.parametrize("batch", ["0", "-3"])
def test_a_batch_of_nothing_is_refused(batch: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "spectrum", "--batch", batch]) == 2
    assert f"--batch is {batch}; expected at least 1." in capsys.readouterr().err


def test_a_gpu_gets_batches_and_runs_of_the_papers_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (Settings().of_batch(cpu=8, quick=1), Settings(quick=True).of_batch(cpu=8, quick=1)) == (8, 1)
    monkeypatch.setattr(timing, "device", lambda: torch.device("cuda"))
    assert (Settings().of_batch(cpu=8), Settings().rounds(cpu=5, quick=3)) == (64, 30)
    assert Settings(batch=2).of_batch(cpu=8) == 2


@pytest.mark.parametrize("make", [peers.pytorch_wavelets_resamplers, peers.ptwt_resamplers])
def test_peers_compute_what_ours_computes(make: object) -> None:
    x = torch.randn(2, 8, 6, 10, generator=torch.Generator().manual_seed(1))
    gates = torch.rand(2, 4, 8, generator=torch.Generator().manual_seed(2))
    assert callable(make)
    torch.testing.assert_close(make(x, gates)[0](), gated_down(x, gates))
    torch.testing.assert_close(make(x, gates[..., :2])[1](), gated_up(x, gates[..., :2].contiguous()))


def test_the_peer_unet_has_the_teachers_parameters() -> None:
    """Oracle: the count of the original's key manifest (PAPER, Table 2)."""
    with torch.device("meta"):
        peer = peers.diffusers_unet("ffhq256-teacher")
    assert sum(weight.numel() for weight in peer.parameters()) == 274_056_163
