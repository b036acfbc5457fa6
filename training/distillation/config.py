"""Configuration of `distill`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ...spectral.config import StagesConfig
from ...spectral.errors import SpectralError
from ...spectral.formats.source import ReadOptions
from ..data.config import DataConfig
from ..loop.config import RunConfig, check_dropout, check_weight


@dataclass(frozen=True)
class TapConfig:
    """Which features the student is compared at, besides the output.

    Args:
        down, middle, up: the last block of every resolution on the way down, the middle block, and the last block of
            every resolution on the way up.
        normalize: divide each sample's losses by the mean square of the teacher's features there, so that no layer
            outweighs the others by its scale alone.
        weight: of the features' losses beside the output's; 1 in the paper.
    """

    down: bool = True
    middle: bool = True
    up: bool = True
    normalize: bool = True
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.weight < math.inf:
            raise SpectralError(
                f"loss.taps.weight is {self.weight}; expected a number above 0; features are left out by "
                "loss.taps.down, loss.taps.middle and loss.taps.up."
            )


@dataclass(frozen=True)
class LossConfig:
    """Weights of the distillation terms.

    Args:
        spatial: λ_s of Eq. 9; 0 turns the term off.
        frequency: λ_f of Eq. 11; 0 turns the term off.
        alpha: exponent of the spectrum weights (Eq. 10).
        taps: which features are compared.
        frequency_weights: "spectrum" (Eq. 10), or, beyond the paper, "focal": what is far off counts most (Jiang et
            al., "Focal Frequency Loss", 2021); `alpha` then means nothing.
        focal_alpha: exponent of the focal weights; 1 in their article.
        min_snr: γ of the min-SNR weighting of L_DDPM (Hang et al., 2023; there 5), beyond the paper; 0 is off.
        ddpm: of L_DDPM (Eq. 3) itself, 1 in the paper; 0 leaves the teacher's answers alone to learn from.
    """

    spatial: float = 0.1
    frequency: float = 0.1
    alpha: float = -1.0
    taps: TapConfig = field(default_factory=TapConfig)
    frequency_weights: Literal["spectrum", "focal"] = "spectrum"
    focal_alpha: float = 1.0
    min_snr: float = 0.0
    ddpm: float = 1.0

    def __post_init__(self) -> None:
        check_weight("loss.ddpm", self.ddpm)
        check_weight("loss.spatial", self.spatial)
        check_weight("loss.frequency", self.frequency)
        if not abs(self.alpha) <= 8:
            raise SpectralError(f"loss.alpha is {self.alpha}; expected an exponent between -8 and 8.")
        if not 0 < self.focal_alpha <= 8:
            raise SpectralError(f"loss.focal_alpha is {self.focal_alpha}; expected an exponent above 0, up to 8.")
        check_weight("loss.min_snr", self.min_snr)

    @property
    def distils(self) -> bool:
        """Whether the student learns from what its teacher says, besides the data."""
        return self.spatial > 0 or self.frequency > 0


@dataclass(frozen=True)
class RandomConditionsConfig:
    """Other conditions in the place of samples' own, beyond the paper: random conditioning.

    The teacher is asked about latents under conditions that they were not made for, so that the student learns of
    concepts of which there is no latent: Kim et al., "Random Conditioning for Diffusion Model Compression with
    Distillation", CVPR 2025. At step t of T a condition is replaced with probability share · exp(−decay · (1 − t / T)).
    Where it is, the latent says nothing about it: only the teacher's answers count, and L_DDPM leaves the sample out.

    Args:
        share: how often at the last step, which is noise alone; 0 turns it off; 1 in the authors' code.
        decay: how fast that falls towards the image; 5 in the authors' code; 0 replaces as often at all steps.
        path: a text file with a caption (or the name of a class) on every line, from which the others are drawn; by
            default the captions of the data, or all classes of the teacher.
    """

    share: float = 0.0
    decay: float = 5.0
    path: Path | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.share <= 1.0:
            raise SpectralError(f"random_conditions.share is {self.share}; expected a probability, 0 (off) to 1.")
        check_weight("random_conditions.decay", self.decay)


@dataclass(frozen=True)
class DistillConfig:
    """Configuration of `distill`.

    Args:
        run: steps, batch size, output folder and the like.
        teacher: the checkpoint to learn from (.safetensors, .ckpt, or a diffusers folder); its first stage and
            conditioner go into the student's file unchanged.
        read: what to assume of the teacher where its file is silent; `--no-ema` is short for `--read.ema false`.
        first_stage: a file with the first stage, for a teacher whose own file lacks it.
        text_encoder: a file with the text encoder, likewise: CLIP of OpenAI, OpenCLIP or transformers, or LDM's.
        model_channels: the student's width; everything else is the teacher's.
        resampler: "wavelet" (the paper's gating) or "conv" (LDM's own, for comparisons).
        wavelet: filter bank of the gating, by PyWavelets' name.
        norm_groups: groups of the student's normalisations; fewer than LDM's 32 below 64 channels (see UNetConfig).
        data: the images.
        loss: weights and features of the distillation.
        dropout: how often the condition is replaced by the null one; 0 for a teacher that has none.
        random_conditions: how often it is replaced by another one.
        prediction: what the student says: as its "teacher" does, noise ("eps") or velocity ("v"). Where the two differ,
            their outputs are compared as noise, in which neither's errors grow without bound.
        zero_terminal_snr: the student's last step is noise alone (Lin et al., 2023); it has to predict "v". The teacher
            is asked at its own step of the nearest noise, its last one for noise beyond that.
        init: where the student's weights start: "random", the "teacher"'s, thinned out (see `initialise`), or those of
            another student, given by its file.
        few_steps: of a student that needs so few steps of DDIM and no guidance; its data are a teacher's states
            (`data imagine --states`). It predicts velocity, with zero terminal SNR; of `loss`, `frequency` and `alpha`
            count. 0: an ordinary student.
        stages: of a student that starts on a small or blurred signal (f-DM); without boundaries there are none.
        stage_autoencoders: files with the autoencoders of stages behind a "vae".
        teacher_precision: what the teacher answers in: bfloat16 ("bf16"), as `run.precision` says ("run"), or ("auto")
            the first on GPUs that have it, the second elsewhere.
        teacher_guidance: weight of the classifier-free guidance that the teacher answers with, beyond the paper; 1 is
            none. The student learns what guidance makes of the teacher, and is sampled without (Meng et al., "On
            Distillation of Guided Diffusion Models", CVPR 2023): half the work of every step. For losses of outputs.
        teacher_answers: a folder to keep the teacher's answers in, and to look them up where another run of the same
            data and seed has asked for them: 8 KB a sample for outputs in bfloat16, of latents of 4 × 32 × 32, and much
            more for features, the fewer of which are compared the less.
        recompute: keep no activations of the student's blocks for the backward pass, but compute them again (activation
            checkpointing): less memory, a third more time, the same numbers.
        vocabulary: BERT's vocab.txt, for a teacher with LDM's own text encoder.
        title: of the exported file.
        license: of the exported file.
    """

    run: RunConfig
    teacher: Path
    read: ReadOptions = field(default_factory=ReadOptions)
    first_stage: Path | None = None
    text_encoder: Path | None = None
    model_channels: int = 64
    resampler: Literal["wavelet", "conv"] = "wavelet"
    wavelet: str = "haar"
    norm_groups: int = 32
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    dropout: float = 0.1
    random_conditions: RandomConditionsConfig = field(default_factory=RandomConditionsConfig)
    prediction: Literal["teacher", "eps", "v"] = "teacher"
    zero_terminal_snr: bool = False
    init: str = "random"
    few_steps: int = 0
    stages: StagesConfig = field(default_factory=StagesConfig)
    stage_autoencoders: tuple[Path, ...] = ()
    teacher_precision: Literal["auto", "run", "bf16"] = "auto"
    teacher_guidance: float = 1.0
    teacher_answers: Path | None = None
    recompute: bool = False
    vocabulary: Path | None = None
    title: str = "Spectral Diffusion student"
    license: str = "Apache-2.0"

    def __post_init__(self) -> None:
        check_dropout(self.dropout)
        if not (self.loss.ddpm or self.loss.distils or self.few_steps):
            raise SpectralError(
                "loss.ddpm, loss.spatial and loss.frequency are 0, which leaves nothing to learn from; set one above 0."
            )
        if self.random_conditions.share and not self.loss.distils:
            raise SpectralError(
                "random_conditions needs the teacher's answers, but loss.spatial and loss.frequency are 0; set one of "
                "them above 0, or random_conditions.share to 0."
            )
        if self.few_steps < 0:
            raise SpectralError(
                f"few_steps is {self.few_steps}; expected a number of steps, or 0 for an ordinary student."
            )
        if self.few_steps and (self.stages.boundaries or self.random_conditions.share):
            raise SpectralError("A student of few steps has no stages and no random_conditions; leave them out.")
        if self.teacher_guidance != 1.0:
            self._check_guidance()
        if self.teacher_answers is not None:
            self._check_answers()

    def _check_guidance(self) -> None:
        if not 0.0 <= self.teacher_guidance < math.inf:
            raise SpectralError(
                f"teacher_guidance is {self.teacher_guidance}; expected a weight of guidance such as 2, or 1 for none."
            )
        if self.few_steps:
            raise SpectralError(
                "The states that a student of few steps learns from are guided already; leave teacher_guidance out."
            )
        taps = self.loss.taps
        if self.loss.distils and (taps.down or taps.middle or taps.up):
            raise SpectralError(
                "teacher_guidance concerns outputs, and features are compared too; set loss.taps.down, "
                "loss.taps.middle and loss.taps.up to false, or teacher_guidance to 1."
            )

    def _check_answers(self) -> None:
        if self.few_steps:
            raise SpectralError("A student of few steps asks its teacher nothing; leave teacher_answers out.")
        if self.data.buckets or self.data.path.startswith("pipe:"):
            raise SpectralError(
                "teacher_answers needs squares that are read at random; leave data.buckets and pipe: out, or "
                "teacher_answers."
            )
