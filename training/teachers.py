"""A model from one file, or from the files of its parts: U-Net, first stage, text encoder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..spectral import checkpoint
from ..spectral.checkpoint import Checkpoint, CheckpointFile
from ..spectral.config import ModelConfig
from ..spectral.errors import SpectralError
from ..spectral.formats.assumptions import WITHOUT_CONDITIONER
from ..spectral.formats.source import CONDITIONER, FIRST_STAGE, ReadOptions
from ..spectral.wordpiece import find_vocabulary
from .processes import device
from .text_encoders import open_text_encoder
from .wordpiece import ADVICE


def assemble(
    path: Path,
    options: ReadOptions = checkpoint.AS_THE_FILE_SAYS,
    first_stage: Path | None = None,
    text_encoder: Path | None = None,
) -> CheckpointFile:
    """A checkpoint with the parts that its file lacks, or that others are to replace.

    Args:
        path: a checkpoint with a U-Net.
        options: what to assume where its file is silent.
        first_stage: another checkpoint, or an autoencoder's file; its first stage is taken.
        text_encoder: a file that `open_text_encoder` reads.

    Raises:
        SpectralError: a file cannot be read, lacks the part, or its part does not fit the U-Net.
    """
    stage = checkpoint.read(first_stage) if first_stage is not None else None
    file = checkpoint.read(path, options, stage.config if stage is not None else None)
    if stage is not None:
        if stage.config.first_stage is None:
            raise SpectralError(f"{first_stage} holds no first stage; give the file of an autoencoder.")
        file = _with_part(file, FIRST_STAGE, stage, replace(file.config, first_stage=stage.config.first_stage))
        file = replace(file, notes=file.notes + tuple(f"{stage.path.name}: {note}" for note in stage.notes))
    if text_encoder is not None:
        if file.config.unet is None or not file.config.unet.use_spatial_transformer:
            raise SpectralError(f"{path} reads no text; leave text_encoder out.")
        conditioning, tensors = open_text_encoder(text_encoder, file.config.unet.context_dim)
        named = {CONDITIONER + name: tensor for name, tensor in tensors.items()}
        other = CheckpointFile(text_encoder, file.config, named)
        file = _with_part(file, CONDITIONER, other, replace(file.config, conditioning=conditioning))
        file = replace(file, notes=tuple(note for note in file.notes if note != WITHOUT_CONDITIONER))
    checkpoint.check(file.config, path.name)
    return file


def _with_part(file: CheckpointFile, prefix: str, other: CheckpointFile, config: ModelConfig) -> CheckpointFile:
    """`file` with the tensors under `prefix` of another one."""
    kept = {name: tensor for name, tensor in file.tensors.items() if not name.startswith(prefix)}
    taken = {name: tensor for name, tensor in other.tensors.items() if name.startswith(prefix)}
    return replace(file, config=replace(config, preset=None), tensors=kept | taken)


def open_teacher(
    path: Path,
    options: ReadOptions = checkpoint.AS_THE_FILE_SAYS,
    first_stage: Path | None = None,
    text_encoder: Path | None = None,
) -> Checkpoint:
    """A checkpoint to learn from, as `assemble` puts it together.

    Raises:
        SpectralError: it lacks a U-Net or a first stage, or a file cannot be read.
    """
    file = assemble(path, options, first_stage, text_encoder)
    if file.config.unet is None:
        raise SpectralError(f"{path} cannot teach: it lacks a U-Net; give a whole teacher checkpoint.")
    if file.config.first_stage is None:
        raise SpectralError(
            f"{path} cannot teach: it lacks a first stage; give a whole teacher checkpoint, or first_stage a file."
        )
    return checkpoint.build(file, device=device())


def digests(
    model: ModelConfig, first_stage: Path | None, text_encoder: Path | None, vocabulary: Path | None
) -> dict[str, str | None]:
    """SHA-256 of the other files that a model is put together from, and of the vocabulary that it reads.

    Raises:
        SpectralError: that vocabulary is not on this machine.
    """
    given = {"first_stage": first_stage, "text_encoder": text_encoder}
    if model.conditioning.kind == "text" and model.conditioning.tower == "ldm":
        given["vocabulary"] = find_vocabulary(ADVICE, vocabulary)
    return {name: None if path is None else checkpoint.sha256(path) for name, path in given.items()}
