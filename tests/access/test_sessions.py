"""The key of the sessions, and what their cookies are worth."""

import os
import stat

import pytest

from cluster.errors import ClusterError
from coordinator.web import sessions as sessions_module
from coordinator.web.sessions import KEY_BYTES, SESSION_S, Sessions


@pytest.fixture
def sessions(tmp_path):
    return Sessions(tmp_path / "coordinator")


def test_the_key_is_made_when_it_is_needed_and_kept(sessions, tmp_path):
    assert sessions.read("nonsense") is None
    assert not sessions.path.exists()
    session, cookie = sessions.begin("ann", 7)
    assert stat.S_IMODE(sessions.path.stat().st_mode) == 0o600
    assert len(sessions.path.read_bytes()) == KEY_BYTES
    another = Sessions(tmp_path / "coordinator")
    assert another.read(cookie) == session
    assert another.csrf_token(session) == sessions.csrf_token(session)
    assert [each.name for each in sessions.path.parent.iterdir()] == ["session.key"]


@pytest.mark.parametrize("damage", ["short", "long", "readable", "directory"])
def test_a_key_that_is_none_is_made_anew(sessions, tmp_path, caplog, damage):
    _, cookie = sessions.begin("ann", 7)
    match damage:
        case "short":
            sessions.path.write_bytes(b"x")
        case "long":
            sessions.path.write_bytes(b"x" * 33)
        case "readable":
            sessions.path.chmod(0o640)
        case "directory":
            sessions.path.unlink()
            sessions.path.mkdir(mode=0o700)
    again = Sessions(tmp_path / "coordinator")
    if damage == "directory":
        with pytest.raises(ClusterError, match=r"cannot write .*session.key"):
            again.read(cookie)
        return
    assert again.read(cookie) is None
    assert "a new one is made and all sessions end" in caplog.text
    assert stat.S_IMODE(sessions.path.stat().st_mode) == 0o600
    session, cookie = again.begin("ann", 7)
    assert again.read(cookie) == session


def test_a_key_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "coordinator").write_text("a file")
    with pytest.raises(ClusterError, match=r"session\.key: .*; without it nobody can log in|cannot read"):
        Sessions(tmp_path / "coordinator").begin("ann", 7)


def test_a_session_ends_by_the_clock(tmp_path):
    now = [os.times().elapsed]
    import time  # noqa: PLC0415

    now[0] = time.time()
    sessions = Sessions(tmp_path, wall_s=lambda: now[0])
    session, cookie = sessions.begin("ann", 7)
    assert sessions.is_open(session)
    now[0] += SESSION_S + 1
    assert not sessions.is_open(session)
    assert sessions.read(cookie) is None


def test_csrf_tokens_belong_to_one_session(sessions):
    one, _ = sessions.begin("ann", 7)
    other, _ = sessions.begin("ann", 7)
    assert sessions.csrf_token(one) != sessions.csrf_token(other)
    assert sessions.is_csrf_token(one, sessions.csrf_token(one))
    for wrong in (None, "", sessions.csrf_token(other), sessions.csrf_token(one).upper() + "x", "\u00e4", "\udc80"):
        assert not sessions.is_csrf_token(one, wrong)


def test_what_was_logged_out_is_remembered_within_bounds(sessions, monkeypatch):
    monkeypatch.setattr(sessions_module, "ENDED_MAX", 3)
    made = [sessions.begin("ann", 7) for _ in range(5)]
    for session, _ in made:
        sessions.end(session)
        sessions.end(session)
    assert len(sessions._ended) == 3
    assert [sessions.read(cookie) for _, cookie in made[2:]] == [None] * 3
