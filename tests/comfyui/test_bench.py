"""`bench comfyui` in a real ComfyUI: it runs, and says what it measured; how fast it was is no matter here."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from spectral_diffusion.training import cli

from .server import ComfyServer


def test_the_nodes_are_measured_in_a_comfyui(
    comfy: ComfyServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    distribution = comfy.distribution
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).with_name("site")))
    where = ["--comfyui", str(distribution.program), "--comfyui-python", str(distribution.python)]
    code = cli.main(["bench", "comfyui", "--quick", "--batch", "1", "--json", *where])
    shown = capsys.readouterr()
    if not distribution.modern:
        assert code == 2 and re.search("failed: .*unrecognized arguments: .*--base-directory", shown.err)
        return
    assert code == 0, shown.err
    found = json.loads(shown.out)
    assert found["ksampler_overhead"] > 0 and found["ksampler_overhead_reference_seconds"] > 0
    assert found["start_seconds"] > 0 and "start_added_seconds" in found


def test_a_folder_without_comfyui_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "comfyui", "--comfyui", str(tmp_path)]) == 2
    assert f"{tmp_path} is no ComfyUI: it has no main.py" in capsys.readouterr().err
    assert cli.main(["bench", "comfyui"]) == 2
    assert "give the folder of a ComfyUI to --comfyui" in capsys.readouterr().err
