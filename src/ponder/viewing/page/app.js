// Start, polling, keys, and the address that remembers what is looked at.
"use strict";

const POLL = 2000, SLOW = 15000; // milliseconds, while a shown run is written and otherwise
const TABS = [["runs", "Runs"], ["problems", "Problems"], ["training", "Training"], ["about", "About"]];
const KEPT = ["tab", "at", "q", "verdict", "in", "change", "stop", "sort"];

let rememberSoon;
function remember() {
  // Browsers refuse a new address for every key that is held down.
  clearTimeout(rememberSoon);
  rememberSoon = setTimeout(writeAddress, 150);
}

function writeAddress() {
  const given = new URLSearchParams();
  if (state.shown.length) given.set("runs", state.shown.map((n) => state.runs[n].name).join("\n"));
  for (const name of KEPT) if (state[name]) given.set(name, state[name]);
  history.replaceState(history.state, "", `#${given}`);
}

function recall() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const name of KEPT) if (given.has(name)) state[name] = given.get(name);
  if (!TABS.some(([tab]) => tab === state.tab)) state.tab = "problems";
  if (!(state.sort in ORDERS)) state.sort = "";
  const names = (given.get("runs") || "").split("\n");
  return state.runs.filter((run) => names.includes(run.name)).sort((a, b) => names.indexOf(a.name) - names.indexOf(b.name)).map((r) => r.number);
}

async function readRuns() {
  const found = await source.runs();
  found.runs.forEach((facts, number) => {
    const known = state.runs[number];
    if (known) Object.assign(known, facts);
    else state.runs[number] = { number, generation: "", rows: [], metrics: [], ...facts };
  });
  Object.assign(labels, found.labels);
  return found.chosen;
}

// Take what is new of a run; says whether anything is.
async function update(run) {
  const found = await source.state(run.number, run.generation, run.rows.length, run.metrics.length);
  const before = JSON.stringify([run.status, run.error, run.notes, run.evaluation && run.evaluation.accuracy, (run.train || []).length]);
  const fresh = found.generation !== run.generation || found.after === 0;
  const more = fresh || found.rows.length > 0 || found.metrics.length > 0;
  run.rows = fresh ? found.rows.slice() : run.rows.concat(found.rows);
  run.metrics = fresh || found.metrics_after === 0 ? found.metrics.slice() : run.metrics.concat(found.metrics);
  const { rows: _, metrics: __, ...facts } = found;
  if (found.error) { delete facts.evaluation; delete facts.train; }
  Object.assign(run, facts);
  return more || before !== JSON.stringify([run.status, run.error, run.notes, run.evaluation && run.evaluation.accuracy, (run.train || []).length]);
}

async function showOnly(numbers, tab) {
  state.shown = numbers;
  Object.assign(state, { at: null, q: "", matches: null, verdict: "", in: "", change: "", stop: "", sort: "" });
  $("search").value = "";
  document.body.classList.remove("reading");
  await Promise.all(shownRuns().map(update)).catch(trouble);
  rebuild();
  openTab(tab || firstTab());
}

// What a run has most to show on: an SFT has metrics and no rollouts.
const firstTab = () => (!state.groups.length && shownRuns().some((r) => r.metrics.length || (r.train || []).length) ? "training" : "problems");

function openTab(tab) {
  state.tab = state.shown.length || tab === "runs" ? tab : "runs";
  show();
  remember();
}

function show(quietly = false) {
  banners();
  const metrics = shownRuns().some((r) => r.metrics.length || (r.train || []).length);
  const there = TABS.filter(([tab]) => (tab === "runs" ? state.runs.length > 1 : state.shown.length) && (tab !== "training" || metrics));
  $("tabs").replaceChildren(...there.map(([tab, label]) => el("button", { role: "tab", "aria-selected": String(tab === state.tab), onclick: () => openTab(tab) }, tab === "problems" && isTraining() ? "Rollouts" : label)));
  for (const [tab] of TABS) $(`page-${tab}`).hidden = tab !== state.tab;
  document.title = state.shown.length ? `${shownRuns().map((r) => r.name).join(" · ")} · ponder view` : "ponder view";
  const running = shownRuns().filter((r) => r.status === "running" && !r.error).length;
  $("live").textContent = source.live && running ? "live" : "";
  if (state.tab === "runs") showRuns();
  if (state.tab === "training") showTraining();
  if (state.tab === "about" && !quietly) showAbout();
  if (state.tab === "problems") {
    showSummary();
    refreshList();
    if (quietly && state.at) return; // what is being read stays
    if (!state.at && state.seen.length && innerWidth > 800) go(0);
    else {
      bring(placeOf(state.at));
      showDetail();
    }
  }
}

let lost = "";
function banners() {
  const said = [lost, ...shownRuns().flatMap((r) => [r.error, ...(r.notes || []), r.evaluation_error])].filter(Boolean);
  $("banners").replaceChildren(...said.map((sentence) => el("p", null, visible(sentence))));
}

function trouble(error) {
  lost = error.message;
  banners();
}

async function poll() {
  try {
    const about = document.hidden ? [] : await Promise.all(shownRuns().map(update));
    const known = state.runs.length;
    if (state.tab === "runs") await readRuns();
    const back = lost !== "";
    lost = "";
    if (about.some(Boolean) || back || state.runs.length !== known) {
      rebuild();
      if (state.q) await search(state.q, true);
      show(true);
    }
  } catch (error) {
    trouble(error);
  }
  setTimeout(poll, lost || shownRuns().some((r) => r.status === "running") || state.tab === "runs" ? POLL : SLOW);
}

// Light and dark --------------------------------------------------------------------------------------------------

const THEMES = { auto: "◐", light: "☀", dark: "☾" };
function theme(name) {
  if (!(name in THEMES)) name = "auto";
  document.documentElement.dataset.theme = name;
  $("theme").textContent = THEMES[name];
  $("theme").setAttribute("aria-label", `colours: ${name}`);
  try { localStorage.setItem("ponder-theme", name); } catch { /* not kept in a file without storage */ }
}
const otherTheme = () => theme({ auto: "dark", dark: "light", light: "auto" }[document.documentElement.dataset.theme]);

// Keys ------------------------------------------------------------------------------------------------------------

function otherSample(by) {
  const group = state.groups.find((g) => g.key === state.at);
  if (!group) return;
  const most = Math.max(...group.per.filter(Boolean).map((s) => s.numbers.length));
  state.sample = Math.max(0, Math.min(most - 1, state.sample + by));
  showDetail(true);
}

const KEYS = {
  j: () => step(1), ArrowDown: () => step(1), k: () => step(-1), ArrowUp: () => step(-1),
  g: () => go(0), G: () => go(state.seen.length - 1), Home: () => go(0), End: () => go(state.seen.length - 1),
  PageDown: () => step(10), PageUp: () => step(-10),
  Enter: () => { step(0); read(); $("detail").focus(); },
  "[": () => otherSample(-1), "]": () => otherSample(1),
  w: () => filter({ verdict: state.verdict === "not right" ? "" : "not right" }),
  c: () => state.shown.length > 1 && filter({ change: state.change ? "" : "changed:1" }),
  "/": () => { if (document.body.classList.contains("reading")) leave(); $("search").focus(); $("search").select(); },
  Escape: back,
};

function onKey(e) {
  if (e.ctrlKey || e.metaKey || e.altKey || $("help").open) return;
  if (e.target.matches("input[type=search]")) {
    if (e.key === "Escape") { $("search").value = ""; search(""); $("rows").focus(); e.preventDefault(); }
    if (e.key === "Enter" || e.key === "ArrowDown") { $("rows").focus(); go(0); e.preventDefault(); }
    return;
  }
  if (e.target.matches("select, input")) return;
  if (e.key === "Enter" && e.target.matches("button, summary, a")) return;
  // In what is being read the arrows scroll.
  if (/^(Arrow|Page|Home|End)/.test(e.key) && $("detail").contains(e.target)) return;
  if (e.key === "?") $("help").showModal();
  else if (e.key === "d") otherTheme();
  else if (/^[1-4]$/.test(e.key) && $("tabs").children[e.key - 1]) $("tabs").children[e.key - 1].click();
  else if (state.tab === "problems" && KEYS[e.key]) KEYS[e.key]();
  else return;
  e.preventDefault();
}

async function start() {
  let kept = "auto";
  try { kept = localStorage.getItem("ponder-theme") || "auto"; } catch { /* none */ }
  theme(kept);
  $("theme").addEventListener("click", otherTheme);
  $("keys").addEventListener("click", () => $("help").showModal());
  $("rows").addEventListener("scroll", showList, { passive: true });
  addEventListener("resize", showList);
  addEventListener("popstate", () => { leave(); remember(); });
  document.addEventListener("keydown", onKey);
  let timer;
  $("search").addEventListener("input", (e) => {
    clearTimeout(timer);
    timer = setTimeout(() => search(e.target.value).catch(trouble), 80);
  });
  try {
    const chosen = await readRuns();
    const recalled = recall();
    state.shown = recalled.length ? recalled : chosen || state.runs.length === 1 ? state.runs.map((r) => r.number) : [];
    if (!state.shown.length) state.tab = "runs";
    await Promise.all(shownRuns().map(update));
    rebuild();
    if (!new URLSearchParams(location.hash.slice(1)).has("tab") && shownRuns().length) state.tab = firstTab();
    $("search").value = state.q;
    if (state.q) await search(state.q, true);
    if (state.at && history.state && history.state.reading) document.body.classList.add("reading"); // a reload
    show();
  } catch (error) {
    trouble(error);
  }
  document.body.dataset.ready = "yes";
  if (source.live) setTimeout(poll, POLL);
}

start();
