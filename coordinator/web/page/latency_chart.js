// A project's response times: percentiles over a period, and the phases of single polls.

import { chartFrame } from "./chart_frame.js";
import { s } from "./dom.js";
import { count, exactTime, milliseconds, percent } from "./format.js";
import { runs } from "./sparkline.js";

const PERCENTILES = [
  ["p99_ms", "p99"],
  ["p95_ms", "p95"],
  ["p50_ms", "p50"],
];
export const PHASES = [
  ["dns_ms", "DNS", "dns"],
  ["connect_ms", "Connect", "connect"],
  ["tls_ms", "TLS", "tls"],
  ["first_byte_ms", "First byte", "first-byte"],
  ["transfer_ms", "Transfer", "transfer"],
];
const REST = ["rest_ms", "Other", "other"]; // sending the request, redirects before, waiting between
const HEIGHT = 240;
const FAILURE_HEIGHT = 5;
const SPAN_BUCKETS_MIN = 5; // shown at least
const RESOLUTION_MS = { minute: 60_000, hour: 3_600_000, day: 86_400_000 };

/** Percentiles of the buckets of a Summary; where there were no polls the lines have a gap. */
export function percentileChart(summary, createdAt, signal) {
  const step = RESOLUTION_MS[summary.resolution] ?? 60_000;
  const buckets = summary.buckets;
  const until = Date.parse(summary.until);
  // A project is not missed in the time before there was one; results that are older were kept from another.
  const oldest = buckets.length > 0 ? Date.parse(buckets[0].at) : until;
  const began = Math.min(Date.parse(createdAt), oldest, until - SPAN_BUCKETS_MIN * step);
  const since = Math.max(Date.parse(summary.since), began);
  // One place for each bucket of the period, so that what is missing is seen.
  const first = Math.floor(since / step) * step;
  const places = Math.max(1, Math.ceil((until - first) / step));
  const byPlace = new Array(places).fill(null);
  for (const bucket of buckets) {
    const place = Math.round((Date.parse(bucket.at) - first) / step);
    if (place >= 0 && place < places) byPlace[place] = bucket;
  }
  const middle = (place) => Math.min(Math.max(first + (place + 0.5) * step, since), until);
  const known = byPlace.map((bucket, place) => ({ bucket, place })).filter(({ bucket }) => bucket !== null);
  const high = Math.max(0, ...buckets.map((bucket) => bucket.p99_ms ?? 0));

  function draw({ x, y, bottom, width }) {
    const lines = PERCENTILES.map(([field, name]) => {
      const values = byPlace.map((bucket) => (bucket && bucket.polls > 0 ? bucket[field] : null));
      return runs(values).map((run) =>
        run.length === 1
          ? s("circle", { class: `line-dot line-${name}`, cx: x(middle(run[0])), cy: y(values[run[0]]), r: 2.5 })
          : s("polyline", { class: `line line-${name}`, points: run.map((place) => `${x(middle(place)).toFixed(1)},${y(values[place]).toFixed(1)}`).join(" ") }),
      );
    });
    const wide = Math.max(2, Math.min(8, width / places - 1));
    const failures = known
      .filter(({ bucket }) => bucket.failure > 0)
      .map(({ place }) => s("rect", { class: "failure-mark", x: x(middle(place)) - wide / 2, y: bottom - FAILURE_HEIGHT, width: wide, height: FAILURE_HEIGHT }));
    return [lines, failures];
  }

  function describe(index) {
    const { bucket, place } = known[index];
    const judged = bucket.success + bucket.failure;
    return [
      ["", exactTime(first + place * step)],
      ...PERCENTILES.toReversed().map(([field, name]) => [name, milliseconds(bucket[field]), name]),
      ["Polls", count(bucket.polls)],
      ["Failures", count(bucket.failure), bucket.failure > 0 ? "failure" : undefined],
      ["Uptime", percent(judged > 0 ? bucket.success / judged : null)],
    ];
  }

  return chartFrame({
    label: "Response times",
    height: HEIGHT,
    since,
    until,
    top: high,
    points: known.map(({ place }) => middle(place)),
    draw,
    describe,
    legend: [["p50", "p50"], ["p95", "p95"], ["p99", "p99"], ["Failures", "failure"]],
    signal,
  });
}

function phasesOf(result) {
  const parts = PHASES.map(([field, , swatch]) => [result[field], swatch]).filter(([value]) => value !== null && value !== undefined);
  const rest = (result.response_time_ms ?? 0) - parts.reduce((sum, [value]) => sum + value, 0);
  return rest > 0.05 ? [...parts, [rest, REST[2]]] : parts;
}

/** Single polls, each a bar of its phases; missed ranges are shaded.  `results`: newest first, as the API gives them. */
export function phaseChart(results, missed, signal) {
  const polls = results.toReversed();
  const instants = polls.map((result) => Date.parse(result.polled_at));
  const since = instants[0];
  const until = Math.max(instants.at(-1), since + 1_000);
  const padding = (until - since) * 0.02;
  const totals = polls.map((result) => result.response_time_ms ?? 0).sort((a, b) => a - b);
  // One poll that took its whole time-out must not flatten all others: it is cut off at the top instead.
  const usual = totals[Math.floor((totals.length - 1) * 0.97)];
  const top = Math.min(totals.at(-1), usual * 3) || 1;

  function draw({ x, y, left, right, top: above, bottom, width }) {
    const gaps = missed.flatMap((range) => {
      const from = Math.max(left, x(Date.parse(range.first_tick)) - 2);
      const to = Math.min(right, x(Date.parse(range.last_tick)) + 2);
      return to > from ? [s("rect", { class: "missed-range", x: from, y: above, width: to - from, height: bottom - above })] : [];
    });
    const wide = Math.max(1.5, Math.min(14, (width / polls.length) * 0.7));
    const bars = polls.map((result, index) => {
      const at = x(instants[index]) - wide / 2;
      let below = 0;
      const shapes = phasesOf(result).map(([value, swatch]) => {
        const upper = y(below + value);
        const lower = y(below);
        below += value;
        return lower - upper > 0.2 ? s("rect", { class: `phase phase-${swatch}`, x: at, y: upper, width: wide, height: lower - upper }) : null;
      });
      if (result.status !== "success") {
        const mark = Math.max(above, y(below) - FAILURE_HEIGHT - 1);
        shapes.push(s("rect", { class: result.status === "failure" ? "failure-mark" : "unknown-mark", x: at - 1, y: mark, width: wide + 2, height: FAILURE_HEIGHT }));
      }
      return shapes;
    });
    return [gaps, bars];
  }

  function describe(index) {
    const result = polls[index];
    return [
      ["", exactTime(instants[index])],
      ["Outcome", result.status + (result.status_code ? ` ${result.status_code}` : ""), result.status === "failure" ? "failure" : undefined],
      ["Total", milliseconds(result.response_time_ms)],
      ...PHASES.filter(([field]) => result[field] !== null && result[field] !== undefined).map(([field, name, swatch]) => [name, milliseconds(result[field]), swatch]),
      ...(result.error_code ? [["Error", result.error_code]] : []),
    ];
  }

  return chartFrame({
    label: `Phases of the last ${polls.length} polls`,
    height: HEIGHT,
    since: since - padding,
    until: until + padding,
    top,
    points: instants,
    draw,
    describe,
    legend: [...PHASES.map(([, name, swatch]) => [name, swatch]), [REST[1], REST[2]], ["Failure", "failure"], ["Missed", "missed"]],
    signal,
  });
}
