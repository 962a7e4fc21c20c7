// @ts-check
/**
 * Samples as points in feature space, epoch by epoch. Arrays: places [E,N,K] (K components, in
 * bytes), near [E,N,M] (places of the nearest samples), groups [G,E,N] (which group of a
 * colouring), agree [G,E] (share of neighbours in the sample's group), images [N,C,H,W] where
 * there are pictures, marks [E,P,K] where there are prototypes.
 * @param {UI} ui
 */
function build(ui) {
  const places = ui.array("places"),
    near = ui.array("near"),
    groups = ui.array("groups").values,
    agree = ui.array("agree").values;
  const [E, N, K] = places.shape,
    M = near.shape[2],
    d = ui.data;
  const arrays = ui.model.get("arrays"),
    images = arrays.images ? ui.array("images") : null,
    marks = arrays.marks ? ui.array("marks") : null;
  const colours = [
    "#3b82f6",
    "#d97706",
    "#12936f",
    "#d1495b",
    "#8a63c9",
    "#0f9fb5",
    "#8f7a00",
    "#d858a5",
    "#7b8794",
    "#6fa312",
  ];
  const colour = (/** @type {number} */ g) => colours[g % colours.length];
  const word = (/** @type {number} */ c, /** @type {number} */ e, /** @type {number} */ i) =>
    d.words[c][groups[(c * E + e) * N + i]];
  const nearest = (/** @type {number} */ e, /** @type {number} */ i) =>
    Array.from({length: M}, (_, m) => near.values[(e * N + i) * M + m]);

  ui.row(
    ui.slider("epoch", "Epoch"),
    ui.choice("colour", "Colour by"),
    ui.choice("group", "Show"),
    ui.choice("plane", "Plane"),
  );
  ui.row(ui.slider("sample", "Sample", i => String(d.ids[i])));
  const said = ui.readout();
  ui.add(said.element);
  const map = ui.chart("Features of the samples in two dimensions", 340),
    legend = node("div", {class: "lk-legend"});
  ui.add(node("div", {class: "lk-charts"}, map.element), legend);
  const shown = Array.from({length: M + 1}, (_, i) =>
    images ? ui.picture(i ? `near${i}` : "chosen") : node("p", {class: "lk-note"}),
  );
  ui.add(
    node(
      "div",
      {class: images ? "lk-pictures lk-many" : ""},
      ...shown.map(o => (images ? o.element : o)),
    ),
  );
  const chart = ui.chart("Share of the nearest samples that are of the same group", 150);
  ui.add(node("div", {class: "lk-charts"}, chart.element));

  return s => {
    const e = ui.index("epoch"),
      c = ui.index("colour"),
      p = 2 * ui.index("plane"),
      chosen = ui.index("sample");
    const [wanted, only] = d.filters[ui.index("group")];
    const group = (/** @type {number} */ i) => groups[(c * E + e) * N + i];
    const off = (/** @type {number} */ i) =>
      wanted >= 0 && groups[(wanted * E + e) * N + i] !== only;
    const mates = nearest(e, chosen),
      same = mates.filter(i => group(i) === group(chosen)).length;
    said.say(
      `Epoch ${plain(s.epoch)}: sample ${d.ids[chosen]}, ${s.colour} ${word(c, e, chosen)}; ` +
        `${same} of its ${M} nearest are of that group. ` +
        `Of all samples: ${percent(agree[c * E + e])}.`,
    );

    map.draw((g, W, H) => {
      const x = (/** @type {number} */ v) => 8 + (v / 255) * (W - 16),
        y = (/** @type {number} */ v) => H - 8 - (v / 255) * (H - 16);
      const at = (/** @type {Grid} */ a, /** @type {number} */ t, /** @type {number} */ i) => {
        const k = (t * a.shape[1] + i) * K + p;
        return /** @type {[number, number]} */ ([x(a.values[k]), y(a.values[k + 1])]);
      };
      g.append(
        svg("rect", {x: 1, y: 1, width: W - 2, height: H - 2, fill: "none", class: "lk-grid"}),
      );
      const order = Array.from({length: N}, (_, i) => i).sort((a, b) => +off(b) - +off(a));
      for (const i of order) {
        const [cx, cy] = at(places, e, i);
        const dot = svg(
          "circle",
          {
            cx,
            cy,
            r: off(i) ? 2.5 : 4,
            fill: colour(group(i)),
            "fill-opacity": off(i) ? 0.18 : 0.85,
            "data-sample": i,
            style: "cursor: pointer",
          },
          svg("title", {}, `${d.ids[i]}: ${word(c, e, i)}`),
        );
        dot.addEventListener("click", () => ui.select({sample: ui.axes.sample[i]}));
        g.append(dot);
      }
      const way = Array.from({length: e + 1}, (_, t) => at(places, t, chosen));
      g.append(svg("path", {d: path(way), class: "lk-line-n", "stroke-dasharray": "3 3"}));
      for (const i of mates) {
        const [cx, cy] = at(places, e, i);
        g.append(
          svg("circle", {cx, cy, r: 6, fill: "none", stroke: "currentColor", "stroke-width": 1.2}),
        );
      }
      const [cx, cy] = at(places, e, chosen);
      g.append(svg("circle", {cx, cy, r: 8, fill: "none", class: "lk-mark"}));
      if (marks)
        for (let i = 0; i < marks.shape[1]; i++) {
          const [mx, my] = at(marks, e, i);
          g.append(
            svg(
              "path",
              {
                d: `M${mx},${my - 9}L${mx + 9},${my}L${mx},${my + 9}L${mx - 9},${my}Z`,
                fill: colour(d.markGroups[i]),
                stroke: "currentColor",
                "stroke-width": 1.5,
              },
              svg("title", {}, d.markNames[i]),
            ),
          );
        }
      return `${N} points; the chosen one is ${d.ids[chosen]}`;
    });

    legend.replaceChildren(
      ...d.words[c].map((/** @type {string} */ w, /** @type {number} */ i) =>
        node(
          "span",
          {class: "lk-key"},
          node("span", {class: "lk-swatch", style: `background:${colour(i)}`}),
          w,
        ),
      ),
      node(
        "span",
        {class: "lk-key"},
        node("span", {class: "lk-swatch lk-dotted"}),
        "way of the chosen sample",
      ),
      ...(marks ? [node("span", {class: "lk-key"}, `◆ ${d.markWord}`)] : []),
    );

    [chosen, ...mates].forEach((i, m) => {
      const caption = `${m ? "near" : "sample"} ${d.ids[i]}: ${word(c, e, i)}`;
      if (!images) {
        shown[m].textContent = `${caption} — ${d.texts ? d.texts[i] : ""}`;
        return;
      }
      const [, ...shape] = images.shape,
        size = shape[0] * shape[1] * shape[2];
      shown[m].show(
        images.values.slice(i * size, (i + 1) * size),
        shape,
        caption,
        `${m ? "a nearest sample" : "the chosen sample"}, ${d.ids[i]}: ${word(c, e, i)}`,
      );
    });

    chart.draw((g, W, H) => {
      const epochs = ui.axes.epoch;
      const f = frame(g, W, H, {
        x: [epochs[0], epochs[E - 1]],
        y: [0, 1],
        yticks: [0, 0.5, 1],
        yformat: v => percent(v),
        xticks: some(E, Math.floor(W / 60)).map(i => epochs[i]),
        xlabel: "epoch",
      });
      const line = epochs.map((/** @type {number} */ v, /** @type {number} */ t) => [
        f.sx(v),
        f.sy(agree[c * E + t]),
      ]);
      g.append(
        svg("path", {d: path(line), class: "lk-line-a"}),
        svg("circle", {
          cx: f.sx(epochs[e]),
          cy: f.sy(agree[c * E + e]),
          r: 4.5,
          class: "lk-fill-a",
        }),
      );
      return epochs
        .map(
          (/** @type {number} */ v, /** @type {number} */ t) =>
            `${plain(v)} ${percent(agree[c * E + t])}`,
        )
        .join(", ");
    });
  };
}
