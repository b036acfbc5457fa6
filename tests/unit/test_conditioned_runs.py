"""The kit with conditions that are not the usual ones: no null class, LDM's own text encoder, no encoder at all."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from spectral_diffusion.spectral import checkpoint, wordpiece
from spectral_diffusion.spectral.config import ConditioningConfig, ModelConfig
from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.training import cli, distill, train_teacher
from spectral_diffusion.training.data.config import DataConfig
from spectral_diffusion.training.distill import DistillConfig
from spectral_diffusion.training.loop.config import RunConfig
from spectral_diffusion.training.sample import sample_checkpoint
from spectral_diffusion.training.train_teacher import TeacherConfig

from . import tiny

UNET = replace(tiny.CONDITIONED, model_channels=64, resampler="conv")
NO_NULL = replace(tiny.CLASSES, n_classes=2, null_class=False)
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "blue", "red", "-", "0", "1")
LDM = ConditioningConfig(
    "text", width=32, layers=1, heads=1, tower="ldm", vocabulary=len(WORDS), pad_token=0, context_length=7
)


def teacher(folder: Path, conditioning: ConditioningConfig) -> Path:
    return tiny.write(folder / "teacher.safetensors", ModelConfig("teacher", UNET, tiny.FIRST_STAGE, conditioning))


def run(folder: Path, name: str) -> RunConfig:
    return RunConfig(folder / name, steps=2, batch_size=4, preview_every=2, checkpoint_every=2, warmup=1, trackers=())


def data(folder: Path) -> DataConfig:
    return DataConfig(str(tiny.pictures(folder / "pictures")), size=16)


def student_of(folder: Path, path: Path, **settings: Any) -> checkpoint.Checkpoint:
    config = DistillConfig(run(folder, "student"), path, model_channels=32, data=data(folder), **settings)
    return checkpoint.load(distill.train(config)["path"])


def test_a_teacher_without_a_null_class_is_distilled_and_sampled(tmp_path: Path) -> None:
    path = teacher(tmp_path, NO_NULL)
    with pytest.raises(SpectralError, match=r"none of the model's 2 classes stands for no class; set dropout to 0"):
        student_of(tmp_path, path)
    student = student_of(tmp_path, path, dropout=0.0)
    assert student.config.conditioning == NO_NULL
    images = sample_checkpoint(student, ["red", "1", "blue"], steps=2)
    torch.testing.assert_close(images, sample_checkpoint(student, ["red", "red", "blue"], steps=2, guidance=1.0))
    with pytest.raises(SpectralError, match=r"guidance is 3, but none of the model's 2 classes.*set guidance to 1"):
        sample_checkpoint(student, ["red"], steps=2, guidance=3.0)
    with pytest.raises(SpectralError, match="No class '': expected 0 to 1 or one of blue, red"):
        sample_checkpoint(student, [""], steps=2)


def test_the_usual_guidance_is_2(tmp_path: Path) -> None:
    opened = checkpoint.load(teacher(tmp_path, tiny.CLASSES))
    images = sample_checkpoint(opened, ["red", ""], steps=2)
    assert torch.equal(images, sample_checkpoint(opened, ["red", ""], steps=2, guidance=2.0))
    assert not torch.equal(images[0], sample_checkpoint(opened, ["red"], steps=2, guidance=1.0)[0])


def test_a_teacher_is_trained_without_a_null_class(tmp_path: Path) -> None:
    stage = tiny.write(tmp_path / "stage.safetensors", ModelConfig("autoencoder", first_stage=tiny.FIRST_STAGE))
    classes = ConditioningConfig("class", width=32, null_class=False)
    config = TeacherConfig(run(tmp_path, "run"), stage, UNET, data(tmp_path), classes, dropout=0.0)
    opened = checkpoint.load(train_teacher.train(config)["path"])
    assert opened.config.conditioning == NO_NULL


def test_a_teacher_with_ldms_text_encoder_is_distilled_and_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wordpiece, "CACHED", ())
    monkeypatch.delenv(wordpiece.VARIABLE, raising=False)
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(WORDS) + "\n")
    path = teacher(tmp_path, LDM)
    with pytest.raises(SpectralError, match="vocabulary is not on this machine"):
        student_of(tmp_path, path)
    student = student_of(tmp_path, path, vocabulary=vocabulary)
    assert student.config.conditioning == LDM and student.conditioner is not None
    images = sample_checkpoint(student, ["red - 1"], steps=2, vocabulary=vocabulary)
    monkeypatch.setenv(wordpiece.VARIABLE, str(tmp_path))
    assert torch.equal(images, sample_checkpoint(student, ["red - 1"], steps=2))
    monkeypatch.delenv(wordpiece.VARIABLE)
    command = ["sample", str(student.file.path), "red", "--steps", "2", "--out", str(tmp_path / "samples")]
    assert cli.main([*command, "--vocabulary", os.fspath(vocabulary)]) == 0
    assert (tmp_path / "samples" / "images" / "000.png").exists()


def test_an_encoder_that_is_elsewhere_is_a_sentence(tmp_path: Path) -> None:
    path = teacher(tmp_path, ConditioningConfig("external", width=32))
    with pytest.raises(
        SpectralError, match="width 32, but its encoder is not in the checkpoint; give its file with --text-encoder"
    ):
        sample_checkpoint(checkpoint.load(path), ["a cat"], steps=2)
    with pytest.raises(
        SpectralError, match="width 32, but its encoder is not in the checkpoint; give its file as text_encoder"
    ):
        student_of(tmp_path, path)
