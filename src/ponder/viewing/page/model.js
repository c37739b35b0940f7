// The state of the page, and problems as the list shows them: joined over the runs, filtered and sorted.
"use strict";

// The order of a row's cells: ponder.viewing.rows.FIELDS.
const [PROBLEM, SAMPLE, STEP, INDEX, KINDS, STOP, TOKENS, SECONDS, ANSWER, PROMPT, BRANCHES, REWARD, CUT] = Array(13).keys();

const state = {
  runs: [], // all that the viewer knows
  shown: [], // numbers of those that are shown: A, B, …
  tab: "problems",
  at: null, // key of the open problem
  sample: 0,
  groups: [], // all problems
  kinds: [], stops: [], // verdicts but for correct, and stop reasons, that occur
  seen: [], // those that pass the filters, sorted
  q: "",
  matches: null, // per shown run the set of rows that hold q
  verdict: "", in: "", change: "", stop: "", sort: "",
};

const shownRuns = () => state.shown.map((n) => state.runs[n]);
// Lines of a training have a step, those of an evaluation have none.
const trains = (run) => run.rows.length > 0 && run.rows[0][STEP] != null;
const isTraining = () => shownRuns().some(trains);

function rebuild() {
  const groups = new Map();
  shownRuns().forEach((run, r) => {
    run.rows.forEach((cells, n) => {
      const key = cells[STEP] == null ? cells[PROBLEM] : `${cells[STEP]}\u241f${cells[PROBLEM]}`;
      let group = groups.get(key);
      if (!group) {
        group = { key, problem: cells[PROBLEM], step: cells[STEP], index: cells[INDEX], prompt: cells[PROMPT], born: groups.size, per: [] };
        groups.set(key, group);
      }
      const side = (group.per[r] ||= { rows: new Map() });
      side.rows.set(cells[SAMPLE], n); // a search that was run again replaces its first result
    });
  });
  state.groups = [...groups.values()];
  for (const group of state.groups)
    state.shown.forEach((number, r) => {
      const side = group.per[r];
      if (side) summarise(side, state.runs[number].rows);
    });
  const kinds = new Set(), stops = new Set();
  for (const run of shownRuns())
    for (const cells of run.rows) {
      for (const kind of cells[KINDS]) kinds.add(kind);
      stops.add(cells[CUT] ? "cut off" : cells[STOP]).add(cells[STOP]);
    }
  kinds.delete("correct");
  stops.delete("");
  Object.assign(state, { kinds: [...kinds].sort(), stops: [...stops].sort() });
  select();
}

function summarise(side, rows) {
  const numbers = [...side.rows.keys()].sort((a, b) => a - b).map((sample) => side.rows.get(sample));
  const cells = numbers.map((n) => rows[n]);
  if (cells.length === 1 && cells[0][STEP] == null) {
    const [c] = cells, kind = c[KINDS][0];
    const share = kind === undefined || kind === "judge_error" ? null : Number(kind === "correct");
    Object.assign(side, { numbers, kinds: c[KINDS], share, tokens: c[TOKENS], seconds: c[SECONDS] || 0, answer: c[ANSWER], stops: [c[STOP]], cut: c[CUT], reward: c[REWARD] });
    return;
  }
  const kinds = cells.flatMap((c) => c[KINDS]);
  const judged = kinds.filter((k) => k !== "judge_error");
  const mean = (at) => cells.reduce((sum, c) => sum + (c[at] || 0), 0) / cells.length;
  Object.assign(side, {
    numbers, kinds,
    share: judged.length ? judged.filter((k) => k === "correct").length / judged.length : null,
    tokens: mean(TOKENS), seconds: mean(SECONDS), answer: cells[0][ANSWER],
    stops: cells.map((c) => c[STOP]), cut: cells.some((c) => c[CUT]), reward: cells[0][REWARD],
  });
}

// Filters ---------------------------------------------------------------------------------------------------------

const VERDICTS = {
  right: (s) => s.share === 1,
  "not right": (s) => s.share !== null && s.share < 1,
  mixed: (s) => s.share > 0 && s.share < 1,
};

function wants(group) {
  const sides = (state.in === "" ? group.per : [group.per[Number(state.in)]]).filter(Boolean);
  if (!sides.length) return false;
  if (state.verdict) {
    const test = VERDICTS[state.verdict] || ((s) => s.kinds.includes(state.verdict));
    if (!sides.some(test)) return false;
  }
  if (state.stop && !sides.some((s) => (state.stop === "cut off" ? s.cut : s.stops.includes(state.stop)))) return false;
  if (state.change && !changed(group)) return false;
  return !state.matches || group.per.some((s, r) => s && s.numbers.some((n) => state.matches[r] && state.matches[r].has(n)));
}

function changed(group) {
  const [how, other] = state.change.split(":");
  const a = group.per[0], b = group.per[Number(other)];
  if (how === "one") return !a !== !b;
  if (!a || !b || a.share === null || b.share === null) return false;
  if (how === "verdict") return a.kinds.join() !== b.kinds.join();
  if (how === "answer") return a.answer !== b.answer;
  return how === "better" ? b.share > a.share : how === "worse" ? b.share < a.share : a.share !== b.share;
}

// Order -----------------------------------------------------------------------------------------------------------

const most = (group, what) => Math.max(...group.per.filter(Boolean).map((s) => (s[what] == null ? -1 : s[what])));
const gain = (g) => {
  const [a, b] = [g.per[0], g.per[Math.max(1, Number(state.change.split(":")[1]) || 1)]];
  return a && b && a.share !== null && b.share !== null ? b.share - a.share : 0;
};
const ORDERS = {
  "in order": (a, b) => (a.step ?? 0) - (b.step ?? 0) || (a.index ?? a.born) - (b.index ?? b.born),
  newest: (a, b) => (b.step ?? 0) - (a.step ?? 0) || b.born - a.born,
  "most tokens": (a, b) => most(b, "tokens") - most(a, "tokens"),
  "fewest tokens": (a, b) => most(a, "tokens") - most(b, "tokens"),
  slowest: (a, b) => most(b, "seconds") - most(a, "seconds"),
  "least right": (a, b) => most(a, "share") - most(b, "share"),
  "most right": (a, b) => most(b, "share") - most(a, "share"),
  "largest gain": (a, b) => gain(b) - gain(a),
  "largest loss": (a, b) => gain(a) - gain(b),
  "by name": (a, b) => a.problem.localeCompare(b.problem, "en", { numeric: true }),
};

function select() {
  state.seen = state.groups.filter(wants);
  const order = ORDERS[state.sort || (isTraining() ? "newest" : "in order")];
  state.seen.sort((a, b) => order(a, b) || ORDERS["in order"](a, b));
}

// What a run reached: of its evaluation where that is done, else counted so far (without a share or an interval).
function reached(run, r) {
  const found = run.evaluation && run.evaluation.accuracy;
  if (found) return { ...found, what: "" };
  const held = trains(run) && (run.train || []).at(-1);
  if (held) return { ...held, value: held.accuracy, what: `held-out, step ${held.step}` };
  const shares = state.groups.map((g) => g.per[r] && g.per[r].share).filter((s) => s != null);
  if (!shares.length) return null;
  const right = shares.reduce((x, y) => x + y, 0);
  if (trains(run)) return { value: right / shares.length, n: shares.length, what: "of the recorded samples right" };
  // No share: short responses end first, and are more often right.
  return { n: shares.length, what: `${figure(right)} right of those done,` };
}
