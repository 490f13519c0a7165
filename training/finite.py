"""Steps whose loss or gradients are not finite: none of them reaches the weights, and no such weight a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from curation.base.configuration import require_one_of
from curation.base.errors import CocuError

KINDS = ("stop", "skip")
IN_A_ROW = 100  # skipped steps after which nothing can be hoped for
REMEDY = "lower model.optimizer.rate, lengthen its warmup_epochs, or set trainer.precision to 32-true"


class NotFiniteError(CocuError):
    """The loss, a gradient or a weight is not a number. The message is one line with what to try."""


class FiniteSteps(Callback):
    """Looks at the gradients before each step of the optimizer; ends the run, or leaves the step out and counts it.

    kind: ``stop`` or ``skip``. With loss scaling (16-mixed), gradients that overflow are the scaler's business: it leaves
    such steps out by itself.
    """

    def __init__(self, kind: str = "stop") -> None:
        require_one_of("model.nonfinite", kind, KINDS)
        self._kind = kind
        self.skipped = 0
        self._in_a_row = 0
        self._losses: list[Tensor] = []  # of the batches of this step
        self._buffers: dict[str, Tensor] = {}  # before this step

    def state_dict(self) -> dict[str, int]:
        """Goes into checkpoints."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on counting."""
        self.skipped = state_dict["skipped"]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep the running statistics: the forward pass changes them, whatever comes of it."""
        if self._kind == "skip" and not self._losses:
            self._buffers = {name: value.clone() for name, value in pl_module.named_buffers()}

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Keep the loss for the message."""
        self._losses.append(loss.detach())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Look. Raises NotFiniteError with kind ``stop``, and after IN_A_ROW steps that were left out."""
        losses, self._losses = self._losses, []
        gradients = [value.grad for value in pl_module.parameters() if value.grad is not None]
        # Ranks have summed their gradients by now: what one of them saw, all see.
        if all_finite(gradients) or (scales_loss(trainer) and losses_finite(trainer, losses)):
            self._in_a_row = 0
            return

        loss = (torch.stack(losses).mean() * trainer.accumulate_grad_batches).item()
        what = f"the loss is {loss}" if not all_finite(losses) else f"gradients are not finite (loss {loss:.4g})"
        if self._kind == "stop":
            raise NotFiniteError(
                f"{what} at step {trainer.global_step}; {REMEDY}; model.nonfinite: skip leaves such steps out"
            )

        self.skipped += 1
        self._in_a_row += 1
        if self._in_a_row >= IN_A_ROW:
            raise NotFiniteError(
                f"{what} at step {trainer.global_step}, the {IN_A_ROW}th in a row that is left out; {REMEDY}"
            )
        optimizer.zero_grad(set_to_none=True)  # without gradients, the optimizer changes nothing
        with torch.no_grad():
            for name, value in pl_module.named_buffers():
                value.copy_(self._buffers[name])


def all_finite(tensors: list[Tensor]) -> bool:
    """Whether no value is infinite or nan; tensors may be on several devices, each of which is waited for once.

    >>> all_finite([torch.ones(2), torch.tensor([1.0, float("nan")])])
    False
    """
    by_device: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        by_device.setdefault(tensor.device, []).append(tensor)
    largest = (torch.stack(torch._foreach_norm(group, float("inf"))) for group in by_device.values())
    return all(bool(values.isfinite().all()) for values in largest)


def scales_loss(trainer: Trainer) -> bool:
    """Whether losses are scaled against underflow in fp16."""
    return getattr(trainer.precision_plugin, "scaler", None) is not None


def losses_finite(trainer: Trainer, losses: list[Tensor]) -> bool:
    """Whether those of all ranks are."""
    return trainer.strategy.reduce_boolean_decision(all_finite(losses), all=True)


def check_finite(checkpoint: Mapping[str, Any]) -> None:
    """Raises NotFiniteError for a checkpoint that a run could not go on from: one with a weight that is not finite."""
    named = dict(floating("", {key: checkpoint.get(key) for key in ("state_dict", "optimizer_states")}))
    if all_finite(list(named.values())):
        return
    name = next(name for name, value in named.items() if not all_finite([value]))
    raise NotFiniteError(
        f"{name.removeprefix('state_dict.')} is not finite at step {checkpoint['global_step']}: no checkpoint of it is "
        f"written, the last good one is kept; {REMEDY}"
    )


def floating(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors of real numbers in nested mappings and lists, by dotted name."""
    if isinstance(value, Tensor):
        if value.is_floating_point() and value.numel():
            yield name, value
        return
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield from floating(f"{name}.{key}".lstrip("."), inner)
