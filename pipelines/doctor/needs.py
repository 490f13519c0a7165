"""What a configuration asks of the machine: data, encoder, index, memory, disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

from curation.base import files
from curation.base.configuration import parse_bytes
from curation.base.downloads import missing_weights, unreachable
from curation.base.errors import CocuError
from curation.config import CurationConfig
from curation.index.choose import EXACT_UP_TO, IndexChoice, choose_index
from curation.run.owner import check_data
from curation.run.run import Run, plan_run
from curation.run.settings import check_settings
from curation.tools.init.survey import estimated_rows
from pipelines.doctor.finding import NOTE, OK, WRONG, Finding, size
from pipelines.doctor.machine import Machine, existing

WIDTH = 512  # of embeddings, where the model does not say
WORKER = 700 << 20  # bytes of a worker process beside its encoder: Python, torch, Beam
TEXTS = 200  # bytes of key and caption in an image's embedding file
ARCHIVE = 600  # bytes of an archive: some 25 concepts


def need_findings(config: CurationConfig, machine: Machine, output: str) -> Iterator[Finding]:
    """Whether the configuration can be curated here, line by line; the first one that is wrong may hide later ones."""
    try:
        run = plan_run(config, output)
        check_data(run)
        paths = [shard.path for shard in run.shards]
        rows = estimated_rows(paths) if not config.embeddings else 0
    except CocuError as error:
        yield Finding(WRONG, "data", str(error))
        return
    yield _data(run, rows)
    yield from _settings(run)
    model = model_settings(config)
    if config.encoder.is_named:
        yield _weights(config)
    width = int(model.get("embed_dim", WIDTH))
    choice = None
    if rows:
        choice, finding = _index(config, machine, rows, width)
        yield finding
    yield _memory(config, machine, choice, parameters(model))
    if rows and not files.is_remote(run.folder):
        yield _disk(run, rows, width, choice)


def model_settings(config: CurationConfig) -> dict[str, Any]:
    """What open_clip says of a model by its name, or a folder of its own configuration; nothing of others."""
    model = config.encoder.model
    if model.startswith("local-dir:"):
        path = files.join(model.removeprefix("local-dir:"), "open_clip_config.json")
        return dict(files.read_note(path).get("model_cfg", {}))
    if ":" in model or not config.encoder.is_named:
        return {}
    import open_clip  # takes seconds

    return dict(open_clip.get_model_config(model.replace("/", "-")) or {})


def parameters(model: dict[str, Any]) -> int:
    """About so many weights a CLIP has: twelve times width squared for each layer, and its table of words."""
    vision, text = model.get("vision_cfg", {}), model.get("text_cfg", {})
    layers = vision.get("layers", 12)
    towers = 12 * (vision.get("width", 768) ** 2 * (layers if isinstance(layers, int) else 24))
    towers += 12 * text.get("width", 512) ** 2 * text.get("layers", 12)
    return int(towers + text.get("vocab_size", 49408) * text.get("width", 512))


def _data(run: Run, rows: int) -> Finding:
    if files.exists(run.manifest):
        return Finding(OK, "data", f"{run.folder} is finished: nothing is left to do, or what --dry-run says")
    count = f"{len(run.shards):,} {'shard' if len(run.shards) == 1 else 'shards'}"
    return Finding(
        OK, "data", f"{count}, about {rows:,} samples -> {run.folder}" if rows else f"{count} -> {run.folder}"
    )


def _settings(run: Run) -> Iterator[Finding]:
    try:
        check_settings(run)
    except CocuError as error:
        yield Finding(WRONG, "settings", str(error))
    else:
        yield Finding(OK, "settings", "devices, tagger, vocabulary and names of models are there")


def _weights(config: CurationConfig) -> Finding:
    encoder = config.encoder
    address = missing_weights(encoder.model, encoder.pretrained)
    name = f"{encoder.model}/{encoder.pretrained}" if encoder.pretrained else encoder.model
    if address is None:
        return Finding(OK, "encoder", f"{name} is here")
    reason = unreachable(address)
    if reason is None:
        return Finding(OK, "encoder", f"{name} will be downloaded once, from {address}")
    return Finding(
        WRONG,
        "encoder",
        f"{name} is not here, and {address} cannot be reached ({reason}); load it where it can be and copy it, or name "
        "weights that are here: encoder.pretrained: FILE, or encoder.model: local-dir:FOLDER",
    )


def _index(config: CurationConfig, machine: Machine, rows: int, width: int) -> tuple[IndexChoice | None, Finding]:
    retrieval = config.retrieval
    if retrieval.data:
        return None, Finding(OK, "index", f"that of {retrieval.data}")
    if retrieval.index != "auto":
        return None, Finding(OK, "index", retrieval.index)
    is_gpu = bool(machine.gpus) and retrieval.device.startswith("cuda")
    try:
        graph = rows > EXACT_UP_TO[is_gpu]
        choice = choose_index(rows, width, parse_bytes(retrieval.memory, "memory"), retrieval.recall, is_gpu, graph)
    except CocuError as error:
        return None, Finding(WRONG, "index", str(error))
    text = f"{choice.factory} for {rows:,} embeddings of {width} dimensions: {size(choice.bytes)}"
    if choice.bytes > machine.memory:
        remedy = "lower retrieval.memory, so that a coarser one is taken, or use a larger machine"
        return choice, Finding(WRONG, "index", f"{text}, more than the {size(machine.memory)} of memory here; {remedy}")
    return choice, Finding(OK, "index", text)


def _memory(config: CurationConfig, machine: Machine, choice: IndexChoice | None, weights: int) -> Finding:
    """Each worker has an encoder while it embeds, and shares the index, which is mapped, while it searches."""
    encoder = 4 * weights if config.encoder.is_named and not machine.gpus else 0
    each = WORKER + encoder
    least = each + (choice.bytes if choice else 0)
    needed = machine.cores * each
    text = f"about {size(each)} for each of {machine.cores} workers"
    if least > machine.memory:
        return Finding(WRONG, "memory", f"{text}, and one with the index is more than the {size(machine.memory)} here")
    if needed > machine.memory:
        fewer = max(1, machine.memory // each)
        return Finding(
            NOTE, "memory", f"{text}, more than the {size(machine.memory)} here: cocu curate --workers {fewer}"
        )
    return Finding(OK, "memory", f"{text}; there are {size(machine.memory)}")


def _disk(run: Run, rows: int, width: int, choice: IndexChoice | None) -> Finding:
    index = choice.bytes if choice else 0
    graph = 4 * run.config.retrieval.neighbors * rows if rows > EXACT_UP_TO[False] else 0
    needed = rows * (2 * width + TEXTS + ARCHIVE) + index + 2 * graph
    folder = existing(run.folder)
    free = shutil.disk_usage(folder).free
    text = f"about {size(needed)} for {rows:,} samples; {size(free)} are free at {folder}"
    if needed > free and not files.exists(run.manifest):
        return Finding(WRONG, "disk", f"{text}; make room there, or name another output")
    return Finding(OK, "disk", text)
