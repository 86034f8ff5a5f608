"""Apache Kafka on this machine: one KRaft node from Maven Central, or the cluster that the environment names."""

from __future__ import annotations

import base64
import fcntl
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import confluent_kafka
from confluent_kafka.admin import AdminClient

from deploy.local import process
from deploy.local.broker import Broker
from deploy.local.ports import free_port

VERSION = "4.3.0"
BOOTSTRAP_VARIABLE = "KAFKA_BOOTSTRAP_SERVERS"
_POM = Path(__file__).with_name("kafka.pom.xml")
_PROPERTIES = """\
process.roles=broker,controller
node.id=1
listeners=BROKER://127.0.0.1:{broker},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=BROKER://127.0.0.1:{broker}
listener.security.protocol.map=BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=BROKER
controller.listener.names=CONTROLLER
controller.quorum.bootstrap.servers=127.0.0.1:{controller}
log.dirs={data}
num.partitions=4
auto.create.topics.enable=true
offsets.topic.num.partitions=4
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
"""


def unavailable() -> str | None:
    """Why no Apache Kafka can be had here, in a few words; None when one can."""
    if os.environ.get(BOOTSTRAP_VARIABLE):
        return None
    if shutil.which("java") is None:
        return f"no java, and {BOOTSTRAP_VARIABLE} is not set"
    if not _complete(_libraries()) and shutil.which("mvn") is None:
        return f"no mvn, and {BOOTSTRAP_VARIABLE} is not set"
    return None


@contextmanager
def kafka(directory: Path) -> Iterator[Broker]:
    """The cluster in KAFKA_BOOTSTRAP_SERVERS if that is set, else a node with its data in `directory`.

    The first call fetches about 43 MB with Maven into `.cache/`. Raises `deploy.local.process.ServerError` when
    Kafka cannot be fetched or does not start.
    """
    given = os.environ.get(BOOTSTRAP_VARIABLE)
    if given:
        yield Broker(bootstrap=given)
        return
    libraries = provision()
    directory.mkdir(parents=True, exist_ok=True)
    port = free_port()
    bootstrap = f"127.0.0.1:{port}"
    properties = directory / "server.properties"
    properties.write_text(_PROPERTIES.format(broker=port, controller=free_port(), data=directory / "data"))
    java = ["java", "-Xmx512m", "-XX:TieredStopAtLevel=1", "-cp", f"{libraries}/*"]
    _run(
        [
            *java,
            "kafka.tools.StorageTool",
            "format",
            f"--cluster-id={_cluster_id()}",
            "-c",
            str(properties),
            "--standalone",
        ],
        "format the storage of Kafka",
    )
    with process.running(
        "kafka",
        [*java, "kafka.Kafka", str(properties)],
        directory / "kafka.log",
        ready=lambda: _answers(bootstrap),
        timeout=90,
        cwd=directory,
    ):
        yield Broker(bootstrap=bootstrap)


def provision() -> Path:
    """The directory with Kafka's jars, fetched when missing; safe for processes that call it at once."""
    libraries = _libraries()
    libraries.parent.mkdir(parents=True, exist_ok=True)
    with (libraries.parent / f".{libraries.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _complete(libraries):
            fresh = libraries.with_name(f"{libraries.name}.part")
            shutil.rmtree(fresh, ignore_errors=True)
            # Strict checksums (-C): a damaged download fails instead of being used.
            fetch = ["mvn", "-B", "-q", "-C", "-f", str(_POM), "dependency:copy-dependencies"]
            _run([*fetch, f"-DoutputDirectory={fresh}"], f"fetch Apache Kafka {VERSION}")
            fresh.rename(libraries)
    return libraries


def _libraries() -> Path:
    return Path(__file__).parents[2] / ".cache" / f"kafka-{VERSION}"


def _complete(libraries: Path) -> bool:
    return (libraries / f"kafka_2.13-{VERSION}.jar").exists()


def _cluster_id() -> str:
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")


def _run(command: list[str], purpose: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        output = "\n".join((done.stdout + done.stderr).splitlines()[-25:])
        raise process.ServerError(f"could not {purpose}: {command[0]} exited with status {done.returncode}:\n{output}")


def _answers(bootstrap: str) -> bool:
    client = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0, "socket.timeout.ms": 1000})
    try:
        return bool(client.list_topics(timeout=1).brokers)
    except confluent_kafka.KafkaException:
        return False
