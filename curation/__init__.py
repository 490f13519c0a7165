"""Concept Curation: concepts that are visible in an image but missing from its caption, found before training.

The modules read as the paper does (Xing et al., NeurIPS 2023, arXiv 2309.13505)::

    samples -> encoder -> concepts -> visualness -> vocabulary -> index -> expansion -> ranking -> clustering -> archive

The numeric steps are pure functions over arrays for a block of anchors. :mod:`curation.run.stages` wraps them into
functions from files to files, one per stage, which any engine may run; this package knows neither Apache Beam nor
Lightning.
"""
