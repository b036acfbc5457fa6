"""What `bench` measures and how it says it; no test here depends on how fast anything is."""

from __future__ import annotations

import json
import math
import time

import pytest

from spectral_diffusion.training import benchmark, cli


def test_times_are_taken_in_turn_and_ratios_are_medians_of_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: a clock that the functions themselves turn."""
    now, calls = [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def takes(name: str, seconds: list[float]) -> None:
        calls.append(name)
        now[0] += seconds[calls.count(name) - 1]

    warm = [9.0] * benchmark.WARM
    one, other = [*warm, 3.0, 8.0, 5.0, 4.0, 6.0], [*warm, 1.0, 4.0, 2.0, 4.0, 1.0]
    times = benchmark.paired(lambda: takes("one", one), lambda: takes("other", other), 5)
    assert calls == ["one", "other"] * (benchmark.WARM + 5)
    found = benchmark.ratios("x", times)
    assert found["x"] == 2.5 and (found["x_seconds"], found["x_reference_seconds"]) == (5.0, 2.0)
    assert found["x_spread"] == pytest.approx((4.5 - 1.5) / 2)


def test_a_step_of_distillation_is_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(benchmark, "QUICK_PAIRS", 2)
    assert cli.main(["bench", "train", "--quick", "--batch", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["batch"] == 2 and found["precision"] == "no" and found["device"]
    numbers = [value for name, value in found.items() if name.startswith("distill_step_overhead")]
    assert len(numbers) == 4 and all(math.isfinite(number) and number >= 0 for number in numbers)
    assert found["distill_step_overhead_seconds"] > 0


def test_the_radial_spectrum_is_timed_against_its_transforms(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "spectrum", "--quick", "--batch", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["radial_spectrum_vs_fft"] > 0
    assert found["radial_spectrum_vs_fft_reference_seconds"] > 0
