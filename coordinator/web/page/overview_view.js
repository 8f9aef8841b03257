// What an operator looks at first: totals, what is down, the load of each worker, what changed last.

import { get, isAbort } from "./api.js";
import { changeColumns, changeRow } from "./changes_view.js";
import { card, dataTable, emptyBox, problemBox, statePill, tile } from "./parts.js";
import { debounced, every, h } from "./dom.js";
import { ago, compact, count, duration, milliseconds, percent, plural } from "./format.js";
import { listen, live } from "./live.js";
import { href } from "./router.js";
import { may } from "./session.js";
import { rateLine } from "./sparkline.js";
import { workerTable } from "./workers_view.js";

const CHANGES_SHOWN = 8;
const DOWN_SHOWN = 8;
const REFRESH_MS = 30_000;
const HEALTH_TONES = { healthy: "ok", warning: "warn", critical: "bad" };
const QUEUE_WARNING = 100; // as the status document's own `health`
const LATE_MS = 1_000;
const LAG_MS = 10_000;

function totals(status) {
  const judged = status.success_requests + status.failed_requests;
  const reasons = Object.entries(status.missed_by_reason ?? {}).filter(([, ticks]) => ticks > 0).map(([reason, ticks]) => `${reason} ${compact(ticks)}`);
  const writer = status.writer ?? {};
  return [
    tile("Health", status.health.replace(/^./, (letter) => letter.toUpperCase()), { tone: HEALTH_TONES[status.health], note: `${status.phase}, ${duration(status.uptime_s * 1_000)} up` }),
    tile("Projects polled", count(status.active_projects), {
      link: href("/projects"),
      tone: status.invalid_projects > 0 ? "warn" : null,
      note: status.invalid_projects > 0 ? `${plural(status.invalid_projects, "row")} can't be polled` : "all that are enabled",
    }),
    tile("Polls", compact(status.total_requests), { note: judged > 0 ? `${percent(status.success_requests / judged)} succeeded` : "since the start" }),
    tile("Failed", compact(status.failed_requests), { note: status.unknown_requests > 0 ? `and ${compact(status.unknown_requests)} unknown` : "of all polls" }),
    tile("Missed", compact(status.missed), { tone: status.missed_by_reason?.overload > 0 ? "warn" : null, note: reasons.join(", ") || "nothing was due in vain" }),
    tile("In flight", `${count(status.active_http)} / ${count(status.max_concurrent_http)}`, {
      tone: status.active_http >= 0.9 * status.max_concurrent_http ? "bad" : status.active_http >= 0.5 * status.max_concurrent_http ? "warn" : null,
      note: `${count(status.queue_depth)} waiting`,
    }),
    tile("Lateness p99", milliseconds(status.lateness_ms?.p99), {
      tone: status.queue_depth >= QUEUE_WARNING || status.lateness_ms?.p99 >= LATE_MS ? "warn" : null,
      note: `p50 ${milliseconds(status.lateness_ms?.p50)}`,
    }),
    tile("Written", `${compact(writer.rows_per_s ?? 0)} /s`, {
      tone: status.database?.state !== "up" ? "bad" : writer.lag_ms >= LAG_MS || writer.state !== "running" ? "warn" : null,
      note: status.database?.state === "up" ? `${compact(writer.rows_written ?? 0)} rows, writer ${(writer.state ?? "away").replaceAll("_", " ")}` : "the database does not answer",
    }),
  ];
}

export function overviewView(place, _route, signal) {
  const tiles = h("dl", { class: "tiles", "aria-label": "Totals" });
  const rate = h("div", { class: "rate-holder" });
  const rateNumber = h("span", { class: "rate-number" }, "–");
  const down = h("div", {});
  const changes = h("div", {});
  const workers = workerTable({ actions: false });
  const downCard = card("Down now", down);
  place.append(
    h(
      "div",
      { class: "heading" },
      h("h1", {}, "Overview"),
      may("write") && h("a", { class: "button button-main", href: href("/projects/new") }, "Add a project"),
    ),
    tiles,
    h("section", { class: "card rate-card", "aria-label": "Polls per second" }, h("div", { class: "rate-words" }, rateNumber, h("span", { class: "muted" }, "polls per second, last two minutes")), rate),
    h("div", { class: "columns" }, downCard, card("Last changes", changes)),
    card("Workers", workers.element),
  );

  function showStatus(status) {
    tiles.replaceChildren(...totals(status));
    workers.show(status);
    rate.replaceChildren(rateLine(live.rates));
    rateNumber.textContent = live.rates.length > 0 ? compact(live.rates.at(-1).polls) : "–";
  }

  async function load() {
    try {
      const [bad, news] = await Promise.all([
        get("/projects", { state: "down", limit: DOWN_SHOWN, total: true }, signal),
        get("/changes", { limit: CHANGES_SHOWN }, signal),
      ]);
      showDown(bad);
      showChanges(news.items);
    } catch (error) {
      if (isAbort(error)) return;
      down.replaceChildren(problemBox(error, load));
    }
  }

  function showDown({ items, total }) {
    if (items.length === 0) {
      down.replaceChildren(emptyBox(h("p", {}, "Nothing is down.")));
      return;
    }
    down.replaceChildren(
      h(
        "ul",
        { class: "down-list" },
        items.map((project) =>
          h(
            "li",
            {},
            statePill(project.state),
            h("a", { href: href(`/projects/${project.id}`), class: "name" }, project.name || project.url),
            h("span", { class: "muted down-why" }, project.last_result?.error_message ?? project.last_result?.error_code ?? ""),
            h("span", { class: "muted" }, ago(project.state_since)),
          ),
        ),
      ),
      total > items.length ? h("p", { class: "card-foot" }, h("a", { href: href("/projects", { state: "down" }) }, `All ${count(total)} that are down`)) : "",
    );
  }

  function showChanges(items) {
    if (items.length === 0) {
      changes.replaceChildren(emptyBox(h("p", {}, "No project has changed its state yet.")));
      return;
    }
    const { table, body } = dataTable("Last changes of state", changeColumns(true), { className: "table-cards" });
    body.append(...items.map((item) => changeRow(item, true)));
    changes.replaceChildren(table, h("p", { class: "card-foot" }, h("a", { href: href("/changes") }, "All changes")));
  }

  if (live.status) showStatus(live.status);
  else tiles.append(tile("Health", "…"), tile("Projects polled", "…"), tile("Polls", "…"), tile("Failed", "…"));
  const soon = debounced(load, 500);
  signal.addEventListener("abort", soon.cancel);
  listen("status", signal, showStatus);
  listen("change", signal, soon);
  listen("projects", signal, soon);
  every(REFRESH_MS, signal, load);
  void load();
}

