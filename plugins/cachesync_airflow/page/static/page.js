// The page: asks for the overview every two seconds, and shows what has changed.

const POLL_MS = 2000;
const TIMEOUT_MS = 15000;
const OLD_MS = 10000;
const REPORT_MS = 5000;
const HISTORY_MS = 30000;
const MAX_REASON = 500;
const MAX_PROBLEMS = 20;
const MAX_PAYLOAD = 100000;

// ---------------------------------------------------------------------------------------------- state

const state = {
  status: null,
  etag: null,
  answeredAt: 0,
  failure: null,
  skew: 0, // by how much the clock of the server is ahead of that of this computer, in ms
  may: null, // what the user may trigger
  view: "overview",
  period: "hour",
  filter: "",
  cache: "",
  charts: new Set(), // the entities whose charts are open, as "service entity"
  lookup: null, // {entity, key}
  report: null,
  reportError: null,
  reportAt: 0,
  lags: null, // by service and entity
  lagsAt: 0,
  run: null, // the run that the dialog waits for
};

const here = document.documentElement;
const framedBy = frame();
const gone = new AbortController(); // what listens to Airflow's window ends with the frame
const airflow = new URL("../", location.href);
const $ = (id) => document.getElementById(id);

/** Returns Airflow's window, if it shows this page in a frame. */
function frame() {
  try {
    return window.parent !== window && window.parent.document ? window.parent : null;
  } catch {
    return null;
  }
}

// ---------------------------------------------------------------------------------------------- words

const number = new Intl.NumberFormat("en-US");
const count = (value, one, many = `${one}s`) => `${number.format(value)} ${value === 1 ? one : many}`;
const orDash = (value, format = (it) => it) => (value === null || value === undefined ? "–" : format(value));

function seconds(value) {
  if (value < 1) return `${Math.max(1, Math.round(value * 1000))} ms`;
  if (value < 10) return `${Number(value.toFixed(1))} s`;
  if (value < 120) return `${Math.round(value)} s`;
  if (value < 7200) return `${Math.round(value / 60)} min`;
  if (value < 172800) return `${Math.round(value / 3600)} h`;
  return `${Math.round(value / 86400)} days`;
}

function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  for (; value >= 1000 && unit < units.length - 1; unit += 1) value /= 1000;
  return `${value >= 100 || unit === 0 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

const percent = (share) => `${(100 * share).toFixed(1)}%`;

/** Never says 100% of what is not all. */
function shareOf(part, all) {
  if (!all) return "–";
  if (part >= all) return "100%";
  for (let digits = 1; digits < 7; digits += 1) {
    const text = ((100 * part) / all).toFixed(digits);
    if (Number(text) < 100) return `${text}%`;
  }
  return "<100%";
}

/** The number of nines after a second; with "≥", what this many changes can show. */
function nines(seen) {
  const value = seen.nines[1];
  if (value === null) return "–";
  return `${seen.seen[1] === seen.judged[1] ? "≥ " : ""}${value.toFixed(1)}`;
}

/** The time of the server: the clock of this computer may be wrong. */
const now = () => Date.now() + state.skew;

const ago = (at) => `${seconds(Math.max(0, (now() - Date.parse(at)) / 1000))} ago`;

/** Shows what would change the text around it, or would not be seen: control characters, and those that turn its direction. */
const visible = (text) =>
  text.replace(/[\0-\x08\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2060\u2066-\u2069\ufeff]/g, (sign) => `\\u${sign.charCodeAt(0).toString(16).padStart(4, "0")}`);

/** A key, with the blanks at its ends. */
const keyText = (key) => (key === "" ? "(the empty text)" : key.replace(/^ +| +$/g, (blanks) => "␠".repeat(blanks.length)));

function time(at) {
  const node = h("time", { datetime: at, title: new Date(at).toLocaleString("en-US"), "data-ago": "" }, ago(at));
  return node;
}

// ---------------------------------------------------------------------------------------------- the document

/** Makes an element. Children that are null or false are left out. */
function h(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(9).filter((child) => child !== null && child !== undefined && child !== false).map((child) => (typeof child === "string" ? visible(child) : child)));
  return node;
}

function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const icon = (name) => svg("svg", { class: "icon", "aria-hidden": "true" }, svg("use", { href: `#i-${name}` }));

/** Changes the children of an element into others, and keeps what is the same: focus, selection and charts stay. */
function show(parent, ...next) {
  const nodes = next.flat(9).filter((node) => node !== null && node !== undefined && node !== false);
  const keyed = new Map([...parent.children].filter((node) => node.dataset.key).map((node) => [node.dataset.key, node]));
  let old = parent.firstChild;
  for (const given of nodes) {
    const node = typeof given === "string" ? document.createTextNode(given) : given;
    const known = node.dataset?.key ? keyed.get(node.dataset.key) : old;
    if (!known || known.nodeName !== node.nodeName || (known.dataset?.key ?? "") !== (node.dataset?.key ?? "")) {
      parent.insertBefore(node, old);
      continue;
    }
    if (known === old) old = old.nextSibling;
    else parent.insertBefore(known, old);
    update(known, node);
  }
  while (old) {
    const following = old.nextSibling;
    old.remove();
    old = following;
  }
}

function update(known, node) {
  if (known.nodeType === Node.TEXT_NODE) {
    if (known.data !== node.data) known.data = node.data;
    return;
  }
  for (const { name } of [...known.attributes]) if (!node.hasAttribute(name)) known.removeAttribute(name);
  for (const { name, value } of node.attributes) if (known.getAttribute(name) !== value) known.setAttribute(name, value);
  // A chart draws itself.
  if (!node.classList.contains("plot")) show(known, ...node.childNodes);
}

// ---------------------------------------------------------------------------------------------- the look

const COLORS = [
  "bg", "bg-subtle", "bg-muted", "bg-error", "bg-warning", "bg-success", "bg-info", "fg", "fg-muted", "fg-error",
  "fg-warning", "fg-success", "fg-info", "border", "border-emphasized", "brand-solid", "brand-contrast", "brand-fg",
  "brand-muted", "danger-solid", "danger-fg", "danger-muted", "warning-fg", "warning-muted", "success-fg",
  "success-muted", "none-fg", "none-muted",
];

/** Follows Airflow's theme, also one of the user's own; outside of Airflow's frame, the theme it was left in. */
function followTheme() {
  const preferred = matchMedia("(prefers-color-scheme: dark)");
  const apply = () => {
    const chosen = framedBy ? null : localStorage.getItem("theme");
    const dark = framedBy
      ? framedBy.document.documentElement.classList.contains("dark")
      : chosen === "dark" || (chosen !== "light" && preferred.matches);
    here.classList.toggle("dark", dark);
    if (framedBy) {
      const theirs = framedBy.getComputedStyle(framedBy.document.documentElement);
      for (const name of COLORS) {
        const color = theirs.getPropertyValue(`--chakra-colors-${name}`);
        if (color) here.style.setProperty(`--${name}`, color);
      }
    }
    for (const chart of charts.values()) chart.draw();
  };
  preferred.addEventListener("change", apply);
  window.addEventListener("storage", apply);
  if (framedBy) {
    const observer = new MutationObserver(apply);
    observer.observe(framedBy.document.documentElement, { attributeFilter: ["class", "style"] });
    gone.signal.addEventListener("abort", () => observer.disconnect());
  }
  apply();
}

// ---------------------------------------------------------------------------------------------- asking

class Failure extends Error {
  constructor(message, code) {
    super(message);
    this.code = code;
  }
}

async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(new URL(path, airflow), { signal: AbortSignal.timeout(TIMEOUT_MS), ...options });
  } catch {
    if (options.method === "POST") throw new Failure("Airflow did not respond. Before you try again, see whether the run was triggered.", 0);
    throw new Failure("Airflow does not respond. Trying again.", 0);
  }
  const date = Date.parse(response.headers.get("Date"));
  // The header has no fractions of a second.
  if (date) state.skew = Math.abs(date - Date.now()) < 2000 ? 0 : date - Date.now();
  if (response.ok || response.status === 304) return response;
  const detail = await response.json().then((body) => body.detail, () => null);
  // A token that another secret has signed is refused with 403.
  if (response.status === 401 || detail === "Invalid JWT token") throw new Failure("Your session has ended. Reload the page to log in.", 401);
  const text = Array.isArray(detail) ? detail.map((one) => one.msg).join("; ") : detail?.reason ?? detail;
  if (response.status === 403 && path.startsWith("cachesync/")) {
    throw new Failure("You may not see this page: it needs the permission to read the DAG cache_sync.", 403);
  }
  throw new Failure(typeof text === "string" ? text : `Airflow responds with an error (${response.status}).`, response.status);
}

const answer = async (path, options) => (await ask(path, options)).json();

/** Triggers a DAG through Airflow's own API, which asks for the user's permission and records the click. */
function trigger(dag, conf, note) {
  return answer(`api/v2/dags/${dag}/dagRuns`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ logical_date: null, conf, note }),
  });
}

let polling = null;

async function poll() {
  if (polling === "asking") return;
  clearTimeout(polling);
  if (document.hidden) return showLive();
  polling = "asking";
  const { period, view } = state;
  // The charts of the caches are asked for at the same time.
  if (view === "overview") void refreshHistory([JSON.stringify([period])]);
  try {
    const response = await ask(`cachesync/api/status${period === "day" ? "?period=day" : ""}`, {
      // The first one was begun by the page itself, before the scripts were there.
      ...(state.etag ? { cache: "no-store", headers: { "If-None-Match": state.etag } } : {}),
    });
    if (response.status !== 304) {
      state.etag = response.headers.get("ETag");
      state.status = await response.json();
    }
    state.answeredAt = Date.now();
    state.failure = null;
  } catch (failure) {
    state.failure = failure;
  }
  render();
  if (!state.may && state.status) void askWhatIsAllowed();
  void refreshReport();
  void refreshHistory();
  void refreshLags();
  polling = setTimeout(poll, period === state.period ? POLL_MS : 0);
}

async function askWhatIsAllowed() {
  state.may = await answer("cachesync/api/me").catch(() => null);
  if (state.status) showView();
  showReport();
}

async function refreshReport(force = false) {
  const asked = state.lookup;
  if (!asked || (!force && Date.now() - state.reportAt < REPORT_MS)) return;
  state.reportAt = Date.now();
  try {
    const report = await answer(`cachesync/api/key?${new URLSearchParams(asked)}`);
    if (state.lookup !== asked) return;
    // A screen reader reads it once, not whenever it is refreshed.
    if (!state.report) $("said").textContent = report.verdict;
    [state.report, state.reportError] = [report, null];
  } catch (failure) {
    if (state.lookup !== asked) return;
    // What was found out stays while the connection is interrupted.
    if (failure.code !== 0 || !state.report) [state.report, state.reportError] = [null, failure.message];
  }
  showReport();
}

// ---------------------------------------------------------------------------------------------- charts

const charts = new Map(); // by element
const histories = new Map(); // by question: [period], or [period, service, entity]

/** Returns an element in which a chart of the lag will be drawn. */
function lagChart(service, entity = null) {
  const label = `Lag of ${entity ? `${entity} in ` : ""}${service} over the last ${state.period}, median and 99th percentile`;
  const key = JSON.stringify([state.period, service, entity]);
  return h(
    "div",
    { class: "chart", "data-key": `chart ${key}` },
    h("h3", {}, h("span", {}, h("i"), "Lag, median"), h("span", {}, h("i", { class: "p99" }), "99th percentile"), h("output")),
    h("div", { class: "plot", role: "img", "aria-label": label, "data-history": key }),
  );
}

/** The question whose answer has the points of a chart: that of the caches is one for all of them. */
function questionOf(node) {
  const [period, service, entity] = JSON.parse(node.dataset.history);
  return JSON.stringify(entity ? [period, service, entity] : [period]);
}

async function refreshHistory(more = []) {
  for (const [node, chart] of charts) if (!node.isConnected) chart.destroy();
  const plots = () => [...document.querySelectorAll("[data-history]")];
  await Promise.all(
    [...new Set([...more, ...plots().map(questionOf)])].map(async (question) => {
      const known = histories.get(question);
      if (known && Date.now() - known.at < HISTORY_MS) return known.asked;
      const [period, service, entity] = JSON.parse(question);
      const parts = new URLSearchParams({ period, ...(entity ? { service, entity } : {}) });
      const asked = answer(`cachesync/api/history?${parts}`).then((points) => ({ points }), ({ message: reason }) => ({ points: null, reason }));
      histories.set(question, { at: Date.now(), points: known?.points ?? null, asked });
      histories.set(question, { at: Date.now(), ...(await asked) });
      return null;
    }),
  );
  for (const node of plots()) drawChart(node);
  if (state.status && !performance.getEntriesByName("shown").length && plots().every((node) => node.firstChild)) performance.mark("shown");
}

/** The lag of each entity in each cache over the last hour, for the lines in the table. */
async function refreshLags() {
  if (state.view !== "entities" || now() - state.lagsAt < HISTORY_MS) return;
  state.lagsAt = now();
  state.lags = await answer("cachesync/api/lags").catch(() => state.lags);
  if (state.view === "entities" && state.status) showView();
}

/** A line for the last hour, from 5 ms at the bottom to 10 s at the top; null without changes. */
function sparkline(lags) {
  const end = Math.floor(now() / 60000);
  const low = Math.log10(0.005);
  let [path, last] = ["", null];
  for (const [minute, lag] of lags ?? []) {
    const x = 72 - 1.2 * (end - minute);
    if (x < 0) continue;
    const y = 19 - (17 * (Math.log10(Math.min(10, Math.max(0.005, lag))) - low)) / (1 - low);
    // A minute by itself is a dot.
    path += minute - 1 === last ? `L${x.toFixed(1)} ${y.toFixed(1)}` : `M${x.toFixed(1)} ${y.toFixed(1)}h.01`;
    last = minute;
  }
  return path && svg("svg", { class: "spark", viewBox: "0 0 74 20", "aria-hidden": "true" }, svg("path", { d: path }));
}

function drawChart(node) {
  const known = histories.get(questionOf(node));
  if (!known || !window.uPlot || !node.isConnected) return;
  const chart = charts.get(node);
  if (!known.points) {
    chart?.destroy();
    if (known.reason) node.replaceChildren(h("p", { class: "muted" }, `The lag over time is not known: ${known.reason}`));
    return;
  }
  if (!chart) node.replaceChildren();
  if (!chart) charts.set(node, new LagChart(node, known));
  else if (chart.known !== known) chart.take(known);
}

class LagChart {
  constructor(node, known) {
    this.node = node;
    this.known = known;
    this.resized = new ResizeObserver(() => {
      if (!node.isConnected) this.destroy();
      else if (this.plot && node.clientWidth) this.plot.setSize({ width: node.clientWidth, height: 140 });
    });
    this.draw();
    this.resized.observe(node);
  }

  take(known) {
    this.known = known;
    this.draw();
  }

  draw() {
    this.plot?.destroy();
    const style = getComputedStyle(here);
    const color = (name) => style.getPropertyValue(`--${name}`);
    const points = this.grid();
    const output = this.node.parentElement.querySelector("output");
    const axis = { stroke: color("fg-muted"), font: "11px Inter, sans-serif", grid: { stroke: color("border"), width: 1 }, ticks: { show: false } };
    // A point without neighbors has no line.
    const alone = ({ data }, n) => [...data[n].keys()].filter((at) => data[n][at] !== null && (data[n][at - 1] ?? null) === null && (data[n][at + 1] ?? null) === null);
    const line = (name, width) => ({ stroke: color(name), width, points: { show: false, size: 4, fill: color(name), filter: alone } });
    this.plot = new window.uPlot(
      {
        width: Math.max(200, this.node.clientWidth),
        height: 140,
        padding: [8, 18, 0, 0],
        cursor: { y: false, drag: { x: false, y: false }, points: { size: 6 } },
        legend: { show: false },
        scales: { y: { distr: 3, range: (_, low, high) => [Math.min(0.005, low ?? 0.005), Math.max(1, high ?? 1) * 1.3] } },
        series: [{}, line("fg-info", 1.8), line("fg-warning", 1.4)],
        axes: [
          { ...axis, size: 26, space: 60, values: "{HH}:{mm}", incrs: [60, 300, 600, 900, 1800, 3600, 7200, 10800, 21600] },
          { ...axis, size: 52, splits: (_, __, low, high) => [0.001, 0.01, 0.1, 1, 10, 100, 1000].filter((value) => low <= value && value <= high), filter: (_, splits) => splits, values: (_, splits) => splits.map(seconds) },
        ],
        hooks: {
          setCursor: [
            ({ cursor: { idx } }) => {
              const point = idx === null || idx === undefined ? null : points[idx];
              output.textContent = point?.changes
                ? `${new Date(point.at).toLocaleTimeString("en-US", { hour: "2-digit", minute: "2-digit", hour12: false })}: ` +
                  `${orDash(point.lag_p50_s, seconds)}, ${orDash(point.lag_p99_s, seconds)}; ` +
                  `${count(point.changes, "change")}, ${orDash(point.seen_1s, (share) => shareOf(share, 1))} after 1 s; hit rate ${orDash(point.hit_rate, percent)}`
                : "";
            },
          ],
        },
      },
      [points.map(({ at }) => at / 1000), points.map((point) => point.lag_p50_s ?? null), points.map((point) => point.lag_p99_s ?? null)],
      this.node,
    );
  }

  /** The whole period, with nothing where the live check saw nothing. */
  grid() {
    const [period, service] = JSON.parse(this.node.dataset.history);
    const [step, steps] = period === "day" ? [900000, 96] : [60000, 60];
    const end = Math.floor(now() / step) * step;
    const known = new Map(this.known.points.filter((point) => point.service === service).map((point) => [Math.floor(Date.parse(point.at) / step) * step, point]));
    return Array.from({ length: steps + 1 }, (_, n) => end - (steps - n) * step).map((at) => ({ ...known.get(at), at }));
  }

  destroy() {
    this.resized.disconnect();
    this.plot?.destroy();
    charts.delete(this.node);
  }
}

// ---------------------------------------------------------------------------------------------- what is shown

function render() {
  showLive();
  showAlert();
  if (!state.status) return;
  showEntities();
  showTabs();
  showProblems();
  showView();
  showDialog();
}

function showLive() {
  const age = Date.now() - state.answeredAt;
  const [kind, words] = document.hidden
    ? ["", "Paused"]
    : !state.status
      ? ["", "Loading"]
      : state.failure || age > OLD_MS
        ? ["critical", `Not live: ${seconds(age / 1000)} old`]
        : ["ok", "Live"];
  show($("live"), h("span", { class: `dot ${kind}` }), h("span", { class: "words" }, words));
}

function showAlert() {
  const { failure, status } = state;
  if (!failure) return show($("alert"));
  const old = status && state.answeredAt ? ` What you see is from ${new Date(state.answeredAt).toLocaleTimeString("en-US")}.` : "";
  show($("alert"), h("div", {}, icon("critical"), h("strong", {}, failure.message), h("span", {}, old)));
  if (!status) show($("view"));
}

function showTabs() {
  const { letters } = state.status;
  const badges = { letters: letters ? letters.open + letters.parked : 0 };
  for (const tab of $("tabs").children) {
    const chosen = tab.dataset.view === state.view;
    tab.setAttribute("aria-selected", chosen);
    tab.tabIndex = chosen ? 0 : -1;
    const value = badges[tab.dataset.view];
    show(tab, tab.firstChild.data, value ? h("span", { class: "badge count warning" }, number.format(value)) : null);
  }
  $("view").setAttribute("aria-labelledby", `tab-${state.view}`);
}

function showEntities() {
  const names = [...new Set(state.status.caches.flatMap((cache) => cache.entities.map((one) => one.entity)))];
  const select = $("lookup-entity");
  const chosen = select.value || state.lookup?.entity;
  show(select, names.map((name) => h("option", { value: name, "data-key": name }, name)));
  if (chosen && names.includes(chosen)) select.value = chosen;
}

function showProblems() {
  const { problems } = state.status;
  const items = problems.slice(0, MAX_PROBLEMS).map(({ severity, service, entity, key, text, action }) =>
    h(
      "li",
      { class: `problem ${severity}` },
      icon(severity),
      h(
        "div",
        {},
        h("span", { class: "hidden" }, `${severity}: `),
        service && h("span", { class: "badge" }, [service, entity].filter(Boolean).join(" · ")),
        service && " ",
        h("strong", {}, text),
      ),
      h("div", { class: "muted" }, key == null ? prose(action) : lookUpButton(entity, key)),
    ),
  );
  const more = problems.length - items.length;
  if (more) items.push(h("li", { class: "muted" }, `${count(more, "more problem")}: \u201ccachesync status\u201d lists all of them.`));
  if (!items.length) items.push(h("li", { class: "problem right" }, icon("right"), h("strong", {}, "All caches are up to date."), h("div", { class: "muted" }, "Nothing needs your attention.")));
  show($("problems"), h("ul", { class: "problems" }, items));
}

function showView() {
  const views = { overview, entities, letters, runs };
  show($("view"), h("div", { "data-key": state.view }, views[state.view](state.status)));
}

/** Looks up the key that a problem names, instead of the command that does. */
const lookUpButton = (entity, key) => [h("button", { class: "link", "data-do": "key", "data-entity": entity, "data-of": key }, `Look up ${entity} ${keyText(key)}`), " to see why."];

/** What is between backticks is code, and the name of a DAG leads to it. */
const prose = (text) => text.split("`").map((part, n) => (n % 2 ? h("code", { class: "mono" }, part) : part.split(/(?<=\bDAG )(\w+)/).map((name, m) => (m % 2 ? h("a", { href: dagPage(name), target: "_parent" }, name) : name))));

const fact = (name, value, note, kind = "") =>
  h("div", {}, h("dt", {}, name), h("dd", {}, h("span", { class: kind }, value), note && h("small", {}, note)));

const periods = () =>
  h(
    "div",
    { class: "segments", role: "group", "aria-label": "Period" },
    [["hour", "Last hour"], ["day", "Last day"]].map(([period, name]) =>
      h("button", { "data-do": "period", "data-period": period, "aria-pressed": String(state.period === period) }, name),
    ),
  );

/** The last day is only in an answer to the question for it. */
const isKnown = (caches) => caches.every((cache) => cache[state.period]);

const adding = () => h("p", { class: "empty" }, "Adding up the last day…");

const reconcileButton = () =>
  state.may?.reconcile && h("button", { class: "primary", "data-do": "reconcile" }, "Reconcile…");

const badge = (kind, text) => h("span", { class: `badge ${kind}` }, text);

function overview({ backlog, letters, caches, live_check_at, taken_at }) {
  const looked = live_check_at ? (Date.parse(taken_at) - Date.parse(live_check_at)) / 1000 : null;
  const seen = state.period;
  const bar = h("div", { class: "toolbar" }, h("h2", {}, count(caches.length, "cache")), h("div", { class: "end" }, periods()), reconcileButton());
  if (!isKnown(caches)) return [bar, adding()];
  const judged = caches.reduce((sum, cache) => sum + cache[seen].judged[1], 0);
  const inTime = caches.reduce((sum, cache) => sum + cache[seen].seen[1], 0);
  return [
    bar,
    h(
      "dl",
      { class: "facts totals" },
      fact("Up to date after 1 s", shareOf(inTime, judged), judged ? `of ${count(judged, "change")}` : "no changes were followed", `large ${inTime < judged ? "late" : ""}`),
      fact("Not published", backlog ? number.format(backlog.changes) : "–", backlog?.changes ? `the oldest for ${seconds(backlog.age_s)}` : "changes in the outbox", `large ${backlog?.age_s > 5 ? "bad" : ""}`),
      fact("Dead letters", letters ? number.format(letters.open + letters.parked) : "–", letters && `${letters.open} retried, ${letters.parked} parked`, `large ${letters?.parked ? "late" : ""}`),
      fact("Relays", backlog ? number.format(backlog.relays) : "–", "connected to the database", `large ${backlog?.relays === 0 ? "bad" : ""}`),
      fact("Live check", looked === null ? "never" : looked > 15 ? `${seconds(looked)} ago` : "running", "looks from outside", `large ${looked === null || looked > 15 ? "late" : ""}`),
    ),
    h("div", { class: "cards" }, caches.map((cache) => cacheCard(cache, cache[seen]))),
  ];
}

function cacheCard(cache, seen) {
  const { service, redis, redis_problem, oldest_unseen: oldest, consumers, unconsumed } = cache;
  const late = seen.seen[1] < seen.judged[1];
  return h(
    "article",
    { class: "card", "data-key": service, "aria-labelledby": `cache-${service}` },
    h(
      "header",
      {},
      h("h2", { id: `cache-${service}` }, service),
      redis === null ? badge("", "Redis unknown") : redis === "ok" ? badge("right", "Redis ok") : badge("critical", `Redis ${redis}`),
      unconsumed?.length ? badge("critical", "not consumed") : null,
      h("span", { class: "end muted" }, `${orDash(cache.keys, number.format)} keys · ${orDash(cache.memory_bytes, bytes)}`),
    ),
    h(
      "div",
      { class: "body" },
      redis_problem && h("p", { class: "note bad" }, redis_problem),
      h(
        "dl",
        { class: "facts" },
        fact("Up to date after 1 s", shareOf(seen.seen[1], seen.judged[1]), `${nines(seen)} nines`, `large ${late ? "late" : ""}`),
        fact("Median lag", orDash(seen.lag_p50_s, seconds), `99th percentile ${orDash(seen.lag_p99_s, seconds)}`, "large"),
        fact("Hit rate", orDash(seen.hit_rate, percent), `${count(seen.hits + seen.misses + seen.bypasses, "read")}`, "large"),
        fact("Consumer lag", orDash(cache.consumer_lag, number.format), consumers ? `messages, ${count(consumers.length, "consumer")}` : "messages", `large ${consumers?.length === 0 ? "bad" : ""}`),
      ),
      oldest &&
        h(
          "p",
          { class: "note" },
          h("span", { class: "bad" }, `Missing for ${seconds(oldest.age_s)}: `),
          h("button", { class: "link", "data-do": "key", "data-entity": oldest.entity, "data-of": oldest.key }, `${oldest.entity} ${keyText(oldest.key)}`),
          ` at version ${oldest.version}`,
        ),
      unconsumed?.length ? h("p", { class: "note bad" }, `No consumer has ${unconsumed.join(", ")}.`) : null,
      lagChart(service),
    ),
  );
}

function entities({ caches }) {
  const filter = state.filter.trim().toLowerCase();
  const seen = state.period;
  const rows = caches
    .filter(({ service }) => !state.cache || service === state.cache)
    .flatMap(({ service, entities: all }) => all.map((entity) => ({ service, ...entity })))
    .filter(({ entity }) => !filter || entity.toLowerCase().includes(filter))
    .sort((a, b) => a.entity.localeCompare(b.entity) || a.service.localeCompare(b.service));
  const columns = ["Entity", "Cache", "Up to date after 1 s", "Nines", "Median lag", "99th percentile", "Hit rate", "Entries reconciled", "Consumer lag", "Dead letters", "Last hour"];
  return [
    h(
      "div",
      { class: "toolbar" },
      h("input", { type: "search", "aria-label": "Filter by entity", placeholder: "Filter by entity", "data-do": "filter" }),
      h(
        "div",
        { class: "segments", role: "group", "aria-label": "Cache" },
        [["", "All"], ...caches.map(({ service }) => [service, service])].map(([service, name]) =>
          h("button", { "data-do": "cache", "data-cache": service, "aria-pressed": String(state.cache === service) }, name),
        ),
      ),
      h("div", { class: "end" }, periods()),
    ),
    !isKnown(caches)
      ? adding()
      : rows.length
        ? table(
            `Entities, ${seen === "day" ? "last day" : "last hour"}`,
            columns,
            rows.flatMap((row) => entityRow(row, row[seen], columns)),
            [2, 3, 4, 5, 6, 7, 8, 9],
          )
        : h("p", { class: "empty" }, "No entity has such a name."),
  ];
}

function entityRow(row, seen, columns) {
  const id = `${row.service} ${row.entity}`;
  const open = state.charts.has(id);
  const lost = (row.open_letters ?? 0) + (row.parked_letters ?? 0);
  const cell = (n, value, kind = "") => h("td", { class: `number ${kind}`, "data-label": columns[n] }, value);
  return [
    h(
      "tr",
      { "data-key": id },
      h("th", { scope: "row" }, row.entity, row.capture_problem && [" ", h("span", { title: row.capture_problem }, badge("critical", "not captured"))]),
      h("td", { "data-label": columns[1] }, row.service),
      cell(2, shareOf(seen.seen[1], seen.judged[1]), seen.seen[1] < seen.judged[1] ? "late" : ""),
      cell(3, nines(seen)),
      cell(4, orDash(seen.lag_p50_s, seconds)),
      cell(5, orDash(seen.lag_p99_s, seconds)),
      cell(6, orDash(seen.hit_rate, percent)),
      cell(7, orDash(row.entries, number.format)),
      cell(8, orDash(row.consumer_lag, number.format), row.consumer_lag > 1000 ? "late" : ""),
      cell(9, row.open_letters === null ? "–" : number.format(lost), lost ? "late" : ""),
      h("td", { "data-label": columns[10] }, h("button", { class: "bare", "data-do": "chart", "data-id": id, "aria-expanded": String(open), "aria-label": `Lag of ${row.entity} in ${row.service} over time`, title: "Lag over time" }, sparkline(state.lags?.[row.service]?.[row.entity]) || icon("chart"))),
    ),
    open && h("tr", { class: "detail", "data-key": `${id} chart` }, h("td", { colspan: columns.length, class: "wide" }, lagChart(row.service, row.entity))),
  ];
}

function table(caption, columns, rows, numbers = []) {
  return h(
    "div",
    { class: "table" },
    h(
      "table",
      {},
      h("caption", { class: "hidden" }, caption),
      h("thead", {}, h("tr", {}, columns.map((name, n) => h("th", { scope: "col", class: numbers.includes(n) ? "number" : null }, name || h("span", { class: "hidden" }, "Actions"))))),
      h("tbody", {}, rows),
    ),
  );
}

/** Letters of one entity in one cache: what a request selects. */
function selections(groups) {
  const found = new Map();
  for (const group of groups) {
    const key = JSON.stringify([group.service, group.entity, group.parked]);
    const known = found.get(key) ?? { service: group.service, entity: group.entity, parked: group.parked, letters: 0, due: 0, since: group.first_failed_at, groups: [] };
    known.letters += group.letters;
    known.due += group.due;
    known.since = known.since < group.first_failed_at ? known.since : group.first_failed_at;
    known.groups.push(group);
    found.set(key, known);
  }
  return [...found.values()];
}

function letters({ letters: found, unavailable }) {
  if (!found) return h("p", { class: "empty" }, `Not known: ${unavailable.letters ?? unavailable.kafka ?? "Kafka does not respond"}`);
  const columns = ["Entity", "Cache", "State", "Letters", "Since", "Why", ""];
  return [
    h("div", { class: "toolbar" }, h("h2", {}, count(found.open + found.parked, "dead letter")), h("span", { class: "muted" }, "Changes that could not be applied to a cache. Parked ones are no longer retried.")),
    found.groups.length
      ? table(
          "Dead letters",
          columns,
          selections(found.groups).map((one) => letterRow(one, columns)),
          [3],
        )
      : h("p", { class: "empty" }, "There are no dead letters."),
  ];
}

function letterRow(one, columns) {
  const conf = JSON.stringify({ services: [one.service], entities: [one.entity], topic: one.parked ? "parking-lot" : "dead-letters" });
  const what = `${count(one.letters, one.parked ? "parked letter" : "letter")} of ${one.entity} in ${one.service}`;
  return h(
    "tr",
    { "data-key": conf },
    h("th", { scope: "row" }, one.entity),
    h("td", { "data-label": columns[1] }, one.service),
    h("td", { "data-label": columns[2] }, one.parked ? badge("critical", "parked") : badge("warning", one.due ? `${one.due} due` : "waits")),
    h("td", { class: "number", "data-label": columns[3] }, number.format(one.letters)),
    h("td", { "data-label": columns[4] }, time(one.since)),
    h("td", { class: "wide", "data-label": columns[5] }, h("ul", {}, one.groups.map((group) => h("li", {}, group.reason, h("span", { class: "muted" }, ` (${number.format(group.letters)}, at ${group.stage}, such as ${group.example})`))))),
    h("td", { class: "wide" }, letterActions(conf, what)),
  );
}

const letterActions = (conf, what) =>
  state.may?.letters &&
  h(
    "div",
    { class: "actions" },
    h("button", { class: "small", "data-do": "replay", "data-conf": conf, "data-what": what }, "Replay…"),
    h("button", { class: "small", "data-do": "discard", "data-conf": conf, "data-what": what }, "Discard…"),
  );

const OUTCOMES = { clean: "right", repaired: "warning", drift: "warning", unrepaired: "critical" };

const runLink = (run, link) => (link ? h("a", { href: link, "data-run": "", class: "link" }, run) : h("span", {}, run));

const found = (kinds) => Object.entries(kinds).map(([kind, value]) => `${number.format(value)} ${kind}`).join(", ");

function runs({ reconciliations, unavailable }) {
  const columns = ["Run", "Cache", "Started", "Took", "Kind", "Examined", "Found", "Outcome"];
  return [
    h("div", { class: "toolbar" }, h("h2", {}, "Reconciliations"), h("span", { class: "muted" }, "Each compares the slots of a cache with the rows."), h("div", { class: "end" }), reconcileButton()),
    reconciliations === null
      ? h("p", { class: "empty" }, `Not known: ${unavailable.reconciliations ?? unavailable.database ?? "the database does not respond"}`)
      : !reconciliations.length
        ? h("p", { class: "empty" }, "There was none yet.")
        : table(
            "Reconciliations",
            columns,
            [...reconciliations]
              .sort((a, b) => b.started_at.localeCompare(a.started_at) || a.service.localeCompare(b.service))
              .map((run) => runRow(run, columns)),
            [5],
          ),
  ];
}

function runRow(run, columns) {
  const kind = [run.mode, run.deep && "deep", run.dry_run && "dry run"].filter(Boolean).join(", ");
  const took = run.finished_at && (Date.parse(run.finished_at) - Date.parse(run.started_at)) / 1000;
  return h(
    "tr",
    { "data-key": `${run.run} ${run.service}` },
    h("th", { scope: "row" }, runLink(run.run, run.link)),
    h("td", { "data-label": columns[1] }, run.service),
    h("td", { "data-label": columns[2] }, time(run.started_at)),
    h("td", { "data-label": columns[3] }, orDash(took, seconds)),
    h("td", { "data-label": columns[4] }, kind),
    h("td", { class: "number", "data-label": columns[5] }, number.format(run.examined)),
    h("td", { "data-label": columns[6] }, found(run.found) || "nothing", run.failed ? h("span", { class: "bad" }, `; ${number.format(run.failed)} not repaired`) : null),
    h("td", { "data-label": columns[7] }, run.outcome ? badge(OUTCOMES[run.outcome], run.outcome) : badge("", "running")),
  );
}

// ---------------------------------------------------------------------------------------------- one key

const ASSESSMENTS = { right: "right", "not cached": "right", "on its way": "warning", wrong: "critical", unknown: "unknown" };

function showReport() {
  const { lookup, report, reportError } = state;
  if (!lookup) return show($("report"));
  const title = `${lookup.entity} ${keyText(report ? report.key : lookup.key)}`;
  const kind = report ? ASSESSMENTS[report.assessment] : "critical";
  show(
    $("report"),
    h(
      "article",
      { class: "card report" },
      h("header", {}, h("h2", {}, title), h("button", { class: "bare end", "data-do": "close-report", "aria-label": "Close" }, icon("close"))),
      h(
        "div",
        { class: "body" },
        reportError
          ? h("div", { class: "problem critical" }, icon("critical"), h("strong", {}, reportError))
          : !report
            ? h("div", { class: "progress" }, h("div", { class: "spinner" }), "Looking it up")
            : [
                h(
                  "div",
                  { class: `problem ${kind}` },
                  icon(kind),
                  reportVerdict(report),
                ),
                reportDetails(report),
              ],
      ),
    ),
  );
}

const listed = (names) => (names.length > 1 ? `${names.slice(0, -1).join(", ")} and ${names.at(-1)}` : names[0]);

/** The caches that the verdict is about: the worst ones. */
const concerned = ({ assessment, caches }) => (assessment in HEADLINES ? caches.filter((slot) => slot.assessment === assessment) : []);

const HEADLINES = {
  wrong: (names) => `${listed(names)} ${names.length > 1 ? "are" : "is"} wrong`,
  "on its way": (names) => `A change is on its way to ${listed(names)}`,
  unknown: (names) => `Whether ${listed(names)} ${names.length > 1 ? "are" : "is"} right is not known`,
};

/** What is the matter, why, and what to do: a line for each cache, and a step for each thing to do. */
function reportVerdict(report) {
  const { assessment, verdict, actions, entity } = report;
  const slots = concerned(report);
  const names = slots.map(({ service }) => service);
  const headline = slots.length ? HEADLINES[assessment](names) : verdict;
  return [
    h("strong", {}, prose(headline)),
    h(
      "div",
      {},
      slots.map((slot) => h("p", {}, prose(slot.verdict))),
      slots.length && actions.length ? [h("h4", {}, "What to do"), h("ol", {}, actions.map((step) => h("li", {}, prose(step))))] : null,
      actions.some((step) => step.includes("cachesync reconcile")) && state.may?.reconcile ? h("p", { class: "note" }, h("button", { class: "small", "data-do": "reconcile", "data-services": names.join(), "data-entities": entity }, `Reconcile ${entity} in ${names.join(", ")}…`)) : null,
    ),
  ];
}

function reportDetails(report) {
  const columns = {
    changes: ["Version", "Change", "By", "Made", "Published"],
    letters: ["Letter", "Cache", "Version", "State", "Why", ""],
    violations: ["Cache", "Kind", "Should have been at", "Noticed", "Right again"],
  };
  return [
    h(
      "div",
      { class: "slots" },
      h(
        "div",
        { class: "slot" },
        h("h3", {}, "The row", report.row ? null : badge("", "does not exist")),
        report.row && [h("div", { class: "muted" }, "version ", h("span", { class: "mono" }, String(report.row.version))), h("pre", {}, pretty(report.row.payload))],
      ),
      report.caches.map((slot) => slotCard(slot, report.row, concerned(report).includes(slot))),
    ),
    h("h3", { class: "part" }, "Last changes"),
    report.changes.length
      ? table(
          "Last changes",
          columns.changes,
          report.changes.map((change) =>
            h(
              "tr",
              { "data-key": String(change.version) },
              h("th", { scope: "row", class: "mono" }, String(change.version)),
              h("td", { "data-label": "Change" }, change.operation),
              h("td", { "data-label": "By" }, change.source),
              h("td", { "data-label": "Made" }, time(change.changed_at)),
              h("td", { "data-label": "Published" }, change.published_at ? time(change.published_at) : badge("critical", "not published")),
            ),
          ),
        )
      : h("p", { class: "muted" }, "The change log has none."),
    report.letters?.length ? [
      h("h3", { class: "part" }, "Dead letters"),
      table(
        "Dead letters of this key",
        columns.letters,
        report.letters.map((letter) =>
          h(
            "tr",
            { "data-key": letter.letter },
            h("th", { scope: "row", class: "mono" }, letter.letter),
            h("td", { "data-label": "Cache" }, letter.service),
            h("td", { "data-label": "Version", class: "mono" }, orDash(letter.version, String)),
            h("td", { "data-label": "State" }, letter.parked ? badge("critical", "parked") : badge("warning", `attempt ${letter.attempt} of ${letter.maximum}`)),
            h("td", { "data-label": "Why", class: "wide" }, letter.error),
            h("td", { class: "wide" }, letterActions(JSON.stringify({ letters: [letter.letter] }), `the letter ${letter.letter}`)),
          ),
        ),
      ),
    ] : null,
    report.violations?.length ? [
      h("h3", { class: "part" }, "What the live check saw"),
      table(
        "What the live check saw",
        columns.violations,
        report.violations.map((one) =>
          h(
            "tr",
            { "data-key": `${one.service} ${one.noticed_at}` },
            h("th", { scope: "row" }, one.service),
            h("td", { "data-label": "Kind" }, one.kind),
            h("td", { "data-label": "Should have been at", class: "mono" }, orDash(one.version, String)),
            h("td", { "data-label": "Noticed" }, time(one.noticed_at)),
            h("td", { "data-label": "Right again" }, one.seen_at ? time(one.seen_at) : badge("critical", "not yet")),
          ),
        ),
      ),
    ] : null,
    Object.values(report.unavailable).map((reason) => h("p", { class: "muted" }, `This report is incomplete. ${reason}`)),
  ];
}

function slotCard(slot, row, isExplained) {
  const kind = ASSESSMENTS[slot.assessment];
  const facts = [
    slot.kind,
    slot.version !== null && ["version ", h("span", { class: "mono" }, String(slot.version))],
    slot.ttl_s !== null && `expires in ${seconds(slot.ttl_s)}`,
  ].filter(Boolean);
  return h(
    "div",
    { class: "slot", "data-key": slot.service },
    h("h3", {}, `In ${slot.service}`, badge(kind, slot.assessment)),
    !isExplained && h("div", {}, prose(slot.verdict)),
    h("div", { class: "muted" }, facts.flatMap((part, n) => (n ? [", ", part] : [part]))),
    slot.partition && h("div", { class: "muted" }, `${slot.partition}: ${slot.consumer ? `consumer ${slot.consumer}` : "no consumer"}, ${orDash(slot.consumer_lag, (lag) => count(lag, "message"))} to apply`),
    slot.payload && h("pre", {}, differences(slot.payload, row?.payload)),
  );
}

function parsed(payload) {
  try {
    const value = JSON.parse(payload);
    return value && typeof value === "object" && !Array.isArray(value) ? value : null;
  } catch {
    return null;
  }
}

/** The members of a JSON object, as they are written: a number is not rounded to what JavaScript can hold. */
function members(payload) {
  if (!parsed(payload)) return null;
  const found = new Map();
  const text = payload.trim().slice(1, -1);
  let [depth, quoted, begin, colon] = [0, false, 0, -1];
  for (let n = 0; n <= text.length; n += 1) {
    const sign = text[n];
    if (quoted) {
      if (sign === "\\") n += 1;
      else if (sign === '"') quoted = false;
    } else if (sign === '"') quoted = true;
    else if (sign === "{" || sign === "[") depth += 1;
    else if (sign === "}" || sign === "]") depth -= 1;
    else if (sign === ":" && depth === 0 && colon < 0) colon = n;
    else if ((sign === "," || sign === undefined) && depth === 0) {
      if (colon > 0) found.set(text.slice(begin, colon).trim(), text.slice(colon + 1, n).trim());
      [begin, colon] = [n + 1, -1];
    }
  }
  return found;
}

const pretty = (payload) => differences(payload, payload);

/** The payload, a member a line, with those marked that are not as in the row. */
function differences(payload, row) {
  // A browser takes seconds to lay out a megabyte without blanks.
  if (payload.length > MAX_PAYLOAD) return [payload.slice(0, MAX_PAYLOAD), h("span", { class: "muted" }, `… ${count(payload.length - MAX_PAYLOAD, "more character")}, which are not compared here`)];
  const ours = members(payload);
  if (!ours) return payload;
  const theirs = row ? members(row) : null;
  return [...ours].map(([name, value]) => {
    const line = `${name}: ${value}`;
    return [theirs && theirs.get(name) !== value ? h("mark", {}, line) : line, "\n"];
  });
}

// ---------------------------------------------------------------------------------------------- the dialog

/** Opens the dialog. Its content is drawn again while a run goes on. */
function openDialog(content) {
  state.run = { content, stage: "ask", error: null, dag_run: null, result: null };
  showDialog();
  if (!$("dialog").open) $("dialog").showModal();
}

function showDialog() {
  if (!state.run) return show($("dialog"));
  show($("dialog"), state.run.content(state.run));
}

function closeDialog() {
  state.run = null;
  $("dialog").close();
  show($("dialog"));
}

const cancelButton = (name = "Cancel") => h("button", { type: "button", "data-do": "close-dialog" }, name);

const dagPage = (dag) => new URL(`dags/${dag}`, airflow).href;
const runPage = (dag, run) => new URL(`dags/${dag}/runs/${encodeURIComponent(run)}`, airflow).href;

function progress(dag, { dag_run: run }) {
  const words = { queued: "It waits for its turn. If it does not begin, another run is going on, or the DAG is paused.", running: "It is running." };
  return h("div", { class: "progress", role: "status" }, h("div", { class: "spinner" }), h("span", {}, words[run?.state] ?? "It is being triggered.", run && [" ", h("a", { href: runPage(dag, run.dag_run_id), "data-run": "", class: "link" }, "Open the run")]));
}

const failed = (run) => run.error && h("div", { class: "problem critical result", role: "alert" }, icon("critical"), h("strong", {}, run.error));

async function follow(dag, conf, note, task) {
  const mine = state.run;
  Object.assign(mine, { stage: "running", error: null, dag_run: null, result: null });
  showDialog();
  try {
    mine.dag_run = await trigger(dag, conf, note);
    const path = `api/v2/dags/${dag}/dagRuns/${encodeURIComponent(mine.dag_run.dag_run_id)}`;
    while (state.run === mine && !["success", "failed"].includes(mine.dag_run.state)) {
      showDialog();
      await new Promise((resolve) => setTimeout(resolve, 1000));
      mine.dag_run = await answer(path).catch((failure) => (failure.code === 0 ? mine.dag_run : Promise.reject(failure)));
    }
    mine.result = await answer(`${path}/taskInstances/${task}/xcomEntries/return_value`).then((body) => body.value, () => null);
    if (typeof mine.result === "string") mine.result = JSON.parse(mine.result);
    if (!mine.result) {
      const failed = mine.dag_run.state === "failed";
      mine.error = failed ? "The run has failed. Its tasks' logs say why." : "The run has ended, but you may not read its result.";
    }
  } catch (failure) {
    mine.error = failure.message;
  }
  mine.stage = "done";
  if (state.run === mine) showDialog();
  void poll();
}

function reconcileDialog(chosen) {
  const services = state.status.caches.map(({ service }) => service);
  const names = [...new Set(state.status.caches.flatMap((cache) => cache.entities.map((one) => one.entity)))].sort();
  const checks = (field, values) => {
    const only = chosen[field]?.split(",");
    return h("div", { class: "checks" }, values.map((value) => h("label", {}, h("input", { type: "checkbox", name: field, value, checked: !only || only.includes(value) }), value)));
  };
  openDialog((run) => [
    h("h2", { id: "dialog-title" }, "Reconcile"),
    h("p", { class: "muted" }, "Compares the slots of the caches with the rows. A dry run only reports; what it finds can then be repaired."),
    h(
      "form",
      { method: "dialog", "data-form": "reconcile", hidden: run.stage !== "ask" },
      h("fieldset", {}, h("legend", {}, "Caches"), checks("services", services)),
      h("fieldset", {}, h("legend", {}, "Entities"), checks("entities", names)),
      h("fieldset", { class: "checks" }, h("label", {}, h("input", { type: "checkbox", name: "deep" }), "Compare payloads too, not only versions")),
      h("footer", {}, cancelButton(), h("button", { class: "primary" }, "Dry run")),
    ),
    run.stage === "running" && [progress("reconcile", run), h("footer", {}, cancelButton("Close"))],
    run.stage === "done" && [failed(run), run.result && reconcileResult(run.result), run.dag_run && h("p", {}, h("a", { href: runPage("reconcile", run.dag_run.dag_run_id), "data-run": "", class: "link" }, "Open the run")), h("footer", {}, cancelButton("Close"), run.result?.outcome === "drift" && h("button", { class: "primary", "data-do": "repair" }, "Repair"))],
  ]);
}

function reconcileResult({ outcome, services, parameters, notes }) {
  const kinds = (findings) => found(Object.fromEntries(["stale", "orphan", "ahead", "false_absent", "unreadable"].filter((kind) => findings[kind]).map((kind) => [kind.replace("_", " "), findings[kind]])));
  const lines = Object.entries(services).flatMap(([service, all]) => Object.entries(all).map(([entity, findings]) => [service, entity, kinds(findings)])).filter(([, , text]) => text);
  const words = { clean: "Nothing is wrong.", drift: "Some slots are wrong. Nothing was changed.", repaired: "All that was wrong is repaired.", unrepaired: "Some slots could not be repaired." };
  const kind = outcome === "repaired" ? "right" : OUTCOMES[outcome];
  return h(
    "div",
    { class: `problem result ${kind}`, role: "status" },
    icon(kind),
    h("strong", {}, `${parameters.dry_run ? "Dry run: " : ""}${words[outcome]}`),
    h("ul", { class: "muted" }, lines.map(([service, entity, text]) => h("li", {}, `${service}, ${entity}: ${text}`)), notes.map((note) => h("li", {}, note))),
  );
}

function letterDialog(action, conf, what) {
  const discards = action === "discard";
  openDialog((run) => [
    h("h2", { id: "dialog-title" }, discards ? "Discard" : "Replay"),
    h("p", {}, discards ? `Closes ${what} without applying them. The caches stay as they are.` : `Retries ${what} now: the rows are read again and applied to the cache.`),
    h(
      "form",
      { method: "dialog", "data-form": action, "data-conf": conf, hidden: run.stage !== "ask" },
      h("label", { class: "field", for: "reason" }, discards ? "Reason, which is recorded" : "Reason (optional), which is recorded as the note of the run"),
      h("p", {}, h("textarea", { id: "reason", name: "reason", rows: 2, maxlength: MAX_REASON, required: discards })),
      h("footer", {}, cancelButton(), h("button", { class: discards ? "danger" : "primary" }, discards ? "Discard" : "Replay")),
    ),
    run.stage === "running" && [progress("dead_letter_retry", run), h("footer", {}, cancelButton("Close"))],
    run.stage === "done" && [
      failed(run),
      run.result && letterResult(run.result),
      run.dag_run && h("p", {}, h("a", { href: runPage("dead_letter_retry", run.dag_run.dag_run_id), "data-run": "", class: "link" }, "Open the run")),
      h("footer", {}, cancelButton("Close")),
    ],
  ]);
}

const LETTER_RESULTS = {
  resolved: "applied",
  superseded: "no longer needed: the cache already has that version or a newer one",
  discarded: "discarded",
  retried: "failed again, and will be retried",
  parked: "failed again, and parked",
  replayed: "failed again, and still parked",
};

function letterResult({ letters: counts }) {
  const done = Object.entries(counts ?? {}).filter(([, value]) => value);
  const kind = done.some(([what]) => ["retried", "parked", "replayed"].includes(what)) ? "critical" : "right";
  const text = done.map(([what, value]) => `${count(value, "letter")} ${LETTER_RESULTS[what] ?? what}`).join("; ");
  return h("div", { class: `problem ${kind} result`, role: "status" }, icon(kind), h("strong", {}, text ? `${text}.` : "There was no such letter any more."));
}

// ---------------------------------------------------------------------------------------------- the user

/** Does what the address says, be it that of Airflow's page. Also listens to changes of both. */
function recall(event) {
  const parts = new URLSearchParams((event?.currentTarget ?? window).location.hash.slice(1));
  const view = parts.get("view");
  if (document.getElementById(`tab-${view}`)) choose(view);
  if (parts.get("entity") && parts.has("key")) lookUp(parts.get("entity"), parts.get("key"));
}

/** Writes what is shown into the address, of Airflow's page too, so that it can be shared. */
function remember() {
  const parts = new URLSearchParams();
  if (state.view !== "overview") parts.set("view", state.view);
  if (state.lookup) for (const [name, value] of Object.entries(state.lookup)) parts.set(name, value);
  for (const view of new Set([window, framedBy])) {
    if (!view) continue;
    const { pathname, search } = view.location;
    view.history.replaceState(view.history.state, "", pathname + search + (parts.size ? `#${parts}` : ""));
  }
}

function lookUp(entity, key) {
  state.lookup = { entity, key };
  [state.report, state.reportError] = [null, null];
  $("lookup-key").value = key;
  if ($("lookup-entity").options.length) $("lookup-entity").value = entity;
  showReport();
  remember();
  void refreshReport(true);
}

function choose(view) {
  state.view = view;
  remember();
  if (state.status) {
    showTabs();
    showView();
  }
  void refreshHistory();
  void refreshLags();
}

const ACTIONS = {
  period: ({ period }) => {
    state.period = period;
    showView();
    void refreshHistory();
    void poll();
  },
  cache: ({ cache }) => {
    state.cache = cache;
    showView();
  },
  chart: ({ id }) => {
    if (!state.charts.delete(id)) state.charts.add(id);
    showView();
    void refreshHistory();
  },
  key: ({ entity, of }) => {
    lookUp(entity, of);
    window.scrollTo({ top: 0 });
  },
  reconcile: reconcileDialog,
  repair: () => void follow("reconcile", { ...state.run.conf, dry_run: false }, "Repair from the page Caches", "report"),
  replay: ({ conf, what }) => letterDialog("replay", conf, what),
  discard: ({ conf, what }) => letterDialog("discard", conf, what),
  "close-dialog": closeDialog,
  "close-report": () => {
    state.lookup = null;
    showReport();
    remember();
    $("lookup-key").focus();
  },
};

document.addEventListener("click", (event) => {
  const tab = event.target.closest("[data-view]");
  if (tab) return choose(tab.dataset.view);
  const run = event.target.closest("a[data-run]");
  // Programs write the links of runs into the database.
  if (run && !/^https?:$/.test(run.protocol)) return event.preventDefault();
  if (run && framedBy) {
    // A frame may not lead Airflow's page elsewhere; a link in that page may.
    event.preventDefault();
    const link = framedBy.document.createElement("a");
    link.href = run.href;
    return link.click();
  }
  const button = event.target.closest("button[data-do]");
  return button && ACTIONS[button.dataset.do]?.(button.dataset);
});

document.addEventListener("input", ({ target }) => {
  for (const field of target.form?.elements ?? []) field.setCustomValidity("");
  if (target.dataset.do === "filter") {
    state.filter = target.value;
    showView();
  }
});

document.addEventListener("submit", (event) => {
  event.preventDefault();
  const form = event.target;
  const values = new FormData(form);
  if (form.id === "lookup") return lookUp($("lookup-entity").value, $("lookup-key").value);
  if (form.dataset.form === "reconcile") {
    for (const field of ["services", "entities"]) {
      const first = form.querySelector(`[name=${field}]`);
      first.setCustomValidity(values.has(field) ? "" : "Choose at least one.");
      if (!first.reportValidity()) return undefined;
    }
    const all = (field) => form.querySelectorAll(`[name=${field}]`).length === values.getAll(field).length;
    // None means all, also those that are added later.
    const conf = Object.fromEntries(["services", "entities"].map((field) => [field, all(field) ? [] : values.getAll(field)]));
    state.run.conf = { ...conf, mode: "full", deep: values.has("deep"), dry_run: true };
    return void follow("reconcile", state.run.conf, "Dry run from the page Caches", "report");
  }
  const reason = values.get("reason").trim();
  const conf = { ...JSON.parse(form.dataset.conf), action: form.dataset.form, ...(form.dataset.form === "discard" ? { reason } : {}) };
  return void follow("dead_letter_retry", conf, reason || "From the page Caches", "letters");
});

$("dialog").addEventListener("close", () => {
  if (state.run) closeDialog();
});

$("tabs").addEventListener("keydown", (event) => {
  const tabs = [...$("tabs").children];
  const now = tabs.findIndex((tab) => tab.dataset.view === state.view);
  const next = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: tabs.length - 1 }[event.key];
  if (next === undefined) return;
  event.preventDefault();
  const tab = tabs[(next + tabs.length) % tabs.length];
  choose(tab.dataset.view);
  tab.focus();
});

document.addEventListener("visibilitychange", () => {
  if (document.hidden) showLive();
  else void poll();
});
window.addEventListener("load", () => void refreshHistory());
setInterval(() => {
  showLive();
  for (const node of document.querySelectorAll("time[data-ago]")) {
    const text = ago(node.dateTime);
    if (node.textContent !== text) node.textContent = text;
  }
}, 1000);

for (const view of new Set([window, framedBy])) view?.addEventListener("hashchange", recall, { signal: gone.signal });
window.addEventListener("pagehide", () => gone.abort());

followTheme();
recall();
void poll();
