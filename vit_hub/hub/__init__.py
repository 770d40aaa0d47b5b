"""Weights from anywhere onto this machine: what a name stands for, who serves it, and whether it is the right file.

* A name becomes sources: ``sources``, with ``hub_names`` (ways to name a place on Hugging Face's hub), ``augreg``,
  ``origin`` (one text for each place) and ``logins``.
* A source becomes a verified file: ``fetch``, from ``mirror``, ``huggingface`` or ``web``; ``integrity`` checks it,
  ``records`` remembers what came first. Beneath ``web`` are ``transfer`` (several connections), ``answers`` (one
  request), ``partial`` (a file that is not whole yet) and ``retries``.
* A file becomes a canonical one in the cache: ``downloading``, ``cache``; ``planning`` tells what that would take.
* Behind the other commands: ``lockfile``, ``verifying``, ``inventory`` and ``pruning`` (``cache``), ``mirroring``
  (writes what ``mirror`` reads), ``packaging``, ``model_card`` and ``pushing``.
"""
