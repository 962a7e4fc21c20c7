// @ts-check
/**
 * Teacher and student at any temperature. Arrays: teacher, student [N,C] logits of the shown
 * samples, agreement [2,C] (how often the student's first and second choice are the teacher's, of
 * all samples of the class, −1: there are none), images [N,K,H,W] (optional).
 * @param {UI} ui
 */
function build(ui) {
  const {classes, samples, by_label} = ui.data,
    C = classes.length,
    temperatures = ui.axes.temperature;
  const teacher = ui.array("teacher").values,
    student = ui.array("student").values,
    agreement = ui.array("agreement").values;
  const images = ui.model.get("arrays").images ? ui.array("images") : null;

  /**
   * softmax(logits/t) of sample i.
   * @param {ArrayLike<number>} z
   * @param {number} i
   * @param {number} t
   * @returns {number[]}
   */
  const softmax = (z, i, t) => {
    const row = Array.from({length: C}, (_, c) => z[i * C + c] / t),
      top = Math.max(...row),
      e = row.map(v => Math.exp(v - top));
    const sum = e.reduce((a, b) => a + b, 0);
    return e.map(v => v / sum);
  };
  /** Place of the largest, the first of equals. @param {number[]} p */
  const best = p => p.indexOf(Math.max(...p));
  /** @param {number} i @param {number} t */
  const at = (i, t) => {
    const p = softmax(teacher, i, t),
      q = softmax(student, i, t);
    let kl = 0,
      moved = 0;
    for (let c = 0; c < C; c++) {
      if (p[c] > 0) kl += p[c] * Math.log(p[c] / Math.max(q[c], 1e-300));
      moved += Math.abs(p[c] - q[c]);
    }
    const first = best(p);
    return {
      p,
      q,
      first,
      own: best(q),
      loss: t * t * kl,
      pull: p.map((v, c) => t * (v - q[c])),
      rest: moved > 1e-9 ? Math.max(0, 1 - (2 * Math.abs(p[first] - q[first])) / moved) : 0,
    };
  };
  const short = (/** @type {string} */ name) => (name.length > 9 ? name.slice(0, 8) + "…" : name);
  /**
   * Names under the classes, as many as there is room for.
   * @param {SVGElement} g
   * @param {any} f
   * @param {number} strong
   */
  const names = (g, f, strong) => {
    const wanted =
      Math.max(...classes.map((/** @type {string} */ n) => Math.min(n.length, 9))) * 7 + 8;
    const named = new Set(some(C, Math.floor((f.right - f.left) / wanted)));
    classes.forEach((/** @type {string} */ name, /** @type {number} */ c) => {
      if (named.has(c))
        g.append(
          svg(
            "text",
            {
              x: f.sx(c + 0.5),
              y: f.bottom + 15,
              "text-anchor": "middle",
              "font-weight": c === strong ? 700 : 400,
            },
            short(name),
          ),
        );
    });
  };
  /**
   * A bar of class c between two heights.
   * @param {any} f
   * @param {number} c
   * @param {number} from
   * @param {number} to
   * @param {number} a
   * @param {number} b
   * @param {string} cls
   * @param {string} words
   */
  const bar = (f, c, from, to, a, b, cls, words) => {
    const x = f.sx(c + a),
      y = Math.min(f.sy(from), f.sy(to));
    return svg(
      "rect",
      {
        x,
        width: Math.max(1, f.sx(c + b) - x),
        y,
        height: Math.abs(f.sy(from) - f.sy(to)),
        class: cls,
      },
      svg("title", {}, words),
    );
  };

  ui.row(
    ui.slider("temperature", "Temperature T"),
    ui.choice("sample", "Sample", (v, i) => `${v}: ${samples[i].words}`),
  );
  const said = ui.readout();
  ui.add(said.element);
  ui.row(
    ui.legend([
      ["lk-fill-a", "teacher"],
      ["lk-fill-b", "student"],
    ]),
  );
  const bars = ui.chart("Probabilities at this temperature", 190),
    pull = ui.chart("Pull of T²·KL on each logit of the student", 150);
  const right = node("div", {class: "lk-charts"}, bars.element, pull.element);
  right.style.flex = "1 1 18rem";
  right.style.minWidth = "0";
  const row = ui.row();
  row.style.alignItems = "flex-start";
  const picture = images ? ui.picture("sample") : null;
  if (picture) {
    picture.element.style.flex = "0 1 8rem";
    row.append(picture.element);
  }
  row.append(right);
  const agree = ui.chart(
    `Agreement of all samples, by ${by_label ? "label" : "the teacher's first choice"}`,
    170,
  );
  ui.add(
    node(
      "div",
      {class: "lk-charts"},
      node(
        "div",
        {class: "lk-chartbox"},
        agree.element,
        ui.legend([
          ["lk-fill-a", "first choice is the teacher's"],
          ["lk-fade", "pale: second choice is the teacher's second"],
        ]),
      ),
    ),
  );

  return s => {
    const i = ui.index("sample"),
      t = temperatures[ui.index("temperature")],
      now = at(i, t),
      sample = samples[i];
    const name = (/** @type {number} */ c) =>
      `“${classes[c]}” ${percent(c === now.first ? now.p[c] : now.q[c])}`;
    said.say(
      `Sample ${s.sample}, T = ${plain(t)}: ` +
        `the teacher says “${classes[now.first]}” (${percent(now.p[now.first])}), ` +
        `the student “${classes[now.own]}” (${percent(now.q[now.own])}). ` +
        `T²·KL is ${now.loss.toFixed(3)}; ` +
        `${percent(now.rest)} of the pull is among the other classes.`,
    );
    if (picture && images) {
      const shape = images.shape.slice(1),
        size = shape[0] * shape[1] * shape[2];
      const words = sample.label === null ? "no label" : `label “${classes[sample.label]}”`;
      picture.show(
        images.values.subarray(i * size, i * size + size),
        shape,
        words,
        `sample ${s.sample}, ${words}, teacher: ${name(now.first)}`,
      );
    }
    const strong = sample.label === null ? now.first : sample.label;

    bars.draw((g, W, H) => {
      const f = frame(g, W, H, {
        x: [0, C],
        y: [0, 1],
        xticks: [],
        yticks: [0, 0.5, 1],
        yformat: v => percent(v),
      });
      for (let c = 0; c < C; c++)
        g.append(
          bar(
            f,
            c,
            0,
            now.p[c],
            0.12,
            0.5,
            "lk-fill-a",
            `teacher, ${classes[c]}: ${now.p[c].toFixed(3)}`,
          ),
          bar(
            f,
            c,
            0,
            now.q[c],
            0.5,
            0.88,
            "lk-fill-b",
            `student, ${classes[c]}: ${now.q[c].toFixed(3)}`,
          ),
        );
      names(g, f, strong);
      return classes
        .slice(0, 20)
        .map(
          (/** @type {string} */ n, /** @type {number} */ c) =>
            `${n} ${percent(now.p[c])} and ${percent(now.q[c])}`,
        )
        .join(", ");
    });

    pull.draw((g, W, H) => {
      // one scale for all temperatures, so that the slider shows how the pull grows and spreads
      const top = Math.max(
        1e-3,
        ...temperatures.map((/** @type {number} */ u) => Math.max(...at(i, u).pull.map(Math.abs))),
      );
      const step = steps(top, 2),
        last = step[step.length - 1];
      const f = frame(g, W, H, {
        x: [0, C],
        y: [-top, top],
        xticks: [],
        yticks: last ? [-last, 0, last] : [0],
      });
      for (let c = 0; c < C; c++)
        g.append(
          bar(
            f,
            c,
            0,
            now.pull[c],
            0.25,
            0.75,
            now.pull[c] > 0 ? "lk-fill-a" : "lk-fill-b",
            `${classes[c]}: pulled ${now.pull[c] > 0 ? "up" : "down"} ` +
              `by ${Math.abs(now.pull[c]).toFixed(3)}`,
          ),
        );
      g.append(svg("line", {x1: f.left, x2: f.right, y1: f.sy(0), y2: f.sy(0), class: "lk-axis"}));
      names(g, f, strong);
      return "up where the teacher gives more, down where the student does";
    });

    agree.draw((g, W, H) => {
      const f = frame(g, W, H, {
        x: [0, C],
        y: [0, 1],
        xticks: [],
        yticks: [0, 0.5, 1],
        yformat: v => percent(v),
      });
      const words = [];
      for (let c = 0; c < C; c++) {
        const first = agreement[c],
          second = agreement[C + c];
        if (first < 0) continue;
        words.push(`${classes[c]} ${percent(first)}`);
        g.append(
          bar(
            f,
            c,
            0,
            first,
            0.12,
            0.5,
            "lk-fill-a",
            `${classes[c]}: first choices agree in ${percent(first)}`,
          ),
        );
        const pale = svg(
          "g",
          {class: "lk-out"},
          bar(
            f,
            c,
            0,
            second,
            0.5,
            0.88,
            "lk-dot",
            `${classes[c]}: second choices agree in ${percent(second)}`,
          ),
        );
        g.append(pale);
      }
      names(g, f, strong);
      return words.slice(0, 20).join(", ");
    });
  };
}
