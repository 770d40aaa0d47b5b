"""Names of AugReg files: read, written, and what they tell."""

from __future__ import annotations

import pytest
from hub_fixtures import cache
from hypothesis import given
from hypothesis import strategies as st

import vit_hub
from vit_hub.errors import CheckpointError, ModelNotFoundError
from vit_hub.hub.cache.paths import fetched_file
from vit_hub.hub.names.augreg import AugRegName, Finetuning, entry_of, parse
from vit_hub.hub.names.locate import locate
from vit_hub.model.shapes import num_parameters
from vit_hub.preprocessing.labels import label_names
from vit_hub.preprocessing.spec import Preprocessing
from vit_hub.registry import get_entry, list_models

__all__ = ["cache"]  # fixture

FOLDER = "https://storage.googleapis.com/vit_models/augreg/"
UPSTREAM = "B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0"
OTHER = "S_16-i1k-300ep-lr_0.001-aug_light0-wd_0.03-do_0.1-sd_0.1--kitti-steps_0k-lr_0.003-res_384"

MODELS = ("Ti_16", "S_32", "S_16", "B_32", "B_16", "B_8", "L_16", "R_Ti_16", "R26_S_32", "R50_L_32")
NAMES = st.builds(
    AugRegName,
    model=st.sampled_from(MODELS),
    data=st.sampled_from(("i1k", "i21k")),
    epochs=st.sampled_from(("300", "30")),
    lr=st.sampled_from(("0.001", "0.0003")),
    augmentation=st.sampled_from(("none", "light0", "light1", "medium1", "medium2", "strong1", "strong2")),
    weight_decay=st.sampled_from(("0.03", "0.1")),
    dropout=st.sampled_from(("0.0", "0.1")),
    stochastic_depth=st.sampled_from(("0.0", "0.1")),
    finetuning=st.none()
    | st.builds(
        Finetuning,
        data=st.sampled_from(("imagenet2012", "cifar100", "kitti", "oxford_iiit_pet", "resisc45")),
        steps=st.sampled_from(("0", "2", "10", "20")),
        lr=st.sampled_from(("0.001", "0.003", "0.01", "0.03")),
        resolution=st.sampled_from(("224", "384")),
    ),
)


@given(NAMES)
def test_every_name_is_read_and_written_back(name: AugRegName) -> None:
    assert parse(str(name)) == parse(f"{name}.npz") == name
    entry = entry_of(name)
    assert entry.sources[0].url == f"{FOLDER}{name}.npz"
    assert entry.config.image_size == Preprocessing.from_dict(entry.preprocess).image_size
    assert entry.labels is None or len(label_names(entry.labels)) == entry.config.num_classes


@given(NAMES, st.data())
def test_a_name_with_one_part_changed_is_refused(name: AugRegName, data: st.DataObject) -> None:
    stages = [stage.split("-") for stage in str(name).split("--")]
    stage = data.draw(st.sampled_from(stages))
    place = data.draw(st.integers(0, len(stage) - 1))
    stage[place] = data.draw(st.sampled_from(("", "x", f"{stage[place]}x", stage[place].upper() + "_", "\uff19")))
    with pytest.raises(ModelNotFoundError) as error:
        parse("--".join("-".join(parts) for parts in stages))
    assert error.value.hint


@pytest.mark.parametrize(
    ("name", "wrong", "may_be"),
    [
        ("", "the model is missing", "Ti_16"),
        ("B_17" + UPSTREAM[4:], "'B_17' is no model", "B_16"),
        ("ViT-B_16", "'ViT' is no model", "B_16"),
        ("B_16-i22k", "'i22k' is no training data", "i21k"),
        ("B_16-i21k-300ep-lr_0.001-aug_heavy", "'aug_heavy' is no augmentation", "aug_strong2"),
        ("B_16-i21k-300ep-lr_fast", "'lr_fast' is no learning rate", "lr_0.001"),
        ("B_16-i21k-300ep", "the learning rate is missing", "lr_0.001"),
        (UPSTREAM + "--imagenet-steps_20k", "'imagenet' is no fine-tuning data", "imagenet2012"),
        (UPSTREAM + "--kitti-steps_20k-lr_0.01-res_256", "'res_256' is no resolution", "res_384"),
        (UPSTREAM + "-imagenet2012", "nothing may follow its stochastic depth", "two dashes"),
        (OTHER + "-x", "nothing may follow its resolution", "two dashes"),
    ],
)
def test_a_name_that_is_none_says_which_part_is_wrong(name: str, wrong: str, may_be: str) -> None:
    with pytest.raises(ModelNotFoundError) as error:
        locate(f"augreg:{name}")
    assert wrong in error.value.message
    assert may_be in error.value.hint


def test_a_file_that_the_registry_knows_is_the_registrys() -> None:
    entry, (first, *others) = locate(f"augreg:{UPSTREAM}.npz")
    assert entry == get_entry("vit-b16.augreg-in21k-224")
    assert first.url == f"{FOLDER}{UPSTREAM}.npz"
    assert [first, *others] == sorted(entry.sources, key=lambda source: source != first)


def test_any_other_file_is_told_from_its_name() -> None:
    entry, (source,) = locate(f"AugReg:{OTHER}")
    assert entry
    assert entry.id == f"augreg:{OTHER}"
    assert (source.kind, source.format, source.url) == ("https", "vit_jax", f"{FOLDER}{OTHER}.npz")
    assert (entry.license, entry.restricted, entry.labels) == ("apache-2.0", False, None)
    assert entry.data == {"pretrain": "imagenet-1k", "finetune": "kitti"}
    config = entry.config
    assert (config.embed_dim, config.patch_size, config.image_size) == (384, (16, 16), (384, 384))
    assert (config.num_classes, config.act, config.resize) == (4, "gelu_tanh", "bilinear-align-corners")


@pytest.mark.parametrize(
    "model_id",
    [name for name in list_models() if (get_entry(name).sources[0].url or "").startswith(FOLDER)],
)
def test_names_tell_what_the_registry_says(model_id: str) -> None:
    known = get_entry(model_id)
    found = entry_of(parse(str(known.sources[0].url).removeprefix(FOLDER)))
    for field in ("config", "license", "restricted", "data", "labels"):
        assert getattr(found, field) == getattr(known, field), field
    assert Preprocessing.from_dict(found.preprocess) == Preprocessing.from_dict(known.preprocess)


@pytest.mark.parametrize(
    ("model", "params"),
    [
        # timm's models of the same files have as many.
        ("Ti_16", 9_740_115),
        ("B_16", 102_595_923),
        ("R_Ti_16", 10_360_403),
        ("R26_S_32", 44_456_467),
        ("R50_L_32", 350_358_931),
    ],
)
def test_models_are_of_the_documented_size(model: str, params: int) -> None:
    name = parse(f"{model}-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0")
    assert num_parameters(name.config) == params


def test_loading_checks_what_the_name_promises() -> None:
    name = parse("Ti_16-i1k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0--kitti-steps_0k-lr_0.003-res_224")
    file = fetched_file(name.url)
    vit_hub.VisionTransformer(name.config.replace(depth=1)).save("other.safetensors")
    vit_hub.convert("other.safetensors", file, to="vit_jax")
    with pytest.raises(CheckpointError, match="its depth is 1, expected 12"):
        vit_hub.load(f"augreg:{name}", offline=True)

    vit_hub.VisionTransformer(name.config).save("ti16.safetensors")
    vit_hub.convert("ti16.safetensors", file, to="vit_jax")
    loaded = vit_hub.load(f"augreg:{name}", offline=True)
    assert loaded.config == name.config
    assert loaded.passport
    assert (loaded.passport.weights_id, loaded.passport.license) == (f"augreg:{name}", "apache-2.0")
