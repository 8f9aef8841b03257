// Adding a project and changing one.  The API decides what is right; its words are shown at the field they are about,
// and the focus goes to the first of them.

import { ask, isAbort } from "./api.js";
import { assertionRows } from "./assertion_rows.js";
import { freshId, h, say } from "./dom.js";
import { plural } from "./format.js";
import { problemBox, waitingBox } from "./parts.js";
import { FIELDS, GROUPS, headerLines, headersOf } from "./project_fields.js";
import { go, href } from "./router.js";
import { may } from "./session.js";

class Wrong extends Error {}

/** One field: its element, and how it is read and marked. */
function entry(field, present) {
  const id = freshId(`field-${field.name.replaceAll("_", "-")}`);
  const hintId = field.hint ? `${id}-hint` : null;
  const errorId = `${id}-error`;
  const describedBy = [hintId, errorId].filter(Boolean).join(" ");
  const error = h("p", { class: "field-error", id: errorId });
  const shared = { id, name: field.name, "aria-describedby": describedBy, "aria-required": field.required ? "true" : null };
  const value = present ?? field.usual ?? null;
  let input;
  let control;
  let read;

  switch (field.kind) {
    case "flag":
      input = h("input", { ...shared, type: "checkbox" });
      input.checked = Boolean(value);
      read = () => input.checked;
      return finish(h("div", { class: "field field-flag" }, h("label", { class: "check", for: id }, input, h("span", {}, field.title)), error));
    case "choice":
      input = h("select", shared, field.choices.map(([each, text]) => h("option", { value: each }, text)));
      input.value = value === null ? "" : String(value);
      read = () => (input.value === "" ? null : field.numeric ? Number(input.value) : input.value);
      break;
    case "number":
      // Not type=number: what is no number would be read as nothing, and the wheel would change it.
      input = h("input", { ...shared, type: "text", inputmode: "numeric", autocomplete: "off" });
      input.value = value === null ? "" : String(value);
      read = () => {
        const text = input.value.trim();
        if (text === "") {
          if (field.required) throw new Wrong("is needed");
          return field.empty;
        }
        if (!/^-?\d+$/.test(text)) throw new Wrong("must be a whole number");
        const number = Number(text);
        if (number < (field.least ?? -Infinity)) throw new Wrong(`must be at least ${field.least}`);
        if (number > (field.greatest ?? Infinity)) throw new Wrong(`must be at most ${field.greatest}`);
        return number;
      };
      break;
    case "lines":
    case "area":
      input = h("textarea", { ...shared, rows: "3", spellcheck: "false", autocomplete: "off" });
      input.value = field.kind === "lines" ? headerLines(value) : (value ?? "");
      read = () => {
        if (field.kind === "area") return input.value === "" ? null : input.value;
        try {
          return headersOf(input.value);
        } catch (problem) {
          throw new Wrong(problem.message);
        }
      };
      break;
    case "assertions": {
      const rows = assertionRows(value, errorId);
      input = rows.button;
      read = () => {
        const { value: written, wrong, input: at } = rows.read();
        if (wrong) {
          input = at;
          throw new Wrong(wrong);
        }
        input = rows.button;
        return written;
      };
      return finish(h("fieldset", { class: "field field-wide" }, h("legend", {}, field.title), rows.element, error));
    }
    default:
      input = h("input", { ...shared, type: field.kind === "url" ? "url" : "text", autocomplete: "off", autocapitalize: "none", spellcheck: "false", maxlength: field.most ?? null });
      input.value = value ?? "";
      if (field.suggestions) {
        const listId = `${id}-list`;
        input.setAttribute("list", listId);
        control = [input, h("datalist", { id: listId }, field.suggestions.map((text) => h("option", { value: text })))];
      }
      read = () => {
        const text = field.kind === "secret" ? input.value : input.value.trim();
        if (text === "" && field.required) throw new Wrong("is needed");
        return text === "" ? (field.empty ?? "") : text;
      };
  }
  return finish(
    h(
      "div",
      { class: `field${field.wide ? " field-wide" : ""}` },
      h("label", { for: id }, field.title, field.required ? h("span", { class: "needed", "aria-hidden": "true" }, " *") : "", field.unit ? h("span", { class: "unit" }, ` in ${field.unit}`) : ""),
      control ?? input,
      hintId && h("p", { class: "hint", id: hintId }, field.hint),
      error,
    ),
  );

  function finish(element) {
    return {
      field,
      element,
      read: () => read(),
      mark(text) {
        error.textContent = text;
        if (text) input.setAttribute("aria-invalid", "true");
        else element.querySelectorAll("[aria-invalid]").forEach((each) => each.removeAttribute("aria-invalid"));
      },
      isMarked: () => error.textContent !== "",
      focus() {
        element.closest("details")?.setAttribute("open", "");
        input.focus();
      },
    };
  }
}

function same(one, other) {
  return JSON.stringify(one ?? null) === JSON.stringify(other ?? null);
}

/** `project` null: a new one. */
function projectForm(place, { project, etag, signal }) {
  const entries = FIELDS.map((field) => entry(field, project?.[field.name]));
  const initial = new Map(entries.map(({ field, read }) => [field.name, readQuietly(read)]));
  const trouble = h("div", { class: "form-trouble" });
  const submitButton = h("button", { type: "submit", class: "button button-main" }, project ? "Save" : "Add");
  const back = project ? href(`/projects/${project.id}`) : href("/projects");

  function group({ key, title, folded }) {
    const fields = entries.filter(({ field }) => field.group === key);
    const content = h("div", { class: "fields" }, fields.map(({ element }) => element));
    if (!folded) return h("fieldset", { class: "card group" }, h("legend", {}, title), content);
    const used = project && fields.some(({ field }) => !same(project[field.name], field.usual ?? null));
    return h("details", { class: "card group", open: Boolean(used) }, h("summary", {}, title), content);
  }

  const form = h(
    "form",
    { class: "project-form", novalidate: true, on: { submit } },
    trouble,
    GROUPS.map(group),
    h("div", { class: "form-actions" }, submitButton, h("a", { class: "button", href: back }, "Cancel")),
  );

  /** What was written, or null when a field is wrong; only what differs from what the form began with. */
  function collect() {
    const body = {};
    for (const each of entries) {
      each.mark("");
      try {
        const value = each.read();
        // What is masked comes back as it was shown, and so stays out.
        if (!same(value, initial.get(each.field.name)) || (!project && each.field.name === "url")) body[each.field.name] = value;
      } catch (error) {
        if (!(error instanceof Wrong)) throw error;
        each.mark(`${each.field.title} ${error.message}`);
      }
    }
    return entries.some((each) => each.isMarked()) ? null : body;
  }

  function showWrong(rest = []) {
    const wrong = entries.filter((each) => each.isMarked());
    const words = wrong.length > 0 ? [`${plural(wrong.length, "field")} to put right`, ...rest] : rest;
    trouble.replaceChildren(h("div", { class: "problem", role: "alert" }, words.map((text) => h("p", {}, text))));
    if (wrong.length > 0) wrong[0].focus();
    else trouble.scrollIntoView({ block: "nearest" });
  }

  function showProblem(error) {
    if (error.status === 412) {
      trouble.replaceChildren(
        h(
          "div",
          { class: "problem", role: "alert", tabindex: "-1" },
          h("p", {}, "Somebody else has changed this project since you opened it. Nothing of yours was saved."),
          h("p", {}, h("button", { type: "button", class: "button button-small", on: { click: () => go(`/projects/${project.id}`) } }, "See what it is now"), " ", h("button", { type: "button", class: "button button-small", on: { click: overwrite } }, "Save mine over it")),
        ),
      );
      trouble.firstChild.focus();
      return;
    }
    const rest = [];
    for (const { field: name, message } of error.errors ?? []) {
      const place = String(name ?? "").replace(/^\//, "").split(/[./[]/)[0];
      const each = entries.find(({ field }) => field.name === place);
      if (each) each.mark(message);
      else rest.push(name ? `${name}: ${message}` : message);
    }
    if ((error.errors ?? []).length === 0) rest.push(error.message);
    showWrong(rest);
  }

  /** After a conflict: the same changes, on top of what the project is now. */
  async function overwrite() {
    try {
      etag = (await ask("GET", `/projects/${project.id}`, { signal })).etag;
    } catch (error) {
      if (!isAbort(error)) showProblem(error);
      return;
    }
    form.requestSubmit();
  }

  async function submit(event) {
    event.preventDefault();
    trouble.replaceChildren();
    const body = collect();
    if (body === null) {
      showWrong();
      return;
    }
    submitButton.disabled = true;
    try {
      if (project === null) {
        const { data } = await ask("POST", "/projects", { body, signal });
        say("Added; its first poll is on its way");
        go(`/projects/${data.id}`, {}, { replace: true });
      } else {
        if (Object.keys(body).length > 0) await ask("PATCH", `/projects/${project.id}`, { body, etag, signal });
        say(Object.keys(body).length > 0 ? "Saved" : "Nothing was changed");
        go(`/projects/${project.id}`, {}, { replace: true });
      }
    } catch (error) {
      if (!isAbort(error)) showProblem(error);
    } finally {
      submitButton.disabled = false;
    }
  }

  place.append(form);
  entries[0].focus();
}

/** What a field gives before anybody touched it; a required one that is empty gives nothing. */
function readQuietly(read) {
  try {
    return read();
  } catch (error) {
    if (error instanceof Wrong) return null;
    throw error;
  }
}

function refuse(place) {
  place.append(h("h1", {}, "Not allowed"), h("p", {}, "Your session may look, and change nothing. ", h("a", { href: href("/projects") }, "All projects")));
}

export function newProjectView(place, _route, signal) {
  if (!may("write")) {
    refuse(place);
    return;
  }
  place.append(h("p", { class: "crumbs" }, h("a", { href: href("/projects") }, "Projects")), h("h1", {}, "Add a project"));
  projectForm(place, { project: null, etag: null, signal });
}

export function editProjectView(place, route, signal) {
  if (!may("write")) {
    refuse(place);
    return;
  }
  const [id] = route.parameters;
  const title = h("h1", {}, `Edit project ${id}`);
  const waiting = waitingBox();
  place.append(h("p", { class: "crumbs" }, h("a", { href: href("/projects") }, "Projects"), " / ", h("a", { href: href(`/projects/${id}`) }, `Project ${id}`)), title, waiting);

  async function load() {
    try {
      const { data, etag } = await ask("GET", `/projects/${id}`, { signal });
      waiting.remove();
      title.textContent = `Edit ${data.name || data.url}`;
      projectForm(place, { project: data, etag, signal });
    } catch (error) {
      if (!isAbort(error)) waiting.replaceWith(problemBox(error.status === 404 ? { message: `There is no project ${id}; it may have been removed.` } : error));
    }
  }

  void load();
}
