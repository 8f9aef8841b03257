// Assertions, entered one a row: what is looked at, how it is compared, with what.

import { freshId, h, say } from "./dom.js";

const JSON_OPS = ["exists", "absent", "==", "!=", "<", "<=", ">", ">=", "contains", "matches"];
const HEADER_OPS = ["==", "contains", "matches"];

// Of each type: its title, and its parts as [field, kind, placeholder].
const TYPES = {
  body_contains: { title: "Body contains", parts: [["text", "text", "Text"]] },
  body_matches: { title: "Body matches", parts: [["pattern", "text", "Regular expression"]] },
  json_path: { title: "JSON", parts: [["path", "text", "$.status"], ["op", JSON_OPS], ["value", "json", "\"up\" or 10"]] },
  header: { title: "Header", parts: [["name", "text", "Name"], ["op", HEADER_OPS], ["value", "text", "Value"]] },
  status: { title: "Status in", parts: [["set", "text", "2xx"]] },
  response_time_below: { title: "Time below (ms)", parts: [["ms", "number", "500"]] },
  certificate_days: { title: "Certificate valid (days)", parts: [["days", "number", "14"]] },
};
const PART_TITLES = { text: "Text", pattern: "Regular expression", path: "JSON path", op: "Comparison", value: "Value", name: "Header", set: "Statuses", ms: "Milliseconds", days: "Days" };

function hasValue(assertion) {
  return !["exists", "absent"].includes(assertion.op ?? "exists");
}

/** As a line for people to read. */
export function assertionText(assertion) {
  switch (assertion.type) {
    case "status":
      return `status ${assertion.set}`;
    case "body_contains":
      return `body contains ${assertion.text}`;
    case "body_matches":
      return `body matches ${assertion.pattern}`;
    case "json_path":
      return `json ${assertion.path} ${assertion.op ?? "exists"}${hasValue(assertion) ? ` ${JSON.stringify(assertion.value)}` : ""}`;
    case "header":
      return `header ${assertion.name} ${assertion.op} ${assertion.value}`;
    case "response_time_below":
      return `time < ${assertion.ms} ms`;
    case "certificate_days":
      return `certificate > ${assertion.days} d`;
    default:
      return JSON.stringify(assertion);
  }
}

/** A value of a comparison is JSON; what is none is a text without its quotes. */
function jsonOf(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

function row(assertion, onRemove) {
  const parts = h("span", { class: "assertion-parts" });
  const type = h("select", { "aria-label": "What is asserted", on: { change: () => build({ type: type.value }) } }, Object.entries(TYPES).map(([value, { title }]) => h("option", { value }, title)));
  const remove = h("button", { type: "button", class: "button button-small", on: { click: () => onRemove(element) } }, "Remove", h("span", { class: "sr-only" }, " this assertion"));
  const element = h("li", { class: "assertion" }, type, parts, remove);
  let inputs = {};

  function build(values) {
    type.value = values.type;
    inputs = {};
    for (const [field, kind, placeholder] of TYPES[values.type].parts) {
      const label = PART_TITLES[field];
      let input;
      if (Array.isArray(kind)) {
        input = h("select", { "aria-label": label }, kind.map((op) => h("option", { value: op }, op)));
        input.value = values[field] ?? kind[0];
      } else {
        input = h("input", { type: kind === "number" ? "number" : "text", min: kind === "number" ? "1" : null, "aria-label": label, placeholder, spellcheck: "false", autocomplete: "off" });
        const value = values[field];
        input.value = value === undefined ? "" : kind === "json" ? JSON.stringify(value) : value;
      }
      inputs[field] = { input, kind };
    }
    if (values.type === "json_path") {
      const showValue = () => {
        inputs.value.input.hidden = !hasValue({ op: inputs.op.input.value });
      };
      inputs.op.input.addEventListener("change", showValue);
      showValue();
    }
    parts.replaceChildren(...Object.values(inputs).map(({ input }) => input));
  }

  function read() {
    const written = { type: type.value };
    for (const [field, { input, kind }] of Object.entries(inputs)) {
      if (input.hidden) continue;
      if (kind === "number") {
        if (!/^\d+$/.test(input.value)) return { wrong: `${TYPES[type.value].title}: a whole number is needed`, input };
        written[field] = Number(input.value);
      } else if (kind === "json") {
        if (input.value === "") return { wrong: `${TYPES[type.value].title}: the value is missing`, input };
        written[field] = jsonOf(input.value);
      } else {
        if (input.value === "" && field !== "value") return { wrong: `${TYPES[type.value].title}: ${PART_TITLES[field].toLowerCase()} is missing`, input };
        written[field] = input.value;
      }
    }
    return { written };
  }

  build(assertion);
  return { element, read, type };
}

/** {element, read(), focus()}; `read` gives {value} or {wrong, input}. */
export function assertionRows(assertions, describedBy) {
  const rows = [];
  const list = h("ul", { class: "assertions" });
  const add = h("button", { type: "button", id: freshId("assertion"), class: "button button-small", "aria-describedby": describedBy, on: { click: () => append({ type: "body_contains" }, true) } }, "Add an assertion");

  function append(assertion, focus = false) {
    const made = row(assertion, (element) => {
      const index = rows.findIndex((each) => each.element === element);
      rows.splice(index, 1);
      element.remove();
      (rows[Math.min(index, rows.length - 1)]?.type ?? add).focus();
      say("Assertion removed");
    });
    rows.push(made);
    list.append(made.element);
    if (focus) made.type.focus();
  }

  for (const assertion of assertions ?? []) append(assertion);

  function read() {
    const value = [];
    for (const each of rows) {
      const { written, wrong, input } = each.read();
      if (wrong) return { wrong, input };
      value.push(written);
    }
    return { value: value.length > 0 ? value : null };
  }

  return { element: h("div", {}, list, add), read, button: add };
}
