"""The toys of the spectrum lab: their data against closed forms, what a run leaves, and what the full runs find."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.training import cli
from spectral_diffusion.training.toys import aliasing, process, toy_1d, toy_2d

TOYS = {"toy_1d": ["--steps", "2"], "toy_2d": ["--steps", "8"], "aliasing": []}


@pytest.fixture
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of seconds: what they leave does not hang on how much they sample."""
    monkeypatch.setattr(toy_1d, "SAMPLES", 5)
    monkeypatch.setattr(toy_2d, "SAMPLES", 3)
    monkeypatch.setattr(toy_2d, "REFERENCES", 8)
    monkeypatch.setattr(toy_2d, "DDIM_STEPS", 4)


def command(toy: str, argv: list[str]) -> int:
    return cli.run(importlib.import_module(f"spectral_diffusion.training.toys.{toy}").main, argv)


def test_a_wave_is_found_where_folding_says() -> None:
    """Oracle: the distance to the nearest whole number, by exact fractions of the sampling rate."""
    thousandths = np.array([0, 1, 250, 499, 500, 501, 900, 1000, 1100, 1499, 1501, 1999, 2000])
    expected = np.minimum(thousandths % 1000, -thousandths % 1000) / 1000
    frequency = torch.from_numpy(thousandths / 1000)
    np.testing.assert_allclose(aliasing.folded(frequency).numpy(), expected, atol=1e-12)
    np.testing.assert_array_equal(aliasing.found_frequency(frequency).numpy(), expected)
    assert aliasing.run()["largest_deviation"] <= 0.0005 + 1e-12  # half a bin


def test_power_above_nyquist_comes_back_below_where_no_filter_takes_it(tmp_path: Path) -> None:
    """Stripes of 0.23 cycles per pixel in fourths: 0.92 per picked pixel, which is 0.08, or 0.02 of a scene's pixel."""
    x = np.arange(400)
    stripes = 128 + 60 * np.cos(2 * np.pi * 0.01 * x) + 40 * np.cos(2 * np.pi * 0.23 * x)
    file = tmp_path / "stripes.png"
    Image.fromarray(np.repeat(stripes[None].round().astype(np.uint8), 400, axis=0)).save(file)
    found = aliasing.run(file)
    share = 40**2 / (40**2 + 60**2)
    assert found["power_above"] == pytest.approx(share, abs=0.01)
    assert found["low_power_picked"] == pytest.approx(1 / (1 - share), rel=0.01)
    assert found["low_power_filtered"] == pytest.approx(1, abs=0.05)


def test_the_waves_are_two_sinusoids_in_their_shares() -> None:
    waves = toy_1d.signals(20000, process.numbers(0, "data"))
    places = np.arange(16) / 16
    cosines = np.cos(2 * np.pi * np.array([3, 5])[:, None] * places)
    distance = np.abs(waves.numpy()[:, None] - cosines).max(-1)
    assert distance.min(1).max() < 1e-5
    assert (distance.argmin(1) == 0).mean() == pytest.approx(0.2, abs=4 * (0.2 * 0.8 / 20000) ** 0.5)
    spectrum = np.abs(np.fft.rfft(waves.double().numpy())).mean(0) / 8
    np.testing.assert_allclose(spectrum, toy_1d.magnitudes(waves).mean(0).numpy(), atol=1e-5)
    found = toy_1d.measure(waves)
    assert found["cycles_3"] + found["cycles_5"] == 1 and found["beside"] < 1e-10


def test_magnitudes_are_amplitudes_of_sinusoids() -> None:
    places = torch.arange(16) / 16
    x = 0.5 + 0.7 * torch.cos(2 * torch.pi * 3 * places + 1) + 0.3 * torch.cos(2 * torch.pi * 8 * places)
    expected = torch.tensor([0.5, 0, 0, 0.7, 0, 0, 0, 0, 0.3])
    torch.testing.assert_close(toy_1d.magnitudes(x[None])[0], expected, atol=1e-6, rtol=0)


def test_the_fields_have_the_spectrum_of_two_peaks() -> None:
    """Oracle: the formula, by numpy; a mean of n powers that are exponentially distributed is off by 1/√n."""
    count = 4000
    x = toy_2d.fields(count, process.numbers(3, "data"))[:, 0].double().numpy()
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(32), np.fft.fftfreq(32)))
    formula = sum(np.exp(-((frequency - peak) ** 2) / (2 * 0.07**2)) for peak in (0.08, 0.6)) + 0.002
    formula[0, 0] = 0
    formula /= formula.mean()
    measured = (np.abs(np.fft.fft2(x)) ** 2).mean(0) / 32**2
    deviation = (measured / np.where(formula > 0, formula, 1) - 1).flatten()[1:]
    assert np.abs(deviation).max() < 6 * (2 / count) ** 0.5  # √2 more where a coefficient is real
    assert np.abs(deviation.mean()) < 0.005
    assert x.var() == pytest.approx(1, abs=0.01)


def test_the_wiener_filter_is_the_least_squares_denoiser() -> None:
    """Oracle: regression of the noise on the noisy fields' DFT, frequency by frequency."""
    schedule, generator = process.ddpm_schedule(), process.numbers(0, "test")
    x_0 = toy_2d.fields(6000, generator)
    t = torch.full((6000,), 300)
    noise = torch.randn(x_0.shape, generator=generator)
    x_t = schedule.q_sample(x_0, t, noise)
    seen, wanted, said = (np.fft.fft2(x[:, 0].double().numpy()) for x in (x_t, noise, toy_2d.wiener(schedule)(x_t, t)))
    slope = (wanted * seen.conj()).sum(0).real / (np.abs(seen) ** 2).sum(0)
    response = (said * seen.conj()).sum(0).real / (np.abs(seen) ** 2).sum(0)
    assert np.abs(slope - response)[1:].max() < 0.06
    assert np.abs(slope - response)[1:].mean() < 0.008


def test_training_and_sampling_repeat_to_the_last_bit_and_leave_torchs_stream_alone() -> None:
    schedule = process.ddpm_schedule()

    def made(seed: int) -> torch.Tensor:
        network = process.initialised(lambda: toy_1d.TwoLayers(8), seed)
        process.train(network, toy_1d.signals, schedule, steps=20, batch=4, rate=1e-3, seed=seed, name="test")
        return process.sample(network, (4, 16), schedule, steps=10, eta=1.0, seed=seed, limit=1.0)

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = made(0)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(made(0), first)
    assert not torch.equal(made(1), first)


def test_numbers_are_those_of_one_thread_and_the_threads_come_back() -> None:
    before = torch.get_num_threads()
    seen: list[int] = []

    def looked(count: int, generator: torch.Generator) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return toy_1d.signals(count, generator)

    torch.set_num_threads(2)
    try:
        network = process.initialised(lambda: toy_1d.TwoLayers(8), 0)
        process.train(network, looked, process.ddpm_schedule(), steps=2, batch=4, rate=1e-3, seed=0, name="test")
        assert seen == [1, 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("few_samples")
@pytest.mark.parametrize("toy", ["toy_1d", "toy_2d"])
def test_drawing_and_looking_change_no_number(toy: str, tmp_path: Path) -> None:
    run = importlib.import_module(f"spectral_diffusion.training.toys.{toy}").run
    first, again, other = run(8, 0), run(8, 0, tmp_path / "a.svg"), run(8, 1)
    for result in (first, again, other):
        result.pop("seconds")
    assert first == again
    assert first != other


@pytest.mark.usefixtures("few_samples")
@pytest.mark.parametrize("toy", TOYS)
@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_a_run_leaves_its_figure_and_says_its_numbers(
    toy: str, suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"figure{suffix}"
    assert command(toy, [*TOYS[toy], "--out", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["figure"] == str(out)
    assert out.read_bytes()[:4] == {".png": b"\x89PNG", ".svg": b"<?xm", ".pdf": b"%PDF"}[suffix]
    assert [file.name for file in tmp_path.iterdir()] == [out.name]


@pytest.mark.usefixtures("few_samples")
def test_a_person_reads_a_line_for_each_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("toy_1d", ["--steps", "2", "--out", str(tmp_path / "a.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split() == ["beside_data", line.split()[1]] for line in lines)
    assert not any("{" in line for line in lines)


@pytest.mark.parametrize(
    ("toy", "argv", "said"),
    [
        ("toy_1d", ["--steps", "0"], "--steps is 0"),
        ("toy_2d", ["--steps", "7"], "--steps is 7"),
        ("toy_1d", ["--seed", "x"], "--seed"),
        ("toy_2d", ["--out", "figure.bmp"], "figure.bmp"),
        ("aliasing", ["--out", "figure"], "figure"),
        ("aliasing", ["--image", "nowhere.png"], "nowhere.png"),
        ("aliasing", ["--image", "small.png"], "63×80"),
        ("aliasing", ["--image", "flat.png"], "one colour"),
        ("aliasing", ["--steps", "4"], "--steps"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    toy: str,
    argv: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((63, 80), 50).save("small.png")
    Image.new("L", (80, 80), 9).save("flat.png")
    assert command(toy, argv) == 2
    captured = capsys.readouterr()
    assert said in captured.err and captured.err.count("\n") == 1 and not captured.out
    assert sorted(file.name for file in tmp_path.iterdir()) == ["flat.png", "small.png"]


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(toy_1d, "sample", interrupt)
    assert command("toy_1d", ["--steps", "1", "--out", str(tmp_path / "a.png")]) == 130
    assert not list(tmp_path.iterdir())


def test_steps_below_the_least_are_refused() -> None:
    with pytest.raises(SpectralError, match="8 training steps"):
        toy_2d.run(steps=7)


@pytest.mark.long
@pytest.mark.parametrize("share", [0.2, 0.8])
def test_a_small_network_loses_most_of_the_rare_frequency(share: float, figures: list[str]) -> None:
    """With the shares exchanged it is the other frequency: what is lost is what is rare, not what is slow or fast."""
    found = toy_1d.run(share=share)
    rare, frequent = ("cycles_3", "cycles_5") if share < 0.5 else ("cycles_5", "cycles_3")
    recovered = {key: found[f"{key}"] / found[f"{key.rsplit('_', 1)[0]}_data"] for key in _shares(rare, frequent)}
    figures.append(f"toy-1d, {rare} rare: " + ", ".join(f"{key} {value:.2f}" for key, value in recovered.items()))
    assert recovered[f"{rare}_small"] < 0.7 < 0.85 < recovered[f"{rare}_large"]
    assert recovered[f"{frequent}_small"] > 0.85 and recovered[f"{frequent}_large"] > 0.95
    assert found["beside_small"] > 3 * found["beside_large"]


def _shares(*keys: str) -> list[str]:
    return [f"{key}_{size}" for key in keys for size in ("small", "large")]


@pytest.mark.long
def test_a_small_network_misses_the_trough_most_and_a_large_one_does_not(figures: list[str]) -> None:
    found = toy_2d.run()
    numbers = {key: value for key, value in found.items() if key.split("_")[0] in toy_2d.BANDS}
    figures.append("toy-2d: " + ", ".join(f"{key} {value:.2f}" for key, value in numbers.items()))
    assert found["trough_small"] > 1.5 * max(found["low_small"], found["high_small"])
    assert found["trough_signed_small"] > 0.2  # noise that is left over
    assert found["trough_large"] < 0.5 * found["trough_small"]
    assert max(found["low_wiener"], found["trough_wiener"], found["high_wiener"]) < 0.15
    assert found["trough_early"] > max(found["low_early"], found["high_early"])  # the peaks come first
