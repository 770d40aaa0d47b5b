"""Write docs/formats.md from the formats themselves and from the recorded models in tests/golden.

python tools/formats_document.py
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
import sys
import warnings
from pathlib import Path

from vit_hub.converters import format_names, formats, open_checkpoint
from vit_hub.converters.formats import all_formats
from vit_hub.converters.rules.format import Format
from vit_hub.converters.write import prospects

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "formats.md"
GOLDEN = [file for folder in ("tests", "vit_hub/data") for file in (ROOT / folder / "golden").glob("*/meta.json")]

# Recorded model -> what it is called in the matrix.
MODELS = {
    "vitjax_token_prelinen_npz": "ViT, class token",
    "vitjax_gap": "ViT, average",
    "vitjax_token_prelogits_prelinen": "ViT, pre-logits layer",
    "vitjax_hybrid_r_blocks_prelinen": "R+ViT hybrid",
    "bv_tok_sincos2d": "ViT, sin-cos table",
    "bv_siglip_map": "SigLIP",
    "timm_vit_token": "ViT",
    "timm_vit_avg_fcnorm": "ViT, average, fc_norm",
    "timm_vit_reg4_gap": "ViT with registers",
    "timm_siglip_map": "SigLIP, exact GELU",
    "timm_deit3": "DeiT III",
    "timm_deit_distilled": "DeiT, distilled",
    "timm_clip_quickgelu": "CLIP, classifier",
    "timm_dinov2_small": "DINOv2, classifier",
    "timm_dinov3_small_token": "DINOv3, classifier",
    "timm_beit": "BEiT",
    "timm_relpos_cls": "ViT, relative positions by a network",
    "timm_vit_rpn": "ViT, norms after the layers",
    "timm_pwee": "ViT, parallel layers",
    "timm_dpwee": "ViT, parallel layers, differential attention",
    "timm_eva02_rope_swiglu": "EVA-02",
    "timm_pe_core_map": "Perception Encoder",
    "naflex_gap": "NaFlexVit",
    "hf_vit_cls": "ViT, epsilon 1e-12",
    "hf_deit_teacher": "DeiT with teacher",
    "hf_vitmsn_model": "ViTMSN",
    "hf_beit_cls_relpos": "BEiT, epsilon 1e-12",
    "hf_dinov2_cls": "Dinov2 classifier",
    "hf_dinov2reg_model": "Dinov2WithRegisters",
    "hf_dinov3_vit": "DINOv3ViT",
    "hf_siglip_vision": "Siglip",
    "hf_siglip2_vision_square": "Siglip2",
    "hf_clip_vision_projection": "CLIP",
    "hf_ijepa_model": "I-JEPA, epsilon 1e-12",
    "hf_aimv2_head": "AIMv2, attention pooling",
    "hf_internvl_vision": "InternViT",
    "hf_radio": "RADIO",
    "hf_sapiens2": "Sapiens 2",
    "hf_pixtral": "Pixtral",
    "hf_mlcd": "MLCD",
    "hfflax_beit_cls": "BEiT, epsilon 1e-12",
    "hfflax_clip_whole": "CLIP",
    "hftf_data2vec_cls": "Data2VecVision, epsilon 1e-12",
    "hftf_deit_teacher": "DeiT with teacher",
    "kerashub_vit_cls": "ViT",
    "kerashub_dinov2": "DINOv2",
    "kerashub_clip": "CLIP",
    "torchvision_vit": "ViT",
    "openai_clip_visual": "CLIP",
    "openclip_gelu": "CLIP, exact GELU",
    "fb_dino": "DINO",
    "fb_deit3_LS": "DeiT III",
    "fb_mae_pretrain": "MAE",
    "fb_mae_finetune_globalpool": "MAE, fine-tuned",
    "fb_mocov3_linear": "MoCo v3, linear probe",
    "fb_msn": "MSN",
    "fb_ijepa_encoder": "I-JEPA",
    "fb_dinov2": "DINOv2",
    "fb_dinov2_reg4": "DINOv2 with registers",
    "fb_dinov2_giant_swiglu": "DINOv2 giant",
    "fb_dinov3_vits_style": "DINOv3",
    "mmpre_vit_mae_ft_avg": "MAE, fine-tuned",
    "mmpre_deit3": "DeiT3",
    "mmpre_beit": "BEiT",
    "mmpre_eva02_nosub": "EVA-02",
}
# Prefix of the recorded models -> format.
SOURCES = {
    "naflex": "timm",
    "vitjax": "vit_jax",
    "bv": "big_vision",
    "fb": "facebook",
    "openai": "openai_clip",
    "openclip": "open_clip",
    "mmpre": "mmpretrain",
    "hfflax": "hf_flax",
    "hftf": "hf_tf",
    "kerashub": "keras_hub",
}
# Projects whose files do not state the number of heads, or the image size of a model without a table.
UNSTATED = ("timm", "fb", "torchvision", "openclip", "openai")

INTRODUCTION = """\
# Formats

Written by `python tools/formats_document.py` from the formats' own tables and from the models in `tests/golden`;
`tests/docs/test_docs_formats.py` fails if it is not up to date.

`to=`, `format=`, `--to` and `--format` take the names in the first column, with or without a dialect (`hf-v5`). Every
format is read. It is written if it can express the model: if the file, with the config file beside it, loads as a model
with the same outputs.

## What is read and written

| format | dialects | project | models | container |
|---|---|---|---|---|
"""
CONVENTIONS = """
Any prefix and any wrapper before the names (`module.`, `_orig_mod.`, `state_dict`, `model.backbone.`, `params/`) is
read, reported and written back; `prefix=` (`--prefix`) chooses where a file holds several models. What stands beside
the encoder (optimiser states, text towers, decoders) is listed as dropped; `--keep-rest` keeps it. The timm towers of
open_clip are written only from files of the same kind, because the weights do not contain the names of their
architectures. `canonical` is vit-hub's own format: safetensors with timm's names, config and provenance in the
metadata; it expresses every model.

For every format, these containers are read: npz, safetensors, PyTorch files (also nested dicts), TorchScript, archives
of `torch.export` (`.pt2`), sharded checkpoints with an index, folders with their config files, msgpack and HDF5
files, and ONNX files with the names of a format, also where the exporter transposed and renamed weights: the graph
tells what they are, or the file is refused. MLX's files (torch's names, channels last) are read and written back so.
RADIO's summary, several tokens side by side, is written for transformers alone; `pool_tokens=()`
(`--set pool_tokens=none`) reads the first of them, as timm's RADIO does, which other formats can hold.
Of a sharded checkpoint of a larger model, only the files with its image encoder are opened, and of a repository only
these are fetched; `--keep-rest` needs all. Objects that are pickled
beside the weights are read as plain data, whatever their class; nothing is imported or run, and a file that asks for a
function is refused by its name.

Folders of training tools are read, too, with a warning that names what was chosen:

| tool | what is read |
|---|---|
| torch.distributed.checkpoint, FSDP | `.metadata` and `*.distcp`, also of several processes, one chunk at a time |
| Trainer of transformers | the folder's weights, else the best `checkpoint-N` by `trainer_state.json`, or the last |
| accelerate | `save_model`, `save_state`; the last of `checkpoints/checkpoint_N` |
| DeepSpeed | the step that `latest` names; for ZeRO stage 3 run its `zero_to_fp32.py` first |
| Lightning | `.ckpt`; of several in the last version of `lightning_logs` the best by their callbacks, else the last |
| timm, mmengine, DINO | `model_best.pth.tar`, `best_*.pth`; else `last`, `checkpoint` or the highest number |
| peft | LoRA, rsLoRA and DoRA adapters, merged into the base model that they name, or `base=` (`--base`) |
| linear heads | one linear layer, joined with its backbone by `head=` (`--head`): DINO's, DINOv2's, DINOv3's, probes |

`dequantize=True` (`--dequantize`) computes floating-point weights from bitsandbytes' 8 and 4 bits, and from 8-bit
floats and integers with scales; without it, and for other kinds, quantized weights are refused as such.

## What files do not state

These follow the conventions of the project that a file comes from, unless its tensors or a config file beside it state
them, and are listed as inferred. "resize" is how the project adapts a position table to another image size.

| format | project | activation | epsilon of norms | resize |
|---|---|---|---|---|
"""
LIMITS = """
## What original classes are limited to

A format refuses a model that its project's own class cannot compute, even if its file could hold the tensors. These are
the config fields that a class limits, with the possible values, and conditions over several fields. Unless a row says
otherwise, `ffn` is mlp and `head_input` is pooled.

| format | project | fields | conditions |
|---|---|---|---|
"""
MATRIX = """
## Which format can express which model

One row for each kind of recorded model, as it comes from its project, written as a folder with its config file.
**own**: the format that it comes from. **yes**: the same tensors under other names. **folded**: some tensors are
computed such that the outputs stay the same, which is irreversible and reported. Otherwise the first three config
fields that the format cannot express; `--lossy` writes it nevertheless and reports by how much the outputs change.

What is folded: a mask over attention biases is applied to them; biases that a class always has are added as zeros, and
those of keys are left out where they have no effect; a computed position table is stored; rows of a position table are
added to the class token and the registers, or rows of zeros put before it; layer scale is multiplied into the layer
before it, or added as ones; missing biases of the blocks are added as zeros; all tokens are normed where only the class
token was; CLIP's projection becomes a head with a bias of zeros; stored periods of rotary embeddings are left out if
they equal the computed ones. Sums and products are kept in float32.

"""
VERSIONS = """
## Tested against

Outputs recorded from the projects' own code (`tests/golden`), and, where the project is installed for the tests, its
code beside this library's over random small models and the files that this library writes (`tests/parity`).

| project | version |
|---|---|
"""


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n"


def _modules() -> dict[str, tuple[Format, ...]]:
    """The first sentence of a module of formats -> its formats."""
    found = {}
    for info in pkgutil.iter_modules(formats.__path__):
        if info.name.startswith("_"):
            continue
        module = importlib.import_module(f"{formats.__name__}.{info.name}")
        summary = " ".join((module.__doc__ or "").split("\n\n")[0].split())
        found[summary] = module.FORMATS
    return found


def _formats() -> str:
    rows = ""
    for summary, members in _modules().items():
        name = members[0].name
        labels = dict.fromkeys(fmt.label(dialect) for fmt in members for dialect in fmt.dialects)
        dialects = [label.removeprefix(f"{name}-") for label in labels if label != name]
        parts = dict.fromkeys(part for dialect in dialects for part in dialect.split("-"))
        combined = len(dialects) > len(parts)
        shown = ", ".join(f"`{item}`" for item in (parts if combined else dialects)) + " and combined" * combined
        projects = dict.fromkeys(re.split(r"'s? ", fmt.project)[0] for fmt in members)
        containers = dict.fromkeys(fmt.container for fmt in members)
        models = re.split(r"(?<=\w)\. |; ", summary)[0].rstrip(".").replace("``", "`")
        models = models.removeprefix(f"{members[0].project}: ")
        rows += _row(f"`{name}`", shown, ", ".join(projects), models, ", ".join(containers))
    return rows


def _conventions() -> str:
    rows = {}
    for fmt in all_formats():
        known, label = fmt.conventions, fmt.label(fmt.dialects[0])
        eps = f"{known['norm_eps']:.0e}".replace("e-0", "e-")
        rows[_row(f"`{label}`", fmt.project, f"`{known['act']}`", eps, f"`{known['resize']}`")] = label
    return "".join(rows)


def _limits() -> str:
    rows: dict[tuple[str, ...], list[str]] = {}
    for fmt in all_formats():
        if not fmt.returned_only:
            possible = {name: values for name, values in fmt.possible_values().items() if name in fmt.limits}
            fields = [f"`{name}` {' or '.join(map(str, possible[name]))}" for name in sorted(possible)]
            conditions = [f"`{need.field}`: {need.message}" for need in fmt.requires]
            cells = (fmt.project, ", ".join(fields), "; ".join(conditions))
            rows.setdefault(cells, []).append(f"`{fmt.label(fmt.dialects[0])}`")
    return "".join(_row(", ".join(labels), *cells) for cells, labels in rows.items())


def _overrides(name: str, config: dict[str, object]) -> dict[str, object]:
    options: dict[str, object] = {}
    if name.startswith(UNSTATED):
        options["num_heads"] = config["heads"]
    if "quick" in str(config["activation"]).lower() and name.startswith("timm"):
        options["act"] = "quick_gelu"
    if name.startswith(("timm_dinov3", "fb_dinov3", "bv_tok_sincos2d")):
        options["image_size"] = tuple(config["image_size"])  # type: ignore[arg-type]
    if name.startswith("timm_dinov3"):
        options["pool"] = "cls"
    return options


def _matrix() -> str:
    targets = [
        name for name in format_names() if any(fmt.name == name and not fmt.returned_only for fmt in all_formats())
    ]
    text = _row("from", "model", *(f"`{name}`" for name in targets)) + _row(*["---"] * (2 + len(targets)))
    for case, model in MODELS.items():
        file = next(file for file in GOLDEN if file.parent.name == case)
        meta = json.loads(file.read_text(encoding="utf-8"))
        ckpt = open_checkpoint(file.parent / meta["checkpoint"], overrides=_overrides(case, meta["config"]))
        source = ckpt.format.partition("-")[0]
        project = case.partition("_")[0]
        assert source == SOURCES.get(project, project), case
        text += _row(f"`{source}`", model, *("**own**" if to == source else _cell(ckpt, to) for to in targets))
    return text


def _cell(ckpt: object, to: str) -> str:
    problems, folded = prospects(ckpt, to)  # type: ignore[arg-type]
    shown = [*problems][:3] + ["..."] * (len(problems) > 3)
    return ", ".join(shown) or ("**folded**" if folded else "**yes**")


def _versions() -> str:
    pinned = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if "==" in line
    )
    found: dict[str, str] = {}
    for file in sorted(GOLDEN, key=lambda file: file.parent.name):
        source = json.loads(file.read_text(encoding="utf-8"))["source"]
        project = source["project"].partition(" (")[0]
        version = source.get("version", "").partition("+")[0] or source.get("commit", "")[:7]
        installed = pinned.get(project.rpartition("/")[2])
        if version:
            found[project] = version + (", installed for the tests" if installed == version else "")
    return "".join(_row(project, version) for project, version in sorted(found.items()))


def document() -> str:
    """The text of docs/formats.md."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parts = (
            INTRODUCTION,
            _formats(),
            CONVENTIONS,
            _conventions(),
            LIMITS,
            _limits(),
            MATRIX,
            _matrix(),
            VERSIONS,
            _versions(),
        )
        return "".join(parts)


if __name__ == "__main__":
    TARGET.write_text(document(), encoding="utf-8")
    sys.stdout.write(f"{TARGET}\n")
