"""A worker process of DirectRunner: Beam's own, without its log lines. Errors reach the user through the runner."""

import logging
import os
import sys
import threading
import time


def end_with(parent: int) -> None:
    """End this process when its parent is gone: a run that was killed must not go on writing."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    logging.disable(logging.ERROR)  # before the import, which logs too
    from apache_beam.runners.worker import sdk_worker_main

    sdk_worker_main.main(sys.argv)
