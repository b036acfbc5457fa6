"""Whatever reaches a node of the pack: an image, or a sentence that a person can act on; the server stays up."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from . import attacks, many
from .attacks import Attack
from .server import ComfyServer

pytestmark = pytest.mark.usefixtures("hostile", "staged")


def wrong_answers(comfy: ComfyServer, made: Iterable[Attack]) -> dict[str, str]:
    """By the names of those that are answered badly, what the server says; all are in the queue at once."""
    assert comfy.process is not None
    todo = list(made)
    messages = [run.message for run in many.run_all(comfy, [attack.prompt for attack in todo])]
    assert comfy.process.poll() is None
    answered = zip(todo, messages, strict=True)
    return {
        attack.name: message
        for attack, message in answered
        if not (attacks.is_sentence(message) and re.search(attack.says, message))
    }


def test_every_node_is_attacked(object_info: dict[str, Any]) -> None:
    assert set(attacks.HOMES) == {name for name in object_info if name.startswith("SpectralDiffusion")}


def test_what_is_attacked_works_by_itself(comfy: ComfyServer) -> None:
    runs = many.run_all(comfy, [home.prompt for home in attacks.HOMES.values()])
    assert {kind: run.message for kind, run in zip(attacks.HOMES, runs, strict=True) if run.error} == {}
    shown = {"images", "spectral_chart", "text"}
    assert all(any(shown & set(output) for output in run.outputs.values()) for run in runs)


def test_wrong_values_and_links_at_every_input(comfy: ComfyServer, object_info: dict[str, Any]) -> None:
    (behind_optional,) = many.run_all(comfy, [attacks.BEHIND_OPTIONAL])
    all_checked = re.match(attacks.CORE, behind_optional.message) is not None
    made = list(attacks.on_every_input(object_info, all_checked=all_checked))
    assert len(made) > 500
    assert wrong_answers(comfy, made) == {}


def test_wrong_images_latents_models_and_names(comfy: ComfyServer) -> None:
    assert wrong_answers(comfy, attacks.on_contents()) == {}


def test_wrong_latents_and_conditioning_in_the_sampler(comfy: ComfyServer) -> None:
    assert wrong_answers(comfy, attacks.in_the_sampler()) == {}


def test_what_is_only_odd_gives_an_image(comfy: ComfyServer) -> None:
    named = list(attacks.odd())
    runs = many.run_all(comfy, [prompt for _, prompt in named])
    assert {name: run.message for (name, _), run in zip(named, runs, strict=True) if run.error} == {}
    for (name, _), run in zip(named, runs, strict=True):
        shown = [output for outputs in run.outputs.values() for output in outputs.get("images", [])]
        assert shown, name
        assert all(np.asarray(comfy.image(output)).std() > 0 for output in shown), name


@pytest.mark.parametrize(
    "said", ["'NoneType' object has no attribute 'model'", "list index out of range", "'auto'", ""]
)
def test_what_python_says_is_no_sentence(said: str) -> None:
    assert not attacks.is_sentence(said)
