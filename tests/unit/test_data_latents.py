"""Latents held in memory, and cached in a folder: against the first stage itself, and through kills and damage."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from spectral_diffusion.spectral import autoencoder, checkpoint
from spectral_diffusion.spectral.autoencoder import AutoencoderKL, FirstStage
from spectral_diffusion.spectral.config import FirstStageConfig, ModelConfig
from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.training import cli
from spectral_diffusion.training.data import caching
from spectral_diffusion.training.data.batches import Batch, batches
from spectral_diffusion.training.data.config import DataConfig
from spectral_diffusion.training.data.dataset import as_latents, open_data, open_images
from spectral_diffusion.training.data.images import Images
from spectral_diffusion.training.data.latents import HeldLatents, encode, first_stage_sha256, latents_of
from spectral_diffusion.training.data.latents_folder import CachedLatents
from spectral_diffusion.training.data.order import Plan

from . import tiny
from .test_data_images import noise

VQ = FirstStageConfig("vq", 3, 3, 32, (1, 1), num_res_blocks=1, resolution=16, n_embed=16)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.pictures(tmp_path_factory.mktemp("data"), 11)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    about = ModelConfig("autoencoder", first_stage=tiny.FIRST_STAGE, scale_factor=0.5)
    return tiny.write(tmp_path_factory.mktemp("stage") / "autoencoder.safetensors", about)


def opened_stage(path: Path) -> FirstStage:
    return caching.open_first_stage(path, torch.device("cpu"))[0]


def command(pictures: Path | str, stage: Path, out: Path, *more: str) -> list[str]:
    given = ["--data", str(pictures), "--first-stage", str(stage), "--out", str(out), "--shard-size", "4"]
    return ["data", "cache", *given, "--batch", "2", "--workers", "0", "--size", "16", *more]


def cached(pictures: Path, stage: Path, out: Path, *more: str) -> Path:
    assert cli.main(command(pictures, stage, out, *more)) == 0
    return out


def opened(folder: Path, **settings: Any) -> CachedLatents:
    data = open_data(DataConfig(str(folder), **{"size": 16, **settings}))
    assert isinstance(data, CachedLatents)
    return data


def batch_of(data: Any, indices: list[int], epoch: int = 0, seed: int = 0) -> Batch:
    loaded = data.load(Plan([(epoch, index) for index in indices]), seed).batch
    assert loaded is not None
    return loaded  # type: ignore[no-any-return]


def refusal(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(argv) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    return said


def floats(images: Images) -> Tensor:
    """All of them, in [−1, 1]."""
    return images.preview_samples(len(images))["image"].float().div_(127.5).sub_(1.0)  # type: ignore[no-any-return]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_moments_are_the_first_stages_own(dtype: str, pictures: Path, stage: Path, tmp_path: Path) -> None:
    """Bit for bit what `posterior` gives for the same batches, also of the mirrored images."""
    folder = cached(pictures, stage, tmp_path / "out", "--dtype", dtype, "--flip")
    first_stage, images = opened_stage(stage), open_images(DataConfig(str(pictures), 16))
    assert isinstance(first_stage, AutoencoderKL)
    data = opened(folder, flip=True)
    assert (
        len(data) == 11
        and list(data.captions) == list(images.captions)
        and list(data.subgroups) == list(images.subgroups)
    )
    seen = set()
    for start, end in ((0, 2), (2, 4), (4, 6), (6, 8), (8, 10), (10, 11)):
        expected = {}
        for mirrored in (False, True):
            pixels = floats(images)[start:end]
            with torch.no_grad():
                moments = torch.cat(first_stage.posterior(pixels.flip(-1) if mirrored else pixels), 1)
            expected[mirrored] = moments.to(getattr(torch, dtype))
            for index in range(start, end):
                assert torch.equal(data.row(index, mirrored), expected[mirrored][index - start])
        for epoch in range(6):
            (row,) = batch_of(data, [start], epoch)["moments"]
            mirrored = not torch.equal(row, expected[False][0])
            assert torch.equal(row, expected[mirrored][0])
            seen.add(mirrored)
    assert seen == {False, True}
    batch = batch_of(data, [3, 9])
    assert batch["index"].tolist() == [3, 9] and batch["caption"] == [images.captions[3], images.captions[9]]


def test_latents_of_a_vq_first_stage_are_taken_before_quantising(pictures: Path, tmp_path: Path) -> None:
    path = tiny.write(tmp_path / "vq.safetensors", ModelConfig("autoencoder", first_stage=VQ))
    folder = cached(pictures, path, tmp_path / "out", "--dtype", "float32", "--batch", "4")
    images = open_images(DataConfig(str(pictures), 16))
    with torch.no_grad():
        expected = opened_stage(path).encode(floats(images)[4:8])
    batch = batch_of(opened(folder), [4, 5, 6, 7])
    assert torch.equal(batch["latent"], expected) and torch.equal(latents_of(batch), expected)


def test_latents_in_memory_are_what_they_were(pictures: Path, stage: Path) -> None:
    first_stage = opened_stage(stage)
    held = HeldLatents(open_images(DataConfig(str(pictures), 16)), first_stage)
    with torch.no_grad():
        expected = first_stage.encode(floats(held.images))
    torch.testing.assert_close(latents_of(batch_of(held, list(range(11)))), expected)
    assert held.sha256 == open_data(DataConfig(str(pictures), 16)).sha256 and held.in_memory
    with pytest.raises(SpectralError, match=r"set data\.crop to centre"):
        HeldLatents(open_images(DataConfig(str(pictures), 16, crop="random")), first_stage)


def test_what_takes_the_place_of_a_corrupt_image_brings_its_own_caption(stage: Path, tmp_path: Path) -> None:
    """In memory, as when it is read anew; a run names what was found, and too much of it before anything is encoded."""
    pictures, first_stage = tiny.pictures(tmp_path / "data", 8), opened_stage(stage)
    for name in ("blue-2", "blue-4", "red-7"):
        (pictures / name.split("-")[0] / f"{name}.png").write_bytes(b"")
    images = open_images(DataConfig(str(pictures), 16, flip=True, max_corrupt=3))
    held = as_latents(images, first_stage, "stage", tmp_path / "run")
    assert isinstance(held, HeldLatents)
    for epoch in range(4):
        one, other = batch_of(images, list(range(8)), epoch), batch_of(held, list(range(8)), epoch)
        assert one["index"].tolist() == other["index"].tolist() == [0, 3, 3, 3, 4, 5, 6, 0]
        assert one["caption"] == other["caption"] and one["label"] == other["label"]
        torch.testing.assert_close(encode(first_stage, one["image"]), other["moments"])
    log = tmp_path / "run" / "corrupt.log"
    assert len(log.read_text().splitlines()) == 3
    few = open_images(DataConfig(str(pictures), 16, max_corrupt=2))
    with pytest.raises(SpectralError, match=r"3 of the images of .* cannot be read.*2 allows; all are named in .*log"):
        as_latents(few, first_stage, "stage", tmp_path / "run")
    assert len(log.read_text().splitlines()) == 3


def test_a_posterior_is_drawn_from(pictures: Path, stage: Path) -> None:
    batch = batch_of(HeldLatents(open_images(DataConfig(str(pictures), 16)), opened_stage(stage)), [0] * 4000)
    mean, log_variance = batch["moments"][0].chunk(2)
    generator = torch.Generator().manual_seed(0)
    drawn = latents_of(batch, normal=lambda shape: torch.randn(4000, *shape, generator=generator))
    error = (drawn.mean(0) - mean).abs() / (0.5 * log_variance).exp()
    assert error.max() < 5 / 4000**0.5 and torch.allclose(drawn.var(0), log_variance.exp(), rtol=0.15)


def test_the_order_is_that_of_the_images(pictures: Path, stage: Path, tmp_path: Path) -> None:
    data, images = opened(cached(pictures, stage, tmp_path / "out")), open_data(DataConfig(str(pictures), 16))
    one, other = batches(data, 3, seed=2, start=4), batches(images, 3, seed=2, start=4)
    assert all(torch.equal(next(one)["index"], next(other)["index"]) for _ in range(9))
    mapped = opened(tmp_path / "out", cache="off")
    third = batches(mapped, 3, seed=2, start=13, workers=1)
    assert not mapped.in_memory and torch.equal(next(third)["moments"], next(one)["moments"])
    third.close()
    again = pickle.loads(pickle.dumps(mapped))
    assert torch.equal(again.row(5, False), mapped.row(5, False))


def test_groups_can_be_chosen_afterwards(pictures: Path, stage: Path, tmp_path: Path) -> None:
    folder = cached(pictures, stage, tmp_path / "out")
    red = opened(folder, subgroups=("re*",))
    assert set(red.subgroups) == {"red"} and len(red) == 5
    assert torch.equal(red.row(0, False), opened(folder).row(6, False)) and red.sha256 != opened(folder).sha256
    with pytest.raises(SpectralError, match="holds no latents in the groups green"):
        opened(folder, subgroups=("green",))


def test_corrupt_images_are_left_out(pictures: Path, stage: Path, tmp_path: Path, capsys: Any) -> None:
    data = tiny.pictures(tmp_path / "data", 11)
    for name in ("blue/blue-0.png", "blue/blue-2.png", "red/red-9.png"):
        (data / name).write_bytes(b"nothing")
    said = refusal(command(data, stage, tmp_path / "none", "--max-corrupt", "0"), capsys)
    assert said.startswith("1 of the images") and "corrupt.log" in said
    assert not list((tmp_path / "none").glob("*.safetensors"))
    folder = cached(data, stage, tmp_path / "out", "--max-corrupt", "3", "--json")
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["samples"] == 8 and report["corrupt"] == 3
    left, whole = opened(folder), opened(cached(pictures, stage, tmp_path / "whole"))
    assert len(left) == 8 and left.captions[0] == "blue 10"
    assert torch.allclose(left.row(0, False), whole.row(1, False), atol=1e-2)
    logged = [json.loads(line)["file"] for line in (folder / "corrupt.log").read_text().splitlines()]
    assert sorted(logged) == [str(data / name) for name in ("blue/blue-0.png", "blue/blue-2.png", "red/red-9.png")]


def test_a_first_stage_is_known_by_its_numbers(stage: Path, pictures: Path, tmp_path: Path) -> None:
    """In another file, of another type, with another decoder: the same. With other numbers: refused."""
    first_stage, _ = caching.open_first_stage(stage, torch.device("cpu"))
    data = opened(cached(pictures, stage, tmp_path / "out"))
    data.check_first_stage(first_stage, "itself")
    unet = replace(tiny.UNCONDITIONAL, resampler="conv")
    whole = ModelConfig("teacher", unet, tiny.FIRST_STAGE)
    checkpoint.save(tmp_path / "t.safetensors", whole, unet=tiny.randomized(tiny.UNet(unet)), first_stage=first_stage)
    data.check_first_stage(opened_stage(tmp_path / "t.safetensors"), "t.safetensors")
    decoder = autoencoder.build(tiny.FIRST_STAGE)
    decoder.load_state_dict(first_stage.state_dict())
    torch.nn.init.ones_(decoder.decoder.conv_out.bias)
    assert first_stage_sha256(decoder) == first_stage_sha256(first_stage)
    other = tiny.randomized(autoencoder.build(tiny.FIRST_STAGE), 7)
    with pytest.raises(
        SpectralError, match=r"latents of another first stage .* than that of other\.ckpt .*data cache --f"
    ):
        data.check_first_stage(other, "other.ckpt")


def in_buckets(folder: Path) -> Path:
    folder.mkdir()
    for index in range(30):
        noise([(40, 20), (20, 40), (30, 30)][index % 3], index).save(folder / f"{index:02d}.png")
    return folder


def test_buckets_keep_their_sizes(stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caching, "LEAST", 5)
    folder = cached(
        in_buckets(tmp_path / "data"), stage, tmp_path / "out", "--buckets", "--multiple", "4", "--batch", "4"
    )
    data = opened(folder, buckets=True)
    found = batches(data, 4, seed=0)
    sizes = {tuple(batch["moments"].shape[2:]) for batch in (next(found) for _ in range(12))}
    assert len(sizes) == 3 and len(data) == 30 and data.captions[7] == "07"
    assert data.preview_samples(30)["moments"].shape[0] == 10
    with pytest.raises(SpectralError, match=r"holds images of several aspects; set data\.buckets to true"):
        opened(folder)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"size": 32}, r"latents of images of 16 pixels, data\.size is 32; set it to 16"),
        ({"flip": True}, r"holds no mirrored images; leave data\.flip out, or cache again with --flip"),
        ({"crop": "random"}, r"latents of centre crops; set data\.crop to centre"),
        ({"buckets": True}, r"holds squares; set data\.buckets to false"),
    ],
)
def test_what_contradicts_the_folder_is_refused(
    settings: dict[str, Any], says: str, pictures: Path, stage: Path, tmp_path: Path
) -> None:
    with pytest.raises(SpectralError, match=says):
        opened(cached(pictures, stage, tmp_path / "out"), **settings)


def remove(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def without_rows(path: Path) -> None:
    save_file({name: tensor[1:].clone() for name, tensor in load_file(path).items()}, path)


def without_moments(path: Path) -> None:
    save_file({"index": load_file(path)["index"]}, path)


@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        ("latents-00001.safetensors", remove, r"No shard of latents at .*latents-00001\.safetensors; restore it"),
        ("latents-00001.safetensors", cut, r"latents-00001\.safetensors is damaged"),
        ("latents-00001.safetensors", empty, r"latents-00001\.safetensors is damaged"),
        ("latents-00001.safetensors", without_rows, r"latents-00001\.jsonl is not of latents-00001\.safetensors"),
        ("latents-00001.safetensors", without_moments, r"latents-00001\.safetensors does not hold what its index says"),
        ("latents-00002.jsonl", remove, r"latents-00002\.jsonl is missing or damaged"),
        ("latents-00002.jsonl", cut, r"latents-00002\.jsonl is missing or damaged"),
        ("latents-00002.jsonl", empty, r"latents-00002\.jsonl is not of latents-00002\.safetensors"),
        ("index.json", cut, r"index\.json cannot be read"),
    ],
)
def test_a_damaged_folder_is_a_sentence(
    name: str, damage: Callable[[Path], None], says: str, pictures: Path, stage: Path, tmp_path: Path
) -> None:
    """And what is missing of a shard is made again."""
    folder = cached(pictures, stage, tmp_path / "out")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    damage(folder / name)
    with pytest.raises(SpectralError, match=says):
        opened(folder)
    if name != "index.json":
        cached(pictures, stage, folder)
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_newer_format_is_refused(pictures: Path, stage: Path, tmp_path: Path) -> None:
    folder = cached(pictures, stage, tmp_path / "out")
    about = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(about | {"version": 2}))
    with pytest.raises(SpectralError, match=r"is of version 2 of the format, this kit reads 1; update the kit"):
        opened(folder)


def test_another_folder_is_not_mixed_in(pictures: Path, stage: Path, tmp_path: Path, capsys: Any) -> None:
    folder = cached(pictures, stage, tmp_path / "out")
    other = tiny.pictures(tmp_path / "other", 4)
    vq = tiny.write(tmp_path / "vq.safetensors", ModelConfig("autoencoder", first_stage=VQ))
    assert "was begun with other images; choose another folder" in refusal(command(other, stage, folder), capsys)
    assert "was begun with another first stage; choose" in refusal(command(pictures, vq, folder), capsys)
    more = command(pictures, stage, folder, "--flip")
    assert "was begun with flip False, not True; choose another folder" in refusal(more, capsys)
    (folder / "index.json").unlink()
    assert "holds latents without an index.json" in refusal(command(pictures, stage, folder), capsys)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--size", "15"], "needs multiples of 2"),
        (["--batch", "0"], "--batch is 0; expected at least 1"),
        (["--data", "missing"], "No data at missing"),
        (["--first-stage", "missing"], "No checkpoint at missing"),
        (["--dtype", "int8"], "dtype"),
    ],
)
def test_settings_that_cannot_be_are_a_sentence(
    more: list[str], says: str, pictures: Path, stage: Path, tmp_path: Path, capsys: Any
) -> None:
    assert says in refusal(command(pictures, stage, tmp_path / "out", *more), capsys)
    assert not (tmp_path / "out").exists()


def test_killed_at_any_moment_it_goes_on(stage: Path, tmp_path: Path, capsys: Any) -> None:
    """By SIGKILL, once two shards are there; what was there stays, and the end is as if it had never happened."""
    pictures = tiny.pictures(tmp_path / "data", 120)
    folder, argv = tmp_path / "killed", [sys.executable, "-m", "spectral_diffusion.training"]
    more = ["--shard-size", "8", "--batch", "1"]
    process = subprocess.Popen([*argv, *command(pictures, stage, folder, *more)], stderr=subprocess.DEVNULL)
    while not (folder / "latents-00001.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = {path: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    assert 2 <= len(done) < 15
    with pytest.raises(SpectralError, match="is not finished; run the same data cache command again"):
        opened(folder)
    cached(pictures, stage, folder, *more)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    whole = cached(pictures, stage, tmp_path / "whole", *more)
    names = sorted(path.name for path in whole.iterdir())
    assert names == sorted(path.name for path in folder.iterdir() if not path.name.endswith(".partial"))
    assert all((whole / name).read_bytes() == (folder / name).read_bytes() for name in names)
    assert not (folder / "latents-00000.safetensors.partial").exists()


def test_two_processes_write_what_one_does(pictures: Path, stage: Path, tmp_path: Path) -> None:
    module = "spectral_diffusion.training.data"
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m", module]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*launch, *command(pictures, stage, tmp_path / "two")[1:], "--json"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=180,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1])["samples"] == 11 and len(result.stdout.splitlines()) == 1
    one = cached(pictures, stage, tmp_path / "one")
    assert {file.name: file.read_bytes() for file in one.iterdir()} == {
        file.name: file.read_bytes() for file in (tmp_path / "two").iterdir()
    }
