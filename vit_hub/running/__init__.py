"""Models applied to many images: embeddings in files, classes, accuracy, neighbours.

:mod:`~vit_hub.running.sources` finds images, :mod:`~vit_hub.running.engine` computes, :mod:`~vit_hub.running.outputs`
writes; the other modules are what is made of these.
"""
