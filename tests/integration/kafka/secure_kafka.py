"""A Kafka with TLS that requires a login or a client certificate, as production clusters do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trustme
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from local.kafka import Kafka
from local.ports import HOST, free_port

if TYPE_CHECKING:
    from pathlib import Path

USER = "sa"
PASSWORD = "a secret, with : and %"


class SecureKafka(Kafka):
    """Has a listener for logins and one for client certificates in addition to the plain one.

    Attributes:
        authority: the file with the certificate of its CA.
        certificate, key: the files of a client certificate that it accepts.
    """

    def __init__(self, folder: Path, *, jars: Path) -> None:
        super().__init__(folder, jars=jars)
        self._login_port = free_port()
        self._certificate_port = free_port()
        self.ports = {**self.ports, "logins": self._login_port, "certificates": self._certificate_port}
        ca = trustme.CA()
        self.authority = folder / "ca.pem"
        ca.cert_pem.write_to_path(self.authority)
        self._identity = folder / "broker.pem"
        broker = ca.issue_cert(HOST)
        self._identity.write_bytes(_pkcs8(broker) + broker.cert_chain_pems[0].bytes())
        client = ca.issue_cert("client@example.com")
        self.certificate, self.key = folder / "client.pem", folder / "client-key.pem"
        self.certificate.write_bytes(client.cert_chain_pems[0].bytes())
        self.key.write_bytes(client.private_key_pem.bytes())

    @property
    def with_login(self) -> str:
        """The address of the listener for logins."""
        return f"{HOST}:{self._login_port}"

    @property
    def with_certificate(self) -> str:
        """The address of the listener for client certificates."""
        return f"{HOST}:{self._certificate_port}"

    def properties(self) -> dict[str, object]:
        """Add the two listeners to the plain properties."""
        plain = super().properties()
        more = f",SASL_SSL://{self.with_login},SSL://{self.with_certificate}"
        module = "org.apache.kafka.common.security"
        return plain | {
            "listeners": f"{plain['listeners']}{more}",
            "advertised.listeners": f"{plain['advertised.listeners']}{more}",
            "listener.security.protocol.map": (
                "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,SSL:SSL"
            ),
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": self._identity,
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": self.authority,
            "listener.name.ssl.ssl.client.auth": "required",
            "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
            "listener.name.sasl_ssl.plain.sasl.jaas.config": (
                f'{module}.plain.PlainLoginModule required user_{USER}="{PASSWORD}";'
            ),
            **{
                f"listener.name.sasl_ssl.scram-sha-{bits}.sasl.jaas.config": (
                    f"{module}.scram.ScramLoginModule required;"
                )
                for bits in (256, 512)
            },
        }

    def start(self) -> SecureKafka:
        """Start the broker and create the user's logins."""
        super().start()
        admin = AdminClient({"bootstrap.servers": self.bootstrap_servers})
        for mechanism in (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512):
            info = ScramCredentialInfo(mechanism, 4096)
            login = UserScramCredentialUpsertion(USER, info, PASSWORD.encode())
            for done in admin.alter_user_scram_credentials([login]).values():
                done.result()
        return self


def _pkcs8(identity: trustme.LeafCert) -> bytes:
    """Return the private key in PKCS #8, the only format that Kafka accepts."""
    key = load_pem_private_key(identity.private_key_pem.bytes(), None)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
