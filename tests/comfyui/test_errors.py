"""What a person does wrong becomes a sentence at the node, and the server goes on serving."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import models, prompts
from .attacks import linked
from .prompts import LATENT, LOADER, SAMPLER, node
from .server import ComfyServer


@pytest.fixture
def folder(comfy: ComfyServer) -> Path:
    """models/spectral_diffusion of the server."""
    return comfy.distribution.base / "models" / "spectral_diffusion"


def message_of(comfy: ComfyServer, name: str) -> str:
    """The error of a prompt that loads the checkpoint `name`; then make sure that the server still works."""
    prompt = prompts.generate("text")
    prompt[LOADER]["inputs"]["checkpoint"] = name
    message = comfy.run(prompt).message
    assert message
    assert comfy.run(prompts.generate("none", steps=1)).error is None
    return message


def test_a_missing_file(comfy: ComfyServer) -> None:
    message = message_of(comfy, "nowhere.safetensors")
    assert "'nowhere.safetensors'" in message
    assert "models/spectral_diffusion" in message


@pytest.mark.parametrize("name", ["../../../../../etc/passwd", "/etc/passwd", "../checkpoints/../../main.py", "", "."])
def test_names_that_lead_out_of_the_model_folders(comfy: ComfyServer, name: str) -> None:
    assert "There is no checkpoint" in message_of(comfy, name)


def test_a_text_file_named_safetensors(comfy: ComfyServer, folder: Path) -> None:
    (folder / "notes.safetensors").write_text("these are not the weights you are looking for\n" * 100)
    message = message_of(comfy, "notes.safetensors")
    assert message.startswith("notes.safetensors is damaged or not a safetensors file")


def test_an_empty_file(comfy: ComfyServer, folder: Path) -> None:
    (folder / "empty.safetensors").touch()
    assert "empty.safetensors" in message_of(comfy, "empty.safetensors")


def test_a_truncated_file(comfy: ComfyServer, folder: Path) -> None:
    whole = (folder / "text.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    message = message_of(comfy, "cut.safetensors")
    assert "cut.safetensors" in message
    assert "interrupted download" in message


def test_a_changed_file_is_loaded_again(comfy: ComfyServer, folder: Path) -> None:
    models.write(folder / "changing.safetensors", "none")
    prompt = prompts.generate("none")
    prompt[LOADER]["inputs"]["checkpoint"] = "changing.safetensors"
    comfy.run(prompt)
    assert LOADER in comfy.run(prompt).cached
    models.write(folder / "changing.safetensors", "none", models.VQ_F4)
    assert LOADER not in comfy.run(prompt).cached


def test_a_file_whose_name_comes_over_a_link_stays_loaded_until_it_changes(comfy: ComfyServer, folder: Path) -> None:
    """The server of 2024 tells the name from the second prompt on, and so loads twice."""
    models.write(folder / "linked.safetensors", "none")
    prompt = linked(prompts.generate("none"), LOADER, "checkpoint", "linked.safetensors")
    assert not comfy.run(prompt).error and not comfy.run(prompt).error
    assert LOADER in comfy.run(prompt).cached
    models.write(folder / "linked.safetensors", "none", models.VQ_F4)
    assert LOADER not in comfy.run(prompt).cached


def test_conditioning_of_another_width(comfy: ComfyServer) -> None:
    prompt = prompts.generate("class")
    prompt["positive"] = node("SpectralDiffusionUnconditional", model=["other", 0])
    prompt["other"] = node("SpectralDiffusionLoadCheckpoint", checkpoint="none.safetensors")
    message = comfy.run(prompt).message
    assert "width 32" in message
    assert "Class Label" in message


def test_text_for_a_class_model(comfy: ComfyServer) -> None:
    prompt = prompts.generate("class")
    prompt["positive"] = node("CLIPTextEncode", clip=[LOADER, 1], text="a cat")
    assert "use Class Label" in comfy.run(prompt).message


def test_a_label_for_a_text_model_and_a_label_that_does_not_exist(comfy: ComfyServer) -> None:
    prompt = prompts.generate("text")
    prompt["positive"] = node("SpectralDiffusionClassLabel", model=[LOADER, 0], label=1)
    assert "not conditioned on classes" in comfy.run(prompt).message
    prompt = prompts.generate("class")
    prompt["positive"]["inputs"]["label"] = 10
    assert "knows classes 0 to 9" in comfy.run(prompt).message


def test_a_latent_of_another_model(comfy: ComfyServer) -> None:
    """Of pictures, as newer versions of ComfyUI repair empty latents themselves."""
    prompt = prompts.generate("vq")
    prompt["other"] = node("SpectralDiffusionLoadCheckpoint", checkpoint="text.safetensors")
    prompt["pictures"] = node("SpectralDiffusionExampleImages", images="emoji-64", count=1)
    prompt[LATENT] = node("VAEEncode", pixels=["pictures", 0], vae=["other", 2])
    run = comfy.run(prompt)
    assert run.error is not None and run.error["node_id"] == SAMPLER
    assert "takes latents of 3 channels, the connected one has 4; use Empty Latent" in run.message
