// Data: base64 of deflated JSON in script elements; a part is read when it is first looked at.

const parts = new Map();

function part(name) {
  if (!parts.has(name)) parts.set(name, unpack(document.getElementById(name).textContent));
  return parts.get(name);
}

async function unpack(base64) {
  const bytes = Uint8Array.from(atob(base64.trim()), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).json();
}

// What one game was: {id, prompt, answer, outcome, value, ...}, in the columns of the index.
function gamesOf(index) {
  return index.games.map((row, number) => {
    const game = Object.fromEntries(index.columns.map((name, i) => [name, row[i]]));
    const words = `${game.id}\n${game.prompt}\n${game.answer}`.toLowerCase();
    return Object.assign(game, { number, words });
  });
}

const OUTCOMES = {
  all: ["All", () => true],
  solved: ["Solved", (game) => game.outcome === 1],
  unsolved: ["Unsolved", (game) => game.outcome === 0],
  unchecked: ["Not checked", (game) => game.outcome === null],
  gained: ["Greedy wrong", (game) => game.greedy === 0 && game.outcome === 1],
};

function filtered(games, { text, outcome, low, high, order }) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const phrase = text.trim().toLowerCase();
  const isAsked = OUTCOMES[outcome][1];
  const found = games.filter(
    (game) =>
      isAsked(game) &&
      (game.value === null ? low <= 0 : game.value >= low && game.value <= high) &&
      (game.words.includes(phrase) || words.every((word) => game.words.includes(word))),
  );
  const sign = { low: 1, high: -1 }[order];
  if (sign) found.sort((a, b) => sign * ((a.value ?? 2) - (b.value ?? 2)) || a.number - b.number);
  return found;
}

// ---------------------------------------------------------------------------------- elements

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") made.className = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) made.style.setProperty(name, value);
    else if (value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const number = (value) => value.toLocaleString("en-US");
const counted = (count, name) => `${number(count)} ${name}${count === 1 ? "" : "s"}`;
const percent = (share) => `${(100 * share).toFixed(1)}%`;
const decimal = (value, digits = 3) =>
  value === null || value === undefined
    ? element("span", { class: "none", title: "not recorded" }, "–")
    : element("span", {}, value.toFixed(digits));

function withInterval(share) {
  if (share.share === null) return "not checked";
  const [low, high] = [share.low, share.high].map((end) => (100 * end).toFixed(0));
  return `${percent(share.share)} (${low}–${high})`;
}

const oneLine = (text) => text.replace(/^\n+|\n+$/g, "").replace(/\n/g, " ⏎ ");

function verdict(outcome) {
  const [name, kind] =
    outcome === 1 ? ["right", "right"] : outcome === 0 ? ["wrong", "wrong"] : ["not checked", ""];
  return element("span", { class: `verdict ${kind}` }, name);
}
