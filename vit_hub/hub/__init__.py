"""From a name or address to verified weights on this machine, and back to Hugging Face's hub.

* ``names``: the meaning of a name or address, and its sources. No network.
* ``cache``: the files on this machine: places, hashes, records, inventory, verification.
* ``http``: downloads from plain addresses: resumed, retried, hashed, over several connections.
* ``resolve``: a name as an opened checkpoint: ``names.locate`` says which sources it has, ``fetch`` brings the verified
  file of the first that delivers, through ``mirror``, ``huggingface`` or ``http.download``.
* ``download``: what ``resolve`` found, converted to its canonical form in the cache.
* ``plan``, ``lockfile``, ``make_mirror``: the commands ``download --dry-run``, ``lock`` and ``mirror``.
* ``signing``: signatures of models; ``trust``: the gate that requires them.
* ``publish``, with ``model_card``: the command ``push``.
"""
