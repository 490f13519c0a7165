"""Segment a picture with Hugging Face's transformers and a GroupViT that was trained here.

python examples/transformers_groupvit.py artifacts/training/cocu_demo/checkpoints/best.ckpt photo.jpg "house, tree, grass"
"""

import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image
from transformers import CLIPProcessor, GroupViTModel

from segmenters.convert import convert

PALETTE = [
    (230, 60, 60),
    (60, 160, 60),
    (70, 100, 220),
    (240, 200, 60),
    (150, 70, 180),
    (70, 200, 200),
    (130, 130, 130),
]


def main(checkpoint: str, picture: str, names: str, output: str = "segmentation.png") -> torch.Tensor:
    """Write the picture painted over with the best word for each pixel; returns that word's number, (height, width)."""
    with tempfile.TemporaryDirectory() as folder:
        print(convert(checkpoint, Path(folder) / "groupvit", "huggingface"))
        model = GroupViTModel.from_pretrained(f"{folder}/groupvit").eval()  # type: ignore[no-untyped-call]
        processor = CLIPProcessor.from_pretrained(f"{folder}/groupvit")

    words = [name.strip() for name in names.split(",")]
    image = Image.open(picture).convert("RGB")
    size = model.config.vision_config.image_size
    square = image.resize((size, size))  # otherwise the processor would crop to the middle
    texts = [f"a photo of a {word}." for word in words]
    inputs = processor(text=texts, images=square, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs, output_segmentation=True).segmentation_logits  # (1, words, height, width)

    best = torch.nn.functional.interpolate(logits, image.size[::-1], mode="bilinear")[0].argmax(0)
    for number, word in enumerate(words):
        print(f"{word:16} {(best == number).float().mean():5.1%} of the picture")
    paint = torch.tensor(PALETTE, dtype=torch.uint8)[best % len(PALETTE)]
    Image.blend(image, Image.fromarray(paint.numpy()), 0.5).save(output)
    return best


if __name__ == "__main__":
    main(*sys.argv[1:5])
