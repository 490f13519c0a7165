"""Command lines and Apache Beam pipelines, assembled from the stages of :mod:`curation`."""
