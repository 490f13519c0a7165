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
zero_shot.py     what both have: validation, AdamW, finite steps
resume.py        the checkpoint that a run goes on from, and what makes it repeat the uninterrupted one
settings.py      the settings of a run, and what becomes of others when it goes on
checkpoints.py   best.ckpt and last.ckpt
interruption.py  Ctrl-C and SIGTERM
finite.py        steps that are not finite
logs.py          TensorBoard and CSV
shared_memory.py room for the batches of worker processes
progress.py      what a person sees
pictures.py      what a model sees, drawn after each validation
parser.py        help, and what is said of wrong options
cli.py           the command line
command.py       cocu train, light to import
"""
