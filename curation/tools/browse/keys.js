// Keys for what links and buttons do already. Nothing here is needed.
"use strict";

const byId = (id) => document.getElementById(id);
const stops = () => [...document.querySelectorAll("main .grid a, main .chips a, main .vocabulary tbody tr")];

function step(by) {
  const all = stops();
  const at = all.findIndex((stop) => stop === document.activeElement || stop.contains(document.activeElement));
  const next = all[at < 0 ? (by > 0 ? 0 : all.length - 1) : Math.min(Math.max(at + by, 0), all.length - 1)];
  if (next) { next.focus(); next.scrollIntoView({ block: "nearest" }); }
}

function follow(rel) {
  const link = document.querySelector(`main a[rel=${rel}]`);
  if (link) link.click();
}

function change(action) {
  const row = document.activeElement.closest(".vocabulary tbody tr");
  if (!row) return;
  if (action === "rename") row.querySelector("input[name=to]").focus();
  else { const button = row.querySelector(`button[value=${action}]`); if (button) button.click(); }
}

const actions = {
  "/": () => byId("q").select(),
  "j": () => step(1), "ArrowRight": () => step(1),
  "k": () => step(-1), "ArrowLeft": () => step(-1),
  "n": () => follow("next"), "p": () => follow("prev"),
  "h": () => document.querySelector("header .name a").click(),
  "y": () => change("keep"), "x": () => change("drop"), "r": () => change("rename"), "u": () => change("undo"),
  "?": () => byId("keys").showModal(),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("keys").open) return;
  if (event.target.matches("input, select, textarea")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const action = Object.hasOwn(actions, event.key) && actions[event.key];
  if (action) { event.preventDefault(); action(); }
});

byId("help").addEventListener("click", () => byId("keys").showModal());

// Back from a change of the vocabulary: to the row that was changed.
const changed = new URLSearchParams(location.hash.slice(1)).get("c");
if (changed !== null) {
  const row = [...document.querySelectorAll(".vocabulary tbody tr")].find((row) => row.dataset.name === changed);
  if (row) { row.focus(); row.scrollIntoView({ block: "center" }); }
}
