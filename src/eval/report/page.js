"use strict";
// Shows what a mark says beside it: under the pointer, or at the arrow keys in a plot that has the focus.
const tip = document.getElementById("tip");
let shown = null;
function hide() {
  if (shown) shown.classList.remove("on");
  shown = null;
  tip.style.visibility = "hidden";
}
function show(mark) {
  if (mark === shown) return;
  hide();
  shown = mark;
  mark.classList.add("on");
  tip.textContent = mark.getAttribute("aria-label");
  const at = mark.getBoundingClientRect(), own = tip.getBoundingClientRect(), width = document.documentElement.clientWidth;
  const left = Math.max(4, Math.min(at.left + at.width / 2 - own.width / 2, width - own.width - 4));
  const above = at.top - own.height - 8;
  tip.style.left = left + window.scrollX + "px";
  tip.style.top = (above < 4 ? at.bottom + 8 : above) + window.scrollY + "px";
  tip.style.visibility = "visible";
}
for (const plot of document.querySelectorAll(".plot svg")) {
  const marks = [...plot.querySelectorAll(".m")];
  plot.addEventListener("pointerover", (event) => {
    const mark = event.target.closest(".m");
    if (mark) show(mark); else hide();
  });
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    const last = marks.length - 1, at = marks.indexOf(shown);
    const next = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: last }[event.key];
    if (event.key === "Escape") hide();
    if (next === undefined || last < 0) return;
    event.preventDefault();
    show(marks[Math.max(0, Math.min(next, last))]);
  });
}
