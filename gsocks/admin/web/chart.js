// Lines over time, as SVG.
import {clock} from "/web/dom.js";

const NS = "http://www.w3.org/2000/svg";
function s(tag, attributes, text) {
  const made = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function path(values, width, height, top, left) {
  const step = width / Math.max(1, values.length - 1);
  let text = "", open = false;
  values.forEach((value, at) => {
    if (value === null || value === undefined) { open = false; return; }
    if (open && value === values[at - 1] && value === values[at + 1]) return;  // within a level line
    text += `${open ? "L" : "M"}${(left + at * step).toFixed(1)} ${(height - value / top * (height - 8)).toFixed(1)}`;
    if (!open && (values[at + 1] === null || values[at + 1] === undefined)) text += "h-3";
    open = true;
  });
  return text;
}

export function chart(label, lines, {since, step, format}) {
  const width = 520, height = 100, top = Math.max(...lines.flat().filter(each => each !== null), 0) || 1;
  const made = s("svg", {class: "chart", viewBox: `0 0 ${width} 104`, preserveAspectRatio: "none", role: "img", "aria-label": `${label}, at most ${format(top)}`});
  made.append(s("line", {class: "axis", x1: 0, x2: width, y1: height, y2: height}), s("line", {class: "axis", x1: 0, x2: width, y1: 8, y2: 8}));
  [...lines.entries()].reverse().forEach(([at, values]) => made.append(s("path", {class: at ? "two" : "one", d: path(values, width, height, top, 0), "vector-effect": "non-scaling-stroke"})));
  const at = seconds => clock(seconds, false);
  const ends = since + step * Math.max(0, (lines[0]?.length ?? 1) - 1);
  // beside the drawing, which is stretched
  const foot = document.createElement("div"), shown = document.createElement("div");
  foot.className = "legend axis-labels";
  for (const text of [at(since), `top ${format(top)}`, at(ends)]) foot.append(Object.assign(document.createElement("span"), {textContent: text}));
  shown.append(made, foot);
  return shown;
}

export function spark(values, failed, label) {
  const made = s("svg", {class: "spark", viewBox: "0 0 90 20", role: "img", "aria-label": label});
  const top = Math.max(...values, ...failed, 1);
  made.append(s("path", {class: "one", d: path(values, 90, 19, top, 0)}));
  if (failed.some(each => each)) made.append(s("path", {class: "two", d: path(failed.map(each => each || null), 90, 19, top, 0)}));
  return made;
}
