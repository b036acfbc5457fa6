"""The launcher's example configurations, as accelerate understands them, and training with DeepSpeed where it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from spectral_diffusion.training.launching import asked_for

from .test_sharding import checkpoint, close, plain

CONFIGS = Path(__file__).parents[2] / "training" / "configs" / "accelerate"


def environment(name: str) -> dict[str, str]:
    """What the processes of a launch with a configuration would find in their environment."""
    given = ["--config_file", str(CONFIGS / f"{name}.yaml"), "-m", "spectral_diffusion.training.distill"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(given))
    assert arguments.num_processes == 8
    arguments.deepspeed_fields_from_accelerate_config = ""  # which only a launch itself fills in
    found = prepare_deepspeed_cmd_env(arguments)[1] if name == "deepspeed" else prepare_multi_gpu_env(arguments)
    return dict(found)


def test_ddp() -> None:
    found = environment("ddp")
    assert found["ACCELERATE_MIXED_PRECISION"] == "no" and "ACCELERATE_USE_FSDP" not in found


def test_fsdp_cuts_the_student_as_one() -> None:
    found = environment("fsdp")
    assert (found["ACCELERATE_USE_FSDP"], found["FSDP_VERSION"]) == ("true", "2")
    assert found["FSDP_TRANSFORMER_CLS_TO_WRAP"] == "UNet" and found["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"


def test_deepspeed_cuts_the_optimizers_state() -> None:
    found = environment("deepspeed")
    assert (found["ACCELERATE_USE_DEEPSPEED"], found["ACCELERATE_DEEPSPEED_ZERO_STAGE"]) == ("true", "2")


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("python -m accelerate.commands.launch --cpu --num_processes 2 -m package.module --steps 3", 2),
        ("python /bin/accelerate launch --num-processes=4 --cpu script.py launch", 4),
        ("python /bin/accelerate-launch --cpu --num_processes 3 script.py --num_processes 5", 3),
        ("python -m accelerate.commands.accelerate_cli launch --cpu --num_processes 2 script.py", 2),
        ("python -m accelerate.commands.launch --config_file {config} script.py", 6),
        ("python -m accelerate.commands.launch --cpu --num_processes 1 script.py", None),
        ("python -m accelerate.commands.launch --cpu --num_processes 4 --num_machines 2 script.py", None),
        ("python -m accelerate.commands.launch --cpu --num_processes 4 --no-such-option", None),
        ("python other.py launch --num_processes 2 script.py", None),
        ("python", None),
    ],
)
def test_processes_that_a_launcher_was_asked_for_are_read_from_its_command(
    line: str, count: int | None, tmp_path: Path
) -> None:
    """That they are started is tested in test_faults, with their weights."""
    config = tmp_path / "cpus.yaml"
    config.write_text("compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\nuse_cpu: true\nnum_processes: 6\n")
    assert asked_for(line.format(config=config).split()) == count


@pytest.mark.long
def test_a_run_with_deepspeed_learns_what_one_without_does_and_they_change_places(tmp_path: Path) -> None:
    """DeepSpeed is no dependency, and is built where it is installed: this runs where somebody did that."""
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed here")
    config = tmp_path / "deepspeed.yaml"
    config.write_text((CONFIGS / "deepspeed.yaml").read_text().replace("num_processes: 8", "num_processes: 2"))

    def zero(out: Path, steps: int) -> None:
        program = str(Path(__file__).with_name("zero_toy.py"))
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), program]
        ended = subprocess.run(
            [*command, str(out), str(steps)],
            env={**os.environ, "DS_ACCELERATOR": "cpu"},
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, ended.stderr

    plain(tmp_path / "whole", 6)
    zero(tmp_path / "zero", 6)
    plain(tmp_path / "whole-zero", 3)
    zero(tmp_path / "whole-zero", 6)
    zero(tmp_path / "zero-whole", 3)
    plain(tmp_path / "zero-whole", 6)
    expected = checkpoint(tmp_path / "whole", 6)
    for name in ("zero", "whole-zero", "zero-whole"):
        found = checkpoint(tmp_path / name, 6)
        for part in ("task", "ema", "optimizer"):
            assert close(found[part], expected[part]), (name, part)
