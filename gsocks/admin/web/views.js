// The views. Each draws into `place`, and may take the events `status` and `change`.
import {h, get, api, act, ask, notice, enc, count, ms, bytes, span, clock, moment, percent, state, table} from "/web/dom.js";
import {chart, spark} from "/web/chart.js";

const wide = {class: "wide"}, number = {class: "n"};
const title = (text, ...more) => h("div", {class: "row head"}, h("h1", null, text), h("div", {class: "row"}, more));
const go = (view, query) => { location.hash = `#/${view}?${new URLSearchParams(Object.entries(query).filter(([, value]) => value))}`; };
const link = (view, query, text) => h("a", {href: `#/${view}?${new URLSearchParams(query)}`}, text);
const card = (text, ...more) => h("section", {class: "card"}, h("h2", null, text), ...more);
const happened = each => `${each.exit ? `${each.exit}: ` : ""}${each.subject && !each.text.includes(each.subject) ? `${each.subject} ` : ""}${each.text}`;

function filters(fields, query, view) {
  const form = h("form", {class: "row filters", role: "search", onsubmit: event => { event.preventDefault(); send(); }});
  const send = () => go(view, {...query, cursor: "", ...Object.fromEntries(new FormData(form))});
  for (const [name, label, options] of fields) {
    const input = options
      ? h("select", {name, onchange: send}, options.map(each => h("option", {value: each, selected: each === (query[name] ?? "")}, each || "all")))
      : h("input", {name, value: query[name] ?? "", size: 14, autocomplete: "off"});
    form.append(h("label", null, label, input));
  }
  form.append(h("button", {type: "submit", class: "quiet"}, "Filter"));
  return form;
}

function following(page, query, view) {
  return h("div", {class: "row end", role: "navigation", "aria-label": "Pages"},
    query.cursor && h("button", {type: "button", class: "quiet", onclick: () => history.back()}, "Previous"),
    page.next && h("button", {type: "button", class: "quiet", onclick: () => go(view, {...query, cursor: page.next})}, "Next"));
}

// --- overview ---------------------------------------------------------------------------------

const rate = (values, step) => values.map(each => each / step);
const lastOf = values => [...values].reverse().find(each => each !== null && each !== undefined) ?? null;

async function overview(view) {
  const {place, query} = view, day = query.range === "day";
  const tiles = h("div", {class: "tiles"}), charts = h("div", {class: "grid charts"}), lists = h("div", {class: "grid lists"}), states = h("div", {class: "chips"});
  const range = (name, text) => h("button", {type: "button", class: "quiet", "aria-pressed": String(day === (name === "day")), onclick: () => go("overview", {range: name})}, text);
  place.append(title("Overview", range("hour", "Last hour"), range("day", "Last day")), tiles, card("Exits by state", states), h("br"), charts, lists);
  let before = null, figures = {};
  const tile = (name, value) => h("div", {class: "card tile"}, h("span", {class: "faint"}, name), h("b", null, value));
  const paint = () => tiles.replaceChildren(...Object.entries(figures).map(([name, value]) => tile(name, value)));
  view.status = told => {
    const inbounds = Object.values(told.inbounds);
    const sum = pick => inbounds.reduce((all, each) => all + pick(each), 0);
    const now = {at: told.time, ended: sum(each => Object.values(each.outcomes).reduce((a, b) => a + b, 0)), ok: sum(each => each.outcomes.ok ?? 0)};
    if (before && now.at > before.at) figures["requests/s"] = Math.max(0, (now.ended - before.ended) / (now.at - before.at)).toFixed(1);
    before = now;
    figures["open connections"] = count(sum(each => each.connections));
    figures.sessions = count(Object.values(told.sessions).reduce((a, b) => a + b, 0));
    figures["loop lag p99"] = ms(told.loop.p99);
    paint();
    states.replaceChildren(...Object.entries(told.exit_states).map(([name, value]) =>
      h("button", {type: "button", onclick: () => go("exits", {state: name})}, `${count(value)} `, state({state: name}))));
  };
  const draw = async () => {
    const step = day ? 60 : 10, series = await get("/v1/series", {step});
    const how = {since: series.since, step}, all = series.requests.reduce((a, b) => a + b, 0), failed = series.failed.reduce((a, b) => a + b, 0);
    figures = {"requests/s": figures["requests/s"] ?? (lastOf(series.requests) / step).toFixed(1), "success rate": percent(all - failed, all), "connect p50": ms(lastOf(series.connect_p50)), "connect p95": ms(lastOf(series.connect_p95)), "first byte p95": ms(lastOf(series.first_byte_p95)), ...figures};
    figures["success rate"] = percent(all - failed, all);
    paint();
    const two = (one, other) => h("div", {class: "legend"}, h("span", {class: "key"}, one), other && h("span", {class: "key b"}, other));
    const lines = (name, legend, values, format) => card(name, chart(name, values, {...how, format}), two(...legend));
    charts.replaceChildren(
      lines("Requests a second", ["all", "failed"], [rate(series.requests, step), rate(series.failed, step)], value => `${value.toFixed(1)}/s`),
      lines("Time to connect", ["p50", "p95"], [series.connect_p50, series.connect_p95], ms),
      lines("Time to the first byte", ["p50", "p95"], [series.first_byte_p50, series.first_byte_p95], ms),
      lines("Traffic", ["from destinations", "to them"], [rate(series.down, step), rate(series.up, step)], value => `${bytes(value)}/s`),
      lines("Open connections", ["open"], [series.open], value => count(Math.round(value))),
      lines("Longest turn of the loop", ["seconds"], [series.lag], ms));
  };
  const top = (kind, sort) => get("/v1/top", {kind, sort, limit: 6, since: Date.now() / 1000 - (day ? 86400 : 3600)}).catch(() => ({items: []}));
  const told = async () => {
    const [exits, hosts, users, changes] = await Promise.all([top("exit", "failed"), top("host", "failed"), top("user", "bytes"), get("/v1/changes", {limit: 12})]);
    const name = kind => each => kind === "exit" ? link("exits", {exit: each.name.split("/").slice(1).join("/"), section: each.name.split("/")[0]}, each.name) : each.name || "–";
    const list = (text, kind, found) => card(text, table(text, [["Name", name(kind), {class: "clip"}], [kind === "exit" ? "Tries" : "Requests", each => count(each.tries ?? each.requests), number], ["Failed", each => count(each.failed), number], ["Traffic", each => bytes(each.up + each.down), number]], found.items));
    lists.replaceChildren(list("Worst exits", "exit", exits), list("Worst destinations", "host", hosts), list("Top users", "user", users),
      card("What changed lately", table("What changed lately", [["When", each => clock(each.time)], ["Kind", each => each.kind], ["", happened, wide]], changes.items)));
  };
  // without a time, as the browser's clock is not the gateway's
  await Promise.all([draw(), told(), (view.asked ?? get("/v1/status")).then(view.status)]);
  const timer = setInterval(() => { draw().catch(() => null); told().catch(() => null); }, 10000);
  view.close = () => clearInterval(timer);
}

// --- exits ------------------------------------------------------------------------------------

const STATES = ["", "ok", "unproven", "degraded", "probation", "ejected", "down", "banned", "spent", "draining"];

async function exits(view) {
  const {place, query, me} = view;
  if (query.exit) return exit(view);
  const wanted = ["section", "state", "country", "tag", "source", "text", "sort", "order", "cursor"];
  const page = await get("/v1/exits", {limit: 50, history: "true", ...Object.fromEntries(wanted.map(name => [name, query[name]]))});
  const chosen = new Map(), acts = me.role === "operator";
  const buttons = h("div", {class: "row"});
  const many = (action, text, fields = []) => h("button", {type: "button", class: "quiet", disabled: true, onclick: async () => {
    const groups = new Map();
    for (const each of chosen.values()) groups.set(each.section, [...(groups.get(each.section) ?? []), each.name]);
    const given = await ask(`${text} ${chosen.size} exit${chosen.size === 1 ? "" : "s"}?`, [...chosen.values()].map(each => each.name).slice(0, 20).join(", "), fields, text);
    if (!given) return;
    for (const [section, names] of groups) {
      const body = {names, action, ...(given.seconds ? {seconds: Number(given.seconds)} : {}), ...(given.domain ? {domain: given.domain} : {})};
      if (await act(() => api("POST", `/v1/exits/actions?section=${enc(section)}`, body), `${text}: done`) === null) return;
    }
    again(view);
  }}, text);
  const oneByOne = (text, fields, one) => h("button", {type: "button", class: "quiet", disabled: true, onclick: async () => {
    const all = [...chosen.values()], given = await ask(`${text} ${all.length} exit${all.length === 1 ? "" : "s"}?`, all.map(row => row.name).slice(0, 20).join(", "), fields, text);
    if (!given) return;
    const told = [];
    // as many at a time as do not keep others from theirs
    await Promise.all(Array.from({length: 4}, async () => {
      for (let row = all.shift(); row; row = all.shift()) told.push(await one(row, given).catch(error => `${row.name}: ${error.message}`));
    }));
    const failed = told.filter(line => line);
    notice(failed.length ? `${text}: ${failed.slice(0, 5).join("; ")}${failed.length > 5 ? ` and ${failed.length - 5} more` : ""}` : `${text}: ${told.length} done`, failed.length > 0);
    again(view);
  }}, text);
  const at = row => [`/v1/exits/${enc(row.name)}`, `?section=${enc(row.section)}`];
  const check = async row => { const [path, of] = at(row), seen = await api("POST", `${path}/check${of}`); return seen.ok ? "" : `${row.name}: ${seen.trouble}`; };
  const report = async (row, given) => { const [path, of] = at(row); await api("POST", `${path}/report${of}`, {domain: given.domain, ok: given.ok === "ok"}); return ""; };
  if (acts) buttons.append(oneByOne("Check now", [], check), many("ban", "Ban", BAN), many("unban", "Unban"), many("drain", "Drain"), many("undrain", "Undrain"), oneByOne("Report", REPORT, report),
    h("button", {type: "button", onclick: () => put(view)}, "Add an exit"));
  const pick = each => h("input", {type: "checkbox", "aria-label": `select ${each.name}`, onchange: event => {
    event.target.checked ? chosen.set(`${each.section}/${each.name}`, each) : chosen.delete(`${each.section}/${each.name}`);
    for (const button of buttons.children) if (button.classList.contains("quiet")) button.disabled = !chosen.size;
  }});
  const sorted = {by: query.sort ?? "name", order: query.order ?? "asc", set: by => go("exits", {...query, cursor: "", sort: by, order: sorted.by === by && sorted.order === "asc" ? "desc" : "asc"})};
  const sort = (by, how = {}) => ({...how, sort: by});
  const chips = Object.entries(page.states).map(([name, value]) => h("button", {type: "button", "aria-pressed": String(query.state === name), onclick: () => go("exits", {...query, cursor: "", state: query.state === name ? "" : name})}, `${count(value)} `, state({state: name})));
  place.append(title("Exits", buttons), filters([["text", "Text"], ["state", "State", STATES], ["country", "Country"], ["tag", "Tag"], ["source", "Source"]], query, "exits"),
    h("div", {class: "row head"}, h("div", {class: "chips"}, chips), h("span", {class: "faint"}, `${count(page.total)} match`)),
    table("Exits", [
      ...(acts ? [["Select", pick]] : []),
      ["Name", each => link("exits", {exit: each.name, section: each.section}, each.name), sort("name")],
      ["State", state, sort("state")],
      ["Last hour", each => spark(each.tries_by_minute ?? [], each.failed_by_minute ?? [], `${(each.tries_by_minute ?? []).reduce((a, b) => a + b, 0)} tries, ${(each.failed_by_minute ?? []).reduce((a, b) => a + b, 0)} failed`)],
      ["Open", each => count(each.open), sort("open", number)], ["Connected", each => count(each.connected), sort("connected", number)],
      ["Failed", each => count(each.failed), sort("failed", number)], ["Success", each => percent(each.connected, each.connected + each.failed), sort("success", number)],
      ["Connect", each => ms(each.connect_seconds), sort("connect_seconds", number)], ["Traffic", each => bytes(each.up + each.down), sort("traffic", number)],
      ["Country", each => each.country ?? "", sort("country")], ["Address", each => each.address ?? "", sort("address")],
      ["Label", each => h("div", {class: "clip mono", title: each.label}, each.label)], ["Source", each => h("div", {class: "clip", title: each.source}, each.source)],
      ["Last error", each => h("div", {class: "clip", title: each.last_error}, each.last_error)],
    ], page.items, sorted), following(page, query, "exits"));
}

const BAN = [["seconds", "Seconds", {type: "number", min: 1, max: 31622400, value: "600", required: true}], ["domain", "Only for that domain (left out: for all)", {}]];
const REPORT = [["domain", "Domain", {required: true}], ["ok", "ok or failed", {value: "failed", required: true, pattern: "ok|failed"}]];
const again = view => { view.place.replaceChildren(); view.close?.(); return VIEWS[view.name].show(view).catch(error => notice(error.message, true)); };

async function put(view, name = "") {
  const given = await ask(name ? `Replace ${name}` : "Add an exit", "It counts over the config and the lists.", [
    ["name", "Name", {value: name, required: true, readOnly: Boolean(name)}], ["url", "URL", {required: true, placeholder: "socks5://user:password@10.0.0.7:1080"}],
    ["country", "Country", {maxLength: 2}], ["tags", "Tags, with commas between them", {}]], name ? "Replace" : "Add");
  if (!given) return;
  const tags = given.tags.split(",").map(each => each.trim()).filter(Boolean);
  const body = {url: given.url, ...(given.country ? {country: given.country} : {}), ...(tags.length ? {tags} : {})};
  if (await act(() => api("PUT", `/v1/exits/${enc(given.name)}`, body), `${given.name} was put`) !== null) again(view);
}

async function exit(view) {
  const {place, query, me} = view, name = query.exit, at = `/v1/exits/${enc(name)}`, of = `?section=${enc(query.section ?? "")}`;
  const [each, changes] = await Promise.all([get(at, {section: query.section}), get("/v1/changes", {exit: name, limit: 20})]);
  const one = (text, path, fields, method = "POST") => h("button", {type: "button", class: "quiet", onclick: async () => {
    const given = await ask(`${text} ${name}?`, each.label, fields ?? [], text);
    if (!given) return;
    const body = method === "POST" ? {...(given.seconds ? {seconds: Number(given.seconds)} : {}), ...(given.domain ? {domain: given.domain} : {}), ...("ok" in given ? {ok: given.ok === "ok"} : {})} : undefined;
    if (await act(() => api(method, `${at}${path}${of}`, body), `${text}: done`) === null) return;
    method === "DELETE" ? go("exits", {}) : again(view);
  }}, text);
  const check = h("button", {type: "button", onclick: async () => {
    if (!await ask(`Check ${name} now?`, `A request goes out through ${each.label}.`, [], "Check now")) return;
    check.disabled = true;
    await act(() => api("POST", `${at}/check${of}`), told => told.ok ? `${name} ${told.only_answers ? "answers" : "works"}, ${ms(told.seconds)}${told.address ? `, from ${told.address}` : ""}` : `${name}: ${told.trouble}`);
    check.disabled = false;
  }}, "Check now");
  const buttons = me.role !== "operator" ? [] : [check, one("Ban", "/ban", BAN), one("Unban", "/unban", [["domain", "Only for that domain", {}]]), one("Drain", "/drain"), one("Undrain", "/undrain"),
    one("Report", "/report", REPORT),
    h("button", {type: "button", class: "quiet", onclick: () => put(view, name)}, "Replace"), one("Remove", "", [], "DELETE"), each.source === "api" && one("Reset", "/reset")];
  const facts = {State: state(each), Label: h("code", null, each.label), Section: each.section, Source: each.source, Country: each.country ?? "–", "Outbound address": each.address ? `${each.address} ${each.address_country ?? ""}` : "–", Tags: each.tags.join(", ") || "–",
    Open: count(each.open), Connected: count(each.connected), Failed: count(each.failed), Connect: ms(each.connect_seconds), Traffic: `${bytes(each.up)} up, ${bytes(each.down)} down`, Tunnels: each.tunnels ? `${each.tunnels.ready} ready, ${each.tunnels.hits} hits` : "–", "Last error": each.last_error || "–"};
  const minutes = each.tries_by_minute ?? [];
  place.append(title(name, buttons), h("p", null, h("a", {href: "#/exits"}, "All exits")), h("div", {class: "grid"},
    card("State", h("dl", null, Object.entries(facts).flatMap(([key, value]) => [h("dt", null, key), h("dd", null, value)]))),
    card("Tries of the last hour", minutes.length ? chart("Tries by minute", [minutes, each.failed_by_minute], {since: Date.now() / 1000 - 3600, step: 60, format: value => count(Math.round(value))}) : "–", h("div", {class: "legend"}, h("span", {class: "key"}, "all"), h("span", {class: "key b"}, "failed"))),
    card("Not used for", table("Not used for", [["Domain", row => row.domain, wide], ["State", state]], each.domains)),
    card("How its requests failed", each.errors ? table("How its requests failed", [["Outcome", ([word]) => word], ["Requests", ([, value]) => count(value), number]], Object.entries(each.errors)) : h("p", {class: "faint"}, "There is no request log.")),
    card("What happened to it", table("What happened to it", [["When", row => moment(row.time)], ["Kind", row => row.kind], ["", row => row.text, wide]], changes.items))));
}

// --- sessions, users, requests ----------------------------------------------------------------

async function sessions(view) {
  const {place, query, me} = view;
  const page = await get("/v1/sessions", {limit: 100, text: query.text, user: query.user, exit: query.exit, cursor: query.cursor});
  const moves = async each => {
    const told = await act(() => get("/v1/changes", {kind: "moved", subject: each.user ? `${each.session} of ${each.user}` : each.session}));
    if (told) side.replaceChildren(card(`Moves of ${each.session}`, table("Moves", [["When", row => moment(row.time)], ["Why", row => row.text, wide]], told.items)));
  };
  const rotate = async each => {
    if (!await ask(`Rotate ${each.session}?`, `It leaves ${each.exit} at its next request.`, [], "Rotate")) return;
    if (await act(() => api("POST", `/v1/sessions/rotate?section=${enc(each.section)}`, {session: each.session, ...(each.user ? {user: each.user} : {})}), told => told.known ? `${each.session} moves at its next request` : `this gateway knows no ${each.session} any more; the others were told`)) again(view);
  };
  const side = h("div");
  place.append(title("Sessions"), filters([["text", "Text"], ["user", "User"], ["exit", "Exit"]], query, "sessions"), table("Sessions", [
    ["Session", each => each.session], ["User", each => each.user ?? "–"], ["Exit", each => link("exits", {exit: each.exit, section: each.section}, each.exit)],
    ["Used", each => `${span(each.idle)} ago`, number], ["Age", each => span(each.age), number],
    ["", each => h("div", {class: "row"}, h("button", {type: "button", class: "quiet", "aria-label": `moves of ${each.session}`, onclick: () => moves(each)}, "Moves"),
      me.role === "operator" && h("button", {type: "button", class: "quiet", "aria-label": `rotate ${each.session}`, onclick: () => rotate(each)}, "Rotate"))],
  ], page.items), following(page, query, "sessions"), h("br"), side);
}

async function users(view) {
  const {place, query, me} = view, page = await get("/v1/users", {limit: 100, text: query.text, cursor: query.cursor});
  const quota = page.quotas.local, limit = (value, format = count) => value === null || value === undefined ? "no limit" : format(value);
  const LIMITS = [["per_user", "Open connections of a user", 1], ["bandwidth_per_user", "Bytes a second of a user, in each direction", 1024], ["bandwidth_per_connection", "Bytes a second of a connection, in each direction", 1024]];
  const change = async (section, now) => {
    const given = await ask(`Quota of a user of ${section}`, "It counts in each worker; what is left empty has no limit.", LIMITS.map(([name, label, min]) => [name, label, {type: "number", min, step: 1, value: now[name] ?? ""}]), "Change");
    if (!given) return;
    const body = Object.fromEntries(LIMITS.map(([name]) => [name, given[name] === "" ? null : Number(given[name])]));
    if (await act(() => api("PUT", `/v1/quotas/${enc(section)}`, body), `The quota of ${section} was changed`)) again(view);
  };
  const speed = value => `${bytes(value)}/s`;
  const quotas = Object.entries(page.quotas);
  const add = async () => {
    const given = await ask("Add a user, or change the password", "It counts in all workers.", [["name", "Name", {required: true}], ["password", "Password", {type: "password", required: true, autocomplete: "new-password"}]], "Save");
    if (given && await act(() => api("PUT", `/v1/users/${enc(given.name)}`, {password: given.password}), `${given.name} was saved`)) again(view);
  };
  const remove = async each => {
    if (await ask(`Remove ${each.name}?`, "Open connections go on.", [], "Remove") && await act(() => api("DELETE", `/v1/users/${enc(each.name)}`), `${each.name} was removed`)) again(view);
  };
  place.append(title("Users", me.role === "operator" && h("button", {type: "button", onclick: add}, "Add a user")), filters([["text", "Text"]], query, "users"),
    quotas.length ? card("Quota of a user, in each worker", table("Quotas", [["Listener", ([section]) => section],
      ["Connections", ([, now]) => limit(now.per_user), number], ["Bandwidth", ([, now]) => limit(now.bandwidth_per_user, speed), number], ["Of a connection", ([, now]) => limit(now.bandwidth_per_connection, speed), number],
      ["", ([section, now]) => me.role === "operator" && h("button", {type: "button", class: "quiet", "aria-label": `change the quota of ${section}`, onclick: () => change(section, now)}, "Change")]], quotas)) : "", h("br"),
    table("Users", [["Name", each => link("requests", {user: each.name}, each.name)], ["From", each => each.source], ["Open", each => quota?.per_user ? `${each.open} of ${quota.per_user}` : count(each.open), number],
      ["Requests of a day", each => count(each.requests), number], ["Failed", each => count(each.failed), number], ["Up", each => bytes(each.up), number], ["Down", each => bytes(each.down), number],
      ["", each => me.role === "operator" && (each.source === "config" || each.source === "api") ? h("button", {type: "button", class: "quiet", "aria-label": `remove ${each.name}`, onclick: () => remove(each)}, "Remove") : ""]], page.items),
    following(page, query, "users"));
}

async function requests(view) {
  const {place, query} = view, names = ["text", "outcome", "user", "exit", "dest", "client", "session", "cursor"];
  const wanted = Object.fromEntries(names.map(name => [name, query[name]]).filter(([, value]) => value));
  const page = await get("/v1/requests", {limit: 100, ...wanted});
  let rows = page.items, tail = null;
  const list = h("div"), detail = h("div");
  const story = each => detail.replaceChildren(card(`Request ${each.id}`, h("dl", null, Object.entries({Time: moment(each.time), Client: each.client, User: each.user || "–", Session: each.session || "–", Destination: each.dest, Asked: each.selector || "nothing", Candidates: each.matching === null ? "–" : `${each.matching} match, ${each.ready} ready`, Choice: each.choice || "–", Exit: each.exit || "–", "Outbound address": each.address || "–", Outcome: `${each.outcome} ${each.detail}`, Times: `connect ${ms(each.connect)}, first byte ${ms(each.first_byte)}, total ${ms(each.total)}`}).flatMap(([key, value]) => [h("dt", null, key), h("dd", null, value)])),
    table("Failed tries", [["Exit", row => row.exit], ["Why", row => row.why], ["", row => row.detail, wide], ["After", row => ms(row.seconds), number]], each.tries)));
  const paint = () => list.replaceChildren(table("Requests", [["Time", each => clock(each.time)], ["Client", each => each.client], ["User", each => each.user], ["Destination", each => h("div", {class: "clip", title: each.dest}, each.dest)], ["Exit", each => each.exit],
    ["Outcome", each => h("span", {class: each.outcome === "ok" ? "good" : "bad"}, each.outcome)], ["Tries", each => count(each.tries.length + (each.outcome === "ok" ? 1 : 0)), number], ["Connect", each => ms(each.connect), number], ["First byte", each => ms(each.first_byte), number], ["Total", each => ms(each.total), number], ["Down", each => bytes(each.down), number],
    ["", each => h("button", {type: "button", class: "quiet", "aria-label": `story of ${each.id}`, onclick: () => story(each)}, "Story")]], rows));
  const live = h("button", {type: "button", class: "quiet", "aria-pressed": "false", onclick: () => {
    if (tail) { tail.close(); tail = null; }
    else {
      tail = new EventSource(`/v1/events?${new URLSearchParams({topics: "requests", ...Object.fromEntries(Object.entries(wanted).filter(([name]) => name !== "cursor"))})}`);
      tail.addEventListener("requests", event => { rows = [...JSON.parse(event.data).reverse(), ...rows].slice(0, 200); paint(); });
    }
    live.setAttribute("aria-pressed", String(Boolean(tail)));
    live.textContent = tail ? "Stop" : "Live";
  }}, "Live");
  view.close = () => tail?.close();
  place.append(title("Requests", live), filters([["text", "Text"], ["outcome", "Outcome (!ok)"], ["user", "User"], ["exit", "Exit"], ["dest", "Host"], ["client", "Client"]], query, "requests"), list, following(page, query, "requests"), h("br"), detail);
  paint();
}

// --- fleet ------------------------------------------------------------------------------------

async function fleet(view) {
  const {place} = view, list = h("div"), store = h("p", {class: "faint"}), tiles = h("div", {class: "tiles"});
  const tile = (name, value) => h("div", {class: "card tile"}, h("span", {class: "faint"}, name), h("b", null, value));
  let before = null;
  const draw = async () => {
    const told = await get("/v1/fleet"), now = Date.now() / 1000, sum = pick => told.members.reduce((all, each) => all + pick(each), 0);
    const ended = new Map(told.members.map(each => [each.node, each.requests]));
    const rates = new Map(told.members.map(each => [each.node, before?.ended.has(each.node) ? Math.max(0, (each.requests - before.ended.get(each.node)) / (now - before.at)) : null]));
    before = {at: now, ended};
    const names = new Set(told.members.map(each => each.gateway)), versions = new Set(told.members.map(each => each.version));
    tiles.replaceChildren(tile("gateways", count(names.size)), tile("processes", count(told.members.length)), tile("open connections", count(sum(each => each.connections))),
      tile("not ready", count(told.members.filter(each => !each.ready).length)), tile(versions.size === 1 ? "version" : "versions", [...versions].sort().join(", ")));
    store.replaceChildren(`Store ${told.store.url}: `, h("span", {class: told.store.state === "ok" ? "good" : "bad"}, told.store.state), `, as ${told.gateway} sees it.`);
    list.replaceChildren(table("Gateways", [["Gateway", each => each.gateway], ["Worker", each => count(each.worker), number], ["Version", each => each.version],
      ["State", each => h("span", {class: each.ready ? "good" : "bad"}, each.ready ? "ready" : "not ready")], ["Open", each => count(each.connections), number],
      ["Requests", each => count(each.requests), number], ["Requests/s", each => rates.get(each.node)?.toFixed(1) ?? "–", number], ["CPU", each => span(each.cpu), number],
      ["Since", each => moment(each.since)], ["Last heard", each => each.heard ? `${each.heard.toFixed(1)} s ago` : "this one", number]], told.members));
  };
  place.append(title("Fleet"), store, tiles, h("br"), list);
  await draw();
  const timer = setInterval(() => draw().catch(() => null), 2000);
  view.close = () => clearInterval(timer);
}

// --- config -----------------------------------------------------------------------------------

async function settings(view) {
  const {place, me} = view, told = await get("/v1/config"), found = h("div");
  const check = async () => {
    const seen = await act(() => get("/v1/config/check"));
    if (!seen) return;
    found.replaceChildren(card(seen.ok ? `A reload would change ${seen.changes.length} key${seen.changes.length === 1 ? "" : "s"}` : "A reload is not possible", seen.ok
      ? table("Changes", [["Key", each => h("code", null, each.key)], ["Runs", each => each.running ?? "–", wide], ["In the file", each => each.found ?? "–", wide], ["", each => each.needs_restart ? h("span", {class: "warn"}, "needs a restart") : ""]], seen.changes)
      : h("ul", {class: "bad"}, seen.mistakes.map(each => h("li", null, each)))));
  };
  const reload = async () => {
    if (await ask("Reload the config?", `Keys, users, exits and certificates of ${told.file} are read again; open connections go on.`, [], "Reload") && await act(() => api("POST", "/v1/reload", {}), "The config is being read again")) setTimeout(() => again(view), 1000);
  };
  const changed = told.changes, list = Object.entries({"Exits put": Object.values(changed.exits).flat(), "Exits removed": Object.values(changed.removed).flat(), "Users put": changed.users, "Users removed": changed.removed_users, "Quotas of": changed.quotas}).filter(([, names]) => names.length);
  place.append(title("Config", h("button", {type: "button", class: "quiet", onclick: check}, "Check the file"), me.role === "operator" && h("button", {type: "button", onclick: reload}, "Reload")),
    h("p", {class: "faint"}, `${told.file}: what runs, and is not as by default.`), found, h("br"),
    list.length ? card(changed.lasting ? "Changed at run time" : "Changed at run time, until the next start", h("dl", null, list.flatMap(([key, names]) => [h("dt", null, key), h("dd", null, names.join(", "))]))) : "", h("br"),
    table("Config", [["Key", each => h("code", null, each.key)], ["Value", each => each.value, wide]], told.keys));
}

export const VIEWS = {};
for (const [name, text, show] of [["overview", "Overview", overview], ["exits", "Exits", exits], ["sessions", "Sessions", sessions], ["users", "Users", users], ["requests", "Requests", requests], ["fleet", "Fleet", fleet], ["config", "Config", settings]]) VIEWS[name] = {name, title: text, show};
