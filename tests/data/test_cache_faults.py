"""Kills, full disks, altered files: what is whole stays, what is wrong is named."""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
import subprocess
import sys
import warnings
from concurrent.futures import ALL_COMPLETED

import pytest

from clustermim_fast import api, data
from clustermim_fast.data.cache import Settings, build, build_cache, open_sources
from clustermim_fast.data.cache.sources import Source
from tests.data.cached import build as make
from tests.data.cached import contents, write_folder


@pytest.fixture(scope="module", autouse=True)
def small_shards():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Settings, "images_per_shard", lambda self, count: 4)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("many") / "folder", 10)  # three shards


@pytest.fixture(scope="module")
def whole(small_shards, folder, tmp_path_factory):
    return contents(make(folder, tmp_path_factory.mktemp("whole")).folder)


def killed(function):
    """Run it in a child that ends without cleaning up; whether it was killed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fork beside torch's threads; the child uses none
        child = os.fork()
    if child == 0:
        try:
            function()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9


def dying_at(call, name, number, after):
    """`call`, whose process dies before or after the number-th use of os.<name>."""
    uses = itertools.count(1)  # shards and journal are written by two threads
    original = getattr(os, name)

    def counted(*arguments):
        mine = next(uses) == number
        if mine and not after:
            os.kill(os.getpid(), 9)
        result = original(*arguments)
        if mine:
            os.kill(os.getpid(), 9)
        return result

    def run():
        setattr(os, name, counted)
        call()

    return run


@pytest.mark.parametrize("name, after", [("replace", False), ("replace", True), ("fsync", False)])
def test_killed_at_every_write_and_resumed(folder, whole, tmp_path, name, after):
    # Everything that lasts becomes so by a replace; a line of the journal by an fsync.
    for number in range(1, 40):
        out = tmp_path / str(number)
        if not killed(dying_at(lambda out=out: make(folder, out), name, number, after)):
            break
        make(folder, out)
        assert contents(out) == whole, number
    assert number > 8  # a journal, three shards, five small files at least


@pytest.mark.parametrize("seen", ["one by one", "all at once"])
def test_what_was_whole_is_not_decoded_again(folder, whole, tmp_path, seen, monkeypatch):
    if seen == "all at once":  # shards 0 and 2 ended beside the failure of 1
        monkeypatch.setattr(build, "FIRST_COMPLETED", ALL_COMPLETED)
    source = open_sources(folder)[""]
    reads = []

    def reading(stop):
        def read(entry):
            if entry == stop:
                raise KeyboardInterrupt
            reads.append(entry)
            return source.read(entry)

        return Source(source.names, read, source.labels, source.class_names)

    settings = Settings(str(folder), "", 0, "pillow")
    with pytest.raises(KeyboardInterrupt):
        build_cache(reading(7), tmp_path, settings, threads=1, progress=False)
    with pytest.raises(ValueError, match="is not finished; repeat the `clustermim cache`"):
        data.open_images(tmp_path, size=8)
    with open(tmp_path / "building.jsonl", "a") as journal:
        journal.write('{"shard": 1, "byt')  # a line that a killed process was writing
    reads.clear()
    build_cache(reading(None), tmp_path, settings, threads=1, progress=False)
    assert min(reads) == 4  # the first shard was whole
    assert seen == "one by one" or max(reads) == 7
    assert contents(tmp_path) == whole


@pytest.mark.parametrize("harm", ["truncated", "missing"])
def test_a_short_shard_is_named_and_made_again(folder, whole, tmp_path, harm):
    make(folder, tmp_path)
    shard = tmp_path / "shard-00001.bin"
    if harm == "missing":
        shard.unlink()
    else:
        os.truncate(shard, shard.stat().st_size - 1)
    said = f"shard-00001.bin .*`clustermim cache data={folder} out={tmp_path} size=0` makes missing"
    with pytest.raises(ValueError, match=said):
        data.open_images(tmp_path, size=8)
    make(folder, tmp_path)
    assert contents(tmp_path) == whole


READS = """
import os, sys
from clustermim_fast import data
images = data.open_images(sys.argv[1], size=8, in_memory="no")
images.pixels(4).sum()
shard = os.path.join(sys.argv[1], "shard-00001.bin")
{}
print(int(images.pixels(4).sum()))
"""


def reading_after(change, folder):
    """A process that reads an image of the second shard, before and after a change to its file."""
    script = READS.format(change)
    return subprocess.run(
        [sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("size", [0, 1])
def test_a_shard_that_is_cut_while_it_is_mapped_is_named(folder, tmp_path, size):
    """What lies beyond the last page of a mapped file ends a process with SIGBUS; what lies in it,
    beyond the end, reads as zeros.
    """
    make(folder, tmp_path)
    ended = reading_after(f"os.truncate(shard, {size})", tmp_path)
    assert ended.returncode == 1, ended.returncode
    said = rf"ValueError: data: .*shard-00001.bin has {size} bytes, not [\d,]+: it was cut after it"
    assert re.search(said, ended.stderr)
    assert f"`clustermim cache data={folder} out={tmp_path} size=0` makes missing" in ended.stderr


@pytest.mark.parametrize("change", ["os.unlink(shard)", "os.replace(shard + '.copy', shard)"])
def test_a_shard_that_is_removed_or_replaced_is_still_read(folder, tmp_path, change):
    make(folder, tmp_path)
    shutil.copy(tmp_path / "shard-00001.bin", tmp_path / "shard-00001.bin.copy")
    wanted = int(data.open_images(tmp_path, size=8, in_memory="no").pixels(4).sum())
    ended = reading_after(change, tmp_path)
    assert ended.stdout == f"{wanted}\n", ended.stderr


def test_an_altered_shard_is_found_by_its_checksum(folder, tmp_path):
    make(folder, tmp_path)
    shard = tmp_path / "shard-00002.bin"
    content = bytearray(shard.read_bytes())
    content[5] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=r"shard-00002.bin is not what was written .*delete it"):
        data.open_images(tmp_path, size=8, in_memory="yes")
    with pytest.raises(ValueError, match=r"shard-00002.bin is not what was written .*; delete"):
        api.verify_cache(tmp_path)


def test_an_altered_index_is_found_at_open(folder, tmp_path):
    make(folder, tmp_path)
    labels = bytearray((tmp_path / "labels.npy").read_bytes())
    labels[-8] ^= 1
    (tmp_path / "labels.npy").write_bytes(labels)
    with pytest.raises(ValueError, match=r"labels.npy is not what was written"):
        data.open_images(tmp_path, size=8)


def test_a_shard_of_changed_images_is_refused(tmp_path):
    folder = write_folder(tmp_path / "folder")
    make(folder, tmp_path / "cache")
    (folder / "cat" / "002.jpg").write_bytes((folder / "cat" / "004.jpg").read_bytes())
    (tmp_path / "cache" / "shard-00000.bin").unlink()
    with pytest.raises(ValueError, match="the images have changed since"):
        make(folder, tmp_path / "cache")


def test_other_settings_and_other_files_are_refused(tmp_path):
    folder = write_folder(tmp_path / "folder")
    make(folder, tmp_path / "cache")
    with pytest.raises(ValueError, match=r"begun with size=0, and now size is 9; give size=0"):
        make(folder, tmp_path / "cache", size=9)
    (folder / "dog" / "001.jpg").unlink()
    with pytest.raises(ValueError, match=r"held other files or labels; .* restart=yes"):
        make(folder, tmp_path / "cache")
    (tmp_path / "cache" / "own.txt").write_text("kept")
    options = {"size": 9, "restart": True, "workers": 1, "say": str}
    api.cache_images(folder, tmp_path / "cache", **options)
    assert min(data.open_images(tmp_path / "cache", size=8).pixels(0).shape[1:]) == 9
    assert (tmp_path / "cache" / "own.txt").exists()


def test_a_full_disk_says_what_stays(folder, whole, tmp_path, monkeypatch):
    written = 0
    fsync = os.fsync

    def full(number):
        nonlocal written
        written += 1
        if written > 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(number)

    monkeypatch.setattr(build.os, "fsync", full)
    with pytest.raises(OSError, match=r"is full .*[12] of 3 shards of this call are whole"):
        make(folder, tmp_path)
    monkeypatch.undo()
    make(folder, tmp_path)
    assert contents(tmp_path) == whole


def test_a_lost_source_is_no_broken_file(folder, tmp_path):
    source = open_sources(folder)[""]

    def read(entry):
        raise OSError(errno.ESTALE, "Stale file handle")

    lost = Source(source.names, read, source.labels, source.class_names)
    with pytest.raises(OSError, match="Stale file handle"):
        build_cache(lost, tmp_path, Settings("x", "", 0, "pillow"), threads=1, progress=False)
