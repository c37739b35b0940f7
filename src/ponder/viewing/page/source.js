// Where the data comes from: the local server, or what lies in this file (`ponder view --out`).
"use strict";

const embedded = $("data") ? JSON.parse($("data").textContent) : null;

async function ask(path, given) {
  let answer;
  try {
    answer = await fetch(`${path}?${new URLSearchParams(given)}`, { cache: "no-store" });
  } catch {
    throw new Error("the viewer has ended or cannot be reached: start `ponder view` again");
  }
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error);
  return found;
}

const served = {
  live: true,
  runs: () => ask("api/runs", {}),
  state: (run, generation, after, metrics_after) => ask("api/state", { run, generation, after, metrics_after }),
  lines: async (run, generation, numbers) => (await ask("api/lines", { run, generation, n: numbers.join(",") })).lines,
  search: async (run, q) => (await ask("api/search", { run, q })).found,
  about: (run) => ask("api/about", { run }),
  compare: (a, b) => ask("api/compare", { a, b }),
};

// What a search looks in, as ponder.viewing.rows has it.
function searched(line) {
  if (line.searched === undefined) {
    const prompt = Array.isArray(line.prompt) ? line.prompt.map((m) => m.content) : [line.prompt];
    const parts = [line.problem, ...prompt, line.text, line.verdict && line.verdict.reason];
    for (const s of line.samples) parts.push(s.text, s.answer, s.verdict && s.verdict.reason);
    line.searched = parts.filter((p) => p != null).join("\n").toLowerCase();
  }
  return line.searched;
}

const held = embedded && {
  live: false,
  runs: async () => embedded.listed,
  state: async (run) => embedded.runs[run].state,
  lines: async (run, _, numbers) => numbers.map((n) => embedded.runs[run].lines[n]),
  search: async (run, q) => {
    const wanted = q.toLowerCase(), found = [];
    embedded.runs[run].lines.forEach((line, n) => searched(line).includes(wanted) && found.push(n));
    return found;
  },
  about: async (run) => embedded.runs[run].about,
  compare: async (a, b) => embedded.compared[`${a},${b}`] || { error: "this file holds no comparison of these two" },
};

const source = held || served;
