// Takes the place of the scripts from npm when the site was built without them.
document.addEventListener("DOMContentLoaded", () => {
  const widgets = document.querySelector('script[type="application/vnd.jupyter.widget-view+json"]');
  const maths = document.querySelector(".math");
  if (!(widgets || maths) || document.querySelector(".still-note")) return;
  const note = document.createElement("p");
  note.className = "still-note";
  note.textContent =
    "This copy of the site was built without npm: " +
    [widgets && "the interactive parts stay empty", maths && "formulas are shown as their source"]
      .filter(Boolean)
      .join(" and ") +
    ".";
  document.querySelector("article")?.prepend(note);
});
