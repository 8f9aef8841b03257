// Who looks at the page, and what they may do.  Where no authentication is required, everything.

import { ask, useSession } from "./api.js";

const EVERYTHING = ["read", "write", "admin"];
let now = { auth: "off", user: null, scopes: EVERYTHING };
let changed = () => {};

export function onChange(listener) {
  changed = listener;
}

export function session() {
  return now;
}

export function may(scope) {
  return now.auth === "off" || now.scopes.includes(scope);
}

export function mustLogIn() {
  return now.auth !== "off" && now.scopes.length === 0;
}

function take(told) {
  // Scopes hold those below them, whether the answer spells them out or not.
  const highest = Math.max(-1, ...(told.scopes ?? []).map((scope) => EVERYTHING.indexOf(scope)));
  now = { auth: told.auth, user: told.user ?? null, scopes: EVERYTHING.slice(0, highest + 1) };
  useSession(told.csrf_token ?? null, ended);
  changed();
}

function ended() {
  if (now.auth === "off" || now.scopes.length > 0) take({ auth: "required", user: null, scopes: [] });
}

export async function refreshSession() {
  take((await ask("GET", "/session")).data);
}

export async function logIn(user, password) {
  await ask("POST", "/session", { body: { user, password } });
  await refreshSession();
}

export async function logOut() {
  await ask("DELETE", "/session");
  await refreshSession();
}
