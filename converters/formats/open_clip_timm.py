"""open_clip with one of timm's models as image tower (``visual.trunk``): timm's tables under another root.

Only read, and written back to where it came from: open_clip builds such towers by their name in timm.
Source: open_clip/timm_model.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from vit_hub.converters.containers import Source
from vit_hub.converters.formats import timm, timm_beit, timm_eva
from vit_hub.converters.formats.open_clip import CONFIG, DROPS, OUTSIDE, PREFIXES, model_config
from vit_hub.converters.rules.format import Dialect, Format, Requirement, Stated
from vit_hub.converters.rules.table import Drop, rule
from vit_hub.converters.tensors import LazyTensor

_TRUNK = "visual.trunk."


def _as_timm(source: Source) -> Source:
    """The source with what its config says in the words of timm's config.json, as open_clip passes it on to timm."""
    vision = model_config(source).get("vision_cfg", {})
    name = vision.get("timm_model_name")
    sidecars = {key: value for key, value in source.sidecars.items() if key not in ("config.json", CONFIG)}
    if name:
        size = vision.get("image_size", 224)
        height, width = (size, size) if isinstance(size, int) else size
        file = {"architecture": name, "pretrained_cfg": {"input_size": [3, height, width]}}
        # An empty name leaves timm's own pooling.
        pool = vision.get("timm_pool", "avg")
        sidecars["config.json"] = {**file, "global_pool": pool} if pool else file
    return dataclasses.replace(source, sidecars=sidecars)


def _bare(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    return {name.removeprefix(_TRUNK): tensor for name, tensor in tensors.items() if name.startswith(_TRUNK)}


def _tower(form: Format) -> Format:
    """One of timm's formats as a tower of open_clip."""

    def state(source: Source, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
        stated = form.state(_as_timm(source), _bare(tensors), dialect)
        return dataclasses.replace(stated, by=stated.by.replace("config.json", CONFIG))

    return dataclasses.replace(
        form,
        name="open_clip",
        project="timm in open_clip",
        rules=(
            *(
                dataclasses.replace(
                    one,
                    foreign=tuple(_TRUNK + name for name in one.foreign),
                    unless=one.unless and _TRUNK + one.unless,
                )
                for one in form.rules
            ),
            rule("projection.weight", "visual.head.proj.weight"),
        ),
        drops=(*DROPS, *(Drop(rf"visual\.trunk\.(?:{drop.pattern})", drop.reason) for drop in form.drops)),
        outside=OUTSIDE,
        dialects=tuple(
            dataclasses.replace(dialect, name=f"timm-{dialect.name}" if dialect.name else "timm")
            for dialect in form.dialects
        ),
        prefixes=PREFIXES,
        limits={},
        requires=(
            Requirement(
                "architecture", lambda c: False, "it builds timm's models by their name, which weights do not tell"
            ),
        ),
        axes=lambda source, tensors: form.axes(_as_timm(source), _bare(tensors)),
        evidence=lambda source, prefix: form.evidence(_as_timm(source), prefix + _TRUNK),
        state=state,
        sidecars=lambda config, passport: (
            {CONFIG: passport.sidecars[CONFIG]} if passport and CONFIG in passport.sidecars else {}
        ),
        returned_only=True,
        filename="open_clip_model.safetensors",
    )


FORMATS = tuple(_tower(form) for module in (timm, timm_beit, timm_eva) for form in module.FORMATS)
