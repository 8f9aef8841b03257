// The stream of events: the status each second, state changes, changed projects.
//
// Listeners: `status` (the document), `change` (a state change), `projects` (ids, or null for any), `link` ("live",
// "waiting" or "lost").  A stream that ends, is refused or falls silent is opened again, for as long as it takes.

import { BASE } from "./api.js";

const SILENT_MS = 6_000;
const RETRY_MS = [500, 1_000, 2_000, 4_000];
const KEPT_S = 120;

class Live extends EventTarget {
  #source = null;
  #retries = 0;
  #timer = 0;
  #heardAt = 0;
  #previous = null;
  state = "waiting";
  status = null;
  rates = []; // of the last two minutes: {at, polls, failures, missed} per second

  start() {
    this.stop();
    this.#open();
    this.#timer = setInterval(() => this.#watch(), 1_000);
  }

  stop() {
    this.#source?.close();
    this.#source = null;
    clearInterval(this.#timer);
    this.#retries = 0;
    this.#heardAt = 0;
    this.#tell("waiting");
  }

  get heardAt() {
    return this.#heardAt;
  }

  #open() {
    this.#source?.close();
    const source = new EventSource(`${BASE}/events`);
    this.#source = source;
    this.#openedAt = Date.now();
    source.addEventListener("status", (event) => this.#heard("status", event));
    source.addEventListener("change", (event) => this.#heard("change", event));
    source.addEventListener("projects", (event) => this.#heard("projects", event));
    source.addEventListener("error", () => {
      if (this.#source !== source) return;
      source.close();
      this.#lose();
    });
  }

  #openedAt = 0;

  #lose() {
    this.#source?.close();
    this.#source = null;
    this.#tell("lost");
    const wait = RETRY_MS[Math.min(this.#retries, RETRY_MS.length - 1)];
    this.#retries += 1;
    setTimeout(() => {
      if (this.#source === null && this.state === "lost") this.#open();
    }, wait);
  }

  #watch() {
    if (this.#source !== null && Date.now() - Math.max(this.#heardAt, this.#openedAt) > SILENT_MS) this.#lose();
  }

  #heard(kind, event) {
    this.#heardAt = Date.now();
    this.#retries = 0;
    const data = JSON.parse(event.data);
    if (kind === "status") {
      this.#remember(data);
      this.status = data;
    }
    this.#tell("live");
    this.dispatchEvent(new CustomEvent(kind, { detail: data }));
  }

  #remember(status) {
    const at = performance.now();
    const before = this.#previous;
    this.#previous = { at, status };
    // Totals count from `cluster up`; smaller ones are another cluster's.
    if (before === null || at - before.at < 200 || status.total_requests < before.status.total_requests) return;
    const seconds = (at - before.at) / 1_000;
    if (seconds > 10) return; // a gap: its mean would be drawn as an instant
    const grown = (name) => Math.max(0, status[name] - before.status[name]) / seconds;
    this.rates.push({ at: Date.now(), polls: grown("total_requests"), failures: grown("failed_requests"), missed: grown("missed") });
    if (this.rates.length > KEPT_S) this.rates.shift();
  }

  #tell(state) {
    if (state === this.state) return;
    const before = this.state;
    this.state = state;
    this.dispatchEvent(new CustomEvent("link", { detail: { state, before } }));
  }
}

export const live = new Live();

/** Listens until the signal is aborted. */
export function listen(kind, signal, listener) {
  live.addEventListener(kind, (event) => listener(event.detail), { signal });
}
