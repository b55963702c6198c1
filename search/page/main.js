// The list of games, its filters, the keys and the theme.

const ROW_PIXELS = 52;
let index = null;
let games = [];
let found = [];
let filters = { text: "", outcome: "all", low: 0, high: 1, order: "played" };

const byId = (id) => document.getElementById(id);

function renderRows() {
  const list = byId("list");
  const first = Math.max(0, Math.floor(list.scrollTop / ROW_PIXELS) - 5);
  const last = Math.min(found.length, first + Math.ceil(list.clientHeight / ROW_PIXELS) + 10);
  byId("rows").style.height = `${found.length * ROW_PIXELS}px`;
  byId("rows").replaceChildren(...found.slice(first, last).map((game, i) => gameRow(game, first + i)));
  const selected = byId("rows").querySelector('[aria-selected="true"]');
  if (selected) list.setAttribute("aria-activedescendant", selected.id);
  else list.removeAttribute("aria-activedescendant");
}

function gameRow(game, place) {
  const kind = game.outcome === 1 ? "right" : game.outcome === 0 ? "wrong" : "";
  return element(
    "div",
    {
      class: "row",
      id: `row-${game.number}`,
      role: "option",
      style: `top: ${place * ROW_PIXELS}px`,
      "aria-selected": String(shown.game === game),
      "aria-posinset": place + 1,
      "aria-setsize": found.length,
      onclick: () => select(game),
    },
    element(
      "span",
      { class: "prompt" },
      element("span", { class: `dot ${kind}` }),
      oneLine(game.prompt),
    ),
    element("span", { class: "value" }, game.value === null ? "" : game.value.toFixed(2)),
    element("span", { class: "answer" }, oneLine(game.answer)),
  );
}

async function select(game, move = 0) {
  await showGame(game, move);
  const place = found.indexOf(game);
  const list = byId("list");
  const [top, bottom] = [place * ROW_PIXELS, (place + 1) * ROW_PIXELS];
  if (place >= 0 && top < list.scrollTop) list.scrollTop = top;
  else if (place >= 0 && bottom > list.scrollTop + list.clientHeight)
    list.scrollTop = bottom - list.clientHeight;
  renderRows();
}

async function applyFilters() {
  found = filtered(games, filters);
  byId("count").textContent =
    found.length === games.length
      ? counted(games.length, "game")
      : `${number(found.length)} of ${counted(games.length, "game")}`;
  byId("low-shown").textContent = filters.low.toFixed(2);
  byId("high-shown").textContent = filters.high.toFixed(2);
  for (const button of byId("outcomes").children)
    button.setAttribute("aria-pressed", String(button.value === filters.outcome));
  if (found.includes(shown.game)) renderRows();
  else await select(found[0] ?? null);
}

const step = (by) => {
  const place = found.indexOf(shown.game) + by;
  if (place >= 0 && place < found.length) return select(found[place]);
};

function showPage(name) {
  for (const page of ["games", "summary"]) {
    byId(page).hidden = page !== name;
    byId(`to-${page}`).setAttribute("aria-pressed", String(page === name));
  }
  if (name === "summary") showSummary();
  else renderRows();
}

function setTheme(name) {
  document.documentElement.dataset.theme = name;
}

function onKey(event) {
  if (event.key === "Escape") document.activeElement.blur();
  if (event.metaKey || event.ctrlKey || event.altKey) return;
  if (event.target.matches("input[type=search], select")) return;
  const actions = {
    "/": () => (showPage("games"), byId("text").focus()),
    j: () => step(1),
    k: () => step(-1),
    "[": () => shown.game && shown.move > 0 && showMove(shown.move - 1),
    "]": () => shown.game && shown.move + 1 < shown.details.moves.length && showMove(shown.move + 1),
    e: () => shown.tree?.expandAll(),
    c: () => shown.tree?.collapseAll(),
    s: () => showPage("summary"),
    g: () => showPage("games"),
    t: () => byId("theme").click(),
  };
  if (document.activeElement === byId("list"))
    Object.assign(actions, { ArrowDown: () => step(1), ArrowUp: () => step(-1) });
  if (!Object.hasOwn(actions, event.key)) return;
  event.preventDefault();
  actions[event.key]();
}

function listen() {
  const change = (name, value) => {
    filters = { ...filters, [name]: value };
    return applyFilters();
  };
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("text").addEventListener("input", (event) => change("text", event.target.value));
  byId("order").addEventListener("change", (event) => change("order", event.target.value));
  for (const end of ["low", "high"])
    byId(end).addEventListener("input", (event) => change(end, Number(event.target.value)));
  for (const [value, [name, isAsked]] of Object.entries(OUTCOMES)) {
    if (value !== "all" && !games.some(isAsked)) continue;
    byId("outcomes").append(
      element("button", { type: "button", value, onclick: () => change("outcome", value) }, name),
    );
  }
  byId("list").addEventListener("scroll", renderRows, { passive: true });
  addEventListener("resize", renderRows);
  addEventListener("keydown", onKey);
  byId("to-games").addEventListener("click", () => showPage("games"));
  byId("to-summary").addEventListener("click", () => showPage("summary"));
  byId("theme").addEventListener("click", () =>
    setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"),
  );
}

async function start() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  setTheme(dark.matches ? "dark" : "light");
  dark.addEventListener("change", () => setTheme(dark.matches ? "dark" : "light"));
  index = await part("index");
  games = gamesOf(index);
  const { games: count, problems, solved } = index.statistics;
  byId("figures").append(
    element("b", {}, counted(count, "game")), " of ", element("b", {}, counted(problems, "problem")),
    solved.of ? ", solved " : "", solved.of ? element("b", {}, withInterval(solved)) : "",
  );
  listen();
  const [wanted, move] = location.hash.slice(1).split("/");
  await applyFilters();
  if (wanted === "summary") showPage("summary");
  else if (games[Number(wanted)] && wanted) await select(games[Number(wanted)], (move ?? 1) - 1);
  document.documentElement.dataset.ready = "true";
}

start();
