"""open_clip with one of timm's models as image tower (``visual.trunk``): timm's tables under another root.

Such towers are read, and written back only to this format: open_clip builds them by their name in timm.
Source: open_clip/timm_model.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.formats import timm, timm_beit, timm_eva, timm_parallel, timm_relpos
from vit_hub.converters.formats.open_clip import CONFIG, LACKS, PREFIXES, model_config
from vit_hub.converters.rules.format import Dialect, Format, Requirement, Stated
from vit_hub.converters.rules.table import Drop, rule
from vit_hub.converters.tensors import LazyTensor

_TRUNK = "visual.trunk."


def _as_timm(raw: RawCheckpoint) -> RawCheckpoint:
    """Return the checkpoint with its config as timm's config.json, as open_clip passes it to timm."""
    vision = model_config(raw).get("vision_cfg", {})
    name = vision.get("timm_model_name")
    sidecars = {key: value for key, value in raw.sidecars.items() if key not in ("config.json", CONFIG)}
    if name:
        size = vision.get("image_size", 224)
        height, width = (size, size) if isinstance(size, int) else size
        file = {"architecture": name, "pretrained_cfg": {"input_size": [3, height, width]}}
        # Before a projection of its own, an empty name means timm's pooling.
        pool, projects = vision.get("timm_pool", "avg"), vision.get("timm_proj", "linear") in ("linear", "mlp")
        sidecars["config.json"] = {**file, "model_args": {"global_pool": pool}} if pool or not projects else file
    return dataclasses.replace(raw, sidecars=sidecars)


def _bare(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    return {name.removeprefix(_TRUNK): tensor for name, tensor in tensors.items() if name.startswith(_TRUNK)}


def _tower(fmt: Format) -> Format:
    """Return one of timm's formats as a tower of open_clip."""

    def state(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
        config = _as_timm(raw)
        stated = fmt.state(config, _bare(tensors), dialect)
        return dataclasses.replace(stated, by=CONFIG) if "config.json" in config.sidecars else stated

    return dataclasses.replace(
        fmt,
        name="open_clip",
        project="timm in open_clip",
        rules=(
            *(
                dataclasses.replace(
                    one,
                    foreign=tuple(_TRUNK + name for name in one.foreign),
                    unless=one.unless and _TRUNK + one.unless,
                )
                for one in fmt.rules
            ),
            rule("projection.weight", "visual.head.proj.weight"),
        ),
        drops=tuple(Drop(rf"visual\.trunk\.(?:{drop.pattern})", drop.reason) for drop in fmt.drops),
        dialects=tuple(
            dataclasses.replace(dialect, name=f"timm-{dialect.name}" if dialect.name else "timm")
            for dialect in fmt.dialects
        ),
        prefixes=PREFIXES,
        limits={},
        requires=(
            Requirement(
                "architecture", lambda c: False, "it builds timm's models by their name, which is not in the weights"
            ),
        ),
        axes=lambda raw, tensors: fmt.axes(_as_timm(raw), _bare(tensors)),
        evidence=lambda raw, prefix: fmt.evidence(_as_timm(raw), prefix + _TRUNK),
        refuses=lambda raw: fmt.refuses(_as_timm(raw)),
        state=state,
        sidecars=lambda config, passport: (
            {CONFIG: passport.sidecars[CONFIG]} if passport and CONFIG in passport.sidecars else {}
        ),
        returned_only=True,
        lacks=LACKS,
        filename="open_clip_model.safetensors",
    )


FORMATS = tuple(
    _tower(fmt) for module in (timm, timm_beit, timm_eva, timm_parallel, timm_relpos) for fmt in module.FORMATS
)
