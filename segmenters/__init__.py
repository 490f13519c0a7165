"""Models that give every position of an image an embedding, and their checkpoints.

groupvit.py       the model: image tower with its groupings, text tower, projection heads
transformer.py    what both towers are made of
cpu_attention.py  attention in bfloat16 on a CPU
text.py           texts as token ids
paths.py          whether a checkpoint is there, without importing torch
checkpoint.py     our folders and .ckpt files, and those of Hugging Face
huggingface.py    names and sizes of Hugging Face's GroupViT
hf_clip.py        names and sizes of transformers' CLIPModel
convert.py        conversion between them
convert_command.py  its command line, light to import
readings.py       what the last block of a CLIP says of every place: MaskCLIP, SCLIP, NACLIP
towers.py         a map of places from the image tower of any open_clip model
place_groups.py   an optional head that gathers the places of a map into groups
dense.py          the model of such a tower and its text tower
pretrained.py     where it comes from: names and folders of open_clip
opening.py        any checkpoint of either model
"""
