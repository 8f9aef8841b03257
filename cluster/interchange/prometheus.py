"""Prometheus: targets that are probed through blackbox_exporter.  Pure.

``prometheus.yml`` with scrape configurations, or what ``file_sd_configs`` read: a list of targets with labels, as JSON
or YAML.  The usual ``relabel_configs`` (the address becomes the parameter ``target``) are recognised; what others would
make of a target can't be told, so it is not polled.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import orjson

from cluster.errors import InvalidInputError
from cluster.interchange.blackbox import BlackboxModule, ModuleOf, module_finder
from cluster.interchange.gatus import interval_and_unit
from cluster.interchange.go_durations import duration_ms
from cluster.interchange.model import (
    EntryBook,
    Exported,
    ExportNote,
    FieldNote,
    FieldOutcome,
    ImportCandidate,
    Imported,
    fitting_name,
    shown,
)
from cluster.interchange.yaml_text import line_of, read_yaml
from cluster.masking import masked_url
from cluster.project import FIELD_NAMES, ProjectFields

MAPPED = {
    "job_name": "`name`, as `job/target`",
    "scrape_interval": "`interval`, of `global` where it is left out there; 1m",
    "scrape_timeout": "`timeout_ms`, half a second less as blackbox_exporter has it; of `global`; 10s",
    "params": "`module`; targets that are in `target`",
    "metrics_path": "`/probe` says that it probes",
    "static_configs": "its targets",
    "static_configs.targets": "`url`, a project each",
    "static_configs.labels": "`name` gives the name, `__param_module` the module; others are not mapped",
    "relabel_configs": "`__address__` to `__param_target`, with a `replacement` that puts text around it",
}
_EXPORTER = "how the exporter is reached is not needed"
_DISCOVERY = "targets that are discovered are not in the file"
NOT_MAPPED = {
    "file_sd_configs": "import the files of targets themselves",
    "http_sd_configs": _DISCOVERY,
    "dns_sd_configs": _DISCOVERY,
    "kubernetes_sd_configs": _DISCOVERY,
    "consul_sd_configs": _DISCOVERY,
    "ec2_sd_configs": _DISCOVERY,
    "docker_sd_configs": _DISCOVERY,
    "metric_relabel_configs": "ringpoll's results are rows, not series",
    "honor_labels": "ringpoll's results are rows, not series",
    "honor_timestamps": "ringpoll's results are rows, not series",
    "sample_limit": "ringpoll's results are rows, not series",
    "label_limit": "ringpoll's results are rows, not series",
    "scheme": _EXPORTER,
    "tls_config": _EXPORTER,
    "basic_auth": _EXPORTER,
    "authorization": _EXPORTER,
    "oauth2": _EXPORTER,
    "proxy_url": _EXPORTER,
    "follow_redirects": _EXPORTER,
    "enable_http2": _EXPORTER,
    "body_size_limit": _EXPORTER,
    "scrape_protocols": _EXPORTER,
}
FILE_NOT_MAPPED = {
    "alerting": "ringpoll sends no alerts",
    "rule_files": "rules are Prometheus' own; deploy/prometheus has some for ringpoll's metrics",
    "scrape_config_files": "import these files themselves",
    "remote_write": "results are in PostgreSQL",
    "remote_read": "results are in PostgreSQL",
    "storage": "results are in PostgreSQL",
    "tracing": "is of Prometheus itself",
    "otlp": "is of Prometheus itself",
    "runtime": "is of Prometheus itself",
    "global.evaluation_interval": "there are no rules",
    "global.external_labels": "ringpoll has no labels of projects",
}
_GLOBAL_USED = frozenset({"scrape_interval", "scrape_timeout"})
_INTERVAL_MS = 60_000
_TIMEOUT_MS = 10_000
_LESS_MS = 500  # by which blackbox_exporter gives up before Prometheus does
_ADDRESS_RULES = frozenset({"source_labels", "target_label", "regex", "replacement", "action", "separator"})
_WHOLE = frozenset({None, "(.*)", "(.+)", ".*", "^(.*)$"})
_GROUP = re.compile(r"\$\{1\}|\$1(?![0-9])")


class ProbeJob(msgspec.Struct, frozen=True):
    """What all targets of a scrape configuration have in common."""

    name: str
    module: str
    interval_ms: float
    timeout_ms: float
    interval_given: bool
    around: tuple[str, str] = ("", "")  # text before and behind each target
    unusable: str | None = None
    notes: tuple[FieldNote, ...] = ()
    mapped: tuple[str, ...] = ()


def read_prometheus(text: str, where: str, modules: Mapping[str, BlackboxModule] | None = None) -> Imported:
    document = _document(text, where)
    find = module_finder(modules)
    if isinstance(document, list):
        job = ProbeJob("", "http_2xx", _INTERVAL_MS, _TIMEOUT_MS - _LESS_MS, interval_given=False)
        return Imported([each for at, group in enumerate(document) for each in _group(group, f"[{at}]", job, find)])
    if not isinstance(document, dict):
        raise InvalidInputError(f"{where}: must hold scrape_configs, or a list of targets")
    jobs = document.get("scrape_configs") or []
    settings = document.get("global") or {}
    if not isinstance(jobs, list) or not isinstance(settings, dict):
        raise InvalidInputError(f"{where}: global must be a map, and scrape_configs a list")
    candidates = [each for at, job in enumerate(jobs) for each in _scrape(job, f"scrape_configs[{at}]", settings, find)]
    notes = [
        FieldNote(key, FieldOutcome.NOT_MAPPED, FILE_NOT_MAPPED.get(key, "not a part that this import knows"))
        for key, value in document.items()
        if key not in {"scrape_configs", "global"} and value is not None
    ]
    notes += [
        FieldNote(field, FieldOutcome.NOT_MAPPED, FILE_NOT_MAPPED.get(field, "not a part that this import knows"))
        for field in (f"global.{key}" for key in settings if key not in _GLOBAL_USED)
    ]
    return Imported(candidates, tuple(notes))


def _document(text: str, where: str) -> Any:
    if text.lstrip()[:1] in {"[", "{"}:
        try:
            return orjson.loads(text)
        except (orjson.JSONDecodeError, UnicodeEncodeError):
            return read_yaml(text, where, texts=True)  # in YAML's own form of lists and maps
    return read_yaml(text, where, texts=True)


# ---- scrape configurations -------------------------------------------------------------------------------------------


def _scrape(written: Any, where: str, settings: Mapping[str, Any], find: ModuleOf) -> list[ImportCandidate]:
    if not isinstance(written, dict):
        return [ImportCandidate(where, "", wrong="must be a map of fields")]
    where = _place(written, where)
    name = str(written.get("job_name") or "")
    try:
        job, groups = _job(EntryBook(written, where, name), written, settings)
    except InvalidInputError as error:
        return [EntryBook(written, where, name).wrong(str(error))]
    made = []
    for at, group in enumerate(groups):
        made += _group(group, f"{where} static_configs[{at}]", job, find)
    if not made:
        discovered = [field for field in written if field.endswith("_sd_configs")]
        why = f"{', '.join(discovered)}: {NOT_MAPPED.get(discovered[0], _DISCOVERY)}" if discovered else None
        why = job.unusable or why or "has no targets"
        made.append(EntryBook(written, where, name).skip(why))
    return made


def _place(value: Any, where: str) -> str:
    line = line_of(value)
    return where if line is None else f"line {line}"


def _job(book: EntryBook, written: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[ProbeJob, list[Any]]:
    name = str(book.take("job_name") or "")
    params = book.take("params") or {}
    if not isinstance(params, dict) or not all(isinstance(each, list) for each in params.values()):
        raise InvalidInputError("params: must be a map of lists")
    module = next(iter(params.get("module") or ()), "http_2xx")
    for parameter in params:
        if parameter not in {"module", "target"}:
            book.lost(f"params.{parameter}", "only module and target are used")
    path = book.take("metrics_path")
    rules = book.take("relabel_configs") or []
    groups = book.take("static_configs") or []
    for field, value in (("relabel_configs", rules), ("static_configs", groups)):
        if not isinstance(value, list):
            raise InvalidInputError(f"{field}: must be a list")
    around, unusable = _relabelled(rules, book)
    targets = params.get("target") or []
    if targets:  # the exporter's address is the target of the scrape, and the probe's is fixed
        groups = [{"targets": targets}]
    elif around is None and unusable is None and not (path == "/probe" or "module" in params):
        unusable = "scrapes metrics, and probes nothing through blackbox_exporter"
    elif around is None and unusable is None:
        unusable = "no rule of relabel_configs makes the target of a probe (__param_target) out of the address"
    interval = _time(book, written, settings, "scrape_interval", _INTERVAL_MS)
    timeout = _time(book, written, settings, "scrape_timeout", min(_TIMEOUT_MS, interval))
    made = book.project({}, NOT_MAPPED)
    job = ProbeJob(
        name,
        str(module),
        interval,
        max(1.0, timeout - _LESS_MS),
        interval_given=True,
        around=around or ("", ""),
        unusable=unusable,
        notes=made.notes,
        mapped=made.mapped,
    )
    return job, groups


def _time(
    book: EntryBook, written: Mapping[str, Any], settings: Mapping[str, Any], field: str, default: float
) -> float:
    book.take(field)
    value = written.get(field) or settings.get(field)
    try:
        return default if value is None else duration_ms(value, days=True) or default
    except InvalidInputError as error:
        raise InvalidInputError(f"{field}: {error}") from error


def _relabelled(rules: list[Any], book: EntryBook) -> tuple[tuple[str, str] | None, str | None]:
    """What the rules put around a target (None: no rule makes one), and why it can't be told."""
    around: tuple[str, str] | None = None
    for at, rule in enumerate(rules):
        field = f"relabel_configs[{at}]"
        if not isinstance(rule, dict):
            raise InvalidInputError(f"{field}: must be a map")
        if any(isinstance(value, dict | list) for name, value in rule.items() if name != "source_labels"):
            raise InvalidInputError(f"{field}: holds a map or a list where a text should be")
        source, target = rule.get("source_labels"), rule.get("target_label")
        if target == "__param_target":
            pieces = _GROUP.split(str(rule.get("replacement") or "$1"))
            plain = set(rule) <= _ADDRESS_RULES and rule.get("regex") in _WHOLE and rule.get("action") in _REPLACING
            if source != ["__address__"] or not plain or len(pieces) != 2 or any("$" in each for each in pieces):
                return None, f"{field}: what it makes of a target can't be told; write the targets out"
            around = (pieces[0], pieces[1])
            book.mapped(field)
        elif target in {"instance", "__address__"}:
            book.mapped(field)
        elif rule.get("action") in {"keep", "drop", "hashmod", "keepequal", "dropequal"}:
            return None, f"{field}: which targets it leaves can't be told; write the targets out"
        elif target in {"__param_module", "__scheme__", "__metrics_path__"}:
            return None, f"{field}: what it makes of {target} can't be told; write the targets out"
        else:
            book.lost(field, "ringpoll has no labels of projects")
    return around, None


_REPLACING = frozenset({None, "replace"})


# ---- targets ---------------------------------------------------------------------------------------------------------


def _group(written: Any, where: str, job: ProbeJob, find: ModuleOf) -> list[ImportCandidate]:
    if not isinstance(written, dict):
        return [ImportCandidate(where, job.name, wrong="must be a map with targets")]
    where = _place(written, where)
    targets = written.get("targets")
    labels = written.get("labels") or {}
    if not isinstance(targets, list) or not isinstance(labels, dict):
        return [EntryBook(written, where, job.name).wrong("targets must be a list, and labels a map")]
    if not targets:
        return [EntryBook(written, where, job.name).skip("has no targets")]
    shared = EntryBook({name: value for name, value in written.items() if name != "targets"}, where)
    shared.take("labels")
    inner = shared.within("labels", labels)
    for name in ("name", "__param_module", "job"):
        inner.take(f"labels.{name}")
    for field in inner.left:
        inner.lost(field, "ringpoll has no labels of projects")
    common = shared.project({}, NOT_MAPPED)
    module = find(str(labels.get("__param_module") or job.module))
    several = len(targets) > 1
    notes = (*job.notes, *common.notes)
    mapped = tuple(dict.fromkeys((*job.mapped, *common.mapped, "targets")))
    if "__param_module" not in labels and not job.interval_given and not module.notes:
        notes = (*notes, FieldNote("targets", FieldOutcome.APPROXIMATED, "by GET with 2xx each minute, in 9.5 s"))
    return [
        _target(target, f"{where} targets[{at}]", job, module, labels, several, mapped, notes)
        for at, target in enumerate(targets)
    ]


def _target(
    target: Any,
    where: str,
    job: ProbeJob,
    module: BlackboxModule,
    labels: Mapping[str, Any],
    several: bool,
    mapped: tuple[str, ...],
    notes: tuple[FieldNote, ...],
) -> ImportCandidate:
    if not isinstance(target, str) or not target.strip():
        return ImportCandidate(where, job.name, wrong="a target must be text")
    url = f"{job.around[0]}{target.strip()}{job.around[1]}"
    if not url.lower().startswith(("http://", "https://")):
        url = f"http://{url}"
    label = _name(job, labels, masked_url(target.strip()), several)
    unusable = job.unusable or module.unusable
    if unusable is not None:
        fields = tuple(dict.fromkeys((*mapped, *(note.field for note in notes))))
        return ImportCandidate(where, label, skipped=unusable, skipped_fields=fields)
    extra = _module_notes(module, url)
    timeout_ms = min(job.timeout_ms, module.timeout_ms or job.timeout_ms)
    seconds = max(1, -int(-job.interval_ms // 1_000))
    interval, unit = interval_and_unit(seconds)
    project = {"url": url, "name": label, "interval": interval, "unit": unit, "timeout_ms": max(1, round(timeout_ms))}
    project |= module.project
    if not url.lower().startswith("https:"):
        for name in ("server_name", "client_cert_file", "client_key_file"):
            project.pop(name, None)
    if seconds * 1_000 != job.interval_ms:
        extra += (FieldNote("scrape_interval", FieldOutcome.APPROXIMATED, f"rounded up to {seconds} s"),)
    fields = tuple(dict.fromkeys((*mapped, *(f"module.{field}" for field in module.mapped))))
    return ImportCandidate(where, label, project, mapped=fields, notes=(*notes, *extra))


def _name(job: ProbeJob, labels: Mapping[str, Any], target: str, several: bool) -> str:
    if (given := labels.get("name")) is not None:
        return fitting_name(f"{given}/{target}" if several else str(given))
    name = str(labels.get("job") or job.name)
    return fitting_name(f"{name}/{target}" if name else target)


def _module_notes(module: BlackboxModule, url: str) -> tuple[FieldNote, ...]:
    notes = [FieldNote(f"module.{each.field}", each.outcome, each.text) for each in module.notes]
    if module.wants_tls and not url.lower().startswith("https:"):
        text = "that an answer came by TLS is not asserted; write an https:// target"
        notes.append(FieldNote("module.http.fail_if_not_ssl", FieldOutcome.NOT_MAPPED, text))
    elif module.wants_tls:
        text = "holds by the URL; a redirect to http would go unnoticed"
        notes.append(FieldNote("module.http.fail_if_not_ssl", FieldOutcome.APPROXIMATED, text))
    if not module.mapped and not module.notes:
        text = f"{shown(module.name)} is taken as GET with 2xx; --blackbox blackbox.yml would say it"
        notes.append(FieldNote("params.module", FieldOutcome.APPROXIMATED, text))
    return tuple(notes)


# ---- out -------------------------------------------------------------------------------------------------------------


def write_prometheus(rows: Iterable[Mapping[str, Any]]) -> Exported:
    """A list of targets for ``file_sd_configs``."""
    default = ProjectFields(url="")
    groups = []
    notes: list[ExportNote] = []
    for row in rows:
        if not row["enabled"]:
            notes.append(ExportNote(row["id"], None, "is not enabled, so it is left out: a target is always probed"))
            continue
        labels = {"name": row["name"]} if row["name"] else {}
        groups.append({"targets": [row["url"]], "labels": labels})
        lost = [name for name in FIELD_NAMES if name not in {"url", "name"} and row[name] != getattr(default, name)]
        notes += [
            ExportNote(row["id"], name, "is for a module of blackbox.yml, or for prometheus.yml") for name in lost
        ]
    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    return Exported(orjson.dumps(groups, option=options), len(groups), tuple(notes))
