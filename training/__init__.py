"""Training GroupViT, or the places of a CLIP, on image-text shards and their concept archives.

plan.py          which process reads which samples
stream.py        samples of tars with prompts drawn from their archives, or why they are left out
augmentation.py  images as the model sees them
batches.py       batches of tensors, made by worker processes
negatives.py     which prompts count against an image
loss.py          contrast with captions and with prompts
optimizer.py     AdamW and its schedule
module.py        the training step and validation, for Lightning
datamodule.py    the data, for Lightning
places.py        losses of places, from labels of whole images
labels.py        the data with such labels
dense.py         the training step of a CLIP's places, for Lightning
resume.py        what makes a resumed run repeat the uninterrupted one
progress.py      what a person sees
cli.py           the command line
"""
