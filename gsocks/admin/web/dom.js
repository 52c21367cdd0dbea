// Elements, figures and the API. Text is set as text, never as markup.
export function h(tag, props, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "class") made.className = value;
    else if (name in made && name !== "list") made[name] = value;
    else made.setAttribute(name, value);
  }
  put(made, children);
  return made;
}

function put(made, children) {
  for (const each of children) {
    if (Array.isArray(each)) put(made, each);
    else if (each !== null && each !== undefined && each !== false) made.append(each);
  }
}

export class Problem extends Error {
  constructor(status, told) {
    super(told.parameter ? `${told.parameter}: ${told.detail}` : told.detail ?? `status ${status}`);
    this.status = status;
    this.told = told;
  }
}

export async function api(method, path, body) {
  const answer = await fetch(path, {
    method, credentials: "same-origin",
    headers: body === undefined ? {} : {"Content-Type": "application/json"},
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  const told = await answer.json().catch(() => ({}));
  if (answer.ok) return told;
  if (answer.status === 401) window.dispatchEvent(new Event("signed-out"));
  throw new Problem(answer.status, told);
}

export const get = (path, query) => {
  const given = Object.entries(query ?? {}).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  return api("GET", given.length ? `${path}?${new URLSearchParams(given)}` : path);
};

export function notice(text, wrong) {
  const shown = h("div", {class: wrong ? "notice wrong" : "notice"}, String(text));
  document.getElementById("notices").append(shown);
  setTimeout(() => shown.remove(), 6000);
}

export const enc = encodeURIComponent;
// by hand: the browser's formats of numbers and times take it longer than all else of a table
export const count = value => value === null || value === undefined ? "–" : String(value).replace(/\B(?=(\d{3})+$)/g, ",");
export const ms = seconds => seconds === null || seconds === undefined ? "–" : seconds < 10 ? `${Math.round(seconds * 1000)} ms` : `${seconds.toFixed(1)} s`;
export function bytes(value) {
  if (!value) return "0";
  const power = Math.min(4, Math.floor(Math.log(value) / Math.log(1024)));
  return `${(value / 1024 ** power).toFixed(power && value / 1024 ** power < 10 ? 1 : 0)} ${["B", "KiB", "MiB", "GiB", "TiB"][power]}`;
}
export function span(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 129600 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} d`;
}
const two = value => String(value).padStart(2, "0");
export function clock(at, seconds = true) {
  const of = new Date(at * 1000);
  return `${two(of.getHours())}:${two(of.getMinutes())}${seconds ? `:${two(of.getSeconds())}` : ""}`;
}
export function moment(at) {
  const of = new Date(at * 1000);
  return `${of.getFullYear()}-${two(of.getMonth() + 1)}-${two(of.getDate())} ${clock(at)}`;
}
export const percent = (part, whole) => whole ? `${(100 * part / whole).toFixed(part === whole ? 0 : 1)} %` : "–";

const KINDS = {ok: "good", degraded: "warn", probation: "warn", ejected: "bad", down: "bad", banned: "hold", spent: "hold", draining: "hold"};
export const state = each => h("span", {class: KINDS[each.state] ?? ""}, each.state + (each.back_in ? ` ${span(each.back_in)}` : ""));

// columns: [title, cell, {sort, class}]; a cell is text or an element
export function table(label, columns, rows, sorted) {
  const head = columns.map(([title, , how = {}]) => h("th", {
    scope: "col", class: how.class,
    "aria-sort": sorted && how.sort && sorted.by === how.sort ? (sorted.order === "asc" ? "ascending" : "descending") : undefined,
  }, sorted && how.sort ? h("button", {type: "button", onclick: () => sorted.set(how.sort)},
    title + (sorted.by === how.sort ? (sorted.order === "asc" ? " ▲" : " ▼") : "")) : title));
  const body = rows.map(row => h("tr", null, columns.map(([, cell, how = {}]) => h("td", {class: how.class}, cell(row)))));
  if (!body.length) body.push(h("tr", null, h("td", {colSpan: columns.length, class: "faint"}, "none")));
  return h("div", {class: "scroll", tabIndex: 0, role: "region", "aria-label": label},
    h("table", null, h("thead", null, h("tr", null, head)), h("tbody", null, body)));
}

// A question; resolves with the values of its inputs, or with null
export function ask(title, text, fields = [], yes = "Yes") {
  const dialog = document.getElementById("ask"), inputs = {};
  document.getElementById("ask-title").textContent = title;
  document.getElementById("ask-yes").textContent = yes;
  document.getElementById("ask-body").replaceChildren(h("p", null, text), ...fields.map(([name, label, how]) => {
    inputs[name] = h("input", {id: `ask-${name}`, autocomplete: "off", ...how});
    return h("p", null, h("label", {htmlFor: `ask-${name}`}, label, h("br"), inputs[name]));
  }));
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise(done => dialog.addEventListener("close", () => done(
    dialog.returnValue === "yes" ? Object.fromEntries(Object.entries(inputs).map(([name, each]) => [name, each.value])) : null), {once: true}));
}

export async function act(what, done) {
  try {
    const told = await what();
    if (done) notice(typeof done === "function" ? done(told) : done);
    return told;
  } catch (error) {
    notice(error.message, true);
    return null;
  }
}
