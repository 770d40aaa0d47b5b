"""Losses of what travels with the weights: class names and preprocessing that a planned file does not give back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from vit_hub.converters.passport import Passport
from vit_hub.converters.rules.format import Sidecars
from vit_hub.model.config import ViTConfig
from vit_hub.preprocessing.differences import differences, shifts_some_crops
from vit_hub.preprocessing.labels import names_of, stated_descriptions, stated_labels
from vit_hub.preprocessing.of_checkpoint import settled
from vit_hub.preprocessing.spec import Preprocessing

__all__ = ["label_losses", "preprocessing_losses"]

_SHOWN = 3


def label_losses(passport: Passport, config: ViTConfig, written: Sidecars, to: str) -> list[str]:
    """Return which class names the config files of a planned file do not give back.

    Args:
        passport: of the source.
        config: of the model.
        written: the config files to write.
        to: the format, for messages.
    """
    names = names_of(passport.labels, config.num_classes)
    if names is None:
        return stated_labels(passport.sidecars, config.num_classes)[1]
    found, _ = stated_labels(written, config.num_classes)
    if found != list(names):
        return [f"class names: {to} has no place for those of the {len(names)} classes ({_first(names)})"]
    lost = []
    if stated_descriptions(passport.sidecars) != stated_descriptions(written):
        lost.append(f"class names: {to} has no place for the longer descriptions of the classes")
    numbers = written.get("config.json", {}).get("label2id")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice and isinstance(numbers, Mapping) and numbers != passport.sidecars.get("config.json", {}).get("label2id"):
        lost.append(
            f"class names: label2id has the last number only of names that several classes have ({_first(twice)})"
        )
    return lost


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + ", ..." * (len(names) > _SHOWN)


def preprocessing_losses(
    passport: Passport, config: ViTConfig, written: Sidecars, to: str
) -> tuple[list[str], list[str]]:
    """Return what of the source's preprocessing the config files of a planned file do not give back, and remarks.

    A file without a place for it is read with the convention of its format. What is conventional at the source, too,
    is not lost, but a remark says that it is written as if it were recorded. A pixel more or less at the edge of some
    crops is a remark, too.

    Args:
        passport: of the source.
        config: of the model.
        written: the config files to write.
        to: the format.
    """
    if config.in_chans not in (1, 3):
        return [], []  # no config file can describe images of other than one or three channels
    wanted, recorded, said = settled(passport, config.image_size, config.in_chans)
    found, has_place, unusable = settled(Passport(format=to, sidecars=written), config.image_size, config.in_chans)
    changed = "; ".join(differences(wanted, found))
    if not recorded:
        lost = [text for text in said[:-1] if text not in unusable]
        but = f", as far as {to} can say it ({changed})" * bool(changed)
        return lost, [f"{said[-1]}, and is written as theirs{but}"] if has_place else []
    if unusable[:-1] and not has_place:
        return [f"preprocessing: {to} cannot say all of it: {'; '.join(unusable[:-1])}"], []
    if changed:
        why = "cannot say all of it" if has_place else f"has no place for it, which leaves the convention of {to}"
        return [f"preprocessing: {to} {why}: {changed}"], []
    return [], [_shift(wanted, found, to)] if shifts_some_crops(wanted, found) else []


def _shift(wanted: Preprocessing, found: Preprocessing, to: str) -> str:
    side = "later" if found.crop_offset == "round" else "earlier"
    return f"preprocessing: where an image is cut by 3, 7, 11 ... pixels, the crop starts a pixel {side} in {to}"
