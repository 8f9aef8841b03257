// What the charts of a project share: a drawing as wide as there is room, axes, and a reading for one point in time,
// by pointer or by the arrow keys.
//
// For screen readers a chart is a slider over its points: each step speaks the values of that point.

import { h, s } from "./dom.js";
import { axisTime, milliseconds } from "./format.js";

const MARGIN = { top: 10, right: 12, bottom: 24, left: 54 };
const TIME_STEPS = [1, 5, 15, 30, 60, 300, 900, 1_800, 3_600, 10_800, 21_600, 43_200, 86_400, 172_800, 604_800, 1_209_600].map((seconds) => seconds * 1_000);
const NARROW = 480;

/** Round values from 0 that cover `top`, four or five of them. */
export function niceTicks(top, wanted = 4) {
  if (!(top > 0)) return [0, 1];
  const raw = top / wanted;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((each) => each >= raw);
  const ticks = [];
  for (let value = 0; ; value += step) {
    ticks.push(Number(value.toPrecision(12)));
    if (value >= top) return ticks;
  }
}

/** Instants on the viewer's clock between two others, at most `most`. */
export function timeTicks(since, until, most) {
  const span = until - since;
  const step = TIME_STEPS.find((each) => span / each <= most) ?? TIME_STEPS.at(-1) * Math.ceil(span / TIME_STEPS.at(-1) / most);
  const shift = new Date(since).getTimezoneOffset() * 60_000;
  const ticks = [];
  for (let at = Math.ceil((since - shift) / step) * step + shift; at <= until; at += step) ticks.push(at);
  return ticks;
}

/**
 * `draw(scales)` gives the shapes; `points` are instants, in order; `describe(index)` gives [[name, value], ...], the
 * first of which is the time.
 */
export function chartFrame({ label, height, since, until, top, points, draw, describe, legend, signal }) {
  const svg = s("svg", { class: "chart-drawing", "aria-hidden": "true", focusable: "false" });
  const reading = h("div", { class: "chart-reading", "aria-hidden": "true" });
  reading.hidden = true;
  const surface = h(
    "div",
    {
      class: "chart-surface",
      tabindex: points.length > 0 ? "0" : null,
      role: "slider",
      "aria-label": `${label}; arrow keys walk through time`,
      "aria-valuemin": "0",
      "aria-valuemax": String(Math.max(0, points.length - 1)),
      "aria-valuenow": String(Math.max(0, points.length - 1)),
    },
    svg,
    reading,
  );
  let scales = null;
  let chosen = null;
  const cursor = s("line", { class: "chart-cursor" });

  function speak(index) {
    surface.setAttribute("aria-valuenow", String(index));
    surface.setAttribute("aria-valuetext", describe(index).map(([name, value]) => `${name} ${value}`.trim()).join(", "));
  }

  function choose(index) {
    chosen = index;
    if (index === null || scales === null) {
      cursor.remove();
      reading.hidden = true;
      return;
    }
    const x = scales.x(points[index]);
    for (const [name, value] of Object.entries({ x1: x, x2: x, y1: MARGIN.top, y2: height - MARGIN.bottom })) cursor.setAttribute(name, value);
    svg.append(cursor);
    const [[, at], ...values] = describe(index);
    reading.replaceChildren(
      h("strong", {}, at),
      h("dl", {}, values.map(([name, value, swatch]) => h("div", {}, h("dt", { data: { swatch } }, name), h("dd", {}, value)))),
    );
    reading.hidden = false;
    const room = surface.clientWidth;
    const wide = reading.offsetWidth;
    reading.style.left = `${Math.min(Math.max(4, x + 14 + wide > room ? x - wide - 14 : x + 14), Math.max(4, room - wide - 4))}px`;
    speak(index);
  }

  function nearest(x) {
    let best = null;
    points.forEach((at, index) => {
      const away = Math.abs(scales.x(at) - x);
      if (best === null || away < best.away) best = { index, away };
    });
    return best?.index ?? null;
  }

  function render() {
    const width = Math.max(240, surface.clientWidth);
    const span = Math.max(1, until - since);
    const ticks = niceTicks(top);
    const inner = { width: width - MARGIN.left - MARGIN.right, height: height - MARGIN.top - MARGIN.bottom };
    scales = {
      x: (at) => MARGIN.left + ((at - since) / span) * inner.width,
      y: (value) => MARGIN.top + inner.height - (Math.min(value, ticks.at(-1)) / ticks.at(-1)) * inner.height,
      left: MARGIN.left,
      right: width - MARGIN.right,
      top: MARGIN.top,
      bottom: MARGIN.top + inner.height,
      width: inner.width,
    };
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("width", width);
    svg.setAttribute("height", height);
    const axes = s("g", { class: "axis" });
    for (const value of ticks) {
      const y = scales.y(value);
      axes.append(
        s("line", { class: "grid", x1: scales.left, x2: scales.right, y1: y, y2: y }),
        s("text", { x: scales.left - 8, y: y + 4, "text-anchor": "end" }, milliseconds(value)),
      );
    }
    for (const at of timeTicks(since, until, width < NARROW ? 4 : 8)) {
      const x = scales.x(at);
      const anchor = x > scales.right - 20 ? "end" : x < scales.left + 20 ? "start" : "middle";
      axes.append(
        s("line", { class: "mark", x1: x, x2: x, y1: scales.bottom, y2: scales.bottom + 4 }),
        s("text", { x, y: height - 6, "text-anchor": anchor }, axisTime(at, span)),
      );
    }
    svg.replaceChildren(axes, ...draw(scales).flat(Infinity).filter(Boolean));
    if (chosen !== null) choose(chosen);
  }

  surface.addEventListener("pointermove", (event) => choose(nearest(event.clientX - surface.getBoundingClientRect().left)));
  surface.addEventListener("pointerleave", () => choose(document.activeElement === surface ? chosen : null));
  surface.addEventListener("focus", () => {
    if (surface.matches(":focus-visible") && points.length > 0) choose(chosen ?? points.length - 1);
  });
  surface.addEventListener("blur", () => choose(null));
  surface.addEventListener("keydown", (event) => {
    if (points.length === 0) return;
    const last = points.length - 1;
    const from = chosen ?? last;
    const page = Math.max(1, Math.round(points.length / 10));
    const targets = { ArrowLeft: from - 1, ArrowDown: from - 1, ArrowRight: from + 1, ArrowUp: from + 1, Home: 0, End: last, PageDown: from - page, PageUp: from + page };
    if (event.key === "Escape") choose(null);
    else if (event.key in targets) choose(Math.min(last, Math.max(0, targets[event.key])));
    else return;
    event.preventDefault();
  });

  const watcher = new ResizeObserver(render);
  watcher.observe(surface);
  signal.addEventListener("abort", () => watcher.disconnect());
  if (points.length > 0) speak(points.length - 1);
  return h(
    "figure",
    { class: "chart" },
    surface,
    legend && h("figcaption", {}, h("ul", { class: "legend" }, legend.map(([text, swatch]) => h("li", { data: { swatch } }, text)))),
  );
}
