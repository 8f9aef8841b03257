// Starts the page: who looks, the bar above, the stream of events, the views.

import { get } from "./api.js";
import { changesView } from "./changes_view.js";
import { showHelp } from "./dialogs.js";
import { h, say } from "./dom.js";
import { refreshAgo } from "./format.js";
import { listen, live } from "./live.js";
import { loginView } from "./login_view.js";
import { overviewView } from "./overview_view.js";
import { problemBox } from "./parts.js";
import { editProjectView, newProjectView } from "./project_form.js";
import { projectView } from "./project_view.js";
import { projectsView, focusSearch } from "./projects_view.js";
import { again, currentRoute, go, href, startRouter } from "./router.js";
import { logOut, may, mustLogIn, onChange, refreshSession, session } from "./session.js";
import { startShortcuts } from "./shortcuts.js";
import { workersView } from "./workers_view.js";

const PLACES = [
  { section: "overview", path: "/", title: "Overview" },
  { section: "projects", path: "/projects", title: "Projects" },
  { section: "changes", path: "/changes", title: "Changes" },
  { section: "workers", path: "/workers", title: "Workers" },
];
const LINK_WORDS = { live: "Live", waiting: "Connecting", lost: "Connection lost" };
const LOST_SHOWN_MS = 1_500; // a stream that comes back at once is nobody's concern

const always = new AbortController().signal;
const main = document.getElementById("main");
const places = document.getElementById("places");
const themeButton = document.getElementById("theme-button");

function nowhereView(place) {
  place.append(
    h("h1", {}, "There is nothing here"),
    h("p", {}, "The address leads to no part of this page. ", h("a", { href: href("/projects") }, "All projects")),
  );
}

const VIEWS = [
  { pattern: /^\/$/, view: overviewView, section: "overview" },
  { pattern: /^\/projects$/, view: projectsView, section: "projects" },
  { pattern: /^\/projects\/new$/, view: newProjectView, section: "projects" },
  { pattern: /^\/projects\/(\d{1,19})$/, view: projectView, section: "projects" },
  { pattern: /^\/projects\/(\d{1,19})\/edit$/, view: editProjectView, section: "projects" },
  { pattern: /^\/changes$/, view: changesView, section: "changes" },
  { pattern: /^\/workers$/, view: workersView, section: "workers" },
  { pattern: /^\/nowhere$/, view: nowhereView, section: "" },
];

function showPlaces(section) {
  places.hidden = mustLogIn();
  places.replaceChildren(
    ...PLACES.map((place) =>
      h("a", { href: href(place.path), "aria-current": place.section === section ? "page" : null }, place.title),
    ),
  );
}

function arrived(route, first) {
  showPlaces(route.section);
  const heading = main.querySelector("h1");
  nameDocument();
  // What was shown is gone, and the focus with it: people who hear the page are told where they are.
  if (heading && !first && !main.contains(document.activeElement)) {
    heading.tabIndex = -1;
    heading.focus({ preventScroll: true });
  }
  if (!first) window.scrollTo(0, 0);
}

/** The document is called as its heading. */
function nameDocument() {
  const heading = main.querySelector("h1")?.textContent;
  const name = heading ? `${heading} · ringpoll` : "ringpoll";
  if (document.title !== name) document.title = name;
}

function showWho() {
  const who = document.getElementById("who");
  const { auth, user } = session();
  if (auth === "off" || user === null) {
    who.replaceChildren();
    return;
  }
  const leave = h("button", { type: "button", class: "button button-small", on: { click: leaveSession } }, "Log out");
  who.replaceChildren(h("span", { class: "who-name" }, user), leave);
}

async function leaveSession() {
  try {
    await logOut();
    say("Logged out");
  } catch (error) {
    showTrouble(error);
  }
}

function showSession() {
  showWho();
  if (mustLogIn()) {
    live.stop();
    showPlaces("");
    again(); // leaves the view there was
    main.replaceChildren();
    loginView(main);
    nameDocument();
  } else {
    live.start();
    again();
  }
}

function showTheme(theme) {
  const next = theme === "dark" ? "light" : "dark";
  themeButton.textContent = theme === "dark" ? "☀" : "☾";
  themeButton.setAttribute("aria-label", `Switch to ${next} colours`);
  themeButton.title = `Switch to ${next} colours (t)`;
}

let lostTimer = 0;

function showLink({ state, before }) {
  document.getElementById("link-state").dataset.state = state;
  document.getElementById("link-words").textContent = LINK_WORDS[state];
  const lost = document.getElementById("lost");
  clearTimeout(lostTimer);
  if (state === "lost") {
    lostTimer = setTimeout(() => {
      if (mustLogIn()) return;
      const heard = live.heardAt ? ` What is shown is as of ${new Date(live.heardAt).toLocaleTimeString("en-GB")}.` : "";
      lost.textContent = `Connection to the coordinator lost; trying again.${heard}`;
      lost.hidden = false;
      say("Connection to the coordinator lost; trying again");
    }, LOST_SHOWN_MS);
    if (session().auth !== "off") void refreshAfterLoss();
  } else {
    if (!lost.hidden && state === "live") say("Connected again");
    lost.hidden = true;
    lost.textContent = "";
  }
  if (state === "live" && before === "lost") live.dispatchEvent(new CustomEvent("projects", { detail: { ids: null } }));
}

/** A stream may be refused because the session has ended. */
async function refreshAfterLoss() {
  try {
    const told = await get("/session");
    if ((told.scopes ?? []).length === 0 && !mustLogIn()) await refreshSession();
  } catch (error) {
    if (error.status !== 0) showTrouble(error); // 0: nobody answers, which is told already
  }
}

function showTrouble(error) {
  main.prepend(problemBox(error));
}

document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address behind the # is the view's
  main.focus();
});
document.getElementById("help-button").addEventListener("click", showHelp);
themeButton.addEventListener("click", () => window.pageTheme.toggle());
window.pageTheme.listen(showTheme);
showTheme(window.pageTheme.inForce());
new MutationObserver(nameDocument).observe(main, { childList: true, subtree: true, characterData: true });
setInterval(() => refreshAgo(main), 1_000);
listen("link", always, showLink);

startRouter(main, VIEWS, { onArrival: arrived, isBarred: mustLogIn });
startShortcuts({
  "/": () => {
    if (mustLogIn()) return;
    if (currentRoute().path !== "/projects") go("/projects");
    focusSearch();
  },
  n: () => may("write") && go("/projects/new"),
  "g o": () => go("/"),
  "g p": () => go("/projects"),
  "g c": () => go("/changes"),
  "g w": () => go("/workers"),
  t: () => window.pageTheme.toggle(),
  "?": showHelp,
});

async function start() {
  try {
    onChange(showSession);
    await refreshSession();
  } catch (error) {
    main.replaceChildren(
      h("h1", {}, "Not connected"),
      problemBox(error),
      h("button", { type: "button", class: "button button-main", on: { click: start } }, "Try again"),
    );
    setTimeout(() => main.querySelector("h1")?.textContent === "Not connected" && start(), 3_000);
  }
}

void start();
