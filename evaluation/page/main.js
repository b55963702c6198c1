// The page of evaluations: a list of questions with filters, and what every run said to one of them.

const SHOWN_AT_MOST = 500;
const state = { index: null, found: [], chosen: 0 };
const at = (id) => document.getElementById(id);

// Of a question: what the runs got, 1 right, 0 wrong, null neither.
const VERDICTS = {
  all: ["any verdict", () => true],
  right: ["all right", (verdicts) => verdicts.every((one) => one === 1)],
  wrong: ["all wrong", (verdicts) => verdicts.every((one) => one === 0)],
  differ: ["runs differ", (verdicts) => new Set(verdicts).size > 1],
  open: ["neither right nor wrong", (verdicts) => verdicts.some((one) => one === null)],
};

function options(select, pairs) {
  select.replaceChildren(...pairs.map(([value, name]) => element("option", { value }, name)));
}

function fillCategories() {
  const asked = state.index.questions.filter((one) => !at("task").value || one.task === at("task").value);
  const names = [...new Set(asked.map((one) => one.category))].filter(Boolean).sort();
  options(at("category"), [["", "all categories"], ...names.map((name) => [name, name])]);
}

function filter() {
  const words = at("text").value.toLowerCase().split(/\s+/).filter(Boolean);
  const [task, category] = [at("task").value, at("category").value];
  const isAsked = VERDICTS[at("outcome").value][1];
  state.found = state.index.questions.filter(
    (one) =>
      (!task || one.task === task) &&
      (!category || one.category === category) &&
      isAsked(one.verdicts) &&
      words.every((word) => one.words.includes(word)),
  );
  state.chosen = 0;
  list();
  show();
}

function list() {
  const more = state.found.length > SHOWN_AT_MOST ? `, the first ${SHOWN_AT_MOST} are listed` : "";
  at("count").textContent = counted(state.found.length, "question") + more;
  at("rows").replaceChildren(
    ...state.found.slice(0, SHOWN_AT_MOST).map((one, place) =>
      element(
        "button",
        { role: "option", type: "button", "aria-selected": String(place === state.chosen),
          onclick: () => choose(place) },
        element("span", {}, one.id),
        ...one.verdicts.filter((value) => value !== null).map(verdict),
      ),
    ),
  );
}

function choose(place) {
  if (!state.found.length) return;
  state.chosen = Math.max(0, Math.min(place, Math.min(state.found.length, SHOWN_AT_MOST) - 1));
  list();
  at("rows").children[state.chosen].scrollIntoView({ block: "nearest" });
  show();
}

const said = (value) =>
  Array.isArray(value) ? `${value[0]} of ${value[1]}` : Number.isInteger(value) ? value : value.toFixed(4);

function run(name, answer) {
  if (!answer) return element("section", {}, element("h3", {}, name), "not asked");
  const scores = Object.entries(answer.scores).map(([metric, value]) =>
    element("tr", {}, element("td", {}, metric), element("td", {}, String(said(value)))),
  );
  return element(
    "section",
    { class: "run" },
    element("h3", {}, name),
    element("pre", { class: "response" }, answer.response),
    element("table", {}, ...scores),
    answer.judgment ? element("pre", { class: "judgment" }, answer.judgment) : null,
  );
}

async function show() {
  const one = state.found[state.chosen];
  if (!one) return at("game").replaceChildren(element("p", {}, "No question fits these filters."));
  const size = state.index.questions_per_chunk;
  const chunk = await part(`chunk-${Math.floor(one.number / size)}`);
  if (state.found[state.chosen] !== one) return undefined;
  const details = chunk[one.number % size];
  return at("game").replaceChildren(
    element("h2", {}, `${one.task} · ${one.id}`),
    one.category ? element("p", {}, one.category) : null,
    element("pre", { class: "prompt" }, details.shown),
    element("div", { class: "runs" }, ...state.index.runs.map((name, i) => run(name, details.answers[i]))),
  );
}

async function start() {
  const index = await part("index");
  index.questions = index.questions.map(([task, id, category, words, verdicts], number) => ({
    task, id, category, verdicts, number, words: `${id}\n${words}`.toLowerCase(),
  }));
  state.index = index;
  const tasks = [...new Set(index.questions.map((one) => one.task))];
  options(at("task"), [["", "all tasks"], ...tasks.map((name) => [name, name])]);
  options(at("outcome"), Object.entries(VERDICTS).map(([name, [title]]) => [name, title]));
  at("figures").textContent = `${counted(index.questions.length, "question")}, ${counted(index.runs.length, "run")}`;
  fillCategories();
  at("task").addEventListener("change", fillCategories);
  for (const id of ["task", "category", "outcome"]) at(id).addEventListener("change", filter);
  at("text").addEventListener("input", filter);
  at("filters").addEventListener("submit", (event) => event.preventDefault());
  const root = document.documentElement;
  const dark = () => (root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark");
  at("theme").addEventListener("click", dark);
  document.addEventListener("keydown", (event) => {
    if (event.target.tagName === "INPUT") return event.key === "Escape" && event.target.blur();
    if (event.key === "/") return event.preventDefault(), at("text").focus();
    if (event.key === "j") choose(state.chosen + 1);
    if (event.key === "k") choose(state.chosen - 1);
    if (event.key === "t") dark();
    return undefined;
  });
  filter();
}

start();
