"""LoRAs of the formats that people have, through core's Load LoRA and ours, on our MODEL and CLIP."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from . import models, prompts
from .prompts import LOADER, SAMPLER, node
from .server import ComfyServer, Prompt, Run
from .test_parity import CORE, OURS, loader, results, sampled

RANK, ALPHA, STRENGTH = 2, 1.0, 0.7
#: A few places of a U-Net with one residual block a level, by LDM's names and by diffusers'.
PLACES = {
    "input_blocks.3.1.transformer_blocks.0.attn1.to_q": "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "input_blocks.3.1.transformer_blocks.0.attn2.to_out.0": (
        "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0"
    ),
    "middle_block.1.transformer_blocks.0.attn2.to_v": "mid_block.attentions.0.transformer_blocks.0.attn2.to_v",
}
TEXT_PLACES = ("encoder.layers.0.self_attn.q_proj", "encoder.layers.1.mlp.fc1")
Factors = tuple[Tensor, Tensor]


def kohya(unet: dict[str, Factors], text: dict[str, Factors]) -> dict[str, Tensor]:
    """lora_unet_… by diffusers' names, lora_te_…; with alphas."""
    named = {f"lora_unet_{PLACES[place].replace('.', '_')}": pair for place, pair in unet.items()}
    named |= {f"lora_te_text_model_{place.replace('.', '_')}": pair for place, pair in text.items()}
    tensors = {}
    for name, (up, down) in named.items():
        tensors |= {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}
        tensors[f"{name}.alpha"] = torch.tensor(ALPHA)
    return tensors


def processors(unet: dict[str, Factors], text: dict[str, Factors]) -> dict[str, Tensor]:
    """diffusers before 2024: unet.….processor.to_q_lora.…; alpha is the rank, so the factors hold it."""
    tensors = {}
    for place, (up, down) in unet.items():
        name = "unet." + PLACES[place].replace(".to_", ".processor.to_").removesuffix(".0") + "_lora"
        tensors |= {f"{name}.up.weight": up * ALPHA / RANK, f"{name}.down.weight": down}
    for place, (up, down) in text.items():
        name = f"text_encoder.text_model.{place}.lora_linear_layer"
        tensors |= {f"{name}.up.weight": up * ALPHA / RANK, f"{name}.down.weight": down}
    return tensors


def peft(unet: dict[str, Factors], text: dict[str, Factors]) -> dict[str, Tensor]:
    """diffusers with PEFT: unet.….to_q.lora_A.weight."""
    named = {f"unet.{PLACES[place]}": pair for place, pair in unet.items()}
    named |= {f"text_encoder.text_model.{place}": pair for place, pair in text.items()}
    return {
        f"{name}.lora_{letter}.weight": tensor
        for name, (up, down) in named.items()
        for letter, tensor in (("A", down), ("B", up * ALPHA / RANK))
    }


Format = Callable[[dict[str, Factors], dict[str, Factors]], dict[str, Tensor]]


def factors(weights: dict[str, Tensor], prefix: str, places: Any) -> dict[str, Factors]:
    """Random low-rank factors, about as large as the weights that they change."""
    drawn, generator = {}, torch.Generator().manual_seed(4)
    for place in places:
        rows, columns = weights[f"{prefix}{place}.weight"].shape[:2]
        up = torch.randn(rows, RANK, generator=generator)
        drawn[place] = (up, torch.randn(RANK, columns, generator=generator) * columns**-0.5)
    return drawn


UNET, TEXT = "model.diffusion_model.", "cond_stage_model.transformer.text_model."


@pytest.fixture(scope="module")
def student(comfy: ComfyServer) -> Path:
    """A wavelet-gated text student in which `PLACES` are."""
    return models.write(comfy.distribution.base / "models" / "spectral_diffusion" / "lora-student.safetensors", "text")


@pytest.fixture(scope="module")
def drawn(student: Path) -> tuple[dict[str, Factors], dict[str, Factors]]:
    """Factors for the student's U-Net and text tower."""
    weights = load_file(student)
    return factors(weights, UNET, PLACES), factors(weights, TEXT, TEXT_PLACES)


@pytest.fixture(scope="module")
def merged(comfy: ComfyServer, student: Path, drawn: tuple[dict[str, Factors], dict[str, Factors]]) -> Tensor:
    """The student's latent with the LoRA added to its weights by hand: what every way of loading it must give."""
    weights = load_file(student)
    with safe_open(student, "pt") as file:
        metadata = file.metadata()
    for prefix, pairs in ((UNET, drawn[0]), (TEXT, drawn[1])):
        for place, (up, down) in pairs.items():
            weights[f"{prefix}{place}.weight"] += STRENGTH * ALPHA / RANK * up @ down
    path = student.with_name("lora-merged.safetensors")
    save_file(weights, path, metadata)
    return latent(run_ok(comfy, prompt(path.name)), comfy)


def prompt(name: str, lora: str = "", ours: bool = False, text: bool = True) -> Prompt:
    """The student with a LoRA between loader and sampler."""
    made = prompts.generate("text", steps=2)
    made[LOADER]["inputs"]["checkpoint"] = name
    made["saved"] = node("SaveLatent", samples=[SAMPLER, 0], filename_prefix="lora")
    if lora:
        strengths = {"lora_name": lora, "strength_model": STRENGTH, "strength_clip": STRENGTH}
        clip = {"clip": [LOADER, 1]} if text else {}
        kind = "SpectralDiffusionLoadLora" if ours else "LoraLoader"
        made["lora"] = node(kind, model=[LOADER, 0], **clip, **strengths)
        made[SAMPLER]["inputs"]["model"] = ["lora", 0]
        if text:
            made["positive"]["inputs"]["clip"] = ["lora", 1]
            made["negative"] = node("CLIPTextEncode", clip=["lora", 1], text="")
        if ours:
            made["report"] = node("ProbeText", text=["lora", 2])
    else:
        made["negative"] = node("CLIPTextEncode", clip=[LOADER, 1], text="")
    return made


def run_ok(comfy: ComfyServer, made: Prompt) -> Run:
    run = comfy.run(made)
    assert run.error is None, run.message
    return run


def latent(run: Run, comfy: ComfyServer) -> Tensor:
    saved = run.outputs["saved"]["latents"][0]
    return load_file(comfy.distribution.base / "output" / saved["filename"])["latent_tensor"]


def save_lora(comfy: ComfyServer, name: str, tensors: dict[str, Tensor]) -> str:
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, loras(comfy) / name)
    return name


def loras(comfy: ComfyServer) -> Path:
    return comfy.distribution.base / "models" / "loras"


def logged(comfy: ComfyServer) -> str:
    return comfy.log.read_text(errors="replace")


@pytest.mark.parametrize("format_", [kohya, processors])
def test_core_s_loader_changes_our_weights_as_it_should(
    comfy: ComfyServer,
    student: Path,
    drawn: tuple[dict[str, Factors], dict[str, Factors]],
    merged: Tensor,
    format_: Format,
) -> None:
    name = save_lora(comfy, f"core-{format_.__name__}.safetensors", format_(*drawn))
    run = run_ok(comfy, prompt(student.name, name))
    assert not run.notices
    assert "LoRA: 3 weights of the U-Net changed" in logged(comfy)
    assert "LoRA: 2 weights of the text encoder changed" in logged(comfy)
    torch.testing.assert_close(latent(run, comfy), merged, rtol=1e-4, atol=1e-4)
    assert (merged - latent(run_ok(comfy, prompt(student.name)), comfy)).abs().max() > 1e-2


@pytest.mark.parametrize("format_", [kohya, processors, peft])
def test_our_loader_reads_every_format_and_counts_its_keys(
    comfy: ComfyServer,
    student: Path,
    drawn: tuple[dict[str, Factors], dict[str, Factors]],
    merged: Tensor,
    format_: Format,
) -> None:
    tensors = format_(*drawn)
    matching = len(tensors)
    tensors |= {"lora_unet_elsewhere.lora_up.weight": torch.zeros(4, 2), "unet.nowhere.alpha": torch.tensor(1.0)}
    name = save_lora(comfy, f"ours-{format_.__name__}.safetensors", tensors)
    run = run_ok(comfy, prompt(student.name, name, ours=True))
    assert not run.notices
    report = run.outputs["report"]["text"][0]
    assert f"{matching} of {matching + 2} keys matched, changing 3 weights of the U-Net and 2 of the text" in report
    assert "Not in this model: " in report and "unet.nowhere.alpha" in report
    torch.testing.assert_close(latent(run, comfy), merged, rtol=1e-4, atol=1e-4)


def test_the_wavelet_resamplers_take_a_lora_by_ldm_s_names(comfy: ComfyServer, student: Path) -> None:
    gates = [name for name in load_file(student) if ".gate.fc1.weight" in name]
    places = [name.removeprefix(UNET).removesuffix(".weight") for name in gates]
    tensors = {}
    for place, (up, down) in factors(load_file(student), UNET, places).items():
        name = "lora_unet_" + place.replace(".", "_")
        tensors |= {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}
    run = run_ok(comfy, prompt(student.name, save_lora(comfy, "gates.safetensors", tensors), ours=True, text=False))
    assert f"changing {len(gates)} weights of the U-Net and 0 of" in run.outputs["report"]["text"][0]
    assert (latent(run, comfy) - latent(run_ok(comfy, prompt(student.name)), comfy)).abs().max() > 1e-3


@pytest.mark.parametrize("ours", [False, True], ids=["core", "ours"])
def test_a_lora_of_another_model_changes_nothing_and_the_page_is_told(
    comfy: ComfyServer, student: Path, ours: bool
) -> None:
    foreign = {
        "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": torch.ones(8, 2),
        "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": torch.ones(2, 8),
    }
    name = save_lora(comfy, f"foreign-{ours}.safetensors", foreign)
    run = run_ok(comfy, prompt(student.name, name, ours=ours))
    (notice,) = run.notices
    assert notice["severity"] == "warn"
    assert "nothing" in notice["detail"]
    if ours:
        assert "0 of 2 keys matched" in notice["detail"] and "double_blocks" in notice["detail"]
    assert torch.equal(latent(run, comfy), latent(run_ok(comfy, prompt(student.name)), comfy))


def test_weights_of_another_size_are_named(comfy: ComfyServer, student: Path) -> None:
    wide = {place: (torch.ones(64, RANK), torch.ones(RANK, 64)) for place in PLACES}
    name = save_lora(comfy, "wide.safetensors", kohya(wide, {}))
    run = run_ok(comfy, prompt(student.name, name, ours=True))
    assert run.notices
    report = run.outputs["report"]["text"][0]
    assert "Of another size than in this model, or than what belongs to them: lora_unet_" in report


def test_parts_that_do_not_go_together_change_nothing_and_are_named(comfy: ComfyServer, student: Path) -> None:
    """Each in another way wrong, all of one attention of the same width."""
    there, named = next(iter(PLACES.items()))
    width = len(load_file(student)[f"{UNET}{there}.weight"])
    place = f"lora_unet_{named.replace('.', '_')}"
    good = {f"{place}.lora_up.weight": torch.ones(width, 4), f"{place}.lora_down.weight": torch.ones(4, width)}
    wrong: dict[str, dict[str, Tensor]] = {
        "ranks": good | {f"{place}.lora_down.weight": torch.ones(8, width)},
        "no rank": {name: tensor[:0] if "down" in name else tensor[:, :0] for name, tensor in good.items()},
        "two scales": good | {f"{place}.alpha": torch.ones(2)},
        "a middle": good | {f"{place}.lora_mid.weight": torch.ones(3, 3)},
        "norms": good | {f"{place}.dora_scale": torch.ones(7, 7)},
        "a difference": {f"{place}.diff": torch.ones(3, 3)},
        "Kronecker": {f"{place}.lokr_w1": torch.ones(3, 3), f"{place}.lokr_w2": torch.ones(5, 5)},
    }
    for key, tensors in wrong.items():
        run = run_ok(comfy, prompt(student.name, save_lora(comfy, f"{key}.safetensors", tensors), ours=True))
        (notice,) = run.notices
        assert f"0 of {len(tensors)} keys matched" in notice["detail"], key
        assert "than what belongs to them" in notice["detail"], key
    report = run_ok(comfy, prompt(student.name, save_lora(comfy, "good.safetensors", good), ours=True))
    assert "2 of 2 keys matched, changing 1 weights" in report.outputs["report"]["text"][0]


def test_a_lora_of_the_text_encoder_alone_is_no_warning(
    comfy: ComfyServer, student: Path, drawn: tuple[dict[str, Factors], dict[str, Factors]]
) -> None:
    run = run_ok(comfy, prompt(student.name, save_lora(comfy, "text.safetensors", kohya({}, drawn[1]))))
    assert not run.notices
    assert "LoRA: 0 weights of the U-Net changed" in logged(comfy)


def test_merging_models_is_no_lora(comfy: ComfyServer, student: Path) -> None:
    before = logged(comfy).count("LoRA: ")
    made = prompt(student.name)
    made["other"] = node("SpectralDiffusionLoadCheckpoint", checkpoint="text.safetensors")
    made["merge"] = node("ModelMergeSimple", model1=[LOADER, 0], model2=["other", 0], ratio=0.25)
    made[SAMPLER]["inputs"]["model"] = ["merge", 0]
    run = run_ok(comfy, made)
    assert not run.notices
    assert logged(comfy).count("LoRA: ") == before


def test_a_damaged_lora_is_a_sentence(
    comfy: ComfyServer, student: Path, drawn: tuple[dict[str, Factors], dict[str, Factors]]
) -> None:
    half = {name: tensor for name, tensor in kohya(*drawn).items() if not name.endswith("lora_down.weight")}
    name = save_lora(comfy, "half.safetensors", half)
    assert "half.safetensors lacks 'lora_" in comfy.run(prompt(student.name, name, ours=True)).message
    (loras(comfy) / "cut.safetensors").write_bytes((loras(comfy) / name).read_bytes()[:-100])
    assert "cut.safetensors" in comfy.run(prompt(student.name, "cut.safetensors", ours=True)).message


@pytest.mark.parametrize("name", ["nowhere.safetensors", "../../../../etc/passwd", ""])
def test_a_lora_that_is_not_there(comfy: ComfyServer, student: Path, name: str) -> None:
    assert "There is no LoRA" in comfy.run(prompt(student.name, name or "\0", ours=True)).message


def test_a_lora_on_stable_diffusion_1_is_what_core_makes_of_it(comfy: ComfyServer, stable_one: str) -> None:
    weights = load_file(comfy.distribution.base / "models" / "checkpoints" / stable_one)
    tensors = kohya(factors(weights, UNET, PLACES), factors(weights, TEXT, TEXT_PLACES))
    name = save_lora(comfy, "sd1.safetensors", tensors)
    found = []
    for which, kind in ((CORE, "LoraLoader"), (OURS, "LoraLoader"), (OURS, "SpectralDiffusionLoadLora"), (CORE, "")):
        made = sampled(which, stable_one)
        if kind:
            strengths = {"lora_name": name, "strength_model": STRENGTH, "strength_clip": STRENGTH}
            # Named by its kind: the server of 2024 takes nodes of one name and equal inputs for the same.
            made[kind] = node(kind, model=["loader", 0], clip=["loader", 1], **strengths)
            made["sampler"]["inputs"]["model"] = [kind, 0]
            made["positive"]["inputs"]["clip"] = made["negative"]["inputs"]["clip"] = [kind, 1]
        found.append(results(comfy, made))
    assert made["loader"] == loader(CORE, stable_one)
    core, *ours, without = found
    for key in ("states", "latent"):
        size = float(core[key].abs().max())
        for other in ours:
            difference = float((core[key] - other[key]).abs().max()) / size
            print(f"\n{key}: ours with a LoRA against core's {difference:.2g}")
            assert difference < 1e-4
        assert float((core[key] - without[key]).abs().max()) / size > 1e-2
