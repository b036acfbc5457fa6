"""Damaged and hostile diffusers folders, and models that cannot become one: each is refused in one sentence."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from spectral_diffusion.spectral import checkpoint
from spectral_diffusion.spectral.config import ModelConfig
from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.spectral.formats import diffusers_folder, diffusers_writer
from spectral_diffusion.spectral.formats.source import UNET

from . import tiny
from .diffusers_models import AS_SAID, MODELS, edit, in_ldm, modules

# --- damaged and hostile folders ---


@pytest.fixture(scope="module")
def tensors() -> dict[str, Any]:
    return in_ldm(**modules(MODELS["clip"]))


@pytest.fixture
def whole(tmp_path: Path, tensors: dict[str, Any]) -> Path:
    return diffusers_folder.write(tmp_path / "model", MODELS["clip"], tensors)


def replaced(path: Path, content: str | bytes = b"") -> None:
    path.unlink()
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def to_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def to_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def to_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def without(name: str) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        saved = load_file(file)
        del saved[name]
        save_file(saved, file)

    return change


def shards(*names: str, **more: Any) -> Callable[[Path], None]:
    """An index in place of the weights, which names these files."""

    def change(file: Path) -> None:
        file.rename(file.with_name("part.safetensors"))
        places = {f"tensor.{index}": name for index, name in enumerate(names)}
        file.with_name(f"{file.name}.index.json").write_text(json.dumps({"weight_map": places, **more}))

    return change


CONFIG, WEIGHTS = "unet/config.json", "unet/diffusion_pytorch_model.safetensors"
DAMAGE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "missing": (CONFIG, Path.unlink, "unet/config.json is missing"),
    "directory": (CONFIG, to_directory, "unet/config.json is missing or no file"),
    "loop": (CONFIG, to_loop, "unet/config.json"),
    "pipe": (CONFIG, to_pipe, "unet/config.json is missing or no file"),
    "device": (CONFIG, lambda p: (p.unlink(), p.symlink_to("/dev/zero")), "unet/config.json is missing or no file"),
    "empty": (CONFIG, lambda p: replaced(p), "unet/config.json is not valid JSON"),
    "no JSON": (CONFIG, lambda p: replaced(p, "{oh}"), "unet/config.json is not valid JSON"),
    "bytes": (CONFIG, lambda p: replaced(p, b"\xff\xfe\x00"), "unet/config.json is not valid JSON"),
    "list": (CONFIG, lambda p: replaced(p, "[1]"), "unet/config.json holds no JSON object"),
    "deep": (CONFIG, lambda p: replaced(p, "[" * 100_000), "unet/config.json is not valid JSON"),
    "nested": (CONFIG, lambda p: edit(p, in_channels=nested(100)), "unet/config.json: in_channels is "),
    "long": (CONFIG, lambda p: replaced(p, " " * 2**20 + "{}"), "larger than 1048576 bytes"),
    "sparse": (CONFIG, lambda p: os.truncate(p, 2**40), "larger than 1048576 bytes"),
    "huge number": (CONFIG, lambda p: edit(p, in_channels=10**4000), "in_channels is "),
    "digits": (CONFIG, lambda p: replaced(p, '{"a": ' + "9" * 10_000 + "}"), "unet/config.json is not valid JSON"),
    "not finite": (CONFIG, lambda p: edit(p, norm_eps=float("nan")), "norm_eps is nan"),
    "negative": (CONFIG, lambda p: edit(p, block_out_channels=[-32, 64]), "block_out_channels is "),
    "true": (CONFIG, lambda p: edit(p, layers_per_block=True), "layers_per_block is true"),
    "text": (CONFIG, lambda p: edit(p, sample_size="big"), "sample_size is 'big'"),
    "surrogate": (CONFIG, lambda p: edit(p, act_fn="\ud800"), r"act_fn is '\\ud800'"),
    "many levels": (CONFIG, lambda p: edit(p, block_out_channels=[32] * 17), "a list of 1 to 16"),
    "too wide": (CONFIG, lambda p: edit(p, block_out_channels=[2**20, 2**21]), "describes what cannot be built"),
    "no weights": (WEIGHTS, Path.unlink, "unet/ holds no weights"),
    "weights loop": (WEIGHTS, to_loop, "unet/: "),
    "weights pipe": (WEIGHTS, to_pipe, "unet/: "),
    "weights cut": (WEIGHTS, lambda p: os.truncate(p, 5000), "unet/: .* is damaged"),
    "weights of text": (WEIGHTS, lambda p: replaced(p, "<html>"), "unet/: "),
    "weights directory": (WEIGHTS, to_directory, "unet/: "),
    "lacks one": (WEIGHTS, without("conv_in.bias"), f"{WEIGHTS} lacks conv_in.bias"),
    "one more": (WEIGHTS, lambda p: save_file(load_file(p) | {"x\n": torch.ones(1)}, p), f"{WEIGHTS} holds 'x"),
    "up and out": (WEIGHTS, shards("../../x.safetensors"), "names '../../x.safetensors'; expected a file beside it"),
    "absolute": (WEIGHTS, shards("/etc/passwd"), "names '/etc/passwd'; expected a file beside it"),
    "up": (WEIGHTS, shards(".."), "names '..'; expected a file beside it"),
    "nothing": (WEIGHTS, shards(""), "names ''; expected a file beside it"),
    "null byte": (WEIGHTS, shards("a\0b"), "expected a file beside it"),
    "backslash": (WEIGHTS, shards("..\\x"), "expected a file beside it"),
    "no such shard": (WEIGHTS, shards("part.safetensors", "q.safetensors"), "unet/: .*q.safetensors"),
    "no map": (WEIGHTS, shards(weight_map=None), "lacks a weight_map"),
    "map of numbers": (WEIGHTS, shards(weight_map={"a": 1}), "lacks a weight_map"),
    "long index": (WEIGHTS, shards(x=" " * 2**24), "larger than 16777216 bytes"),
    "tower's config": ("text_encoder/config.json", to_directory, "text_encoder/config.json is missing or no file"),
    "tower lacks": (
        "text_encoder/model.safetensors",
        without("text_model.final_layer_norm.bias"),
        "text_encoder/model.safetensors lacks text_model.final_layer_norm.bias",
    ),
    "layers without end": (
        "text_encoder/config.json",
        lambda p: edit(p, num_hidden_layers=2**31 - 1),
        "lacks text_model.encoder.layers.2.",
    ),
    "schedule": ("scheduler/scheduler_config.json", lambda p: replaced(p, "{"), "scheduler_config.json is not valid"),
    "vae": ("vae/config.json", to_loop, "vae/config.json"),
}


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_one_sentence_that_names_the_file(name: str, whole: Path) -> None:
    file, damage, says = DAMAGE[name]
    damage(whole / file)
    assert diffusers_folder.is_folder(whole)
    with pytest.raises(SpectralError, match=says) as caught:
        diffusers_folder.read(whole, AS_SAID)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700 and ("," in message or ";" in message)
    message.encode()  # no lone surrogates, which could not be printed


def test_attention_of_impossible_shapes_is_named(tmp_path: Path) -> None:
    config = MODELS["unconditional"]
    folder = diffusers_folder.write(tmp_path / "model", config, in_ldm(**modules(config)))
    file = folder / WEIGHTS
    name = "mid_block.attentions.0.to_q.weight"
    saved = load_file(file)
    for wrong in (torch.ones(7, 64), torch.ones(0, 64), torch.ones(64, 64, 2), torch.tensor(1.0), torch.ones(32, 64)):
        save_file(saved | {name: wrong}, file)
        with pytest.raises(SpectralError, match=f"{WEIGHTS}: {name}.* shape"):
            diffusers_folder.read(folder, AS_SAID)


def test_a_folder_of_another_pipeline_is_named(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(SpectralError, match="is a 'FluxPipeline' without unet/"):
        diffusers_folder.read(tmp_path, AS_SAID)


def test_what_is_no_folder_of_diffusers_is_none(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "loop", tmp_path / "file", tmp_path / "nothing", Path("a\0b")):
        assert not diffusers_folder.is_folder(path)
    with pytest.raises(SpectralError, match="is no diffusers folder"):
        diffusers_folder.read(tmp_path, AS_SAID)


def test_a_checkpoint_opens_a_folder(whole: Path, tensors: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(whole)
    opened = checkpoint.load(Path())
    assert opened.config == MODELS["clip"] and opened.unet is not None
    assert all(torch.equal(value, tensors[UNET + name]) for name, value in opened.unet.state_dict().items())


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from([1, 2, 32, 64]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    names = {"clip": "clip", "ldm": "ldm", "class": "class", "unconditional": "unconditional, KL"}
    place = tmp_path_factory.mktemp("folders")
    return {
        short: diffusers_folder.write(place / short, MODELS[name], in_ldm(**modules(MODELS[name])))
        for short, name in names.items()
    }


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_no_setting_whatever_its_value_is_more_than_a_sentence(data: st.DataObject, folders: dict[str, Path]) -> None:
    folder = folders[data.draw(st.sampled_from(sorted(folders)))]
    file = data.draw(st.sampled_from(sorted(folder.glob("*/*.json"))))
    before = file.read_text()
    keys = data.draw(st.lists(st.sampled_from(sorted(json.loads(before))), min_size=1, max_size=3))
    try:
        edit(file, **{key: data.draw(st.just(...) | _JSON) for key in keys})
        source = diffusers_folder.read(folder, AS_SAID)
        checkpoint.check(source.config, folder.name)
    except SpectralError as error:
        assert len(str(error)) < 700
        str(error).encode()
    finally:
        file.write_text(before)


# --- what cannot be written ---


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"resampler": "wavelet"}, "no wavelet-gated U-Net"),
        ({"channel_mult": (2, 4)}, "channel_mult starts with 2"),
        ({"resblock_updown": True, "use_spatial_transformer": True, "context_dim": 32}, "resblock_updown"),
        ({"model_channels": 0}, "must all be at least 1"),
    ],
)
def test_a_unet_that_diffusers_has_not_is_refused(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    base = MODELS["unconditional"]
    assert base.unet is not None
    config = replace(base, unet=replace(base.unet, **changes))
    possible = in_ldm(**modules(config)) if "model_channels" not in changes else {}
    with pytest.raises(SpectralError, match=says):
        diffusers_folder.write(tmp_path / "model", config, possible)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("changes", [{"ch_mult": (2, 2)}, {"embed_dim": 2}])
def test_a_first_stage_that_diffusers_has_not_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    config = ModelConfig("autoencoder", None, replace(tiny.FIRST_STAGE, **changes))
    with pytest.raises(SpectralError, match=f"cannot hold this model: {next(iter(changes))}"):
        diffusers_folder.write(tmp_path / "model", config, in_ldm(**modules(config)))


def test_nothing_and_what_is_not_finite_are_refused(tmp_path: Path, tensors: dict[str, Any]) -> None:
    with pytest.raises(SpectralError, match="neither a U-Net nor a first stage"):
        diffusers_folder.write(tmp_path / "model", ModelConfig("teacher"), {})
    with pytest.raises(SpectralError, match="not finite"):
        diffusers_folder.write(tmp_path / "model", replace(MODELS["clip"], scale_factor=float("inf")), tensors)


@pytest.mark.parametrize("name", ["model.diffusion_model.out.2.bias", "cond_stage_model.transformer.text_model.x", "y"])
def test_tensors_that_do_not_fit_the_configuration_are_named(
    name: str, tmp_path: Path, tensors: dict[str, Any]
) -> None:
    wrong = dict(tensors)
    if wrong.pop(name, None) is None:
        wrong[name] = torch.ones(1)
    with pytest.raises(SpectralError, match=name.rpartition("model.")[2]):
        diffusers_folder.write(tmp_path / "model", MODELS["clip"], wrong)
    assert not list(tmp_path.iterdir())


def test_a_place_that_is_taken_is_left_alone(tmp_path: Path, tensors: dict[str, Any]) -> None:
    full, file, empty = tmp_path / "full", tmp_path / "file", tmp_path / "empty"
    full.mkdir()
    empty.mkdir()
    (full / "mine").write_text("mine")
    file.write_text("mine")
    for path in (full, file):
        with pytest.raises(SpectralError, match="exists already"):
            diffusers_folder.write(path, MODELS["clip"], tensors)
    with pytest.raises(SpectralError, match="could not be written"):
        diffusers_folder.write(file / "model", MODELS["clip"], tensors)
    assert (full / "mine").read_text() == file.read_text() == "mine"
    assert diffusers_folder.is_folder(diffusers_folder.write(empty, MODELS["clip"], tensors))


def test_a_failure_on_the_way_leaves_nothing(
    tmp_path: Path, tensors: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(diffusers_writer, "save_file", full)
    with pytest.raises(SpectralError, match="No space left"):
        diffusers_folder.write(tmp_path / "model", MODELS["clip"], tensors)
    assert not list(tmp_path.iterdir())


def test_weights_are_stored_in_the_type_that_is_asked_for(tmp_path: Path, tensors: dict[str, Any]) -> None:
    folder = diffusers_folder.write(tmp_path / "model", MODELS["clip"], tensors, torch.float16)
    assert {value.dtype for value in load_file(folder / WEIGHTS).values()} == {torch.float16}
    plain = tmp_path / "plain"
    plain.touch()
    assert (folder / WEIGHTS).stat().st_mode == plain.stat().st_mode
