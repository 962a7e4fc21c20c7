// @ts-check
/**
 * Votes of labeling functions and what label models make of them. Arrays: votes [S,m] (-1
 * abstains), probs [M,S,C] by label model, truth [S] (-1 unknown), estimated [M,m] and real [m]
 * accuracies (-1 none), coverage [m], images [S,K,H,W] (optional).
 * @param {UI} ui
 */
function build(ui) {
  const {classes, functions, truth: known} = ui.data,
    samples = ui.axes.sample,
    models = ui.axes.model;
  const S = samples.length,
    m = functions.length,
    C = classes.length;
  const votes = ui.array("votes").values,
    probs = ui.array("probs").values,
    truth = ui.array("truth").values;
  const estimated = ui.array("estimated").values,
    real = ui.array("real").values,
    coverage = ui.array("coverage").values;
  const images = ui.model.get("arrays").images ? ui.array("images") : null;
  const short = (/** @type {string} */ name, n = 9) =>
    name.length > n ? name.slice(0, n - 1) + "…" : name;

  /** The class a label model answers for sample i. @param {number} k @param {number} i */
  const answer = (k, i) => {
    let best = 0;
    for (let c = 1; c < C; c++)
      if (probs[(k * S + i) * C + c] > probs[(k * S + i) * C + best]) best = c;
    return best;
  };

  ui.row(
    ui.slider("sample", "Sample"),
    ui.choice("model", "Label model"),
    ui.choice("colour", "Colour"),
  );
  const said = ui.readout();
  ui.add(said.element);
  ui.add(
    ui.legend([
      ["lk-fill-a", "vote agrees"],
      ["lk-fill-b", "vote disagrees"],
      ["lk-fade", "blank: abstains; pale: other samples"],
    ]),
  );
  const matrix = ui.chart(
    "Votes: a row is a sample, a column a labeling function",
    Math.min(S * 15, 420) + 44,
  );
  ui.add(node("div", {class: "lk-charts"}, matrix.element));
  const picture = images ? ui.picture("sample") : null;
  if (picture) ui.add(node("div", {class: "lk-pictures"}, picture.element));
  const bars = ui.chart("What the label model makes of this sample's votes", 190);
  const trust = ui.chart(
    known
      ? "Accuracy of each function: real, and as the label model takes it"
      : "Accuracy of each function, as the label model takes it",
    230,
  );
  ui.add(
    node(
      "div",
      {class: "lk-charts lk-two"},
      node(
        "div",
        {class: "lk-chartbox"},
        bars.element,
        models.length > 1
          ? ui.legend([
              ["lk-fill-a", "chosen model"],
              ["lk-rule", "the other models"],
            ])
          : "",
      ),
      trust.element,
    ),
  );

  return s => {
    const i = ui.index("sample"),
      k = ui.index("model"),
      best = answer(k, i),
      p = probs[(k * S + i) * C + best];
    const said_ = new Set();
    let n = 0;
    for (let j = 0; j < m; j++)
      if (votes[i * m + j] >= 0) {
        n++;
        said_.add(votes[i * m + j]);
      }
    const t = truth[i];
    said.say(
      `Sample ${samples[i]}: ${n} of ${m} functions vote, for ${said_.size} classes. ` +
        `${s.model} says “${classes[best]}” with ${percent(p, 1)}` +
        (t < 0 ? "." : t === best ? ", which is right." : `; the truth is “${classes[t]}”.`),
    );
    const byTruth = s.colour === "right or wrong";

    matrix.draw((g, W, H) => {
      const left = 60,
        top = 4,
        bottom = H - 40,
        w = (W - left - 8) / m,
        h = (bottom - top) / S;
      for (let r = 0; r < S; r++) {
        const want = byTruth ? truth[r] : answer(k, r);
        const row = svg("g", {"data-row": r, style: "cursor:pointer"}),
          pale = r === i ? "" : " lk-out";
        row.addEventListener("click", () => ui.select({sample: samples[r]}));
        row.append(
          svg("rect", {x: left, y: top + r * h, width: w * m, height: h, fill: "transparent"}),
        );
        if (h >= 11)
          row.append(
            svg(
              "text",
              {x: left - 6, y: top + (r + 0.5) * h + 4, "text-anchor": "end"},
              String(samples[r]),
            ),
          );
        for (let j = 0; j < m; j++) {
          const v = votes[r * m + j];
          if (v < 0) continue;
          const cls = want < 0 ? "lk-dot" : v === want ? "lk-fill-a" : "lk-fill-b";
          row.append(
            svg(
              "rect",
              {
                x: left + j * w + 0.5,
                y: top + r * h + 0.5,
                width: Math.max(1, w - 1),
                height: Math.max(1, h - 1),
                class: cls + pale,
              },
              svg("title", {}, `${functions[j]} votes ${classes[v]} for sample ${samples[r]}`),
            ),
          );
          if (want >= 0 && w >= 9 * Math.min(classes[v].length, 2) && h >= 11)
            row.append(
              svg(
                "text",
                {
                  x: left + (j + 0.5) * w,
                  y: top + (r + 0.5) * h + 4,
                  "text-anchor": "middle",
                  style: (pale ? "" : "fill:#000;") + "pointer-events:none",
                },
                classes[v].slice(0, 2),
              ),
            );
        }
        g.append(row);
      }
      g.append(
        svg("rect", {
          x: left - 1,
          y: top + i * h - 1,
          width: w * m + 2,
          height: h + 2,
          fill: "none",
          class: "lk-mark",
        }),
      );
      const named = functions.every((/** @type {string} */ f) => 7 * f.length < w);
      for (const j of some(m, Math.floor((W - left) / 40)))
        g.append(
          svg(
            "text",
            {x: left + (j + 0.5) * w, y: bottom + 15, "text-anchor": "middle"},
            named ? functions[j] : String(j),
          ),
        );
      g.append(
        svg(
          "text",
          {x: (left + W) / 2, y: H - 4, "text-anchor": "middle", class: "lk-dim"},
          "labeling function",
        ),
      );
      return (
        `sample ${samples[i]}: ` +
        functions
          .map((/** @type {string} */ f, /** @type {number} */ j) => [f, votes[i * m + j]])
          .filter((/** @type {any[]} */ o) => o[1] >= 0)
          .slice(0, 20)
          .map((/** @type {any[]} */ o) => `${o[0]} votes ${classes[o[1]]}`)
          .join(", ")
      );
    });

    if (picture && images) {
      const size = images.values.length / S;
      picture.show(
        images.values.slice(i * size, (i + 1) * size),
        images.shape.slice(1),
        `sample ${samples[i]}` + (t < 0 ? "" : `, true: ${classes[t]}`),
        `sample ${samples[i]}`,
      );
    }

    bars.draw((g, W, H) => {
      const f = frame(g, W, H, {
        x: [0, C],
        y: [0, 1],
        yticks: [0, 0.5, 1],
        yformat: v => percent(v),
        xticks: [],
        xlabel: t < 0 ? "class" : "class; ▲ the truth",
      });
      const width = f.sx(1) - f.sx(0),
        wanted =
          Math.max(...classes.map((/** @type {string} */ o) => Math.min(o.length, 9))) * 7 + 14;
      const named = new Set(some(C, Math.floor((f.right - f.left) / wanted)));
      for (let c = 0; c < C; c++) {
        const v = probs[(k * S + i) * C + c];
        g.append(
          svg(
            "rect",
            {
              x: f.sx(c) + width * 0.15,
              width: Math.max(1, width * 0.7),
              y: f.sy(v),
              height: f.bottom - f.sy(v),
              class: "lk-fill-a",
            },
            svg("title", {}, `${classes[c]}: ${v.toFixed(3)}`),
          ),
        );
        for (let q = 0; q < models.length; q++) {
          if (q === k) continue;
          const y = f.sy(probs[(q * S + i) * C + c]);
          g.append(
            svg(
              "line",
              {
                x1: f.sx(c) + width * 0.05,
                x2: f.sx(c) + width * 0.95,
                y1: y,
                y2: y,
                class: "lk-mark",
              },
              svg("title", {}, `${models[q]}, ${classes[c]}`),
            ),
          );
        }
        if (named.has(c) || c === t)
          g.append(
            svg(
              "text",
              {x: f.sx(c + 0.5), y: f.bottom + 15, "text-anchor": "middle"},
              (c === t ? "▲ " : "") + short(classes[c]),
            ),
          );
      }
      return Array.from(
        {length: Math.min(C, 20)},
        (_, c) => `${classes[c]} ${probs[(k * S + i) * C + c].toFixed(2)}`,
      ).join(", ");
    });

    trust.draw((g, W, H) => {
      const f = frame(g, W, H, {
        x: known ? [0, 1] : [0, m],
        y: [0, 1],
        yticks: [0, 0.5, 1],
        yformat: v => percent(v),
        xticks: known ? [0, 0.5, 1] : [],
        xformat: v => percent(v),
        xlabel: known
          ? "real accuracy; larger dots vote on more"
          : "labeling function; larger dots vote on more",
      });
      if (known)
        g.append(
          svg("line", {x1: f.sx(0), y1: f.sy(0), x2: f.sx(1), y2: f.sy(1), class: "lk-grid"}),
        );
      let shown = 0;
      for (let j = 0; j < m; j++) {
        const e = estimated[k * m + j],
          a = real[j],
          v = votes[i * m + j];
        if (e < 0 || (known && a < 0)) continue;
        shown++;
        const cls =
          v < 0 ? "lk-dot" : (byTruth && t >= 0 ? v === t : v === best) ? "lk-fill-a" : "lk-fill-b";
        g.append(
          svg(
            "circle",
            {
              cx: f.sx(known ? a : j + 0.5),
              cy: f.sy(e),
              r: 3 + 5 * Math.sqrt(coverage[j]),
              class: cls,
              style: `opacity:${v < 0 ? 0.3 : 0.9}`,
            },
            svg(
              "title",
              {},
              `${j}: ${functions[j]}. Estimated ${percent(e)}` +
                (known ? `, real ${percent(a)}` : "") +
                `, votes on ${percent(coverage[j])}`,
            ),
          ),
        );
      }
      return `${shown} functions; those that vote on this sample are coloured`;
    });
  };
}
