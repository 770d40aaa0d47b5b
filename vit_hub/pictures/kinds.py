"""All kinds of pictures, in the order in which a page shows them."""

from __future__ import annotations

from vit_hub.pictures import (
    biases,
    components,
    distance,
    filters,
    heads,
    norms,
    positions,
    resizing,
    rollouts,
    rotations,
    similarity,
    top,
)
from vit_hub.pictures.kind import Kind

__all__ = ["KINDS"]

KINDS: dict[str, Kind] = {
    module.KIND.name: module.KIND
    for module in (
        *(top, rollouts, heads, components, norms, distance),
        *(filters, positions, rotations, biases, resizing, similarity),
    )
}
"""The kinds by name."""
