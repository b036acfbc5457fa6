"""The pictures of the help pages: what each node does, shown by running it on the default models.

`test_help_pages` writes them when UPDATE_PICTURES is set.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from spectral_diffusion.spectral import bands as library
from spectral_diffusion.spectral import checkpoint, conditioning
from spectral_diffusion.spectral.bands import BandWeights
from spectral_diffusion.spectral.checkpoint import Checkpoint
from spectral_diffusion.spectral.config import BoundaryConfig, ConditioningConfig, StagesConfig
from spectral_diffusion.spectral.fdm import Process
from spectral_diffusion.training.tokens import tokenize

from .distribution import REPOSITORY
from .help_pictures_spectra import SPECTRA
from .help_runs import STUDENT, TEACHER, Recipe, drawn, example, prompt, row, shown
from .panels import Row, sheet
from .prompts import DECODE, LATENT, LOADER, SAMPLER, node
from .server import ComfyServer
from .test_gates import gate
from .test_guidance import bands, guidance
from .test_reuse_node import reuse

CLASSES = ("grapes", "watermelon", "tangerine", "banana", "peach", "strawberry", "red heart", "blue heart")
DETAIL = ("LH", "HL", "HH")
BANDS = "noise ... picture; LL blue, LH orange, HL green, HH pink"


def load_checkpoint(comfy: ComfyServer) -> Image.Image:
    """The same captions and noise, teacher and student."""
    texts = ("red apple", "clown face", "pineapple", "crying cat", "smiling face with hearts")
    said = {TEACHER: "6.3 million parameters", STUDENT: "1.5 million parameters"}
    return sheet(
        *(
            Row([(drawn(comfy, prompt(text, model=model)), "") for text in texts], f"{model}: {size}")
            for model, size in said.items()
        )
    )


def load_lora(comfy: ComfyServer) -> Image.Image:
    """A LoRA that turns red hearts blue, at several strengths, on the prompt that it is made for and on another."""
    name = blue_hearts(comfy)
    return sheet(
        *(
            row(
                comfy,
                f'LoRA "blue hearts", prompt "{text}"',
                {
                    f"{strength:g}": prompt(
                        text,
                        node("SpectralDiffusionLoadLora", lora_name=name, strength_model=strength, strength_clip=1.0),
                    )
                    for strength in (0.0, 0.25, 0.5, 0.75, 1.0)
                },
            )
            for text in ("red heart", "pineapple")
        )
    )


def blue_hearts(comfy: ComfyServer) -> str:
    """A LoRA in closed form: for every cross-attention, what it reads in "red heart" becomes what "blue heart" says.

    With the text states A and B of both, ΔW = W Mᵀ where M solves A M = B − A, and N M = 0 for what shall stay, N, in
    least squares; of ΔW its 8 largest singular values.
    """
    model = student()
    red, blue, other, empty = (states(model, text) for text in ("red heart", "blue heart", "pineapple", ""))
    kept = 0.1 * torch.cat([other, empty])
    left = torch.cat([red, kept, 0.01 * torch.eye(red.shape[1])])
    right = torch.zeros(len(left), red.shape[1])
    right[: len(red)] = blue - red
    moved = torch.linalg.lstsq(left, right).solution
    assert model.unet is not None
    factors = {}
    for key, weight in model.unet.state_dict().items():
        if key.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
            u, s, vh = torch.linalg.svd(weight @ moved.T, full_matrices=False)
            name = "lora_unet_" + key.removesuffix(".weight").replace(".", "_")
            factors[f"{name}.lora_up.weight"] = (u[:, :8] * s[:8]).contiguous()
            factors[f"{name}.lora_down.weight"] = vh[:8].contiguous()
    save_file(factors, comfy.distribution.base / "models" / "loras" / "blue-hearts.safetensors")
    return "blue-hearts.safetensors"


def student() -> Checkpoint:
    return checkpoint.load(REPOSITORY / "workflows" / "checkpoints" / f"{STUDENT}.safetensors")


def states(model: Checkpoint, text: str) -> Tensor:
    """What the student attends to, [77, 64]."""
    assert model.conditioner is not None
    with torch.no_grad():
        return model.conditioner(tokenize([text]))[0]


def empty_latent(comfy: ComfyServer) -> Image.Image:
    """The size that the model wants, two others, and core's node, which takes 8 pixels a cell for granted."""
    text = "red heart"
    core = prompt(text)
    core[LATENT] = node("EmptyLatentImage", width=64, height=64, batch_size=1)
    sizes = {"0 x 0": {}, "96 x 96": {"width": 96, "height": 96}, "128 x 64": {"width": 128, "height": 64}}
    ours = [(drawn(comfy, prompt(text, **size)), said) for said, size in sizes.items()]
    return sheet(
        Row(ours, "width x height in Empty Latent (Spectral Diffusion):", scale=2.5),
        Row(
            [(drawn(comfy, core), "64 x 64")], "in core's Empty Latent Image, which does not know the model:", scale=2.5
        ),
    )


def class_label(comfy: ComfyServer) -> Image.Image:
    """A class model that draws what the student draws: each class is the mean of its caption's text states."""
    model = student()
    config = ConditioningConfig("class", width=model.config.conditioning.width, n_classes=len(CLASSES) + 1)
    classes = conditioning.build(config)
    assert isinstance(classes, conditioning.ClassEmbedder)
    classes.embedding.weight.data = torch.stack([states(model, text).mean(0) for text in (*CLASSES, "")])
    path = comfy.distribution.base / "models" / "spectral_diffusion" / "classes.safetensors"
    described = dataclasses.replace(model.config, conditioning=config)
    checkpoint.save(path, described, unet=model.unet, first_stage=model.first_stage, conditioner=classes)
    panels = []
    for label in range(len(CLASSES)):
        asked = prompt(model="classes", cfg=2.0)
        asked["positive"] = node("SpectralDiffusionClassLabel", model=[LOADER, 0], label=label)
        panels.append((drawn(comfy, asked), f"label {label}"))
    return sheet(Row(panels[:4], "A small model of eight classes"), Row(panels[4:]))


def unconditional(comfy: ComfyServer) -> Image.Image:
    """Nothing asked for; and what guidance away from it does."""
    free = prompt(cfg=1.0, batch_size=5)
    scales = (1, 2, 3, 5, 8)
    return sheet(
        Row([(one, "") for one in shown(comfy, free, [DECODE, 0])], "Unconditional in positive and negative, cfg 1"),
        row(
            comfy,
            'positive: "clown face", negative: Unconditional',
            {f"cfg {cfg}": prompt("clown face", cfg=float(cfg)) for cfg in scales},
        ),
    )


def fdm_sampler(comfy: ComfyServer) -> Image.Image:
    """What there is to see of a picture at some steps of the way, were there no noise, in two and in three stages."""
    image = np.array(shown(comfy, {"images": example(64)}, ["images", 0])[EXAMPLE])
    stages = {
        "Two stages, the first of half the size": (0.5,),
        "Three stages, from a quarter of the size on": (0.33, 0.66),
    }
    return sheet(*(Row(on_the_way(image, places), heading) for heading, places in stages.items()))


def on_the_way(image: NDArray[np.uint8], places: tuple[float, ...]) -> list[tuple[Image.Image, str]]:
    """A picture [H, W, 3] at five steps of f-DM with boundaries at these parts of the schedule, decoded."""
    model = student()
    first_stage, scale = model.first_stage, model.config.scale_factor
    assert first_stage is not None
    process = Process(model.schedule, StagesConfig(tuple(BoundaryConfig(place) for place in places)))
    made = []
    with torch.no_grad():
        x = torch.from_numpy(image).permute(2, 0, 1)[None, :3] / 127.5 - 1
        latent = scale * first_stage.encode(x)
        sizes = [shape[1:] for shape in process.shapes(latent.shape[1], (latent.shape[2], latent.shape[3]))]
        for step in (999, 750, 500, 250, 0):
            stage = int(process.stage_of(torch.tensor(step)))
            signal = process.point(latent, torch.tensor([step]), stage).x
            decoded = first_stage.decode(process.upwards(signal, stage, sizes) / scale)[0]
            pixels = ((decoded.clamp(-1, 1) + 1) * 127.5).byte().permute(1, 2, 0).numpy()
            side = sizes[stage][0]
            made.append((Image.fromarray(pixels), f"{step}: {side} x {side}"))
    return made


def wavelet_gate(comfy: ComfyServer) -> Image.Image:
    """The three detail bands on the way up, from shut to twice as open; and on the way down."""
    factors = (0.0, 0.5, 1.0, 1.5, 2.0)

    def turned(text: str, direction: str) -> Row:
        asked = {
            f"{factor:g}": prompt(text, gate([], **{f"{direction}_{band}": factor for band in DETAIL}))
            for factor in factors
        }
        return row(comfy, f'"{text}", ' + ", ".join(f"{direction}_{band}" for band in DETAIL) + " =", asked)

    return sheet(turned("pineapple", "up"), turned("crying cat", "up"), turned("pineapple", "down"))


def reuse_deep_features(comfy: ComfyServer) -> Image.Image:
    """More and more steps that run the outer blocks alone; and more and more outer blocks."""
    rows = [
        row(
            comfy,
            f'"{text}", outer_blocks 1, every =',
            {f"{every}": prompt(text, reuse(every)) for every in (1, 2, 3, 5, 10)},
        )
        for text in ("clown face", "pineapple")
    ]
    outer = {f"{blocks}": prompt("clown face", reuse(10, blocks)) for blocks in (1, 2, 3, 5, 7)}
    return sheet(*rows, row(comfy, '"clown face", every 10, outer_blocks =', outer))


def wavelet_guidance(comfy: ComfyServer) -> Image.Image:
    """More and less guidance for details alone, and for the layout alone."""
    rows = [
        row(
            comfy,
            f'"{text}", cfg 3, {name} =',
            {f"{by}": prompt(text, guidance([], levels=1, **{name: float(by)})) for by in (0, 1, 2, 4)},
        )
        for name, text in (("level_1", "pineapple"), ("level_1", "clown face"), ("low", "clown face"))
    ]
    return sheet(*rows)


def wavelet_bands(comfy: ComfyServer) -> Image.Image:
    """A picture taken apart; and the student's picture with two of its bands removed or raised."""
    picture = shown(comfy, {"images": example(64)}, ["images", 0])[EXAMPLE]
    names = ("horizontal", "vertical", "diagonal")
    parts = [(picture, "picture"), (band(picture, None, None), "low")]
    parts += [(band(picture, level, None), f"level {level}") for level in (3, 2, 1)]
    fine = [(band(picture, 2, None), "level 2"), *((band(picture, 2, one), f"{names[one]}_2") for one in range(3))]

    def weighted(name: str) -> Row:
        asked = {
            f"{by:g}": {
                **prompt("clown face", guidance([], levels=2, prediction_bands=["bands", 0])),
                "bands": bands(**{f"{name}_{level}": by for level in (1, 2)}),
            }
            for by in (0.0, 0.7, 1.0, 1.3)
        }
        return row(comfy, f"prediction_bands with {name}_1 and {name}_2 =", asked)

    return sheet(
        Row(parts, "picture = low + level 3 + level 2 + level 1"),
        Row(fine, "level 2 = horizontal_2 + vertical_2 + diagonal_2"),
        weighted("horizontal"),
        weighted("vertical"),
    )


#: Among the example images, one with edges of every direction.
EXAMPLE = 40


def band(picture: Image.Image, level: int | None, orientation: int | None) -> Image.Image:
    """One band of a picture, around grey: `low` without a level, a whole level without an orientation."""
    x = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
    one = (1.0, 1.0, 1.0)
    two = tuple(2.0 if orientation in (None, index) else 1.0 for index in range(3))
    levels = tuple(two if which == level else one for which in (1, 2, 3))
    found = library.change(x, BandWeights(levels, 2.0 if level is None else 1.0))
    shown = found if level is None else 0.5 + 1.5 * found
    return Image.fromarray((shown.clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy())


def example_images(comfy: ComfyServer) -> Image.Image:
    """The first rows of the sheet."""
    pictures = shown(comfy, {"images": example(40)}, ["images", 0])
    return sheet(*(Row([(one, "") for one in pictures[start : start + 10]]) for start in range(0, 40, 10)))


def traced(comfy: ComfyServer, *nodes: dict[str, Any]) -> list[Image.Image]:
    """Gate Trace's charts, down and up, of a sampling with nodes in front of it."""
    made = prompt("pineapple", *nodes, node("SpectralDiffusionGateTrace"))
    trace = made[SAMPLER]["inputs"]["model"][0]
    made["plot"] = node("SpectralDiffusionGateTracePlot", gates=[trace, 1], samples=[SAMPLER, 0], levels="average")
    (plot,) = shown(comfy, made, ["plot", 0])
    half = plot.width // 2
    return [plot.crop((0, 0, half, plot.height)), plot.crop((half, 0, plot.width, plot.height))]


def gate_trace(comfy: ComfyServer) -> Image.Image:
    """What is recorded without a Wavelet Gate in front, and with one."""
    halved = gate([], 0.5, 1.0, **{f"up_{band}": 0.5 for band in DETAIL})
    return sheet(
        Row([(traced(comfy)[1], BANDS)], "Gate Trace alone"),
        Row([(traced(comfy, halved)[1], BANDS)], "After a Wavelet Gate: LH, HL, HH at 0.5 from halfway on"),
    )


def gate_trace_plot(comfy: ComfyServer) -> Image.Image:
    """Both directions of the student."""
    down, up = traced(comfy)
    return sheet(Row([(down, BANDS)], "Down"), Row([(up, BANDS)], "Up"))


PICTURES: dict[str, Recipe] = {
    "load-checkpoint": load_checkpoint,
    "load-lora": load_lora,
    "empty-latent": empty_latent,
    "class-label": class_label,
    "unconditional": unconditional,
    "fdm-sampler": fdm_sampler,
    "wavelet-gate": wavelet_gate,
    "gate-trace": gate_trace,
    "gate-trace-plot": gate_trace_plot,
    "reuse-deep-features": reuse_deep_features,
    "wavelet-guidance": wavelet_guidance,
    "wavelet-bands": wavelet_bands,
    "example-images": example_images,
    **SPECTRA,
}
