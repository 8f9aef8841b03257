"""HTTPS by certificate files: what is refused, and that a renewed certificate needs no restart."""

import asyncio
import ssl

import aiohttp
import pytest
import trustme

from cluster.access.server_tls import ServerCertificate, server_certificate
from cluster.errors import ExitCode, InvalidInputError
from cluster.settings import Settings
from tests.access.serving import PASSWORD, ServedCluster, client, fill
from tests.coordinator_shell.waiting import until


class Files:
    """A certificate chain and its key, as two files."""

    def __init__(self, directory, **options):
        self.cert, self.key = directory / "chain.pem", directory / "key.pem"
        self.authority = trustme.CA()
        self.issue(**options)

    def issue(self, *names, key_type=trustme.KeyType.ECDSA):
        made = self.authority.issue_cert(*(names or ("127.0.0.1", "localhost")), key_type=key_type)
        self.key.write_bytes(made.private_key_pem.bytes())
        self.cert.write_bytes(b"".join(each.bytes() for each in made.cert_chain_pems))

    def trusting(self):
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context


@pytest.fixture
def files(tmp_path):
    directory = tmp_path / "tls"
    directory.mkdir()
    return Files(directory)


@pytest.fixture
async def served(tmp_path, database_url, files):
    made = ServedCluster(tmp_path / "data", database_url, http_cert=files.cert, http_key=files.key)
    made.tokens = await fill(database_url)
    await made.start()
    await made.loaded()
    yield made
    await made.stop()


async def serial_of(served, files):
    """Of the certificate that a new connection is shown."""
    host, port = served.settings.http.split(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=files.trusting(), server_hostname="localhost")
    try:
        return writer.get_extra_info("ssl_object").getpeercert()["serialNumber"]
    finally:
        writer.close()
        await writer.wait_closed()


async def test_https_with_a_login(served, files):
    async with client(connector=aiohttp.TCPConnector(ssl=files.trusting())) as http:
        async with http.get(served.url + "/healthz") as answer:
            assert (answer.status, await answer.text()) == (200, "ok\n")
            assert answer.headers["Strict-Transport-Security"] == "max-age=31536000"
        body = {"user": "u-read", "password": PASSWORD}
        origin = {"Origin": served.url}
        async with http.post(served.url + "/api/v1/session", json=body, headers=origin) as answer:
            assert answer.status == 200
            cookie = answer.headers["Set-Cookie"]
        assert cookie.startswith("__Host-ringpoll=")
        assert "Secure" in cookie
        async with http.get(served.url + "/status", headers={"Cookie": cookie.partition(";")[0]}) as answer:
            assert answer.status == 200


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
async def test_old_versions_are_refused(served, files, version):
    context = files.trusting()
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSVersion.TLSv1"):
        context.minimum_version = context.maximum_version = version
    host, port = served.settings.http.split(":")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.open_connection(host, int(port), ssl=context, server_hostname="localhost")


async def test_plain_http_is_not_answered(served, caplog):
    async with client() as http:
        with pytest.raises(aiohttp.ClientError):
            async with http.get(f"http://{served.settings.http}/healthz"):
                pass
    assert not [each for each in caplog.records if each.levelname in {"ERROR", "CRITICAL"}]


async def test_on_loopback_there_is_no_hsts(tmp_path, database_url, files):
    """It would hold for every port of localhost."""
    local = ServedCluster(tmp_path / "data", database_url, behind_tls=False, http_cert=files.cert, http_key=files.key)
    await local.start()
    try:
        async with (
            client(connector=aiohttp.TCPConnector(ssl=files.trusting())) as http,
            http.get(local.url + "/api/v1/session") as answer,
        ):
            assert (await answer.json())["auth"] == "off"
            assert "Strict-Transport-Security" not in answer.headers
    finally:
        await local.stop()


@pytest.mark.parametrize("key_type", [trustme.KeyType.ECDSA, trustme.KeyType.RSA])
async def test_a_renewed_certificate_is_shown_to_new_connections(served, files, key_type):
    """Also one whose key is of another kind."""
    before = await serial_of(served, files)
    old_files = files.cert.read_bytes()
    files.issue(key_type=key_type)
    certificate = served.service.server._certificate
    assert certificate.renew()
    assert not certificate.renew()
    after = await serial_of(served, files)
    assert after != before
    assert files.cert.read_bytes() != old_files


async def test_half_a_change_leaves_the_old_one_in_force(served, files, caplog):
    before = await serial_of(served, files)
    key = files.key.read_bytes()
    files.issue()
    new_key = files.key.read_bytes()
    files.key.write_bytes(key)
    certificate = served.service.server._certificate
    watching = asyncio.create_task(certificate.watch(every_s=0.01))
    await until(lambda: "the certificate is not renewed, the old one stays in force" in caplog.text)
    assert await serial_of(served, files) == before
    files.key.write_bytes(new_key)

    async def is_new():
        return await serial_of(served, files) != before

    await until(is_new, what="the new certificate")
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert caplog.text.count("is not renewed") == 1
    assert new_key.decode().splitlines()[1] not in caplog.text


# ---- files that can't be used ---------------------------------------------------------------------------------------


def refused(cert, key):
    with pytest.raises(InvalidInputError) as caught:
        ServerCertificate(cert, key)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code is ExitCode.USAGE
    return str(caught.value)


def test_files_that_are_not_there(files, tmp_path):
    assert "cannot read --http-cert" in refused(tmp_path / "none.pem", files.key)
    assert "cannot read --http-key" in refused(files.cert, tmp_path / "none.pem")
    assert "cannot read --http-cert" in refused(tmp_path, files.key)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n"])
def test_files_that_are_no_certificate_or_key(files, tmp_path, content):
    other = tmp_path / "other.pem"
    other.write_bytes(content)
    assert "are not a certificate chain and its unencrypted private key" in refused(other, files.key)
    assert "are not a certificate chain and its unencrypted private key" in refused(files.cert, other)


def test_the_two_files_the_wrong_way_round(files):
    assert "are not a certificate chain" in refused(files.key, files.cert)


def test_a_key_of_another_certificate(files, tmp_path):
    (tmp_path / "other").mkdir()
    other = Files(tmp_path / "other")
    said = refused(files.cert, other.key)
    assert said.startswith(f"the key in {other.key} does not belong to the certificate in {files.cert}")


def test_an_encrypted_key_does_not_ask_anybody(files, tmp_path, monkeypatch):
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - only here

    monkeypatch.setattr("builtins.input", pytest.fail)
    key = serialization.load_pem_private_key(files.key.read_bytes(), None)
    locked = tmp_path / "locked.pem"
    locked.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"password"),
        )
    )
    assert "unencrypted private key" in refused(files.cert, locked)


def test_one_file_without_the_other(files, tmp_path):
    for given, wanting in (("http_cert", "--http-key"), ("http_key", "--http-cert")):
        settings = Settings(data_dir=tmp_path, **{given: files.cert})
        with pytest.raises(InvalidInputError, match=f"is given without {wanting}; HTTPS needs both"):
            server_certificate(settings)
    assert server_certificate(Settings(data_dir=tmp_path)) is None
