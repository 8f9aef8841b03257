// All projects: searched, filtered and sorted by the API, a page at a time, so that a hundred thousand are as quick as
// ten.  What is looked for is in the address.

import { get, isAbort } from "./api.js";
import { debounced, every, h, say } from "./dom.js";
import { ago, count, interval, milliseconds, percent, PERIOD_WORDS, plural } from "./format.js";
import { listen } from "./live.js";
import { choiceGroup, dataRow, dataTable, emptyBox, periodGroup, problemBox, setChoice, statePill } from "./parts.js";
import { go, href } from "./router.js";
import { may } from "./session.js";
import { latencyLine, uptimeBar } from "./sparkline.js";

const LIMIT = 50;
const TYPING_MS = 150;
const REFRESH_MS = 30_000;
const FIRST_RESULT_MS = 1_500; // a project that was just added has one soon, and no event says so
const FIRST_RESULT_TRIES = 20;
const SLOW_MS = 150; // until a list that is being asked for looks so
const PERIODS = ["24h", "7d", "30d", "90d"];
const STATES = [
  ["", "All"],
  ["up", "Up"],
  ["down", "Down"],
  ["pending", "Pending"],
  ["paused", "Paused"],
];
const COLUMNS = [
  { title: "State", className: "state-cell" },
  { title: "Project", heading: true, className: "project-cell", sort: "name" },
  { title: "Uptime", className: "uptime-cell" },
  { title: "Response time", className: "latency-cell" },
  { title: "Last poll", className: "last-cell" },
  { title: "Every", className: "number every-cell" },
  { title: "Id", className: "number id-cell", sort: "id" },
];
const SORTS = [
  ["id", "Oldest first"],
  ["-id", "Newest first"],
  ["name", "Name, A to Z"],
  ["-name", "Name, Z to A"],
];
const DEFAULT_SORT = "id";

let searchField = null;

/** Once the list is there. */
export function focusSearch() {
  searchField?.focus();
  searchField?.select();
}

function asked(route) {
  const { query } = route;
  const state = query.get("state") ?? "";
  const sort = query.get("sort") ?? DEFAULT_SORT;
  const period = query.get("period") ?? "24h";
  return {
    search: query.get("search") ?? "",
    state: STATES.some(([value]) => value === state) ? state : "",
    sort: SORTS.some(([value]) => value === sort) ? sort : DEFAULT_SORT,
    period: PERIODS.includes(period) ? period : "24h",
    cursor: query.get("cursor"),
    page: Math.max(1, Number.parseInt(query.get("page") ?? "1", 10) || 1),
  };
}

/** As it goes into the address: what is usual is left out. */
function written({ search, state, sort, period, cursor, page }) {
  return { search, state, sort: sort === DEFAULT_SORT ? "" : sort, period: period === "24h" ? "" : period, cursor, page: cursor ? page : "" };
}

function lastPoll(result) {
  if (!result) return h("span", { class: "nothing" }, "–");
  const outcome = result.status_code ?? (result.error_code ?? "").replaceAll("_", " ");
  const words = result.status === "success" ? outcome : `${outcome || result.status}`;
  return [
    h("span", { class: result.status === "failure" ? "bad-text" : result.status === "unknown" ? "warn-text" : null, title: result.error_message ?? null }, words),
    result.response_time_ms !== null && result.response_time_ms !== undefined ? ` · ${milliseconds(result.response_time_ms)}` : "",
    h("span", { class: "muted last-ago" }, ago(result.polled_at)),
  ];
}

function projectRow(project, period) {
  const summary = project.summary;
  const cells = [
    statePill(project.state),
    [
      h("a", { href: href(`/projects/${project.id}`), class: "name" }, project.name || project.url),
      project.name ? h("span", { class: "muted url" }, project.url) : "",
      project.invalid_reason ? h("span", { class: "warn-text" }, `can't be polled: ${project.invalid_reason}`) : "",
    ],
    summary ? h("span", { class: "with-number" }, uptimeBar(summary, period), h("span", { class: "figure" }, percent(summary.uptime))) : "",
    summary ? h("span", { class: "with-number" }, latencyLine(summary, period), h("span", { class: "figure" }, milliseconds(summary.p50_ms))) : "",
    lastPoll(project.last_result),
    interval(project.interval, project.unit),
    String(project.id),
  ];
  return dataRow(COLUMNS, cells, { data: { id: String(project.id) } });
}

export function projectsView(place, route, signal) {
  let now = asked(route);
  const before = []; // cursors of the pages before this one, as far as they were seen
  let asking = new AbortController();
  let total = null;
  let triesLeft = FIRST_RESULT_TRIES;

  const search = h("input", {
    type: "search",
    id: "search",
    class: "search",
    placeholder: "Search name or URL",
    "aria-label": "Search projects by name or URL",
    "aria-keyshortcuts": "/",
    autocomplete: "off",
    spellcheck: "false",
    maxlength: "200",
  });
  search.value = now.search;
  searchField = search;
  signal.addEventListener("abort", () => {
    if (searchField === search) searchField = null;
  });

  const states = choiceGroup("State", STATES, now.state, (state) => turn({ state }));
  const periods = periodGroup(PERIODS, now.period, (period) => go("/projects", written({ ...now, period })));
  const sorts = h("select", { "aria-label": "Sort", on: { change: () => turn({ sort: sorts.value }) } }, SORTS.map(([value, text]) => h("option", { value }, text)));
  const figures = h("p", { class: "muted figures", "aria-live": "off" });
  const { table, body, head } = dataTable("Projects", COLUMNS, { className: "table-cards project-table" });
  const trouble = h("div", {});
  const previous = h("button", { type: "button", class: "button button-small", on: { click: goBack } }, "Previous");
  const next = h("button", { type: "button", class: "button button-small", on: { click: goOn } }, "Next");
  const pageNumber = h("span", { class: "muted" });
  const pager = h("nav", { class: "pager", "aria-label": "Pages" }, previous, pageNumber, next);
  let nextCursor = null;

  for (const [index, column] of COLUMNS.entries()) {
    if (!column.sort) continue;
    const flip = () => turn({ sort: now.sort === column.sort ? `-${column.sort}` : column.sort });
    head.children[index].replaceChildren(h("button", { type: "button", class: "sort-button", on: { click: flip } }, column.title, h("span", { class: "sort-sign", "aria-hidden": "true" })));
  }

  /** Another list: from its first page. */
  function turn(changed) {
    typing.cancel();
    go("/projects", written({ ...now, search: search.value.trim(), ...changed, cursor: null, page: 1 }));
  }

  const typing = debounced(() => {
    const text = search.value.trim();
    if (text === now.search) return;
    // One step back leaves the search, however many letters it had.
    go("/projects", written({ ...now, search: text, cursor: null, page: 1 }), { replace: now.search !== "" && text !== "" });
  }, TYPING_MS);
  search.addEventListener("input", typing);
  search.addEventListener("keydown", (event) => {
    if (event.key === "Enter") {
      turn({});
    } else if (event.key === "Escape") {
      if (search.value === "") search.blur();
      else {
        search.value = "";
        turn({});
      }
      event.preventDefault();
    } else if (event.key === "ArrowDown") {
      body.querySelector("a")?.focus();
      event.preventDefault();
    }
  });
  signal.addEventListener("abort", typing.cancel);
  signal.addEventListener("abort", () => asking.abort());

  function goOn() {
    if (nextCursor === null) return;
    before[now.page] = now.cursor;
    go("/projects", written({ ...now, cursor: nextCursor, page: now.page + 1 }));
    window.scrollTo(0, 0);
  }

  function goBack() {
    const page = now.page - 1;
    const cursor = before[page];
    // A page that was opened by its address knows none before it: then the first one.
    go("/projects", written({ ...now, cursor: cursor ?? null, page: cursor ? page : 1 }));
    window.scrollTo(0, 0);
  }

  function showSort() {
    sorts.value = now.sort;
    for (const [index, column] of COLUMNS.entries()) {
      if (!column.sort) continue;
      const cell = head.children[index];
      const order = now.sort === column.sort ? "ascending" : now.sort === `-${column.sort}` ? "descending" : "none";
      cell.setAttribute("aria-sort", order);
      cell.querySelector(".sort-sign").textContent = { ascending: "▲", descending: "▼", none: "" }[order];
    }
  }

  /** Rows that are as they were stay as they are, and the focus stays where it was. */
  function showItems(items) {
    const focused = body.contains(document.activeElement) ? document.activeElement.closest("tr").dataset.id : null;
    const rows = items.map((project) => {
      const row = projectRow(project, now.period);
      const old = body.querySelector(`tr[data-id="${project.id}"]`);
      return old?.isEqualNode(row) ? old : row;
    });
    body.replaceChildren(...rows);
    if (focused) body.querySelector(`tr[data-id="${focused}"] a`)?.focus({ preventScroll: true });
    if (items.length > 0) trouble.replaceChildren();
    else if (now.search || now.state || now.cursor) trouble.replaceChildren(emptyBox(h("p", {}, "No project matches."), h("p", {}, h("a", { href: href("/projects") }, "Show all projects"))));
    else trouble.replaceChildren(emptyBox(h("p", {}, "There are no projects yet."), may("write") && h("p", {}, h("a", { class: "button button-main", href: href("/projects/new") }, "Add the first one"))));
  }

  function showFigures(aloud, shown) {
    const what = total === null ? plural(shown, "project") + (nextCursor ? " and more" : "") : plural(total, "project");
    figures.textContent = now.search || now.state ? `${what} found` : what;
    if (aloud) say(figures.textContent);
    pageNumber.textContent = `Page ${count(now.page)}${total === null ? "" : ` of ${count(Math.max(1, Math.ceil(total / LIMIT)))}`}`;
    previous.disabled = now.page === 1;
    next.disabled = nextCursor === null;
    pager.hidden = previous.disabled && next.disabled;
  }

  async function load({ aloud = false, recount = true } = {}) {
    asking.abort();
    asking = new AbortController();
    const { signal: mine } = asking;
    const slow = setTimeout(() => table.setAttribute("aria-busy", "true"), SLOW_MS);
    const { search: text, state, sort, period, cursor } = now;
    try {
      const page = await get("/projects", { search: text, state, sort, limit: LIMIT, cursor, summary: period }, mine);
      nextCursor = page.next_cursor;
      showItems(page.items);
      if (cursor === null && page.next_cursor === null) {
        total = page.items.length;
        recount = false;
      } else if (recount) total = null;
      showFigures(aloud && !recount, page.items.length);
      clearTimeout(slow);
      table.removeAttribute("aria-busy");
      if (recount) {
        total = (await get("/projects", { search: text, state, limit: 1, total: true }, mine)).total ?? null;
        showFigures(aloud, page.items.length);
      }
    } catch (error) {
      if (isAbort(error)) return;
      trouble.replaceChildren(problemBox(error, () => load()));
    } finally {
      clearTimeout(slow);
      if (!mine.aborted) table.removeAttribute("aria-busy");
    }
  }

  place.append(
    h(
      "div",
      { class: "heading" },
      h("h1", {}, "Projects"),
      figures,
      may("write") && h("a", { class: "button button-main", href: href("/projects/new") }, "Add a project"),
    ),
    h("form", { class: "tools", role: "search", on: { submit: (event) => event.preventDefault() } }, search, states, h("span", { class: "tools-end" }, periods, sorts)),
    h("section", { class: "card", "aria-label": "Projects" }, h("div", { class: "table-holder" }, table), trouble, pager),
  );

  showSort();
  const soon = debounced(() => load({ recount: false }), 700);
  signal.addEventListener("abort", soon.cancel);
  listen("change", signal, ({ project_id: id }) => {
    if (id === undefined || now.state || body.querySelector(`tr[data-id="${id}"]`)) soon();
  });
  const anew = debounced(() => {
    triesLeft = FIRST_RESULT_TRIES;
    void load();
  }, 300);
  signal.addEventListener("abort", anew.cancel);
  listen("projects", signal, anew);
  every(FIRST_RESULT_MS, signal, () => {
    if (document.hidden || triesLeft === 0 || !body.querySelector('[data-state="pending"]')) return;
    triesLeft -= 1;
    void load({ recount: false });
  });
  every(REFRESH_MS, signal, () => document.hidden || load({ recount: false }));
  void load();

  return {
    update(changed) {
      const was = now;
      now = asked(changed);
      triesLeft = FIRST_RESULT_TRIES;
      if (document.activeElement !== search || search.value.trim() !== now.search) search.value = now.search;
      setChoice(states, now.state);
      setChoice(periods, now.period);
      showSort();
      table.querySelector("caption").textContent = `Projects, uptime and response time of the ${PERIOD_WORDS[now.period]}`;
      const same = was.search === now.search && was.state === now.state;
      if (!same) total = null;
      void load({ aloud: true, recount: !same });
    },
  };
}
