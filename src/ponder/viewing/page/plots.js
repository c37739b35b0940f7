// Small plots of a training's metrics, drawn as SVG: one a metric, the runs in their colours.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const WIDE = 320, HIGH = 150, EDGE = { left: 48, right: 10, top: 8, bottom: 20 };
const MOST_POINTS = 400;
const MEAN_OF = 9; // steps; of trainings three times as long

function svg(tag, given, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(given)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// Round values from low to high: 1, 2 or 5 times a power of ten apart.
function ticks(low, high, about = 4) {
  const raw = (high - low) / about, power = 10 ** Math.floor(Math.log10(raw));
  const apart = [1, 2, 5, 10].map((m) => m * power).find((a) => a >= raw * 0.999);
  const found = [];
  for (let i = Math.ceil(low / apart - 1e-9); i * apart <= high + apart * 1e-9; i++) found.push(i === 0 ? 0 : i * apart); // -0 has a sign
  return { values: found, apart };
}

function tickLabel(x, apart) {
  const size = Math.abs(x);
  if (size !== 0 && (size >= 1e6 || size < 1e-4)) {
    // As many digits as the distance of the ticks needs.
    const digits = Math.floor(Math.log10(size) + 1e-9) - Math.floor(Math.log10(apart) + 1e-9);
    return x.toExponential(Math.max(0, digits)).replace(/\.?0*e\+?/, "e");
  }
  return x.toLocaleString("en-US", { maximumFractionDigits: Math.max(0, -Math.floor(Math.log10(apart) + 1e-9)) });
}

// At most so many points: the mean of neighbours.
function thinned(pairs) {
  if (pairs.length <= MOST_POINTS) return pairs;
  const size = pairs.length / MOST_POINTS;
  return Array.from({ length: MOST_POINTS }, (_, i) => {
    const part = pairs.slice(Math.floor(i * size), Math.floor((i + 1) * size));
    return [0, 1].map((k) => part.reduce((sum, p) => sum + p[k], 0) / part.length);
  });
}

// The mean of exactly MEAN_OF neighbours, at the middle one.
function smooth(pairs) {
  return pairs.slice(MEAN_OF - 1).map((_, i) => {
    const near = pairs.slice(i, i + MEAN_OF);
    return [near[(MEAN_OF - 1) / 2][0], near.reduce((sum, p) => sum + p[1], 0) / MEAN_OF];
  });
}

// series: [{run, pairs: [[x, y]], bands: [[x, low, high]]?}]
function plot(title, series, { share = false, strong = false } = {}) {
  const all = series.flatMap((s) => [...s.pairs, ...(s.bands || []).flatMap(([x, low, high]) => [[x, low], [x, high]])]);
  const xs = all.map((p) => p[0]), ys = all.map((p) => p[1]);
  let [left, right, low, high] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  if (left === right) { left -= 1; right += 1; }
  if (low === high && low === 0) high = 1;
  if (low === high) { const room = Math.abs(low) * 0.1; low -= room; high += room; }
  const pad = (high - low) * 0.06;
  [low, high] = [low >= 0 && low - pad < 0 ? 0 : low - pad, high + pad];
  const px = (x) => EDGE.left + ((x - left) / (right - left)) * (WIDE - EDGE.left - EDGE.right);
  const py = (y) => HIGH - EDGE.bottom - ((y - low) / (high - low)) * (HIGH - EDGE.top - EDGE.bottom);
  const said = (y, apart) => (share ? `${tickLabel(100 * y, 100 * apart)} %` : tickLabel(y, apart));
  const up = ticks(low, high), along = ticks(left, right, 5);
  const path = (pairs) => pairs.map(([x, y], i) => `${i ? "L" : "M"}${px(x).toFixed(1)} ${py(y).toFixed(1)}`).join("");
  const picture = svg("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": title },
    ...up.values.map((y) => svg("line", { class: "grid", x1: EDGE.left, x2: WIDE - EDGE.right, y1: py(y), y2: py(y) })),
    ...up.values.map((y) => svg("text", { class: "tick", x: EDGE.left - 5, y: py(y) + 3.5, "text-anchor": "end" }, said(y, up.apart))),
    ...along.values.filter((x) => Number.isInteger(x)).map((x) => svg("text", { class: "tick", x: px(x), y: HIGH - 6, "text-anchor": "middle" }, tickLabel(x, 1))),
    ...series.flatMap(({ run, pairs, bands }) => {
      const few = pairs.length < 3 * MEAN_OF || strong;
      const thin = thinned(pairs);
      return [
        ...(bands || []).map(([x, a, b]) => svg("line", { class: `band run${run % 6}`, x1: px(x), x2: px(x), y1: py(a), y2: py(b) })),
        svg("path", { class: `line run${run % 6}${few ? "" : " faint"}`, d: path(thin) }),
        ...(few ? thin.map(([x, y]) => svg("circle", { class: `dot run${run % 6}`, cx: px(x), cy: py(y), r: strong ? 2.6 : 1.8 })) : [svg("path", { class: `line run${run % 6}`, d: path(thinned(smooth(pairs))) })]),
      ];
    }));
  const cursor = svg("line", { class: "cursor", y1: EDGE.top, y2: HIGH - EDGE.bottom, x1: -9, x2: -9 });
  picture.append(cursor);
  const value = el("span.value");
  const say = (x) => {
    const near = series.map(({ run, pairs }) => [run, pairs.reduce((best, p) => (Math.abs(p[0] - x) < Math.abs(best[0] - x) ? p : best))]);
    value.replaceChildren(...near.flatMap(([run, p]) => [el(`span.run${run % 6}`, null, share ? percent(p[1]) : figure(p[1]))]), el("span.soft", null, ` step ${near[0][1][0]}`));
    cursor.setAttribute("x1", px(near[0][1][0]));
    cursor.setAttribute("x2", px(near[0][1][0]));
  };
  const rest = () => { say(right); cursor.setAttribute("x1", -9); cursor.setAttribute("x2", -9); };
  rest();
  picture.addEventListener("pointermove", (e) => {
    const box = picture.getBoundingClientRect();
    say(left + (((e.clientX - box.left) / box.width) * WIDE - EDGE.left) / (WIDE - EDGE.left - EDGE.right) * (right - left));
  });
  picture.addEventListener("pointerleave", rest);
  return el("figure", null, el("figcaption", null, el("b", null, words(visible(title))), value), picture);
}
