"""BERT's tokens inside ComfyUI, for LDM's own text encoder: the few methods that ComfyUI asks of a tokenizer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import folder_paths

from ..spectral import wordpiece
from ..spectral.config import ConditioningConfig
from ..spectral.wordpiece import VocabularyError
from . import files

NAME = "bert-base-uncased"
ADVICE = f"download {wordpiece.URL}, put it at models/spectral_diffusion/{NAME}/vocab.txt of ComfyUI and queue again"


class Tokenizer:
    """What `comfy.sd1_clip.SDTokenizer` needs of a tokenizer: text → ids with [CLS] and [SEP], and the vocabulary.

    Args:
        config: of the encoder that the tokens are for.

    Raises:
        VocabularyError: there is no vocabulary on this machine, or it is not the encoder's.
    """

    def __init__(self, config: ConditioningConfig) -> None:
        from tokenizers import BertWordPieceTokenizer  # comes with transformers, which ComfyUI needs

        self.path = find_vocabulary()
        self.vocabulary = wordpiece.read_vocabulary(self.path, config.vocabulary, ADVICE)
        self._tokenizer = BertWordPieceTokenizer(self.vocabulary, lowercase=True)

    def __call__(self, text: str, *_args: Any, **_kwargs: Any) -> dict[str, list[int]]:
        return {"input_ids": self._tokenizer.encode(text).ids}

    def get_vocab(self) -> dict[str, int]:
        """Token → id."""
        return self.vocabulary


def find_vocabulary() -> Path:
    """vocab.txt: where the environment says, in ComfyUI's model folders, or in the cache of Hugging Face.

    Raises:
        VocabularyError: it is nowhere; the sentence says where to get it and where to put it.
    """
    folders = [folder / parent for folder in _model_folders() for parent in (NAME, f"google-bert/{NAME}")]
    return wordpiece.find_vocabulary(ADVICE, places=[folder / "vocab.txt" for folder in folders])


def fingerprint() -> str:
    """Changes when somebody puts the vocabulary where `find_vocabulary` looks, or puts another one there."""
    try:
        return files.fingerprint(find_vocabulary())
    except VocabularyError:
        return ""


def _model_folders() -> list[Path]:
    """models/spectral_diffusion, and where text encoders lie: text_encoders, which was called clip before 2025."""
    known = folder_paths.folder_names_and_paths
    paths = [path for key in ("spectral_diffusion", "text_encoders", "clip") if key in known for path in known[key][0]]
    return [Path(path) for path in (*paths, os.path.join(folder_paths.models_dir, "text_encoders"))]
