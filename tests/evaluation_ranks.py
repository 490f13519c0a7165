"""What one of several processes does in the test of evaluation under DDP. Light to import: each process imports it anew."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
import torch.distributed as dist

from evaluation.benchmark import read_benchmark
from evaluation.evaluate import Share, evaluate
from segmenters.checkpoint import load


def evaluate_share(number: int, size: int, folder: str, checkpoint: str, benchmark: str) -> None:
    """One of ``size`` processes that evaluate together."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=size)
    share = Share(number, size, dist.group.WORLD)
    result = evaluate(load(checkpoint).model, read_benchmark(benchmark, ""), batch_size=3, share=share)
    summary = {"confusion": result.confusion.tolist(), "miou": result.scores.miou, "evaluated": result.evaluated}
    Path(folder, f"{number}.json").write_text(json.dumps(summary))
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # everything is written; at interpreter exit, gloo's threads sometimes abort the process
