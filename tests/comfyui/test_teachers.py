"""LDM and Stable Diffusion teachers as people have them: .ckpt, averages, folders, parts alone, every tower."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from spectral_diffusion.spectral import checkpoint
from spectral_diffusion.spectral.config import ConditioningConfig, ModelConfig
from spectral_diffusion.training import wordpiece
from spectral_diffusion.training.tokens import tokenize

from ..unit import ldm_files
from ..unit.ldm_files import Parts
from . import prompts
from .prompts import LATENT, LOADER, SAMPLER, node
from .server import ComfyServer, Prompt

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "apple", "##s", "blue", "green", "tree", ",")
LDM_TEXT = replace(ldm_files.LDM_TEXT, vocabulary=len(WORDS))
LDM_FILE = "ldm-text.safetensors"
CLIP_OF_LOADER: prompts.Link = [LOADER, 1]


@pytest.fixture(scope="session")
def folder(comfy: ComfyServer) -> Path:
    """models/checkpoints of the server."""
    return comfy.distribution.base / "models" / "checkpoints"


@pytest.fixture(scope="session")
def lightning(folder: Path) -> Path:
    """A .ckpt of a class model with averages and buffers, and what Lightning keeps beside them."""
    state = {**teacher().state(), **ldm_files.averages(teacher().unet), **ldm_files.buffers(scale=0.5)}
    return ldm_files.write(folder / "lightning.ckpt", state)


def teacher(condition: ConditioningConfig = ldm_files.CLASSES) -> Parts:
    return Parts.make(ldm_files.CONDITIONED, ldm_files.KL, condition)


def prompt(name: str, **options: Any) -> Prompt:
    """The class model called `name`, two steps towards class 3."""
    made = prompts.generate("class", steps=2, width=64, height=64)
    made[LOADER]["inputs"] = {"checkpoint": name, **options}
    made["saved"] = node("SaveLatent", samples=[SAMPLER, 0], filename_prefix="teacher")
    made["info"] = node("ProbeText", text=[LOADER, 3])
    return made


def sample(comfy: ComfyServer, made: Prompt) -> tuple[Tensor, str]:
    """The latent, and what the loader said."""
    run = comfy.run(made)
    assert run.error is None, run.message
    saved = run.outputs["saved"]["latents"][0]
    latent = load_file(comfy.distribution.base / "output" / saved["filename"])["latent_tensor"]
    return latent, run.outputs["info"]["text"][0]


def test_the_averages_of_a_ckpt_are_used_unless_ema_is_off(comfy: ComfyServer, lightning: Path) -> None:
    whole = teacher().state()
    averaged = {
        name: tensor * 0.5 if name.startswith("model.diffusion_model.") else tensor for name, tensor in whole.items()
    }
    for name, state in (("last", whole), ("averaged", averaged)):
        ldm_files.write(lightning.with_name(f"{name}.safetensors"), {**state, **ldm_files.buffers(scale=0.5)})
    with_ema, info = sample(comfy, prompt(lightning.name))
    assert "Weights: the averages (EMA)" in info
    without, info = sample(comfy, prompt(lightning.name, ema=False))
    assert "(EMA)" not in info
    assert torch.equal(with_ema, sample(comfy, prompt("averaged.safetensors"))[0])
    assert torch.equal(without, sample(comfy, prompt("last.safetensors"))[0])
    assert not torch.equal(with_ema, without)


def test_info_tells_the_schedule_and_what_was_assumed(comfy: ComfyServer, lightning: Path) -> None:
    _, info = sample(comfy, prompt(lightning.name))
    assert "Schedule: 1000 steps, β from 0.0015 to 0.0195; predicts noise (eps)" in info
    assert "1001 classes, the last for no class" in info
    assert "scale 0.5" in info
    assert "Note: The file does not tell its attention heads; 8 attention heads are assumed" in info


@pytest.mark.parametrize(
    ("learnt", "says"),
    [
        ({"guidance": 3.0}, "Guidance of 3 is in its weights: sample it with cfg 1"),
        ({"few_steps": 4}, "Sample it in 4 steps, cfg 1, sampler euler or ddim, scheduler simple"),
    ],
)
def test_info_tells_how_a_student_is_sampled(
    learnt: dict[str, Any], says: str, comfy: ComfyServer, folder: Path
) -> None:
    path = folder / "learnt.safetensors"
    parts = teacher()
    config = ModelConfig("student", ldm_files.CONDITIONED, ldm_files.KL, ldm_files.CLASSES, scale_factor=0.5)
    checkpoint.save(
        path, replace(config, **learnt), unet=parts.unet, first_stage=parts.first_stage, conditioner=parts.conditioner
    )
    _, info = sample(comfy, prompt(path.name))
    path.unlink()
    assert says in info


def test_heads_and_prediction_are_the_user_s_to_set(comfy: ComfyServer, lightning: Path) -> None:
    latent, _ = sample(comfy, prompt(lightning.name))
    assert torch.equal(latent, sample(comfy, prompt(lightning.name, heads=8))[0])
    other, info = sample(comfy, prompt(lightning.name, heads=2))
    assert "attention heads are assumed" not in info
    assert not torch.equal(latent, other)
    velocity, info = sample(comfy, prompt(lightning.name, prediction="velocity (v)"))
    assert "predicts velocity (v)" in info
    assert not torch.equal(latent, velocity)


@pytest.mark.parametrize("place", ["diffusers/tiny", "spectral_diffusion/mine/nested/tiny"])
def test_a_diffusers_folder_gives_what_the_file_gives(comfy: ComfyServer, lightning: Path, place: str) -> None:
    state = teacher(ldm_files.CLIP).state()
    single = ldm_files.write(lightning.with_name("clip.safetensors"), {**state, **ldm_files.buffers(scale=0.18215)})
    root, _, name = place.partition("/")
    path = comfy.distribution.base / "models" / root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.convert(checkpoint.read(single), path, "diffusers")
    latents = []
    for chosen in (single.name, name):
        made = prompt(chosen, heads=8)
        made["positive"] = node("CLIPTextEncode", clip=[LOADER, 1], text="a (red:1.2) apple")
        latents.append(sample(comfy, made)[0])
    torch.testing.assert_close(latents[0], latents[1], rtol=1e-4, atol=1e-4)
    offered = offers(comfy)
    assert name in offered and single.name in offered
    assert not [other for other in offered if other.startswith(f"{name}/")]
    shutil.rmtree(path)


def offers(comfy: ComfyServer) -> list[str]:
    """The names that Load Checkpoint lists."""
    info = comfy.get("/object_info/SpectralDiffusionLoadCheckpoint")["SpectralDiffusionLoadCheckpoint"]
    names: list[str] = info["input"]["required"]["checkpoint"][0]
    return names


def test_what_is_offered_is_what_can_be_a_model(comfy: ComfyServer, lightning: Path) -> None:
    for name in ("other.pt", "other.bin", "other.txt"):
        lightning.with_name(name).touch()
    lightning.with_name("bert").mkdir(exist_ok=True)
    (lightning.with_name("bert") / "config.json").write_text("{}")
    offered = offers(comfy)
    assert lightning.name in offered
    assert offered[0] == "emoji64-student.safetensors"  # what a new node has chosen, for any sampler
    assert not {"other.pt", "other.bin", "other.txt", "bert"} & set(offered)
    made = prompt("other.pt")
    assert "There is no checkpoint 'other.pt'" in comfy.run(made).message


def test_all_labels_of_a_model_without_a_null_class_are_classes(comfy: ComfyServer, folder: Path) -> None:
    classes = replace(ldm_files.CLASSES, n_classes=1000, null_class=False)
    ldm_files.write(folder / "cin.safetensors", teacher(classes).state())
    made = prompt("cin.safetensors")
    assert "no null class: each of its 1000 classes" in comfy.run(made).message
    made["positive"]["inputs"]["label"] = 999
    made["negative"] = made["positive"]
    made[SAMPLER]["inputs"]["cfg"] = 1.0
    _, info = sample(comfy, made)
    assert "1000 classes, none of them for no class" in info
    made["positive"]["inputs"]["label"] = 1000
    assert "knows classes 0 to 999" in comfy.run(made).message


def test_a_u_net_alone_takes_the_clip_of_another_file(comfy: ComfyServer, folder: Path) -> None:
    state = teacher(ldm_files.CLIP).state()
    ldm_files.write(folder / "clip.safetensors", state)
    alone = {name: tensor for name, tensor in state.items() if name.startswith("model.diffusion_model.")}
    ldm_files.write(folder / "alone.safetensors", alone)
    made = prompt("alone.safetensors", heads=8, scale_factor=0.7)
    label, nothing = made["positive"], made["negative"]
    made["negative"] = label
    assert "use CLIP Text Encode instead of Class Label" in comfy.run(made).message
    made["positive"] = made["negative"] = nothing
    assert "text encoder is not in its file" in comfy.run(made).message
    made["positive"] = made["negative"] = node("CLIPTextEncode", clip=[LOADER, 1], text="a tree")
    assert "holds no text encoder; load one of width 64 with Load CLIP" in comfy.run(made).message
    made["other"] = node("SpectralDiffusionLoadCheckpoint", checkpoint="clip.safetensors")
    made["positive"] = node("CLIPTextEncode", clip=["other", 1], text="a tree")
    made["negative"] = node("CLIPTextEncode", clip=["other", 1], text="")
    made["decode"]["inputs"]["vae"] = [LOADER, 2]
    assert "holds no first stage; load the VAE" in comfy.run(made).message
    made["decode"]["inputs"]["vae"] = ["other", 2]
    _, info = sample(comfy, made)
    assert "whose encoder is not in the file" in info
    assert "scale 0.7" in info and "scale_factor" not in info


def test_a_first_stage_alone_is_a_vae_and_says_what_it_is_not(comfy: ComfyServer, folder: Path) -> None:
    state = teacher().state()
    stage = {name: tensor for name, tensor in state.items() if name.startswith("first_stage_model.")}
    ldm_files.write(folder / "stage.safetensors", stage)
    made = prompt("stage.safetensors")
    assert "holds a first stage (VAE) alone" in comfy.run(made).message
    made = {
        LOADER: node("SpectralDiffusionLoadCheckpoint", checkpoint="stage.safetensors"),
        "pictures": node("SpectralDiffusionExampleImages", images="emoji-64", count=1),
        LATENT: node("VAEEncode", pixels=["pictures", 0], vae=[LOADER, 2]),
        "decode": node("VAEDecode", samples=[LATENT, 0], vae=[LOADER, 2]),
        "save": node("SaveImage", images=["decode", 0], filename_prefix="stage"),
        "info": node("ProbeText", text=[LOADER, 3]),
    }
    run = comfy.run(made)
    assert run.error is None, run.message
    assert "autoencoder" in run.outputs["info"]["text"][0]
    made["text"] = node("CLIPTextEncode", clip=[LOADER, 1], text="a tree")
    made["probe"] = node("ProbeConditioning", conditioning=["text", 0])
    assert "holds a first stage (VAE) alone" in comfy.run(made).message


@pytest.mark.parametrize(
    "condition",
    [ldm_files.CLIP, ldm_files.OPEN_CLIP, replace(ldm_files.OPEN_CLIP, skip_last=0, projection=False)],
    ids=["openai", "openclip", "openclip-all-layers"],
)
def test_a_clip_tower_encodes_as_the_library_does(
    comfy: ComfyServer, folder: Path, condition: ConditioningConfig
) -> None:
    parts = teacher(condition)
    assert parts.conditioner is not None
    config = ModelConfig("teacher", ldm_files.CONDITIONED, ldm_files.KL, condition)
    path = folder / f"tower-{condition.activation}-{condition.skip_last}.safetensors"
    checkpoint.save(path, config, unet=parts.unet, first_stage=parts.first_stage, conditioner=parts.conditioner)
    text = "a red apple, and a tree"
    with torch.no_grad():
        expected = parts.conditioner(tokenize([text], pad=condition.pad_token))
    torch.testing.assert_close(encoded(comfy, path.name, text)["states"], expected, rtol=1e-4, atol=1e-4)


def test_set_last_layer_and_a_lora_on_an_openclip_tower(comfy: ComfyServer, folder: Path) -> None:
    tower = ldm_files.OPEN_CLIP
    weight = "transformer.text_model.encoder.layers.0.self_attn.q_proj.weight"
    up, down = torch.randn(2, 64, 3, generator=torch.Generator().manual_seed(1))
    name = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    lora = {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down.T.contiguous()}
    save_file(lora, comfy.distribution.base / "models" / "loras" / "openclip.safetensors")
    results = []
    for file in ("openclip", "openclip-merged"):
        config = ModelConfig("teacher", ldm_files.CONDITIONED, ldm_files.KL, tower)
        parts = teacher(tower)
        assert parts.conditioner is not None
        if file == "openclip-merged":
            with torch.no_grad():
                parts.conditioner.get_parameter(weight).add_(up @ down.T)
        checkpoint.save(
            folder / f"{file}.safetensors",
            config,
            unet=parts.unet,
            first_stage=parts.first_stage,
            conditioner=parts.conditioner,
        )
        results.append(encoded(comfy, f"{file}.safetensors", "a tree")["states"])
    strengths = {"lora_name": "openclip.safetensors", "strength_model": 1.0, "strength_clip": 1.0}
    lora_node = node("LoraLoader", model=[LOADER, 0], clip=[LOADER, 1], **strengths)
    patched = encoded(comfy, "openclip.safetensors", "a tree", {"lora": lora_node}, ["lora", 1])["states"]
    torch.testing.assert_close(patched, results[1], rtol=1e-4, atol=1e-4)
    assert (results[0] - results[1]).abs().max() > 1e-2
    for layer in (-1, -2):
        chosen = node("CLIPSetLastLayer", clip=[LOADER, 1], stop_at_clip_layer=layer)
        found = encoded(comfy, "openclip.safetensors", "a tree", {"layer": chosen}, ["layer", 0])["states"]
        assert torch.equal(found, results[0]) == (layer == -2)


def encoded(
    comfy: ComfyServer,
    name: str,
    text: str,
    between: Prompt | None = None,
    clip: prompts.Link = CLIP_OF_LOADER,
) -> dict[str, Tensor]:
    """What CLIP Text Encode makes of a text, "states" and perhaps "pooled"; `between` are nodes before it."""
    made = {
        LOADER: node("SpectralDiffusionLoadCheckpoint", checkpoint=name),
        "text": node("CLIPTextEncode", clip=clip, text=text),
        "probe": node("ProbeConditioning", conditioning=["text", 0]),
        **(between or {}),
    }
    run = comfy.run(made)
    assert run.error is None, run.message
    return load_file(comfy.distribution.base / "output" / run.outputs["probe"]["files"][0])


class TestLdmText:
    """LDM's own text encoder: needs BERT's vocabulary, which is put beside the models."""

    @pytest.fixture
    def vocabulary(self, comfy: ComfyServer, folder: Path) -> Iterator[Path]:
        """Where vocab.txt belongs; there is none yet."""
        ldm_files.write(folder / LDM_FILE, teacher(LDM_TEXT).state())
        path = comfy.distribution.base / "models" / "spectral_diffusion" / "bert-base-uncased" / "vocab.txt"
        path.parent.mkdir(exist_ok=True)
        yield path
        path.unlink(missing_ok=True)

    def test_without_a_vocabulary_the_clip_says_where_to_put_it(self, comfy: ComfyServer, vocabulary: Path) -> None:
        made = prompt(LDM_FILE)
        for asking in (made["negative"], node("CLIPTextEncode", clip=[LOADER, 1], text="a red apple")):
            made["positive"] = asking
            message = comfy.run(made).message
            assert "models/spectral_diffusion/bert-base-uncased/vocab.txt" in message
        vocabulary.write_text("\n".join(WORDS) + "\n")
        made["positive"] = node("CLIPTextEncode", clip=[LOADER, 1], text="a red apple")
        _, info = sample(comfy, made)
        assert "text, LDM's text encoder of 2 layers, width 64" in info

    def test_texts_and_weights_are_what_the_library_computes(self, comfy: ComfyServer, vocabulary: Path) -> None:
        vocabulary.write_text("\n".join(WORDS) + "\n")
        encoder = teacher(LDM_TEXT).conditioner
        assert encoder is not None
        with torch.no_grad():
            plain, empty = encoder(wordpiece.tokenize(["A red Apples, blue", ""], LDM_TEXT, vocabulary)).split(1)
        found = encoded(comfy, LDM_FILE, "A red Apples, blue")["states"]
        torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-4)
        expected = plain.clone()
        expected[:, 2] = empty[:, 2] + 1.5 * (plain[:, 2] - empty[:, 2])
        found = encoded(comfy, LDM_FILE, "A (red:1.5) Apples, blue")["states"]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert encoded(comfy, LDM_FILE, "tree " * 100)["states"].shape == (1, 2 * 77, 64)

    def test_clip_set_last_layer_is_a_sentence(self, comfy: ComfyServer, vocabulary: Path) -> None:
        vocabulary.write_text("\n".join(WORDS) + "\n")
        made = {
            LOADER: node("SpectralDiffusionLoadCheckpoint", checkpoint=LDM_FILE),
            "layer": node("CLIPSetLastLayer", clip=[LOADER, 1], stop_at_clip_layer=-2),
            "text": node("CLIPTextEncode", clip=["layer", 0], text="a tree"),
            "probe": node("ProbeConditioning", conditioning=["text", 0]),
        }
        assert "disconnect CLIP Set Last Layer" in comfy.run(made).message

    def test_another_vocabulary_is_a_sentence(self, comfy: ComfyServer, vocabulary: Path) -> None:
        vocabulary.write_text("\n".join((*WORDS, "more")) + "\n")
        made = prompt(LDM_FILE)
        made["positive"] = node("CLIPTextEncode", clip=[LOADER, 1], text="a tree")
        assert f"holds {len(WORDS) + 1} tokens, the model's text encoder knows" in comfy.run(made).message
        vocabulary.write_text("no vocabulary\n")
        assert "is no BERT vocabulary" in comfy.run(made).message
