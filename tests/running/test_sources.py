"""Images are found in the same order everywhere, with the names and labels that belong to them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from noise import save_noise

from vit_hub.errors import ConfigError, VitHubError
from vit_hub.running.reading import content_of
from vit_hub.running.sources import Item, Sources


def found(*given: object, **columns: Any) -> list[Item]:
    sources = Sources.of([str(name) for name in given], **columns)
    items = list(sources.items())
    assert [item.id for item in items] == list(range(len(items)))
    assert sources.count() == len(items)
    return items


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def test_folders_as_image_folder_has_them(photos: Path) -> None:
    from torchvision.datasets import ImageFolder

    items = found(photos)
    assert [item.path for item in items][:4] == ["cat/01.png", "cat/02.png", "cat/04.png", "cat/05.png"]
    assert items[-1].path == "top.jpg"
    assert items[-1].label is None
    theirs = ImageFolder(str(photos))
    expected = {str(Path(path).relative_to(photos)): theirs.classes[label] for path, label in theirs.samples}
    assert {item.path: item.label for item in items if item.label} == expected
    assert all(content_of(item) == (photos / item.path).read_bytes() for item in items)


def test_links_are_followed_but_not_in_circles_and_hidden_files_are_not_images(photos: Path, tmp_path: Path) -> None:
    count = len(found(photos))
    save_noise(photos / ".thumbnails" / "a.png", 0)
    save_noise(photos / "cat" / ".a.png", 0)
    (photos / "cat" / "round").symlink_to(photos)
    assert len(found(photos)) == count
    elsewhere = save_noise(tmp_path / "elsewhere" / "x.png", 1)
    (photos / "linked").symlink_to(elsewhere.parent)
    assert "linked/x.png" in [item.path for item in found(photos)]


def test_patterns_files_and_lists(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = str(photos / "cat" / "*.png")
    matches = [item.path for item in found(pattern)]
    assert matches == sorted(str(path) for path in (photos / "cat").glob("*.png"))
    assert len(found(str(photos / "**" / "*.png"))) == 12
    with pytest.raises(VitHubError, match="no file matches"):
        found(photos / "*.webp")
    lines = f"{photos / 'top.jpg'}\n\nhttps://example.org/a.jpg\n{pattern}\n"
    (tmp_path / "list.txt").write_text(lines)
    expected = [str(photos / "top.jpg"), "https://example.org/a.jpg", *matches]
    assert [item.path for item in found(tmp_path / "list.txt")] == expected
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    assert [item.path for item in found("-")] == expected
    with pytest.raises(ConfigError, match="no images are given"):
        found()


def test_logins_are_not_written_anywhere() -> None:
    (item,) = found("https://me:secret@example.org/a.jpg")
    assert (item.path, item.name) == ("https://example.org/a.jpg",) * 2
    assert item.place.file == "https://me:secret@example.org/a.jpg"


def test_a_name_with_the_signs_of_patterns_is_a_file_if_there_is_one(tmp_path: Path) -> None:
    name = save_noise(tmp_path / "a[1].png", 0)
    assert [item.path for item in found(name)] == [str(name)]


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("")
    with pytest.raises(VitHubError, match="no image file in this folder"):
        found(tmp_path)


def test_tar_shards(photos: Path, tmp_path: Path) -> None:
    content = {name: (photos / "cat" / f"{name}.png").read_bytes() for name in ("01", "02")}
    shard = tmp_path / "shards" / "000.tar"
    shard.parent.mkdir()
    with tarfile.open(shard, "w") as archive:
        add(archive, "a/01.png", content["01"])
        add(archive, "a/01.cls", b"3\n")
        add(archive, "a/02.cls", b"dog")
        add(archive, "a/02.json", b"{}")
        add(archive, "a/02.png", content["02"])
        add(archive, "a/03.png", content["01"])
    items = found(shard)
    assert [(item.path, item.label) for item in items] == [
        (f"{shard}/a/01.png", "3"),
        (f"{shard}/a/02.png", "dog"),
        (f"{shard}/a/03.png", None),
    ]
    assert [content_of(item) for item in items] == [content["01"], content["02"], content["01"]]
    assert next(item.path for item in found(shard.parent)) == "000.tar/a/01.png"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    *fine, broken = found(shard)
    assert fine
    with pytest.raises(VitHubError, match="cannot be read as a tar archive"):
        content_of(broken)


@pytest.mark.parametrize("struct", [False, True])
def test_parquet_files(struct: bool, photos: Path, tmp_path: Path) -> None:
    content = [(photos / "cat" / f"{name}.png").read_bytes() for name in ("01", "02", "04")]
    images: list[Any] = [*content, None]
    if struct:
        images = [None if image is None else {"bytes": image, "path": "x.png"} for image in images]
        images[0] = {"bytes": None, "path": str(photos / "cat" / "01.png")}
    pq.write_table(pa.table({"image": images, "label": [0, 1, None, 0]}), tmp_path / "a.parquet", row_group_size=3)
    items = found(tmp_path / "a.parquet")
    assert [item.path for item in items] == [f"{tmp_path}/a.parquet/{row}" for row in range(4)]
    assert [item.label for item in items] == ["0", "1", None, "0"]
    assert [content_of(item) for item in items[:3]] == content
    with pytest.raises(VitHubError, match="the row has no image"):
        content_of(items[3])


def test_a_file_that_was_replaced_is_read_again(tmp_path: Path) -> None:
    for content in (b"first", b"another"):
        pq.write_table(pa.table({"image": [content]}), tmp_path / "a.parquet")
        assert [content_of(item) for item in found(tmp_path / "a.parquet")] == [content]


def test_class_names_of_datasets(photos: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"img": [str(photos / "cat" / "01.png"), str(photos / "dog" / "07.png")], "label": [0, 1]}
    data = datasets.Dataset.from_dict(rows, features=features)
    data.to_parquet(tmp_path / "a.parquet")
    items = found(tmp_path / "a.parquet")
    assert [item.label for item in items] == ["cat", "dog"]
    assert content_of(items[1]) == (photos / "dog" / "07.png").read_bytes()


def test_columns_that_cannot_be_guessed_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"left": [b"x"], "right": [b"y"], "kind": ["cat"]}), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match="several columns could hold images: left, right"):
        found(tmp_path / "a.parquet")
    (item,) = found(tmp_path / "a.parquet", image_column="right", label_column="kind")
    assert (content_of(item), item.label) == (b"y", "cat")
    with pytest.raises(ConfigError, match="no fitting column 'size'"):
        found(tmp_path / "a.parquet", image_column="size")
    pq.write_table(pa.table({"kind": ["cat"]}), tmp_path / "b.parquet")
    with pytest.raises(ConfigError, match="no column holds the bytes of images"):
        found(tmp_path / "b.parquet")
    (tmp_path / "c.parquet").write_text(json.dumps({}))
    (item,) = found(tmp_path / "c.parquet")
    with pytest.raises(VitHubError, match="cannot be read as parquet"):
        content_of(item)
