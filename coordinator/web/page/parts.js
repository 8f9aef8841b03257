// Pieces that several views are made of.

import { freshId, h } from "./dom.js";
import { NOTHING, PERIOD_WORDS } from "./format.js";

const STATE_WORDS = { up: "Up", down: "Down", pending: "Pending", paused: "Paused" };
const STATUS_WORDS = { success: "Success", failure: "Failure", unknown: "Unknown" };
const STATE_SIGNS = { up: "●", down: "▼", pending: "○", paused: "Ⅱ", success: "●", failure: "▼", unknown: "○" };

/** A state in words, with a sign of its own: colour alone tells nobody. */
export function statePill(state) {
  return h(
    "span",
    { class: "pill", data: { state } },
    h("span", { class: "pill-sign", "aria-hidden": "true" }, STATE_SIGNS[state] ?? "○"),
    STATE_WORDS[state] ?? STATUS_WORDS[state] ?? state,
  );
}

export function problemBox(error, retry = null) {
  return h(
    "div",
    { class: "problem", role: "alert" },
    h("p", {}, error.message),
    retry && h("button", { type: "button", class: "button button-small", on: { click: retry } }, "Try again"),
  );
}

export function emptyBox(...content) {
  return h("div", { class: "empty" }, ...content);
}

export function waitingBox(text = "Loading") {
  return h("p", { class: "waiting" }, text);
}

/** A titled part of a view; `headingTag` keeps the order of headings. */
export function card(title, ...content) {
  const id = freshId("card");
  return h("section", { class: "card", "aria-labelledby": id }, h("h2", { id }, title), ...content);
}

/** One number with its name; `tone` colours what needs attention, `note` says why. */
export function tile(name, value, { note = null, tone = null, link = null } = {}) {
  const shown = [h("dt", {}, link ? h("a", { href: link }, name) : name), h("dd", { class: "tile-value" }, value)];
  if (note !== null) shown.push(h("dd", { class: "tile-note" }, note));
  return h("div", { class: "tile", data: { tone } }, shown);
}

/** Radio buttons that look like one control.  `choices`: [[value, text, title?]]. */
export function choiceGroup(name, choices, chosen, onChoice) {
  const group = freshId("choice");
  return h(
    "fieldset",
    { class: "choices" },
    h("legend", { class: "sr-only" }, name),
    choices.map(([value, text, title]) => {
      const radio = h("input", { type: "radio", name: group, value, on: { change: () => onChoice(value) } });
      radio.checked = value === chosen;
      return h("label", { title: title ?? null }, radio, h("span", {}, text));
    }),
  );
}

export function setChoice(group, value) {
  for (const radio of group.querySelectorAll("input")) radio.checked = radio.value === value;
}

export function periodGroup(periods, chosen, onChoice) {
  return choiceGroup("Period", periods.map((period) => [period, period, PERIOD_WORDS[period]]), chosen, onChoice);
}

/** A table that stays one for screen readers when narrow screens lay it out as cards. */
export function dataTable(caption, columns, { className = "" } = {}) {
  const body = h("tbody", { role: "rowgroup" });
  const head = h(
    "tr",
    { role: "row" },
    columns.map((column) =>
      h("th", { role: "columnheader", scope: "col", class: column.className ?? null }, column.hidden ? h("span", { class: "sr-only" }, column.title) : column.title),
    ),
  );
  const table = h(
    "table",
    { role: "table", class: `table ${className}` },
    h("caption", { class: "sr-only" }, caption),
    h("thead", { role: "rowgroup" }, head),
    body,
  );
  return { table, body, head };
}

/** `cells`: contents in the order of the columns; `titles`: of the columns, shown beside them on narrow screens. */
export function dataRow(columns, cells, attributes = {}) {
  return h(
    "tr",
    { role: "row", ...attributes },
    cells.map((cell, index) =>
      h(
        columns[index].heading ? "th" : "td",
        {
          role: columns[index].heading ? "rowheader" : "cell",
          scope: columns[index].heading ? "row" : null,
          class: columns[index].className ?? null,
          data: { title: columns[index].title, none: cell === NOTHING ? "" : null }, // narrow screens leave it out
        },
        cell,
      ),
    ),
  );
}

/** A list that grows by a page at a time: {element, start}.  `fetchPage(cursor)` answers {items, next_cursor}. */
export function pagedRows({ fetchPage, append, clear, onEmpty, onProblem }) {
  let cursor = null;
  let asked = 0;
  const button = h("button", { type: "button", class: "button button-small", on: { click: () => load(cursor) } }, "Show more");
  const element = h("div", { class: "more" }, button);
  element.hidden = true;

  async function load(from) {
    asked += 1;
    const mine = asked;
    button.disabled = true;
    try {
      const page = await fetchPage(from);
      if (mine !== asked) return;
      if (from === null) clear();
      cursor = page.next_cursor;
      append(page.items);
      if (from === null && page.items.length === 0) onEmpty();
      element.hidden = cursor === null;
    } catch (error) {
      if (mine === asked) onProblem(error, () => load(from));
    } finally {
      button.disabled = false;
    }
  }

  return { element, start: () => load(null) };
}

/** A bar of a share from 0 to 1, as SVG: no style attribute is needed. */
export function meter(share, tone, label) {
  const bar = h("meter", { class: "meter", min: "0", max: "1", value: String(Math.min(1, share)), "aria-label": label, data: { tone } });
  bar.title = label;
  return bar;
}
