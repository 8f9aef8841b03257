// Views by the address behind the #, so that back, forward, reload and bookmarks work: #/projects?state=down.
//
// A view is a function (place, route, signal) that fills its place; the signal is aborted when it is left.  It may
// return {update(route)}, which is called instead of building it anew when only the query has changed.

let table = [];
let place = null;
let shown = null; // {view, key, leaving, update}
let arrived = () => {};
let barred = () => false;

export function href(path, query = {}) {
  const written = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    if (value !== null && value !== undefined && value !== "") written.set(name, value);
  }
  const text = written.toString();
  return `#${path}${text ? `?${text}` : ""}`;
}

export function currentRoute() {
  const [path, query = ""] = location.hash.replace(/^#/, "").split("?", 2);
  return { path: path || "/", query: new URLSearchParams(query) };
}

/** Go to an address; `replace` leaves no step to go back to. */
export function go(path, query = {}, { replace = false, state = null } = {}) {
  history[replace ? "replaceState" : "pushState"](state, "", href(path, query));
  apply();
}

/** Build the present view anew. */
export function again() {
  leave();
  apply();
}

function leave() {
  shown?.leaving.abort();
  shown = null;
}

function find(path) {
  for (const entry of table) {
    const found = entry.pattern.exec(path);
    if (found) return { entry, parameters: found.slice(1).map(decodeURIComponent) };
  }
  return null;
}

function apply() {
  if (barred()) {
    leave();
    return;
  }
  const route = currentRoute();
  const found = find(route.path) ?? find("/nowhere");
  const full = { ...route, parameters: found.parameters, section: found.entry.section };
  const key = `${found.entry.pattern.source} ${found.parameters.join(" ")}`;
  if (shown?.key === key && shown.update) {
    shown.update(full);
    return;
  }
  const first = shown === null;
  leave();
  const leaving = new AbortController();
  shown = { key, leaving, update: null };
  const mine = shown;
  place.replaceChildren();
  const made = found.entry.view(place, full, leaving.signal);
  if (shown === mine) shown.update = made?.update ?? null;
  arrived(full, first);
}

/** `entries`: {pattern, view, section}, the last for what is nowhere; `onArrival(route, first)` after each new view. */
export function startRouter(main, entries, { onArrival, isBarred }) {
  table = entries;
  place = main;
  arrived = onArrival;
  barred = isBarred;
  window.addEventListener("hashchange", () => {
    if (location.hash === "" || location.hash.startsWith("#/")) apply();
  });
}
