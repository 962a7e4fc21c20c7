// @ts-check
/**
 * Shared by every labelkit explorer. Python puts this file in front of a widget's own file, whose
 * one function `build(ui)` makes the page once and returns `draw(state)`, called whenever another
 * state is selected.
 *
 * A state is one value per axis, `{technique: "CutMix", lam: 0.65}`. It lives in the model, so all
 * views agree; on a static page also in the address (`#mix=technique:CutMix,lam:0.65`). Text from
 * data only ever becomes text.
 *
 * @typedef {Object<string, string|number>} State
 * @typedef {{shape: number[], dtype: string, data: DataView}} Packed
 * @typedef {{shape: number[], values: Uint8Array|Int32Array|Float32Array}} Grid
 * @typedef {{get: Function, set: Function, save_changes: Function, on: Function, off: Function,
 * send: Function}} Model
 */

/**
 * An HTML element; strings among the children become text nodes, never markup.
 * @param {string} tag
 * @param {Object<string, any>} [attrs]
 * @param {...(Node|string)} children
 * @returns {any}
 */
function node(tag, attrs = {}, ...children) {
  const e = document.createElement(tag);
  // JupyterLab's shortcuts (arrows, x, dd) must not see keys meant for a control: it looks at the
  // focused element itself.
  if (/^(input|select|button)$/.test(tag)) e.setAttribute("data-lm-suppress-shortcuts", "true");
  for (const [k, v] of Object.entries(attrs)) e.setAttribute(k, String(v));
  e.append(...children);
  return e;
}

/**
 * An SVG element, by the same rules.
 * @param {string} tag
 * @param {Object<string, any>} [attrs]
 * @param {...(Node|string)} children
 * @returns {any}
 */
function svg(tag, attrs = {}, ...children) {
  const e = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [k, v] of Object.entries(attrs)) e.setAttribute(k, String(v));
  e.append(...children);
  return e;
}

/** @param {number} x share in 0..1 @param {number} [digits] @returns {string} percent in words */
const percent = (x, digits = 0) => `${(100 * x).toFixed(digits)} %`;

/** @param {string|number} v @returns {string} a value as a reader expects it */
const plain = v => (typeof v === "number" ? String(Math.round(v * 1e6) / 1e6) : v);

/**
 * The numbers of one packed array (copied: a buffer may start at any byte).
 * @param {Packed} p
 * @returns {Grid}
 */
function unpack(p) {
  const type = {uint8: Uint8Array, int32: Int32Array, float32: Float32Array}[p.dtype];
  if (!type) throw new Error(`labelkit: unknown dtype ${p.dtype}`);
  const d = p.data;
  return {
    shape: p.shape,
    values: new type(d.buffer.slice(d.byteOffset, d.byteOffset + d.byteLength)),
  };
}

/**
 * Position of a value on its axis: the same text, or the nearest number.
 * @param {any[]} axis
 * @param {any} value
 */
function place(axis, value) {
  const exact = axis.indexOf(value);
  if (exact >= 0) return exact;
  const x = Number(value);
  if (typeof axis[0] !== "number" || value === "" || !Number.isFinite(x)) return -1;
  let best = 0;
  axis.forEach((v, i) => {
    if (Math.abs(v - x) < Math.abs(axis[best] - x)) best = i;
  });
  return best;
}

/** Only on a page that carries its widgets' saved state may the address be ours. */
const isStatic = () =>
  !!document.querySelector('script[type="application/vnd.jupyter.widget-state+json"]') &&
  !document.getElementById("jupyter-config-data");

/** The parts of the address after `#`, by key; what is not ours is kept as it is. */
const hashParts = () => location.hash.replace(/^#/, "").split("&").filter(Boolean);

/** @param {string} key @returns {State|null} what the address says about this widget */
function readHash(key) {
  const part = hashParts().find(p => p.startsWith(encodeURIComponent(key) + "="));
  if (!part) return null;
  /** @type {State} */
  const state = {};
  for (const item of part.slice(part.indexOf("=") + 1).split(",")) {
    const cut = item.indexOf(":");
    if (cut < 1) continue;
    try {
      state[decodeURIComponent(item.slice(0, cut))] = decodeURIComponent(item.slice(cut + 1));
    } catch {
      /* a broken link */
    }
  }
  return state;
}

/** @param {string} key @param {State} state */
function writeHash(key, state) {
  const name = encodeURIComponent(key) + "=";
  const mine =
    name +
    Object.entries(state)
      .map(([k, v]) => `${encodeURIComponent(k)}:${encodeURIComponent(v)}`)
      .join(",");
  const parts = hashParts();
  const at = parts.findIndex(p => p.startsWith(name));
  if (at < 0) parts.push(mine);
  else parts[at] = mine;
  try {
    history.replaceState(history.state, "", "#" + parts.join("&"));
  } catch {
    /* a page that may not */
  }
}

/**
 * Copy a text; where the page may not, leave it selected for the reader.
 * @param {string} text
 * @param {HTMLElement} where
 */
async function copyText(text, where) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    /* try the old way */
  }
  const box = node("input", {
    type: "text",
    readonly: "",
    "aria-label": "state to copy",
    class: "lk-copybox",
  });
  box.value = text;
  where.append(box);
  box.select();
  let done = false;
  try {
    done = document.execCommand("copy");
  } catch {
    done = false;
  }
  if (done) box.remove();
  else box.addEventListener("blur", () => box.remove(), {once: true});
  return done;
}

let lkCount = 0;

/**
 * What a widget's `build` gets: its data, its controls, its pictures.
 */
class UI {
  /** @param {Model} model @param {HTMLElement} root */
  constructor(model, root) {
    this.model = model;
    this.root = root;
    this.data = model.get("data") || {};
    this.axes = model.get("axes") || {};
    /** @type {((s: State) => void)[]} */
    this.listeners = [];
    /** @type {(() => void)[]} */
    this.cleanups = [];
    this.id = `lk${++lkCount}`;
  }

  /** @returns {State} */
  get state() {
    return this.model.get("state");
  }

  /**
   * Select: numbers snap to their axis, unknown names and values are left out.
   * @param {State} change
   */
  select(change) {
    /** @type {State} */
    const next = {...this.state};
    for (const [k, v] of Object.entries(change)) {
      const axis = Object.hasOwn(this.axes, k) ? this.axes[k] : null,
        i = axis ? place(axis, v) : -1;
      if (i >= 0) next[k] = axis[i];
    }
    this.model.set("state", next);
    try {
      this.model.save_changes();
    } catch {
      /* no kernel: the state lives in the page */
    }
    if (isStatic()) writeHash(this.model.get("key"), next);
  }

  /** Position of the selected value on its axis. @param {string} name */
  index(name) {
    return Math.max(0, place(this.axes[name], this.state[name]));
  }

  /** A packed array by name. @param {string} name @returns {Grid} */
  array(name) {
    return unpack(this.model.get("arrays")[name]);
  }

  /** @param {...(Node|string)} children */
  add(...children) {
    this.root.append(...children);
    return this;
  }

  /** Controls side by side. @param {...(Node|string)} children */
  row(...children) {
    const e = node("div", {class: "lk-row"}, ...children);
    this.root.append(e);
    return e;
  }

  /**
   * A native slider over an axis.
   * @param {string} name @param {string} label @param {(v: any) => string} [format]
   */
  slider(name, label, format = plain) {
    const axis = this.axes[name],
      id = `${this.id}-${name}`;
    const input = node("input", {
      type: "range",
      min: 0,
      max: axis.length - 1,
      step: 1,
      id,
      "data-axis": name,
    });
    const out = node("output", {for: id, class: "lk-value"});
    input.disabled = axis.length < 2;
    input.addEventListener("input", () => this.select({[name]: axis[+input.value]}));
    this.listeners.push(() => {
      const i = this.index(name),
        text = format(axis[i]);
      if (+input.value !== i) input.value = String(i);
      input.setAttribute("aria-valuetext", text);
      out.textContent = text;
    });
    return node(
      "div",
      {class: "lk-control lk-slider"},
      node("label", {for: id}, label),
      input,
      out,
    );
  }

  /**
   * A native list over an axis.
   * @param {string} name @param {string} label @param {(v: any, i: number) => string} [format]
   */
  choice(name, label, format = plain) {
    const axis = this.axes[name],
      id = `${this.id}-${name}`;
    const input = node("select", {id, "data-axis": name});
    axis.forEach((/** @type {any} */ v, /** @type {number} */ i) =>
      input.append(node("option", {value: i}, format(v, i))),
    );
    input.addEventListener("change", () => this.select({[name]: axis[+input.value]}));
    this.listeners.push(() => {
      input.value = String(this.index(name));
    });
    return node("div", {class: "lk-control"}, node("label", {for: id}, label), input);
  }

  /**
   * A small image with a caption under it: `show(bytes, [C, H, W], caption, description)`.
   * @param {string} name
   */
  picture(name) {
    const canvas = node("canvas", {role: "img", class: "lk-canvas"}),
      caption = node("figcaption");
    const element = node("figure", {class: "lk-figure", "data-picture": name}, canvas, caption);
    /**
     * @param {ArrayLike<number>} bytes
     * @param {number[]} shape
     * @param {string} text
     * @param {string} alt
     */
    const show = (bytes, shape, text, alt) => {
      const [c, h, w] = shape,
        size = h * w;
      if (canvas.width !== w || canvas.height !== h) {
        canvas.width = w;
        canvas.height = h;
      }
      const ctx = canvas.getContext("2d"),
        im = ctx.createImageData(w, h);
      for (let i = 0; i < size; i++) {
        for (let k = 0; k < 3; k++) im.data[4 * i + k] = bytes[(c === 1 ? 0 : k) * size + i];
        im.data[4 * i + 3] = 255;
      }
      ctx.putImageData(im, 0, 0);
      caption.textContent = text;
      canvas.setAttribute("aria-label", alt);
    };
    return {element, show};
  }

  /**
   * A drawing as wide as its place, drawn anew when that changes: `paint(g, width, height)` fills
   * it.
   * @param {string} label @param {number} height
   */
  chart(label, height) {
    const box = svg("svg", {role: "img", "aria-label": label, class: "lk-chart", height});
    const element = node(
      "div",
      {class: "lk-chartbox"},
      node("div", {class: "lk-charttitle", "aria-hidden": "true"}, label),
      box,
    );
    /** @type {((g: SVGElement, w: number, h: number) => string|void)|null} */
    let paint = null;
    const redraw = () => {
      const w = Math.floor(box.getBoundingClientRect().width);
      if (!paint || w < 40) return;
      box.setAttribute("viewBox", `0 0 ${w} ${height}`);
      const g = svg("g"),
        words = paint(g, w, height);
      box.replaceChildren(g);
      box.setAttribute("aria-label", words ? `${label}: ${words}` : label);
    };
    const watch = new ResizeObserver(redraw);
    watch.observe(box);
    this.cleanups.push(() => watch.disconnect());
    return {
      element,
      draw: (/** @type {(g: SVGElement, w: number, h: number) => string|void} */ f) => {
        paint = f;
        redraw();
      },
    };
  }

  /** A sentence that screen readers hear when it changes. */
  readout() {
    const element = node("p", {class: "lk-readout", role: "status", "aria-live": "polite"});
    return {
      element,
      say: (/** @type {string} */ text) => {
        if (element.textContent !== text) element.textContent = text;
      },
    };
  }

  /** Coloured squares with their names. @param {[string, string][]} items class and text of each */
  legend(items) {
    const e = node("div", {class: "lk-legend"});
    for (const [cls, text] of items)
      e.append(node("span", {class: "lk-key"}, node("span", {class: `lk-swatch ${cls}`}), text));
    return e;
  }
}

/**
 * Axes of a chart: the plot's frame, ticks below and at the left, and the two scales.
 * @param {SVGElement} g @param {number} w @param {number} h
 * @param {{x: [number, number], y: [number, number], xticks: number[], yticks: number[], xlabel?:
 * string,   xformat?: (v: number) => string, yformat?: (v: number) => string}} o
 */
function frame(g, w, h, o) {
  const left = 44,
    right = 12,
    top = 8,
    bottom = o.xlabel ? 36 : 22;
  const sx = (/** @type {number} */ v) =>
    left + ((v - o.x[0]) / (o.x[1] - o.x[0] || 1)) * (w - left - right);
  const sy = (/** @type {number} */ v) =>
    h - bottom - ((v - o.y[0]) / (o.y[1] - o.y[0] || 1)) * (h - top - bottom);
  for (const t of o.yticks) {
    g.append(
      svg("line", {x1: left, x2: w - right, y1: sy(t), y2: sy(t), class: "lk-grid"}),
      svg("text", {x: left - 6, y: sy(t) + 4, "text-anchor": "end"}, (o.yformat || plain)(t)),
    );
  }
  for (const t of o.xticks)
    g.append(
      svg("text", {x: sx(t), y: h - bottom + 15, "text-anchor": "middle"}, (o.xformat || plain)(t)),
    );
  if (o.xlabel)
    g.append(
      svg(
        "text",
        {x: (left + w - right) / 2, y: h - 4, "text-anchor": "middle", class: "lk-dim"},
        o.xlabel,
      ),
    );
  g.append(
    svg("line", {x1: left, x2: w - right, y1: h - bottom, y2: h - bottom, class: "lk-axis"}),
  );
  return {sx, sy, left, right: w - right, top, bottom: h - bottom};
}

/**
 * Round steps that reach a maximum.
 * @param {number} max
 * @param {number} [n]
 * @param {boolean} [whole]
 * @returns {number[]}
 */
function steps(max, n = 4, whole = false) {
  if (!(max > 0)) return [0];
  const raw = max / n,
    p = 10 ** Math.floor(Math.log10(raw)),
    m = raw / p;
  let step = (m <= 1 ? 1 : m <= 2 ? 2 : m <= 5 ? 5 : 10) * p;
  if (whole) step = Math.max(1, step);
  return Array.from({length: Math.floor(max / step + 1e-9) + 1}, (_, i) => i * step);
}

/**
 * At most `n` of the places 0..length-1, even spaces apart.
 * @param {number} length
 * @param {number} n
 * @returns {number[]}
 */
const some = (length, n) => {
  const step = Math.max(1, Math.ceil(length / Math.max(1, n)));
  return Array.from({length: Math.ceil(length / step)}, (_, i) => i * step);
};

/** @param {[number, number][]} points @returns {string} an SVG path */
const path = points =>
  points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)},${y.toFixed(1)}`).join("");

/**
 * Show a widget: title, what `build` makes, and the foot with "copy state" and, where a kernel
 * answers, "other samples".
 * @param {{model: Model, el: HTMLElement}} context
 * @param {(ui: UI) => (s: State) => void} build
 */
function explorer({model, el}, build) {
  const root = node("section", {class: "lk", "data-lm-suppress-shortcuts": "true"});
  el.append(root);
  /** @type {UI|null} */
  let ui = null;
  let live = false,
    queued = false;
  /** @type {HTMLElement|null} */
  let other = null;

  const refresh = () => {
    if (ui) for (const f of ui.listeners) f(ui.state);
  };

  const rebuild = () => {
    queued = false;
    const focus = /** @type {HTMLElement|null} */ (document.activeElement);
    const back = root.contains(focus)
      ? focus?.getAttribute("data-axis") || focus?.getAttribute("data-do")
      : null;
    ui?.cleanups.forEach(f => f());
    root.replaceChildren();
    const title = model.get("title");
    root.setAttribute("aria-label", title || "explorer");
    if (title) root.append(node("div", {class: "lk-title"}, title));
    ui = new UI(model, root);
    const draw = build(ui);
    ui.listeners.push(draw);
    root.append(foot());
    refresh();
    if (back)
      /** @type {HTMLElement|null} */ (
        root.querySelector(`[data-axis="${CSS.escape(back)}"],[data-do="${CSS.escape(back)}"]`)
      )?.focus();
  };

  const foot = () => {
    const note = node("span", {class: "lk-note", role: "status", "aria-live": "polite"});
    const copy = node(
      "button",
      {
        type: "button",
        class: "lk-button",
        "data-do": "copy",
        title: "The selected state as a dictionary: paste it as Explorer(…, state=…)",
      },
      "Copy state",
    );
    const e = node("div", {class: "lk-foot"}, copy);
    copy.addEventListener("click", async () => {
      const done = await copyText(JSON.stringify(model.get("state")), e);
      note.textContent = done ? "copied" : "press Ctrl+C to copy";
      setTimeout(() => {
        note.textContent = "";
      }, 3000);
    });
    other = null;
    if (model.get("can_refresh")) {
      other = node(
        "button",
        {type: "button", class: "lk-button", "data-do": "other"},
        "Other samples",
      );
      /** @type {any} */ (other).hidden = !live;
      /** @type {any} */ (other).addEventListener("click", () => model.send({kind: "other"}));
      e.append(/** @type {any} */ (other));
    }
    e.append(note);
    return e;
  };

  const onState = () => refresh();
  const onGrid = () => {
    if (!queued) {
      queued = true;
      queueMicrotask(rebuild);
    }
  };
  const onMessage = (/** @type {any} */ m) => {
    if (m?.kind !== "pong") return;
    live = true;
    if (other) other.hidden = false;
  };
  const onHash = () => {
    const s = readHash(model.get("key"));
    if (s && ui) ui.select(s);
  };

  rebuild();
  model.on("change:state", onState);
  for (const name of ["arrays", "axes", "data"]) model.on(`change:${name}`, onGrid);
  model.on("msg:custom", onMessage);
  try {
    model.send({kind: "ping"});
  } catch {
    /* no kernel, no answer */
  }
  if (isStatic()) {
    onHash();
    window.addEventListener("hashchange", onHash);
  }

  return () => {
    ui?.cleanups.forEach(f => f());
    model.off("change:state", onState);
    for (const name of ["arrays", "axes", "data"]) model.off(`change:${name}`, onGrid);
    model.off("msg:custom", onMessage);
    window.removeEventListener("hashchange", onHash);
  };
}
