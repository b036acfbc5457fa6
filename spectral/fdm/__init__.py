"""f-DM: diffusion in stages, each on a simpler signal than the one before (Gu et al., 2022).

`transforms` has what lies between two stages, `packets` and `jacobian` the noise that goes along, `process` the forward
process and what a network is asked, `sampling` the way back, `energy` the ratio γ that a boundary has on data.
"""

from __future__ import annotations

from .energy import Energy, measure
from .packets import FreshNoise
from .process import Point, Process, Read, check
from .sampling import CLEAN, Step, advance, plan, plan_of, sample
from .transforms import Autoencode, Blur, Downsample, Pair, Transform, blur_kernel

__all__ = [
    "CLEAN",
    "Autoencode",
    "Blur",
    "Downsample",
    "Energy",
    "FreshNoise",
    "Pair",
    "Point",
    "Process",
    "Read",
    "Step",
    "Transform",
    "advance",
    "blur_kernel",
    "check",
    "measure",
    "plan",
    "plan_of",
    "sample",
]
