"""LDM's own text encoder: the transformer of its BERTEmbedder, which txt2img_1p4B and text2img256 attend to.

It reads BERT's tokens but shares no weights with BERT: a bidirectional pre-norm transformer, trained with the U-Net.
Padding is attended to like any other token. Keys are those of the published files under `cond_stage_model.`; the files'
`transformer.to_logits` is no part of it, because nothing reads the logits.

Source: CompVis/latent-diffusion, `ldm/modules/encoders/modules.py` and `ldm/modules/x_transformer.py`.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from .config import ConditioningConfig

#: Channels of an attention head, whatever the width: 8 heads are 512 channels inside, in a network of 1280 or of 640.
HEAD_CHANNELS = 64


class Attention(nn.Module):
    """Multi-head self-attention of every token to every token; queries, keys and values have no bias."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        inner = heads * HEAD_CHANNELS
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_k = nn.Linear(width, inner, bias=False)
        self.to_v = nn.Linear(width, inner, bias=False)
        self.to_out = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, HEAD_CHANNELS)).transpose(1, 2)
            for layer in (self.to_q, self.to_k, self.to_v)
        )
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Feed-forward of four times the width, with GELU. The nesting is that of the files: `net.0.0` and `net.2`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        expand = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU())
        self.net = nn.Sequential(expand, nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Layers(nn.Module):
    """Attention and feed-forward in turn, each `x + block(norm(x))`: `layers` of the configuration are twice as many.

    Keys: `layers.N.0` is a normalisation, `layers.N.1` the block behind it.
    """

    def __init__(self, config: ConditioningConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for _ in range(config.layers):
            for block in (Attention(config.width, config.heads), FeedForward(config.width)):
                self.layers.append(nn.ModuleList([nn.LayerNorm(config.width), block]))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            norm, block = layer.children()
            x = x + block(norm(x))
        return x


class Positions(nn.Module):
    """One learnt vector a place: tokens [B, T] → [T, width]."""

    def __init__(self, config: ConditioningConfig) -> None:
        super().__init__()
        self.emb = nn.Embedding(config.context_length, config.width)
        nn.init.normal_(self.emb.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.emb.weight[: tokens.shape[1]]


class Transformer(nn.Module):
    """Token plus position, layers, final normalisation."""

    def __init__(self, config: ConditioningConfig) -> None:
        super().__init__()
        self.token_emb = nn.Embedding(config.vocabulary, config.width)
        self.pos_emb = Positions(config)
        self.attn_layers = Layers(config)
        self.norm = nn.LayerNorm(config.width)
        nn.init.normal_(self.token_emb.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token_emb(tokens) + self.pos_emb(tokens)
        return self.norm(self.attn_layers(x))


class LdmTextEncoder(nn.Module):
    """Token ids [B, T] → states [B, T, width].

    Args:
        config: of kind "text" and tower "ldm"; `heads` is 8, and `vocabulary` BERT's 30522, in the published files.
    """

    def __init__(self, config: ConditioningConfig) -> None:
        super().__init__()
        self.transformer = Transformer(config)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.transformer(tokens)
