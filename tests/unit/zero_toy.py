"""The toy run under DeepSpeed: `accelerate launch --config_file deepspeed.yaml zero_toy.py RUN STEPS`.

accelerate looks for GPUs before it looks for DeepSpeed; here it is told that the processes talk over gloo.
"""

from __future__ import annotations

import sys
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import DistributedType
from toy import Numbers, Quiet, config, no_preview

from spectral_diffusion.training import cli
from spectral_diffusion.training.loop.fit import fit

PartialState._prepare_backend = lambda self, *given, **more: ("gloo", DistributedType.MULTI_CPU)


def main(out: Path, steps: int) -> None:
    fit(Quiet(), Numbers(), config(out, steps=steps), no_preview)


if __name__ == "__main__":
    sys.exit(cli.run(lambda argv: main(Path(argv[0]), int(argv[1]))))
