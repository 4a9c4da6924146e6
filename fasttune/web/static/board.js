// The live parts of the board: events of running trainings, curves that grow, and the chat. Reading needs none of it.
// Data reaches the page by textContent and attributes alone, never as markup.
"use strict";

function follow(place, handlers) {
  const source = new EventSource(place.dataset.events);
  for (const [name, handle] of Object.entries(handlers)) {
    source.addEventListener(name, (event) => handle(JSON.parse(event.data)));
  }
  source.addEventListener("ended", () => {
    source.close();
    setTimeout(() => location.reload(), 400);
  });
  addEventListener("pagehide", () => source.close());
}

function show(root, state) {
  for (const [name, text] of Object.entries(state)) {
    for (const element of root.querySelectorAll(`[data-place="${name}"]`)) {
      if (element.textContent !== String(text)) element.textContent = text;
    }
  }
  for (const bar of root.querySelectorAll('[data-place="progress"]')) {
    bar.max = state.total;
    bar.value = state.done;
  }
}

// Curves: the same form as analysis/charts.py draws -------------------------------------------------------------------

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 220, UNITS = 1000, PARTS = 40, COLUMNS = 400, LOG_SPREAD = 30, ROOM = 0.06;

function make(name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

function ticks(low, high, most) {
  const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((one) => one >= rough * 0.999);
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n <= Math.floor(high / step + 1e-9); n++) found.push(n * step);
  return found;
}

function logTicks(low, high) {
  const found = [], first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high));
  for (let decade = first; decade <= last; decade += Math.max(1, Math.floor((last - first + 1) / 6))) {
    for (const factor of high / low < 100 ? [1, 2, 5] : [1]) found.push(factor * 10 ** decade);
  }
  return found.filter((value) => value >= low && value <= high);
}

function label(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-3 || size >= 1e6) return value.toExponential(1).replace(".0e", "e").replace("e+", "e");
  return size >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4)));
}

function frameOf(points, linear, fromZero) {
  const xs = points.map((one) => one[0]), ys = points.map((one) => one[1]);
  const most = (values) => values.reduce((a, b) => Math.max(a, b)), least = (values) => values.reduce((a, b) => Math.min(a, b));
  let left = Math.min(0, least(xs)), right = most(xs), low = fromZero ? Math.min(0, least(ys)) : least(ys), high = most(ys);
  if (right <= left) right = left + 1;
  const log = !linear && low > 1e-30 && high / low > LOG_SPREAD;
  if (log) { low /= 1.15; high *= 1.15; }
  else if (high <= low) { const half = Math.abs(high) / 2 || 0.5; low -= half; high += half; }
  else { const room = ROOM * (high - low), floor = low >= 0 ? 0 : -Infinity; low = Math.max(floor, low - room); high += room; }
  const scale = log ? Math.log : (value) => value;
  return {
    x: (value) => (value - left) / (right - left),
    y: (value) => HEIGHT * (1 - (scale(value) - scale(low)) / (scale(high) - scale(low))),
    xTicks: ticks(left, right, 7), yTicks: log ? logTicks(low, high) : ticks(low, high, 5),
  };
}

function smoothed(points) {
  const half = Math.floor(points.length / (2 * PARTS));
  if (half < 1) return points;
  const sums = [0];
  for (const [, y] of points) sums.push(sums[sums.length - 1] + y);
  return points.map(([x], n) => {
    const begin = Math.max(0, n - half), end = Math.min(points.length, n + half + 1);
    return [x, (sums[end] - sums[begin]) / (end - begin)];
  });
}

function reduced(points) {
  if (points.length <= 2 * COLUMNS) return points;
  const every = points.length / COLUMNS, found = [];
  for (let n = 0; n < COLUMNS; n++) {
    const part = points.slice(Math.floor(n * every), Math.floor((n + 1) * every));
    let low = part[0], high = part[0];
    for (const one of part) { if (one[1] < low[1]) low = one; if (one[1] > high[1]) high = one; }
    found.push(...(low[0] <= high[0] ? [low, high] : [high, low]));
  }
  return found.concat([points[points.length - 1]]);
}

function path(points, frame) {
  return reduced(points).map(([x, y], n) => `${n ? "L" : "M"}${(UNITS * frame.x(x)).toFixed(1)} ${frame.y(y).toFixed(1)}`).join("");
}

function draw(chart, columns, epochWord) {
  const [main, held] = columns;
  const panel = chart.closest("[data-fields]");
  const frame = frameOf(columns.flat(), "linear" in panel.dataset, "zero" in panel.dataset);
  const plot = make("svg", { class: "plot", viewBox: `0 0 ${UNITS} ${HEIGHT}`, width: "100%", height: HEIGHT, preserveAspectRatio: "none" });
  for (const value of frame.yTicks) plot.append(make("line", { class: "grid", x1: 0, x2: UNITS, y1: frame.y(value), y2: frame.y(value) }));
  if (main.length) {
    const exact = panel.dataset.fields === "learning_rate";
    if (!exact) plot.append(make("path", { class: "raw s0", d: path(main, frame) }));
    plot.append(make("path", { class: "curve s0", d: path(exact ? main : smoothed(main), frame) }));
  }
  const marks = [];
  if (held && held.length) {
    plot.append(make("path", { class: "curve s1", "stroke-dasharray": "7 4", d: path(held, frame) }));
    const every = Math.max(1, Math.floor(held.length / 40));
    for (const [x, y] of held.filter((_one, n) => n % every === 0 || n === held.length - 1)) {
      const mark = make("svg", { class: "mark", x: `${100 * frame.x(x)}%`, y: frame.y(y), overflow: "visible" });
      mark.append(make("path", { class: "s1", d: "M-3.5-3.5h7v7h-7z" }));
      marks.push(mark);
    }
  }
  const labels = frame.yTicks.map((value) => make("text", { x: -8, y: frame.y(value).toFixed(1), dy: 4, "text-anchor": "end" }, label(value)));
  for (const value of frame.xTicks) {
    labels.push(make("text", { x: `${(100 * frame.x(value)).toFixed(2)}%`, y: HEIGHT + 18, "text-anchor": "middle" }, label(value)));
  }
  labels.push(make("text", { x: "100%", y: HEIGHT + 34, "text-anchor": "end" }, epochWord));
  const named = [...chart.querySelectorAll(":scope > title, :scope > desc")];
  chart.replaceChildren(...named, plot, ...labels, ...marks);
}

class Curves {
  constructor(place) {
    this.place = place;
    this.names = place.dataset.names.split(" ");
    this.epoch = Number(place.dataset.epoch);
    this.points = JSON.parse(place.dataset.points);
    this.isDue = false;
  }

  add(points) {
    this.points.push(...points);
    if (!this.isDue) {  // many pieces that come at once are drawn once
      this.isDue = true;
      requestAnimationFrame(() => { this.isDue = false; this.draw(); });
    }
  }

  column(name) {
    const at = this.names.indexOf(name), epoch = this.names.indexOf("epoch"), step = this.names.indexOf("step");
    return this.points.filter((one) => one[at] !== null).map((one) => [one[epoch] ?? one[step] / this.epoch, one[at]]);
  }

  draw() {
    const panels = this.place.querySelectorAll("[data-fields]");
    if (!panels.length && this.points.length > 1) location.reload();  // the first figures: the server draws the panels
    for (const panel of panels) {
      const columns = panel.dataset.fields.split(" ").map((name) => this.column(name));
      const chart = panel.querySelector("svg.chart");
      const hasNewLine = columns.length > 1 && columns[1].length && !panel.querySelector(".legend");
      if (hasNewLine) { location.reload(); return; }  // the first evaluation brings a legend
      if (chart && columns.some((one) => one.length)) draw(chart, columns, chart.querySelector("text:last-of-type")?.textContent ?? "");
    }
  }
}

const live = document.querySelector("section.watched[data-events]");
if (live) {
  const curves = new Curves(document.querySelector(".charts[data-points]"));
  follow(live, { points: (points) => curves.add(points), state: (state) => show(live, state) });
}

const all = document.querySelector("form[data-events]");
if (all) {
  follow(all, {
    states: (states) => {
      for (const row of all.querySelectorAll("[data-run]")) {
        if (states[row.dataset.run]) show(row, states[row.dataset.run]);
      }
    },
  });
}

// Chat ----------------------------------------------------------------------------------------------------------------

const chat = document.getElementById("chat");
if (chat) {
  const turns = document.getElementById("turns"), stop = document.getElementById("stop"), send = chat.querySelector("button");
  const say = (kind, text) => {
    const element = document.createElement("p");
    element.className = kind;
    element.dir = "auto";
    element.textContent = text;
    turns.append(element);
    element.scrollIntoView({ block: "nearest" });
    return element;
  };
  stop.addEventListener("click", () => fetch(stop.dataset.action, { method: "POST" }));
  chat.question.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); chat.requestSubmit(); }
  });
  chat.addEventListener("submit", async (event) => {
    event.preventDefault();
    const question = chat.question.value.trim();
    if (!question || send.disabled) return;
    const body = new URLSearchParams(new FormData(chat));
    say("you", question);
    const answer = say("them thinking", turns.dataset.loading);
    chat.question.value = "";
    send.disabled = true;
    stop.hidden = false;
    try {
      await read(await fetch(chat.action, { method: "POST", body }), answer, say);
    } catch (problem) {
      say("problem", String(problem));
    }
    send.disabled = false;
    stop.hidden = true;
    chat.question.focus();
  });
}

async function read(response, answer, say) {
  if (!response.ok) {
    const page = new DOMParser().parseFromString(await response.text(), "text/html");  // a page of the board: its text alone
    answer.remove();
    say("problem", page.querySelector("main p")?.textContent ?? response.statusText);
    return;
  }
  let rest = "", begun = false;
  for (const reader = response.body.pipeThrough(new TextDecoderStream()).getReader(); ;) {
    const { done, value } = await reader.read();
    if (done) break;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const said of lines.filter(Boolean).map((line) => JSON.parse(line))) {
      if (said.piece) {
        if (!begun) { answer.textContent = ""; answer.classList.remove("thinking"); begun = true; }
        answer.textContent += said.piece;
      }
      if (said.end && !begun) { answer.textContent = "–"; answer.classList.remove("thinking"); }
      if (said.problem) say("problem", said.problem);
    }
  }
}
