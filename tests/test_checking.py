"""``vit-hub check``: files as they are pass, changed ones fail, and a certificate can be repeated."""

from __future__ import annotations

import contextlib
import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from golden_cases import CASES
from small_models import random_model

import vit_hub
from vit_hub.certifying.certificate import Certificate
from vit_hub.certifying.golden import golden_cases, golden_error
from vit_hub.certifying.numbers import TOLERANCES
from vit_hub.cli import main
from vit_hub.converters.read import CONFIG_KEY, CONFIG_SHA256_KEY, PASSPORT_KEY

NAME = "vit-nano-digits"
DIGITS = Path(vit_hub.__file__).parent / "data" / "digits"
GOLDEN = {case.name: case for case in CASES}

pytestmark = pytest.mark.filterwarnings("ignore:no preprocessing is recorded", "ignore:.*have the same tensor names")


def check(source: Any, **options: Any) -> Certificate:
    return vit_hub.check(source, **{"against": (), **options})


def verdicts(found: Certificate) -> dict[str, str]:
    return {finding.name: finding.verdict for finding in found.findings}


def failing(found: Certificate) -> set[str]:
    return {name for name, verdict in verdicts(found).items() if verdict == "fail"}


@contextlib.contextmanager
def edited(file: Path) -> Iterator[dict[str, str]]:
    """The metadata of a safetensors file, to be changed in place."""
    raw = file.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + size])
    yield header["__metadata__"]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + size :])


def with_config(file: Path, keep_hash: bool = False, **fields: Any) -> Path:
    """Edit the config in the metadata of a canonical file, as one does by hand."""
    with edited(file) as metadata:
        metadata[CONFIG_KEY] = json.dumps({**json.loads(metadata[CONFIG_KEY]), **fields}, sort_keys=True)
        if not keep_hash:
            del metadata[CONFIG_SHA256_KEY]
    return file


def without_passport(file: Path) -> Path:
    with edited(file) as metadata:
        del metadata[PASSPORT_KEY]
    return file


def hugging_face(folder: Path, act: str) -> Path:
    """A folder of transformers with another activation in its config.json."""
    shutil.copytree(GOLDEN["hf_vit_cls"].checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_act": act}))
    return folder


def test_the_bundled_model_passes_beside_its_peers() -> None:
    found = vit_hub.check(NAME, images=DIGITS)
    assert found.passed
    assert verdicts(found) == {
        "config as published": "pass",
        "error of output": "pass",
        "error of embedding": "pass",
        "error of tokens": "pass",
        "timm": "pass",
        "transformers": "pass",
        "golden cases of vit_jax": "pass",
    }
    figures = {finding.name: finding.figures for finding in found.findings}
    assert figures["error of output"]["top1_agreement"] == 1.0
    assert figures["timm"]["float64"] <= 1e-12
    assert 0 < figures["error of output"]["error"] <= TOLERANCES["float32"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "auto"])
def test_other_dtypes_pass_by_tolerances_of_their_own(dtype: str) -> None:
    found = check(NAME, dtype=dtype)
    assert found.passed
    error = next(finding for finding in found.findings if finding.name == "error of output")
    assert error.tolerance == TOLERANCES["float32" if dtype == "auto" else dtype]


def test_other_runtimes_and_compiled_models_are_certified() -> None:
    assert check(NAME, runtime="onnxruntime").passed
    chosen = check(NAME, runtime="auto")
    assert chosen.passed
    assert chosen.settings["runtime"] in ("torch", "onnxruntime", "openvino")
    with pytest.raises(vit_hub.ConfigError, match="compiles by itself"):
        check(NAME, runtime="onnxruntime", compile="default")
    with pytest.raises(vit_hub.ConfigError, match="runtime"):
        check(NAME, runtime="tensorrt")


@pytest.mark.parametrize(
    "name", ["hf_vit_cls", "timm_vit_reg4_gap", "timm_clip_quickgelu", "hf_clip_vision_projection", "bv_siglip_map",
             "timm_eva02_rope_swiglu", "fb_dinov2_reg4", "mmpre_deit3", "openclip_gelu", "hf_pixtral"]
)  # fmt: skip
def test_files_of_all_kinds_pass_as_they_are_and_converted(name: str, tmp_path: Path) -> None:
    case = GOLDEN[name]
    found = check(case.checkpoint, overrides=case.overrides)
    assert found.passed, failing(found)
    vit_hub.convert(case.checkpoint, tmp_path / "mine.safetensors", overrides=case.overrides)
    # An activation that no file of the project states was given by hand, then as now.
    act = {name: value for name, value in case.overrides.items() if name == "act"}
    again = check(tmp_path / "mine.safetensors", overrides=act)
    assert again.passed, failing(again)
    assert again.weights["sha256"] == found.weights["sha256"]


@pytest.mark.parametrize("act", ["relu", "gelu", "quick_gelu"])
def test_an_activation_given_at_conversion_fails(act: str, tmp_path: Path) -> None:
    report = vit_hub.convert(NAME, tmp_path / "changed.safetensors", overrides={"act": act})
    assert failing(check(report.path)) == {"config as published"}


def test_nobody_can_answer_for_another_activation_of_published_weights() -> None:
    assert failing(check(NAME, overrides={"act": "relu"})) == {"config as published"}


def test_an_activation_given_when_a_model_is_loaded_and_saved_fails(tmp_path: Path) -> None:
    model = vit_hub.load(NAME, overrides={"act": "relu"})
    assert failing(check(model.save(tmp_path / "saved.safetensors"))) == {"config as published"}
    assert failing(check(model)) == {"config as published"}
    assert check(vit_hub.load(NAME)).passed


def test_weights_are_known_by_their_values_where_no_record_is_left(tmp_path: Path) -> None:
    model = vit_hub.load(NAME)
    other = vit_hub.VisionTransformer(model.config.replace(act="relu"))
    other.load_state_dict(model.state_dict())
    assert "config as published" in failing(check(other.save(tmp_path / "bare.safetensors")))


@pytest.mark.parametrize("act", ["relu", "quick_gelu", "gelu_pytorch_tanh"])
def test_a_changed_config_file_fails_unless_the_caller_answers_for_it(act: str, tmp_path: Path) -> None:
    folder = hugging_face(tmp_path / "hf", act)
    found = check(folder)
    assert failing(found) == {"activation"}
    canonical = vit_hub.convert(folder, tmp_path / "canonical.safetensors").path
    assert failing(check(canonical)) == {"activation"}
    assert check(folder, overrides={"act": found.config["act"]}).passed


def test_a_config_edited_by_hand_fails_in_canonical_files(tmp_path: Path) -> None:
    source = GOLDEN["hf_vit_cls"].checkpoint
    file = vit_hub.convert(source, tmp_path / "a.safetensors").path
    assert failing(check(with_config(file, keep_hash=True, act="relu"))) >= {
        "config in the file",
        "config of the source",
    }
    file = vit_hub.convert(source, tmp_path / "b.safetensors").path
    found = check(with_config(file, norm_eps=1e-5))
    assert failing(found) == {"config of the source"}
    assert "1e-05" in next(finding.text for finding in found.findings if finding.name == "config of the source")
    # Without any record an activation of no published model is left to show.
    file = without_passport(vit_hub.convert(source, tmp_path / "c.safetensors").path)
    assert check(file).passed
    assert failing(check(with_config(file, act="relu"))) == {"activation"}


def test_other_heads_and_pools_are_the_users_own(tmp_path: Path) -> None:
    model = vit_hub.load(NAME, num_classes=3)
    assert check(model.save(tmp_path / "tuned.safetensors")).passed
    assert check(vit_hub.load(NAME, image_size=48)).passed


def test_conversions_to_formats_of_another_activation_pass_where_weights_are_known(tmp_path: Path) -> None:
    for to in ("hf", "timm"):
        assert check(vit_hub.convert(NAME, tmp_path / to, to=to).path).passed


def test_a_certificate_is_kept_and_repeated(tmp_path: Path) -> None:
    record = tmp_path / "digits.json"
    first = check(NAME, dtype="bfloat16", certificate=record)
    data = json.loads(record.read_text())
    assert data["passed"]
    assert {"torch", "vit-hub", "processor"} <= set(data["machine"])
    canonical = vit_hub.convert(NAME, tmp_path / "canonical.safetensors").path
    source = vit_hub.open_checkpoint(canonical).provenance["source"]
    assert data["weights"]["files"][0]["sha256"] == source[0]["sha256"]
    again = vit_hub.check(replay=record)
    assert again.passed
    assert again.changes == []
    assert again.settings["dtype"] == "bfloat16"
    assert again.weights == first.weights
    assert vit_hub.check(replay=record, device="cpu").changes == []
    with pytest.raises(vit_hub.ConfigError, match="toaster"):
        vit_hub.check(replay=record, device="toaster")
    # The same weights in another file.
    other = vit_hub.check(canonical, replay=record)
    assert other.passed
    assert all(not change.fails for change in other.changes)


def test_a_repetition_says_what_differs(tmp_path: Path) -> None:
    record = tmp_path / "digits.json"
    check(NAME, certificate=record)
    changed = vit_hub.load(NAME, overrides={"act": "relu"}).save(tmp_path / "relu.safetensors")
    found = vit_hub.check(changed, replay=record)
    assert not found.passed
    assert {change.name for change in found.changes if change.fails} >= {"config: act", "exact output"}
    assert not any(change.name == "weights sha256" for change in found.changes)
    model = vit_hub.load(NAME)
    with torch.no_grad():
        model.head.bias[0] += 1
    found = vit_hub.check(model.save(tmp_path / "other.safetensors"), replay=record)
    assert {change.name for change in found.changes if change.fails} == {"weights sha256", "exact output"}
    data = json.loads(record.read_text())
    data["findings"][-1]["figures"] = {"another": 1.0}
    record.write_text(json.dumps(data))
    found = vit_hub.check(replay=record)
    assert found.passed
    assert "golden cases of vit_jax: another" in {change.name for change in found.changes}


@pytest.mark.parametrize(
    "change",
    [
        *({"settings": {"limit": "x"}}, {"settings": {"against": [1]}}, {"settings": {"opening": {"evil": 1}}}),
        *({"settings": {"opening": {"overrides": 5}}}, {"findings": [{"name": 1}]}, {"reference": {"output": 3}}),
    ],
    ids=str,
)
def test_a_damaged_certificate_is_refused_before_it_is_repeated(change: dict[str, Any], tmp_path: Path) -> None:
    settings = {"device": "cpu", "dtype": "float32", "compile": None, "runtime": "torch", "images": None, "limit": 1}
    settings |= {"against": [], "opening": {}, **change.get("settings", {})}
    record = {"certificate": 1, "source": "vit-nano-digits", "weights": {}, "config": {}, "reference": {}}
    path = tmp_path / "record.json"
    path.write_text(json.dumps({**record, "findings": [], **change, "settings": settings}))
    with pytest.raises(vit_hub.CheckpointError, match=r"not a certificate: it\."):
        vit_hub.check(replay=path)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"certificate": 9}'])
def test_what_is_no_certificate_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(vit_hub.CheckpointError, match="not a certificate"):
        vit_hub.check(replay=tmp_path / "record.json")


def test_a_peer_that_pools_otherwise_is_compared_by_its_tokens() -> None:
    config = vit_hub.get_config("facebook/dinov3-vitb16-pretrain-lvd1689m")
    small = {"image_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_dim": 64}
    found = check(random_model(config.replace(**small, pool="avg")), against=("timm", "transformers"))
    assert verdicts(found)["timm"] == verdicts(found)["transformers"] == "pass"
    texts = {finding.name: finding.text for finding in found.findings}
    assert "tokens" in texts["transformers"]
    assert "tokens" not in texts["timm"]


def test_a_peer_that_masks_at_random_proves_nothing() -> None:
    found = check(GOLDEN["hf_vitmae_model"].checkpoint, against=("transformers",))
    assert found.passed
    assert verdicts(found)["transformers"] == "none"


def test_a_broken_model_fails() -> None:
    model = vit_hub.load(NAME)
    with torch.no_grad():
        model.blocks[0].mlp.fc1.weight.mul_(1e7)  # beyond what float16 holds
    assert "error of output" in failing(check(model, dtype="float16"))


def test_small_cases_of_many_formats_come_with_the_package() -> None:
    cases = list(golden_cases(None))
    assert {case.meta["format"] for case in cases} >= {"timm", "hf", "vit_jax", "big_vision", "facebook", "openai_clip"}
    for kind in ("timm", "hf"):
        assert 3 <= len(list(golden_cases(kind))) < len(cases)
    size = sum(file.stat().st_size for case in cases for file in case.folder.rglob("*") if file.is_file())
    assert size < 3_000_000
    assert golden_error(cases[0], torch.device("cpu"), torch.float32) <= TOLERANCES["float32"]


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["check", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def test_the_command_says_what_passes_and_what_fails(tmp_path: Path) -> None:
    code, out, _ = run(NAME, "--against", "none", "--certificate", tmp_path / "record.json")
    assert code == 0
    assert "passed: vit-nano-digits" in out
    code, out, _ = run("--replay", tmp_path / "record.json", "--device", "cpu")
    assert code == 0
    assert "all figures" in out
    folder = hugging_face(tmp_path / "hf", "relu")
    code, out, _ = run(folder, "--against", "none")
    assert code == 3
    assert "FAIL" in out
    assert "--set act=relu" in out
    code, out, _ = run(folder, "--against", "none", "--quiet")
    assert code == 3
    assert len(out.splitlines()) == 1
    code, out, _ = run(folder, "--against", "none", "--json", "--set", "act=relu")
    assert code == 0
    assert json.loads(out)["passed"] is True


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "MODEL"),
        ([NAME, "--against", "keras"], "keras"),
        (["--replay", "RECORD", "--dtype", "bfloat16"], "--dtype"),
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], words: str, tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    record.write_text("{}")
    code, out, err = run(*[str(record) if item == "RECORD" else item for item in arguments])
    assert (code, out) == (2, "")
    assert words in err
