"""A worker process of Flink or Spark, for their environment type PROCESS.

Beam's own boot program is in its containers only. Here nothing has to be unpacked: CoCu is installed on every machine.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import threading

from pipelines.worker import end_with

PATIENCE = 60  # seconds


def environment(worker: str, endpoint: str) -> dict[str, str]:
    """The environment variables that Beam's worker reads, as the engine's service at ``endpoint`` (host:port) says them."""
    import grpc
    from apache_beam.portability.api import beam_provision_api_pb2, beam_provision_api_pb2_grpc
    from google.protobuf import json_format

    with grpc.insecure_channel(endpoint) as channel:
        service = beam_provision_api_pb2_grpc.ProvisionServiceStub(channel)
        question = beam_provision_api_pb2.GetProvisionInfoRequest()
        answer = service.GetProvisionInfo(
            question, metadata=[("worker_id", worker)], timeout=PATIENCE, wait_for_ready=True
        )
    return {
        "WORKER_ID": worker,
        "CONTROL_API_SERVICE_DESCRIPTOR": f'url: "{answer.info.control_endpoint.url}"',
        "PIPELINE_OPTIONS": json.dumps(json_format.MessageToDict(answer.info.pipeline_options)),
        "RUNNER_CAPABILITIES": " ".join(answer.info.runner_capabilities),
    }


if __name__ == "__main__":
    logging.disable(logging.ERROR)  # before the imports, which log too
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--id", required=True)
    parser.add_argument("--provision_endpoint", required=True)
    parser.add_argument("--script", default=os.devnull, help="that started this; when it is gone the run has ended")
    args, _ = parser.parse_known_args()
    threading.Thread(target=end_with, args=(os.getppid(), args.script), daemon=True).start()
    os.environ |= environment(args.id, args.provision_endpoint)
    from apache_beam.runners.worker import sdk_worker_main

    sdk_worker_main.main(sys.argv[:1])
