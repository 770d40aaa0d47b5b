"""The files kept on this machine: where they are, what they should be, what can go."""

from vit_hub.hub.cache.paths import cache_dir, fetched_file

__all__ = ["cache_dir", "fetched_file"]
