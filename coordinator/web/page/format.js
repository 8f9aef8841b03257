// Numbers, durations and instants as people read them: times in the viewer's zone, with UTC in the title.

import { h } from "./dom.js";

const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const ONE = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const TWO = new Intl.NumberFormat("en", { maximumFractionDigits: 2 });
const CLOCK = { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" };
const DAY = { day: "numeric", month: "short" };
const clock = new Intl.DateTimeFormat("en-GB", CLOCK);
const shortClock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const dayAndClock = new Intl.DateTimeFormat("en-GB", { ...DAY, ...CLOCK });
const day = new Intl.DateTimeFormat("en-GB", DAY);
const fullDay = new Intl.DateTimeFormat("en-GB", { ...DAY, ...CLOCK, year: "numeric" });
export const NOTHING = "–";

export const PERIODS = { "1h": 3_600_000, "24h": 86_400_000, "7d": 604_800_000, "30d": 2_592_000_000, "90d": 7_776_000_000 };
export const PERIOD_WORDS = { "1h": "last hour", "24h": "last 24 hours", "7d": "last 7 days", "30d": "last 30 days", "90d": "last 90 days" };

export function count(number) {
  return number === null || number === undefined ? NOTHING : WHOLE.format(number);
}

/** 12,345 → 12.3 k: where there is little room. */
export function compact(number) {
  if (number === null || number === undefined) return NOTHING;
  if (number < 10_000) return number < 100 ? ONE.format(number) : WHOLE.format(number);
  return number < 1e6 ? `${ONE.format(number / 1e3)} k` : number < 1e9 ? `${TWO.format(number / 1e6)} M` : `${TWO.format(number / 1e9)} G`;
}

export function milliseconds(number) {
  if (number === null || number === undefined) return NOTHING;
  if (number > 0 && number < 0.05) return "< 0.1 ms";
  if (number < 10) return `${ONE.format(number)} ms`;
  if (number < 1_000) return `${WHOLE.format(number)} ms`;
  return number < 60_000 ? `${TWO.format(number / 1_000)} s` : duration(number);
}

export function bytes(number) {
  if (number === null || number === undefined) return NOTHING;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let power = 0;
  let rest = number;
  while (rest >= 1024 && power < units.length - 1) {
    rest /= 1024;
    power += 1;
  }
  return `${power === 0 ? WHOLE.format(rest) : ONE.format(rest)} ${units[power]}`;
}

/** The two largest units of a time in milliseconds: 3 d 4 h. */
export function duration(number) {
  const units = [["d", 86_400], ["h", 3_600], ["min", 60], ["s", 1]];
  let left = Math.max(0, Math.round(number / 1_000));
  const parts = [];
  for (const [unit, length] of units) {
    const whole = Math.floor(left / length);
    if (whole > 0 || (unit === "s" && parts.length === 0)) parts.push(`${whole} ${unit}`);
    else if (parts.length > 0) break;
    left -= whole * length;
    if (parts.length === 2) break;
  }
  return parts.join(" ");
}

/** A share as per cent; what is not all is never shown as 100. */
export function percent(share) {
  if (share === null || share === undefined) return NOTHING;
  if (share >= 1) return "100 %";
  const shown = share >= 0.999 ? Math.floor(share * 1e5) / 1e3 : Math.floor(share * 1e4) / 1e2;
  return `${shown} %`;
}

export function interval(number, unit) {
  const short = { seconds: "s", minutes: "min", hours: "h" };
  return `${number} ${short[unit] ?? unit}`;
}

export function plural(number, one, many = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : many}`;
}

export function utc(at) {
  return `${new Date(at).toISOString().replace("T", " ").replace(/\.000Z$|Z$/, "")} UTC`;
}

function localText(instant) {
  const now = new Date();
  if (instant.toDateString() === now.toDateString()) return clock.format(instant);
  return instant.getFullYear() === now.getFullYear() ? dayAndClock.format(instant) : fullDay.format(instant);
}

/** An instant in the viewer's zone; null: a dash. */
export function time(at) {
  if (!at) return h("span", { class: "nothing" }, NOTHING);
  return h("time", { datetime: new Date(at).toISOString(), title: utc(at) }, localText(new Date(at)));
}

function agoText(at) {
  const passed = Date.now() - at;
  return passed < 1_000 ? "just now" : `${duration(passed).split(" ").slice(0, 2).join(" ")} ago`;
}

/** How long ago; `refreshAgo` keeps it true. */
export function ago(at) {
  if (!at) return h("span", { class: "nothing" }, NOTHING);
  const instant = new Date(at);
  return h("time", { datetime: instant.toISOString(), title: `${localText(instant)} (${utc(at)})`, data: { ago: String(instant.getTime()) } }, agoText(instant.getTime()));
}

export function refreshAgo(root) {
  for (const element of root.querySelectorAll("time[data-ago]")) {
    const text = agoText(Number(element.dataset.ago));
    if (element.textContent !== text) element.textContent = text;
  }
}

/** Labels of a time axis: as much of the instant as the span needs. */
export function axisTime(at, span) {
  const instant = new Date(at);
  if (span <= 2 * PERIODS["24h"]) return span < 600_000 ? clock.format(instant) : shortClock.format(instant);
  return day.format(instant);
}

export function exactTime(at) {
  return dayAndClock.format(new Date(at));
}
