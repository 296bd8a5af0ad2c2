"""Poolings of tokens to one row an image: without parameters, or learned with the probe.

AbMILP is the attention pooling of "Beyond [cls]" (Przewiezlikowski et al., ICCV 2025): in the
paper's setting a softmax over the patches of one linear score, D + 1 parameters. It is not the
gated pooling of Ilse et al.

A learned pooling holds several heads side by side that never see each other: one a learning rate.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from timm.layers import Attention, AttentionPoolLatent  # type: ignore[attr-defined]
from torch import Tensor, nn

from clustermim_fast.models.positions import sincos_positions

from .tokens import TokenBatch

__all__ = [
    "AbMILP",
    "AbMILPSettings",
    "Linears",
    "MapPooling",
    "PerHead",
    "cls_attention",
    "fixed_pooling",
    "reads_attention",
]

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}


class PerHead(nn.ModuleList):
    """One module a head. All begin with equal weights, so that heads differ only by how they are
    trained, and each has Parameters of its own: LARS's trust ratio is per tensor."""

    def __init__(self, first: nn.Module, heads: int) -> None:
        super().__init__([first, *(copy.deepcopy(first) for _ in range(heads - 1))])


class Linears(nn.Module):
    """`heads` independent nn.Linear: x [B, 1 or heads, T, in] -> [B, heads, T, out].

    A shared x (second size 1) is read once for all heads.
    """

    def __init__(self, in_features: int, out_features: int, heads: int) -> None:
        super().__init__()
        self.heads = PerHead(nn.Linear(in_features, out_features), heads)

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.stack([head.weight for head in self.heads])  # type: ignore[misc]
        bias = torch.stack([head.bias for head in self.heads])  # type: ignore[misc]
        if x.shape[1] == 1:
            out = nn.functional.linear(x[:, 0], weight.flatten(0, 1), bias.flatten())
            return out.unflatten(2, (len(weight), -1)).transpose(1, 2)
        # Not x @ weight.mT, which copies the weights for each image.
        return torch.einsum("bhti,hoi->bhto", x, weight) + bias[:, None]


@dataclass(frozen=True)
class AbMILPSettings:
    """The switches of AbMILP; the defaults are the paper's.

    Attributes:
        content: "patch" or "all" (with [cls] and registers).
        attention: "none"; "map": the scores come from tokens after one self-attention layer (one
            head, qkv without bias, no residual, no norm); "both": the pooled values too.
        depth: layers of the scores' MLP.
        activation: between them: "relu", "tanh" or "gelu". Without effect at depth 1.
        condition: "none", or "position": fixed sine-cosine positions are added for the scores.

    The released command line's own defaults are others: tanh, both, depth 2, all.
    """

    content: str = "patch"
    attention: str = "none"
    depth: int = 1
    activation: str = "relu"
    condition: str = "none"

    def __post_init__(self) -> None:
        for name, allowed in (
            ("content", ("patch", "all")),
            ("attention", ("none", "map", "both")),
            ("activation", tuple(ACTIVATIONS)),
            ("condition", ("none", "position")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name}: expected one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )
        if self.depth < 1:
            raise ValueError(f"depth: expected at least 1, got {self.depth}")


class AbMILP(nn.Module):
    """tokens [B, P + L, D] -> rows [B, heads, D].

    X the tokens of ``content``, X' = self-attention(X)::

        u = X', or X where attention is "none";  u += positions where condition is "position"
        a = softmax(MLP(u)) over tokens, no temperature
        z = sum_i a_i V_i,  V = X' where attention is "both", else X

    Unlike the released code the positions are not trained (there, unfreezing the head unfreezes
    them, and with them 150,528 parameters that the default setting does not use).
    """

    positions: Tensor

    def __init__(
        self,
        dim: int,
        grid: tuple[int, int],
        num_prefix_tokens: int,
        settings: AbMILPSettings | None = None,
        heads: int = 1,
    ) -> None:
        super().__init__()
        self.settings = settings = settings or AbMILPSettings()
        self.skip = num_prefix_tokens if settings.content == "patch" else 0
        self.attention = None
        if settings.attention != "none":
            self.attention = PerHead(Attention(dim, num_heads=1, qkv_bias=False), heads)
        if settings.condition == "position":
            positions = sincos_positions(grid, dim, num_prefix_tokens - self.skip)
            self.register_buffer("positions", positions, persistent=False)
        layers: list[nn.Module] = []
        for _ in range(settings.depth - 1):
            layers += [Linears(dim, dim, heads), ACTIVATIONS[settings.activation]()]
        self.score = nn.Sequential(*layers, Linears(dim, 1, heads))

    def forward(self, tokens: Tensor) -> Tensor:
        weights, values = self.attend(tokens)
        if values.shape[1] == 1:  # of all heads: a product would copy them for each
            return weights @ values[:, 0]
        return (weights[:, :, None] @ values)[:, :, 0]

    def attend(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(weights [B, heads, T] that sum to 1, values [B, 1 or heads, T, D])."""
        x = tokens[:, None, self.skip :]  # contiguous, so read in place, where nothing is skipped
        u = values = x
        if self.attention is not None:
            u = torch.stack([head(x[:, 0]) for head in self.attention], 1)
            values = u if self.settings.attention == "both" else x
        if self.settings.condition == "position":
            u = u + self.positions
        return self.score(u).squeeze(-1).softmax(-1), values


class MapPooling(nn.Module):
    """Attention with one learned query and an MLP behind it (timm's AttentionPoolLatent, "map" in
    its names): tokens [B, P + L, D] -> rows [B, heads, D]; pools the patches."""

    def __init__(self, dim: int, num_prefix_tokens: int, heads: int = 1) -> None:
        super().__init__()
        self.skip = num_prefix_tokens
        self.heads = PerHead(AttentionPoolLatent(dim, num_heads=math.gcd(dim, 8)), heads)

    def forward(self, tokens: Tensor) -> Tensor:
        patches = tokens[:, self.skip :]
        return torch.stack([head(patches) for head in self.heads], 1)


_NAMES = "abmilp, map, cls, mean, centreN, attn_mean, attn_lowest_entropy, attn_centreN or teacher"


def fixed_pooling(name: str) -> Callable[[TokenBatch], Tensor]:
    """A pooling without parameters, from a `TokenBatch` to rows [B, D]; ValueError for others.

    * "cls"; "mean" of the patches;
    * "centreN": mean of the N x N patches in the middle (half a patch up and left of it where N and
      the grid differ in parity);
    * "attn_mean": patches weighted by the attention of [cls] in the block that the tokens come
      from, mean over heads; "attn_lowest_entropy": by the head, chosen for each image, whose
      attention has the lowest entropy; "attn_centreN": by the centre patches' attention;
    * "teacher": as "attn_mean", with the attention of a teacher's last block.

    Weights are divided by their sum over the patches. The released names of the last ones are
    attn-mn, attn-lcte, caN and dino.
    """
    kind, side = _split_name(name)
    simple = {
        "cls": _cls,
        "mean": lambda batch: batch.patches.mean(1),
        "attn_mean": lambda batch: _weighted(batch, cls_attention(batch).mean(1)),
        "attn_lowest_entropy": lambda batch: _weighted(batch, _sharpest(cls_attention(batch))),
        "teacher": lambda batch: _weighted(batch, _teacher(batch)),
    }
    if kind in simple and not side:
        return simple[kind]
    if kind == "centre" and side:
        return lambda batch: batch.patches[:, _centre(batch, side)].mean(1)
    if kind == "attn_centre" and side:
        return lambda batch: _weighted(batch, _centre_attention(batch, side))
    raise ValueError(f"pool: expected {_NAMES} (N a number, centre2), got {name!r}")


def reads_attention(name: str) -> bool:
    """Whether a pooling needs the attention of the encoder's block."""
    return name.startswith("attn_")


def _split_name(name: str) -> tuple[str, int]:
    kind = name.rstrip("0123456789")
    return kind, int(name[len(kind) :] or 0)


def _cls(batch: TokenBatch) -> Tensor:
    if not batch.has_cls:
        raise ValueError('pool: this encoder has no [cls] token; take "mean" or "abmilp"')
    return batch.prefix[:, 0]


def _centre(batch: TokenBatch, side: int) -> Tensor:
    """Indices of the centre patches, int64 [side * side]."""
    rows, columns = batch.grid
    if side > min(rows, columns):
        raise ValueError(f"pool: centre{side} is larger than the {rows} x {columns} patches")
    top, left = (rows - side) // 2, (columns - side) // 2
    grid = torch.arange(rows * columns, device=batch.patches.device).view(rows, columns)
    return grid[top : top + side, left : left + side].flatten()


def _to_patches(batch: TokenBatch) -> Tensor:
    """Attention of every token to the patches, [B, heads, P + L, L]."""
    assert batch.attention is not None
    return batch.attention[..., batch.prefix.shape[1] :]


def cls_attention(batch: TokenBatch) -> Tensor:
    """Attention of [cls] to the patches, [B, heads, L]; ValueError where there is no [cls]."""
    _cls(batch)
    return _to_patches(batch)[:, :, 0]


def _sharpest(attention: Tensor) -> Tensor:
    """[B, heads, L] -> [B, L] of each image's head of lowest entropy over the patches."""
    shares = attention / attention.sum(-1, keepdim=True)
    head = torch.special.entr(shares).sum(-1).argmin(1)
    return shares[torch.arange(len(shares), device=shares.device), head]


def _centre_attention(batch: TokenBatch, side: int) -> Tensor:
    queries = _centre(batch, side) + batch.prefix.shape[1]
    return _to_patches(batch)[:, :, queries].mean((1, 2))


def _teacher(batch: TokenBatch) -> Tensor:
    if batch.teacher is None:
        raise ValueError("pool: teacher needs teacher=, a timm name or a run")
    return batch.teacher.mean(1)


def _weighted(batch: TokenBatch, weights: Tensor) -> Tensor:
    shares = weights / weights.sum(-1, keepdim=True)
    return (shares[:, None] @ batch.patches)[:, 0]
