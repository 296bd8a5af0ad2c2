"""Copies beside the step: no memory is written while it is used, none read before it is written.

Streams and events are stand-ins here that know which work is certain to have ended before other.
"""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from clustermim_fast.masking import Masks
from clustermim_fast.train.batches import Batch
from clustermim_fast.train.copies import copied_beside

CPU = torch.device("cpu")


class Stream:
    """Work queued on it begins when all of `ended` has ended."""

    def __init__(self, device=None):
        self.ended = set()

    def record_event(self):
        return frozenset(self.ended)

    def wait_event(self, event):
        self.ended |= event


class Copies(TorchDispatchMode):
    """Notes on which stream each copy goes, to where, and what has ended before it begins."""

    def __init__(self, streams):
        super().__init__()
        self.streams, self.seen = streams, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket is torch.ops.aten.copy_:
            stream, place = self.streams[-1], args[0].data_ptr()
            self.seen.append((stream, place, frozenset(stream.ended)))
            stream.ended.add(("copy", place, len(self.seen)))
        return function(*args, **(kwargs or {}))


@pytest.fixture
def streams(monkeypatch):
    """The current stream last; the one that computes first."""
    stack = [Stream()]

    @contextlib.contextmanager
    def current(stream):
        stack.append(stream)
        yield
        stack.pop()

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stack[-1])
    monkeypatch.setattr(torch.cuda, "stream", current)
    return stack


def make_batch(number, replaced):
    mask = torch.full((2, 4), number % 2 == 0)
    masks = Masks(mask, torch.full((2, 3), number), ~mask if replaced else None)
    return Batch(torch.full((2, 3, 8, 8), number, dtype=torch.uint8), torch.arange(2), masks, [])


@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_order(streams, accumulate, replaced):
    main, updates, used = streams[0], 5, {}
    sources = (make_batch(n, replaced) for n in range(updates * accumulate))
    with Copies(streams) as copies:
        batches = copied_beside(sources, CPU, accumulate)
        for update in range(updates):
            seen = len(copies.seen)
            taken = [next(batches) for _ in range(accumulate)]
            first = copies.seen[seen : seen + 3 + replaced]  # of the update's first batch
            for _, place, ended in copies.seen[seen:]:
                assert used.get(place, set()) <= ended  # else it is written while it is used
            if update:  # it runs beside the step that was queued last
                assert all(("use", update - 1) not in ended for _, _, ended in first)
            for number, batch in enumerate(taken, update * accumulate):
                wanted = make_batch(number, replaced)
                parts = [batch.images, *batch.masks]
                for got, expected in zip(parts, [wanted.images, *wanted.masks], strict=True):
                    if expected is None:
                        assert got is None
                        continue
                    assert torch.equal(got, expected)
                    place = got.data_ptr()
                    last = max(n for n, (_, p, _) in enumerate(copies.seen, 1) if p == place)
                    assert ("copy", place, last) in main.ended  # else it is read too early
                    used.setdefault(place, set()).add(("use", update))
                assert batch.samples.tolist() == [0, 1]
            main.ended.add(("use", update))
        assert next(batches, None) is None
    assert all(stream is not main for stream, _, _ in copies.seen)
    assert len(used) == (accumulate + 1) * (3 + replaced)  # memory of one batch more
