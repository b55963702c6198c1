// The tree of one move. A node is a row; children are made when their parent is opened.

class TreeView {
  constructor({ tree, chosen, greedy, ended }) {
    Object.assign(this, { tree, chosen: new Set(chosen), greedy: new Set(greedy) });
    this.ended = new Set(ended); // their value is 0: what they are worth belongs to the last move
    this.children = tree.parent.map(() => []);
    tree.parent.forEach((parent, node) => parent >= 0 && this.children[parent].push(node));
    this.order = "visits";
    this.open = new Set([0, ...chosen, ...greedy]);
    this.current = chosen[0] ?? 0;
    this.rows = element("div", { role: "tree", "aria-label": "Search tree", class: "tree" });
    this.rows.addEventListener("keydown", (event) => this.onKey(event));
    this.rows.addEventListener("click", (event) => this.onClick(event));
    this.render();
  }

  sorted(node) {
    const { [this.order]: column, value } = this.tree;
    const by = (numbers, a, b) => (numbers[b] ?? -1) - (numbers[a] ?? -1);
    return [...this.children[node]].sort(
      (a, b) => by(column, a, b) || this.chosen.has(b) - this.chosen.has(a) || by(value, a, b),
    );
  }

  // Visible nodes in their order, with their level. The root is the row above all.
  visible() {
    const found = [];
    const waiting = [[0, 0]];
    while (waiting.length) {
      const [node, level] = waiting.pop();
      found.push([node, level]);
      if (this.open.has(node))
        for (const child of this.sorted(node).reverse()) waiting.push([child, level + 1]);
    }
    return found;
  }

  render(focus = false) {
    this.nodes = this.visible();
    if (!this.nodes.some(([node]) => node === this.current)) this.current = 0;
    const head = element(
      "div",
      { class: "head", "aria-hidden": "true" },
      ...["move", "visits", "prior", "Q", "value", "end"].map((name) => element("span", {}, name)),
    );
    this.rows.replaceChildren(head, ...this.nodes.map(([node, level]) => this.row(node, level)));
    if (focus) this.rows.querySelector('[tabindex="0"]').focus();
  }

  row(node, level) {
    const { tree } = this;
    const isParent = this.children[node].length > 0;
    const marks = `${this.chosen.has(node) ? " chosen" : ""}${this.greedy.has(node) ? " greedy" : ""}`;
    const said = node ? oneLine(tree.text[node]) || "(end)" : "before this move";
    const most = tree.visits[0] || 1;
    return element(
      "div",
      {
        class: `node${node ? marks : ""}`,
        role: "treeitem",
        "data-node": node,
        "aria-level": level + 1,
        "aria-expanded": isParent ? String(this.open.has(node)) : null,
        "aria-label": `${said}, ${tree.visits[node]} visits${marks ? `,${marks}` : ""}`,
        tabindex: node === this.current ? 0 : -1,
      },
      element(
        "span",
        { class: "said" },
        element("span", { style: `flex: none; width: ${level * 20}px` }),
        element("span", { class: "twist" }, isParent ? "▶" : ""),
        marks && node ? element("span", { class: `mark${marks}` }) : null,
        element(node ? "b" : "i", {}, said),
      ),
      this.meter("visits", tree.visits[node] / most, number(tree.visits[node])),
      this.meter("prior", node ? tree.prior[node] : 0, node ? tree.prior[node].toFixed(3) : ""),
      node ? decimal(tree.q[node]) : element("span"),
      this.ended.has(node) ? element("span") : decimal(tree.value[node]),
      element("span", {}, tree.outcome[node] === null ? "" : verdict(tree.outcome[node])),
    );
  }

  meter(kind, share, shown) {
    return element("span", { class: `meter ${kind}`, "--share": share }, shown);
  }

  toggle(node, opens = !this.open.has(node)) {
    if (opens) this.open.add(node);
    else this.open.delete(node);
  }

  expandAll() {
    this.open = new Set(this.tree.parent.keys());
    this.render();
  }

  collapseAll() {
    this.open = new Set([0]);
    this.render();
  }

  pathsOnly() {
    this.open = new Set([0, ...this.chosen, ...this.greedy]);
    this.render();
  }

  onClick(event) {
    const row = event.target.closest(".node");
    if (!row) return;
    this.current = Number(row.dataset.node);
    if (this.children[this.current].length && this.current) this.toggle(this.current);
    this.render(true);
  }

  onKey(event) {
    const node = this.current;
    const place = this.nodes.findIndex(([other]) => other === node);
    const at = (i) => this.nodes[Math.max(0, Math.min(i, this.nodes.length - 1))][0];
    const parent = Math.max(this.tree.parent[node], 0);
    const isOpen = this.open.has(node) && this.children[node].length > 0;
    if (event.key === "ArrowDown") this.current = at(place + 1);
    else if (event.key === "ArrowUp") this.current = at(place - 1);
    else if (event.key === "Home") this.current = 0;
    else if (event.key === "End") this.current = at(this.nodes.length - 1);
    else if (event.key === "ArrowRight" && isOpen) this.current = at(place + 1);
    else if (event.key === "ArrowRight") this.toggle(node, true);
    else if (event.key === "ArrowLeft" && isOpen && node) this.toggle(node, false);
    else if (event.key === "ArrowLeft") this.current = parent;
    else if (event.key === "Enter" || event.key === " ") this.toggle(node);
    else return;
    event.preventDefault();
    event.stopPropagation();
    this.render(true);
  }
}
