"""Our own files: what goes out comes in again without a change; what is wrong is named with its place."""

import contextlib
import json

import pytest

from cluster.errors import InvalidInputError
from cluster.interchange.csv_file import COLUMNS, guarded, read_csv, unguarded, write_csv
from cluster.interchange.formats import FORMATS
from cluster.interchange.json_file import read_json
from cluster.interchange.toml_file import read_toml
from cluster.interchange.yaml_file import read_own_yaml
from cluster.project import FIELD_NAMES, ProjectFields
from tests.interchange.accounting import accounted, unaccounted, valid

OWN = [each.name for each in FORMATS.values() if each.own]
ODD_PROJECTS = """
INSERT INTO projects (name, url, method, headers, body, expected_status, interval, unit, timeout_ms, enabled,
                      assertions, verify_tls, user_agent, ip_version, retries, down_after)
VALUES
    ('plain', 'http://a.example/', DEFAULT, NULL, NULL, DEFAULT, 60, 'seconds', 30000, true, NULL,
     true, NULL, NULL, 0, 1),
    ('=1+1 "quoted", ünïcode ☃, ''apostrophe''', 'https://b.example/x?y=1&z=%2F#f', 'POST',
     '{"X-Odd": "a; b, \\"c\\" \\\\ :", "Authorization": "Bearer ${TOKEN}"}', E'line 1\\r\\n\\tline 2\\n\\n"x" = 1\\n',
     '200-299,301', 5, 'minutes', 1, false,
     '[{"type": "json_path", "path": "$.a", "op": "==", "value": null}, {"type": "body_contains", "text": "on: [1]"}]',
     false, '-agent', 4, 2, 3),
    ('', 'http://c.example/', 'GET', NULL, '', '2xx', 1, 'hours', 600000, true,
     '[{"type": "json_path", "path": "$.n", "op": "<", "value": 1.5}, {"type": "certificate_days", "days": 5}]',
     true, NULL, NULL, 0, 1),
    ('123', 'http://d.example/', 'GET', '{"X-Yes": "yes", "X-Null": "null", "X-N": "0123", "X-E": ""}', 'null', '404',
     1, 'seconds', 5, true, NULL, true, '@x', 6, 0, 1),
    ('''=already', 'http://e.example/', 'GET', NULL, '''', '200', 1, 'seconds', 5, true, NULL, true, NULL, NULL, 0, 1)
"""


@pytest.mark.parametrize("name", OWN)
def test_export_and_import_change_nothing(table, tmp_path, name):
    table.sql(ODD_PROJECTS)
    before = table.rows()
    file = tmp_path / f"all{FORMATS[name].suffixes[0]}"
    assert table("projects", "export", file, "--format", name).err == "exported 5 projects\n"
    assert table("projects", "import", file).out == "added 0, updated 0, unchanged 5\n"
    assert table.rows() == before
    table.sql("DELETE FROM projects WHERE id IN (2, 3)", "UPDATE projects SET name = 'x', body = 'y' WHERE id = 4")
    assert table("projects", "import", file).out == "added 2, updated 1, unchanged 2\n"
    left_out = {"created_at", "updated_at"}
    assert [{k: v for k, v in row.items() if k not in left_out} for row in table.rows()] == [
        {k: v for k, v in row.items() if k not in left_out} for row in before
    ]


@pytest.mark.parametrize("name", OWN)
def test_every_field_of_a_project_is_in_the_file(name):
    row = {"id": 7} | dict.fromkeys(FIELD_NAMES)
    default = ProjectFields(url="http://a/")
    row |= {each: getattr(default, each) for each in FIELD_NAMES if getattr(default, each) is not None}
    row |= {"headers": {"A": "b"}, "assertions": [{"type": "body_contains", "text": "x"}], "bearer_token": "t"}
    out = FORMATS[name].write([row])
    assert out.count == 1
    assert out.notes == ()
    for each, value in row.items():
        if value is not None:
            assert each.encode() in out.data


def test_lists_without_ids_go_by_name(table, tmp_path):
    file = tmp_path / "some.yaml"
    file.write_text("- {name: a, url: http://a/}\n- {name: b, url: http://b/}\n- {url: http://c/}\n")
    assert table("projects", "import", file).out == "added 3, updated 0\n"
    assert table("projects", "import", file).out == "added 0, updated 0, unchanged 3\n"
    file.write_text("- {name: b, url: http://b/new}\n- {name: c, url: http://c/}\n")
    assert table("projects", "import", file).out == "added 1, updated 1\n"
    assert [(row["id"], row["name"], row["url"]) for row in table.rows()] == [
        (1, "a", "http://a/"), (2, "b", "http://b/new"), (3, "", "http://c/"), (4, "c", "http://c/"),
    ]  # fmt: skip


def test_a_name_that_several_projects_have_is_refused(table, tmp_path):
    table.sql("INSERT INTO projects (name, url) VALUES ('a', 'http://1/'), ('a', 'http://2/')")
    file = tmp_path / "some.yaml"
    file.write_text("projects:\n- {name: b, url: http://b/}\n- {name: a, url: http://a/}\n")
    ran = table("projects", "import", file)
    assert ran.status == 2
    assert ran.err.splitlines()[0] == "line 3: projects 1, 2 have this name; give the id, or rename them"
    assert len(table.rows()) == 2
    ran = table("projects", "import", file, "--skip-invalid")
    assert (ran.status, ran.out) == (0, "added 1, updated 0, wrong 1\n")


def test_a_name_that_is_twice_in_the_file_is_refused(table, tmp_path):
    file = tmp_path / "some.csv"
    file.write_text("name,url\na,http://1/\nb,http://2/\na,http://3/\n,http://4/\n,http://4/\n")
    ran = table("projects", "import", file)
    assert [line.partition(":")[0] for line in ran.err.splitlines()] == ["line 4", "line 6", "Error"]
    assert "the name 'a' is also in line 2" in ran.err
    assert table("projects", "import", file, "--skip-invalid").out == "added 3, updated 0, wrong 2\n"


def test_an_id_and_a_name_that_lead_to_one_project_are_refused(table, tmp_path):
    table.sql("INSERT INTO projects (name, url) VALUES ('a', 'http://1/')")
    file = tmp_path / "some.json"
    file.write_text('[{"id": 1, "url": "http://x/"}, {"name": "a", "url": "http://y/"}]')
    ran = table("projects", "import", file)
    assert ran.err.splitlines()[0] == "projects[1]: is project 1, which an entry before it is, too"


def test_a_dry_run_says_what_would_become_of_each_entry(table, tmp_path):
    table.sql("INSERT INTO projects (name, url) VALUES ('a', 'http://a/'), ('b', 'http://b/')")
    before = table.rows()
    file = tmp_path / "some.toml"
    file.write_text(
        '[[projects]]\nname = "a"\nurl = "http://a/"\n[[projects]]\nname = "b"\nurl = "http://b/2"\n'
        '[[projects]]\nname = "c"\nurl = "http://c/"\n'
    )
    assert table("projects", "import", file, "--dry-run").out.splitlines() == [
        "projects[0]: a: unchanged",
        "projects[1]: b: would update",
        "projects[2]: c: would add",
        "would add 1, update 1, unchanged 1",
    ]
    assert table.rows() == before


# ---- YAML ------------------------------------------------------------------------------------------------------------


def test_yaml_with_anchors_merges_crlf_and_a_byte_order_mark(table, tmp_path):
    file = tmp_path / "some.yml"
    text = (
        "x-common: &common\n  interval: 5m\n  headers: {X-A: '1'}\n"
        "projects:\n- <<: *common\n  name: a\n  url: http://a/\n- <<: [*common, {method: HEAD}]\n  url: http://b/\n"
        "  interval: 10s\n  enabled: false\n"
    )
    file.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    ran = table("projects", "import", file)
    assert ran.out == "added 2, updated 0\n"
    assert ran.err == "x-common: not mapped: beside 'projects' nothing is read\n"
    assert [(row["interval"], row["unit"], row["method"], row["enabled"]) for row in table.rows()] == [
        (5, "minutes", "GET", True), (10, "seconds", "HEAD", False),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("- url: http://a/\n\tname: x\n", "line 2: not YAML"),
        ("- {url: http://a/, url: http://b/}\n", "line 1: the key 'url' is given twice"),
        ("- !!python/object/apply:os.system [x]\n", "line 1: the tag"),
        ("- &a [*a]\n", "line 1: *a stands within what it stands for"),
        ("a: 1\n---\nb: 2\n", "a second document begins"),
        ("- {url: *nothing}\n", "line 1: "),
        ("- ? [a, b]\n  : c\n", "line 1: a key must be plain text"),
        ("just text\n", "must hold a list of projects"),
        ("things: []\n", "has no list 'projects'"),
        ("[" * 500 + "]" * 500, "nested deeper than 100"),
        ("- {url: http://a/, interval: !!int x}\n", "is not what its tag says"),
    ],
)
def test_wrong_yaml_is_refused_with_its_line(text, error):
    with pytest.raises(InvalidInputError) as caught:
        read_own_yaml(text, "some.yaml")
    assert error in str(caught.value)
    assert str(caught.value).startswith("some.yaml: ")


def test_aliases_can_not_stand_for_billions():
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    with pytest.raises(InvalidInputError, match="aliases stand for more than"):
        read_own_yaml("\n".join(levels), "laughs.yaml")
    with pytest.raises(InvalidInputError, match="aliases stand for more than"):
        read_own_yaml(f"t: &t {'x' * 1_000_000}\nl: [{', '.join(['*t'] * 2_000)}]\n", "laughs.yaml")


def test_yaml_is_that_of_version_1_2():
    (found,) = accounted(read_own_yaml("- {url: 'http://a/', name: on, interval: 010, timeout_ms: 0x10}\n", "x"))
    assert (found.project["name"], found.project["interval"], found.project["timeout_ms"]) == ("on", 10, 16)


# ---- CSV -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "a", "=x", "'", "''", "'=", "-1", "@a", "\tx", "\rx", "'tis", "''x", "+", "'\t"])
def test_the_guard_against_formulas_comes_off_again(text):
    assert unguarded(guarded(text)) == text
    assert not guarded(text).startswith(("=", "+", "-", "@", "\t", "\r"))


def test_csv_as_spreadsheets_write_it(table, tmp_path):
    file = tmp_path / "some.csv"
    file.write_bytes(
        "\ufeffName;URL;Interval;enabled;headers;body\r\n"
        'a;http://a/;30s;TRUE;"{""X-A"": ""1;2""}";"two\r\nlines"\r\n'
        ";;;;;\r\n"
        "b;http://b/;60;false;;\r\n".encode()
    )
    assert table("projects", "import", file).out == "added 2, updated 0\n"
    first, second = table.rows()
    assert (first["interval"], json.loads(first["headers"]), first["body"]) == (30, {"X-A": "1;2"}, "two\r\nlines")
    assert (second["interval"], second["enabled"], second["headers"], second["body"]) == (60, False, None, None)


def test_wrong_csv_is_refused_with_its_line():
    with pytest.raises(InvalidInputError, match=r"some\.csv: line 1: unknown columns 'colour'"):
        read_csv("url,colour\n", "some.csv")
    with pytest.raises(InvalidInputError, match="there is no column url"):
        read_csv("name,body\n", "some.csv")
    with pytest.raises(InvalidInputError, match="the column url is there twice"):
        read_csv("url,url\nx,y\n", "some.csv")
    with pytest.raises(InvalidInputError, match="not CSV"):
        read_csv('url,name\n"http://a/"x,y\n', "some.csv")
    found = accounted(
        read_csv('url,headers,enabled\n"http://\n/",,\nhttp://b/,{,\nc,,,d\nhttp://d/,,maybe\n', "some.csv")
    )
    assert [each.where for each in found] == ["line 2", "line 4", "line 5", "line 6"]
    assert [each.wrong is not None for each in found] == [False, True, True, False]
    with pytest.raises(InvalidInputError, match="enabled: must be true or false"):
        valid(found[3])


def test_csv_has_the_lines_of_rfc_4180():
    row = {"id": 1} | {name: getattr(ProjectFields(url='http://a/"'), name) for name in FIELD_NAMES}
    out = write_csv([row]).data.decode()
    assert out.startswith(",".join(COLUMNS) + "\r\n")
    assert out.endswith("\r\n")
    assert '"http://a/"""' in out


# ---- all -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (read_json, '{"projects": [{"url": "http://a/", "name": "x", "id": 3, "nonsense": 1}, 5]}'),
        (read_toml, '[[projects]]\nurl = "http://a/"\nname = "x"\nid = 3\nnonsense = 1\n'),
        (read_own_yaml, "- {url: http://a/, name: x, id: 3, nonsense: 1}\n- 5\n"),
        (read_csv, "url,name,id\nhttp://a/,x,3\n"),
    ],
)
def test_each_entry_and_each_field_is_accounted_for(read, text):
    found = accounted(read(text, "file"))
    entry = {"url": 1, "name": 1, "id": 1} | ({"nonsense": 1} if "nonsense" in text else {})
    assert unaccounted(entry, found[0]) == []
    if "nonsense" in text:
        with pytest.raises(InvalidInputError, match="unknown field 'nonsense'"):
            valid(found[0])
    if len(found) > 1:
        assert found[1].wrong == "must be a map of fields"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", "[{'url'}]"), ("a.json", '{"projects": 5}'), ("a.toml", "[[projects]\n"), ("a.toml", "x = 1\n"),
        ("a.yaml", "\xff".encode("latin-1")), ("a.csv", "x"), ("a.toml", "\ufeff".encode("utf-16")),
    ],
)  # fmt: skip
def test_a_file_that_can_not_be_read_is_one_line(table, tmp_path, name, text):
    file = tmp_path / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    ran = table("projects", "import", file)
    assert ran.status == 2
    assert ran.error.startswith(str(file))


def test_on_a_terminal_progress_is_shown(table, tmp_path, monkeypatch):
    told = []

    @contextlib.contextmanager
    def progress(what):
        yield lambda count, total: told.append((what, count, total))

    monkeypatch.setattr("cluster.cli.projects.shows_progress", lambda: True)
    monkeypatch.setattr("cluster.cli.render.entries_progress", progress)
    file = tmp_path / "some.yaml"
    file.write_text("- {url: http://a/}\n- {url: http://b/}\n")
    assert table("projects", "import", file).out == "added 2, updated 0\n"
    assert told == [("checking", 1, 2), ("checking", 1, 2), ("writing", 2, 2)]
