"""TLS and a password: all clients, Faust's among them, on a broker that lets in nobody else."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import brokers
import pytest
import services

from streamproc.ids import video_id_of
from streamproc.kafka import local_broker

if TYPE_CHECKING:
    from pathlib import Path

USER = "streamproc"
PASSWORD = "a secret"
LISTENERS = """
listeners=SASL_SSL://127.0.0.1:{{port}},PLAINTEXT://127.0.0.1:{inner},\
CONTROLLER://127.0.0.1:{{controller_port}}
advertised.listeners=SASL_SSL://127.0.0.1:{{port}},PLAINTEXT://127.0.0.1:{inner}
listener.security.protocol.map=SASL_SSL:SASL_SSL,PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
sasl.enabled.mechanisms=PLAIN
listener.name.sasl_ssl.plain.sasl.jaas.config=\
org.apache.kafka.common.security.plain.PlainLoginModule required user_{user}="{password}";
ssl.keystore.location={store}
ssl.keystore.type=PKCS12
ssl.keystore.password=changeit
"""
"""Replace the broker's properties that begin alike; LocalBroker fills in the ports."""


@pytest.fixture
def secured(jars, tmp_path, monkeypatch):
    """A broker that speaks TLS and asks for a name; and the certificate that signs it."""
    store = tmp_path / "broker.p12"
    certificate = tmp_path / "ca.pem"
    names = ["-dname", "CN=127.0.0.1", "-ext", "san=ip:127.0.0.1"]
    keytool(
        store, "-genkeypair", "-storetype", "PKCS12", *names, "-validity", "2", "-keyalg", "RSA"
    )
    keytool(store, "-exportcert", "-rfc", "-file", str(certificate))
    replaced = ("listeners", "advertised", "listener.sec", "inter.broker")
    lines = local_broker._PROPERTIES.splitlines()
    kept = [line for line in lines if not line.startswith(replaced)]
    listeners = LISTENERS.format(
        inner=local_broker.free_port(), user=USER, password=PASSWORD, store=store
    )
    monkeypatch.setattr(local_broker, "_PROPERTIES", "\n".join(kept) + listeners)
    running = brokers.start_broker(tmp_path / "kafka")
    try:
        yield running.bootstrap, certificate
    finally:
        running.stop()


def keytool(store: Path, *arguments: str) -> None:
    """Run Java's tool for certificates on one entry of `store`."""
    program = shutil.which("keytool") or "keytool"
    command = [program, "-keystore", str(store), "-storepass", "changeit", "-alias", "broker"]
    subprocess.run([*command, *arguments], check=True, capture_output=True)


@pytest.mark.long  # certificates and a broker of its own: a tenth of all tests with a broker
def test_every_client_speaks_tls_and_gives_its_password(secured, tmp_path, sample):
    """All services and commands work over TLS with a password, and no log shows it."""
    bootstrap, certificate = secured
    stream = services.Stream(
        bootstrap,
        tmp_path,
        "t.",
        kafka__security_protocol="SASL_SSL",
        kafka__sasl_username=USER,
        kafka__sasl_password=PASSWORD,
        kafka__ssl_cafile=str(certificate),
    )
    for suffix in ("mp4", "persons.npz"):
        shutil.copy(sample / f"sample.{suffix}", stream.media / f"a.{suffix}")
    try:
        assert stream.cli("topics", "create").returncode == 0
        for name in ("worker", "matcher", "animator"):
            stream.start(name)
        assert stream.cli("submit", str(stream.media / "a.mp4")).returncode == 0
        watched = stream.cli("watch", "--until-done", video_id_of("a.mp4"), "--from-beginning")
        assert watched.returncode == 0, watched.stderr
        assert watched.stdout.startswith("proposed")
        stream.eventually(
            lambda: len(list(stream.media.glob("animations/*/*/person_*[0-9].webp"))) == 6,
            "animations",
        )
        wrong = stream.cli("topics", "check", kafka__sasl_password="wrong")
        assert wrong.returncode == 1
        assert len(wrong.stderr.strip().splitlines()) == 1, wrong.stderr
        plain = stream.cli(
            "topics", "check", kafka__security_protocol="SSL", kafka__ssl_cafile=__file__
        )
        assert plain.returncode == 2, plain.stderr
        assert "kafka.ssl_cafile" in plain.stderr
        assert PASSWORD not in "".join(service.log for service in stream.services)
    finally:
        stream.close()
