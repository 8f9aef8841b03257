// One project: how it stands, how it did over a period, its polls one by one, when it changed, what was missed.

import { ask, get, isAbort } from "./api.js";
import { changeColumns, changeRow } from "./changes_view.js";
import { assertionText } from "./assertion_rows.js";
import { confirmed } from "./dialogs.js";
import { debounced, every, h, outsideLink, say } from "./dom.js";
import { ago, bytes, count, duration, interval, milliseconds, NOTHING, percent, PERIODS, PERIOD_WORDS, time } from "./format.js";
import { percentileChart, phaseChart, PHASES } from "./latency_chart.js";
import { listen } from "./live.js";
import { card, choiceGroup, dataRow, dataTable, emptyBox, pagedRows, periodGroup, problemBox, setChoice, statePill, tile, waitingBox } from "./parts.js";
import { FIELDS, shownValue } from "./project_fields.js";
import { go, href } from "./router.js";
import { may } from "./session.js";

const RESULTS_LIMIT = 25;
const CHART_POLLS = 120;
const LIST_LIMIT = 20;
const REFRESH_MS = { least: 3_000, most: 15_000 }; // as often as it is polled, within these
const YOUNG_MS = 2 * PERIODS["1h"];
const UNIT_MS = { seconds: 1_000, minutes: 60_000, hours: 3_600_000 };
const FIRST_RESULT_MS = 500;
const FIRST_RESULT_TRIES = 30;
const ALL_PERIODS = Object.keys(PERIODS);
const STATUSES = [
  ["", "All"],
  ["success", "Success"],
  ["failure", "Failure"],
  ["unknown", "Unknown"],
];
const RESULT_COLUMNS = [
  { title: "Time", heading: true },
  { title: "Status" },
  { title: "Code", className: "number" },
  { title: "Total", className: "number" },
  ...PHASES.map(([, title]) => ({ title, className: "number phase-cell" })),
  { title: "Size", className: "number" },
  { title: "Worker" },
  { title: "Error", className: "why" },
];
const MISSED_COLUMNS = [
  { title: "From", heading: true },
  { title: "To" },
  { title: "Polls", className: "number" },
  { title: "Reason" },
];

function resultRow(result) {
  return dataRow(RESULT_COLUMNS, [
    time(result.polled_at),
    statePill(result.status),
    result.status_code ?? NOTHING,
    milliseconds(result.response_time_ms),
    ...PHASES.map(([field]) => milliseconds(result[field])),
    bytes(result.size_bytes),
    result.worker ?? "",
    result.error_message || result.error_code || "",
  ]);
}

function missedRow(range) {
  return dataRow(MISSED_COLUMNS, [time(range.first_tick), time(range.last_tick), count(range.ticks), range.reason]);
}

function summaryTiles(summary) {
  return [
    tile("Uptime", percent(summary.uptime), { tone: summary.uptime !== null && summary.uptime < 0.99 ? "bad" : null, note: summary.unknown > 0 ? `${count(summary.unknown)} unknown` : null }),
    tile("Polls", count(summary.polls)),
    tile("Failures", count(summary.failure), { tone: summary.failure > 0 ? "bad" : null }),
    tile("Missed", count(summary.missed), { tone: summary.missed > 0 ? "warn" : null }),
    tile("p50", milliseconds(summary.p50_ms)),
    tile("p95", milliseconds(summary.p95_ms)),
    tile("p99", milliseconds(summary.p99_ms)),
    tile("Slowest", milliseconds(summary.max_ms), { note: `mean ${milliseconds(summary.mean_ms)}` }),
  ];
}

function settings(project) {
  const rows = FIELDS.filter(({ name }) => !["name", "url", "enabled", "interval", "unit"].includes(name)).flatMap((field) => {
    const value = project[field.name];
    if (value === null || value === undefined || (field.usual !== undefined && value === field.usual)) return [];
    const text = field.name === "assertions" ? value.map(assertionText).join("\n") : shownValue(field, value);
    return text === "" ? [] : [h("div", {}, h("dt", {}, field.title), h("dd", {}, text))];
  });
  return h(
    "dl",
    { class: "settings" },
    h("div", {}, h("dt", {}, "Polled every"), h("dd", {}, interval(project.interval, project.unit))),
    rows,
    h("div", {}, h("dt", {}, "Added"), h("dd", {}, time(project.created_at))),
    h("div", {}, h("dt", {}, "Last change of it"), h("dd", {}, time(project.updated_at))),
  );
}

/** Whether somebody reads the values of a point in a chart. */
function isRead(chartPlace) {
  return chartPlace.querySelector(".chart-reading:not([hidden])") !== null;
}

export function projectView(place, route, signal) {
  const [id] = route.parameters;
  let project = null;
  let refreshedAt = Date.now();
  // Of a project that is an hour old a day would show nothing.
  const usualPeriod = () => (project && Date.now() - Date.parse(project.created_at) < YOUNG_MS ? "1h" : "24h");
  const periodOf = (query) => (ALL_PERIODS.includes(query.get("period")) ? query.get("period") : usualPeriod());
  let period = periodOf(route.query);
  let etag = null;
  let reads = new AbortController(); // called off when the project is removed: there is nothing to read any more
  let chartLife = new AbortController();
  let phaseLife = new AbortController();
  signal.addEventListener("abort", () => {
    reads.abort();
    chartLife.abort();
    phaseLife.abort();
  });

  const title = h("h1", {}, `Project ${id}`);
  const state = h("span", { class: "heading-state" });
  const address = h("p", { class: "address" });
  const actions = h("div", { class: "heading-actions" });
  const switchButton = h("button", { type: "button", class: "button", on: { click: () => switchPolling() } });
  const trouble = h("div", {});
  const periods = periodGroup(ALL_PERIODS, period, (chosen) => go(`/projects/${id}`, { period: chosen }));
  const summaryPlace = h("dl", { class: "tiles tiles-small", "aria-label": "Summary" });
  const chartPlace = h("div", { class: "chart-place" }, waitingBox());
  const phasePlace = h("div", { class: "chart-place" }, waitingBox());
  const settingsPlace = h("div", {});

  let status = "";
  const statusFilter = choiceGroup("Status", STATUSES, "", (chosen) => {
    status = chosen;
    results.start();
  });
  const resultTable = dataTable("Results, newest first", RESULT_COLUMNS, { className: "table-cards result-table" });
  const resultTrouble = h("div", {});
  const changeTable = dataTable("Changes of state, newest first", changeColumns(false), { className: "table-cards" });
  const changeTrouble = h("div", {});
  const missedTable = dataTable("Ranges of missed polls, newest first", MISSED_COLUMNS, { className: "table-cards" });
  const missedTrouble = h("div", {});

  /** Rows of a table that grows by pages; nothing yet is said in words. */
  function listOf(made, problems, nothing, row, fetchPage) {
    return pagedRows({
      fetchPage,
      append: (items) => {
        problems.replaceChildren();
        made.table.hidden = false;
        made.body.append(...items.map(row));
      },
      clear: () => made.body.replaceChildren(),
      onEmpty: () => {
        made.table.hidden = true;
        problems.replaceChildren(emptyBox(h("p", {}, nothing)));
      },
      onProblem: (error, retry) => isAbort(error) || problems.replaceChildren(problemBox(error, retry)),
    });
  }

  const path = `/projects/${id}`;
  const results = listOf(resultTable, resultTrouble, "No results yet.", resultRow, (cursor) => get(`${path}/results`, { status, limit: RESULTS_LIMIT, cursor }, reads.signal));
  const changes = listOf(changeTable, changeTrouble, "It has not changed its state yet.", (item) => changeRow(item, false), (cursor) => get("/changes", { project_id: id, limit: LIST_LIMIT, cursor }, reads.signal));
  const missed = listOf(missedTable, missedTrouble, "Nothing was missed.", missedRow, (cursor) => get(`${path}/missed`, { limit: LIST_LIMIT, cursor }, reads.signal));

  place.append(
    h("p", { class: "crumbs" }, h("a", { href: href("/projects") }, "Projects")),
    h("div", { class: "heading" }, title, state, actions),
    address,
    trouble,
    h("div", { class: "tools" }, periods),
    summaryPlace,
    card("Response times", chartPlace),
    card("Phases of the last polls", phasePlace),
    h("section", { class: "card", "aria-label": "Results" }, h("div", { class: "card-head" }, h("h2", {}, "Results"), statusFilter), h("div", { class: "table-holder" }, resultTable.table), resultTrouble, results.element),
    h(
      "div",
      { class: "columns" },
      card("State changes", h("div", { class: "table-holder" }, changeTable.table), changeTrouble, changes.element),
      card("Missed polls", h("div", { class: "table-holder" }, missedTable.table), missedTrouble, missed.element),
    ),
    card("Settings", settingsPlace),
  );

  function showProject() {
    title.textContent = project.name || project.url;
    const since = project.state_since ? ["for ", h("span", { title: project.state_since }, duration(Date.now() - Date.parse(project.state_since)))] : "";
    state.replaceChildren(statePill(project.state), h("span", { class: "muted" }, since));
    address.replaceChildren(outsideLink(project.url, { class: "url-line" }));
    if (project.invalid_reason) address.append(h("span", { class: "warn-text" }, `It can't be polled: ${project.invalid_reason}`));
    const last = project.last_result;
    if (last) address.append(h("span", { class: "muted" }, "last polled ", ago(last.polled_at), last.error_message ? `: ${last.error_message}` : ""));
    settingsPlace.replaceChildren(settings(project));
    switchButton.textContent = project.enabled ? "Disable" : "Enable";
    // Made once: a dialog gives the focus back to the very button that opened it.
    if (may("write") && !actions.hasChildNodes()) {
      actions.append(
        h("a", { class: "button", href: href(`${path}/edit`) }, "Edit"),
        switchButton,
        h("button", { type: "button", class: "button button-danger-quiet", on: { click: remove } }, "Remove"),
      );
    }
  }

  function fail(error) {
    if (isAbort(error)) return;
    if (error.status === 404) {
      place.replaceChildren(
        h("h1", { tabindex: "-1" }, "No such project"),
        h("p", {}, `There is no project ${id}; it may have been removed. `, h("a", { href: href("/projects") }, "All projects")),
      );
      return;
    }
    trouble.replaceChildren(problemBox(error));
  }

  async function loadProject() {
    try {
      const answer = await ask("GET", path, { signal: reads.signal });
      project = answer.data;
      etag = answer.etag;
      showProject();
      return true;
    } catch (error) {
      fail(error);
      return false;
    }
  }

  async function loadSummary() {
    const wanted = period;
    try {
      const summary = await get(`${path}/summary`, { period: wanted, resolution: "auto" }, reads.signal);
      if (wanted !== period) return;
      summaryPlace.replaceChildren(...summaryTiles(summary));
      // A chart that is being read is not taken away under the reader.
      if (isRead(chartPlace)) return;
      chartLife.abort();
      chartLife = new AbortController();
      chartPlace.replaceChildren(
        summary.buckets.length === 0 ? emptyBox(h("p", {}, `No polls in the ${PERIOD_WORDS[wanted]}.`)) : percentileChart(summary, project.created_at, chartLife.signal),
      );
    } catch (error) {
      if (!isAbort(error) && error.status !== 404) chartPlace.replaceChildren(problemBox(error, loadSummary));
    }
  }

  async function loadPhases() {
    try {
      const [polls, gaps] = await Promise.all([
        get(`${path}/results`, { limit: CHART_POLLS }, reads.signal),
        get(`${path}/missed`, { limit: CHART_POLLS }, reads.signal),
      ]);
      if (isRead(phasePlace)) return;
      phaseLife.abort();
      phaseLife = new AbortController();
      phasePlace.replaceChildren(polls.items.length === 0 ? emptyBox(h("p", {}, "No polls yet.")) : phaseChart(polls.items, gaps.items, phaseLife.signal));
    } catch (error) {
      if (!isAbort(error) && error.status !== 404) phasePlace.replaceChildren(problemBox(error, loadPhases));
    }
  }

  async function switchPolling() {
    trouble.replaceChildren();
    try {
      const answer = await ask("POST", `${path}/${project.enabled ? "disable" : "enable"}`, { signal });
      project = answer.data;
      etag = answer.etag ?? etag;
      showProject();
      say(project.enabled ? "Enabled: it is polled" : "Disabled: it is not polled any more");
    } catch (error) {
      fail(error);
    }
  }

  async function remove() {
    const answer = await confirmed({
      title: "Remove this project?",
      text: `“${project.name || project.url}” is no longer polled, and its settings are deleted. This can't be undone.`,
      action: "Remove",
      danger: true,
      option: "Delete its results as well",
    });
    if (!answer) return;
    trouble.replaceChildren();
    reads.abort();
    try {
      await ask("DELETE", path, { query: answer.checked ? { purge: true } : {}, etag, signal });
      say("Removed");
      go("/projects", {}, { replace: true });
    } catch (error) {
      if (signal.aborted) return;
      reads = new AbortController();
      if (error.status === 412) {
        await loadProject();
        trouble.replaceChildren(problemBox({ message: "Somebody else has just changed this project; look at it again before you remove it." }));
        return;
      }
      fail(error);
    }
  }

  /** Lists that were leafed through stay as they are; their first page is renewed. */
  const refresh = async () => {
    refreshedAt = Date.now();
    if (document.hidden || !(await loadProject())) return;
    void loadSummary();
    void loadPhases();
    if (resultTable.body.rows.length <= RESULTS_LIMIT && !resultTable.table.contains(document.activeElement)) results.start();
  };
  const soon = debounced(() => {
    void refresh();
    changes.start();
  }, 500);
  signal.addEventListener("abort", soon.cancel);
  listen("change", signal, (change) => String(change.project_id) === id && soon());
  listen("projects", signal, ({ ids }) => (ids === null || ids.map(String).includes(id)) && soon());
  every(1_000, signal, () => {
    if (project === null || document.hidden) return;
    const pause = Math.min(REFRESH_MS.most, Math.max(REFRESH_MS.least, project.interval * UNIT_MS[project.unit]));
    if (Date.now() - refreshedAt >= pause) void refresh();
  });

  async function start() {
    if (!(await loadProject())) return;
    period = periodOf(route.query);
    setChoice(periods, period);
    void loadSummary();
    void loadPhases();
    results.start();
    changes.start();
    missed.start();
    if (!project.last_result && project.enabled) hurry(FIRST_RESULT_TRIES);
  }

  /** A project that was just added has its first result within a second or so. */
  function hurry(tries) {
    const timer = setTimeout(async () => {
      if (!(await loadProject())) return;
      if (project.last_result) await refresh();
      else if (tries > 1) hurry(tries - 1);
    }, FIRST_RESULT_MS);
    signal.addEventListener("abort", () => clearTimeout(timer));
  }

  void start();
  return {
    update(next) {
      period = periodOf(next.query);
      setChoice(periods, period);
      void loadSummary();
    },
  };
}
