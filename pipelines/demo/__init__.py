"""A small world with known truth, drawn on the spot, so that the method can be tried without any data.

``artwork`` and ``stuff`` draw the parts, ``scene`` composes them, ``captions`` mentions some of what is visible, ``world``
writes shards and a benchmark. ``train_clip`` is the recipe of the small CLIP in ``clip/`` that knows this world.
"""
