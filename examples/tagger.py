"""A multi-label tagger from concept archives, in plain PyTorch: it learns what is in a picture, mentioned or not.

python examples/tagger.py artifacts/demo [EPOCHS]
"""

import sys
from itertools import islice
from typing import Any

import torch
import webdataset as wds
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader
from torchvision.models import resnet18
from torchvision.transforms import v2

from curation.archive import ConceptArchive


def main(folder: str, epochs: int = 5) -> torch.nn.Module:
    """Train on the archives of ``folder``, and print what the tagger sees in five pictures."""
    torch.manual_seed(0)
    archive = ConceptArchive.open(folder).filter(support=2)  # at least two retrieved captions agree
    column = {concept: number for number, concept in enumerate(archive.vocabulary)}
    to_tensor = v2.Compose([v2.RGB(), v2.Resize((64, 64)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])

    def example(sample: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, str]:
        target = torch.zeros(len(column))
        target[[column[entry["concept"]] for entry in sample["concepts"]]] = 1
        return to_tensor(sample["jpg"]), target, sample["txt"]

    tars = [source.path for source in archive.sources]
    data = wds.WebDataset(tars, shardshuffle=len(tars)).compose(archive.join).decode("pil", partial=True).map(example)
    model = resnet18(num_classes=len(column))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for epoch in range(epochs):
        losses = []
        for pictures, targets, _ in DataLoader(data.shuffle(1000), batch_size=32, drop_last=True):
            loss = binary_cross_entropy_with_logits(model(pictures), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        print(f"epoch {epoch}: loss {torch.stack(losses).mean():.3f}")

    model.eval()
    for picture, _, caption in islice(data, 5):
        chances = model(picture[None])[0].sigmoid()  # (V,)
        best = chances.topk(min(4, len(column)))
        print(f"{caption!r}:", ", ".join(f"{archive.vocabulary[i]} {p:.2f}" for p, i in zip(*best, strict=True)))
    return model


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:3]))
