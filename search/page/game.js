// One game: the two answers, its moves, the tree of one of them, and what became of the prior.

let shown = { game: null, details: null, move: 0, tree: null };

async function showGame(game, move = 0) {
  const box = document.getElementById("game");
  if (!game) {
    shown = { game: null, details: null, move: 0, tree: null };
    box.replaceChildren(element("p", { class: "facts" }, "No game is left by the filters."));
    return;
  }
  const chunk = await part(`chunk-${Math.floor(game.number / index.games_per_chunk)}`);
  const details = chunk[game.number % index.games_per_chunk];
  move = Math.min(move, Math.max(details.moves.length - 1, 0));
  shown = { game, details, move, tree: null };
  const long = game.prompt.length > 120 ? " long" : "";
  box.replaceChildren(
    element("h2", { class: `problem${long}` }, game.prompt.trim()),
    facts(game),
    element("div", { class: "answers" }, searchedCard(game), likeliestCard(game, details)),
    element("div", { class: "moves", role: "tablist", "aria-label": "Moves" }),
    element("div", { id: "move", role: "tabpanel" }),
  );
  showMove(move);
  history.replaceState(null, "", `#${game.number}/${move + 1}`);
}

function facts(game) {
  const all = [
    game.id,
    game.split,
    `seed ${game.seed}`,
    game.game === null ? null : `game ${game.game}`,
    game.value === null ? null : `value ${game.value.toFixed(3)}`,
    `${game.tokens} tokens`,
  ];
  const spans = all.filter((fact) => fact !== null).map((fact) => element("span", {}, fact));
  return element("p", { class: "facts" }, ...spans);
}

function searchedCard(game) {
  const title = element("h2", {}, "Search", element("small", {}, "what was played"));
  title.append(verdict(game.outcome));
  const answer = element("pre", {}, game.answer.trimEnd());
  return element("section", { class: "card searched" }, title, answer);
}

function likeliestCard(game, details) {
  const first = details.moves[0];
  const title = element("h2", {}, "Greedy", element("small", {}, "the prior's likeliest path"));
  const card = element("section", { class: "card likeliest" }, title);
  if (!first || !first.tree) {
    card.append(element("p", {}, "The record has no tree to read it from."));
    return card;
  }
  const said = first.greedy.map((node) => first.tree.text[node]).join("");
  const ends = first.greedy.some((node) => first.ended.includes(node));
  if (ends) title.append(verdict(game.greedy));
  card.append(element("pre", {}, said.trimEnd()));
  if (game.skipped)
    card.append(element("p", {}, "Seen from the first searched move; those before were drawn."));
  else if (!ends)
    card.append(
      element("p", {}, said ? "… the tree goes no further on this path." : "Not in the tree."),
    );
  return card;
}

function showMove(move) {
  const { game, details } = shown;
  const tabs = document.querySelector(".moves");
  const panel = document.getElementById("move");
  if (!tabs || !panel) return;
  shown.move = move;
  tabs.replaceChildren(
    ...details.moves.map(({ value }, i) =>
      element(
        "button",
        {
          role: "tab",
          "aria-selected": String(i === move),
          tabindex: i === move ? 0 : -1,
          onclick: () => showMove(i),
        },
        `Move ${i + 1 + details.skipped}`,
        element("small", {}, value.toFixed(2)),
      ),
    ),
  );
  const found = details.moves[move];
  panel.replaceChildren();
  if (!found) {
    panel.append(element("p", { class: "facts" }, "No move of this game was searched."));
    return;
  }
  if (found.tree) panel.append(...treeWithTools(found));
  panel.append(...policy(found));
  history.replaceState(null, "", `#${game.number}/${move + 1}`);
}

function treeWithTools(move) {
  const view = new TreeView(move);
  shown.tree = view;
  const button = (name, action) => element("button", { onclick: action }, name);
  const order = element("select", { "aria-label": "Order of the moves" });
  for (const [value, name] of [["visits", "most visited"], ["prior", "likeliest"], ["q", "best Q"]])
    order.append(element("option", { value }, name));
  order.addEventListener("change", () => {
    view.order = order.value;
    view.render();
  });
  const key = element(
    "span",
    { class: "key" },
    element("span", { class: "mark chosen" }), "played",
    element("span", { class: "mark greedy" }), "likeliest",
  );
  const tools = element(
    "div",
    { class: "tools" },
    element("span", {}, `${number(move.tree.parent.length)} nodes`),
    button("expand all", () => view.expandAll()),
    button("collapse", () => view.collapseAll()),
    button("paths only", () => view.pathsOnly()),
    element("label", { class: "order" }, "first the ", order),
    key,
  );
  return [tools, element("div", { class: "scroll" }, view.rows)];
}

function policy(move) {
  const { text, prior, weights, visits } = move.candidates;
  const table = element("div", { class: "policy" });
  for (const name of ["candidate", "", "prior", "policy"])
    table.append(element(name === "candidate" ? "div" : "span", { class: "top" }, name));
  const rows = text.map((said, i) => [said, prior[i], weights[i], visits[i]]);
  rows.push(["all else", null, weights[weights.length - 1], null]);
  const pairs = (before, after) =>
    element(
      "div",
      { class: "pair" },
      element("i", { style: `width: ${100 * (before ?? 0)}%` }),
      element("i", { style: `width: ${100 * after}%` }),
    );
  for (const [said, before, after] of rows)
    table.append(
      element("div", { class: before === null ? "said none" : "said" }, oneLine(said) || "(end)"),
      pairs(before, after),
      decimal(before),
      decimal(after),
    );
  return [
    element("h3", {}, "What the search made of the prior"),
    element("p", {}, "Probability of each candidate before the search, and improved by it."),
    table,
  ];
}
