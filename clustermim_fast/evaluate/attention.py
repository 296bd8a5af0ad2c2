"""How the blocks of a ViT attend: the ten statistics of "Beyond [cls]", by block.

Przewiezlikowski et al., ICCV 2025, arXiv 2412.03215. They tell a [cls] that mixes the patches from
one that looks at itself, and patches that choose from patches that average.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from tqdm import tqdm

from .features import Images, normalise

__all__ = [
    "STATISTICS", "AttentionStatistics", "NoAttentionError", "attention_of_blocks",
    "attention_statistics",
]  # fmt: skip

STATISTICS = {
    "cls_to_cls": "[cls] to itself",
    "patch_to_itself": "patch to itself",
    "cls_to_cls_by_patches": "[cls] to itself / to all patches",
    "patch_to_itself_by_patches": "patch to itself / to all patches",
    "cls_to_patch": "[cls] to a patch",
    "patch_to_cls": "patch to [cls]",
    "cls_entropy": "entropy of [cls] over patches, nats",
    "patch_entropy": "entropy of a patch over patches, nats",
    "cls_update": "[cls]: |attention's output| / |input|",
    "patch_update": "patches: |attention's output| / |input|",
}
"""Names in the order of the paper's code, and what they are in words."""


class NoAttentionError(ValueError):
    """An encoder that does not show where its tokens look."""


@dataclass(frozen=True)
class AttentionStatistics:
    """The ten statistics of each block.

    Attributes:
        values: by name, the mean over images (and heads, and patches), float64 [blocks]; NaN for
            those of [cls] where the encoder has none.
        spread: their standard deviation over images, float64 [blocks].
        images, patches, heads: how many; ln(patches) is the largest entropy.
    """

    values: dict[str, Tensor]
    spread: dict[str, Tensor]
    images: int
    patches: int
    heads: int


@dataclass(frozen=True)
class BlockAttention:
    """What one block did in the last forward pass.

    weights: softmax attention [B, heads, T, T], rows are queries; before, after: the block's input
    and what its attention makes of it (projected, before LayerScale), [B, T, D].
    """

    weights: Tensor
    before: Tensor
    after: Tensor


@torch.no_grad()
def attention_statistics(
    encoder: nn.Module,
    images: Images,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    progress: bool = False,
    name: str = "attention",
) -> AttentionStatistics:
    """The statistics of a timm ViT on un-augmented images, in one pass of float32.

    With A the softmax attention of a block, c = [cls], i, j patches, S_q = sum_j A_qj what a query
    q gives to patches, and p_qj = A_qj / S_q:

    1. A_cc; 2. mean A_ii; 3. A_cc / S_c (an odds ratio, it can exceed 1); 4. mean A_ii / S_i;
    5. mean A_cj; 6. mean A_ic; 7. -sum_j p_cj ln p_cj; 8. the mean of the same over patches;
    9. |attention(x)_c| / |x_c|; 10. the mean of the same over patches, x being the block's input.

    Registers and distillation tokens are neither [cls] nor patches: they are left out. The paper's
    code adds 1e-6 inside logarithm and quotients; here they are exact, and 0 ln 0 = 0.

    Memory: B * heads * T^2 floats of one block and a copy. Raises ValueError for an encoder whose
    blocks do not show their attention.
    """
    prefix = int(getattr(encoder, "num_prefix_tokens", 0))
    has_cls = getattr(encoder, "cls_token", None) is not None
    if len(images) == 0:
        raise ValueError("images: expected at least one image, got none")
    rows: dict[int, list[Tensor]] = {}
    patches = heads = 0
    expected: int | None = None

    def reduce(number: int, block: BlockAttention) -> None:
        nonlocal heads, patches
        _require_square(encoder, number, block)
        heads, patches = block.weights.shape[1], block.weights.shape[2] - prefix
        if expected not in (None, patches):
            raise ValueError(
                f"encoder: block {number} of {type(encoder).__name__} sees {patches + prefix} "
                f"tokens, expected {prefix} prefix tokens and {expected} patches; its [cls] joins "
                "later, or patches are merged"
            )
        rows.setdefault(number, []).append(_of_block(block, prefix, has_cls).cpu())

    starts = range(0, len(images), batch_size)
    with attention_of_blocks(encoder.to(device), reduce):
        for start in tqdm(starts, name, disable=not progress, leave=False):
            ids = torch.arange(start, min(start + batch_size, len(images)))
            views = normalise(images.images(ids).to(device), mean, std)
            expected = _patches(encoder, views)
            encoder.forward_features(views)  # type: ignore[operator]
    every = torch.stack([torch.cat(rows[number], -1) for number in sorted(rows)])
    average, deviation = every.mean(-1), every.std(-1, correction=0)  # of [blocks, 10, images]
    return AttentionStatistics(
        {name: average[:, place] for place, name in enumerate(STATISTICS)},
        {name: deviation[:, place] for place, name in enumerate(STATISTICS)},
        len(images),
        patches,
        heads,
    )


def _patches(encoder: nn.Module, views: Tensor) -> int | None:
    """How many patches images [B, 3, H, W] have; None where the encoder does not say their size."""
    size = getattr(getattr(encoder, "patch_embed", None), "patch_size", None)
    if not isinstance(size, (tuple, list)):
        return None
    return math.prod(-(-side // own) for side, own in zip(views.shape[2:], size, strict=True))


def _of_block(block: BlockAttention, prefix: int, has_cls: bool) -> Tensor:
    """The ten statistics of each image, float64 [10, B]."""
    weights = block.weights.float()
    own = weights.diagonal(dim1=-2, dim2=-1)  # A_qq, [B, heads, T]
    to_patches = weights[..., prefix:]
    given = to_patches.sum(-1)  # S_q
    share = to_patches / given.clamp_min(torch.finfo(given.dtype).tiny).unsqueeze(-1)
    entropy = torch.special.entr(share).sum(-1)
    update = block.after.float().norm(dim=-1) / block.before.float().norm(dim=-1)
    update = update.unsqueeze(1)
    cls = [own, own / given, to_patches.mean(-1), entropy, update]
    cls = [part[:, :, 0].mean(1) if has_cls else torch.nan * own[:, 0, 0] for part in cls]
    to_cls = weights[..., prefix:, 0] if has_cls else torch.nan * own[..., prefix:]
    parts = (own, own / given, entropy, update)
    patch = [part[:, :, prefix:].mean((1, 2)) for part in parts]
    order = (cls[0], patch[0], cls[1], patch[1], cls[2], to_cls.mean((1, 2)), cls[3], patch[2])
    return torch.stack([*order, cls[4], patch[3]]).double()


@contextmanager
def attention_of_blocks(
    encoder: nn.Module, visit: Callable[[int, BlockAttention], None]
) -> Iterator[None]:
    """Within it, each block of a timm ViT shows ``visit`` its number and what it did, as it does.

    Fused attention, which never makes the weights, is off inside and as it was afterwards; so is
    training mode. Raises NoAttentionError for an encoder without blocks of attention, or whose
    attention does not make its weights.
    """
    blocks: Any = getattr(encoder, "blocks", None) or ()
    if not len(blocks) or not all(
        hasattr(getattr(block, "attn", None), "attn_drop") for block in blocks
    ):
        raise NoAttentionError(
            f"encoder: expected a timm ViT whose blocks hold an attention (vit_*, deit*, beit*, "
            f"eva*), got {type(encoder).__name__}"
        )
    modes = [(module, module.training) for module in encoder.modules()]
    fused = [getattr(block.attn, "fused_attn", None) for block in blocks]
    with ExitStack() as stack:
        for number, block in enumerate(blocks):
            for handle in _watch(number, block, visit):
                stack.callback(handle.remove)
        encoder.eval()
        try:
            for block, was in zip(blocks, fused, strict=True):
                if was is not None:
                    block.attn.fused_attn = False
            yield
        finally:
            for block, was in zip(blocks, fused, strict=True):
                if was is not None:
                    block.attn.fused_attn = was
            for module, training in modes:
                module.training = training


def _watch(
    number: int, block: Any, visit: Callable[[int, BlockAttention], None]
) -> Iterator[RemovableHandle]:
    seen: dict[str, Tensor] = {}

    def keep_input(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen["before"] = inputs[0]

    def keep_weights(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen["weights"] = inputs[0]

    def show(_module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
        if "weights" not in seen:
            raise NoAttentionError(
                f"encoder: block {number} has a {type(block.attn).__name__}, which does not make "
                "its attention weights; expected a plain ViT (vit_*, deit*, beit*, eva*)"
            )
        visit(number, BlockAttention(seen.pop("weights"), seen.pop("before"), output))

    yield block.register_forward_pre_hook(keep_input)
    # What timm would drop parts of is the softmax itself.
    yield block.attn.attn_drop.register_forward_pre_hook(keep_weights)
    yield block.attn.register_forward_hook(show)


def _require_square(encoder: nn.Module, number: int, block: BlockAttention) -> None:
    shape, tokens = tuple(block.weights.shape), block.before.shape[1]
    if len(shape) != 4 or shape[2:] != (tokens, tokens):
        raise ValueError(
            f"encoder: block {number} of {type(encoder).__name__} does not attend from every token "
            f"to every token (weights {list(shape)}, {tokens} tokens); expected a plain ViT"
        )
