"""The command line of training: Lightning's, with our options, defaults and errors."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from argparse import ArgumentParser
from itertools import pairwise
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from curation.base.configuration import did_you_mean, read_yaml
from curation.base.errors import CocuError
from curation.base.terminal import print_error, run_command
from segmenters.checkpoint import CheckpointError, read_lightning
from training.datamodule import ArchiveDataModule
from training.dense import DenseModule
from training.labels import LabelDataModule
from training.module import SCORE, GroupViTModule
from training.negatives import NEGATIVES
from training.progress import TrainingProgress

QUIET = {"enable_progress_bar": False, "enable_model_summary": False}  # TrainingProgress shows both
CHECKPOINTS = {"auto_insert_metric_name": False, "enable_version_counter": False}
BEST = {"monitor": SCORE, "mode": "max", "filename": "best", "save_weights_only": False, **CHECKPOINTS}
LAST = {"save_top_k": 0, "save_last": True, **CHECKPOINTS}

DESCRIPTION = """\
Train GroupViT, or the places of a CLIP (model.encoder), on image-text shards and their concept archives.

  python -m training fit --config training/configs/cocu_cc12m.yaml
  python -m training fit --config training/configs/cocu_cc12m.yaml --trainer.devices 8 --data.sampler.temperature 0.2
  python -m training fit --config training/configs/cocu_cc12m.yaml --ckpt_path last        (resume after an interruption)
  python -m training fit --config training/configs/sizes/demo.yaml --config training/configs/cocu_demo.yaml
  python -m training fit --config training/configs/dense_demo.yaml
  python -m training validate --config training/configs/cocu_cc12m.yaml --ckpt_path best
  python -m training fit --help       (every option)
"""


class ConfigError(CocuError):
    """Values of a configuration that do not fit together."""


class TrainingCLI(LightningCLI):
    """LightningCLI with one output folder, best and last checkpoints, TensorBoard and CSV logs, and one seed."""

    model: GroupViTModule
    datamodule: ArchiveDataModule

    # --- options ----------------------------------------------------------------------------------------------------------

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Our own options, and what follows from them."""
        parser.add_argument("--output", default="artifacts/training", help="folder of checkpoints and logs")
        parser.add_argument(
            "--save_every", type=int, default=1000, help="steps between two writes of checkpoints/last.ckpt"
        )
        for name, defaults in (("best_checkpoint", BEST), ("last_checkpoint", LAST)):
            parser.add_lightning_class_args(ModelCheckpoint, name)
            parser.set_defaults({f"{name}.{key}": value for key, value in defaults.items()})
            parser.link_arguments("output", f"{name}.dirpath", compute_fn=checkpoints_in)

        parser.link_arguments("output", "trainer.default_root_dir")
        parser.link_arguments("save_every", "last_checkpoint.every_n_train_steps")
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        parser.link_arguments("seed_everything", "model.seed", compute_fn=int)
        for name in ("image_size", "text_context"):  # the data is made for the model that it is used with
            parser.link_arguments(f"model.{name}", f"data.{name}", apply_on="instantiate")
        explain(parser, "data.negatives", {name: kind.sentence for name, kind in NEGATIVES.items()})

    def _parse_ckpt_path(self) -> None:
        """Lightning's hook: the sizes in a checkpoint that is named by its path replace those of the configuration."""
        subcommand = self.config.get("subcommand")
        path = self.config[subcommand].get("ckpt_path") if subcommand else None
        if path and os.path.isfile(path) and self.datamodule_class is not LabelDataModule:
            sizes = {"model": {"sizes": read_lightning(path).sizes}}
            self.config = self.parser.parse_object({subcommand: sizes}, self.config)

    # --- instances --------------------------------------------------------------------------------------------------------

    def instantiate_classes(self) -> None:
        """Make model, data and trainer. Raises ConfigError for values that do not fit together."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            raise ConfigError(str(error)) from error
        self.model.data = self.datamodule

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer, with loggers into the output folder unless the configuration names others."""
        self.trainer_defaults["callbacks"] = [TrainingProgress(self.datamodule)]
        config = self.config[self.config.subcommand]
        if config.trainer.logger in (None, True) and "logger" not in kwargs:
            written = self.config.subcommand == "fit" and not config.trainer.fast_dev_run
            kwargs["logger"] = loggers(config.output) if written else False
        return super().instantiate_trainer(**kwargs)

    # --- runs -------------------------------------------------------------------------------------------------------------

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Lightning's hook: what fit, validate or test is called with. "best" and "last" are files of the output folder."""
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        if kwargs.get("ckpt_path") in ("best", "last"):
            path = os.path.join(checkpoints_in(self.config[subcommand].output), kwargs["ckpt_path"] + ".ckpt")
            if not os.path.isfile(path):
                raise CheckpointError(f"{path}: no such checkpoint; train first, or name another --output")
            kwargs["ckpt_path"] = path
        return kwargs

    def before_fit(self) -> None:
        """Refuse to write over another run's checkpoints."""
        config = self.config.fit
        last = os.path.join(checkpoints_in(config.output), "last.ckpt")
        if os.path.exists(last) and config.ckpt_path is None and not config.trainer.fast_dev_run:
            raise CheckpointError(
                f"{last}: an earlier run is here; add --ckpt_path last to resume it, or name another --output"
            )


def checkpoints_in(output: str) -> str:
    """The folder of a run's checkpoints."""
    return os.path.join(output, "checkpoints")


def loggers(output: str) -> list[Any]:
    """TensorBoard and CSV, side by side in ``output/logs/version_N``."""
    board = TensorBoardLogger(output, name="logs")
    return [board, CSVLogger(output, name="logs", version=board.version)]


# --- help and errors ------------------------------------------------------------------------------------------------------


class Parser(LightningArgumentParser):
    """Suggests the nearest option for one that does not exist."""

    def error(self, message: str, ex: Exception | None = None) -> None:  # type: ignore[override]
        """End with one line."""
        text = " ".join(str(message).split())
        unknown = re.search(r"(?i)(?:arguments:|option|key) ['\"]?-*([\w.]+)", text)
        print_error(text + (did_you_mean(unknown[1], option_names(self)) if unknown else ""))
        sys.exit(2)


def option_names(parser: ArgumentParser) -> list[str]:
    """The dotted names of a parser's options, and of its subcommands'."""
    names = [action.dest for action in parser._actions]
    subcommands = [action.choices for action in parser._actions if isinstance(action.choices, dict)]
    return names + [name for choices in subcommands for child in choices.values() for name in option_names(child)]


def explain(parser: ArgumentParser, option: str, sentences: dict[str, str]) -> None:
    """Let ``--help`` say what each value of an option means."""
    (action,) = (action for action in parser._actions if action.dest == option)
    values = "; ".join(f"{name}: {sentence}" for name, sentence in sentences.items())
    action.help = f"{action.help} {values}"


# --- main -----------------------------------------------------------------------------------------------------------------


def main(arguments: ArgsType = None, module: type[GroupViTModule | DenseModule] | None = None) -> int:
    """Run; returns the exit code. ``module``: what is trained, and how; None: what the arguments ask for."""
    quiet_lightning()

    def work() -> None:
        chosen = module or (DenseModule if names_encoder(arguments) else GroupViTModule)
        TrainingCLI(
            chosen,
            LabelDataModule if issubclass(chosen, DenseModule) else ArchiveDataModule,
            seed_everything_default=0,
            trainer_defaults={**QUIET},
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"description": DESCRIPTION, "prog": "python -m training"},
            parser_class=Parser,
            args=arguments,
        )

    return run_command(work)


def names_encoder(arguments: ArgsType) -> bool:
    """Whether arguments, or a file of configuration among them, name an encoder (model.encoder): then that is trained."""
    words = sys.argv[1:] if arguments is None else arguments
    if not isinstance(words, list):
        return "encoder" in (words.get("model") or {})
    if any(word.split("=")[0] == "--model.encoder" for word in words):
        return True
    files = [after for word, after in pairwise(words) if word == "--config"]
    files += [word.partition("=")[2] for word in words if word.startswith("--config=")]
    models = [read_yaml(path).get("model") for path in files if os.path.isfile(path)]
    return any(isinstance(values, dict) and "encoder" in values for values in models)


def quiet_lightning() -> None:
    """Leave out what Lightning says to people who write training loops."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
