// The list of problems: only the rows in sight exist as elements.
"use strict";

const HEIGHT = 54; // of a row, in pixels, as in style.css
const BEYOND = 6; // rows kept above and below those in sight

function showList() {
  const box = $("rows"), sheet = $("sheet");
  sheet.style.height = `${state.seen.length * HEIGHT}px`;
  const first = Math.max(0, Math.floor(box.scrollTop / HEIGHT) - BEYOND);
  const last = Math.min(state.seen.length, Math.ceil((box.scrollTop + box.clientHeight) / HEIGHT) + BEYOND);
  box.setAttribute("aria-activedescendant", placeOf(state.at) < 0 ? "" : "current");
  sheet.replaceChildren(...state.seen.slice(first, last).map((group, i) => listRow(group, first + i)));
  if (!state.seen.length)
    sheet.replaceChildren(el("p.nothing", null, state.groups.length ? "No problem passes the filters." : "No rows yet."));
}

function listRow(group, place) {
  const open = group.key === state.at;
  const side = group.per.find(Boolean);
  const tokens = group.per.filter(Boolean).map((s) => count(s.tokens)).join(" · ");
  const answers = group.per.filter(Boolean).map((s) => (s.answer === "" ? "no answer" : s.answer));
  const row = el(
    "div.row",
    { role: "option", "aria-selected": String(open), id: open ? "current" : null, onclick: () => go(place, true) },
    el("span.marks", null, state.shown.map((_, r) => (group.per[r] ? mark(group.per[r].kinds) : el("span.mark.empty", { title: "not in this run" }, " ")))),
    el("span.said", null,
      el("span.prompt", null, visible(group.prompt) || " "),
      el("span.below", null,
        el("span.id", null, group.step == null ? visible(group.problem) : `step ${group.step} · ${visible(group.problem)}`),
        group.step == null
          ? [...new Set(answers)].map((a) => el(a === "no answer" ? "span.answer.none" : "span.answer", null, visible(a)))
          : isNumber(side.reward) && el("span.answer", null, `reward ${figure(side.reward)}`))),
    el("span.tokens", { title: label("mean_tokens_per_search") }, tokens));
  row.style.top = `${place * HEIGHT}px`;
  return row;
}

function showCount() {
  const all = state.groups.length, seen = state.seen.length;
  const what = isTraining() ? "rollout" : "problem";
  const filtered = state.verdict || state.stop || state.change || state.q || state.in;
  $("count").replaceChildren(
    seen === all ? plural(all, what) : `${count(seen)} of ${plural(all, what)}`,
    filtered ? el("button.link", { onclick: clearFilters }, "clear filters") : "");
}

// Open the problem at a place of the list; with `enter` a narrow screen shows it in place of the list.
function go(place, enter = false) {
  if (!state.seen.length) return;
  place = Math.max(0, Math.min(state.seen.length - 1, place));
  const group = state.seen[place];
  if (group.key !== state.at) { state.at = group.key; state.sample = 0; }
  bring(place);
  if (enter) read();
  showList();
  showDetail();
  remember();
}

// Scroll a row into sight.
function bring(place) {
  const box = $("rows"), top = place * HEIGHT;
  if (place < 0) return;
  if (top < box.scrollTop) box.scrollTop = top;
  else if (top + HEIGHT > box.scrollTop + box.clientHeight) box.scrollTop = top + HEIGHT - box.clientHeight;
  showList();
}

const placeOf = (key) => state.seen.findIndex((g) => g.key === key);
const step = (by) => go(placeOf(state.at) < 0 ? 0 : placeOf(state.at) + by, document.body.classList.contains("reading"));

function showFilters() {
  const { kinds, stops } = state;
  // A menu that is open must not be taken away by new rows, so it is made anew only where its choices changed.
  const as = JSON.stringify([state.shown.length, kinds, stops, isTraining()]);
  if ($("filters").dataset.as !== as) {
    $("filters").replaceChildren(...menus(kinds, stops));
    $("filters").dataset.as = as;
  }
  for (const part of $("filters").children) {
    part.value = state[part.dataset.of];
    part.classList.toggle("on", part.value !== "");
  }
}

function menus(kinds, stops) {
  const several = state.shown.length > 1;
  const changes = state.shown.slice(1).flatMap((_, i) => {
    const pair = `A → ${LETTERS[i + 1]}`;
    return [["changed", `${pair} changed`], ["better", `${pair} better`], ["worse", `${pair} worse`],
      ["verdict", `${pair} other verdict`], ["answer", `${pair} other answer`], ["one", `in A or ${LETTERS[i + 1]} alone`]]
      .map(([how, label]) => [`${how}:${i + 1}`, label]);
  });
  const orders = Object.keys(ORDERS).filter((o) => several || !o.startsWith("largest"));
  const usual = isTraining() ? "newest" : "in order";
  return [
    choice("verdict", "verdict", [["", "any verdict"], ...[...Object.keys(VERDICTS), ...kinds].map((k) => [k, words(k)])]),
    several && choice("in", "run of the verdict", [["", "in any run"], ...state.shown.map((_, i) => [String(i), `in ${LETTERS[i]}`])]),
    several && choice("change", "change", [["", "changed or not"], ...changes]),
    choice("stop", "stop reason", [["", "any stop"], ...stops.map((s) => [s, s === "cut off" ? "response cut off" : `stopped: ${words(s)}`])]),
    choice("sort", "order", [["", usual], ...orders.filter((o) => o !== usual).map((o) => [o, o])]),
  ].filter(Boolean);
}

function choice(name, label, options) {
  return el("select", { id: `by-${name}`, "data-of": name, "aria-label": label, title: label, onchange: (e) => filter({ [name]: e.target.value }) },
    options.map(([value, said]) => el("option", { value }, said)));
}

function filter(given) {
  Object.assign(state, given);
  select();
  $("rows").scrollTop = 0;
  refreshList();
  remember();
}

function refreshList() {
  showFilters();
  showCount();
  showList();
}

function clearFilters() {
  $("search").value = "";
  state.matches = null;
  filter({ verdict: "", in: "", change: "", stop: "", q: "" });
}

let asked = 0;
async function search(q, keep = false) {
  const mine = ++asked;
  state.q = q;
  const found = q === "" ? null : await Promise.all(state.shown.map((n) => source.search(n, q)));
  if (mine !== asked) return; // a later search has begun
  state.matches = found && found.map((numbers) => new Set(numbers));
  if (keep) { select(); refreshList(); }
  else filter({});
}
