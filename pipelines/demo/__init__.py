"""A small world with known truth, drawn on the spot: what the method needs to be tried without any data.

``artwork`` and ``stuff`` draw the parts, ``scene`` composes them, ``captions`` says a little of what is visible, ``world``
writes shards and a benchmark. ``train_clip`` is the recipe of the small CLIP in ``clip/`` that knows this world.
"""
