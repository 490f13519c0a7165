"""Zero-shot segmentation benchmarks."""
