// What pages can do only with a script: be of now, and count down. Everything else works without this file.
"use strict";

const state = document.getElementById("live-state");

// Parts of the page that follow what happens; one that somebody is typing in, or has opened, waits.
async function refresh() {
  const answer = await fetch(location.href, { headers: { "X-Requested-With": "live" }, redirect: "manual" });
  if (answer.type === "opaqueredirect") { location.reload(); return; }
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const part of document.querySelectorAll("[data-live]")) {
    const other = fresh.getElementById(part.id);
    if (other === null) { part.replaceChildren(); continue; }
    if (busy(part)) continue;
    const opened = [...part.querySelectorAll("details")].map((d) => d.open);
    if (other.innerHTML !== part.innerHTML) {
      part.replaceChildren(...other.childNodes);
      part.querySelectorAll("details").forEach((d, i) => { d.open = opened[i] ?? false; });
    }
    other.remove();
  }
  // What was not there when the page was made (a question, new verbs) needs the page as a whole.
  const added = [...fresh.querySelectorAll("[data-live]")].some((part) => document.getElementById(part.id) === null);
  if (added && !busy(document.body)) location.reload();
  document.title = fresh.title;
  tick();
}

function busy(part) {
  const at = document.activeElement;
  if (at !== null && part.contains(at) && at.matches("input:not([type=hidden]), textarea, select")) return true;
  return [...part.querySelectorAll("input[name=reason], input[name=ticket]")].some((field) => field.value !== "");
}

let waiting = false;
let again = false;
async function changed() {
  if (waiting) { again = true; return; }
  waiting = true;
  try {
    await refresh();
    say("live");
  } catch (error) {
    say("not up to date");
  } finally {
    // At most one look a second, however much happens.
    setTimeout(() => { waiting = false; if (again) { again = false; changed(); } }, 1000);
  }
}

function say(text) { if (state !== null && state.textContent !== text) state.textContent = text; }

function listen(url) {
  const source = new EventSource(url);
  let first = true;
  source.addEventListener("changed", () => { if (first) { first = false; say("live"); } else { changed(); } });
  source.addEventListener("full", () => { source.close(); say("not live: too many listen"); });
  source.onerror = () => { say("not up to date"); first = false; };
  addEventListener("pagehide", () => source.close());
}

function tick() {
  for (const time of document.querySelectorAll("time[data-until]")) {
    const left = Math.round((Date.parse(time.dateTime) - Date.now()) / 1000);
    time.dataset.said ??= time.textContent;
    const text = left <= 0 ? time.dataset.said : `${time.dataset.said} (in ${left >= 3600 ? `${Math.floor(left / 3600)} h ${Math.floor(left % 3600 / 60)} min` : left >= 60 ? `${Math.floor(left / 60)} min ${left % 60} s` : `${left} s`})`;
    if (time.textContent !== text) time.textContent = text;
  }
}

// A second click must not be a second deed.
addEventListener("submit", (event) => {
  if (event.defaultPrevented) return;
  for (const button of event.target.querySelectorAll("button")) setTimeout(() => { button.disabled = true; }, 0);
});
addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });

for (const time of document.querySelectorAll("time[datetime]")) {
  const at = new Date(time.dateTime);
  if (!Number.isNaN(at.valueOf())) time.title = `${at.toLocaleString()} where you are`;
}
const select = document.querySelector(".filters select");
if (select !== null) select.addEventListener("change", () => select.form.requestSubmit());
// What another server must be asked for comes after the page.
for (const place of document.querySelectorAll("[data-load]")) {
  fetch(place.dataset.load).then(async (answer) => {
    if (!answer.ok || answer.redirected) return;
    const found = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById(place.id);
    if (found !== null) place.replaceChildren(...found.childNodes);
  }).catch(() => {});
}
if (document.body.dataset.liveFrom !== undefined) listen(document.body.dataset.liveFrom);
tick();
setInterval(tick, 1000);
