// Asking the API.  What goes wrong is a Problem, with the API's own words and the fields they are about.

export const BASE = "/api/v1";
const UNSAFE = new Set(["POST", "PATCH", "DELETE"]);

/** `status` 0: no answer at all.  `errors`: [{field, message}]. */
export class Problem extends Error {
  constructor(status, code, text, errors = [], retryAfter = null) {
    super(text);
    this.name = "Problem";
    this.status = status;
    this.code = code;
    this.errors = errors;
    this.retryAfter = retryAfter;
  }
}

let csrfToken = null;
let sessionEnded = () => {};

/** The token that unsafe requests carry where there is a session, and who hears of its end. */
export function useSession(token, ended) {
  csrfToken = token;
  sessionEnded = ended;
}

export function isAbort(error) {
  return error instanceof DOMException && error.name === "AbortError";
}

function address(path, query) {
  const written = new URLSearchParams();
  for (const [name, value] of Object.entries(query ?? {})) {
    if (value !== null && value !== undefined && value !== "") written.set(name, value);
  }
  const text = written.toString();
  return `${BASE}${path}${text ? `?${text}` : ""}`;
}

async function problemOf(answer) {
  let told = {};
  try {
    told = await answer.json();
  } catch (error) {
    if (isAbort(error)) throw error;
    told = {}; // a proxy's page, or nothing
  }
  const text = told.detail || told.message || told.title || `the coordinator answered ${answer.status}`;
  const errors = Array.isArray(told.errors) ? told.errors : [];
  return new Problem(answer.status, told.code ?? "", text, errors, answer.headers.get("Retry-After"));
}

/** One request; {data, etag}.  Throws a Problem, or the AbortError of its signal. */
export async function ask(method, path, { query, body, etag, signal } = {}) {
  const headers = { Accept: "application/json" };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (etag) headers["If-Match"] = etag;
  if (UNSAFE.has(method) && csrfToken) headers["X-CSRF-Token"] = csrfToken;
  let answer;
  try {
    answer = await fetch(address(path, query), {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      credentials: "same-origin",
      cache: "no-store",
      signal,
    });
  } catch (error) {
    if (isAbort(error)) throw error;
    throw new Problem(0, "unreachable", "the coordinator does not answer");
  }
  if (!answer.ok) {
    const problem = await problemOf(answer);
    if (problem.status === 401 && path !== "/session") sessionEnded();
    throw problem;
  }
  const data = answer.status === 204 ? null : await answer.json();
  return { data, etag: answer.headers.get("ETag") };
}

export async function get(path, query, signal) {
  return (await ask("GET", path, { query, signal })).data;
}
