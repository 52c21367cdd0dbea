// Signing in, the views by the address' fragment, and the events.
import {h, get, api, notice} from "/web/dom.js";
import {VIEWS} from "/web/views.js";

const $ = id => document.getElementById(id);
let me = null, source = null, current = null;

function signedOut() {
  me = null;
  source?.close();
  source = null;
  current = null;
  $("bar").hidden = true;
  $("view").replaceChildren();
  $("sign-in").hidden = false;
  $("token").focus();
}

$("sign-in").addEventListener("submit", async event => {
  event.preventDefault();
  $("sign-in-problem").textContent = "";
  try {
    await api("POST", "/sign-in", {token: $("token").value});
    $("token").value = "";
    await begin();
  } catch (error) {
    $("sign-in-problem").textContent = error.message;
  }
});

$("out").addEventListener("click", async () => {
  await api("POST", "/sign-out").catch(() => null);
  signedOut();
});

const live = told => { $("live").textContent = `${told.workers} worker${told.workers === 1 ? "" : "s"}, v${told.version}`; };

function follow() {
  source?.close();
  source = new EventSource("/v1/events");
  source.addEventListener("status", event => {
    const told = JSON.parse(event.data);
    live(told);
    current?.status?.(told);
  });
  source.addEventListener("change", event => current?.change?.(JSON.parse(event.data)));
  source.onerror = () => {
    $("live").textContent = "not connected";
    if (source.readyState === EventSource.CLOSED && me) setTimeout(() => me && follow(), 5000);
  };
}

function navigate(fleet) {
  $("nav").replaceChildren(...Object.values(VIEWS).filter(each => fleet || each.name !== "fleet").map(each => {
    const link = h("a", {href: `#/${each.name}`}, each.title);
    link.dataset.name = each.name;
    return link;
  }));
  mark();
}

function mark() {
  for (const each of $("nav").children) each.dataset.name === current?.name ? each.setAttribute("aria-current", "page") : each.removeAttribute("aria-current");
}

// status: what was asked already, if it was
async function show(status) {
  if (!me) return;
  const [name, text] = location.hash.replace(/^#\/?/, "").split("?");
  const view = VIEWS[name] ?? VIEWS.overview;
  document.title = `${view.title} – gsocks`;
  current?.close?.();
  const place = h("div");
  $("view").replaceChildren(place);
  const shown = {place, me, asked: status, name: view.name, query: Object.fromEntries(new URLSearchParams(text ?? ""))};
  current = shown;
  mark();
  try {
    await view.show(shown);
  } catch (error) {
    if (current === shown && me) place.replaceChildren(h("h1", null, view.title), h("p", {class: "bad", role: "alert"}, error.message));
  }
  if (current === shown) document.body.dataset.shown = view.name;
}

async function begin() {
  // Both are on the way since the page came, if the browser was signed in then, and are taken at
  // once even if it no longer is: else the refusal of the second would be what a sign-in finds.
  const asked = get("/v1/status"), known = asked.catch(() => null);
  me = await get("/v1/me");
  $("sign-in").hidden = true;
  $("bar").hidden = false;
  $("who").textContent = `${me.name} (${me.role})`;
  navigate(false);
  known.then(told => {
    if (!told || !me) return;
    live(told);
    if (told.fleet) navigate(true);
  });
  await show(asked);
  // once the view is there: the first event costs the gateway what a status does
  if (me) follow();
}

window.addEventListener("signed-out", () => me && signedOut());
window.addEventListener("hashchange", () => show());
begin().catch(error => error.status === 401 ? signedOut() : notice(error.message, true));
