"""What one of several processes does in the test of the losses under DDP. Light to import: each process imports it anew."""

from __future__ import annotations

import math
import os

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training.loss import Losses, contrastive_losses
from training.negatives import NONE, Concepts


class Towers(nn.Module):
    """A small network with what a trainer gives to the losses: three kinds of features and two learnt scales."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Linear(width, 16), nn.Tanh(), nn.Linear(16, 8))
        self.text = nn.Sequential(nn.Linear(width, 16), nn.Tanh(), nn.Linear(16, 8))
        self.scales = nn.Parameter(torch.tensor([math.log(1 / 0.07), math.log(1 / 0.2)]))

    def forward(
        self, inputs: Tensor, rank: int, world_size: int, plain: bool, concepts: Concepts | None = None
    ) -> Losses:
        """Losses of inputs (B, 2 + M, width): image, caption, prompts."""
        scale, prompt_scale = self.scales.exp()
        text = self.text(inputs[:, 1:])
        prompts = None if plain else text[:, 1:]
        image = self.image(inputs[:, 0])
        return contrastive_losses(
            image, text[:, 0], prompts, scale, prompt_scale, concepts, rank=rank, world_size=world_size
        )


def total(losses: Losses) -> Tensor:
    return losses.caption if losses.prompts is None else losses.caption + losses.prompts


def train_share(rank: int, size: int, folder: str, plain: bool, backend: str = "gloo") -> None:
    """Losses and averaged gradients of one of ``size`` processes, for its part of ``inputs.pt``, into ``RANK.pt``."""
    torch.set_num_threads(1)
    device = torch.device(f"cuda:{rank}" if backend == "nccl" else "cpu")
    dist.init_process_group(backend, init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    content = torch.load(f"{folder}/inputs.pt", map_location=device)
    network = Towers(content["inputs"].shape[-1]).double().to(device)
    network.load_state_dict(content["weights"])
    parallel = DistributedDataParallel(network, find_unused_parameters=plain)
    concepts = content["concepts"] and Concepts(*(ids.chunk(size)[rank] for ids in content["concepts"]))
    if concepts:  # padded to another length on every rank
        filled = torch.full((len(concepts.held), rank), NONE)
        concepts = concepts._replace(held=torch.cat([concepts.held, filled], 1))
    losses = parallel(content["inputs"].chunk(size)[rank], rank, size, plain, concepts)
    total(losses).backward()
    gradients = {name: value.grad for name, value in network.named_parameters()}
    torch.save({"losses": [total(losses).detach(), losses.accuracy], "gradients": gradients}, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # all is written; at the end of the interpreter, threads of gloo abort the process now and then
