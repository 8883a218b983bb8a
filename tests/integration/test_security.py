"""TLS and a password: all clients, Faust's among them, on a broker that lets in nobody else."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import kafka
import pytest
import services
from services import eventually

from streamproc.ids import video_id_of
from streamproc.kafka import local_broker as broker_module

USER, PASSWORD = "streamproc", "a secret"


@pytest.fixture
def secured(tmp_path, monkeypatch):
    """A broker whose listener for clients speaks TLS and asks for a name; the certificate that signs it."""
    if not isinstance(kafka.broker_source()[1], Path):
        pytest.skip("needs a broker of its own, there is " + kafka.broker_source()[0])
    store, certificate = tmp_path / "broker.p12", tmp_path / "ca.pem"
    keytool = [
        shutil.which("keytool") or "keytool",
        "-keystore",
        str(store),
        "-storepass",
        "changeit",
        "-alias",
        "broker",
    ]
    names = [
        "-dname",
        "CN=127.0.0.1",
        "-ext",
        "san=ip:127.0.0.1",
        "-validity",
        "2",
        "-keyalg",
        "RSA",
    ]
    subprocess.run(
        [*keytool, "-genkeypair", "-storetype", "PKCS12", *names], check=True, capture_output=True
    )
    subprocess.run(
        [*keytool, "-exportcert", "-rfc", "-file", str(certificate)],
        check=True,
        capture_output=True,
    )
    inner = broker_module.free_port()
    login = f'org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}="{PASSWORD}";'
    lines = broker_module._PROPERTIES.splitlines()
    kept = [
        line
        for line in lines
        if not line.startswith(("listeners", "advertised", "listener.sec", "inter.broker"))
    ]
    own = [
        f"listeners=SASL_SSL://127.0.0.1:{{port}},PLAINTEXT://127.0.0.1:{inner},CONTROLLER://127.0.0.1:{{controller_port}}",
        f"advertised.listeners=SASL_SSL://127.0.0.1:{{port}},PLAINTEXT://127.0.0.1:{inner}",
        "listener.security.protocol.map=SASL_SSL:SASL_SSL,PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name=PLAINTEXT",
        "sasl.enabled.mechanisms=PLAIN",
        f"listener.name.sasl_ssl.plain.sasl.jaas.config={login}",
        f"ssl.keystore.location={store}",
        "ssl.keystore.type=PKCS12",
        "ssl.keystore.password=changeit",
    ]
    monkeypatch.setattr(broker_module, "_PROPERTIES", "\n".join([*kept, *own]) + "\n")
    running = kafka.start_broker(tmp_path / "kafka")
    try:
        yield running.bootstrap, certificate
    finally:
        running.stop()


@pytest.mark.long  # certificates and a broker of its own: a tenth of what the tests with a broker take
def test_every_client_speaks_tls_and_gives_its_password(secured, tmp_path, sample):
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
        eventually(lambda: len(list(stream.media.glob("animations/*/*/*.webp"))) == 6, "animations")
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
