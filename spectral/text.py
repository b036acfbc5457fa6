"""A CLIP-shaped text tower in the layout of Stable Diffusion 1.x files, so that ComfyUI's own CLIP classes read it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import ConditioningConfig

#: CLIP's vocabulary. A text is START, its tokens, END; what is left of the 77 places is filled with END.
VOCABULARY, START, END = 49408, 49406, 49407


class TextAttention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class TextMLP(nn.Module):
    """Feed-forward of four times the width, with CLIP's quick GELU x · sigmoid(1.702 x)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x)
        return self.fc2(h * torch.sigmoid(1.702 * h))


class TextLayer(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_attn = TextAttention(width, heads)
        self.layer_norm1 = nn.LayerNorm(width)
        self.mlp = TextMLP(width)
        self.layer_norm2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class TextEmbeddings(nn.Module):
    """Token plus position."""

    def __init__(self, config: ConditioningConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(VOCABULARY, config.width)
        self.position_embedding = nn.Embedding(config.context_length, config.width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding.weight, std=0.01)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.token_embedding(tokens) + self.position_embedding.weight[: tokens.shape[1]]


class TextModel(nn.Module):
    """Embeddings, layers, final normalisation."""

    def __init__(self, config: ConditioningConfig) -> None:
        super().__init__()
        self.embeddings = TextEmbeddings(config)
        self.encoder = nn.ModuleDict(
            {"layers": nn.ModuleList(TextLayer(config.width, config.heads) for _ in range(config.layers))}
        )
        self.final_layer_norm = nn.LayerNorm(config.width)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embeddings(tokens)
        for layer in self.encoder["layers"].children():
            x = layer(x)
        return self.final_layer_norm(x)


class TextTower(nn.Module):
    """Token ids [B, T] → states after the final normalisation, [B, T, width].

    The nesting is that of the files: `transformer.text_model.{embeddings,encoder,final_layer_norm}`.
    """

    def __init__(self, config: ConditioningConfig) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict({"text_model": TextModel(config)})

    def forward(self, tokens: Tensor) -> Tensor:
        return self.transformer["text_model"](tokens)
