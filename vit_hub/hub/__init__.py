"""From a name or address to verified weights on this machine, and back to Hugging Face's hub.

* ``names``: the meaning of a name or address, and its sources. No network.
* ``cache``: the files on this machine: places, hashes, records, inventory, verification.
* ``http``: downloads from plain addresses: resumed, retried, hashed, over several connections.
* ``fetch``: the verified file of one source, through ``mirror``, ``huggingface`` or ``http``; ``resolve``: the first
  source of a name that delivers, as an opened checkpoint; ``download``: its canonical form in the cache.
* ``plan``, ``lockfile``, ``make_mirror``: the commands ``download --dry-run``, ``lock`` and ``mirror``.
* ``publish``, with ``model_card``: the command ``push``.
"""
