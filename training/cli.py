"""The command line of training: Lightning's, with our options, defaults and errors."""

from __future__ import annotations

import contextlib
import os
import sys
from argparse import ArgumentParser
from collections.abc import Mapping
from typing import Any

import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint as CheckpointCallback
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.io import CheckpointIO
from lightning_utilities.core.rank_zero import rank_zero_only

from curation.base import files
from curation.base.configuration import read_yaml, require
from curation.base.errors import CocuError
from curation.base.logs import SpokenConsole, log_to, speak
from curation.base.terminal import INTERRUPTED, run_command
from segmenters.paths import CheckpointError
from training import resume
from training.checkpoints import BestCheckpoint, CheckpointFiles, LastCheckpoint, remove_leftovers
from training.command import values_of
from training.datamodule import ArchiveDataModule
from training.dense import DenseModule
from training.interruption import Interrupted, Interruption, say_how_to_go_on
from training.labels import LabelDataModule
from training.logs import LoggedSettings, loggers
from training.module import GroupViTModule
from training.negatives import NEGATIVES
from training.parser import (
    DESCRIPTION,
    HelpFormatter,
    Parser,
    explain,
    from_lightning,
    quiet_lightning,
    reason,
    subparsers,
)
from training.pictures import ValidationPictures
from training.progress import TrainingProgress
from training.settings import RunSettings, flat
from training.zero_shot import SCORE, ZeroShotModule

QUIET = {"enable_progress_bar": False, "enable_model_summary": False}  # TrainingProgress shows both
CHECKPOINTS = {"auto_insert_metric_name": False, "enable_version_counter": False}
BEST = {"monitor": SCORE, "mode": "max", "filename": "best", "save_weights_only": False, **CHECKPOINTS}
LAST = {"save_top_k": 0, "save_last": True, **CHECKPOINTS}
LOG = "train.log"  # in the output folder


class ConfigError(CocuError):
    """Values of a configuration that do not fit together."""


class TrainingCLI(LightningCLI):
    """LightningCLI with one output folder, best and last checkpoints, TensorBoard and CSV logs, and one seed."""

    model: ZeroShotModule
    datamodule: ArchiveDataModule
    checkpoint: resume.Checkpoint | None = None  # that is gone on from, or scored

    # --- options ----------------------------------------------------------------------------------------------------------

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """What is offered: not predict, which ``cocu segment`` does for images."""
        return {name: skipped for name, skipped in LightningCLI.subcommands().items() if name != "predict"}

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Lightning's hook: keep the command for the log file."""
        words = sys.argv[1:] if args is None else args
        self.words = [*parser.prog.split(), *(words if isinstance(words, list) else [])]
        super().parse_arguments(parser, args)

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Our own options come first in the help."""
        parser.add_argument("--output", "-o", default="artifacts/training", help="folder of checkpoints and logs")
        parser.add_argument(
            "--resume",
            type=bool,
            default=True,
            help="go on from the checkpoints in the output folder, if there are any; no: set them aside and begin anew",
        )
        parser.add_argument(
            "--save_every", type=int, default=1000, help="steps between two writes of checkpoints/last.ckpt"
        )
        parser.add_argument(
            "--pictures",
            type=int,
            default=4,
            help="pictures of the benchmark, and of the training data, that are drawn into the logs after each validation",
        )
        parser.add_argument(
            "--wandb",
            type=str,
            default=None,
            help="project of Weights & Biases to log to as well: pip install wandb; WANDB_MODE=offline uses no network",
        )
        parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but warnings and errors")
        parser.add_argument(
            "-v", "--details", action="store_true", help="print all that goes into OUT/train.log"
        )  # --verbose is one of Lightning's
        super().add_default_arguments_to_parser(parser)

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Model and data, then Lightning's trainer."""
        parser.add_lightning_class_args(self._model_class, "model")
        parser.add_lightning_class_args(self._datamodule_class, "data")
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        parser.set_defaults({f"trainer.{key}": value for key, value in QUIET.items()})

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Checkpoints, and what follows from other options."""
        kinds = (("best_checkpoint", BestCheckpoint, BEST), ("last_checkpoint", LastCheckpoint, LAST))
        for name, kind, defaults in kinds:
            parser.add_lightning_class_args(kind, name)
            parser.set_defaults({f"{name}.{key}": value for key, value in defaults.items()})
            parser.link_arguments("output", f"{name}.dirpath", compute_fn=resume.checkpoints_in)

        parser.link_arguments("output", "trainer.default_root_dir")
        parser.link_arguments("save_every", "last_checkpoint.every_n_train_steps")
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        parser.link_arguments("seed_everything", "model.seed", compute_fn=int)
        for name in ("image_size", "text_context"):  # the data is made for the model that it is used with
            parser.link_arguments(f"model.{name}", f"data.{name}", apply_on="instantiate")
        explain(parser, "data.negatives", {name: kind.sentence for name, kind in NEGATIVES.items()})

    @property
    def console(self) -> SpokenConsole:
        """What prints as loudly as the options say."""
        return SpokenConsole(quiet=self.config[self.config.subcommand].quiet)

    # --- the checkpoint ---------------------------------------------------------------------------------------------------

    def _parse_ckpt_path(self) -> None:
        """Lightning's hook: find the checkpoint, if any.

        The sizes in it replace those of the configuration, but where a run goes on in its own folder: there they must be
        the same. Raises CheckpointError, and CocuError for settings that cannot change.
        """
        subcommand = self.config["subcommand"]
        config = self.config[subcommand]
        require(
            not files.is_remote(config.output),
            f"output: {config.output} is an address; checkpoints need a local folder",
        )
        path = self._chosen_path(subcommand, config)
        if path is None:
            return

        self.checkpoint = resume.read(path)
        is_dense = self.datamodule_class is LabelDataModule
        if self.checkpoint.is_dense != is_dense:
            kinds = {True: "a CLIP's places (model.encoder)", False: "a GroupViT"}
            raise CheckpointError(
                f"{path}: a checkpoint of {kinds[not is_dense]}, but this configuration trains {kinds[is_dense]}; name "
                "another --output, or the configuration of that run"
            )
        if not is_dense and (subcommand != "fit" or path == config.ckpt_path):
            sizes = {"model": {"sizes": self.checkpoint.sizes}}
            self.config = self.parser.parse_object({subcommand: sizes}, self.config)
        if subcommand == "fit":
            changed = resume.changed_settings(self.checkpoint, self._settings())
            lines = [f"Going on at step {self.checkpoint.step:,}, from {path}", *(f"  {change}" for change in changed)]
            say("\n".join(lines), self.console)

    def _chosen_path(self, subcommand: str, config: Any) -> str | None:
        """The file of the checkpoint: the one that is named, else what an earlier run left."""
        path = config.get("ckpt_path")
        if path in (resume.BEST, resume.LAST):
            return resume.named(config.output, path)
        if path:
            require(not files.is_remote(path), f"ckpt_path: {path} is an address; copy the checkpoint here first")
            require(os.path.isfile(path), f"{path}: no such checkpoint; name a .ckpt, best or last")
            return str(path)
        if subcommand != "fit":
            raise CheckpointError(
                f"{subcommand}: no checkpoint is named, and random weights have no score; add --ckpt_path best"
            )
        wanted = config.resume and not config.trainer.fast_dev_run
        return resume.earlier(config.output) if wanted else None

    def _settings(self) -> dict[str, Any]:
        """What decides the run, by dotted key."""
        text = self.parser.dump(self.config, skip_none=False, format="yaml")
        return flat(yaml.safe_load(text)[self.config.subcommand])

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Lightning's hook: what fit, validate or test is called with."""
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        kwargs["ckpt_path"] = self.checkpoint.path if self.checkpoint else None
        return kwargs

    # --- instances --------------------------------------------------------------------------------------------------------

    def instantiate_classes(self) -> None:
        """Make model, data and trainer. Raises ConfigError for values that do not fit together."""
        try:
            super().instantiate_classes()
        except (ValueError, TypeError, RuntimeError, ImportError, MisconfigurationException) as error:
            raise ConfigError(reason(error)) from error
        self.model.data = self.datamodule

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer, with loggers into the output folder unless the configuration names others."""
        config = self.config[self.config.subcommand]
        self.trainer_defaults["callbacks"] = [TrainingProgress(self.datamodule, self.console), Interruption()]
        if self.config.subcommand == "fit":
            settings = self._settings()
            pictures = ValidationPictures(self.datamodule, config.pictures)
            self.trainer_defaults["callbacks"] += [RunSettings(settings), LoggedSettings(settings), pictures]
        own = config.trainer.logger not in (None, True)
        require(not (own and config.wandb), "wandb: trainer.logger names the loggers already; leave one of the two out")
        if config.trainer.logger in (None, True) and "logger" not in kwargs:
            written = self.config.subcommand == "fit" and not config.trainer.fast_dev_run
            kwargs["logger"] = loggers(config.output, self._continued_step(), config.wandb) if written else False
        return super().instantiate_trainer(**kwargs)

    def _continued_step(self) -> int | None:
        """The step at which a run goes on in its own folder; None for one that begins."""
        if self.checkpoint is None:
            return None
        own = os.path.realpath(resume.checkpoints_in(self.config.fit.output))
        return self.checkpoint.step if os.path.dirname(os.path.realpath(self.checkpoint.path)) == own else None

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        """Lightning's hook: no checkpoints where the trainer is to keep none, and ours written whole or not at all."""
        if config.get("enable_checkpointing") is False:
            callbacks = [callback for callback in callbacks if not isinstance(callback, CheckpointCallback)]
        plugins = config.get("plugins") or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins = [*plugins, CheckpointFiles()]
        return super()._instantiate_trainer({**config, "plugins": plugins}, callbacks)

    # --- runs -------------------------------------------------------------------------------------------------------------

    def _run_subcommand(self, subcommand: str) -> None:
        """Lightning's hook: training keeps a log file in its output folder."""
        config = self.config[subcommand]
        is_logged = subcommand == "fit" and not config.trainer.fast_dev_run and getattr(rank_zero_only, "rank", 0) == 0
        log = log_to(os.path.join(config.output, LOG), self.words) if is_logged else contextlib.nullcontext()
        with speak(config.details), log:
            super()._run_subcommand(subcommand)

    def before_fit(self) -> None:
        """Make room where a run begins anew."""
        config = self.config.fit
        if not config.trainer.fast_dev_run:
            make_room(config.output, anew=not config.resume and config.ckpt_path is None, console=self.console)

    def after_fit(self) -> None:
        """Say where nothing was left to do."""
        if self.checkpoint and self.trainer.global_step == self.checkpoint.step:
            say(
                f"This run is at its end, step {self.checkpoint.step:,}: {self.checkpoint.path}; raise trainer.max_epochs "
                "(or max_steps) to train on, or begin anew with --resume no",
                self.console,
            )


@rank_zero_only
def make_room(output: str, anew: bool, console: SpokenConsole) -> None:
    """Set the checkpoints of an earlier run aside where one begins anew, and clear away what a killed one left."""
    folder = resume.set_aside(output) if anew else None
    if folder:
        say(f"The checkpoints of the earlier run are in {folder}", console)
    remove_leftovers(resume.checkpoints_in(output))


@rank_zero_only
def say(text: str, console: SpokenConsole) -> None:
    """Print on the first process."""
    console.print(text, highlight=False, soft_wrap=True, markup=False)


# --- main -----------------------------------------------------------------------------------------------------------------


def main(
    arguments: ArgsType = None, module: type[ZeroShotModule] | None = None, prog: str = "python -m training"
) -> int:
    """Run; returns the exit code. ``module``: what is trained, and how, or None for what the arguments ask for; ``prog``:
    the command that this is."""
    quiet_lightning()

    def work() -> int:
        try:
            chosen = module or (DenseModule if names_encoder(arguments) else GroupViTModule)
            run_cli(TrainingCLI, chosen, prog, arguments)
        except (ValueError, RuntimeError, MisconfigurationException) as error:
            if not from_lightning(error):
                raise
            raise ConfigError(reason(error)) from error
        except Interrupted as interrupted:
            say_how_to_go_on(interrupted.step, prog, arguments)
            return 128 + interrupted.signal
        except SystemExit as ended:
            if not isinstance(ended.__context__, KeyboardInterrupt):
                raise
            say_how_to_go_on(None, prog, arguments)
            return INTERRUPTED
        return 0

    return run_command(work)


def run_cli(cli: type[TrainingCLI], module: type[ZeroShotModule], prog: str, arguments: ArgsType) -> None:
    """Parse the arguments and do what they say."""
    cli(
        module,
        LabelDataModule if issubclass(module, DenseModule) else ArchiveDataModule,
        seed_everything_default=0,
        trainer_defaults={},
        save_config_kwargs={"overwrite": True},
        parser_kwargs={"description": DESCRIPTION, "prog": prog, "formatter_class": HelpFormatter},
        parser_class=Parser,
        args=arguments,
        auto_configure_optimizers=False,
    )


class _Built(Exception):
    """Carries a parser out of Lightning's constructor, where nothing is to be parsed."""

    def __init__(self, parser: LightningArgumentParser) -> None:
        self.parser = parser


class _Unparsed(TrainingCLI):
    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        raise _Built(parser)


def parser_of(subcommand: str, prog: str) -> ArgumentParser:
    """The parser of a subcommand, for completion."""
    try:
        run_cli(_Unparsed, GroupViTModule, prog, [])
    except _Built as built:
        return subparsers(built.parser)[subcommand]
    raise AssertionError("parsed")


def names_encoder(arguments: ArgsType) -> bool:
    """Whether arguments, or a file of configuration among them, name an encoder (model.encoder): then that is trained."""
    words = sys.argv[1:] if arguments is None else arguments
    if not isinstance(words, list):  # from Python: options, or those of a subcommand below its name
        sections = [words, *(value for value in words.values() if isinstance(value, Mapping))]
        models = [section.get("model") for section in sections]
    else:
        if any(values_of(words, "--model.encoder")):
            return True
        models = [read_yaml(path).get("model") for path in values_of(words, "--config", "-c") if os.path.isfile(path)]
    return any(isinstance(values, Mapping) and "encoder" in values for values in models)
