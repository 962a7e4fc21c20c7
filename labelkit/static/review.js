// @ts-check
/**
 * Flagged samples to decide about. data: classes, rows (columns by name, a list each), per_page,
 * shape, author. Arrays: images [n,C,H,W] of the first n rows (optional; others are asked for).
 * Trait `decided`: what the log says, by row: a class, -1 for "no label", -3 for undecided.
 * Nothing is shown as decided before that trait says so.
 * @param {UI} ui
 */
function build(ui) {
  const {classes, rows, shape, author} = ui.data,
    model = ui.model,
    N = rows.id.length,
    perPage = ui.data.per_page;
  const levels = ["none", "low", "medium", "high"],
    NONE = -1,
    OPEN = -3;
  const known = rows.quality.some((/** @type {number} */ q) => q >= 0);
  const name = (/** @type {number} */ i) => (i < 0 ? "no label" : classes[i]);
  const number = (/** @type {number} */ v) => (v < 0 ? "–" : v.toFixed(2));
  const called = (/** @type {number} */ r) => `sample ${rows.key ? rows.key[r] : rows.id[r]}`;
  /** @returns {number[]} */
  const decided = () => model.get("decided");
  /** @type {Map<number, Uint8Array>} */
  const pictures = new Map();
  const size = shape ? shape[0] * shape[1] * shape[2] : 0;
  if (model.get("arrays").images) {
    const {values, shape: s} = ui.array("images");
    for (let r = 0; r < s[0]; r++)
      pictures.set(r, /** @type {Uint8Array} */ (values.subarray(r * size, (r + 1) * size)));
  }

  let live = false,
    current = 0,
    page = 0,
    asked = 0,
    lastSaid = "";
  const tag = Math.random().toString(36).slice(2);
  /** @type {number[]} rows that pass the filters, in order */
  let view = [];
  /** @type {Set<number>} */
  const marked = new Set();
  /** @type {Map<string, {rows: number[], timer: any}>} requests that the log has not confirmed */
  const waiting = new Map();
  const saving = (/** @type {number} */ r) => [...waiting.values()].some(w => w.rows.includes(r));

  // ---- controls
  const filters = ui.row(
    ui.choice("severity", "Severity"),
    ui.choice("given", "Given", v => (v === -2 ? "any" : name(v))),
    ui.choice("suggested", "Suggested", v => (v === -2 ? "any" : name(v))),
    ui.choice("show", "Show"),
    ui.choice("order", "Order"),
  );
  filters.classList.add("lk-filters");
  filters.setAttribute("role", "group");
  filters.setAttribute("aria-label", "filters");
  const readonly = node(
    "p",
    {class: "lk-readonly", role: "note"},
    "Read only: deciding needs the notebook and its kernel. Everything else here works.",
  );
  const said = ui.readout();
  /**
   * @param {string} text
   * @param {string} key
   * @param {string} does
   * @param {() => void} act
   * @param {string} [cls]
   */
  const button = (text, key, does, act, cls = "") => {
    const b = node(
      "button",
      {
        type: "button",
        class: `lk-button ${cls}`,
        "data-do": does,
        "aria-keyshortcuts": key === "U" ? "Shift+U" : key,
      },
      text,
    );
    if (key) b.append(node("kbd", {"aria-hidden": "true"}, key === "U" ? "⇧u" : key));
    b.addEventListener("click", act);
    return b;
  };
  const actions = [
    button("Accept suggestion", "a", "accept", () => decide("accept"), "lk-main"),
    button("Keep given", "r", "reject", () => decide("reject")),
    button("Other class", "c", "choose", () => openChooser()),
    button("Undo", "u", "undo", () => send({kind: "undo"}, [])),
    button("Redo", "U", "redo", () => send({kind: "redo"}, [])),
  ];
  const back = button("‹", "PageUp", "back", () => turn(-1)),
    forward = button("›", "PageDown", "forward", () => turn(1));
  for (const [b, label] of /** @type {[any, string][]} */ ([
    [back, "previous page"],
    [forward, "next page"],
  ])) {
    b.querySelector("kbd").remove();
    b.setAttribute("aria-label", label);
  }
  const where = node("span");
  ui.add(
    readonly,
    said.element,
    node(
      "div",
      {class: "lk-bar-actions", role: "toolbar", "aria-label": "decide"},
      ...actions,
      node("span", {class: "lk-pager"}, back, where, forward),
    ),
  );

  // ---- a class by name
  const chooser = node("div", {
    class: "lk-chooser",
    role: "dialog",
    "aria-label": "choose a class",
  });
  const search = node("input", {
    type: "text",
    class: "lk-input",
    role: "combobox",
    "aria-expanded": "true",
    "aria-autocomplete": "list",
    "aria-controls": `${ui.id}-classes`,
    "aria-label": "class: type to search, arrows and Enter to choose, Escape to leave",
    placeholder: "search a class",
    autocomplete: "off",
  });
  const list = node("ul", {role: "listbox", id: `${ui.id}-classes`, "aria-label": "classes"});
  chooser.append(search, list);
  chooser.hidden = true;
  ui.add(chooser);
  let pick = 0;
  /** @type {number[]} */
  let matches = [];
  const shortcut = (/** @type {number} */ i) =>
    classes.every((/** @type {string} */ c) => !/^\d$/.test(c))
      ? i < 9
        ? String(i + 1)
        : ""
      : /^\d$/.test(classes[i])
        ? classes[i]
        : "";
  function fillChooser() {
    const q = search.value.trim().toLowerCase();
    matches = classes
      .map((/** @type {string} */ c, /** @type {number} */ i) => i)
      .filter((/** @type {number} */ i) => classes[i].toLowerCase().includes(q));
    if (!q || "no label".includes(q)) matches.push(NONE);
    matches.sort(
      (a, b) => Number(classes[b]?.toLowerCase() === q) - Number(classes[a]?.toLowerCase() === q),
    );
    matches = matches.slice(0, 200);
    pick = Math.min(pick, Math.max(0, matches.length - 1));
    list.replaceChildren(
      ...matches.map((i, k) => {
        const li = node(
          "li",
          {role: "option", id: `${ui.id}-class-${k}`, "aria-selected": String(k === pick)},
          node("bdi", {}, i < 0 ? "no label: leave it out" : classes[i]),
        );
        const key = i < 0 ? "" : shortcut(i);
        if (key && key !== classes[i]) li.append(node("kbd", {"aria-hidden": "true"}, key));
        li.addEventListener("click", () => choose(i));
        return li;
      }),
    );
    if (matches.length) search.setAttribute("aria-activedescendant", `${ui.id}-class-${pick}`);
    list.children[pick]?.scrollIntoView({block: "nearest"});
  }
  function openChooser() {
    if (!live || !view.length) return;
    chooser.hidden = false;
    search.value = "";
    pick = 0;
    fillChooser();
    search.focus();
  }
  function closeChooser() {
    if (chooser.hidden) return;
    chooser.hidden = true;
    focusCurrent();
  }
  /** @param {number} i */
  function choose(i) {
    chooser.hidden = true;
    focusCurrent();
    decide("choose", i);
  }
  search.addEventListener("input", () => {
    pick = 0;
    fillChooser();
  });
  search.addEventListener("keydown", (/** @type {KeyboardEvent} */ e) => {
    const step = {ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1}[e.key];
    if (e.key === "Escape") closeChooser();
    else if (e.key === "Enter") {
      if (matches.length) choose(matches[pick]);
    } else if (step && !(search.value && /Left|Right/.test(e.key))) {
      pick = (pick + step + matches.length) % Math.max(1, matches.length);
      fillChooser();
    } else {
      e.stopPropagation();
      return;
    }
    e.preventDefault();
    e.stopPropagation();
  });

  // ---- grid, detail, scatter
  const cards = node("div", {
    class: "lk-cards",
    role: "listbox",
    "aria-multiselectable": "true",
    "aria-label": "flagged samples",
  });
  const big = shape ? node("canvas", {role: "img"}) : node("span");
  const facts = node("div", {class: "lk-facts"}),
    why = node("p", {class: "lk-why"});
  const detail = node(
    "div",
    {class: "lk-detail", role: "region", "aria-label": "the selected sample"},
    big,
    facts,
    why,
  );
  const reason = node("input", {
    type: "text",
    class: "lk-input",
    placeholder: "optional",
    maxlength: "500",
    autocomplete: "off",
  });
  const field = node("label", {class: "lk-field"}, `Your reason, ${author}`, reason);
  const scatter = known
    ? ui.chart("Confidence of the suggested over that of the given label", 235)
    : null;
  const grid = node(
    "div",
    {class: "lk-review"},
    cards,
    node("div", {class: "lk-side"}, detail, field),
  );
  if (scatter)
    grid.append(
      node(
        "div",
        {class: "lk-scatter"},
        scatter.element,
        ui.legend([
          ["lk-fill-b", "to decide"],
          ["lk-fill-a", "decided"],
        ]),
      ),
    );
  ui.add(grid);
  const hint = node("p", {class: "lk-hint"});
  const digits = classes.some((/** @type {string} */ c) => /^\d$/.test(c))
    ? "0–9"
    : `1–${Math.min(9, classes.length)}`;
  for (const [k, text] of [
    ["←↑↓→", "move"],
    ["a", "accept"],
    ["r", "keep given"],
    [digits, "that class"],
    ["c", "search a class"],
    ["space", "mark several"],
    ["u", "undo"],
    ["⇧u", "redo"],
  ])
    hint.append(node("span", {}, node("kbd", {}, k), text));
  ui.add(hint);

  /** @param {any} canvas @param {number} r */
  function paint(canvas, r) {
    if (!shape) return;
    const [c, h, w] = shape,
      bytes = pictures.get(r),
      ctx = canvas.getContext("2d");
    if (canvas.width !== w || canvas.height !== h) {
      canvas.width = w;
      canvas.height = h;
    }
    ctx.clearRect(0, 0, w, h);
    if (!bytes) return;
    const im = ctx.createImageData(w, h);
    for (let i = 0; i < h * w; i++) {
      for (let k = 0; k < 3; k++) im.data[4 * i + k] = bytes[(c === 1 ? 0 : k) * h * w + i];
      im.data[4 * i + 3] = 255;
    }
    ctx.putImageData(im, 0, 0);
  }
  /** @param {number} r what the log says about row r, in words */
  function outcome(r) {
    const d = decided()[r];
    if (saving(r)) return "saving…";
    if (d === OPEN) return "";
    if (d === NONE) return "left out";
    return d === rows.given[r]
      ? `kept ${name(d)}`
      : d === rows.suggested[r]
        ? `accepted ${name(d)}`
        : `changed to ${name(d)}`;
  }
  const inWords = (/** @type {number} */ r) =>
    `${called(r)}, given ${name(rows.given[r])}, suggested ${name(rows.suggested[r])}, ` +
    `severity ${levels[rows.severity[r]]}, ${outcome(r) || "to decide"}`;
  const blocks = (/** @type {number} */ s) => {
    const e = node("span", {class: "lk-severity", "aria-hidden": "true"});
    for (let i = 1; i < 4; i++) e.append(node("i", i <= s ? {class: "lk-on"} : {}));
    return e;
  };
  const shownRows = () => view.slice(page * perPage, (page + 1) * perPage);
  const cardOf = (/** @type {number} */ r) =>
    /** @type {any} */ (cards.querySelector(`[data-row="${r}"]`));

  /** @param {number} r */
  function card(r) {
    const e = node("div", {
      class: "lk-card",
      role: "option",
      "data-row": r,
      "data-lm-suppress-shortcuts": "true",
      title: rows.reason[r],
    });
    if (shape) {
      const c = node("canvas", {"aria-hidden": "true"});
      e.append(c);
      paint(c, r);
    }
    // names of any script, each in its own direction and on its own line
    e.append(
      node("div", {class: "lk-given"}, node("bdi", {}, name(rows.given[r]))),
      node("div", {class: "lk-labels"}, "→", node("bdi", {}, name(rows.suggested[r]))),
      node(
        "div",
        {class: "lk-numbers"},
        `${number(rows.quality[r])} → ${number(rows.confidence[r])}`,
      ),
      node("div", {}, blocks(rows.severity[r]), levels[rows.severity[r]]),
      node("div", {class: "lk-done"}),
    );
    e.addEventListener("click", (/** @type {MouseEvent} */ m) => {
      if (m.ctrlKey || m.metaKey || m.shiftKey) mark(r, m.shiftKey);
      go(r, true);
    });
    e.addEventListener("pointerenter", () => near(r));
    e.addEventListener("pointerleave", () => near(-1));
    return e;
  }
  function refreshCards() {
    const now = shownRows();
    const same =
      cards.children.length === now.length &&
      now.every((r, i) => cards.children[i].getAttribute("data-row") === String(r));
    const had = cards.contains(document.activeElement);
    if (!same || !now.length)
      cards.replaceChildren(
        ...(now.length
          ? now.map(card)
          : [node("div", {class: "lk-empty"}, "Nothing to show with these filters.")]),
      );
    for (const r of now) {
      const e = cardOf(r),
        state = saving(r) ? "saving" : decided()[r] === OPEN ? "open" : "done";
      e.setAttribute("data-state", state);
      e.setAttribute("aria-busy", String(state === "saving"));
      e.setAttribute("aria-selected", String(marked.has(r)));
      e.setAttribute("aria-label", inWords(r));
      e.setAttribute("tabindex", r === current ? "0" : "-1");
      if (r === current) e.setAttribute("data-current", "");
      else e.removeAttribute("data-current");
      e.querySelector(".lk-done").textContent = outcome(r);
    }
    if (had && !cards.contains(document.activeElement)) focusCurrent();
    const missing = now.filter(r => shape && !pictures.has(r));
    if (missing.length && live) model.send({kind: "images", rows: missing});
  }
  function refreshDetail() {
    const r = current,
      empty = !view.length;
    detail.style.visibility = empty ? "hidden" : "visible";
    if (empty) return;
    paint(big, r);
    if (shape) big.setAttribute("aria-label", called(r));
    /** @param {string} what @param {number} label @param {number} share @param {string} cls */
    const fact = (what, label, share, cls) => {
      const bar = node("span", {class: cls});
      bar.style.width = `${100 * Math.max(0, share)}%`;
      return node(
        "div",
        {},
        node("div", {class: "lk-what"}, what),
        node(
          "div",
          {class: "lk-fact"},
          node("bdi", {}, name(label)),
          node("span", {}, number(share)),
        ),
        node("div", {class: "lk-meter", "aria-hidden": "true"}, bar),
      );
    };
    facts.replaceChildren(
      fact("given", rows.given[r], rows.quality[r], "lk-bar-b"),
      fact("suggested", rows.suggested[r], rows.confidence[r], "lk-bar-a"),
      node(
        "div",
        {},
        node("span", {class: "lk-what"}, "severity "),
        blocks(rows.severity[r]),
        levels[rows.severity[r]],
      ),
      node("div", {}, node("span", {class: "lk-what"}, `${called(r)} `), outcome(r) || "to decide"),
    );
    why.textContent = rows.reason[r];
  }
  /** @type {{sx: Function, sy: Function}|null} */
  let scale = null;
  const rings = [
    svg("circle", {r: 6.5, class: "lk-ring"}),
    svg("circle", {r: 7, class: "lk-ring lk-ring-near"}),
  ];
  let nearRow = -1;
  const place2 = (/** @type {number} */ r) =>
    scale && r >= 0 && rows.quality[r] >= 0
      ? [scale.sx(rows.quality[r]), scale.sy(rows.confidence[r])]
      : null;
  function refreshRings() {
    [view.length ? current : -1, nearRow].forEach((r, k) => {
      const at = place2(r);
      rings[k].style.display = at ? "" : "none";
      if (at) {
        rings[k].setAttribute("cx", at[0]);
        rings[k].setAttribute("cy", at[1]);
      }
    });
  }
  function refreshScatter() {
    scatter?.draw((g, W, H) => {
      scale = frame(g, W, H, {
        x: [0, 1],
        y: [0, 1],
        xticks: [0, 0.5, 1],
        yticks: [0, 0.5, 1],
        xlabel: "given label",
      });
      const inside = new Set(view),
        d = decided();
      g.append(
        svg("line", {
          x1: scale.sx(0),
          y1: scale.sy(0),
          x2: scale.sx(1),
          y2: scale.sy(1),
          class: "lk-grid",
        }),
      );
      const draw1 = (/** @type {number} */ r) => {
        const at = place2(r);
        if (at)
          g.append(
            svg("circle", {
              cx: at[0].toFixed(1),
              cy: at[1].toFixed(1),
              r: 3.5,
              "data-point": r,
              class:
                `lk-point ${d[r] === OPEN ? "lk-fill-b" : "lk-fill-a"}` +
                (inside.has(r) ? "" : " lk-out"),
            }),
          );
      };
      for (let r = 0; r < N; r++) if (!inside.has(r)) draw1(r);
      for (const r of view) draw1(r);
      g.append(...rings);
      refreshRings();
      return `${view.length} of ${N} samples, ${d.filter(v => v !== OPEN).length} decided`;
    });
  }
  const box = scatter?.element.querySelector("svg");
  /** The shown sample nearest to the pointer. @param {PointerEvent|MouseEvent} e */
  const under = e => {
    const b = box.getBoundingClientRect();
    let best = -1,
      far = 14 ** 2;
    for (const r of view) {
      const at = place2(r);
      if (!at) continue;
      const d2 = (at[0] - e.clientX + b.left) ** 2 + (at[1] - e.clientY + b.top) ** 2;
      if (d2 < far) {
        far = d2;
        best = r;
      }
    }
    return best;
  };
  box?.addEventListener("pointermove", (/** @type {PointerEvent} */ e) => near(under(e)));
  box?.addEventListener("pointerleave", () => near(-1));
  box?.addEventListener("click", (/** @type {MouseEvent} */ e) => {
    const r = under(e);
    if (r >= 0) go(r, true);
  });
  /** @param {number} r */
  function near(r) {
    if (r === nearRow) return;
    cards.querySelector("[data-near]")?.removeAttribute("data-near");
    nearRow = r;
    cardOf(r)?.setAttribute("data-near", "");
    refreshRings();
  }

  // ---- moving
  function focusCurrent() {
    cardOf(current)?.focus({preventScroll: false});
  }
  /** @param {number} r @param {boolean} [focus] */
  function go(r, focus) {
    const at = view.indexOf(r);
    if (at < 0) return;
    current = r;
    page = Math.floor(at / perPage);
    refreshAll(false);
    if (focus) focusCurrent();
  }
  /** @param {number} by */
  function move(by) {
    const at = view.indexOf(current),
      to = Math.min(view.length - 1, Math.max(0, at + by));
    lastSaid = "";
    if (view.length) go(view[to], true);
  }
  /** @param {number} by */
  function turn(by) {
    const last = Math.max(0, Math.ceil(view.length / perPage) - 1),
      to = Math.min(last, Math.max(0, page + by));
    if (to !== page) go(view[to * perPage], cards.contains(document.activeElement));
  }
  /** @param {number} r @param {boolean} [span] all from the current one to r */
  function mark(r, span) {
    if (span) {
      const [a, b] = [view.indexOf(current), view.indexOf(r)].sort((x, y) => x - y);
      view.slice(a, b + 1).forEach(v => marked.add(v));
    } else if (!marked.delete(r)) marked.add(r);
    lastSaid = "";
    refreshAll(false);
  }
  const columns = () => {
    const tops = [...cards.children].map(e => /** @type {any} */ (e).offsetTop);
    return Math.max(1, tops.filter(t => t === tops[0]).length);
  };

  // ---- deciding
  /** @param {any} message @param {number[]} about */
  function send(message, about) {
    if (!live) return;
    const n = `${tag}-${++asked}`;
    waiting.set(n, {
      rows: about,
      timer: setTimeout(() => {
        waiting.delete(n);
        lastSaid = "Not confirmed: the kernel does not answer. ";
        refreshAll(false);
      }, 10000),
    });
    model.send({...message, n});
    refreshAll(false);
  }
  /** @param {string} what @param {number} [label] */
  function decide(what, label) {
    if (!live || !view.length) return;
    const about = marked.size ? view.filter(r => marked.has(r)) : [current];
    if (!about.length || about.some(saving)) return;
    const note = reason.value.trim();
    reason.value = "";
    // the next one to decide, so that a reviewer goes on at once
    const at = view.indexOf(current),
      rest = [...view.slice(at + 1), ...view.slice(0, at)];
    const next = marked.size
      ? undefined
      : (rest.find(r => decided()[r] === OPEN && !saving(r)) ?? view[at + 1]);
    marked.clear();
    send({kind: "decide", what, rows: about, label: label ?? null, reason: note}, about);
    if (next !== undefined) go(next, cards.contains(document.activeElement));
  }
  ui.root.addEventListener("keydown", onKey);
  /** @param {KeyboardEvent} e */
  function onKey(e) {
    const t = /** @type {HTMLElement} */ (e.target);
    if (e.ctrlKey || e.altKey || e.metaKey || /^(INPUT|SELECT|TEXTAREA)$/.test(t.tagName)) return;
    const inGrid = cards.contains(t),
      key = e.key;
    let done = true;
    const moves = {
      ArrowLeft: () => move(-1),
      ArrowRight: () => move(1),
      ArrowUp: () => move(-columns()),
      ArrowDown: () => move(columns()),
      Home: () => move(-view.indexOf(current) % perPage),
      End: () => go(shownRows().at(-1) ?? current, true),
      " ": () => mark(current),
      Enter: () => focusCurrent(),
    };
    const keys = {
      a: () => decide("accept"),
      r: () => decide("reject"),
      c: openChooser,
      u: () => send({kind: "undo"}, []),
      U: () => send({kind: "redo"}, []),
      PageUp: () => turn(-1),
      PageDown: () => turn(1),
      Escape: () => {
        marked.clear();
        refreshAll(false);
      },
    };
    if (inGrid && Object.hasOwn(moves, key)) moves[/** @type {keyof typeof moves} */ (key)]();
    else if (Object.hasOwn(keys, key)) keys[/** @type {keyof typeof keys} */ (key)]();
    else if (/^\d$/.test(key)) {
      const i = classes.findIndex(
        (/** @type {string} */ _, /** @type {number} */ k) => shortcut(k) === key,
      );
      if (i >= 0) decide("choose", i);
    } else done = false;
    if (done) {
      e.preventDefault();
      e.stopPropagation();
    }
  }
  ui.cleanups.push(() => ui.root.removeEventListener("keydown", onKey));

  // ---- all of it
  /** @type {Object<string, (a: number, b: number) => number>} */
  const orders = {
    severity: (a, b) =>
      rows.severity[b] - rows.severity[a] ||
      rows.confidence[b] - rows.quality[b] - (rows.confidence[a] - rows.quality[a]),
    "suggested label's confidence": (a, b) => rows.confidence[b] - rows.confidence[a],
    "given label's confidence": (a, b) => rows.quality[a] - rows.quality[b],
    "given class": (a, b) => rows.given[a] - rows.given[b] || rows.suggested[a] - rows.suggested[b],
    id: (a, b) => rows.id[a] - rows.id[b],
  };
  /** @param {boolean} filter whether what passes the filters may have changed */
  function refreshAll(filter) {
    const d = decided();
    if (filter) {
      const s = ui.state,
        at = Math.max(0, view.indexOf(current));
      view = rows.id
        .map((/** @type {any} */ _, /** @type {number} */ r) => r)
        .filter(
          (/** @type {number} */ r) =>
            (s.severity === "any" || levels[rows.severity[r]] === s.severity) &&
            (s.given === -2 || rows.given[r] === s.given) &&
            (s.suggested === -2 || rows.suggested[r] === s.suggested) &&
            (s.show === "all" || (s.show === "decided") === (d[r] !== OPEN && !saving(r))),
        );
      view.sort((a, b) => orders[s.order](a, b) || a - b);
      if (!view.includes(current)) current = view[Math.min(at, view.length - 1)] ?? 0;
      page = Math.max(0, Math.floor(view.indexOf(current) / perPage));
      for (const r of marked) if (!view.includes(r)) marked.delete(r);
    }
    const pages = Math.max(1, Math.ceil(view.length / perPage)),
      done = d.filter(v => v !== OPEN).length;
    where.textContent = `page ${page + 1} of ${pages}`;
    back.disabled = page === 0;
    forward.disabled = page >= pages - 1;
    for (const b of actions) b.disabled = !live;
    reason.disabled = !live;
    field.hidden = !live;
    readonly.hidden = live;
    said.say(
      `${lastSaid}${done} of ${N} decided, ${view.length} shown` +
        (marked.size ? `, ${marked.size} marked.` : "."),
    );
    refreshCards();
    refreshDetail();
    if (filter) refreshScatter();
    else refreshRings();
  }
  const onDecided = () => refreshAll(true);
  /** @param {any} m @param {DataView[]} buffers */
  const onMessage = (m, buffers) => {
    if (m?.kind === "pong" && !live) {
      live = true;
      refreshAll(false);
    }
    if (m?.kind === "images" && m.rows) {
      const b = buffers[0],
        all = new Uint8Array(b.buffer.slice(b.byteOffset, b.byteOffset + b.byteLength));
      m.rows.forEach((/** @type {number} */ r, /** @type {number} */ k) => {
        pictures.set(r, all.subarray(k * size, (k + 1) * size));
        const c = cardOf(r)?.querySelector("canvas");
        if (c) paint(c, r);
        if (r === current) paint(big, r);
      });
    }
    const mine = waiting.get(m?.n);
    if (!mine) return;
    clearTimeout(mine.timer);
    waiting.delete(m.n);
    lastSaid = `${m.said} `;
    refreshAll(true);
    if (m.kind === "saved" && m.go >= 0 && view.includes(m.go))
      go(m.go, cards.contains(document.activeElement));
  };
  model.on("change:decided", onDecided);
  model.on("msg:custom", onMessage);
  ui.cleanups.push(() => {
    model.off("change:decided", onDecided);
    model.off("msg:custom", onMessage);
    waiting.forEach(w => clearTimeout(w.timer));
  });
  try {
    model.send({kind: "ping"});
  } catch {
    /* no kernel: read only */
  }
  return () => refreshAll(true);
}
