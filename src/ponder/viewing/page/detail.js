// One problem: what was asked, and what each run made of it, side by side.
"use strict";

const MOST_BRANCHES = 400; // of a search, listed
let detailAsked = 0;

async function showDetail(quietly = false) {
  const mine = ++detailAsked;
  const group = state.groups.find((g) => g.key === state.at);
  if (!group) return detailNothing();
  const runs = shownRuns();
  let sides;
  try {
    sides = await Promise.all(runs.map((run, r) =>
      group.per[r] ? source.lines(state.shown[r], run.generation, group.per[r].numbers) : null));
  } catch (error) {
    if (mine === detailAsked) $("detail").replaceChildren(detailHead(group), el("p.trouble", null, visible(error.message)));
    return;
  }
  if (mine !== detailAsked) return;
  const first = sides.find(Boolean)[0];
  const top = $("detail").scrollTop;
  $("detail").replaceChildren(
    detailHead(group),
    el("div.asked", null, promptBlocks(first.prompt), first.gold == null ? null : el("p", null, "gold: ", el("b", null, visible(first.gold)))),
    el("div.sides", null, sides.map((lines, r) => side(lines, r, runs[r], group))));
  $("detail").scrollTop = quietly ? top : 0;
}

function detailNothing() {
  $("detail").replaceChildren(el("p.nothing", null, state.groups.length ? "Choose a problem, or press j." : ""));
}

function detailHead(group) {
  const place = placeOf(group.key);
  return el("div.head", null,
    el("button.back", { onclick: back, "aria-label": "back to the list" }, "←"),
    el("h1", null, visible(group.problem), group.step == null ? null : el("span.soft", null, ` step ${group.step}`)),
    el("span.soft.place", null, place < 0 ? "not in the filtered list" : `${count(place + 1)} of ${count(state.seen.length)}`),
    el("button", { onclick: () => step(-1), title: "previous (k)", "aria-label": "previous" }, "↑"),
    el("button", { onclick: () => step(1), title: "next (j)", "aria-label": "next" }, "↓"));
}

function promptBlocks(prompt) {
  if (!Array.isArray(prompt)) return el("pre.promptbox", null, marked(prompt, state.q.toLowerCase()));
  return prompt.map((m) => el("div", null, el("span.role", null, visible(m.role)), el("pre.promptbox", null, marked(m.content ?? "", state.q.toLowerCase()))));
}

function side(lines, r, run, group) {
  const title = el("div.sidehead", null, badge(r), el("span.name", { title: run.name }, visible(run.name)), lines && mark(group.per[r].kinds));
  if (!lines) return el("section.side", null, title, el("p.nothing", null, "This run has no search of this problem."));
  const at = Math.min(state.sample, lines.length - 1);
  const chooser = lines.length > 1 && el("div.samples", { role: "tablist", "aria-label": "samples" },
    lines.map((line, i) => el("button", {
      role: "tab", "aria-selected": String(i === at), title: `sample ${i + 1}`,
      onclick: () => { state.sample = i; showDetail(true); },
    }, `${i + 1} `, mark(line.verdict ? [line.verdict.kind] : []))));
  return el("section.side", null, title, chooser, lines[at].step == null ? searchOf(lines[at]) : groupOf(lines[at]));
}

const tokensOf = (spend) => ["prompt_tokens", "cached_tokens", "sampled_tokens", "forced_tokens"].reduce((n, k) => n + ((spend || {})[k] || 0), 0);

const responseTokensOf = (spend) => ((spend || {}).sampled_tokens || 0) + ((spend || {}).forced_tokens || 0);

function costs(spend, seconds) {
  const prompt = ((spend || {}).prompt_tokens || 0) + ((spend || {}).cached_tokens || 0);
  const parts = [`${count(prompt)} prompt + ${count(tokensOf(spend) - prompt)} response tokens`];
  if (seconds) parts.push(duration(seconds));
  if (spend && spend.dollars) parts.push(money(spend.dollars));
  return parts.join(" · ");
}

// A search of an evaluation: its verdict, the chosen response, and all its branches.
function searchOf(line) {
  const verdict = line.verdict || {};
  const chosen = line.samples.find((s) => s.id === line.chosen && s.id != null);
  const text = line.text ?? (chosen ? chosen.text : "");
  const answer = verdict.answer ?? (chosen && chosen.answer);
  const stop = [words(line.stop || ""), line.reason].filter(Boolean).join(": ");
  return el("div", null,
    el("p.verdict", null, kindBadge(verdict.kind), " ", verdict.reason ? el("span", null, marked(verdict.reason, state.q.toLowerCase())) : null),
    el("dl.facts", null,
      fact("answer", answer == null ? "none" : visible(answer)),
      fact("stopped", visible(stop)),
      isNumber(line.vote_share) && fact(label("vote_share"), percent(line.vote_share), meaning("vote_share")),
      fact(label("spend"), costs(line.spend, line.seconds), meaning("spend")),
      chosen && chosen.finish === "length" && fact("note", "the response was cut off at its token limit")),
    text ? response(text, line.thought) : el("p.nothing", null, "No response was chosen."),
    line.samples.length > 1 && el("details.all", { open: line.samples.length <= 8 || state.q !== "" },
      el("summary", null, plural(line.samples.length, "branch", "branches")), branches(line)));
}

// A group of a training: every sample with its reward and advantage.
function groupOf(line) {
  const rewards = line.samples.map((s) => s.reward).filter(isNumber);
  const differ = new Set(rewards).size > 1;
  return el("div", null,
    el("dl.facts", null,
      rewards.length > 0 && fact("reward", `${figure(rewards.reduce((a, b) => a + b, 0) / rewards.length)} mean of ${rewards.length}`),
      rewards.length > 0 && fact("signal", differ ? "yes" : "none: all rewards are the same"),
      fact("cost", costs(line.spend, 0))),
    branches(line, true));
}

const fact = (name, value, title) => value && [el("dt", { title }, name), el("dd", null, value)];
const kindBadge = (kind) => el(`span.kind.${(SIGNS[kind] || ["infra"])[0]}`, null, kind ? words(kind) : "not judged");

// A response with its thoughts set apart, by the rule of ponder.responses: an end marker ends the thought that is open,
// a begin marker opens one, and the answer is all text outside of thoughts.
function response(text, thought) {
  const query = state.q.toLowerCase(), box = el("pre.response");
  const { open, close } = thought || { open: "<think>", close: "</think>" };
  if (!open || !close) { box.append(...marked(text, query)); return box; }
  let inside = Boolean(thought && thought.opened_by_template) || text.split(open, 1)[0].includes(close);
  let at = 0, part = "";
  const flush = (look) => { if (part) box.append(el(`span.${look}`, null, marked(part, query))); part = ""; };
  while (at < text.length) {
    const next = [open, close].map((m) => [text.indexOf(m, at), m]).filter(([i]) => i >= 0).sort((x, y) => x[0] - y[0])[0];
    part += text.slice(at, next ? next[0] : text.length);
    if (!next) break;
    flush(inside ? "thought" : "rest");
    part = next[1];
    flush("thought");
    inside = next[1] === open;
    at = next[0] + next[1].length;
  }
  flush(inside ? "thought" : "rest");
  return box;
}

function branches(line, opened = false) {
  const byId = new Map(line.samples.filter((s) => s.id != null).map((s) => [s.id, s]));
  const path = new Set();
  for (let s = byId.get(line.chosen); s && !path.has(s.id); s = byId.get(s.parent)) path.add(s.id);
  const below = new Map();
  for (const s of line.samples) {
    const parent = byId.has(s.parent) && s.parent !== s.id ? s.parent : null;
    below.set(parent, [...(below.get(parent) || []), s]);
  }
  const list = el("ol.branches");
  let left = MOST_BRANCHES;
  // The depth in steps of a stack, not of calls: trees can be deep.
  const todo = [...(below.get(null) || [])].reverse().map((s) => [s, 0]);
  while (todo.length && left > 0) {
    const [s, depth] = todo.pop();
    left -= 1;
    list.append(branch(s, depth, byId.get(s.parent), path, line, opened && MOST_BRANCHES - left <= 16));
    if (s.id != null) for (const child of [...(below.get(s.id) || [])].reverse()) todo.push([child, depth + 1]);
  }
  if (line.samples.length > MOST_BRANCHES) list.append(el("li.nothing", null, `${count(line.samples.length - MOST_BRANCHES)} more are in rollouts.jsonl`));
  return list;
}

function branch(s, depth, parent, path, line, opened) {
  const facts = [
    isNumber(s.reward) && `reward ${figure(s.reward)}`,
    isNumber(s.advantage) && `advantage ${figure(s.advantage)}`,
    isNumber(s.score) && `score ${figure(s.score)}`,
    s.vote && `votes ${visible(s.vote)}`,
    s.check && `checker: ${words(s.check.kind)}`,
    s.finish === "length" && "cut off",
    s.note && visible(s.note),
    s.error && visible(s.error),
    `${count(s.tokens ?? responseTokensOf(s.spend))} response tokens`,
  ].filter(Boolean);
  const all = s.text ?? "", before = parent && parent.text ? parent.text : "";
  const added = before && all.startsWith(before) ? all.slice(before.length) : all;
  const query = state.q.toLowerCase();
  opened = opened || (query !== "" && added.toLowerCase().includes(query));
  const item = el("li", { class: path.has(s.id) && line.step == null ? "path" : null },
    el("details", { open: opened },
      el("summary", null,
        s.verdict ? mark([s.verdict.kind]) : el("span.mark.empty", null, "·"),
        el("span.soft", null, ` ${visible(s.id ?? "")} `),
        s.id === line.chosen && s.id != null && line.step == null && el("span.kind.chosen", null, "chosen"),
        el("span.tail", null, visible(added.slice(-120).replace(/\s+/g, " "))),
        el("span.soft.factline", null, facts.join(" · ")))));
  item.style.marginInlineStart = `${Math.min(depth, 12) * 14}px`;
  const fill = () => {
    if (item.firstChild.childElementCount > 1) return;
    item.firstChild.append(response(added, depth ? null : line.thought),
      el("div.soft", null, s.verdict && s.verdict.reason ? `judge: ${visible(s.verdict.reason)}` : "", s.check && s.check.reason ? ` checker: ${visible(s.check.reason)}` : ""));
  };
  item.firstChild.addEventListener("toggle", fill);
  if (opened) fill();
  return item;
}

// On a narrow screen the problem takes the list's place, and the browser's own "back" leads to the list.
function read() {
  if (document.body.classList.contains("reading")) return;
  document.body.classList.add("reading");
  if (innerWidth <= 800) history.pushState({ reading: true }, "");
}

function back() {
  if (history.state && history.state.reading) history.back();
  else leave();
}

function leave() {
  document.body.classList.remove("reading");
  $("rows").focus();
  showList();
}
