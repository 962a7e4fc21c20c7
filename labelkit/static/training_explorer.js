// @ts-check
/**
 * The losses of a training by name. data: losses (name -> one value an epoch, null where it was
 * not computed), shares (the same, divided by the first value that is not 0), metrics and pseudo
 * alike; text (loss name -> [linear words, share words] an epoch), after (what the readout says
 * behind the losses, by metric and epoch). Words are made in Python, so that both say the same.
 * @param {UI} ui
 */
function build(ui) {
  const {losses, shares, metrics, pseudo, text, after} = ui.data,
    epochs = ui.axes.epoch,
    E = epochs.length;
  const names = Object.keys(losses),
    kinds = ["a", "b", "n"],
    dashes = ["none", "8 4", "2 4"];
  /** Three colours, and three kinds of line for those who do not see colours. @param {number} i */
  const style = i => ({
    class: `lk-line-${kinds[i % 3]}`,
    "stroke-dasharray": dashes[Math.floor(i / 3 + (i % 3)) % 3],
  });
  /** @param {number} i */
  const dot = i => ["lk-fill-a", "lk-fill-b", "lk-dot"][i % 3];

  ui.row(
    ui.choice("loss", "Loss", v => v),
    ui.choice("scale", "Scale"),
    ...(ui.axes.metric ? [ui.choice("metric", "Metric", v => v)] : []),
  );
  ui.row(ui.slider("epoch", "Epoch"));
  const said = ui.readout();
  ui.add(said.element);

  /** Names beside a piece of their line. @param {[string, number][]} items */
  const legend = items =>
    node(
      "div",
      {class: "lk-legend"},
      ...items.map(([name, i]) =>
        node(
          "span",
          {class: "lk-key", "data-key": name},
          svg(
            "svg",
            {width: 28, height: 10, "aria-hidden": "true"},
            svg("path", {d: "M0,5h28", ...style(i)}),
          ),
          name,
        ),
      ),
    );

  const chart = ui.chart("Mean of each loss in each epoch of training", 220),
    keys = legend(names.map((n, i) => [n, i]));
  ui.add(
    node("div", {class: "lk-charts"}, node("div", {class: "lk-chartbox"}, chart.element, keys)),
  );
  const below = node("div", {class: "lk-charts"});
  const metric = ui.axes.metric ? ui.chart("Validation, after each epoch", 170) : null;
  const pseudoNames = Object.keys(pseudo),
    labels = pseudoNames.length ? ui.chart("Labels that the technique accepted", 170) : null;
  if (metric) below.append(metric.element);
  if (labels)
    below.append(
      node(
        "div",
        {class: "lk-chartbox"},
        labels.element,
        legend(pseudoNames.map((n, i) => [n, i])),
      ),
    );
  if (metric && labels) below.classList.add("lk-two");
  if (metric || labels) ui.add(below);

  /**
   * Lines over the epochs, broken where a value is missing.
   * @param {SVGElement} g
   * @param {number} w
   * @param {number} h
   * @param {[string, number, (number|null)[]][]} lines name, number of its style, values
   * @param {(v: number) => string} format
   */
  const lines = (g, w, h, lines, format) => {
    const all = /** @type {number[]} */ (lines.flatMap(l => l[2]).filter(v => v !== null));
    const top = Math.max(...all, 0),
      low = Math.min(...all, 0),
      unit = format !== plain && low >= 0 && top <= 1;
    const y = /** @type {[number, number]} */ (unit ? [0, 1] : [low, top > low ? top : low + 1]);
    const step = steps(y[1] - y[0])[1],
      from = Math.ceil(low / step - 1e-9);
    const yticks = unit
      ? [0, 0.5, 1]
      : Array.from(
          {length: Math.floor(y[1] / step + 1e-9) - from + 1},
          (_, i) => (from + i) * step,
        );
    const f = frame(g, w, h, {
      x: [epochs[0], E > 1 ? epochs[E - 1] : epochs[0] + 1],
      y,
      yticks,
      yformat: format,
      xlabel: "epoch",
      xticks: some(E, Math.floor(w / 55)).map(i => epochs[i]),
    });
    const now = ui.index("epoch"),
      at = f.sx(epochs[now]);
    g.append(svg("line", {x1: at, x2: at, y1: f.top, y2: f.bottom, class: "lk-axis"}));
    for (const [name, i, values] of lines) {
      const line = svg("g", {"data-line": name}, svg("title", {}, name));
      let d = "";
      values.forEach((v, e) => {
        if (v === null) return;
        const joined = e > 0 && values[e - 1] !== null,
          x = f.sx(epochs[e]),
          y = f.sy(v);
        d += `${joined ? "L" : "M"}${x.toFixed(1)},${y.toFixed(1)}`;
        if (!joined && (e === E - 1 || values[e + 1] === null))
          line.append(svg("circle", {cx: x, cy: y, r: 3, class: dot(i)}));
      });
      if (d) line.append(svg("path", {d, ...style(i)}));
      const v = values[now];
      if (v !== null) line.append(svg("circle", {cx: at, cy: f.sy(v), r: 4.5, class: dot(i)}));
      g.append(line);
    }
  };

  return s => {
    const e = ui.index("epoch"),
      share = s.scale !== "linear",
      shown = s.loss === "all" ? names : [String(s.loss)];
    const tail = after[String(s.metric ?? "")][e];
    const head =
      shown
        .map(n => text[n][share ? 1 : 0][e])
        .filter(t => t !== null)
        .join(", ") || "no such loss";
    const words = `Epoch ${epochs[e]}${share ? ", of the first value" : ""}: ${head}${tail}.`;
    said.say(words);
    for (const k of keys.children)
      k.toggleAttribute("hidden", !shown.includes(k.getAttribute("data-key")));

    const source = share ? shares : losses;
    chart.draw((g, w, h) => {
      lines(
        g,
        w,
        h,
        shown.map(n => [n, names.indexOf(n), source[n]]),
        share ? v => percent(v) : plain,
      );
      return words;
    });
    if (metric)
      metric.draw((g, w, h) => {
        const values = metrics[String(s.metric)],
          fits = values.every((/** @type {number|null} */ v) => v === null || (v >= 0 && v <= 1));
        lines(
          g,
          w,
          h,
          [[String(s.metric), 0, values]],
          fits && s.metric !== "valid_loss" ? v => String(v) : plain,
        );
        return String(s.metric);
      });
    if (labels)
      labels.draw((g, w, h) => {
        lines(
          g,
          w,
          h,
          pseudoNames.map((n, i) => [n, i, pseudo[n]]),
          v => percent(v),
        );
        return pseudoNames.join(", ");
      });
  };
}
