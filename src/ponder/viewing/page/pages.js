// The other pages: the list of runs, a training's metrics, what a run was made with, and the summary above the problems.
"use strict";

// Metrics that are read first; all others follow in the order that they were written.
const FIRST = ["reward", "loss", "length", "entropy", "truncated", "groups_without_signal", "gradient_norm", "clipped", "mismatch_mean", "learning_rate", "train_loss", "validation_loss"];

function showSummary() {
  const runs = shownRuns();
  const cards = runs.map((run, r) => {
    const found = reached(run, r);
    return el("div.card", null,
      el("div.cardhead", null, badge(r), el("span.name", { title: run.name }, visible(run.name)), run.status !== "done" && status(run)),
      el("div.big", { title: meaning("accuracy") }, found ? percent(found.value) : "–", found && isNumber(found.low) ? el("span.soft", null, ` [${(100 * found.low).toFixed(1)}, ${(100 * found.high).toFixed(1)}]`) : null),
      el("div.soft", { title: meaning(tokensKey(run)) }, [found && found.what, found && plural(found.n, found.what.startsWith("of") ? "group" : "problem"),
        run.evaluation && run.evaluation.samples > 1 && `${run.evaluation.samples} samples`,
        tokensPerSearch(run)].filter(Boolean).join(" · ")));
  });
  const pairs = runs.slice(1).map((_, i) => comparison(i + 1)).filter(Boolean);
  $("summary").replaceChildren(...cards, ...pairs);
}

// Of older runs without their prompts; the label says which.
const tokensKey = (run) => ["mean_tokens_per_search", "mean_response_tokens_per_search"].find((k) => run.evaluation && run.evaluation[k]);

function tokensPerSearch(run) {
  const key = tokensKey(run);
  return key && `${count(run.evaluation[key].value)} ${label(key)}`;
}

const compared = new Map();

function comparison(r) {
  const [a, b] = [state.runs[state.shown[0]], state.runs[state.shown[r]]];
  if (isTraining()) return null;
  const pair = `${a.number},${b.number}`, key = [a, b].map((run) => `${run.generation} ${run.rows.length} ${run.status}`).join("|");
  const held = compared.get(pair) || {};
  if (held.key !== key) {
    // What was found before stays until the new figures are there.
    compared.set(pair, { key, found: held.found });
    source.compare(a.number, b.number).catch((e) => ({ error: e.message })).then((found) => { compared.set(pair, { key, found }); showSummary(); });
  }
  const found = held.found;
  const head = el("div.cardhead", null, badge(r), "−", badge(0), el("span.soft", null, "paired by problem"));
  if (!found) return el("div.card.pair", null, head, el("div.soft", null, "comparing …"));
  if (found.error) return el("div.card.pair", null, head, el("div.soft.why", { title: found.error }, visible(found.error)));
  const d = found.difference;
  const sure = isNumber(d.low) && (d.low > 0 || d.high < 0);
  // A difference that may be none is no headline: its interval is.
  const big = sure || !isNumber(d.low) ? [points(d.value), el("span.unit", null, " points"), isNumber(d.low) ? el("span.soft", null, ` [${points(d.low)}, ${points(d.high)}]`) : null]
    : [`${points(d.low)} to ${points(d.high)}`, el("span.unit", null, " points"), el("span.soft", null, `, mean ${points(d.value)}`)];
  return el("div.card.pair", null, head,
    el(`div.big.${sure ? (d.value > 0 ? "gain" : "loss") : "unsure"}`, null, ...big),
    el("div.soft", { title: Object.entries(found.moves).map(([move, n]) => `${n} ${words(move)}`).join("\n") },
      [found.p != null && `${label("p")}: p = ${figure(Number(found.p.toPrecision(2)))}`, `n ${count(d.n)}`, ...Object.entries(found.moves).slice(0, 2).map(([move, n]) => `${n} ${words(move)}`)].filter(Boolean).join(" · ")));
}

const status = (run) => el(`span.status.${run.status === "running" ? "running" : run.status === "failed" ? "failed" : "other"}`, null, visible(run.error ? "unreadable" : run.status));

function showRuns() {
  const picked = new Set(state.shown);
  const table = el("table.runs", null,
    el("thead", null, el("tr", null, ["", "run", "status", "accuracy", "started (UTC)", "command"].map((h) => el("th", null, h)))),
    el("tbody", null, state.runs.map((run) => el("tr", { class: picked.has(run.number) ? "picked" : null },
      el("td", null, el("input", {
        type: "checkbox", checked: picked.has(run.number), "aria-label": `show ${run.name}`,
        onchange: (e) => showOnly(e.target.checked ? [...state.shown, run.number] : state.shown.filter((n) => n !== run.number), "runs"),
      })),
      el("td", null, el("button.link.name", { onclick: () => showOnly([run.number]) }, visible(run.name)), picked.has(run.number) && badge(state.shown.indexOf(run.number))),
      el("td", null, status(run)),
      el("td", null, run.accuracy ? percent(run.accuracy.value) : ""),
      el("td.soft", null, visible((run.start || "").slice(0, 16).replace("T", " "))),
      el("td.soft.command", null, visible(run.error || (run.command || []).slice(1).join(" ")))))));
  $("page-runs").replaceChildren(
    el("div.runhead", null, el("h1", null, plural(state.runs.length, "run")),
      state.shown.length > 1 && el("button.primary", { onclick: () => openTab("problems") }, `Compare ${state.shown.length} runs`),
      state.shown.length < 2 && el("span.soft", null, "Open one, or tick several to see them side by side.")),
    el("div.scroll", null, table));
}

function showTraining() {
  const runs = shownRuns();
  const page = $("page-training");
  const trained = runs.map((run, r) => [run, r]).filter(([run]) => run.metrics.length || (run.train || []).length);
  if (!trained.length) return page.replaceChildren(el("p.nothing", null, "These runs have no metrics."));
  const names = [...new Set(trained.flatMap(([run]) => run.metrics.flatMap((m) => Object.keys(m).filter((k) => isNumber(m[k])))))].filter((k) => k !== "step");
  const sorted = [...FIRST.filter((n) => names.includes(n)), ...names.filter((n) => !FIRST.includes(n))];
  const held = trained.filter(([run]) => (run.train || []).length);
  const figures = sorted.map((name) => {
    const series = trained.map(([run, r]) => ({ run: r, pairs: run.metrics.map((m, i) => [isNumber(m.step) ? m.step : i + 1, m[name]]).filter((p) => isNumber(p[1])) })).filter((s) => s.pairs.length);
    return plot(label(name), series);
  });
  if (held.length)
    figures.unshift(plot("held-out accuracy", held.map(([run, r]) => ({
      run: r, pairs: run.train.map((p) => [p.step, p.accuracy]), bands: run.train.filter((p) => isNumber(p.low)).map((p) => [p.step, p.low, p.high]),
    })), { share: true, strong: true }));
  const newest = trained.map(([run, r]) => {
    const last = run.metrics[run.metrics.length - 1];
    return el("span.legend", null, badge(r), visible(run.name), el("span.soft", null, last ? ` step ${last.step ?? run.metrics.length}` : ""), run.status !== "done" && status(run));
  });
  page.replaceChildren(el("div.runhead", null, newest), el("div.plots", null, figures),
    el("p.soft", null, `Of ${3 * MEAN_OF} steps or more: each faint, the mean of ${MEAN_OF} strong. Bars: 95 % intervals of the held-out accuracy.`));
}

async function showAbout() {
  const found = await Promise.all(state.shown.map((n) => source.about(n).catch((e) => ({ manifest: { error: e.message }, configs: {} }))));
  $("page-about").replaceChildren(...found.map(({ manifest, configs }, r) => el("section.about", null,
    el("h1", null, badge(r), " ", visible(state.runs[state.shown[r]].name)),
    manifest.command && el("pre", null, visible(manifest.command.join(" "))),
    el("table.facts", null, el("tbody", null, Object.entries(manifest).filter(([k]) => k !== "command").map(([k, v]) =>
      el("tr", null, el("td.soft", null, words(k)), el("td", null, visible(v !== null && typeof v === "object" ? flat(v) : v ?? "–")))))),
    Object.entries(configs).map(([name, text]) => el("details", { open: true }, el("summary", null, name), el("pre", null, visible(text)))))));
}

const flat = (value) => (Array.isArray(value) ? value.map((v) => (typeof v === "object" ? JSON.stringify(v) : v)).join(", ") : Object.entries(value).map(([k, v]) => `${k} ${v !== null && typeof v === "object" ? JSON.stringify(v) : v}`).join(", "));
