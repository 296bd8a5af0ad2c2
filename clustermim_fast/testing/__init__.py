"""``compare``: a codebase's own loss beside ours, on its own tensors: is it safe to swap?"""

from clustermim_fast.testing.comparison import Comparison, Errors, compare

__all__ = ["Comparison", "Errors", "compare"]
