"""A worker process of DirectRunner: Beam's own, without its log lines. Errors reach the user through the runner."""

import logging
import os
import sys
import threading
import time


def end_with(parent: int, alive: str = os.devnull) -> None:
    """End this process when its parent or the file ``alive`` is gone: a run that ended must not go on writing."""
    while os.getppid() == parent and not _is_gone(alive):
        time.sleep(0.2)
    os._exit(1)


def _is_gone(path: str) -> bool:
    try:
        os.stat(path)
    except FileNotFoundError:
        return True
    except OSError:  # a shared disk that does not answer has not said that the file is gone
        return False
    return False


if __name__ == "__main__":
    threading.Thread(target=end_with, args=(os.getppid(), sys.argv[1]), daemon=True).start()
    logging.disable(logging.ERROR)  # before the import, which logs too
    from apache_beam.runners.worker import sdk_worker_main

    sdk_worker_main.main(sys.argv[:1])
