"""A student's first weights: from another student's file, or from its teacher's, thinned out.

Every dimension that grows with the width keeps evenly spaced entries of the teacher's, in every layer the same ones:
the "uniform selection" of Xu et al., "Initializing Models with Larger Ones", ICLR 2024. Even spacing is what lines
everything else up: the two parts of an input that a skip is joined to, the two halves of a gated layer, groups of a
normalisation, and the frequencies of the time embedding all keep their places when both networks have the same shape
but for their width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ...spectral import checkpoint
from ...spectral.attention import CrossAttention, SelfAttention
from ...spectral.config import UNetConfig
from ...spectral.errors import SpectralError
from ...spectral.unet import UNet


def set_first_weights(student: UNet, teacher: UNet, init: str) -> None:
    """Give a student the weights that it starts from, where they are not to be "random".

    Args:
        init: "random"; "teacher", as `student_from_teacher`; or the path of another student's file, whose images may
            have been of another size.

    Raises:
        SpectralError: as `check`.
    """
    check(student.config, teacher.config, init)
    if init == "teacher":
        student_from_teacher(student, teacher)
    elif init != "random":
        other = checkpoint.load(Path(init)).unet
        assert other is not None
        student.load_state_dict(other.state_dict())


def check(student: UNetConfig, teacher: UNetConfig, init: str) -> None:
    """That a student can start from what `init` says.

    Raises:
        SpectralError: the teacher is narrower, or another network but for width and resamplers; or the file cannot be
            used, or holds another network but for the size of its images.
    """
    if init == "teacher":
        check_teacher(student, teacher)
    elif init != "random":
        check_student(student, Path(init))


def check_student(student: UNetConfig, path: Path) -> None:
    """That a student can start with the weights of a file; raises as `check`."""
    if not path.is_file():
        raise SpectralError(f"init is {path}, which is not there; expected random, teacher or the file of a student.")
    other = checkpoint.read(path).config.unet
    if other is None:
        raise SpectralError(f"init is {path}, which holds no U-Net; give the checkpoint of a student.")
    for name, value in vars(student).items():
        if name != "image_size" and value != getattr(other, name):
            raise SpectralError(
                f"The student's {name} is {value}, but that of {path.name} is {getattr(other, name)}; make them equal, "
                "or set init to random."
            )


@dataclass(frozen=True)
class Taken:
    """What a student has of its teacher.

    Args:
        tensors: how many of its tensors were taken.
        left: names of those that have no counterpart and stay as they were: of wavelet-gated resamplers and of stages.
    """

    tensors: int
    left: tuple[str, ...]


@torch.no_grad()
def student_from_teacher(student: UNet, teacher: UNet) -> Taken:
    """Give `student` the weights of `teacher`, thinned out to its width; what only it has stays as it is.

    Raises:
        SpectralError: the student is wider than the teacher, or another network but for width and resamplers.
    """
    check_teacher(student.config, teacher.config)
    heads = _heads(teacher)
    known, left = dict(teacher.named_parameters()), []
    for name, parameter in student.named_parameters():
        if name not in known or (student.config.stages is not None and name.startswith("out.2.")):
            left.append(name)
            continue
        parameter.copy_(thinned(known[name], parameter.shape, heads.get(name, (1, 1))))
    return Taken(len(list(student.parameters())) - len(left), tuple(left))


def check_teacher(student: UNetConfig, teacher: UNetConfig) -> None:
    """That a student's weights can be taken from its teacher's; raises as `check`."""
    if student.model_channels > teacher.model_channels:
        raise SpectralError(
            f"model_channels is {student.model_channels}, but init: teacher takes some of the teacher's "
            f"{teacher.model_channels}; choose no more than those, or set init to random."
        )
    free = ("model_channels", "resampler", "wavelet", "norm_groups", "stages")
    alike = replace(student, **{name: getattr(teacher, name) for name in free})
    if alike != teacher:
        name = next(name for name in vars(teacher) if getattr(alike, name) != getattr(teacher, name))
        raise SpectralError(
            f"{name} is {getattr(student, name)}, but the teacher's is {getattr(teacher, name)}; init: teacher needs "
            "networks that differ in width and resamplers alone, so set init to random."
        )


def thinned(weight: Tensor, shape: torch.Size, units: tuple[int, int] = (1, 1)) -> Tensor:
    """Evenly spaced rows and columns of a teacher's weight, so many that it has `shape`.

    Args:
        units: rows, and columns, that stay together: those of an attention head.
    """
    for axis, unit in zip(range(min(2, weight.dim())), units, strict=False):
        weight = weight.index_select(axis, chosen(weight.shape[axis], shape[axis], unit).to(weight.device))
    return weight


def chosen(before: int, after: int, unit: int = 1) -> Tensor:
    """Which `after` of `before` channels are kept, int64: of groups of `unit`, those at ⌊i · before / after⌋."""
    groups = torch.arange(after // unit) * (before // unit) // (after // unit)
    return (groups[:, None] * unit + torch.arange(unit)).flatten()


def _heads(unet: UNet) -> dict[str, tuple[int, int]]:
    """By name, the rows and columns of weights that belong to one attention head.

    Heads of a fixed width are kept or left whole. Where their number is fixed they get narrower, and even spacing
    leaves the same entries of every head.
    """
    width = unet.config.num_head_channels
    units: dict[str, tuple[int, int]] = {}
    if width < 1:
        return {}
    for name, module in unet.named_modules():
        if isinstance(module, SelfAttention):
            units |= {f"{name}.qkv.weight": (3 * width, 1), f"{name}.qkv.bias": (3 * width, 1)}
            units |= {f"{name}.proj_out.weight": (1, width)}
        elif isinstance(module, CrossAttention):
            units |= {f"{name}.{part}.weight": (width, 1) for part in ("to_q", "to_k", "to_v")}
            units |= {f"{name}.to_out.0.weight": (1, width)}
    return units
