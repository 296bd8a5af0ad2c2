"""What a cache can be made from, and what is refused."""

from __future__ import annotations

import io
import tarfile

import pytest
from PIL import Image
from torchvision import datasets

from clustermim_fast import api, data
from clustermim_fast.cli import main
from clustermim_fast.data.cache import open_sources
from tests.data.cached import build, noise, write_folder


def picture(seed):
    buffer = io.BytesIO()
    Image.fromarray(noise(9, 8, 3, seed=seed)).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path, members):
    with tarfile.open(path, "w") as file:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))


def test_tar_files_of_webdataset(tmp_path):
    shards = tmp_path / "tars"
    shards.mkdir()
    for number in range(2):
        members = []
        for index in range(3 * number, 3 * number + 3):
            members += [
                (f"{index:04d}.png", picture(index)),
                (f"{index:04d}.cls", b"%d" % (index % 2)),
            ]
            members.append((f"{index:04d}.json", b"{}"))
        write_tar(shards / f"set-train-{number:06d}.tar", members)
    write_tar(shards / "set-val-000000.tar", [("a.png", picture(9)), ("a.cls", b"1")])
    cache = build(shards, tmp_path / "cache", split="train")
    images = data.open_images(tmp_path / "cache", size=8)
    assert images.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert images.class_names == ["0", "1"]
    for index in range(6):
        assert (images.pixels(index).permute(1, 2, 0).numpy() == noise(9, 8, 3, seed=index)).all()
    assert "set-train-000001.tar:0004.png" in (cache.folder / "names.txt").read_text()
    assert set(open_sources(shards)) == {"train", "test"}


def test_images_come_before_the_archives_beside_them(tmp_path):
    write_folder(tmp_path, 4)
    write_tar(tmp_path / "cats.tar", [("other.png", picture(0))])
    assert "dog/001.jpg" in open_sources(tmp_path)[""].names


def test_tar_files_that_are_refused(tmp_path):
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as file:
        file.add(__file__, "a.png")
    with pytest.raises(ValueError, match=r"packed.tar cannot be read as a plain tar file"):
        open_sources(tmp_path)
    (tmp_path / "packed.tar").unlink()
    write_tar(
        tmp_path / "some.tar", [("a.png", picture(0)), ("a.cls", b"1"), ("b.png", picture(1))]
    )
    with pytest.raises(ValueError, match=r"1 images have no .cls member, for instance some.tar:b"):
        open_sources(tmp_path / "some.tar")


def test_parquet_files_as_hugging_face_writes_them(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    about = b'{"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}'
    (tmp_path / "set" / "data").mkdir(parents=True)
    for split, first in (("train", 0), ("test", 7)):
        rows = {
            "image": [{"bytes": picture(first + i), "path": None} for i in range(5)],
            "label": [i % 2 for i in range(5)],
        }
        table = pyarrow.table(rows).replace_schema_metadata({b"huggingface": about})
        path = tmp_path / "set" / "data" / f"{split}-00000-of-00001.parquet"
        parquet.write_table(table, path, row_group_size=2)
    api.cache_images(tmp_path / "set", tmp_path / "cache", workers=2, say=str)
    for split, first in (("train", 0), ("test", 7)):
        images = data.open_images(tmp_path / "cache", size=8, split=split)
        assert images.labels.tolist() == [0, 1, 0, 1, 0]
        assert images.class_names == ["cat", "dog"]
        for i in range(5):
            stored = images.pixels(i).permute(1, 2, 0).numpy()
            assert (stored == noise(9, 8, 3, seed=first + i)).all()


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match=r'needs pyarrow; pip install "clustermim_fast\[data\]"'):
        open_sources(tmp_path)


def test_torchvision_sets(tmp_path, monkeypatch):
    class Tiny:
        classes = ("a", "b")

        def __init__(self, root, train=True):
            if not train and root == "lost":
                raise RuntimeError("Dataset not found")
            self.first, self.targets = (0, [0, 1, 0]) if train else (3, [1, 1])

        def __len__(self):
            return len(self.targets)

        def __getitem__(self, index):
            return Image.fromarray(noise(9, 8, 3, seed=self.first + index)), self.targets[index]

    monkeypatch.setattr(datasets, "CIFAR10", Tiny)
    api.cache_images("torchvision:CIFAR10:x", tmp_path, workers=1, say=str)
    test = data.open_images(tmp_path, size=8, split="test")
    assert test.labels.tolist() == [1, 1]
    assert (test.pixels(1).permute(1, 2, 0).numpy() == noise(9, 8, 3, seed=4)).all()
    with pytest.raises(ValueError, match="torchvision cannot open CIFAR10 in lost: Dataset not"):
        open_sources("torchvision:CIFAR10:lost")
    with pytest.raises(ValueError, match="expected torchvision:NAME:ROOT"):
        open_sources("torchvision:Nothing:x")


def test_the_command(tmp_path, capsys):
    write_folder(tmp_path / "folder", 10)
    out = tmp_path / "cache"
    command = ["cache", f"data={tmp_path / 'folder'}", f"out={out}", "size=8", "decoder=pillow"]
    assert main(command) == 0
    line = capsys.readouterr().out
    assert f"{out}: 9 images, 2 classes, short side <= 8 px, 0.0 MB in 1 shards, mean 0." in line
    assert "1 unreadable" in line
    assert "JPEG by pillow " in line
    assert main(command) == 0
    assert "complete already" in capsys.readouterr().out
    assert main(["cache", f"check={out}"]) == 0
    assert "every file is what was written" in capsys.readouterr().out


@pytest.mark.parametrize(
    "settings, said",
    [
        (["out=x"], "data: expected a value"),
        (["data=digits", "out=x"], "is in memory and needs no cache"),
        (["data=CACHE", "out=x"], "is a cache already"),
        (["data=FOLDER", "out=x", "size=-1"], "size: expected pixels"),
        (["data=FOLDER", "out=x", "decoder=gif"], "decoder: expected auto or one of simplejpeg"),
        (["data=FOLDER", "out=x", "workers=0"], "workers: expected a number of threads"),
        (["check=FOLDER"], "is no cache"),
    ],
)
def test_what_the_command_refuses(tmp_path, capsys, settings, said):
    places = {"FOLDER": tmp_path / "folder", "CACHE": tmp_path / "cache"}
    write_folder(places["FOLDER"], 4)
    build(places["FOLDER"], places["CACHE"])
    for name, place in places.items():
        settings = [text.replace(name, str(place)) for text in settings]
    assert main(["cache", *settings]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
