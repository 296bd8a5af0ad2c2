"""No path reads outside of its rows, centroids and images: guard pages on both sides."""

from __future__ import annotations

import sys

import pytest

from tests.ops.harness import ON_TRITON, run_python

pytestmark = pytest.mark.skipif(
    ON_TRITON, reason="Triton: the strict interpreter looks at every address"
)

# Vector loads past the end of a row are the classic bug of a kernel with padded tiles; most of the
# time the memory there can be read and nobody notices. Here it cannot: the process would die.
GUARDED = """
import itertools, torch
from clustermim_fast import ops
from tests.ops.harness import guarded, running, usable_paths
torch.set_num_threads(1)
F = torch.float32
cases = []
for d in (1, 3, 7, 15, 16, 17, 31, 33, 48, 63, 64, 65, 100, 130):
    for n, k in ((1, 1), (5, 17), (16, 7), (33, 50), (250, 100)):
        cases.append((torch.randn(n, d), torch.randn(k, d)))
images = []
for p, c, w in ((1, 1, 5), (2, 3, 6), (4, 3, 8), (7, 1, 14), (8, 3, 16), (16, 3, 32), (14, 2, 28)):
    images.append((torch.randint(0, 256, (2, c, p, w), dtype=torch.uint8), p, c))
for at_end, path in itertools.product((True, False), usable_paths()[1:]):
    with running(path) as backend:
        for i, (x, c) in enumerate(cases):
            for dtype in (F, (torch.float64, torch.float16, torch.bfloat16)[i % 3]):
                x_, c_ = guarded(x.to(dtype), at_end), guarded(c.to(F if i % 2 else dtype), at_end)
                for metric in ("euclidean", "dot") if i % 4 else ("cosine",):
                    ids = ops.nearest_centroid(x_, c_, metric=metric, backend=backend)
                    assert torch.equal(
                        ids, ops.nearest_centroid(x_ * 1, c_ * 1, metric=metric, backend=backend)
                    )
        for pixels, p, channels in images:
            c = torch.randn(9, p * p * channels)
            c_ = guarded(c, at_end)
            for some in (pixels, pixels.float() / 255):
                ids = ops.patch_tokens(guarded(some, at_end), c_, p, backend=backend)
                assert torch.equal(ids, ops.patch_tokens(some, c, p, backend=backend))
                last = some.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
                last = guarded(last.contiguous(), at_end).permute(0, 3, 1, 2)
                assert torch.equal(ids, ops.patch_tokens(last, c_, p, backend=backend))
print("done")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="guard pages by Linux's mprotect")
def test_reads_stay_inside():
    done = run_python(GUARDED)
    assert done.returncode == 0, f"{done.returncode}: {done.stdout}{done.stderr}"
    assert done.stdout.startswith("done")
