"""What makes a resumed run repeat the uninterrupted one: where it is, and random numbers that follow from that."""

from __future__ import annotations

import numpy as np
import torch
from lightning import Trainer


def batches_begun(trainer: Trainer) -> int:
    """Batches that each rank has begun to train on since the start of the run; Lightning's checkpoints hold the number."""
    return trainer.fit_loop.epoch_loop.batch_progress.total.ready


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed what is random in the model, grouping and drop path, for a step of a rank."""
    state = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0] >> 1))
