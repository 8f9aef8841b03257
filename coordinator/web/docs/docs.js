// The OpenAPI document as a page on which each operation can be tried.  All text is set as text, never as markup.

const METHODS = ["get", "post", "patch", "delete"];
const ANSWER_CHARS_MAX = 200_000;

let api;
let csrfToken = null;

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

function resolved(schema) {
  const name = schema?.$ref?.split("/").at(-1);
  return name ? api.components.schemas[name] : schema;
}

function pretty(value) {
  return JSON.stringify(value, null, 2);
}

function describe(schema) {
  const { type, enum: values, minimum, maximum, pattern, description } = schema;
  const bounds = [minimum !== undefined && `from ${minimum}`, maximum !== undefined && `to ${maximum}`];
  return [description, values ? values.join(" | ") : type, ...bounds, pattern && `like ${pattern}`]
    .filter(Boolean)
    .join(", ");
}

function fieldFor(parameter) {
  const schema = resolved(parameter.schema);
  const choices = schema.enum ?? (schema.type === "boolean" ? ["true", "false"] : null);
  const shared = { name: parameter.name, "data-in": parameter.in, required: parameter.required };
  const field = choices
    ? make("select", shared, make("option", { value: "" }, ""), ...choices.map((each) => make("option", {}, `${each}`)))
    : make("input", { ...shared, placeholder: schema.default ?? undefined, autocomplete: "off" });
  return make(
    "label",
    {},
    make("span", {}, make("code", {}, parameter.name), parameter.required ? " (required)" : ""),
    field,
    make("span", { class: "quiet" }, parameter.description ?? describe(schema)),
  );
}

function urlOf(path, form) {
  const query = new URLSearchParams();
  const headers = {};
  let filled = path;
  for (const field of form.querySelectorAll("[data-in]")) {
    if (field.value === "") continue;
    if (field.dataset.in === "path") filled = filled.replace(`{${field.name}}`, encodeURIComponent(field.value));
    else if (field.dataset.in === "header") headers[field.name] = field.value;
    else query.append(field.name, field.value);
  }
  const text = query.toString();
  return [text ? `${filled}?${text}` : filled, headers];
}

async function send(method, path, form, output) {
  const [url, headers] = urlOf(path, form);
  const body = form.querySelector("textarea")?.value;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const token = document.getElementById("token").value.trim();
  if (token) headers.Authorization = `Bearer ${token}`;
  else if (csrfToken) headers["X-CSRF-Token"] = csrfToken;
  output.replaceChildren(make("p", { role: "status" }, "Waiting for the answer"));
  const began = performance.now();
  try {
    const answer = await fetch(url, { method: method.toUpperCase(), headers, body });
    const streams = answer.headers.get("Content-Type")?.startsWith("text/event-stream");
    const text = streams ? await firstEvents(answer) : await answer.text();
    show(output, answer, text, performance.now() - began);
  } catch (error) {
    output.replaceChildren(make("p", { class: "bad", role: "status" }, `No answer: ${error.message}`));
  }
}

async function firstEvents(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  while (text.length < 500) {
    const { done, value } = await reader.read();
    if (done) break;
    text += value;
  }
  await reader.cancel();
  return text;
}

function show(output, answer, text, took) {
  let content = text;
  try {
    content = pretty(JSON.parse(text));
  } catch {
    content = text;
  }
  const headers = ["Content-Type", "ETag", "Location", "Retry-After"]
    .filter((name) => answer.headers.has(name))
    .map((name) => `${name}: ${answer.headers.get(name)}`);
  output.replaceChildren(
    make(
      "p",
      { role: "status", class: answer.ok ? "good" : "bad" },
      `${answer.status} ${answer.statusText} in ${took.toFixed(0)} ms`,
    ),
    make("pre", { tabindex: "0", "aria-label": "Headers" }, headers.join("\n")),
  );
  if (content) {
    output.append(make("pre", { tabindex: "0", "aria-label": "Body" }, content.slice(0, ANSWER_CHARS_MAX)));
  }
}

function schemaOf(title, schema) {
  const box = make("details", {}, make("summary", {}, title));
  box.addEventListener(
    "toggle",
    () => box.append(make("div", {}, make("pre", { tabindex: "0", "aria-label": title }, pretty(resolved(schema))))),
    { once: true },
  );
  return box;
}

function operationOf(method, path, operation) {
  const output = make("div", {});
  const form = make("form", {});
  if (operation.parameters.length) {
    form.append(make("h3", {}, "Parameters"), make("div", { class: "parameters" }, ...operation.parameters.map(fieldFor)));
  }
  const media = operation.requestBody?.content["application/json"];
  if (media) {
    const text = make("textarea", { rows: "6", "aria-label": "Body", spellcheck: "false" });
    text.value = pretty(media.example ?? {});
    form.append(make("h3", {}, "Body"), text, schemaOf("What the body may have", media.schema));
  }
  form.append(make("p", {}, make("button", { type: "submit" }, "Send")), output);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send(method, path, form, output);
  });
  const content = make("div", {}, make("p", { class: "quiet" }, operation.description), form);
  for (const [status, answer] of Object.entries(operation.responses)) {
    const found = answer.$ref ? api.components.responses[answer.$ref.split("/").at(-1)] : answer;
    const schema = Object.values(found.content ?? {})[0]?.schema;
    const title = `${status}: ${found.description}`;
    content.append(schema ? schemaOf(title, schema) : make("p", {}, title));
  }
  const name = make("span", { class: "path" }, path);
  const summary = make(
    "summary",
    {},
    make("span", { class: "method" }, method.toUpperCase()),
    name,
    " ",
    make("span", { class: "quiet" }, operation.summary),
  );
  const box = make("details", { id: operation.operationId, class: "operation" }, summary, content);
  box.dataset.words = `${method} ${path} ${operation.summary} ${operation.operationId}`.toLowerCase();
  return box;
}

function find(text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  for (const box of document.querySelectorAll(".operation")) {
    box.hidden = !words.every((word) => box.dataset.words.includes(word));
  }
}

async function showSession() {
  const status = document.getElementById("session");
  const answer = await fetch("session");
  if (!answer.ok) return;
  const session = await answer.json();
  csrfToken = session.csrf_token;
  status.textContent =
    session.auth === "off"
      ? "No token is needed here."
      : session.user
        ? `Logged in as ${session.user}.`
        : "A token is needed here, or log in on the page.";
}

async function start() {
  const answer = await fetch("openapi.json");
  api = await answer.json();
  document.getElementById("version").textContent = api.info.version;
  document.getElementById("description").textContent = api.info.description;
  const groups = new Map();
  for (const [path, item] of Object.entries(api.paths)) {
    for (const method of METHODS.filter((each) => item[each])) {
      const tag = item[method].tags[0];
      if (!groups.has(tag)) groups.set(tag, make("section", {}, make("h2", {}, tag)));
      groups.get(tag).append(operationOf(method, path, item[method]));
    }
  }
  document.getElementById("operations").replaceChildren(...groups.values());
  document.getElementById("find").addEventListener("input", (event) => find(event.target.value));
  document.getElementById("access").addEventListener("submit", (event) => event.preventDefault());
  const wanted = document.getElementById(location.hash.slice(1));
  if (wanted) wanted.open = true;
  await showSession();
}

start().catch((error) => {
  document.getElementById("operations").replaceChildren(make("p", { class: "bad" }, `Not loaded: ${error.message}`));
});
