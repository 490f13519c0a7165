"""``cocu browse OUT``: look through the archives of a finished run in a browser."""

from __future__ import annotations

import argparse
import os
import secrets
import socket
import sys
import threading
import warnings
from typing import Any

from rich.console import Console

from curation.base import files
from curation.base.errors import CocuError, one_line
from curation.base.options import CommandParser
from curation.base.terminal import add_remote_option, is_interactive, run_command

PORT, TRIES = 8642, 20
HOST = "127.0.0.1"  # nobody else can ask


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = CommandParser(
        prog="cocu browse",
        description="Look through the archives of a finished run in a browser: search, galleries, reasons, the vocabulary. "
        "The pages are for this machine only.",
    )
    parser.add_argument("folder", metavar="OUT", help="output folder of a finished run")
    parser.add_argument("--port", type=int, help=f"where to listen (default: {PORT}, or the next that is free)")
    parser.add_argument("--open", action="store_true", help="open the first page in the browser of this machine")
    parser.add_argument(
        "--edits",
        metavar="FILE",
        help="the csv that edits of the vocabulary go to (default: OUT/vocabulary.edited.csv)",
    )
    parser.add_argument(
        "--cache", metavar="FOLDER", help="where catalogues of runs are kept (default: ~/.cache/cocu/browse)"
    )
    add_remote_option(parser)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run; returns the exit code."""
    args = build_parser().parse_args(arguments)
    return run_command(lambda: serve(args), "stopped")


def serve(args: argparse.Namespace) -> None:
    """Open a run, build its catalogue where there is none yet, and answer until somebody stops it."""
    import uvicorn  # first: it comes with an extra, and what follows takes seconds

    from curation.run.run import open_run

    open_run(args.folder, args.allow_remote)  # or the folder is none, which need not wait for what follows
    import faiss
    import torch

    from curation.tools.browse.app import application

    torch.set_num_threads(1)  # single queries are small: threads would wait for each other, and for other programs
    faiss.omp_set_num_threads(1)
    views = open_views(args.folder, args.edits, args.cache, args.allow_remote)
    token = own_token(os.path.dirname(views.catalogue.folder))
    listening = listen(args.port)
    over = threading.Event()
    state = Preparation(views, over)
    config = uvicorn.Config(
        application(views, token, lambda: state.note),
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
    )
    address = f"http://{HOST}:{listening.getsockname()[1]}/{token}/"
    Console(soft_wrap=True).print(f"{address}\n[dim]Ctrl-C stops.[/]", highlight=False)
    if args.open:
        import webbrowser

        webbrowser.open(address)

    # Ctrl-C may come between the moment when the server's work is made and that when it begins.
    warnings.filterwarnings("ignore", r"coroutine 'Server\.serve' was never awaited", RuntimeWarning)
    state.start()
    try:
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        over.set()


def open_views(folder: str, edits: str | None = None, cache: str | None = None, allow_remote: bool = False) -> Any:
    """Everything that the pages of a run look up. Raises CocuError."""
    from curation.run.run import indexed_run, open_run
    from curation.tools.browse.catalogue import open_catalogue
    from curation.tools.browse.edits import VocabularyTable
    from curation.tools.browse.pictures import Pictures
    from curation.tools.browse.views import Views

    run = open_run(folder, allow_remote)
    edits = edits or run.path("vocabulary.edited.csv")
    if files.is_same(edits, run.path("vocabulary.csv")):
        raise CocuError(f"--edits: {edits} is the table of the run itself, which is not changed; give another file")

    console = Console(stderr=True)
    with console.status("") as status:

        def advance(shards: int) -> None:
            status.update(f"A catalogue of {folder}, once: {shards:,} of {len(run.shards):,} shards")

        catalogue = open_catalogue(run, cache, advance if is_interactive() else lambda shards: None)
    pictures = Pictures(run, os.path.join(catalogue.folder, "tars"))
    source = indexed_run(run)
    retrieved = pictures if source is run else Pictures(source, os.path.join(catalogue.folder, "retrieved-tars"))
    return Views(run, catalogue, VocabularyTable(run.path("vocabulary.csv"), edits), pictures, retrieved)


class Preparation:
    """What is loaded while the first pages are looked at already: the encoder, the index, places in tars."""

    def __init__(self, views: Any, over: threading.Event) -> None:
        self.note = ""
        self._views = views
        self._over = over

    def start(self) -> None:
        """Work in the background."""
        threading.Thread(target=self._load, daemon=True).start()
        threading.Thread(target=self._views.pictures.prepare, args=(self._over,), daemon=True).start()

    def _load(self) -> None:
        self.note = "The encoder is being loaded: the first search by looks waits for it."
        try:
            self._views.warm()
            self.note = ""
        except Exception as error:  # whatever it is, the other pages work
            self.note = f"Searches by looks are not possible: {one_line(error)}"


def own_token(folder: str) -> str:
    """The token of this user, which stays the same, so that addresses can be kept; only this user can read it."""
    path = os.path.join(folder, "token")
    try:
        with open(path, encoding="ascii") as stream:
            token = stream.read().strip()
        if len(token) >= 22 and token.replace("-", "").replace("_", "").isalnum():
            return token
    except (FileNotFoundError, UnicodeDecodeError):
        pass
    token = secrets.token_urlsafe(18)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="ascii") as stream:
        os.fchmod(stream.fileno(), 0o600)  # of a file that was there
        stream.write(token)
    return token


def listen(port: int | None) -> socket.socket:
    """A socket on this machine's own address: at a port, or at the first free one. Raises CocuError where it is taken."""
    for candidate in [port] if port is not None else range(PORT, PORT + TRIES):
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((HOST, candidate))
            listening.listen(128)  # so that the address can be asked as soon as it is printed
            return listening
        except (OSError, OverflowError):
            listening.close()
    asked = port if port is not None else f"{PORT} to {PORT + TRIES - 1}"
    raise CocuError(f"--port: {asked} cannot be listened at; give another one")


if __name__ == "__main__":
    sys.exit(main())
