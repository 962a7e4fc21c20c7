// @ts-check
/**
 * Two samples and what a mix makes of them. Arrays: images [N,C,H,W], masks [M,H,W], mask_mean
 * [M], mixed [K,C,H,W] (only where the picture is not mask·A + (1−mask)·B), boxes [K,4] (where B
 * is shown small), table [T,P,D,L,3] (places in masks, mixed and boxes; −1: none), share
 * [T,P,D,L], density [A,S].
 * @param {UI} ui
 */
function build(ui) {
  const {shape, pairs, draws_matter, alpha_words, notes} = ui.data;
  const [c, h, w] = shape,
    size = c * h * w,
    area = h * w;
  const images = ui.array("images").values,
    masks = ui.array("masks").values,
    maskMean = ui.array("mask_mean").values;
  const mixed = ui.model.get("arrays").mixed ? ui.array("mixed").values : new Uint8Array(0);
  const boxes = ui.model.get("arrays").boxes ? ui.array("boxes").values : new Int32Array(0);
  const table = ui.array("table").values,
    share = ui.array("share").values,
    density = ui.array("density");
  const n = {p: ui.axes.pair.length, d: ui.axes.draw.length, l: ui.axes.lam.length};
  const number = (/** @type {number} */ v) => v.toFixed(2);

  ui.row(
    ui.choice("technique", "Technique"),
    ui.choice("pair", "Samples", (v, i) => `${v}: “${pairs[i].a.name}” and “${pairs[i].b.name}”`),
    ui.choice("draw", "Random draw"),
  );
  ui.row(ui.slider("lam", "λ, the weight of A", number));

  const a = ui.picture("a"),
    b = ui.picture("b"),
    mask = ui.picture("mask"),
    mix = ui.picture("mixed");
  ui.add(node("div", {class: "lk-pictures"}, a.element, b.element, mask.element, mix.element));

  const said = ui.readout();
  const barA = node("span", {class: "lk-bar-a"}),
    barB = node("span", {class: "lk-bar-b"});
  const bar = node("div", {class: "lk-bar", role: "img"}, barA, barB);
  const nameA = node("span"),
    nameB = node("span");
  ui.add(said.element, bar, node("div", {class: "lk-barlabels"}, nameA, nameB));

  const chart = ui.chart("How often each λ is drawn: the density of Beta(alpha, alpha)", 150),
    note = node("div", {class: "lk-legend"});
  const drawn = node("span"),
    real = node("span");
  ui.add(
    node("div", {class: "lk-charts"}, chart.element),
    node(
      "div",
      {class: "lk-legend"},
      node("span", {class: "lk-key"}, node("span", {class: "lk-swatch lk-rule"}), drawn),
      node("span", {class: "lk-key"}, node("span", {class: "lk-swatch lk-dotted"}), real),
    ),
  );
  const alpha = ui.choice("alpha", "alpha");
  ui.row(alpha, note);

  /**
   * The picture shrunk into a box, by nearest pixels, black around it: what the library's
   * resizemix does.
   */
  const shrunk = (
    /** @type {Uint8Array} */ x,
    /** @type {Int32Array} */ [top, left, bottom, right],
  ) => {
    const res = new Uint8Array(size);
    for (let k = 0; k < c; k++)
      for (let i = top; i < bottom; i++)
        for (let j = left; j < right; j++) {
          res[k * area + i * w + j] =
            x[
              k * area +
                Math.floor(((i - top) * h) / (bottom - top)) * w +
                Math.floor(((j - left) * w) / (right - left))
            ];
        }
    return res;
  };

  return s => {
    const t = ui.index("technique"),
      p = ui.index("pair"),
      d = ui.index("draw"),
      l = ui.index("lam"),
      k = ui.index("alpha");
    const at = ((t * n.p + p) * n.d + d) * n.l + l,
      m = table[3 * at],
      x = table[3 * at + 1],
      q = table[3 * at + 2];
    const A = pairs[p].a,
      B = pairs[p].b,
      lam = ui.axes.lam[l],
      kept = share[at];
    // what is left of a hundred, so that the two rounded shares add up
    const shareA = percent(kept, 1),
      shareB = percent(1 - Number((100 * kept).toFixed(1)) / 100, 1);
    const xa = images.subarray(A.at * size, A.at * size + size),
      xb = images.subarray(B.at * size, B.at * size + size);
    const keep = masks.subarray(m * area, m * area + area);
    let xm = mixed.subarray(x * size, x * size + size);
    if (x < 0) {
      xm = new Uint8Array(size);
      const other = q < 0 ? xb : shrunk(xb, boxes.subarray(4 * q, 4 * q + 4));
      for (let i = 0; i < size; i++) {
        const k = keep[i % area] / 255;
        xm[i] = Math.round(k * xa[i] + (1 - k) * other[i]);
      }
    }
    a.show(xa, shape, `A: “${A.name}”`, `sample A, ${A.name}`);
    b.show(xb, shape, `B: “${B.name}”`, `sample B, ${B.name}`);
    mask.show(
      keep,
      [1, h, w],
      `mask (white keeps A), mean ${maskMean[m].toFixed(3)}`,
      `mask of ${s.technique}: ${percent(maskMean[m], 1)} of A is kept`,
    );
    mix.show(xm, shape, "mixed", `the mix of ${A.name} and ${B.name} by ${s.technique}`);

    said.say(
      `${s.technique}: λ drawn ${number(lam)}, true share ${kept.toFixed(3)}. ` +
        `Target: ${shareA} “${A.name}”, ${shareB} “${B.name}”.`,
    );
    barA.style.width = `${100 * kept}%`;
    barB.style.width = `${100 * (1 - kept)}%`;
    bar.setAttribute("aria-label", `target: ${shareA} ${A.name}, ${shareB} ${B.name}`);
    nameA.textContent = `A “${A.name}” ${shareA}`;
    nameB.textContent = `B “${B.name}” ${shareB}`;
    /** @type {HTMLSelectElement|null} */
    const draws = ui.root.querySelector('select[data-axis="draw"]');
    if (draws) draws.disabled = !draws_matter[t];
    note.textContent = notes[t] || alpha_words[k];
    drawn.textContent = `λ drawn ${number(lam)}`;
    real.textContent = `true share ${kept.toFixed(3)}`;

    chart.draw((g, W, H) => {
      const S = density.shape[1],
        row = Array.from(density.values.subarray(k * S, k * S + S)),
        top = 4;
      const f = frame(g, W, H, {
        x: [0, 1],
        y: [0, top],
        xticks: [0, 0.25, 0.5, 0.75, 1],
        yticks: [0, 1, 2, 3, 4],
        xlabel: "λ",
      });
      /** @type {[number, number][]} */
      const line = row.map((v, i) => [f.sx((i + 0.5) / S), f.sy(Math.min(v, top))]);
      g.append(
        svg("path", {
          d: path([
            [f.left, f.bottom],
            [f.left, line[0][1]],
            ...line,
            [f.right, line[S - 1][1]],
            [f.right, f.bottom],
          ]),
          class: "lk-area",
        }),
        svg("path", {d: path(line), class: "lk-line-a"}),
        svg("line", {x1: f.sx(lam), x2: f.sx(lam), y1: f.top, y2: f.bottom, class: "lk-mark"}),
      );
      if (Math.abs(kept - lam) > 0.004)
        g.append(
          svg("line", {
            x1: f.sx(kept),
            x2: f.sx(kept),
            y1: f.top,
            y2: f.bottom,
            class: "lk-mark lk-dash",
          }),
        );
      return `${alpha_words[k]} ${drawn.textContent}, ${real.textContent}`;
    });
  };
}
