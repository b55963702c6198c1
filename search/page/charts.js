// The run in four drawings. All of them are made of `index.statistics`.

const NAMESPACE = "http://www.w3.org/2000/svg";

function svg(tag, attributes, ...children) {
  const made = document.createElementNS(NAMESPACE, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const label = (x, y, text, attributes = {}) => svg("text", { x, y, ...attributes }, text);

function figure(title, explained, drawing) {
  const caption = element("figcaption", {}, title, element("small", {}, explained));
  return element("figure", {}, caption, drawing);
}

function drawing(height, title, ...children) {
  return svg("svg", { viewBox: `0 0 460 ${height}`, role: "img", "aria-label": title }, ...children);
}

function showSummary() {
  const stats = index.statistics;
  const counts = [
    ["games", stats.games],
    ["problems", stats.problems],
    ["positions", stats.positions],
    ["candidates", stats.candidates],
    ["tree nodes", stats.tree_nodes],
    ["finished texts", stats.leaves],
    ["tokens written", stats.completion_tokens],
  ];
  const boxes = counts.map(([name, count]) =>
    element("div", {}, element("b", {}, number(count)), name),
  );
  const powers = stats.visits.map((_, i) => (i ? `${2 ** i}–${2 ** (i + 1) - 1}` : "1"));
  const measured = stats.depth.length ? "tree nodes" : "candidates";
  document.getElementById("summary").replaceChildren(
    element("div", { class: "counts" }, ...boxes),
    element(
      "div",
      { class: "charts" },
      figure("Solved", "share of right answers, with 95% intervals (Wilson)", rates(stats)),
      figure("Value and truth", calibrationTitle(stats), calibration(stats)),
      figure("Depth", "tree nodes by moves below their root", histogram(stats.depth, "moves")),
      figure("Visits", `${measured} by how often the search was there`, histogram(stats.visits, "visits", powers)),
    ),
  );
}

function rates(stats) {
  const rows = [
    ["search, games", stats.solved, ""],
    ["search, problems", stats.problems_solved, ""],
    ["right text found", stats.found, "plain"],
    ["greedy path", stats.greedy, "greedy"],
    ["search, same games", stats.solved_beside_greedy, ""],
  ].filter(([, share]) => share.of > 0);
  if (!rows.length) return drawing(60, "nothing was checked", label(0, 30, "Nothing was checked."));
  const x = (share) => 150 + 186 * share;
  const drawn = rows.flatMap(([name, share, kind], i) => {
    const y = 14 + 40 * i;
    return [
      label(140, y + 15, name, { "text-anchor": "end", class: "strong" }),
      svg("rect", { x: x(0), y, width: 186 * share.share, height: 22, rx: 3, class: `bar ${kind}` }),
      svg("line", { x1: x(share.low), x2: x(share.high), y1: y + 11, y2: y + 11, class: "whisker" }),
      label(350, y + 10, withInterval(share), { class: "strong" }),
      label(350, y + 25, `${number(share.num)} of ${number(share.of)}`),
    ];
  });
  const axis = svg("line", { x1: x(0), x2: x(0), y1: 6, y2: 8 + 40 * rows.length, class: "axis" });
  return drawing(16 + 40 * rows.length, "share of solved games", axis, ...drawn);
}

function calibrationTitle(stats) {
  if (stats.brier === null) return "nothing was checked";
  return `positions by their value, and how many of their games ended right; Brier ${stats.brier.toFixed(3)}`;
}

function calibration(stats) {
  const [left, top, size] = [52, 14, 200];
  const x = (value) => left + 1.95 * size * value;
  const y = (share) => top + size * (1 - share);
  const parts = [svg("line", { x1: x(0), y1: y(0), x2: x(1), y2: y(1), class: "ideal" })];
  for (const tick of [0, 0.25, 0.5, 0.75, 1]) {
    parts.push(
      svg("line", { x1: x(0), x2: x(1), y1: y(tick), y2: y(tick), class: "axis" }),
      label(left - 8, y(tick) + 4, `${100 * tick}%`, { "text-anchor": "end" }),
      label(x(tick), y(0) + 18, tick, { "text-anchor": "middle" }),
    );
  }
  const most = Math.max(1, ...stats.calibration.map((bin) => bin.solved.of));
  for (const { mean_value, solved } of stats.calibration) {
    if (!solved.of) continue;
    const dot = svg("circle", {
      cx: x(mean_value), cy: y(solved.share), r: 3 + 6 * Math.sqrt(solved.of / most),
    });
    dot.append(svg("title", {}, `${number(solved.of)} positions, ${withInterval(solved)} solved`));
    const [low, high] = [y(solved.low), y(solved.high)];
    parts.push(
      svg("line", { x1: x(mean_value), x2: x(mean_value), y1: low, y2: high, class: "whisker" }), dot,
    );
  }
  parts.push(label(x(0.5), y(0) + 36, "value of the position", { "text-anchor": "middle" }));
  return drawing(top + size + 42, "value against outcome", ...parts);
}

function histogram(counts, unit, names = counts.map((_, i) => String(i))) {
  if (!counts.length) return drawing(60, unit, label(0, 30, "The records hold no trees."));
  const most = Math.max(...counts);
  const [left, height, width] = [8, 160, 444];
  const step = Math.min(width / counts.length, 100);
  const every = Math.ceil(counts.length / 12);
  const bars = counts.flatMap((count, i) => {
    const tall = (height * count) / most;
    const bar = svg("rect", {
      x: left + step * i + 2, y: 22 + height - tall, width: step - 4, height: tall, rx: 2,
      class: "bar",
    });
    bar.append(svg("title", {}, `${names[i]}: ${number(count)}`));
    const middle = { "text-anchor": "middle" };
    const center = left + step * (i + 0.5);
    if (i % every) return [bar];
    return [
      bar,
      label(center, 16 + height - tall, short(count), { ...middle, class: "strong" }),
      label(center, height + 40, names[i], middle),
    ];
  });
  const axis = svg("line", { x1: left, x2: left + width, y1: height + 22, y2: height + 22, class: "axis" });
  return drawing(height + 62, unit, axis, ...bars, label(left, height + 58, unit));
}

const short = (count) => (count < 10000 ? number(count) : `${(count / 1000).toFixed(1)}k`);
