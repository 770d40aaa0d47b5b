"""open_clip: the image tower of state dicts, training checkpoints and hub folders with ``open_clip_config.json``.

Names are OpenAI's. Only the config says whether the last norm comes before pooling or after it
(``final_ln_after_pool``): without one it is after pooling, as in OpenAI's and all published average-pooling models.
Source: open_clip/transformer.py, model.py, constants.py, training/main.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.formats.openai_clip import LIMITS, PROJECTION, TOWERS, attention, clip_rules, mlp, norm1, norm2
from vit_hub.converters.formats.timm import mlp_ratio
from vit_hub.converters.passport import Passport
from vit_hub.converters.rules.format import Dialect, Format, Sidecars, Stated
from vit_hub.converters.rules.table import rule
from vit_hub.converters.tensors import LazyTensor
from vit_hub.model.config import ViTConfig
from vit_hub.preprocessing.project_files import open_clip_preprocess, stated_preprocessing
from vit_hub.preprocessing.spec import Preprocessing, nested

__all__ = ["CONFIG", "LACKS", "PREFIXES", "is_named", "model_config"]

CONFIG = "open_clip_config.json"
PREFIXES = ("", "state_dict/module.", "state_dict/", "module.")

_LAYER = "${visual}transformer.resblocks.{i}"
_BLOCK = (
    *norm1,
    *attention,
    rule("blocks.{i}.ls1.gamma", f"{_LAYER}.ls_1.gamma"),
    *norm2,
    *mlp,
    rule("blocks.{i}.ls2.gamma", f"{_LAYER}.ls_2.gamma"),
)
_POOLS = {"tok": "cls", "avg": "avg"}
LACKS = (
    "only the image tower is written, without a text tower: vit_hub.load reads it, open_clip.create_model does not; "
    "into a model of open_clip with such a tower it goes by open_clip.load_checkpoint(model, FILE, strict=False)"
)


def model_config(raw: RawCheckpoint) -> Mapping[str, Any]:
    """Return ``model_cfg`` of the config beside the weights; empty if there is none."""
    return nested(raw.sidecars, CONFIG, "model_cfg")


def is_named(raw: RawCheckpoint) -> bool:
    """Return whether files have open_clip's customary names."""
    return CONFIG in raw.sidecars or any(file.name.startswith("open_clip_") for file in raw.files)


def _evidence(raw: RawCheckpoint, prefix: str, after: bool) -> int:
    """Return the evidence of customary file names, and of a config with the norm in the place of this format."""
    config = model_config(raw).get("vision_cfg")
    # A number that only OpenAI's files hold.
    if any(name.rpartition(".")[2] == "input_resolution" for name in raw.tensors):
        return -1
    if config is None:
        return 4 * is_named(raw) if after else -1
    return 4 if bool(config.get("final_ln_after_pool", False)) == after else 3


def _state(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    """Read the config; without one, the class token is pooled."""
    model = model_config(raw)
    vision = model.get("vision_cfg")
    if vision is None:
        return Stated({"pool": "cls"}, "open_clip's default pool_type")
    fields: dict[str, Any] = {
        "pool": _POOLS.get(vision.get("pool_type", "tok"), "none"),
        "act": "quick_gelu" if model.get("quick_gelu") else "gelu",
        "norm_eps": float((vision.get("norm_kwargs") or {}).get("eps", 1e-5)),
    }
    if (vision.get("act_kwargs") or {}).get("approximate") == "tanh":
        fields["act"] = "gelu_tanh"
    if isinstance(vision.get("width"), int):
        fields["num_heads"] = vision["width"] // int(vision.get("head_width", 64))
    fields |= {key: vision[key] for key in ("image_size", "patch_size") if key in vision}
    return Stated(fields, CONFIG)


def _sidecars(config: ViTConfig, passport: Passport | None) -> Sidecars:
    """Return the config from which open_clip builds the tower; other keys of an earlier one are kept."""
    kept = dict(passport.sidecars.get(CONFIG, {})) if passport else {}
    model = dict(kept.get("model_cfg", {}))
    pools = {pool: name for name, pool in _POOLS.items()}
    sizes = {name: getattr(config, name) for name in ("image_size", "patch_size")}
    vision: dict[str, Any] = {
        **model.get("vision_cfg", {}),
        **{name: size[0] if size[0] == size[1] else list(size) for name, size in sizes.items()},
        "layers": config.depth,
        "width": config.embed_dim,
        "head_width": config.head_dim,
        "mlp_ratio": mlp_ratio(config.embed_dim, config.mlp_dim),
        "no_ln_pre": not config.pre_norm,
        "pool_type": pools.get(config.pool, "none"),
        "final_ln_after_pool": config.final_norm == "after",
        "ls_init_value": (model.get("vision_cfg", {}).get("ls_init_value") or 1.0) if config.layer_scale else None,
        "norm_kwargs": None if config.norm_eps == 1e-5 else {"eps": config.norm_eps},
        "act_kwargs": {"approximate": "tanh"} if config.act == "gelu_tanh" else None,
    }
    quick = config.act == "quick_gelu"
    model |= {"embed_dim": config.projection_dim, "quick_gelu": quick, "vision_cfg": vision}
    file = {**kept, "model_cfg": model}
    usable = "preprocess_cfg" not in file or stated_preprocessing({CONFIG: kept})[0] is not None
    if passport and passport.preprocess and usable:
        written = open_clip_preprocess(Preprocessing.from_dict(passport.preprocess))
        file["preprocess_cfg"] = {**file.get("preprocess_cfg", {}), **written}
    return {CONFIG: file}


def _format(name: str, last_norm: str) -> Format:
    return Format(
        name="open_clip",
        project="open_clip",
        rules=clip_rules(_BLOCK, last_norm),
        dialects=tuple(Dialect(name, tower) for tower in TOWERS),
        prefixes=PREFIXES,
        conventions={"act": "gelu", "norm_eps": 1e-5, "resize": "bicubic-antialias", "resize_by_count": True},
        limits={**LIMITS, "pool": ("cls", "avg")},
        requires=(PROJECTION,),
        evidence=partial(_evidence, after=last_norm == "fc_norm"),
        state=_state,
        sidecars=_sidecars,
        lacks=LACKS,
        filename="open_clip_model.safetensors",
    )


FORMATS = (_format("", "fc_norm"), _format("ln_before_pool", "norm"))
