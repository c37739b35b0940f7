// Elements, numbers and text from outside. Such text only ever becomes text nodes, never markup.
"use strict";

const $ = (id) => document.getElementById(id);

// el("span.mark.ok", {title: "x"}, "text", child): children that are null or false are left out.
function el(what, given, ...children) {
  const [tag, ...classes] = what.split(".");
  const node = document.createElement(tag);
  if (classes.length) node.className = classes.join(" ");
  for (const [name, value] of Object.entries(given || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((c) => c != null && c !== false && c !== ""));
  return node;
}

// Control characters as their pictures, directions and lone surrogates as escapes (as ponder.show.visible).
const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028\u2029\ufeff\u202a-\u202e\u2066-\u2069]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;
function visible(text) {
  return String(text).replace(UNSEEN, (c) => {
    const code = c.charCodeAt(0);
    if (code < 0x20) return String.fromCharCode(0x2400 + code);
    if (code === 0x7f) return "\u2421";
    if (code < 0xa0) return "\\x" + code.toString(16).padStart(2, "0");
    return "\\u" + code.toString(16).padStart(4, "0");
  });
}

// Text nodes with what was searched for marked.
function marked(text, query) {
  text = visible(text);
  if (!query) return [text];
  const parts = [], low = text.toLowerCase();
  // Lower case can have another length (İ): then the places would be wrong.
  if (low.length !== text.length) return [text];
  let at = 0;
  for (let i = low.indexOf(query); i >= 0 && parts.length < 2000; i = low.indexOf(query, at)) {
    parts.push(text.slice(at, i), el("mark", null, text.slice(i, i + query.length)));
    at = i + query.length;
  }
  return [...parts, text.slice(at)];
}

const isNumber = (x) => typeof x === "number" && Number.isFinite(x);
const count = (n) => Math.round(n).toLocaleString("en-US");
const plural = (n, word, more = word + "s") => `${count(n)} ${n === 1 ? word : more}`;
const percent = (x) => (isNumber(x) ? `${(100 * x).toFixed(1)} %` : "–");
const points = (x) => `${x > 0 ? "+" : x < 0 ? "−" : "±"}${Math.abs(100 * x).toFixed(1)}`;

// As ponder.numbers.clock.
function duration(seconds) {
  if (!isNumber(seconds)) return "";
  if (seconds < 0.1) return `${Number((seconds * 1e3).toPrecision(2))} ms`;
  if (seconds < 1) return `${Math.min(999, Math.round(seconds * 1e3))} ms`;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds), two = (n) => String(n).padStart(2, "0");
  if (whole < 60) return `${whole} s`;
  return whole < 3600
    ? `${Math.floor(whole / 60)} min ${two(whole % 60)} s`
    : `${Math.floor(whole / 3600)} h ${two(Math.floor((whole % 3600) / 60))} min`;
}

// As ponder.numbers.money.
const money = (x) => `$${x >= 1 ? x.toLocaleString("en-US", { minimumFractionDigits: 2, maximumFractionDigits: 2 }) : Number(x.toPrecision(2))}`;

// Labels and meanings of the figures, from ponder.figures, by their key in JSON.
const labels = {};
const label = (key) => (labels[key] || [words(key)])[0];
const meaning = (key) => (labels[key] || [])[1];

// 0.00342 → 0.00342, 1234567 → 1,234,567, 2.31e-7, 4.1e12
function figure(x) {
  if (!isNumber(x)) return "–";
  const size = Math.abs(x);
  if (size !== 0 && (size < 1e-3 || size >= 1e9)) return x.toExponential(2).replace("e+", "e");
  return Number.isInteger(x) ? x.toLocaleString("en-US") : String(Number(x.toPrecision(size >= 1000 ? 6 : 4)));
}

const words = (kind) => String(kind).replaceAll("_", " ");

// How one verdict or a share of samples is shown: colour and sign, so that it needs no colours.
const SIGNS = { correct: ["ok", "✓"], wrong: ["bad", "✗"], no_answer: ["none", "–"], judge_error: ["infra", "!"] };
function mark(kinds) {
  if (!kinds || !kinds.length) return el("span.mark.empty", { title: "not judged" }, "·");
  const right = kinds.filter((k) => k === "correct").length;
  const said = [...new Set(kinds)].map((k) => `${words(k)} ${kinds.filter((o) => o === k).length}`).join(", ");
  if (kinds.length > 1) {
    const look = right === kinds.length ? "ok" : right ? "mixed" : "bad";
    return el(`span.mark.share.${look}`, { title: said }, `${right}/${kinds.length}`);
  }
  const [look, sign] = SIGNS[kinds[0]] || ["infra", "!"];
  return el(`span.mark.${look}`, { title: words(kinds[0]) }, sign);
}

const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
const badge = (i) => el(`span.letter.run${i % 6}`, null, LETTERS[i]);
