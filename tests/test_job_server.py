"""Job servers in Java: what is started and with which options, without Java."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
from concurrent import futures
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from curation.base.errors import CocuError
from curation.run.run import open_run
from pipelines import watch
from pipelines.arguments import is_given, value
from pipelines.curate import check_beam_arguments, main
from pipelines.engines import fetch, flink, job_server, spark
from pipelines.engines.boot import environment
from pipelines.runners import Request, engine_folder
from pipelines.watch import one_line_of

SERVER = job_server.JobServer("flink", "--flink_job_server_jar", ["--flink-master=[local]"], [])


@pytest.fixture
def started(monkeypatch) -> list[job_server.JobServer]:
    """The job servers that would be started."""
    servers = []

    @contextmanager
    def pretend(server, arguments, folder):
        servers.append(server)
        yield "localhost:1"

    for module in (flink, spark):
        monkeypatch.setattr(module, "job_server", pretend)
    return servers


@pytest.fixture
def overview():
    """Sets what a Flink cluster says of itself, and gives its address."""
    answer = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("localhost", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def say(**values) -> str:
        answer.update(values)
        return f"localhost:{server.server_port}"

    yield say
    server.shutdown()
    server.server_close()


def test_arguments():
    assert is_given(["--a=1", "--b", "2"], "--c", "--b")
    assert not is_given(["--ab=1"], "--a")
    assert value(["--a=1", "--a", "2"], "--a", "3") == "2"
    assert value(["--b=1"], "--a", "3") == "3"


def test_java_that_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(CocuError, match="runner flink: there is no Java"):
        job_server.find_java("flink")
    java = tmp_path / "home" / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.touch(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "home"))
    assert job_server.find_java("flink") == str(java)
    assert job_server.find_java("flink", str(java)) == str(java)


def test_a_jar_that_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CocuError, match=r"run make engines, or name one with --flink_job_server_jar"):
        job_server.find_jar(SERVER, [])
    with pytest.raises(CocuError, match=r"my\.jar: no such job server"):
        job_server.find_jar(SERVER, ["--flink_job_server_jar=my.jar"])
    Path("my.jar").touch()
    assert job_server.find_jar(SERVER, ["--flink_job_server_jar=my.jar"]) == "my.jar"


def test_the_command_says_in_one_line_what_is_missing(world, monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(job_server, "FOLDER", str(tmp_path / "nothing"))
    monkeypatch.setattr(job_server, "find_java", lambda *arguments: "java")
    options = ["--data", str(world), "--output", str(tmp_path / "out"), "--runner", "flink"]
    assert main(options) == 1
    captured = capfd.readouterr().err
    assert captured.startswith("error: runner flink: ")
    assert "run make engines" in captured
    assert captured.count("\n") == 1


def test_a_job_server_that_ends_at_once_leaves_its_log(tmp_path, monkeypatch):
    jar = tmp_path / "my.jar"
    jar.write_text("")
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\necho no heap; exit 3\n")
    java.chmod(0o755)
    monkeypatch.setattr(job_server, "find_java", lambda *arguments: str(java))
    arguments = [f"--flink_job_server_jar={jar}"]
    starting = job_server.job_server(SERVER, arguments, str(tmp_path))
    with pytest.raises(CocuError, match=r"ended at once; .*flink-job-server\.log says why"), starting:
        pass
    assert (tmp_path / "flink-job-server.log").read_text() == "no heap\n"


@pytest.mark.parametrize("name", ["job_port", "artifact_port", "expansion_port"])
def test_a_port_that_is_taken_is_named(name, tmp_path, monkeypatch):
    jar = tmp_path / "my.jar"
    jar.touch()
    monkeypatch.setattr(job_server, "find_java", lambda *arguments: "false")
    with socket.create_server(("localhost", 0)) as listener:
        port = listener.getsockname()[1]
        starting = job_server.job_server(SERVER, [f"--flink_job_server_jar={jar}", f"--{name}={port}"], str(tmp_path))
        with pytest.raises(CocuError, match=f"{name}: something listens on port {port} already"), starting:
            pass


def test_a_job_server_has_temporary_files_of_its_own(tmp_path, monkeypatch):
    """A job server that, as Java does, puts a file where the property says, and then listens."""
    jar, java, names = tmp_path / "my.jar", tmp_path / "java", tmp_path / "names"
    jar.touch()
    java.write_text(
        f"#!{sys.executable}\nimport socket, sys, time\n"
        "options = dict(word.partition('=')[::2] for word in sys.argv)\n"
        "open(options['-Djava.io.tmpdir'] + '/library', 'w').close()\n"
        f"open({str(names)!r}, 'w').write(' '.join(sys.argv))\n"
        "server = socket.create_server(('localhost', int(options['--job-port'])))\ntime.sleep(60)\n"
    )
    java.chmod(0o755)
    monkeypatch.setattr(job_server, "find_java", lambda *arguments: str(java))
    monkeypatch.setattr(job_server, "_check", lambda *arguments: None)
    with job_server.job_server(SERVER, [f"--flink_job_server_jar={jar}"], str(tmp_path)):
        (scratch,) = re.findall(r"-Djava\.io\.tmpdir=(\S+)", names.read_text())
        assert os.listdir(scratch) == ["library"]
    assert not os.path.exists(scratch)


def test_workers_are_started_by_a_script(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/some where")
    kind, config = job_server.worker_options([], str(tmp_path))
    assert kind == "--environment_type=PROCESS"
    script = json.loads(config.removeprefix("--environment_config="))["command"]
    assert os.access(script, os.X_OK)
    result = subprocess.run([script, "--help"], capture_output=True, text=True)
    assert result.returncode == 0
    assert "--provision_endpoint" in result.stdout
    assert job_server.worker_options(["--environment_type=LOOPBACK"], str(tmp_path)) == []
    with pytest.raises(CocuError, match="environment_type: "):
        job_server.worker_options([], "s3://bucket/out")


def test_a_worker_ends_when_its_run_has_ended(tmp_path):
    """The folder of a run that ended is removed, and with it the script that started workers, here or on a machine that
    nobody can reach otherwise. This one waits for an engine that does not answer."""
    _, config = job_server.worker_options([], str(tmp_path))
    script = Path(json.loads(config.removeprefix("--environment_config="))["command"])
    worker = subprocess.Popen([script, "--id=1-1", f"--provision_endpoint=localhost:{job_server.free_port()}"])
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            worker.wait(3)
        script.unlink()
        assert worker.wait(30) == 1
    finally:
        worker.kill()
        worker.wait()


def test_scripts_of_two_runs_differ(tmp_path):
    """What a Flink cluster still starts for a command that was killed must not work for the next one."""
    assert job_server.worker_options([], str(tmp_path)) != job_server.worker_options([], str(tmp_path))


@pytest.mark.parametrize("has_log", [True, False])
def test_only_logs_stay_when_a_run_fails(has_log, tmp_path):
    request = Request(1, 1, [], watch.WorkerWatch(None, str(tmp_path)), str(tmp_path / "out"))
    with pytest.raises(CocuError), engine_folder(request) as folder:
        job_server.worker_options([], folder)
        (Path(folder) / "artifacts").mkdir()
        if has_log:
            (Path(folder) / "flink-job-server.log").write_text("why")
        raise CocuError("no")
    left = [path.name for path in (tmp_path / "out").rglob("*")]
    assert left == ([".engine", "flink-job-server.log"] if has_log else [])


def test_a_worker_asks_the_engine_what_it_needs():
    import grpc
    from apache_beam.portability.api import beam_provision_api_pb2, beam_provision_api_pb2_grpc

    class Service(beam_provision_api_pb2_grpc.ProvisionServiceServicer):
        def GetProvisionInfo(self, request, context):
            assert ("worker_id", "1-2") in context.invocation_metadata()
            answer = beam_provision_api_pb2.GetProvisionInfoResponse()
            answer.info.control_endpoint.url = "localhost:7"
            answer.info.pipeline_options["beam:option:job_name:v1"] = "x"
            return answer

    server = grpc.server(futures.ThreadPoolExecutor(1))
    beam_provision_api_pb2_grpc.add_ProvisionServiceServicer_to_server(Service(), server)
    port = server.add_insecure_port("localhost:0")
    server.start()
    try:
        values = environment("1-2", f"localhost:{port}")
    finally:
        server.stop(None)
    assert values["WORKER_ID"] == "1-2"
    assert values["CONTROL_API_SERVICE_DESCRIPTOR"] == 'url: "localhost:7"'
    assert json.loads(values["PIPELINE_OPTIONS"]) == {"beam:option:job_name:v1": "x"}


def test_flink_inside_the_job_server(started, tmp_path):
    with flink.options([], 2, 8, str(tmp_path), "log") as options:
        assert options[0] == "--job_endpoint=localhost:1"
        assert {"--parallelism=2", "--sdk_worker_parallelism=2", "--load_balance_bundles"} <= set(options)
    assert started[0].arguments == ["--flink-master=[local]"]
    with flink.options(["--execution_mode_for_batch=PIPELINED"], 2, 8, str(tmp_path), "log") as options:
        assert not is_given(options, "--load_balance_bundles")  # it would hang


def test_flink_with_a_cluster(started, overview, tmp_path):
    master = overview(**{"taskmanagers": 3, "slots-total": 12})
    with flink.options([f"--flink_master={master}"], 2, 8, str(tmp_path), "log") as options:
        assert {"--parallelism=8", "--sdk_worker_parallelism=4"} <= set(options)
    with flink.options([f"--flink_master={master}", "--parallelism=6"], 2, 8, str(tmp_path), "log") as options:
        assert value(options, "--parallelism", "") == "6"
    overview(**{"taskmanagers": 0, "slots-total": 0})
    with pytest.raises(CocuError, match="has no task manager"):
        flink.cluster_slots(master)
    with pytest.raises(CocuError, match="no Flink answers at http://localhost:9 "):
        flink.cluster_slots("localhost:9")


def test_spark(started, tmp_path):
    with spark.options([], 2, 8, str(tmp_path), "log") as options:
        assert "--sdk_worker_parallelism=2" in options
    with spark.options(["--spark_master_url=spark://host:7077"], 2, 8, str(tmp_path), "log") as options:
        assert "--sdk_worker_parallelism=1" in options
    here, cluster = started
    assert here.arguments == ["--spark-master-url=local[2]"]
    assert cluster.arguments == ["--spark-master-url=spark://host:7077"]
    assert "-Dspark.default.parallelism=8" in here.java_options
    assert "-Dspark.executor.cores=1" in cluster.java_options


def test_options_that_only_a_job_server_knows_are_left_to_it():
    check_beam_arguments(["--load_balance_bundles", "--parallelism=3"], "flink")
    with pytest.raises(CocuError, match=r"unknown option --retrieval\.neighbour .*--retrieval\.neighbors"):
        check_beam_arguments(["--retrieval.neighbour", "3"], "flink")
    with pytest.raises(CocuError, match="unknown option --load_balance_bundles"):
        check_beam_arguments(["--load_balance_bundles"], "dask")


def test_an_endpoint_where_nothing_listens_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(job_server, "ANSWERING", 1)
    starting = job_server.job_server(SERVER, ["--job_endpoint=localhost:9"], str(tmp_path))
    with (
        pytest.raises(CocuError, match=r"nothing answers at localhost:9 .*; start a job server"),
        starting,
    ):
        pass


def test_an_error_in_java_is_its_first_line(finished, tmp_path):
    text = "Pipeline x failed in state FAILED: java.lang.IllegalStateException: no slots\n\tat org.A.b(A.java:3)\n"
    message = one_line_of(RuntimeError(text), open_run(str(finished)), os.devnull)
    assert message == "Pipeline x failed in state FAILED: java.lang.IllegalStateException: no slots"


def test_a_worker_that_ends_is_a_matter_of_its_engine(finished, tmp_path, monkeypatch):
    """Flink ends workers between two stages, threads of this process with LOOPBACK; without an engine one has died."""
    ended = []
    monkeypatch.setattr(watch, "GRACE", 0)
    monkeypatch.setattr(watch.WorkerWatch, "_end", lambda self: ended.append(self))
    watches = [
        watch.WorkerWatch(open_run(str(finished)), str(tmp_path), only_log=only_log) for only_log in (True, False)
    ]
    for one in watches:
        with one:
            worker = threading.Thread(target=lambda: 1 / 0, name="run_worker_1-1")
            worker.start()
            worker.join()
    assert ended == watches[1:]


def test_a_job_server_that_the_user_has(tmp_path, capfd):
    jar, folder = tmp_path / "beam-runners-flink-1.19-job-server-2.70.0.jar", tmp_path / "engines"
    jar.write_text("x")
    assert fetch.keep_jar(str(jar), folder) == "flink"
    assert (folder / "flink-job-server.jar").read_text() == "x"
    with pytest.raises(CocuError, match="no such file"):
        fetch.keep_jar(str(tmp_path / "flink.jar"), folder)
    (tmp_path / "server.jar").touch()
    with pytest.raises(CocuError, match="rename it"):
        fetch.keep_jar(str(tmp_path / "server.jar"), folder)


def test_only_the_engine_whose_job_server_is_given_is_fetched(tmp_path, monkeypatch):
    fetched = []
    monkeypatch.setattr(fetch, "fetch_job_server", lambda engine, target: fetched.append(target.name))
    monkeypatch.setattr(fetch, "fetch_cluster", lambda engine, target: fetched.append(target.name))
    jar = tmp_path / "beam-runners-spark-3-job-server.jar"
    jar.touch()
    fetch.fetch(tmp_path / "engines", [str(jar)])
    assert fetched == ["spark"]
    fetch.fetch(tmp_path / "engines", [])
    assert fetched == ["spark", "flink-job-server.jar", "flink", "spark"]


def test_maven_that_is_missing_or_fails_is_one_line(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(fetch, "find_java", lambda engine: "java")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert fetch.main(["--folder", str(tmp_path / "engines")]) == 1
    assert "there is no Maven" in capfd.readouterr().err
    maven = tmp_path / "mvn"
    maven.write_text(f"#!{sys.executable}\nprint('[ERROR] Could not find artifact x')\nraise SystemExit(1)\n")
    maven.chmod(0o755)
    assert fetch.main(["--folder", str(tmp_path / "engines")]) == 1
    assert "error: Maven failed: [ERROR] Could not find artifact x; give JAR=FILE" in capfd.readouterr().err
    assert not list(tmp_path.glob("engines/*"))
