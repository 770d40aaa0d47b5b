"""Names of tensors beside the weights of an image encoder, in files of all formats, as data.

Patterns match whole names as stored, where ``/`` separates nested dicts and ``.`` modules.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from vit_hub.converters.rules.table import Drop
from vit_hub.converters.tensors import DTYPES, LazyTensor

__all__ = [
    "CLASSIFIER",
    "DEQUANTIZE",
    "OTHER",
    "PREFERENCES",
    "Preference",
    "beside",
    "beside_reason",
    "no_weight",
    "other_module",
    "remedy",
]

# Names whose module is kept: recognition asks for each table.
_REMEMBERED = 1 << 14
# Never weights of an encoder, wherever they stand.
_NO_WEIGHTS = (
    Drop(
        r"(.*[/:])?(optimizers?|optimizer_states|optim|opt|opt_state|lr_schedulers?|schedulers?|(\w+_)?scaler|amp)"
        r"(?!/target/)([./].*)?",
        "optimiser, scheduler or scaler state",
    ),
    Drop(r"(.*/)?(\w*rng_states?|random_states?)([./].*)?", "state of random number generators"),
    Drop(r"(callbacks|loops|hyper_parameters|hparams)/.*", "state of the training loop"),
    Drop(r"(.*[./])?(n_averaged|num_updates)", "number of steps averaged over: a counter"),
    Drop(
        r"(.*/)?(\w+\.)?logit_(scale|bias)(:0)?|(.*/)?[tb]|(.*/)?(clip|sig_lip)_head/vars/[01]",
        "temperature or bias of the text-image loss",
    ),
    Drop(r"(.*[./])?(criterion|loss|losses|loss_fn|\w+_loss|class_weights?)([./].*)?", "part of a training loss"),
    Drop(r"(.*[./])?(dino|ibot)_head\..*", "projector of the self-distillation loss"),
    Drop(
        r"(.*/)?(teacher|student)[./](module\.)?head\.(mlp|last_layer)\..*", "projector of the self-distillation loss"
    ),
    Drop(r"(.*[./])?(base|momentum)_encoder\.head\.\d+\..*", "projector of the contrastive loss"),
    Drop(r"(target_)?encoder/(module\.)?(fc|pred)\..*", "projector of the pre-training"),
    Drop(r"prototypes(/.*)?", "prototypes of the pre-training loss: unused by the encoder"),
)
# Modules of other purposes, also in models whose encoder has no module of its own.
_OTHER_MODULES = (
    Drop(r"(decoder|decoder_\w+|mask_decoder)[./].*|decoder_pos_embed", "decoder"),
    Drop(r"(decode_head|auxiliary_head|fpn\d?|lm_head)\..*", "head of another task, not part of the image encoder"),
    Drop(r"(predictor|projector|\w+_projector|prediction_head|connector)[./].*", "predictor or projector"),
    Drop(r"(txt|text|text_model|text_encoder|text_projection|text_decoder|language_model)([./].*)?", "text tower"),
)
# Names that have other meanings inside of an encoder.
_BESIDE = (
    Drop(r"(token_embedding|ln_final|positional_embedding|transformer)([./].*)?", "text tower"),
    Drop(r"(layernorm|norm)\..*", "norm before a head of another task, not part of the image encoder"),
)
OTHER = "not part of the image encoder"

# Classifiers as people name and nest them; what follows the name are positions in a Sequential, or inner names.
CLASSIFIER = re.compile(
    r"(?P<layer>(heads?|classifier|fc|linear|linear_head|cls_head|classification_head|class_head|head_cls|fc_cls)"
    r"(\.(\d+|fc|head|heads|linear|classifier|layers|dense|out_proj|proj))*)"
    r"\.(?P<part>weight|bias|running_mean|running_var|num_batches_tracked)"
)


@dataclass(frozen=True)
class Preference:
    """One of two copies of a model: the one that its project evaluates, known by components of their prefixes."""

    read: str
    other: str
    reason: str


_AVERAGE = "student copy: the teacher, its moving average, is read"
PREFERENCES = (
    Preference("teacher", "student", _AVERAGE),
    Preference("teacher", "model", _AVERAGE),
    Preference("teacher", "model_ema", _AVERAGE),
    Preference("teacher", "gram", "auxiliary copy: the teacher is read"),
    Preference("target_encoder", "encoder", "context encoder: the target encoder, its moving average, is read"),
    Preference("ema_encoder", "encoder", "context encoder: its moving average is read"),
    Preference("base_encoder", "momentum_encoder", "momentum encoder: the base encoder is read"),
    Preference("state_dict_ema", "state_dict", "student copy: the exponential moving average beside it is used"),
    Preference("state_dict_ema", "model", "student copy: the exponential moving average beside it is used"),
    Preference("model", "model_ema", "moving average of the weights: the weights themselves are read"),
    Preference("visual_encoder", "visual_encoder_m", "momentum copy: the encoder itself is read"),
    Preference("vision_model", "vision_model_m", "momentum copy: the encoder itself is read"),
    Preference(
        "state_dict", "ema_state_dict", "weights in training: mmengine writes their moving average into state_dict"
    ),
    Preference("backbone", "target_generator", "the encoder that gives the targets of the pre-training"),
    Preference("backbone", "momentum_encoder", "momentum encoder: the backbone itself is read"),
    Preference("image_tower", "video_tower", "the encoder of videos: that of images is read"),
)

DEQUANTIZE = (
    "dequantize=True, on the command line --dequantize, computes floating-point weights; "
    "or give the checkpoint that was quantized"
)
# Names that show what was done to a model, and how to undo it.
_REMEDIES = (
    (
        r"(state_dict/)?(module\.)?(linear\.)?(weight|bias)",
        "a linear head alone, which is no backbone",
        "give the backbone's own file, and this one with it: head=..., on the command line --head",
    ),
    (
        r".*\.(lora_\w+|base_layer|lora_magnitude_vector)\..*",
        "an adapter of peft that is not merged, whose scale only its adapter_config.json knows",
        "merge it with peft: model.merge_and_unload().save_pretrained(...), and give that folder",
    ),
    (
        r".*\.(absmax|quant_map|nested_\w+|quant_state\..*|SCB|weight_format)",
        "quantized by bitsandbytes",
        DEQUANTIZE,
    ),
    (r".*\.biases", "quantized by MLX", "give the checkpoint that was quantized"),
    (
        r".*\.(qweight|qzeros|scales|g_idx)",
        "quantized by GPTQ or AWQ",
        "give the checkpoint that was quantized, or dequantize it where it was made",
    ),
    (
        r".*\.(weight_scale\w*|input_scale|weight_scale_inv)",
        "quantized to 8-bit floats or integers with separate scales",
        DEQUANTIZE,
    ),
    (
        r".*\._packed_params(\..*|/.*)?|.*\.(scale|zero_point)",
        "quantized by PyTorch's dynamic or static quantization",
        "give the checkpoint that was quantized",
    ),
    (
        r".*\.parametrizations\..*",
        "parametrized layers",
        "torch.nn.utils.parametrize.remove_parametrizations before saving",
    ),
)


def no_weight(name: str, tensor: LazyTensor) -> str:
    """Return why a tensor is no weight of an encoder, wherever it stands; empty if it may be one."""
    found = _reason(_NO_WEIGHTS, name)
    # Training states keep their counters and scores beside the dict of weights.
    alone = "." not in name.rpartition("/")[2]
    if not found and alone and (tensor.shape == () or (tensor.shape == (1,) and not DTYPES[tensor.dtype].floating)):
        found = "a lone number, not part of the image encoder"
    return found


@lru_cache(_REMEMBERED)
def beside(name: str) -> bool:
    """Return whether a name at the level of an encoder is no weight of it, whatever it holds."""
    return bool(_reason((*_NO_WEIGHTS, *_OTHER_MODULES), name))


@lru_cache(_REMEMBERED)
def other_module(name: str) -> str:
    """Return why a tensor at the level of an encoder, named from there, is no part of it; empty if it may be one."""
    return _reason(_OTHER_MODULES, name)


@lru_cache(_REMEMBERED)
def beside_reason(name: str) -> str:
    """Return why a tensor beside an encoder, named from its level, is left out."""
    return _reason((*_OTHER_MODULES, *_BESIDE), name) or OTHER


def remedy(names: list[str]) -> tuple[str, str] | None:
    """Return what unknown tensors show about a file, and the remedy; None if they show nothing known."""
    return next(
        ((what, how) for pattern, what, how in _REMEDIES if any(re.fullmatch(pattern, name) for name in names)), None
    )


def _reason(drops: tuple[Drop, ...], name: str) -> str:
    return next((drop.reason for drop in drops if drop.regex.fullmatch(name)), "")
