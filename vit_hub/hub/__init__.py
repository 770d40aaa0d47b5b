"""Weights from anywhere onto this machine: what a name stands for, who serves it, and whether it is the right file.

A name becomes sources (``sources``), a source becomes a verified file (``fetch``, ``web``, ``huggingface``,
``integrity``), a file becomes a canonical one in the cache (``downloading``, ``cache``).
"""
