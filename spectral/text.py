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
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q_proj, self.k_proj, self.v_proj)
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


class TextTower(nn.Module):
    """Token ids [B, T] → states after the final normalisation, [B, T, width].

    The nesting is that of the files: `transformer.text_model.{embeddings,encoder,final_layer_norm}`.
    """

    def __init__(self, config: ConditioningConfig) -> None:
        super().__init__()
        model = nn.Module()
        model.embeddings = nn.Module()
        model.embeddings.token_embedding = nn.Embedding(VOCABULARY, config.width)
        model.embeddings.position_embedding = nn.Embedding(config.context_length, config.width)
        model.encoder = nn.Module()
        model.encoder.layers = nn.ModuleList(TextLayer(config.width, config.heads) for _ in range(config.layers))
        model.final_layer_norm = nn.LayerNorm(config.width)
        self.transformer = nn.Module()
        self.transformer.text_model = model
        nn.init.normal_(model.embeddings.token_embedding.weight, std=0.02)
        nn.init.normal_(model.embeddings.position_embedding.weight, std=0.01)

    def forward(self, tokens: Tensor) -> Tensor:
        model = self.transformer.text_model
        x = model.embeddings.token_embedding(tokens) + model.embeddings.position_embedding.weight[: tokens.shape[1]]
        for layer in model.encoder.layers:
            x = layer(x)
        return model.final_layer_norm(x)
