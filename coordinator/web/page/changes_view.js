// When projects went down or came up, the newest first.

import { get, isAbort } from "./api.js";
import { debounced, h } from "./dom.js";
import { ago, plural, time } from "./format.js";
import { listen } from "./live.js";
import { choiceGroup, dataRow, dataTable, emptyBox, pagedRows, problemBox, setChoice, statePill } from "./parts.js";
import { go, href } from "./router.js";

const LIMIT = 50;
const STATES = [
  ["", "All"],
  ["down", "Down"],
  ["up", "Up"],
];

/** `named`: with the project, where the list has those of several. */
export function changeColumns(named) {
  return [
    { title: "State" },
    ...(named ? [{ title: "Project", heading: true, className: "project-cell" }] : []),
    { title: "When" },
    { title: "Why", className: "why" },
  ];
}

function why(change) {
  const said = change.error_message || change.error_code || (change.status_code ? `answered ${change.status_code}` : "");
  return change.polls > 1 ? `${said}${said ? ", " : ""}${plural(change.polls, "poll")} in a row` : said;
}

export function changeRow(change, named) {
  const cells = [
    statePill(change.state),
    ...(named ? [h("a", { href: href(`/projects/${change.project_id}`), class: "name" }, change.name || change.url || `Project ${change.project_id}`)] : []),
    named ? ago(change.changed_at) : time(change.changed_at),
    why(change),
  ];
  return dataRow(changeColumns(named), cells);
}

export function changesView(place, route, signal) {
  let state = route.query.get("state") ?? "";
  const filter = choiceGroup("State", STATES, state, (value) => go("/changes", { state: value }));
  const trouble = h("div", {});
  const { table, body } = dataTable("Changes of state, newest first", changeColumns(true), { className: "table-cards" });
  const list = pagedRows({
    fetchPage: (cursor) => get("/changes", { state, limit: LIMIT, cursor }, signal),
    append: (items) => {
      trouble.replaceChildren();
      body.append(...items.map((item) => changeRow(item, true)));
    },
    clear: () => body.replaceChildren(),
    onEmpty: () => trouble.replaceChildren(emptyBox(h("p", {}, "No project has changed its state yet."))),
    onProblem: (error, retry) => isAbort(error) || trouble.replaceChildren(problemBox(error, retry)),
  });
  place.append(
    h("div", { class: "heading" }, h("h1", {}, "Changes"), filter),
    h("section", { class: "card", "aria-label": "Changes" }, h("div", { class: "table-holder" }, table), trouble, list.element),
  );
  const soon = debounced(list.start, 500);
  signal.addEventListener("abort", soon.cancel);
  listen("change", signal, soon);
  list.start();
  return {
    update(next) {
      state = next.query.get("state") ?? "";
      setChoice(filter, state);
      list.start();
    },
  };
}
