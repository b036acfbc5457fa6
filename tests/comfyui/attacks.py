"""Prompts that cannot give an image, each wrong in another way, and what the server has to say about it.

`on_every_input` is made of `homes.HOMES`, a prompt around every node of the pack, and of what the server says about the
nodes' inputs. What is wrong inside of images, latents, conditioning, models and names has a function each.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from . import prompts
from .homes import CLASS, HOMES, Home, changed, with_lora
from .prompts import DECODE, LATENT, LOADER, SAMPLER, Link, node
from .server import Prompt

#: What Python or torch say to a programmer; no person can act on it.
BARE = re.compile(
    r"'\w+' object|object is not|NoneType|out of range|shapes? (cannot|'?\[)|must match|Given (groups|normalized)|"
    r"(un)?supported operand|unexpected keyword|missing \d+ required|positional argument|Traceback|Error\b|"
    r"must be (a |an )?(str|real number|Tensor|int)|not (str|int|float|NoneType|list|dict)\b|stat: |File name too long|"
    r"embedded null|codec can't|dimension|size mismatch|Sizes of tensors|not supported between|tensor\(|^'?\w+'?$"
)
#: How core begins its own answers to values and links that do not go into an input.
CORE = (
    r"Value (not in list|-?(\d|inf)\S* (smaller|bigger) than)|Failed to convert|Required input is missing|"
    r"Return type mismatch|Bad linked input|Exception when validating"
)


@dataclass(frozen=True)
class Attack:
    """A prompt, and a regular expression of which the answer must hold a match."""

    name: str
    prompt: Prompt
    says: str


def is_sentence(message: str) -> bool:
    """Whether a person can act on an answer: a sentence of the pack, or what core says about an input."""
    return bool(re.search(CORE, message)) or (message.endswith(".") and not BARE.search(message))


# --- every input of every node ---

_NUMBERS = (float("nan"), float("inf"), -float("inf"), 1e300, -1e300, "abc", None, {}, [])
_NAMES = ("../../../../../etc/passwd", "/etc/passwd", "", "nul\0", "x" * 5000, "x/" * 3000, "\ud800", 5, None, {}, [])
_OBJECTS = (5, "text", None, {}, [])
_WRONG = {"INT": _NUMBERS, "FLOAT": _NUMBERS, "COMBO": _NAMES, "BOOLEAN": ()}


#: An attack for which the answer shows whether core looks at what lies behind optional links.
BEHIND_OPTIONAL = changed(HOMES["SpectralDiffusionWaveletBands"].prompt, "bands", low="abc")


def on_every_input(object_info: dict[str, Any], *, all_checked: bool) -> Iterator[Attack]:
    """Wrong values, as a widget would give them and as a link does, and links that lead nowhere or to another type.

    Args:
        object_info: what the server says about its nodes.
        all_checked: whether core looks at what lies behind optional links. ComfyUI of 2024 does not, and a link
            there that is none ends its worker before any node is asked.
    """
    for kind, home in HOMES.items():
        for group in ("required", "optional"):
            for name, (type_, *_) in object_info[kind]["input"].get(group, {}).items():
                required = group == "required"
                title = f"{kind.removeprefix('SpectralDiffusion')}.{name}"
                # Nor does it look at optional inputs themselves.
                yield from _values(home, title, name, type_, required, all_checked or (required and not home.optional))
                if required and (all_checked or not home.optional):
                    yield from _links(home, title, name)


def _values(home: Home, title: str, name: str, type_: Any, required: bool, checked: bool) -> Iterator[Attack]:
    says = f"{name}|There is no (checkpoint|LoRA)"
    for value in _WRONG.get("COMBO" if isinstance(type_, list) else type_, _OBJECTS):
        if type_ == "STRING":  # core makes a text of whatever a widget gives
            if value != "text" and (required or value is not None):
                yield Attack(f"{title} is linked to {value!r:.30}", linked(home.prompt, home.place, name, value), says)
            continue
        if required or value is not None:
            shown = repr(value)[:30]
            # Core takes a list for a link.
            plain = says if value != [] else f"{says}|Exception when validating"
            if checked or value != []:
                yield Attack(f"{title} is {shown}", changed(home.prompt, home.place, **{name: value}), plain)
            yield Attack(f"{title} is linked to {shown}", linked(home.prompt, home.place, name, value), says)


def _links(home: Home, title: str, name: str) -> Iterator[Attack]:
    without = copy.deepcopy(home.prompt)
    del without[home.place]["inputs"][name]
    yield Attack(f"{title} is missing", without, f"Required input is missing: {name}")
    links: dict[str, Link] = {"a node that is not there": ["nowhere", 0], "slot 99": ["images", 99]}
    for where, link in links.items():
        prompt = changed(home.prompt, home.place, **{name: link})
        prompt["images"] = prompt.get("images") or node("ProbeImage", shape="1,64,64,3", fill="noise")
        yield Attack(f"{title} is linked to {where}", prompt, "Exception when validating")


def linked(prompt: Prompt, place: str, name: str, value: Any) -> Prompt:
    """The prompt with a value that reaches one input by a link, which core does not look at."""
    made = changed(prompt, place, **{name: ["value", 0]})
    made["value"] = node("ProbeValue", value=json.dumps(value))
    return made


# --- what is wrong with images, latents, conditioning, models, files ---


def _probed(home: Home, name: str, kind: str, **inputs: str) -> Prompt:
    """The prompt of a home with one input from a probe."""
    made = changed(home.prompt, home.place, **{name: ["probe", 0]})
    made["probe"] = node(kind, **inputs)
    return made


def _decoded(shape: str, fill: str = "noise", model: str = "text", kind: str = "VAEDecode", **inputs: int) -> Prompt:
    return {
        LOADER: node("SpectralDiffusionLoadCheckpoint", checkpoint=f"{model}.safetensors"),
        "probe": node("ProbeLatent", shape=shape, fill=fill),
        DECODE: node(kind, samples=["probe", 0], vae=[LOADER, 2], **inputs),
        "save": node("SaveImage", images=[DECODE, 0], filename_prefix="attack"),
    }


def _encoded(shape: str, fill: str = "noise", kind: str = "VAEEncode", **inputs: int) -> Prompt:
    return {
        LOADER: node("SpectralDiffusionLoadCheckpoint", checkpoint="text.safetensors"),
        "probe": node("ProbeImage", shape=shape, fill=fill),
        "encode": node(kind, pixels=["probe", 0], vae=[LOADER, 2], **inputs),
        "save": node("SaveLatent", samples=["encode", 0], filename_prefix="attack"),
    }


def _sampled(kind: str = "text", **inputs: str) -> Prompt:
    """From a latent that a probe makes."""
    home = Home(prompts.generate(kind, steps=1), SAMPLER)
    return _probed(home, "latent_image", "ProbeLatent", **{"fill": "noise", **inputs})


def _named(name: Any, kind: str = "SpectralDiffusionLoadCheckpoint") -> Prompt:
    home = HOMES[kind]
    field = "checkpoint" if kind.endswith("Checkpoint") else "lora_name"
    return changed(home.prompt, home.place, **{field: name})


_RADIAL = HOMES["SpectralDiffusionRadialSpectrum"]
_POWER = HOMES["SpectralDiffusionPowerSpectrum"]
_COMPARE = HOMES["SpectralDiffusionCompareSpectra"]


def on_contents() -> Iterator[Attack]:
    """What is wrong with a thing's content, and not with its type."""
    yield from _images()
    yield from _latents()
    yield from _models()
    yield from _names()


def _images() -> Iterator[Attack]:
    shapes = {"no image": "0,64,64,3", "no pixels": "1,0,0,3", "no channels": "1,64,64,0", "one pixel": "1,1,1,3"}
    shapes |= {"no batch": "64,64,3", "a video": "1,2,64,64,3"}
    fills = {"NaN": "nan", "one NaN": "nan once", "infinity": "inf", "1e30": "1e30"}
    made = {key: {"shape": shape, "fill": "noise"} for key, shape in shapes.items()}
    made |= {key: {"shape": "1,64,64,3", "fill": fill} for key, fill in fills.items()}
    for key, probe in made.items():
        for home, name in ((_POWER, "images"), (_RADIAL, "images"), (_COMPARE, "images"), (_COMPARE, "reference")):
            title = home.prompt[home.place]["class_type"].removeprefix("SpectralDiffusion")
            yield Attack(f"{title}.{name}: {key}", _probed(home, name, "ProbeImage", **probe), "images|pixel")
    for shape in ("1,2,2,3", "1,1,64,3"):
        prompt = _probed(_COMPARE, "images", "ProbeImage", shape=shape, fill="noise")
        yield Attack(f"Compare Spectra: images of {shape}", prompt, "larger images")
    for key, probe in made.items():
        if key not in ("one pixel", "1e30", "no batch"):  # the last is too much for core's node itself
            yield Attack(f"VAE Encode: {key}", _encoded(**probe), "images|pixel")
    tiles = {"tile_size": 512, "overlap": 64, "temporal_size": 64, "temporal_overlap": 8}
    yield Attack("VAE Encode (Tiled): NaN", _encoded("1,64,64,3", "nan", "VAEEncodeTiled", **tiles), "images|pixel")
    yield Attack("VAE Encode: one pixel", _encoded("1,1,1,3"), "pixel")
    yield Attack("VAE Encode: two channels", _encoded("1,64,64,2"), "images|pixel|channels")


LATENT_SHAPES = {
    "no latent": "0,4,16,16",
    "no cells": "1,4,0,16",
    "8 channels": "1,8,16,16",
    "a plane": "4,16,16",
    "a video": "1,4,2,16,16",
}
NOT_FINITE = {"NaN": "nan", "one NaN": "nan once", "infinity": "inf"}


def _latents() -> Iterator[Attack]:
    for key, shape in LATENT_SHAPES.items():
        yield Attack(f"VAE Decode: {key}", _decoded(shape), "latent")
    tiles = {"tile_size": 512, "overlap": 64, "temporal_size": 64, "temporal_overlap": 8}
    for key, fill in NOT_FINITE.items():
        yield Attack(f"VAE Decode: {key}", _decoded("1,4,16,16", fill), "latent")
        yield Attack(f"VAE Decode (VQ): {key}", _decoded("1,3,16,16", fill, "vq"), "latent")
    yield Attack("VAE Decode (Tiled): NaN", _decoded("1,4,16,16", "nan", kind="VAEDecodeTiled", **tiles), "latent")
    yield Attack("VAE Decode (VQ): 4 channels", _decoded("1,4,16,16", model="vq"), "4 channels|has 4|3 channels")


def in_the_sampler() -> Iterator[Attack]:
    """Latents and conditioning that KSampler gives to a MODEL."""
    for key, shape in LATENT_SHAPES.items():
        yield Attack(f"KSampler: {key}", _sampled(shape=shape), "latent")
    for key, fill in NOT_FINITE.items():
        yield Attack(f"KSampler: {key}", _sampled(fill=fill, shape="1,4,16,16"), "latent")
    home = Home(prompts.generate("text", steps=1), SAMPLER)
    sides = {"width": 64, "height": 64, "strength": 1.0}
    for key, place in {"far": {"x": 512, "y": 0}, "just": {"x": 0, "y": 128}}.items():
        prompt = changed(home.prompt, SAMPLER, positive=["area", 0])
        prompt["area"] = node("ConditioningSetArea", conditioning=["positive", 0], **sides, **place)
        yield Attack(f"KSampler: an area {key} outside", prompt, "area")
    given = {
        "NaN": ("1,77,32", "nan"),
        "another width": ("1,77,768", "noise"),
        "no token": ("1,0,32", "noise"),
        "no entry": ("0,77,32", "noise"),
        "a plane": ("77,32", "noise"),
    }
    for key, (shape, fill) in given.items():
        for name in ("positive", "negative"):
            prompt = _probed(home, name, "ProbeContext", shape=shape, fill=fill)
            yield Attack(f"KSampler.{name}: {key}", prompt, "conditioning|latent")


def _models() -> Iterator[Attack]:
    core = {"model": ["core", 0]}
    for kind in ("SpectralDiffusionClassLabel", "SpectralDiffusionUnconditional"):
        home = HOMES[kind]
        prompt = {**changed(home.prompt, home.place, **core), "core": node("ProbeCoreModel")}
        yield Attack(f"{kind}: a MODEL of core", prompt, "needs a MODEL from Load Checkpoint")
    prompt = {
        **changed(with_lora(), "lora", clip=["other", 1]),
        "other": prompts.node("SpectralDiffusionLoadCheckpoint", checkpoint="class.safetensors"),
    }
    yield Attack("Load LoRA: the CLIP of a class model", prompt, "use Class Label")
    prompt = changed(with_lora(), "lora", clip=[LOADER, 2])
    yield Attack("Load LoRA: a VAE as CLIP", prompt, "clip")
    sizes = {"width": 8192, "height": 8192, "batch_size": 4096}
    yield Attack("Empty Latent: 4096 of 8192 x 8192", changed(CLASS, LATENT, **sizes), "memory")
    yield Attack("Load LoRA: a file with NaN", with_lora(lora_name="nan.safetensors"), "not finite")
    yield Attack("Load LoRA: text", with_lora(lora_name="text.safetensors"), "text.safetensors")


def _names() -> Iterator[Attack]:
    outside = ("linked/../outside.safetensors", "../outside.safetensors", "text.safetensors/../../outside.safetensors")
    for name in (*outside, "..", ".", "~/outside.ckpt", "..\\outside.ckpt", "%2e%2e/outside.ckpt", "file:///x.ckpt"):
        yield Attack(f"Load Checkpoint: {name}", _named(name), "There is no checkpoint")
    for name in (*outside[:2], "..", "../tiny.safetensors"):
        yield Attack(f"Load LoRA: {name}", _named(name, "SpectralDiffusionLoadLora"), "There is no LoRA")


# --- what looks wrong and is not ---


def _of_model(name: str, kind: str = "none", **size: int) -> Prompt:
    return changed(prompts.generate(kind, steps=1, **size), LOADER, checkpoint=name)


def _plotted(home: Home, shape: str, fill: str) -> Prompt:
    """A chart of images from a probe, shown as a picture."""
    prompt = _probed(home, "images", "ProbeImage", shape=shape, fill=fill)
    return {**prompt, "plot": node("PreviewImage", images=[home.place, 0])}


def odd() -> Iterator[tuple[str, Prompt]]:
    """Prompts that give an image, by what is odd about them."""
    texts = {"nothing": "", "100 kB": "apple " * 17000, "zero bytes": "a\0b\x1b[2J", "weights": "(((a:1e9) [b::] ))))"}
    texts |= {
        "emoji": "\U0001f34e" * 50,
        "right to left": "\u202eelppa",
        "names": "embedding:../../outside embedding:linked/../x",
    }
    for key, text in texts.items():
        yield f"a text of {key}", prompts.generate("text", steps=1, text=text)
    yield "a model in a linked folder", _of_model("linked/inside.safetensors")
    yield "a name with a detour", _of_model("linked/../none.safetensors")
    yield "a label as a text", changed(CLASS, "positive", label="3")
    yield "a label as true", changed(CLASS, "positive", label=True)
    for home in (_POWER, _RADIAL):
        yield "an alpha channel", _plotted(home, "2,64,64,4", "noise")
        yield "one channel", _plotted(home, "2,64,64,1", "noise")
    yield "too small for a slope", _plotted(_RADIAL, "1,2,2,3", "noise")
    yield "one row of pixels", _plotted(_POWER, "1,1,64,3", "noise")
    yield "pixels beyond 1", _plotted(_POWER, "1,64,64,3", "300")
    yield "no conditioning", _probed(Home(CLASS, SAMPLER), "negative", "ProbeContext", shape="", fill="noise")
    yield "the smallest picture", _of_model("emoji64-student.safetensors", "text", width=4, height=4)
    yield "a strip", prompts.generate("none", steps=1, width=512, height=4)
    yield (
        "an empty latent for a MODEL of core",
        {
            "core": node("ProbeCoreModel"),
            LATENT: node("SpectralDiffusionEmptyLatent", model=["core", 0], width=64, height=64, batch_size=1),
            **{key: value for key, value in _decoded("1,4,8,8").items() if key != "probe"},
            DECODE: node("VAEDecode", samples=[LATENT, 0], vae=[LOADER, 2]),
        },
    )
