"""BERT's WordPiece tokens, which LDM's own text encoder reads, from a vocabulary on this machine; nothing is fetched.

`training.wordpiece` does the same for captions; here the tokenizer has the few methods that ComfyUI asks of one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import folder_paths

from ..spectral.config import ConditioningConfig
from ..spectral.errors import SpectralError
from . import files

#: Names vocab.txt, or the folder that holds it.
VARIABLE = "SPECTRAL_DIFFUSION_BERT_VOCAB"
NAME = "bert-base-uncased"
#: Under which another program that used BERT may have kept its vocabulary.
CACHED = ("google-bert/bert-base-uncased", "bert-base-uncased")
ADVICE = (
    f"download https://huggingface.co/google-bert/bert-base-uncased/resolve/main/vocab.txt, put it at "
    f"models/spectral_diffusion/{NAME}/vocab.txt of ComfyUI and queue again"
)
#: Begins a text, ends it, stands for what is no word, fills up.
CLS, SEP, UNK, PAD = SPECIAL = ("[CLS]", "[SEP]", "[UNK]", "[PAD]")


class VocabularyError(SpectralError):
    """BERT's vocabulary is not on this machine, or is not the one that an encoder needs."""


class Tokenizer:
    """What `comfy.sd1_clip.SDTokenizer` needs of a tokenizer: text → ids with [CLS] and [SEP], and the vocabulary.

    Args:
        path: vocab.txt, one token a line.

    Raises:
        VocabularyError: it cannot be read, or it is no BERT vocabulary.
    """

    def __init__(self, path: Path) -> None:
        from tokenizers import BertWordPieceTokenizer  # comes with transformers, which ComfyUI needs

        try:
            words = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise VocabularyError(f"{path} is no vocabulary that can be read ({error}); {ADVICE}.") from error
        if words[0] != PAD or any(word not in words for word in SPECIAL):
            raise VocabularyError(f"{path} is not the vocabulary of bert-base-uncased, one token a line; {ADVICE}.")
        self.path = path
        self.vocabulary = {word: index for index, word in enumerate(words)}
        self._tokenizer = BertWordPieceTokenizer(self.vocabulary, lowercase=True)

    @classmethod
    def for_encoder(cls, config: ConditioningConfig) -> Tokenizer:
        """The tokenizer that an encoder was trained with.

        Raises:
            VocabularyError: there is none on this machine, or it has another number of tokens.
        """
        tokenizer = cls(find_vocabulary())
        if len(tokenizer.vocabulary) != config.vocabulary:
            raise VocabularyError(
                f"{tokenizer.path} holds {len(tokenizer.vocabulary)} tokens, the checkpoint's text encoder knows "
                f"{config.vocabulary}; {ADVICE}."
            )
        return tokenizer

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
    named = os.environ.get(VARIABLE)
    if named:
        found = Path(named, "vocab.txt") if os.path.isdir(named) else Path(named)
        if not found.is_file():
            raise VocabularyError(f"{VARIABLE} names {named}, but there is no vocabulary; correct it, or {ADVICE}.")
        return found
    for folder in _model_folders():
        for place in (folder / NAME / "vocab.txt", folder / "google-bert" / NAME / "vocab.txt"):
            if place.is_file():
                return place
    cached = _cached()
    if cached is None:
        raise VocabularyError(
            "The checkpoint's text encoder reads BERT's tokens, whose vocabulary is not on this machine; "
            + ADVICE
            + "."
        )
    return cached


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


def _cached() -> Path | None:
    """vocab.txt of a repository that was downloaded before; looks at the disk alone."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    for repository in CACHED:
        found = try_to_load_from_cache(repository, "vocab.txt")
        if isinstance(found, str):
            return Path(found)
    return None
