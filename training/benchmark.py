"""How fast things are, in ratios of times that were taken side by side in one process (DESIGN: numbers to beat).

    networks     the student's U-Net against Lite, the teacher, and diffusers' U-Net of the teacher's shape
    resamplers   gated Haar down and up against pytorch_wavelets and ptwt with the same gates, and a copy of memory
    ddim         sampling over as many calls of the network alone
    fdm          two stages against one
    train        a step of distillation over the passes through teacher and student alone
    spectrum     the radial spectrum over its transforms alone
    precision    the student's U-Net in half precision against float32, and its error
    reuse        sampling that reuses deep features against whole steps
    operations   by name only: multiply-adds a step, beside the published ones of DeepCache and BK-SDM
    table        by name only: student, Lite and teacher at batches of 1, 8 and 64, time and memory (minutes on a CPU)
    scaling      by name only: the student's time and memory over batch, resolution and steps, with slopes
    comfyui      with --comfyui: KSampler over its calls of the U-Net, and what the pack adds to ComfyUI's start
    all          every one of these in one process; comfyui with --comfyui

Ratios named X_vs_Y are above 1 where X is faster; `…_vs_copy`, `…_vs_fft` and overheads are time over the reference.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..spectral.errors import SpectralError
from . import cli
from .bench import comfyui, distilling, networks, operations, precision, resamplers, sampling, scaling, spectra
from .bench.comfyui import Installation
from .bench.timing import Settings
from .processes import device

SUBJECTS: dict[str, Callable[[Settings], dict[str, float]]] = {
    "networks": networks.measure,
    "resamplers": resamplers.measure,
    "ddim": sampling.measure_loop,
    "fdm": sampling.measure_stages,
    "train": distilling.measure,
    "spectrum": spectra.measure,
    "precision": precision.measure,
    "reuse": sampling.measure_reuse,
}
#: What is measured only when it is asked for.
BY_NAME: dict[str, Callable[[Settings], dict[str, float]]] = {
    "table": scaling.measure_table,
    "scaling": scaling.measure_growth,
    "operations": operations.measure,
}


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help that keeps the list of subjects as it is."""


def main(argv: Sequence[str]) -> None:
    """The command `bench`."""
    parser = cli.Parser("bench", f"Measure speed. {__doc__}")
    parser.formatter_class = _Formatter
    names = [*SUBJECTS, *BY_NAME, "comfyui", "all"]
    parser.add_argument(
        "what",
        nargs="*",
        metavar="WHAT",
        choices=[*names, []],
        help=f"of {', '.join(names)}; the first eight by default",
    )
    parser.add_argument(
        "--batch", type=int, help="samples at a time; by default 64 on a GPU, on a CPU 8 for U-Nets and 16 or 32 else"
    )
    parser.add_argument("--precision", choices=("no", "bf16", "fp16"), default="no", help="of networks and training")
    parser.add_argument("--comfyui", type=Path, metavar="FOLDER", help="a ComfyUI to measure the nodes in")
    parser.add_argument("--comfyui-python", default=sys.executable, metavar="FILE", help="the Python that it runs on")
    parser.add_argument("--quick", action="store_true", help="less than a minute; U-Nets on a CPU with single samples")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args(argv)
    if arguments.batch is not None and arguments.batch < 1:
        raise SpectralError(f"--batch is {arguments.batch}; expected at least 1.")
    settings = Settings(arguments.batch, arguments.precision, arguments.quick)
    subjects = dict(SUBJECTS)
    if arguments.comfyui is not None:
        subjects["comfyui"] = partial(comfyui.measure, at=Installation(arguments.comfyui, arguments.comfyui_python))
    elif "comfyui" in arguments.what:
        raise SpectralError("To measure the nodes, give the folder of a ComfyUI to --comfyui.")
    result: dict[str, Any] = {}
    chosen = [*subjects, *BY_NAME] if "all" in arguments.what else arguments.what or subjects
    for name in chosen:
        print(f"Measuring {name} …", file=sys.stderr, flush=True)
        result |= (subjects | BY_NAME)[name](settings)
    result |= machine() | {"batch": settings.of_batch(cpu=8, quick=1), "precision": settings.precision}
    if arguments.json:
        cli.report(result, as_json=True)
    else:
        print(table(result))


def machine() -> dict[str, Any]:
    """What was measured on."""
    if device().type == "cuda":
        return {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    return {"device": "cpu", "threads": torch.get_num_threads(), "torch": torch.__version__}


def table(result: dict[str, Any]) -> str:
    """The ratios with their spreads and the times behind them, a line each."""
    names = [name.removesuffix("_spread") for name in result if name.endswith("_spread")]
    width = max(map(len, names), default=0)
    lines = [f"{'':{width}}  {'ratio':>8}   ±       {'time':>10}  {'reference':>10}  batch"] if names else []
    for name in names:
        ratio, spread, batch = (result[name + end] for end in ("", "_spread", "_batch"))
        first, reference = (result[name + end] for end in ("_seconds", "_reference_seconds"))
        lines.append(
            f"{name:{width}}  {ratio:8.3f}   {spread:<6.3f}  {readable(first):>10}  {readable(reference):>10}  {batch}"
        )
    lines += scaling.lines(result) + operations.lines(result)
    lines += [f"{name:{width}}  {result[name]:.2g} of the prediction" for name in result if name.endswith("_error")]
    lines += [
        f"{name:{width}}  {result[name] * 2**10:.0f} MiB"
        for name in result
        if name.startswith("distill_step") and name.endswith("_gib")
    ]
    if "start_added_seconds" in result:
        added, alone = result["start_added_seconds"], result["start_seconds"]
        lines += ["", f"The pack adds {added:.3f} s to ComfyUI's start, which takes {alone:.2f} s without it."]
    about = ", ".join(
        f"{name} {result[name]}" for name in ("device", "threads", "precision", "torch") if name in result
    )
    return "\n".join([*lines, "", f"Medians of rounds in turn; {about}."])


def readable(seconds: float) -> str:
    """A time in the unit that suits it."""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} µs"


if __name__ == "__main__":
    sys.exit(cli.run(main))
