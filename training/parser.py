"""What a person meets of the command line: help, suggestions for wrong options, and what Lightning prints."""

from __future__ import annotations

import logging
import re
import sys
import warnings
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from typing import Any

from jsonargparse import DefaultHelpFormatter
from lightning.pytorch.cli import LightningArgumentParser

from curation.base.configuration import did_you_mean
from curation.base.errors import one_line
from curation.base.terminal import print_error

DESCRIPTION = """\
Train GroupViT, or the places of a CLIP, on image-text shards and their concept archives.

  cocu train --config training/configs/cocu_cc12m.yaml
  cocu train --config training/configs/cocu_cc12m.yaml --trainer.devices 8 --data.sampler.temperature 0.2
  cocu train --config training/configs/cocu_demo.yaml
  cocu train --config training/configs/dense_demo.yaml         (a CLIP: model.encoder; with --help, its options)
  cocu train validate --config training/configs/cocu_cc12m.yaml --ckpt_path best
  cocu train --help       (every option)

The same command goes on with a run that was ended; --resume no begins anew, another --output leaves it alone.
"""
SYNONYMS = {"lr": "rate", "learning_rate": "rate", "wd": "weight_decay", "num_workers": "workers", "bs": "batch_size"}


class HelpFormatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """Leaves the lines of the examples as they are."""


class Parser(LightningArgumentParser):
    """Suggests the nearest option for one that does not exist, and leaves the hundred names of options out of the usage."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"allow_abbrev": False, **options})

    def format_help(self, *arguments: Any, **options: Any) -> str:
        """The help, which begins with what the command is for."""
        self.prog = self.prog.replace(" [options]", "")  # of the parser above
        if not subparsers(self):
            self.usage = f"{self.prog} --config FILE [options]"
        return str(super().format_help(*arguments, **options))

    def error(self, message: str, ex: Exception | None = None) -> None:  # type: ignore[override]
        """End with one line."""
        text = " ".join(str(message).split())
        unknown = re.search(r"(?i)(?:arguments:|option|key) ['\"]?(-*)([\w.]+)", text)
        print_error(text + (suggestion(unknown[2], option_names(self), unknown[1]) if unknown else ""))
        sys.exit(2)


def suggestion(option: str, names: list[str], dashes: str = "") -> str:
    """The option that was meant, ready to end a message with: what others call by another name, or the nearest.

    ``dashes``: what it begins with on a command line, and not in a file.

    >>> suggestion("model.optimizer.lr", ["model.optimizer.rate", "model.optimizer.betas"])
    " (did you mean 'model.optimizer.rate'?)"
    >>> suggestion("confg", ["config", "output"], "--")
    " (did you mean '--config'?)"
    """
    if option in names:
        return ""
    section, dot, name = option.rpartition(".")
    synonym = section + dot + SYNONYMS.get(name, name)
    return did_you_mean(synonym, [dashes + name for name in names])


def option_names(parser: ArgumentParser) -> list[str]:
    """The dotted names of a parser's options, and of its subcommands'."""
    names = [action.dest for action in parser._actions]
    return names + [name for child in subparsers(parser).values() for name in option_names(child)]


def subparsers(parser: ArgumentParser) -> dict[str, ArgumentParser]:
    """The parsers of a parser's subcommands, by name."""
    choices = [action.choices for action in parser._actions if isinstance(action.choices, dict)]
    return {name: child for group in choices for name, child in group.items()}


def explain(parser: ArgumentParser, option: str, sentences: dict[str, str]) -> None:
    """Let ``--help`` say what each value of an option means."""
    (action,) = (action for action in parser._actions if action.dest == option)
    values = "; ".join(f"{name}: {sentence}" for name, sentence in sentences.items())
    action.help = f"{action.help} {values}"


def reason(error: Exception) -> str:
    """Why Lightning refuses something, on one line; of a class that cannot be made, without all that it might have been."""
    text = one_line(error, 2000)
    problem = re.search(r"Problem with given class_path .*", text)
    return one_line(problem[0] if problem else text, 400)


def from_lightning(error: Exception) -> bool:
    """Whether it is Lightning that refuses something, rather than code of ours that fails."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__")).startswith("lightning.")


def quiet_lightning() -> None:
    """Leave out what Lightning says to people who write training loops."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.profilers").setLevel(logging.INFO)  # their reports, for those who ask for them
    warnings.filterwarnings("ignore", module="lightning")
