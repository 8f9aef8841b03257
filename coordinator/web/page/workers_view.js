// The workers: their load and lag, and, for who may, draining one and scaling the cluster.

import { ask, get, isAbort } from "./api.js";
import { confirmed } from "./dialogs.js";
import { h, freshId, say } from "./dom.js";
import { bytes, compact, count, milliseconds, plural } from "./format.js";
import { listen, live } from "./live.js";
import { card, dataRow, dataTable, emptyBox, meter, problemBox, waitingBox } from "./parts.js";
import { may } from "./session.js";

const LAG_WARNING_MS = 100;
const LATE_WARNING_MS = 1_000;
const BUSY = 0.9;

const COLUMNS = [
  { title: "Worker", heading: true, className: "worker-name" },
  { title: "State" },
  { title: "Load", className: "worker-load" },
  { title: "Waiting", className: "number" },
  { title: "Projects", className: "number" },
  { title: "Polls/s", className: "number" },
  { title: "Late p50 / p99", className: "number" },
  { title: "Loop lag", className: "number" },
  { title: "To commit", className: "number" },
  { title: "WAL", className: "number" },
  { title: "Memory", className: "number" },
];
const ACTIONS = { title: "Actions", hidden: true, className: "row-actions" };

function workerState(worker) {
  const tone = worker.state === "running" ? "up" : worker.state === "hung" ? "down" : "pending";
  return h("span", { class: "pill", data: { state: tone } }, worker.state);
}

function toned(text, isBad) {
  return h("span", { class: isBad ? "warn-text" : null }, text);
}

function cells(worker) {
  const share = worker.slice > 0 ? worker.active_http / worker.slice : 0;
  return [
    worker.name,
    workerState(worker),
    h(
      "span",
      { class: "load" },
      meter(share, share >= BUSY ? "bad" : share >= 0.5 ? "warn" : "ok", `${worker.active_http} of ${worker.slice} requests in flight`),
      h("span", { class: "load-words" }, `${count(worker.active_http)} / ${count(worker.slice)}`),
    ),
    count(worker.queue_depth),
    count(worker.projects),
    compact(worker.polls_per_s),
    toned(`${milliseconds(worker.lateness_ms?.p50)} / ${milliseconds(worker.lateness_ms?.p99)}`, worker.lateness_ms?.p99 >= LATE_WARNING_MS),
    toned(milliseconds(worker.loop_lag_ms), worker.loop_lag_ms >= LAG_WARNING_MS),
    compact(worker.unacked_results),
    toned(worker.wal_state === "ok" ? bytes(worker.wal_bytes) : `${bytes(worker.wal_bytes)}, ${worker.wal_state}`, worker.wal_state !== "ok"),
    bytes(worker.rss_bytes),
  ];
}

/** {element, show(status)}: rows stay, and only their cells change, so that the focus does too. */
export function workerTable({ actions, onDrain = null }) {
  const columns = actions ? [...COLUMNS, ACTIONS] : COLUMNS;
  const { table, body } = dataTable("Workers and their load", columns, { className: "table-cards worker-table" });
  const holder = h("div", { class: "table-holder" }, waitingBox("Waiting for the first figures"));
  const rows = new Map();

  function newRow(worker) {
    const drain = actions ? h("button", { type: "button", class: "button button-small", on: { click: () => onDrain(worker.name) } }, "Drain", h("span", { class: "sr-only" }, ` ${worker.name}`)) : null;
    const row = dataRow(columns, columns.map(() => ""));
    if (drain) row.lastChild.append(drain);
    return { row, drain };
  }

  function show(status) {
    const workers = status.workers;
    if (workers.length === 0) {
      rows.clear();
      body.replaceChildren();
      holder.replaceChildren(emptyBox(h("p", {}, "No worker is connected.")));
      return;
    }
    if (!holder.contains(table)) holder.replaceChildren(table);
    const names = new Set(workers.map((worker) => worker.name));
    for (const [name, { row }] of rows) {
      if (!names.has(name)) {
        row.remove();
        rows.delete(name);
      }
    }
    for (const worker of workers) {
      if (!rows.has(worker.name)) {
        rows.set(worker.name, newRow(worker));
        body.append(rows.get(worker.name).row);
      }
      const { row, drain } = rows.get(worker.name);
      cells(worker).forEach((content, index) => row.children[index].replaceChildren(content));
      if (drain) drain.disabled = worker.state !== "running";
    }
  }

  return { element: holder, show };
}

function scaleForm(signal) {
  const fields = [
    { name: "workers", title: "Workers", hint: "processes that poll" },
    { name: "max_concurrent_http", title: "Requests in flight", hint: "at most, over all workers" },
  ].map((field) => {
    const id = freshId("scale");
    const input = h("input", { id, type: "number", min: "1", step: "1", required: true, inputmode: "numeric", "aria-describedby": `${id}-hint ${id}-error` });
    const error = h("p", { class: "field-error", id: `${id}-error` });
    return { ...field, input, error, element: h("div", { class: "field" }, h("label", { for: id }, field.title), input, h("p", { class: "hint", id: `${id}-hint` }, field.hint), error) };
  });
  const trouble = h("div", {});
  const button = h("button", { type: "submit", class: "button button-main" }, "Scale");
  const form = h("form", { class: "scale-form", novalidate: true, on: { submit } }, fields.map(({ element }) => element), h("div", { class: "field-actions" }, button), trouble);
  let told = {};

  async function load() {
    try {
      told = await get("/scale", {}, signal);
      for (const { name, input } of fields) input.value = told[name] ?? "";
    } catch (error) {
      if (!isAbort(error)) trouble.replaceChildren(problemBox(error, load));
    }
  }

  function mark(field, text) {
    field.error.textContent = text;
    if (text) field.input.setAttribute("aria-invalid", "true");
    else field.input.removeAttribute("aria-invalid");
  }

  async function submit(event) {
    event.preventDefault();
    trouble.replaceChildren();
    const body = {};
    for (const field of fields) {
      mark(field, "");
      const value = Number(field.input.value);
      if (!Number.isInteger(value) || value < 1) mark(field, `${field.title}: a whole number from 1`);
      else if (value !== told[field.name]) body[field.name] = value;
    }
    const wrong = fields.find(({ error }) => error.textContent);
    if (wrong) {
      wrong.input.focus();
      return;
    }
    if (Object.keys(body).length === 0) {
      say("Nothing to change");
      return;
    }
    button.disabled = true;
    try {
      const answer = await ask("POST", "/scale", { body, signal });
      told = { ...told, ...body, ...(answer.data ?? {}) };
      say(`Scaled: ${plural(told.workers ?? 0, "worker")}, ${count(told.max_concurrent_http)} requests in flight`);
    } catch (error) {
      if (isAbort(error)) return;
      let placed = false;
      for (const { field: name, message } of error.errors ?? []) {
        const field = fields.find((each) => each.name === name);
        if (!field) continue;
        mark(field, message);
        if (!placed) field.input.focus();
        placed = true;
      }
      if (!placed) trouble.replaceChildren(problemBox(error));
    } finally {
      button.disabled = false;
    }
  }

  void load();
  return form;
}

export function workersView(place, _route, signal) {
  const trouble = h("div", {});
  const summary = h("p", { class: "muted" });
  const steers = may("admin");

  async function drain(name) {
    const answer = await confirmed({
      title: `Drain ${name}?`,
      text: "Its projects move to the other workers, its polls in flight finish, and its process ends.",
      action: "Drain",
      danger: true,
    });
    if (!answer) return;
    trouble.replaceChildren();
    try {
      await ask("POST", `/workers/${encodeURIComponent(name)}/drain`, { signal });
      say(`${name} is being drained`);
    } catch (error) {
      if (!isAbort(error)) trouble.replaceChildren(problemBox(error));
    }
  }

  const workers = workerTable({ actions: steers, onDrain: drain });

  function showStatus(status) {
    workers.show(status);
    const running = status.workers.filter((worker) => worker.state === "running").length;
    summary.textContent = `${running} of ${plural(status.workers_wanted, "worker")} running, ${count(status.partitions_assigned)} of ${count(status.partitions)} partitions assigned`;
  }

  place.append(
    h("div", { class: "heading" }, h("h1", {}, "Workers")),
    summary,
    trouble,
    card("Load and lag", workers.element),
    steers ? card("Scale", scaleForm(signal)) : "",
  );
  if (live.status) showStatus(live.status);
  listen("status", signal, showStatus);
}
