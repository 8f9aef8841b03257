// Keys for people who stay at the keyboard.  They can be switched off (speech input types single letters), and never
// work while something is being written.

const KEY = "ringpoll.keys";
const PAUSE_MS = 1_200; // between the two keys of `g p`

export const SHORTCUTS = [
  { keys: ["/"], what: "search projects" },
  { keys: ["n"], what: "add a project" },
  { keys: ["g", "o"], what: "go to the overview" },
  { keys: ["g", "p"], what: "go to the projects" },
  { keys: ["g", "c"], what: "go to the changes" },
  { keys: ["g", "w"], what: "go to the workers" },
  { keys: ["t"], what: "dark or light" },
  { keys: ["?"], what: "this help" },
  { keys: ["Esc"], what: "close a dialog, leave the search" },
  { keys: ["←", "→"], what: "walk through a chart that has the focus" },
];

export function keysEnabled() {
  try {
    return localStorage.getItem(KEY) !== "off";
  } catch {
    return true; // storage is forbidden in this browser
  }
}

export function setKeysEnabled(enabled) {
  try {
    localStorage.setItem(KEY, enabled ? "on" : "off");
  } catch {
    return; // as above: they stay on
  }
}

function isWriting(element) {
  if (element instanceof HTMLInputElement) return !["checkbox", "radio", "button", "submit"].includes(element.type);
  return element instanceof HTMLTextAreaElement || element instanceof HTMLSelectElement || element?.isContentEditable;
}

/** `actions`: what to call, by the keys as written in SHORTCUTS ("g p"). */
export function startShortcuts(actions) {
  let prefix = "";
  let prefixedAt = 0;
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || event.isComposing) return;
    if (isWriting(event.target) || document.querySelector("dialog[open]") || !keysEnabled()) return;
    const pressed = prefix && event.timeStamp - prefixedAt < PAUSE_MS ? `${prefix} ${event.key}` : event.key;
    prefix = "";
    const action = actions[pressed] ?? actions[event.key];
    if (action) {
      event.preventDefault();
      action();
    } else if (event.key === "g") {
      prefix = "g";
      prefixedAt = event.timeStamp;
    }
  });
}
