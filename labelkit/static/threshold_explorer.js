// @ts-check
/**
 * A run's pseudo-labels at any threshold. Arrays: correct, wrong [E,K] counts by epoch and
 * confidence bin (where the true labels are not known all counts are in `wrong` and data.truth is
 * false), trained [E,2] what the run accepted and how much of it was right (optional),
 * class_threshold [E,C] (optional).
 * @param {UI} ui
 */
function build(ui) {
  const {edges, classes, truth} = ui.data,
    epochs = ui.axes.epoch;
  const K = edges.length - 1,
    E = epochs.length,
    C = classes.length;
  const packed = ui.model.get("arrays");
  const correct = ui.array("correct").values,
    wrong = ui.array("wrong").values;
  const trained = packed.trained ? ui.array("trained").values : null;
  const perClass = packed.class_threshold ? ui.array("class_threshold").values : null;

  /** Counts of epoch e from bin t on. @param {number} e @param {number} t */
  const above = (e, t) => {
    let right = 0,
      bad = 0,
      all = 0;
    for (let k = 0; k < K; k++) {
      const r = correct[e * K + k],
        b = wrong[e * K + k];
      all += r + b;
      if (k >= t) {
        right += r;
        bad += b;
      }
    }
    return {right, bad, all, accepted: right + bad};
  };

  ui.row(ui.slider("threshold", "Threshold"), ui.slider("epoch", "Epoch"));
  const said = ui.readout();
  ui.add(said.element);
  ui.row(
    truth
      ? ui.legend([
          ["lk-fill-a", "predicted label correct"],
          ["lk-fill-b", "wrong"],
          ["lk-fade", "pale: below the threshold, rejected"],
        ])
      : ui.legend([
          ["lk-fill-a", "samples"],
          ["lk-fade", "pale: below the threshold, rejected"],
        ]),
    ui.choice("view", "Bars"),
  );
  const bars = ui.chart("Samples by confidence, this epoch", 200);
  const curves = ui.chart(
    truth
      ? "Over the epochs, at this threshold"
      : "Share accepted over the epochs, at this threshold",
    190,
  );
  ui.add(node("div", {class: "lk-charts"}, bars.element));
  /** @type {[string, string][]} */
  const keys = [["lk-rule lk-dim", "mask rate: share accepted"]];
  if (truth) keys.push(["lk-rule lk-rule-a", "accuracy among accepted"]);
  if (trained) keys.push(["lk-dotted", "dotted: as it was in training"]);
  const left = node("div", {class: "lk-chartbox"}, curves.element, ui.legend(keys)),
    charts = node("div", {class: "lk-charts"}, left);
  const classChart = perClass ? ui.chart("Threshold of each class, this epoch", 190) : null;
  if (classChart) {
    charts.classList.add("lk-two");
    charts.append(classChart.element);
  }
  ui.add(charts);

  return s => {
    const e = ui.index("epoch"),
      t = ui.index("threshold"),
      now = above(e, t),
      cut = ui.axes.threshold[t];
    let words = `Epoch ${epochs[e]}, threshold ${plain(cut)}: `;
    if (!now.accepted) words += `none of ${now.all} accepted.`;
    else
      words +=
        `${now.accepted} of ${now.all} accepted (${percent(now.accepted / now.all)})` +
        (truth ? `, ${percent(now.bad / now.accepted, 1)} of them wrong.` : ".");
    said.say(words);

    bars.draw((g, W, H) => {
      const shares = s.view === "share in bin";
      let top = 1;
      if (!shares) {
        top = 0;
        for (let k = 0; k < K; k++) top = Math.max(top, correct[e * K + k] + wrong[e * K + k]);
      }
      const f = frame(g, W, H, {
        x: [edges[0], edges[K]],
        y: [0, top || 1],
        xlabel: "confidence: the largest predicted probability",
        xticks: steps(edges[K], 5).filter(v => v >= edges[0]),
        yticks: shares ? [0, 0.5, 1] : steps(top, 4, true),
        yformat: shares ? v => percent(v) : plain,
      });
      for (let k = 0; k < K; k++) {
        const r = correct[e * K + k],
          b = wrong[e * K + k],
          sum = r + b;
        if (!sum) continue;
        const x = f.sx(edges[k]),
          span = f.sx(edges[k + 1]) - x,
          width = span > 4 ? span - 1 : span,
          by = shares ? sum : 1;
        const bin = svg(
          "g",
          {class: k < t ? "lk-out" : ""},
          svg(
            "title",
            {},
            `confidence ${plain(edges[k])} to ${plain(edges[k + 1])}: ` +
              (truth ? `${r} correct, ${b} wrong` : `${sum}`),
          ),
        );
        const low = truth ? r : sum;
        bin.append(
          svg("rect", {
            x,
            width,
            y: f.sy(low / by),
            height: f.bottom - f.sy(low / by),
            class: "lk-fill-a",
          }),
        );
        if (truth && b)
          bin.append(
            svg("rect", {
              x,
              width,
              y: f.sy(sum / by),
              height: f.sy(low / by) - f.sy(sum / by),
              class: "lk-fill-b",
            }),
          );
        g.append(bin);
      }
      const x = f.sx(edges[t]),
        end = x > W * 0.6;
      g.append(
        svg("line", {x1: x, x2: x, y1: f.top - 4, y2: f.bottom, class: "lk-mark"}),
        svg(
          "text",
          {x: x + (end ? -6 : 6), y: f.top + 8, "text-anchor": end ? "end" : "start"},
          `threshold ${plain(cut)}`,
        ),
      );
      return words;
    });

    curves.draw((g, W, H) => {
      const x = /** @type {[number, number]} */ ([
        epochs[0],
        E > 1 ? epochs[E - 1] : epochs[0] + 1,
      ]);
      const f = frame(g, W, H, {
        x,
        y: [0, 1],
        yticks: [0, 0.5, 1],
        yformat: v => percent(v),
        xlabel: "epoch",
        xticks: some(E, Math.floor(W / 55)).map(i => epochs[i]),
      });
      /**
       * A line with gaps where a value is missing.
       * @param {(i: number) => number} value
       * @param {string} cls
       */
      const line = (value, cls) => {
        let d = "",
          pen = "M";
        epochs.forEach((/** @type {number} */ v, /** @type {number} */ i) => {
          const y = value(i);
          if (!Number.isFinite(y)) {
            pen = "M";
            return;
          }
          d += `${pen}${f.sx(v).toFixed(1)},${f.sy(y).toFixed(1)}` + (pen === "M" ? "h.01" : "");
          pen = "L";
        });
        if (d) g.append(svg("path", {d, class: cls}));
      };
      const at = epochs.map((/** @type {any} */ _, /** @type {number} */ i) => above(i, t));
      if (trained) line(i => trained[2 * i] / at[i].all, "lk-line-n lk-dash");
      if (trained && truth) line(i => trained[2 * i + 1] / trained[2 * i], "lk-line-a lk-dash");
      line(i => at[i].accepted / at[i].all, "lk-line-n");
      if (truth) line(i => at[i].right / at[i].accepted, "lk-line-a");
      g.append(
        svg("line", {
          x1: f.sx(epochs[e]),
          x2: f.sx(epochs[e]),
          y1: f.top,
          y2: f.bottom,
          class: "lk-axis",
        }),
      );
      if (truth && now.accepted)
        g.append(
          svg("circle", {
            cx: f.sx(epochs[e]),
            cy: f.sy(now.right / now.accepted),
            r: 4.5,
            class: "lk-fill-a",
          }),
        );
      g.append(
        svg("circle", {
          cx: f.sx(epochs[e]),
          cy: f.sy(now.accepted / now.all),
          r: 4.5,
          class: "lk-dot",
        }),
      );
      const first = at[0],
        last = at[E - 1];
      const rate = (/** @type {{accepted: number, all: number}} */ o) =>
        percent(o.accepted / o.all);
      return `mask rate from ${rate(first)} to ${rate(last)}`;
    });

    if (classChart && perClass)
      classChart.draw((g, W, H) => {
        const f = frame(g, W, H, {
          x: [0, C],
          y: [0, 1],
          yticks: [0, 0.5, 1],
          xticks: [],
          xlabel: "class",
        });
        const width = f.sx(1) - f.sx(0),
          wanted =
            Math.max(...classes.map((/** @type {string} */ n) => Math.min(n.length, 9))) * 7 + 8;
        const named = new Set(some(C, Math.floor((f.right - f.left) / wanted)));
        classes.forEach((/** @type {string} */ name, /** @type {number} */ i) => {
          const v = perClass[e * C + i];
          g.append(
            svg(
              "rect",
              {
                x: f.sx(i) + Math.min(2, width * 0.15),
                width: Math.max(1, width * 0.7),
                y: f.sy(v),
                height: f.bottom - f.sy(v),
                class: "lk-fill-a",
              },
              svg("title", {}, `${name}: ${v.toFixed(3)}`),
            ),
          );
          if (named.has(i))
            g.append(
              svg(
                "text",
                {x: f.sx(i + 0.45), y: f.bottom + 15, "text-anchor": "middle"},
                name.length > 9 ? name.slice(0, 8) + "…" : name,
              ),
            );
        });
        return classes
          .slice(0, 20)
          .map(
            (/** @type {string} */ name, /** @type {number} */ i) =>
              `${name} ${perClass[e * C + i].toFixed(2)}`,
          )
          .join(", ");
      });
  };
}
