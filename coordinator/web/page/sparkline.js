// Small pictures in a row of a list: the uptime bar, the latency line, and the rate of the last minutes.  Each is an
// image with a name that says in words what it shows.

import { s } from "./dom.js";
import { milliseconds, percent, PERIOD_WORDS, plural } from "./format.js";

const BAR_WIDTH = 4;
const BAR_STEP = 5;
const BAR_HEIGHT = 22;
const LINE_WIDTH = 120;
const LINE_HEIGHT = 26;
const RATES_SHOWN = 120;

function picture(className, width, height, label, title, ...content) {
  return s(
    "svg",
    { class: className, viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label, preserveAspectRatio: "none", focusable: "false" },
    s("title", {}, title ?? label),
    ...content,
  );
}

/** `bars`: [polls, failures, p50], oldest first.  A bar's upper part is the share that failed. */
export function uptimeBar({ bars, uptime, polls, failure }, period) {
  const words = PERIOD_WORDS[period] ?? period;
  const label = polls === 0 ? `No polls in the ${words}` : `Uptime ${percent(uptime)} in the ${words}: ${plural(failure, "failure")} of ${plural(polls, "poll")}`;
  const width = Math.max(1, bars.length) * BAR_STEP - 1;
  const shapes = bars.flatMap(([made, failed], index) => {
    const x = index * BAR_STEP;
    const at = { x, width: BAR_WIDTH };
    if (made === 0) return [s("rect", { ...at, class: "bar-none", y: BAR_HEIGHT - 4, height: 4 })];
    if (failed === 0) return [s("rect", { ...at, class: "bar-ok", y: 0, height: BAR_HEIGHT })];
    const high = Math.max(4, Math.round((failed / made) * BAR_HEIGHT));
    const below = BAR_HEIGHT - high;
    return [
      s("rect", { ...at, class: "bar-bad", y: 0, height: high }),
      below > 1 ? s("rect", { ...at, class: "bar-ok", y: high + 1, height: below - 1 }) : null,
    ];
  });
  return picture("uptime-bar", width, BAR_HEIGHT, label, null, shapes);
}

/** Runs of neighbours that have a value: a gap stays a gap. */
export function runs(values) {
  const found = [];
  let open = null;
  values.forEach((value, index) => {
    if (value === null || value === undefined) {
      open = null;
      return;
    }
    if (open === null) {
      open = [];
      found.push(open);
    }
    open.push(index);
  });
  return found;
}

function line(values, width, height, top) {
  const x = (index) => (values.length < 2 ? width / 2 : 1 + (index * (width - 2)) / (values.length - 1));
  const y = (value) => height - 2 - (value / top) * (height - 4);
  return runs(values).map((run) =>
    run.length === 1
      ? s("circle", { class: "spark-dot", cx: x(run[0]).toFixed(1), cy: y(values[run[0]]).toFixed(1), r: 1.5 })
      : s("polyline", { class: "spark-line", points: run.map((index) => `${x(index).toFixed(1)},${y(values[index]).toFixed(1)}`).join(" ") }),
  );
}

/** The median of each bar, on a scale from 0. */
export function latencyLine({ bars }, period) {
  const values = bars.map(([, , p50]) => p50 ?? null);
  const known = values.filter((value) => value !== null);
  const words = PERIOD_WORDS[period] ?? period;
  if (known.length === 0) return picture("spark", LINE_WIDTH, LINE_HEIGHT, `No response times in the ${words}`, null);
  const [low, high] = [Math.min(...known), Math.max(...known)];
  const label = `Median response time in the ${words}: from ${milliseconds(low)} to ${milliseconds(high)}, last ${milliseconds(known.at(-1))}`;
  return picture("spark", LINE_WIDTH, LINE_HEIGHT, label, null, line(values, LINE_WIDTH, LINE_HEIGHT, high * 1.1 || 1));
}

/** Polls per second over the last two minutes, the newest on the right; `rates` of live.js. */
export function rateLine(rates, width = 480, height = 44) {
  const values = rates.map((each) => each.polls);
  const top = Math.max(1, ...values) * 1.15;
  const failed = rates.map((each) => (each.failures > 0 ? each.failures : null));
  const before = new Array(Math.max(0, RATES_SHOWN - rates.length)).fill(null);
  const label = values.length === 0 ? "No figures yet" : `Polls per second over the last ${plural(values.length, "second")}: now ${values.at(-1).toFixed(1)}, at most ${Math.max(...values).toFixed(1)}`;
  return picture(
    "rate",
    width,
    height,
    label,
    null,
    line([...before, ...values], width, height, top),
    s("g", { class: "rate-failures" }, line([...before, ...failed], width, height, top)),
  );
}
