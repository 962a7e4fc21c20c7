// @ts-check
/**
 * Samples and their views by policy and magnitude. Arrays: images [S,C,H,W], views [P,M,S,C,H,W],
 * change [P,M] (mean absolute difference of the pixels, in 0..1).
 * @param {UI} ui
 */
function build(ui) {
  const images = ui.array("images"),
    views = ui.array("views"),
    change = ui.array("change").values;
  const [S, ...shape] = images.shape,
    size = images.values.length / S;
  const policies = ui.axes.policy,
    magnitudes = ui.axes.magnitude,
    M = magnitudes.length;
  const names = ui.data.names;

  ui.row(ui.choice("policy", "Policy"), ui.slider("magnitude", "Magnitude"));
  const said = ui.readout();
  ui.add(said.element);
  const before = Array.from({length: S}, (_, i) => ui.picture(`given${i}`));
  const after = Array.from({length: S}, (_, i) => ui.picture(`view${i}`));
  ui.add(node("div", {class: "lk-pictures lk-many"}, ...before.map(o => o.element)));
  ui.add(node("div", {class: "lk-pictures lk-many"}, ...after.map(o => o.element)));
  const chart = ui.chart("How far the pixels move: mean difference to the given picture", 170);
  ui.add(
    node("div", {class: "lk-charts"}, chart.element),
    ui.legend([
      ["lk-fill-a", "chosen policy"],
      ["lk-rule", "the other policies"],
    ]),
  );

  return s => {
    const p = ui.index("policy"),
      m = ui.index("magnitude"),
      at = p * M + m;
    said.say(
      `${s.policy}, magnitude ${plain(s.magnitude)}: ` +
        `pixels differ by ${percent(change[at], 1)} on average.`,
    );
    for (let i = 0; i < S; i++) {
      before[i].show(
        images.values.slice(i * size, (i + 1) * size),
        shape,
        i ? "" : "given",
        `sample ${names[i]} as given`,
      );
      const from = (at * S + i) * size;
      after[i].show(
        views.values.slice(from, from + size),
        shape,
        names[i],
        `sample ${names[i]}, ${s.policy} at ${plain(s.magnitude)}`,
      );
    }
    chart.draw((g, W, H) => {
      const top = Math.max(0.01, ...change),
        ticks = steps(top, 3);
      const f = frame(g, W, H, {
        x: [magnitudes[0], magnitudes[M - 1]],
        y: [0, top],
        yticks: ticks,
        yformat: v => percent(v),
        xticks: magnitudes,
        xlabel: "magnitude",
      });
      policies.forEach((/** @type {string} */ name, /** @type {number} */ k) => {
        const points = magnitudes.map((/** @type {number} */ v, /** @type {number} */ j) => [
          f.sx(v),
          f.sy(change[k * M + j]),
        ]);
        g.append(
          svg(
            "path",
            {d: path(points), class: k === p ? "lk-line-a" : "lk-line-n", fill: "none"},
            svg("title", {}, name),
          ),
        );
      });
      g.append(
        svg("circle", {cx: f.sx(magnitudes[m]), cy: f.sy(change[at]), r: 4.5, class: "lk-fill-a"}),
      );
      return (
        `${s.policy}: ` +
        magnitudes
          .map(
            (/** @type {number} */ v, /** @type {number} */ j) =>
              `${plain(v)} ${percent(change[p * M + j])}`,
          )
          .join(", ")
      );
    });
  };
}
