"""Zero-shot segmentation benchmarks.

benchmark.py        what a benchmark is: a description in YAML
layout.py           its files
labels.py           pixel values of masks as class indices
inference.py        an image: windows encoded, pixels given classes
windows.py          where windows are, and joining their scores; of GroupViT's groups
places.py           the same of a CLIP's places
metric.py           confusion matrix, mIoU
evaluate.py         a model on a benchmark
threshold.py        a threshold of the background, chosen without labels
suite.py            several benchmarks, one after another
report.py           tables, and what results.json holds of a run
results.py          results.json over several runs
pictures.py         pictures of segmentations
panels.py           pictures side by side
segment.py          one image and words of one's own
segment_command.py  its command line, light to import
options.py          values of options that both commands have
"""
