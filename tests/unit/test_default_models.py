"""The models that ship: small enough, described, and drawing what they are asked for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch.nn import functional as F

from spectral_diffusion.spectral import checkpoint
from spectral_diffusion.training.data.config import DataConfig
from spectral_diffusion.training.data.dataset import open_images
from spectral_diffusion.training.sample import sample_checkpoint

REPOSITORY = Path(__file__).parents[2]
CONFIGS = REPOSITORY / "training" / "configs"
CHECKPOINTS = REPOSITORY / "workflows" / "checkpoints"
FIRST_STAGES = REPOSITORY / "training" / "first_stages"
#: What a file is, and how large it may be.
MODELS = {
    "emoji64-teacher": ("teacher", 60e6),
    "emoji64-student": ("student", 20e6),
    "emoji64-fdm": ("student", 20e6),
    "emoji128-teacher": ("teacher", 60e6),
}
#: Of the data set in the repository, what all have learnt from, that of 128 pixels from 158 of the 171.
LEARNT = ("face-*", "cat-face", "monkey-face", "heart", "food-fruit")


def same_where_both_speak(written: Any, resolved: Any) -> bool:
    """Whether a configuration file still says what a run was made with; of paths, the last name counts."""
    if isinstance(written, dict):
        return all(same_where_both_speak(value, resolved[key]) for key, value in written.items())
    if isinstance(written, list) and isinstance(resolved, list):
        pairs = zip(written, resolved, strict=False)
        return len(written) == len(resolved) and all(same_where_both_speak(*pair) for pair in pairs)
    if isinstance(written, str) and isinstance(resolved, str):
        return Path(written).name == Path(resolved).name
    return bool(written == resolved)


@pytest.mark.parametrize("name", MODELS)
def test_file_is_small_and_says_how_it_was_made(name: str) -> None:
    path, (kind, limit) = CHECKPOINTS / f"{name}.safetensors", MODELS[name]
    file = checkpoint.read(path)
    assert path.stat().st_size <= limit
    assert file.config.kind == kind
    assert f"--config training/configs/{name}.yaml" in file.config.training["command"]
    made = file.config.training["config"]
    assert same_where_both_speak(yaml.safe_load(CONFIGS.joinpath(f"{name}.yaml").read_text()), made)
    assert '"/' not in json.dumps(file.config.training), "the path of a machine"


@pytest.mark.parametrize("name", ["images128", "emoji128"])
def test_a_first_stage_says_how_it_was_made_and_keeps_a_picture(name: str) -> None:
    """By PSNR, of emoji that it has seen in another size."""
    path = FIRST_STAGES / f"{name}-autoencoder.safetensors"
    opened = checkpoint.load(path)
    assert path.stat().st_size < 2e6 and opened.config.kind == "autoencoder"
    training, config = opened.config.training, CONFIGS / f"{name}-autoencoder.yaml"
    assert training["command"] == f"spectral-diffusion train-autoencoder --config training/configs/{config.name}"
    written, made = yaml.safe_load(config.read_text()), training["config"]
    assert ("init" in written) == bool(made.pop("init"))  # a file that had another name when this one went on from it
    assert same_where_both_speak({key: value for key, value in written.items() if key != "init"}, made)
    image = F.interpolate(open_images(DataConfig()).preview_samples(8)["image"] / 127.5 - 1, 128, mode="bilinear")
    assert opened.first_stage is not None
    with torch.no_grad():
        again = opened.first_stage.decode(opened.first_stage.encode(image)).clamp(-1, 1)
    ratios = -10 * ((again - image) / 2).square().flatten(1).mean(1).log10()
    assert ratios.min() > 20 and ratios.mean() > 28


@pytest.mark.parametrize("name", ["student", "fdm"])
def test_students_name_the_teacher_that_ships(name: str) -> None:
    student = checkpoint.read(CHECKPOINTS / f"emoji64-{name}.safetensors")
    assert student.config.teacher_sha256 == checkpoint.sha256(CHECKPOINTS / "emoji64-teacher.safetensors")
    assert student.config.unet is not None and student.config.unet.resampler == "wavelet"
    assert (student.config.unet.stages is not None) == (name == "fdm")


@pytest.mark.parametrize("name", MODELS)
def test_samples_are_nearest_to_the_picture_of_their_caption(name: str) -> None:
    """Chance would be 1 in 171: of 20 captions, evenly spaced, the nearest of all pictures is mostly their own."""
    opened = checkpoint.load(CHECKPOINTS / f"{name}.safetensors")
    data = open_images(DataConfig(subgroups=LEARNT))
    chosen = torch.linspace(0, len(data) - 1, 20).long()
    samples = sample_checkpoint(opened, [data.captions[i] for i in chosen], steps=20)
    pictures = data.preview_samples(len(data))["image"] / 255
    nearest = torch.cdist(F.adaptive_avg_pool2d(samples, 64).flatten(1), pictures.flatten(1)).argmin(1)
    assert (nearest == chosen).float().mean() >= 0.8


def test_the_example_images_are_pictures_that_the_default_models_learnt() -> None:
    """Compared with others, a student's spectrum would be off for what it was never shown."""
    sheet = np.asarray(Image.open(REPOSITORY / "nodes" / "examples" / "emoji-64.webp").convert("RGB"))
    tiles = sheet.reshape(8, 64, 8, 64, 3).swapaxes(1, 2).reshape(64, -1)
    student = checkpoint.read(REPOSITORY / "workflows" / "checkpoints" / "emoji64-student.safetensors")
    learnt = open_images(DataConfig(subgroups=tuple(student.config.training["config"]["data"]["subgroups"])))
    known = {image.movedim(0, -1).numpy().tobytes() for image in learnt.preview_samples(len(learnt))["image"]}
    assert len({tile.tobytes() for tile in tiles}) == 64
    assert all(tile.tobytes() in known for tile in tiles)


def test_everything_that_the_documents_link_to_is_there() -> None:
    training = REPOSITORY / "training"
    folders = (CHECKPOINTS, training, FIRST_STAGES, training / "results")
    for document in (*REPOSITORY.glob("*.md"), *(folder / "README.md" for folder in folders)):
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document.name} links to {target}"
