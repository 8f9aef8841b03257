// Elements out of plain values.  Text goes in as text nodes and never as markup, so that what people call their
// projects stays a name.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") {
      for (const [type, listener] of Object.entries(value)) element.addEventListener(type, listener);
    } else if (name === "data") {
      for (const [key, text] of Object.entries(value)) if (text !== null && text !== undefined) element.dataset[key] = text;
    } else {
      element.setAttribute(name, value === true ? "" : String(value));
    }
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function s(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

/** A link to elsewhere, where the address is one that may be opened; else its text. */
export function outsideLink(address, attributes = {}) {
  let scheme = "";
  try {
    scheme = new URL(address).protocol;
  } catch {
    scheme = "";
  }
  if (scheme !== "http:" && scheme !== "https:") return h("span", attributes, address);
  return h("a", { ...attributes, href: address, target: "_blank", rel: "noopener noreferrer" }, address);
}

let numbered = 0;

/** An id that no other element of the page has. */
export function freshId(word) {
  numbered += 1;
  return `${word}-${numbered}`;
}

/** Announce once, politely, to people who don't see the page. */
export function say(text) {
  const place = document.getElementById("spoken");
  place.textContent = "";
  // A region that gets the same text twice stays silent, so it is emptied in one frame and filled in the next.
  requestAnimationFrame(() => {
    place.textContent = text;
  });
}

/** Calls `work` when nothing has asked again for so many milliseconds; `cancel` forgets it. */
export function debounced(work, delay) {
  let timer = 0;
  const ask = (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...values), delay);
  };
  ask.cancel = () => clearTimeout(timer);
  return ask;
}

/** Runs `work` every so many milliseconds until the signal is aborted. */
export function every(milliseconds, signal, work) {
  const timer = setInterval(work, milliseconds);
  signal.addEventListener("abort", () => clearInterval(timer));
}
