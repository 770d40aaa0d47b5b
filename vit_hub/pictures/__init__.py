"""Pictures of any Vision Transformer: of its weights, and of what it does with images.

``show`` makes them; every kind has a function that returns its numbers, and none of these needs matplotlib.
"""

from vit_hub.pictures.attention import mean_distance, patch_distances, rollout
from vit_hub.pictures.biases import relative_biases
from vit_hub.pictures.components import TokenComponents, as_colours, token_components
from vit_hub.pictures.drawing import Picture
from vit_hub.pictures.filters import FilterComponents, filter_components
from vit_hub.pictures.kind import Kind
from vit_hub.pictures.kinds import KINDS
from vit_hub.pictures.norms import outliers
from vit_hub.pictures.positions import position_similarity, position_table
from vit_hub.pictures.resizing import ResizedTable, resized_tables
from vit_hub.pictures.rotations import rotation_similarity
from vit_hub.pictures.showing import Shown, check_destination, show
from vit_hub.pictures.similarity import cka

__all__ = [
    "KINDS",
    "FilterComponents",
    "Kind",
    "Picture",
    "ResizedTable",
    "Shown",
    "TokenComponents",
    "as_colours",
    "check_destination",
    "cka",
    "filter_components",
    "mean_distance",
    "outliers",
    "patch_distances",
    "position_similarity",
    "position_table",
    "relative_biases",
    "resized_tables",
    "rollout",
    "rotation_similarity",
    "show",
    "token_components",
]
