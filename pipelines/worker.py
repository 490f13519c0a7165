"""A worker process of DirectRunner: Beam's own, without its log lines. Errors reach the user through the runner."""

import logging
import sys

if __name__ == "__main__":
    logging.disable(logging.ERROR)  # before the import, which logs too
    from apache_beam.runners.worker import sdk_worker_main

    sdk_worker_main.main(sys.argv)
