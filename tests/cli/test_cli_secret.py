"""``cluster secret``: a key, and values sealed with it."""

import io
import stat
import sys

import pytest

from cluster.secret_references import KEY_FILE
from cluster.secret_values import SECRET_BYTES_MAX, SecretSource


@pytest.fixture
def typed(monkeypatch):
    """What comes from standard input."""

    def give(raw):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))

    return give


def test_a_value_is_sealed_with_the_key_that_was_made(cluster, tmp_path, monkeypatch, typed):
    secrets = tmp_path / "secrets"
    assert (
        cluster("secret", "new-key").error == "no directory for secrets: give --secrets-dir or set CLUSTER_SECRETS_DIR"
    )
    ran = cluster("secret", "new-key", "--secrets-dir", secrets)
    assert (ran.status, ran.out, ran.err) == (0, f"{secrets / KEY_FILE}\n", "")
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o700

    monkeypatch.setenv("CLUSTER_SECRETS_DIR", str(secrets))
    typed(b"c4nary\n")
    sealed = cluster("secret", "seal").out.strip()
    assert SecretSource({}, secrets).expand(sealed) == "c4nary"


@pytest.mark.parametrize(
    "raw",
    [b"", b"\n", b"a\nb", b"\xff", b"x" * (SECRET_BYTES_MAX + 1)],
    ids=("empty", "no value", "two lines", "no text", "too long"),
)
def test_a_value_that_no_header_can_have_is_refused(cluster, tmp_path, typed, raw):
    cluster("secret", "new-key", "--secrets-dir", tmp_path)
    typed(raw)
    ran = cluster("secret", "seal", "--secrets-dir", tmp_path)
    assert ran.status == 2
    assert ran.error.startswith("the value ")
