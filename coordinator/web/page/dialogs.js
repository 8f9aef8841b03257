// Dialogs: a question before what can't be undone, and the help.  <dialog> keeps the focus in and gives it back.

import { freshId, h } from "./dom.js";
import { keysEnabled, setKeysEnabled, SHORTCUTS } from "./shortcuts.js";

function open(dialog) {
  document.body.append(dialog);
  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close()); // beside it
  dialog.showModal();
}

/** Resolves to null when refused, else to what was chosen: {checked}.  `option`: a checkbox's label. */
export function confirmed({ title, text, action, danger = false, option = null }) {
  return new Promise((resolve) => {
    const titleId = freshId("dialog-title");
    const checkbox = option ? h("input", { type: "checkbox" }) : null;
    let answer = null;
    const dialog = h(
      "dialog",
      { class: "dialog", "aria-labelledby": titleId },
      h("h2", { id: titleId }, title),
      h("p", {}, text),
      checkbox && h("label", { class: "check" }, checkbox, h("span", {}, option)),
      h(
        "div",
        { class: "dialog-actions" },
        h("button", { type: "button", class: "button", autofocus: true, on: { click: () => dialog.close() } }, "Cancel"),
        h(
          "button",
          {
            type: "button",
            class: `button ${danger ? "button-danger" : "button-main"}`,
            on: {
              click: () => {
                answer = { checked: checkbox?.checked ?? false };
                dialog.close();
              },
            },
          },
          action,
        ),
      ),
    );
    dialog.addEventListener("close", () => resolve(answer));
    open(dialog);
  });
}

export function showHelp() {
  if (document.querySelector("dialog[open]")) return;
  const titleId = freshId("dialog-title");
  const switchBox = h("input", { type: "checkbox", on: { change: () => setKeysEnabled(switchBox.checked) } });
  switchBox.checked = keysEnabled();
  const dialog = h(
    "dialog",
    { class: "dialog dialog-wide", "aria-labelledby": titleId },
    h("h2", { id: titleId }, "Keys and words"),
    h(
      "dl",
      { class: "keys" },
      SHORTCUTS.map(({ keys, what }) => h("div", {}, h("dt", {}, keys.map((key) => h("kbd", {}, key))), h("dd", {}, what))),
    ),
    h("label", { class: "check" }, switchBox, h("span", {}, "Shortcuts of a single key")),
    h(
      "dl",
      { class: "words" },
      [
        ["Up, down", "what the newest results in a row said; how many it takes is set per project"],
        ["Pending", "enabled, and no result yet"],
        ["Paused", "not enabled: not polled"],
        ["Uptime", "successes of all polls that say something about the target"],
        ["Unknown", "polls that failed because of this cluster's own machines"],
        ["Missed", "polls that were due and not made, with the reason"],
        ["p50, p95, p99", "half, 95 % and 99 % of the response times were at most this long"],
      ].map(([word, meaning]) => h("div", {}, h("dt", {}, word), h("dd", {}, meaning))),
    ),
    h(
      "div",
      { class: "dialog-actions" },
      h("a", { href: "/docs", class: "button" }, "API documentation"),
      h("button", { type: "button", class: "button button-main", autofocus: true, on: { click: () => dialog.close() } }, "Close"),
    ),
  );
  open(dialog);
}
