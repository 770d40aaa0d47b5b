from __future__ import annotations

import pytest

from vit_hub.errors import ConfigError
from vit_hub.preprocessing.labels import LABEL_FILES, label_names


@pytest.mark.parametrize(("kind", "classes"), [("imagenet-1k", 1000), ("imagenet-21k-goog", 21843)])
def test_every_class_has_a_name_of_its_own(kind: str, classes: int) -> None:
    names = label_names(kind)
    assert len(names) == classes
    assert len(set(names)) == classes
    assert all(name == name.strip() and name for name in names)


def test_imagenet_1k_is_in_the_order_of_the_heads_outputs() -> None:
    names = label_names("imagenet-1k")
    assert (names[0], names[207], names[999]) == (
        "tench, Tinca tinca",
        "golden retriever",
        "toilet tissue, toilet paper, bathroom tissue",
    )


def test_classes_with_the_same_lemmas_are_told_apart_by_their_synsets() -> None:
    names = label_names("imagenet-1k")
    assert (names[134], names[517]) == ("crane (n02012849)", "crane (n03126707)")


def test_unknown_labels_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="imagenet-2k") as error:
        label_names("imagenet-2k")
    assert all(kind in error.value.hint for kind in LABEL_FILES)


@pytest.mark.parametrize(
    ("kind", "listing"), [("imagenet-1k", "imagenet1k"), ("imagenet-21k-goog", "imagenet21k_goog")]
)
def test_classes_are_timms(kind: str, listing: str) -> None:
    info = pytest.importorskip("timm.data", reason="timm is not installed").ImageNetInfo(listing)
    assert [name.split(" (n")[0] for name in label_names(kind)] == info.label_descriptions()
